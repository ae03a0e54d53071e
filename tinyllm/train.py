"""Training: one loop for every model, on both backends.

    draw a batch -> loss -> backward -> clip and step -> now and then: log, save, evaluate, sample

The order of the data depends only on (seed, step), and so does dropout; so a run that was interrupted and resumed from
a checkpoint continues bit for bit as if nothing had happened. (On a GPU after backend.use_deterministic_algorithms():
there some sums are else added up in any order.)
"""
import contextlib
import json
import math
import signal
import threading
import time
import warnings
from dataclasses import asdict, dataclass
from numbers import Real
from pathlib import Path

import numpy as np
from tqdm import tqdm

from . import checkpoint, metrics, modes, optim, random
from .config import Config
from .generate import generate
from .log import Log
from .modes import no_grad
from .recorded import Recorded, is_recordable

SCHEDULES = {       # TrainConfig -> the learning rate as a function of the step
    "cosine": lambda c: optim.cosine(c.lr, c.steps, c.warmup, c.min_lr),
    "linear": lambda c: optim.linear(c.lr, c.steps, c.warmup, c.min_lr),
    "inverse_sqrt": lambda c: optim.inverse_sqrt(c.lr, c.warmup),
    "constant": lambda c: optim.constant(c.lr),
}


@dataclass
class TrainConfig(Config):
    """How to train. A step looks at grad_accum batches of batch_size windows, one batch after the other in memory."""

    steps: int = 2000
    batch_size: int = 12
    grad_accum: int = 1
    lr: float = 1e-3                    # the peak of the schedule
    min_lr: float = 1e-4
    warmup: int = 100
    schedule: str = "cosine"            # one of SCHEDULES
    betas: tuple = (0.9, 0.99)
    weight_decay: float = 0.1
    clip: float = 1.0                   # largest norm of the gradient; 0: no clipping
    log_every: int = 10                 # steps between two lines of the log
    eval_every: int = 250               # steps between two evaluations, pictures and samples
    eval_windows: int = 0               # how many windows of the validation text to use; 0: all of it
    save_every: int = 250               # steps between two checkpoints; the last two are kept
    sample_tokens: int = 200            # length of the sample at each evaluation; 0: none
    seed: int = 1337
    capture: bool = True                # on a GPU: a step as one CUDA graph (kernels/graph.py)

    FROM_ZERO = ("warmup", "eval_windows", "sample_tokens", "seed")

    def check(self):
        number = lambda name: isinstance(getattr(self, name), Real) and 0 <= getattr(self, name) < math.inf
        self.need("lr", number("lr") and self.lr > 0, "a positive number")
        for name in ("min_lr", "weight_decay", "clip"):
            self.need(name, number(name), "a number, at least 0")
        self.need("betas", len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas),
                  "two numbers from 0 to below 1")
        self.need_one_of("schedule", SCHEDULES)


def training_step(model, optimizer, config):
    """The function (batches, learning rate) -> (losses, gradient norm) that changes the model once.

    A batch is a tuple of arrays, the arguments of model.loss. Each batch's loss gets the gradient 1 / (their number),
    so they add up to the mean over all of them. on_arrays takes and returns arrays only and looks at none of them, so a
    GPU can record it as one graph; what has to be computed from a batch on the host, model.prepare() has computed. Each
    step has its own dropout: random.next_step() comes with it. Make a new step after changing the optimizer's settings.
    """
    def on_arrays(rng, *batches):
        optimizer.collect_gradients()
        losses = []
        with random.drawn_from(rng):
            for arrays in batches:
                loss = loss_of(model, arrays)
                loss.backward(np.array(1 / len(batches)))
                losses.append(loss.data)
        return losses, optimizer.apply(config.clip)

    ops, recorded = optimizer.ops, Recorded(model, on_arrays) if config.capture and is_recordable(model) else None

    def step(batches, lr):
        recording = recorded is not None and not modes.looking()
        if recording:
            batches = [model.prepare(*batch) for batch in batches]                      # may refuse them
        optimizer.advance(lr)
        losses, norm = (recorded if recording else on_arrays)(random.counter(), *batches)
        if recording:
            losses, norm = [ops.copy(loss) for loss in losses], ops.copy(norm)          # the next step overwrites them
        optimizer.announce()
        random.next_step()
        return losses, norm
    return step


