"""9. Language models through history: five ideas, one text, the same time to learn.

    python examples/9_history.py                                the text that comes with Python, eight minutes
    python examples/9_history.py --also tinyshakespeare.txt     n-grams on a second text as well: another story
    python examples/9_history.py --text FILE --seconds 300      all of it on your own text, with more time

    1950s   n-gram      counts what followed the last few characters            (tinyllm/models/ngram.py)
    1990    RNN         carries a state along                                   (tinyllm/models/rnn.py)
    1997    LSTM        a state that it can keep, behind gates                  (tinyllm/models/rnn.py)
    2019    GPT-2       looks at all characters before, directly                (tinyllm/models/gpt.py)
    2023    Llama       the same with rotary positions, gates, lighter norms    (tinyllm/models/llama.py)

Every model reads the same characters and is asked about the same ones, in windows of 64. An n-gram counts once; the
others learn for --seconds, the learning rate falling to zero until then: so a fast, simple model sees the text more
often than a slow, clever one.

The table at the end is in bits per character: how many yes-no questions a perfect guesser with this model's
probabilities would need for each character. The picture has the same against time, and what n-grams make of
a longer memory and of more text. Written into one folder (--out): history.png, history.json.

Why does counting win on Python's pages? They repeat themselves: 40 % of the runs of 12 characters that are asked about
occur word for word in the part that was counted, as many pages have much the same sentences. Whoever looks up what came
next there is right, and that is all that an n-gram does: order 12 reaches 1.62 bits, order 5 1.78, and an LSTM in its
90 seconds 1.73 to 1.82. Shakespeare says things once. There it is 11 %, and beyond order 6 a longer memory finds
nothing more to look up: 2.23 bits, with 6 as with 12. An LSTM, for which two contexts are not equal or different but
more or less alike, gets past that in five minutes (2.19), and the modern GPT has caught up (2.23).
"""
import argparse
import json
import math
import time
from pathlib import Path

import tinyllm     # before NumPy: it tells NumPy's BLAS how to wait (ops/threads.py)
import numpy as np
import script
from tinyllm import metrics, optim, text, train
from tinyllm.text import CharTokenizer, TokenDataset

KINDS = ["RNN", "LSTM", "GPT-2", "Llama"]
CONTEXT, ORDERS, SIZES = 64, (1, 2, 3, 4, 5, 6, 8, 10, 12), (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)


def neural_models(V):
    """name -> a function that makes (model, learning rate, windows per step)"""
    rnn = tinyllm.RNNConfig.preset("tiny", vocab_size=V)
    gpt = lambda preset: tinyllm.GPT(tinyllm.GPTConfig.preset(preset, vocab_size=V))
    return {"RNN": lambda: (tinyllm.RNNLM(rnn), 2e-3, 32), "LSTM": lambda: (tinyllm.LSTMLM(rnn), 4e-3, 32),
            "GPT-2": lambda: (gpt("tiny"), 2e-3, 12), "Llama": lambda: (gpt("llama-tiny"), 2e-3, 12)}


def bits(model, data):
    """Bits per character of a text, window by window."""
    return metrics.bits_per_character(train.evaluate(model, data, 32), 1, 1)


def ngram(order, V, tokens):
    return tinyllm.NGram(tinyllm.NGramConfig(vocab_size=V, order=order)).fit(tokens)


