"""Training: one loop for every model, on both backends.

    draw a batch -> loss -> backward -> clip and step -> now and then: log, evaluate, sample, save

The order of the data depends only on (seed, step), and so does dropout; so a run that was interrupted and resumed from
a checkpoint continues bit for bit as if nothing had happened.
"""
import contextlib
import json
import math
import signal
import threading
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from . import checkpoint, metrics, optim, random
from .generate import generate
from .modes import no_grad


@dataclass
class TrainConfig:
    """How to train. One step looks at batch_size * grad_accum windows of the data."""

    steps: int = 2000
    batch_size: int = 12
    grad_accum: int = 1                 # work off a batch in so many parts, when memory is short: the same step
    lr: float = 1e-3                    # the peak of the schedule
    min_lr: float = 1e-4
    warmup: int = 100
    schedule: str = "cosine"            # or "linear", "inverse_sqrt", "constant"
    betas: tuple = (0.9, 0.99)
    weight_decay: float = 0.1
    clip: float = 1.0                   # largest norm of the gradient; 0: no clipping
    log_every: int = 10                 # steps between two lines of the log
    eval_every: int = 250               # steps between two evaluations, pictures and samples
    eval_windows: int = 0               # how many windows of the validation text to use; 0: all of it
    save_every: int = 250               # steps between two checkpoints; the last two are kept
    sample_tokens: int = 200            # length of the sample at each evaluation; 0: none
    seed: int = 1337


def learning_rate(config):
    """The schedule that a configuration asks for, as a function of the step."""
    c = config
    schedules = {
        "cosine": lambda: optim.cosine(c.lr, c.steps, c.warmup, c.min_lr),
        "linear": lambda: optim.linear(c.lr, c.steps, c.warmup, c.min_lr),
        "inverse_sqrt": lambda: optim.inverse_sqrt(c.lr, c.warmup),
        "constant": lambda: optim.constant(c.lr),
    }
    if c.schedule not in schedules:
        raise ValueError(f'TrainConfig: there is no schedule "{c.schedule}"; choose one of {", ".join(schedules)}')
    return schedules[c.schedule]()