def loss_of(model, arrays, **options):
    """The loss of a batch: a tuple, as it comes from the data, or a dictionary, as model.prepare() makes it."""
    return model.loss(**arrays, **options) if isinstance(arrays, dict) else model.loss(*arrays, **options)


def summed_loss(model, capture=True):
    """The function (batch) -> summed loss, a 0-d array, for evaluate(); on a GPU it is recorded."""
    def sum_of(arrays):
        return loss_of(model, arrays, reduction="sum").data
    if not (capture and is_recordable(model)):
        return sum_of
    recorded = Recorded(model, sum_of)
    return lambda batch: sum_of(batch) if modes.looking() else recorded(model.prepare(*batch))


def evaluate(model, data, batch_size, windows=0, loss=None):
    """Mean loss in nats per target over a dataset: over all of it, or over exactly the first `windows` windows.

    loss: a summed_loss() of the model, kept for the next evaluation; None: a new one.
    """
    loss = loss or summed_loss(model)
    total = count = seen = 0
    with model.evaluating(), no_grad():
        for arrays in data.windows(batch_size):
            if windows:
                arrays = [a[:windows - seen] for a in arrays]
            total += float(loss(arrays))
            count, seen = count + _targets(arrays), seen + len(arrays[0])
            if windows and seen >= windows:
                break
    if count == 0:
        raise ValueError(f"evaluate: there is no target in these {seen} windows, as all are -100; give other data")
    return total / count


def train(model, train_data, val_data, config, out, tokenizer=None, resume=None, stop_at=None):
    """Train until config.steps; write log.jsonl, loss.png and checkpoints into the folder `out`;
    return the validation loss at the end (None after stop_at).

    train_data, val_data: TokenDatasets, or objects with the same batch(), windows() and fingerprint(). tokenizer: to
    print samples, and saved with each checkpoint. resume: the checkpoint to continue from, with the same data,
    tokenizer and settings. stop_at: save and leave after that step.

    Ctrl-C finishes the step, saves, and raises KeyboardInterrupt; a second Ctrl-C does not wait. A loss or gradient
    that is not a number stops the run with FloatingPointError, and the last checkpoint stays. ValueError: `out` holds
    another run, or the run to be resumed had other settings.
    """
    out, c = Path(out), config
    optimizer = optim.AdamW(model.parameters(), c.lr, c.betas, weight_decay=c.weight_decay)
    settings = {name: value for name, value in asdict(c).items() if name != "capture"}      # which changes no number
    run = {"train": settings, "data": train_data.fingerprint(), "dtype": str(model.parameters()[0].dtype)}
    random.manual_seed(c.seed)
    done = _begin(out, resume, run, model, optimizer, tokenizer)
    end, val_loss, stopping = min(c.steps, stop_at or c.steps), None, False
    step_once, schedule = training_step(model, optimizer, c), SCHEDULES[c.schedule](c)
    loss_to_evaluate = summed_loss(model, c.capture)
    log = Log(out / "log.jsonl", done)
    bar = tqdm(total=c.steps, initial=done, unit="step", dynamic_ncols=True, smoothing=0.05)
    model.train()
    with bar, _finish_on_ctrl_c() as stop:
        unread, start = [], time.perf_counter()                 # losses not looked at since the last line of the log
        while done < end and not stopping:
            rng = np.random.default_rng([c.seed, done])         # the data's order: a function of (seed, step)
            random.next_step(done)                              # and dropout's
            batches, lr = [train_data.batch(c.batch_size, rng) for _ in range(c.grad_accum)], schedule(done)
            losses, norm = step_once(batches, lr)
            done += 1
            unread.append((done, losses, norm))
            bar.update()
            stopping = stop.is_set()
            last = stopping or done == end
            if last or any(done % n == 0 for n in (c.log_every, c.save_every, c.eval_every)):
                loss = _read(unread, out)                       # raises if one is not a number: nothing bad is saved
                speed = len(unread) * sum(map(_targets, batches)) / (time.perf_counter() - start)
                log.write(step=done, loss=loss, lr=lr, grad_norm=float(norm), tokens_per_s=round(speed))
                bar.set_postfix_str(f"loss {loss:.3f}, {speed:,.0f} tokens/s")
                unread, start = [], time.perf_counter()
            if last or done % c.save_every == 0:                # before evaluating, drawing, sampling: what may fail
                _save(out, done, run, model, optimizer, tokenizer)
                start = time.perf_counter()
            if (done == c.steps or done % c.eval_every == 0) and not stopping:
                val_loss = evaluate(model, val_data, c.batch_size, c.eval_windows, loss_to_evaluate)
                log.write(step=done, val_loss=val_loss, windows=c.eval_windows or "all")
                log.plot(out / "loss.png")
                bar.write(f"step {done}: validation loss {val_loss:.4f}, perplexity {metrics.perplexity(val_loss):.2f}"
                          + (f", on the first {c.eval_windows} windows" if c.eval_windows else ""))
                if tokenizer is not None and c.sample_tokens:
                    bar.write(_sample(model, tokenizer, val_data, c) + "\n")
                start = time.perf_counter()
    if stopping or done < c.steps:
        print(f"Stopped at step {done} of {c.steps}; everything is saved in {checkpoint.latest(out)}.")
        if stopping:
            raise KeyboardInterrupt
        return None
    return evaluate(model, val_data, c.batch_size, c.eval_windows, loss_to_evaluate) if val_loss is None else val_loss


