"""The same training run three times, in NumPy, in Triton with float32 and with bfloat16: do the losses stay together?

    python examples/benchmark.py curves                 500 steps of the "tiny" GPT on the text that comes with Python
    python examples/benchmark.py curves --smoke         two steps of a tinier one, also without a GPU

The recipe, the data's order and the first weights are those of 3_train_gpt.py. Two runs that add in different orders
drift apart, the faster the larger the learning rate, so single steps need not agree for ever. What must agree is the
course: the distance is that of means over a 25th of all steps.

Leaves behind, in the folder --out: benchmark_curves.json, written after each curve, and benchmark_curves.png.
"""
import time

import tinyllm     # before NumPy: it tells NumPy's BLAS how to wait (ops/threads.py)
import numpy as np
from tinyllm import backend, optim, text, train

CURVES = {"NumPy float32": ("numpy", "float32"), "Triton float32": ("triton", "float32"),
          "Triton bfloat16": ("triton", "bfloat16")}
SEED = 1337


def run(steps, smoke, save):
    """Train three times; save(report) after each; the report."""
    corpus = text.default_corpus()
    tokenizer = text.CharTokenizer.train(corpus)
    tokens, _ = text.split(np.array(tokenizer.encode(corpus)), 0.1)
    config = tinyllm.GPTConfig.preset("nano" if smoke else "tiny", vocab_size=tokenizer.vocab_size, bias=False)
    data = text.TokenDataset(tokens, config.n_positions)
    report = {"what": f"{steps} training steps, {config.n_layer} layers, width {config.n_embd}, on {len(tokens):,} "
                      "letters of Python's help()", "text": text.describe(corpus), "window": window(steps),
              "losses": {}, "seconds": {}, "largest_distance": {}, "reasons": {}}
    for name, (path, dtype) in CURVES.items():
        try:
            start = time.perf_counter()
            report["losses"][name] = curve(config, data, steps, 2 if smoke else 12, path, dtype)
            report["seconds"][name] = time.perf_counter() - start
        except Exception as error:                              # the other curves are worth having all the same
            report["reasons"][name] = f"{type(error).__name__}: {error}"
        report["largest_distance"] = distances(report["losses"])
        save(report)
        print(line(name, report), flush=True)
    return report


def curve(config, data, steps, batch_size, path, dtype):
    """The losses of a run: a list of `steps` numbers. They stay on the device until the end."""
    tinyllm.manual_seed(SEED)
    model = tinyllm.GPT(config).to(path, dtype)
    c = train.TrainConfig(steps=steps, batch_size=batch_size, warmup=min(100, steps), seed=SEED)
    step = train.training_step(model, optim.AdamW(model.parameters(), c.lr, c.betas, weight_decay=c.weight_decay), c)
    ops, schedule, losses = backend.get(path), train.SCHEDULES[c.schedule](c), []
    model.train()
    for i in range(steps):
        tinyllm.random.next_step(i)
        batch = data.batch(c.batch_size, np.random.default_rng([c.seed, i]))
        losses.append(ops.copy(step([batch], schedule(i))[0][0]))           # a copy: the next step may write over it
    return [float(loss) for loss in losses]


def window(steps):
    """Over how many steps losses are averaged."""
    return max(1, steps // 25)


def smoothed(losses):
    """Means over neighbours: (n,) -> (n - window + 1,)"""
    n = window(len(losses))
    return np.convolve(losses, np.full(n, 1 / n), mode="valid")


def distances(losses):
    """{name: how far a curve is from the first one at most, after smoothing, in nats; None: not a number}"""
    first, *others = CURVES
    if first not in losses:
        return {}
    far = {name: float(np.abs(smoothed(losses[name]) - smoothed(losses[first])).max())
           for name in others if name in losses}
    return {name: value if np.isfinite(value) else None for name, value in far.items()}


def line(name, report):
    """What to say about a curve."""
    if name in report["reasons"]:
        return f"{name:16} failed: {report['reasons'][name]}"
    losses, far = report["losses"][name], report["largest_distance"].get(name)
    return (f"{name:16} loss {losses[0]:.4f} at first, {smoothed(losses)[-1]:.4f} in the end; "
            f"{report['seconds'][name]:.1f} s" + ("" if far is None else f"; {far:.4f} from NumPy's at most"))


def picture(report):
    """All steps pale, their means on top."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for (name, losses), style in zip(report["losses"].items(), ("-", "--", ":")):
        means = smoothed(losses)
        drawn, = axes.plot(np.arange(len(means)) + len(losses) - len(means) + 1, means, style, linewidth=2, label=name)
        axes.plot(np.arange(len(losses)) + 1, losses, color=drawn.get_color(), alpha=0.15, linewidth=1)
    axes.set(xlabel="step", ylabel=f"loss in nats per letter, mean over {report['window']} steps", title=report["what"])
    axes.legend()
    return figure