def evaluate(model, data, batch_size, windows=0):
    """Mean loss in nats per token over a TokenDataset: over every token, or over the first `windows` windows only."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    total = count = seen = 0
    with no_grad():
        for ids, targets in data.windows(batch_size):
            total += model.loss(ids, targets, reduction="sum").item()
            count, seen = count + targets.size, seen + len(ids)
            if windows and seen >= windows:
                break
    for module, training in modes:
        module.training = training
    return total / count


def training_step(model, optimizer, config):
    """The function (list of (ids, targets), learning rate) -> (losses, gradient norm) that changes the model once.

    Each part's loss gets the gradient 1 / (number of parts), so the parts add up to the mean over the whole batch. What
    is captured takes and returns arrays only and looks at none of them, so that a GPU can record it as one graph.
    """
    def on_arrays(*parts):
        optimizer.zero_grad()
        losses = []
        for ids, targets in parts:
            loss = model.loss(ids, targets)
            loss.backward(np.array(1 / len(parts)))
            losses.append(loss.data)
        return losses, optimizer.apply(config.clip)

    captured = optimizer.ops.capture(on_arrays)

    def step(parts, lr):
        optimizer.advance(lr)
        return captured(*parts)
    return step


def train(model, train_data, val_data, config, out, tokenizer=None, resume=None, stop_at=None):
    """Train until config.steps; write log.jsonl, loss.png and checkpoints into the folder `out`;
    return the last validation loss.

    train_data, val_data: TokenDatasets. tokenizer: to print samples, and saved with each checkpoint. resume: the folder
    of a checkpoint to continue from. stop_at: leave after that step, as on Ctrl-C. Ctrl-C finishes the step, saves, and
    leaves. A loss or gradient that is not a number stops the run with FloatingPointError; the last checkpoint stays.
    """
    out, c = Path(out), config
    out.mkdir(parents=True, exist_ok=True)
    optimizer = optim.AdamW(model.parameters(), c.lr, c.betas, weight_decay=c.weight_decay)
    schedule, done, val_loss = learning_rate(c), 0, None
    random.manual_seed(c.seed)
    if resume is not None:
        state = checkpoint.load(resume, model, optimizer)
        _refuse_other_settings(resume, state["train"], json.loads(json.dumps(asdict(c))))
        done, val_loss = state["step"], state["val_loss"]
    log = Log(out / "log.jsonl", done)
    tokens_per_step = c.batch_size * c.grad_accum * train_data.context
    step_once, model = training_step(model, optimizer, c), model.train()
    bar = tqdm(total=c.steps, initial=done, unit="step", dynamic_ncols=True, smoothing=0.05)
    with bar, _finish_on_ctrl_c() as stop:
        start = time.perf_counter()
        unread = []                                             # losses not looked at since the last line of the log
        while done < c.steps and not stop.is_set():
            rng = np.random.default_rng([c.seed, done])         # the data's order: a function of (seed, step)
            random.next_step(done)                              # and dropout's
            lr = schedule(done)
            losses, norm = step_once([train_data.batch(c.batch_size, rng) for _ in range(c.grad_accum)], lr)
            done += 1
            unread.append((done, losses, norm))
            bar.update()
            if done == stop_at:
                stop.set()
            last = done == c.steps or stop.is_set()
            if done % c.log_every == 0 or done % c.save_every == 0 or done % c.eval_every == 0 or last:
                loss = _read(unread)                            # raises if one is not a number: nothing bad is saved
                speed = len(unread) * tokens_per_step / (time.perf_counter() - start)
                log.write(step=done, loss=loss, lr=lr, grad_norm=float(norm), tokens_per_s=round(speed))
                bar.set_postfix_str(f"loss {loss:.3f}, {speed:,.0f} tokens/s")
                unread, start = [], time.perf_counter()
            if done % c.eval_every == 0 or done == c.steps:
                val_loss = evaluate(model, val_data, c.batch_size, c.eval_windows)
                log.write(step=done, val_loss=val_loss)
                bar.write(f"step {done}: validation loss {val_loss:.4f}, perplexity {metrics.perplexity(val_loss):.2f}")
                log.plot(out / "loss.png")
                if tokenizer is not None and c.sample_tokens:
                    bar.write(_sample(model, tokenizer, val_data, c) + "\n")
                start = time.perf_counter()
            if done % c.save_every == 0 or last:
                state = {"step": done, "val_loss": val_loss, "train": asdict(c)}
                checkpoint.save(out / f"checkpoint-{done:06d}", model, optimizer, state, tokenizer)
                for old in checkpoint.checkpoints(out)[:-2]:
                    checkpoint.remove(old)
                start = time.perf_counter()
    if done < c.steps:
        print(f"Stopped at step {done} of {c.steps}; everything is saved in {checkpoint.latest(out)}.")
    return val_loss


def _refuse_other_settings(folder, saved, now):
    """Data order and learning rate follow from the settings, so a resumed run must have the same ones."""
    other = [f"{k} was {saved.get(k)}, is {now[k]}" for k in now if saved.get(k) != now[k]]
    if other:
        raise ValueError(f"{folder} was trained with other settings ({'; '.join(other)}); resume with the same ones, "
                         "or train into another folder")


def _read(unread):
    """The mean loss since the last look; FloatingPointError names the first step with a loss or gradient that is none."""
    means = []
    for step, losses, norm in unread:
        means.append(sum(float(part) for part in losses) / len(losses))
        for what, value in (("loss", means[-1]), ("gradient norm", float(norm))):
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"the {what} of step {step} is {value}: stopped, and the last checkpoint is kept; a smaller "
                    "learning rate or a longer warm-up usually helps, and tinyllm.detect_anomaly() names the operation")
    return sum(means) / len(means)


def _sample(model, tokenizer, val_data, config):
    """What the model makes of the first words of the validation text; the training's random state is not disturbed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                         # that a long sample outgrows the context is no news here
        ids = generate(model, np.array(val_data.tokens[:16]), config.sample_tokens, temperature=0.8, top_k=50,
                       seed=config.seed)
    return tokenizer.decode(ids[0].tolist())


@contextlib.contextmanager
def _finish_on_ctrl_c():
    """Ctrl-C sets the event that this yields, so that the step can be finished and saved;
    a second one stops at once.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop                                              # only the main thread receives signals
        return

    def on_signal(number, frame):
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


class Log:
    """A file with one JSON object a line, and the picture of it. Opened for a resumed run, it drops what came later."""

    def __init__(self, path, done):
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() and done else []
        self.path, self.rows = path, []
        for line in lines:
            with contextlib.suppress(ValueError):               # a line that a crash cut short
                self.rows.append(json.loads(line))
        self.rows = [row for row in self.rows if row["step"] <= done]
        path.write_text("".join(json.dumps(row) + "\n" for row in self.rows), encoding="utf-8")

    def write(self, **row):
        """Append one object; at once, so that a killed run has its log."""
        self.rows.append(row)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def plot(self, path):
        """Training and validation loss over the steps; without matplotlib there is no picture."""
        try:
            from matplotlib.figure import Figure
        except ImportError:
            return
        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.subplots()
        for key, label, style in (("loss", "training (mean since the last point)", "-"),
                                  ("val_loss", "validation", "o-")):
            points = [(row["step"], row[key]) for row in self.rows if key in row]
            axes.plot(*zip(*points) if points else ((), ()), style, label=label, markersize=4, linewidth=1)
        axes.set(xlabel="step", ylabel="loss (nats per token)", title="Learning to predict the next token")
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(path, dpi=120)