def _targets(batch):
    """How many targets a batch has: its last array holds them, -100 where there is none."""
    return int((batch[-1] != -100).sum())


def _begin(out, resume, run, model, optimizer, tokenizer):
    """The number of steps that are done: 0 in a new folder; or a checkpoint's, put into model and optimizer."""
    if (earlier := checkpoint.latest(out)) and (resume is None or Path(resume).parent.resolve() != out.resolve()):
        raise ValueError(f"{out} holds an earlier run ({earlier.name}); resume it, or train into another folder")
    if resume is None:
        out.mkdir(parents=True, exist_ok=True)
        return 0
    state = checkpoint.read_state(resume)
    if not {"step", "train", "data", "dtype"} <= state.keys():
        raise ValueError(f"{resume} was not written by train(), so its settings are not known; put it into a model and "
                         "an optimizer of yours with checkpoint.load()")
    now = json.loads(json.dumps(run))
    saved, now = ({**facts["train"], "the text": facts["data"], "dtype": facts["dtype"]} for facts in (state, now))
    other = [f"{k} was {saved.get(k)}, is {now[k]}" for k in now if saved.get(k) != now[k]]
    if other:       # the order of the data and the learning rate follow from these
        raise ValueError(f"{resume} was trained with other settings ({'; '.join(other)}); resume with the same ones, "
                         "or train into another folder")
    if not checkpoint.same_tokenizer(resume, tokenizer):
        raise ValueError(f"{resume} was trained with another tokenizer; resume with tinyllm.text.load_tokenizer of "
                         "that folder, or train into another folder")
    checkpoint.load(resume, model, optimizer, state)
    out.mkdir(parents=True, exist_ok=True)
    return state["step"]


def _save(out, done, run, model, optimizer, tokenizer):
    """Write a checkpoint; of the older ones, only the newest is kept."""
    checkpoint.save(out / f"checkpoint-{done:06d}", model, optimizer, {"step": done, **run}, tokenizer)
    for old in [p for p in checkpoint.checkpoints(out) if checkpoint.step_of(p) <= done][:-2]:
        checkpoint.remove(old)


def _read(unread, out):
    """The mean loss since last time; FloatingPointError names the first step with a loss or gradient that is none."""
    means = []
    for step, losses, norm in unread:
        means.append(sum(float(part) for part in losses) / len(losses))
        for what, value in (("loss", means[-1]), ("gradient norm", float(norm))):
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"the {what} of step {step} is {value}: stopped, and the last checkpoint is kept "
                    f"({checkpoint.latest(out) or 'there was none yet'}); a smaller learning rate or a longer warm-up "
                    "usually helps, and tinyllm.detect_anomaly() names the operation")
    return sum(means) / len(means)


def _sample(model, tokenizer, val_data, config):
    """What the model makes of the first words of the validation text; the training's random state is not disturbed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                 # that a long sample outgrows the context is no news here
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