def learn(name, make, train_data, val_data, seconds, seed):
    """Train a model for that long: (the model, [(seconds of training, bits per character), ...])"""
    tinyllm.manual_seed(seed)
    model, peak, batch_size = make()
    config = train.TrainConfig(batch_size=batch_size, lr=peak)
    optimizer = optim.AdamW(model.parameters(), peak, config.betas, weight_decay=config.weight_decay)
    step, rng = train.training_step(model, optimizer, config), np.random.default_rng(seed)
    curve, steps, spent, ask_at = [(0.0, bits(model, val_data))], 0, 0.0, seconds / 40
    model.train()
    while spent < seconds:
        start = time.perf_counter()
        rate = min(1, (steps + 1) / 100) * (1 + math.cos(math.pi * spent / seconds)) / 2    # warm-up, then down to zero
        tinyllm.random.next_step(steps)
        step([train_data.batch(batch_size, rng)], peak * rate)
        steps, spent = steps + 1, spent + time.perf_counter() - start       # asking, below, costs a model no time
        if spent >= ask_at:
            curve.append((spent, bits(model, val_data)))
            ask_at = spent * 1.4
            print(f"\r  {name}: {spent:4.0f} s, {steps:,} steps, {curve[-1][1]:.3f} bits per character", end="",
                  flush=True)
    curve.append((spent, bits(model, val_data)))
    print(f"\r  {name}: {steps:,} steps of {batch_size} windows, {curve[-1][1]:.3f} bits per character in the end")
    return model, curve


def known(run, old, new):
    """The share of the runs of so many tokens in the new text that occur in the old one as well."""
    runs = lambda tokens: {bytes(r) for r in np.lib.stride_tricks.sliding_window_view(tokens.astype(np.uint16), run)}
    seen = runs(old)
    return np.mean([bytes(r) in seen for r in np.lib.stride_tricks.sliding_window_view(new.astype(np.uint16), run)])


def study_ngrams(name, corpus):
    """Kneser-Ney on one text: bits per character by order, and by the size of what was counted; and how far it repeats.
    """
    tokenizer, old, new = prepare(corpus)
    V, val_data = tokenizer.vocab_size, TokenDataset(new, CONTEXT)
    by_order = [bits(ngram(order, V, old), val_data) for order in ORDERS]
    by_size = {order: [bits(ngram(order, V, old[-int(len(old) * size):]), val_data) for size in SIZES]
               for order in (3, 5, 12)}
    share = known(12, old, new)
    print(f"N-grams on {name}, by order, in bits per character:\n  "
          + ", ".join(f"{order}: {value:.2f}" for order, value in zip(ORDERS, by_order))
          + f"\n  {share:.0%} of the runs of 12 characters in its validation part occur in its training part.")
    return {"by_order": by_order, "by_size": by_size, "characters": len(old), "known_runs_of_12": share}


def prepare(corpus):
    """(tokenizer, training tokens, validation tokens), a token being a character"""
    tokenizer = CharTokenizer.train(corpus)
    old, new = text.split(np.array(tokenizer.encode(corpus), dtype=int), 0.1)
    if len(new) <= CONTEXT:
        raise ValueError(f"the text has {len(corpus)} characters, too few to ask about a tenth of it in windows of "
                         f"{CONTEXT}; give a longer one")
    return tokenizer, old, new


def picture(results, path):
    """Three panels: bits per character against time; n-grams against their order; and against the size of the text."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(15, 4.8), layout="constrained")
    by_time, by_order, by_size = figure.subplots(1, 3, sharey=True)
    for name, curve in results["curves"].items():
        by_time.plot(*zip(*curve[1:]), marker=".", label=f"{name}: {curve[-1][1]:.2f}")
    first, *_ = studies = list(results["studies"].values())
    for order, color in ((3, "0.6"), (5, "0.4"), (12, "0.1")):
        value = first["by_order"][ORDERS.index(order)]
        by_time.axhline(value, color=color, linestyle=":", label=f"{order}-gram: {value:.2f}")
    by_time.set(xscale="log", xlabel="seconds of training", ylabel="bits per character", title="Every model, same time")
    by_time.legend(fontsize=8)
    for (name, study), style in zip(results["studies"].items(), ("-", "--")):
        by_order.plot(ORDERS, study["by_order"], marker="o", linestyle=style, label=name)
        for order, color in ((3, "tab:green"), (5, "tab:orange"), (12, "tab:red")):
            by_size.plot([study["characters"] * size for size in SIZES], study["by_size"][order], marker="o",
                         linestyle=style, color=color, label=f"{order}-gram, {name}")
    by_order.set(xlabel="order n (looks back n - 1 characters)", title="Kneser-Ney: a longer memory")
    by_size.set(xscale="log", xlabel="characters counted", title="Kneser-Ney: more text")
    counted = [study["characters"] * size for study in studies for size in SIZES]
    ticks = [tick for k in range(20) if (tick := max(counted) / 2**k) > 0.9 * min(counted)]
    by_size.set_xticks(ticks, [f"{tick / 1000:.0f}k" for tick in ticks])
    by_size.minorticks_off()                        # between powers of ten they would have labels, too, one on another
    for axes in (by_order, by_size):
        axes.legend(fontsize=8)
    top = max([max(study["by_order"][1:]) for study in studies]
              + [curve[-1][1] for curve in results["curves"].values()])
    by_time.set_ylim(1.2, top + 0.3)
    figure.savefig(path, dpi=110)


def sample(model, tokenizer, prompt):
    """What a model makes of a few characters, in one line."""
    ids = tinyllm.generate(model, np.array(tokenizer.encode(prompt)), 44, temperature=0.7, seed=1)
    return tokenizer.decode(ids[0]).replace("\n", " ")


def main():
    parser = argparse.ArgumentParser(description="N-gram, RNN, LSTM and two GPTs on the same text.",
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--text", nargs="+", metavar="FILE", help="UTF-8 text to learn from (default: Python's own)")
    parser.add_argument("--also", metavar="FILE", help="a second text, for the n-grams only")
    parser.add_argument("--models", nargs="+", metavar="NAME", choices=KINDS, default=KINDS,
                        help=f"those that learn: some of {', '.join(KINDS)}")
    parser.add_argument("--seconds", type=float, default=90, help="of training, for each model that learns")
    parser.add_argument("--seed", type=int, default=1, help="of the weights and the data")
    parser.add_argument("--out", default="runs/history", help="folder for everything that is written")
    args = parser.parse_args()
    script.folder(args.out)
    if not args.seconds > 0:
        raise ValueError(f"--seconds {args.seconds:g}: give each model some time to learn")
    corpus = text.clean(text.read_text(*args.text), fold=False) if args.text else text.default_corpus()
    also = {Path(args.also).stem: text.clean(text.read_text(args.also), fold=False)} if args.also else {}
    name = Path(args.text[0]).stem if args.text else "Python's pages"
    tokenizer, train_tokens, val_tokens = prepare(corpus)
    V = tokenizer.vocab_size
    train_data, val_data = TokenDataset(train_tokens, CONTEXT), TokenDataset(val_tokens, CONTEXT)
    print(f"Text: {text.describe(corpus)}")
    print(f"Expect: {V} equally likely characters are {math.log2(V):.2f} bits; a minute of counting n-grams, then "
          f"{args.seconds:g} seconds for each of {len(args.models)} models.\n")

    results = {"studies": {n: study_ngrams(n, c) for n, c in {name: corpus, **also}.items()}, "curves": {}}
    rows = []
    for order in (3, 5, 12):
        start = time.perf_counter()
        model = ngram(order, V, train_tokens)
        rows.append((f"{order}-gram", model, time.perf_counter() - start, bits(model, val_data)))
    for kind in args.models:
        model, curve = learn(kind, neural_models(V)[kind], train_data, val_data, args.seconds, args.seed)
        results["curves"][kind] = curve
        rows.append((kind, model, *curve[-1]))
    prompt = tokenizer.decode(val_tokens[:16])
    print(f"\n{'model':>8} {'numbers':>10} {'seconds':>8} {'bits/char':>10}   continues {prompt!r}")
    for kind, model, seconds, value in rows:
        print(f"{kind:>8} {model.num_parameters():10,} {seconds:8.1f} {value:10.3f}   "
              + sample(model, tokenizer, prompt)[len(prompt):])
    results["table"] = [(kind, model.num_parameters(), seconds, value) for kind, model, seconds, value in rows]
    (Path(args.out) / "history.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    with script.drawing():
        picture(results, Path(args.out) / "history.png")
        print(f"\nThe same as a picture: {args.out}/history.png.")


if __name__ == "__main__":
    script.run(main)
