"""6. The same model on both paths, NumPy and Triton: how far are they apart?

    python examples/6_compare_paths.py                          a tiny GPT; without a GPU in Triton's interpreter
    python examples/6_compare_paths.py --dropout 0.1            with dropout: both paths must draw the same masks
    python examples/6_compare_paths.py --dtype bfloat16         what 16 bits cost
    python examples/6_compare_paths.py --checkpoint runs/gpt    with weights that have learned something

Two programs for one formula differ in the last digits, since they add in different orders. Whether they differ by more
than that, a third one tells: NumPy in float64, the truth here. First each operation by itself, on the very arrays and
gradients that it meets inside the model; then training steps of the whole model, where errors can grow. Beside Triton's
error stands NumPy's own in float32: what rounding alone does. Writes runs/compare_paths.png. Exit code 1: too far off.
"""
import argparse
import inspect
import os
import sys
from collections import Counter, namedtuple
from pathlib import Path
from unittest import mock

if not Path("/dev/nvidia0").exists():           # no GPU: Triton decides for its interpreter when it is first imported
    os.environ.setdefault("TRITON_INTERPRET", "1")

import tinyllm     # before NumPy: it tells NumPy's BLAS how to wait (ops/threads.py)
import numpy as np
import script
from tinyllm import backend, checkpoint, ops, optim, shapes, train
from tinyllm.models.gpt import PRESETS

# What is allowed beyond three times NumPy's float32 error, as a share of the truth's largest entry: for the loss, for a
# model's gradients, for an operation. float32: 16 eps. bfloat16 rounds to 8 binary digits: a loss averages such errors
# and stays within one, gradients add up to 16 (both are the rules of tests/test_two_paths.py); an operation rounds up
# to four times in a row: what it saved, a factor, a sum, the result. float16 rounds to 11 digits, but its gradients get
# bfloat16's bound: below 6e-5 its numbers lose digits, and many gradients are that small.
SLACK = {"float32": (2**-19, 2**-19, 2**-19), "bfloat16": (2**-8, 2**-4, 2**-6), "float16": (2**-11, 2**-4, 2**-9)}
Error = namedtuple("Error", "wrong triton numpy allowed name")      # in this order: the worst one is the maximum


def arguments(argv):
    parser = argparse.ArgumentParser(description="Compare the NumPy and the Triton path.",
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--preset", choices=list(PRESETS), default="tiny", help="the shape of a fresh GPT")
    parser.add_argument("--checkpoint", metavar="FOLDER", help="instead: a run of 3_train_gpt.py, or a checkpoint")
    parser.add_argument("--batch-size", type=int, default=2, help="texts per step")
    parser.add_argument("--length", type=int, default=16, help="tokens per text")
    parser.add_argument("--dtype", choices=list(SLACK), default="float32", help="what the Triton path stores")
    parser.add_argument("--steps", type=int, default=10, help="training steps to compare")
    parser.add_argument("--dropout", type=float, help="everywhere in the model (default: the model's own)")
    parser.add_argument("--seed", type=int, default=1, help="of weights, tokens and dropout")
    parser.add_argument("--out", default="runs", help="folder for the picture")
    args = parser.parse_args(argv)
    for name, least in {"batch_size": 1, "length": 1, "steps": 1, "seed": 0}.items():
        if getattr(args, name) < least:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(args, name)}; it should be at least {least}")
    if args.dropout is not None and not 0 <= args.dropout < 1:
        raise ValueError(f"--dropout is {args.dropout}; it should be a probability, from 0 to below 1")
    return args


def make_model(args):
    """The model, with the same weights at every call; any with loss(ids, targets) and config.vocab_size will do."""
    tinyllm.manual_seed(args.seed)
    if args.checkpoint:
        model, _ = checkpoint.load_model(args.checkpoint)
    else:       # the small presets are for texts in letters, the others for GPT-2's vocabulary
        letters = {} if args.preset.startswith("gpt2") else {"vocab_size": 65}
        model = tinyllm.GPT(tinyllm.GPTConfig.preset(args.preset, **letters))
    for module in model.modules() if args.dropout is not None else ():
        for name in {"p", "dropout"} & vars(module).keys():         # nn.Dropout and nn.MultiHeadAttention
            setattr(module, name, args.dropout)
    longest = getattr(model.config, "n_positions", args.length)
    if args.length > longest:
        raise ValueError(f"--length is {args.length}, but the model sees at most {longest} tokens; give fewer")
    return model


def batch(model, args, step):
    """Random tokens, and behind each the next one as its target: two arrays (B, T)"""
    rng = np.random.default_rng([args.seed, step])
    ids = rng.integers(0, model.config.vocab_size, (args.batch_size, args.length + 1))
    return ids[:, :-1], ids[:, 1:]


def in_numpy(array, dtype=np.float64):
    """An array of either backend in NumPy, floating-point numbers as `dtype`; None stays None."""
    array = array if array is None else np.asarray(backend.of(array).to_numpy(array))
    return array if array is None or not shapes.is_float(array) else array.astype(dtype)


def distance(a, b):
    """max |a - b|; equal infinities are not apart."""
    with np.errstate(invalid="ignore"):
        return np.where(a == b, 0, np.abs(a - b)).max(initial=0)


def judge(slack, triton, exact, plain, together=False):
    """An Error for each name in dictionaries of arrays: Triton's, the truth, and NumPy's in float32.

    Errors are relative to the largest entry of the truth of the same name. Together: of all names, and NumPy's largest
    error counts for all of them, since where rounding hits hardest is luck.
    """
    names = dict.fromkeys([*exact, *triton])
    triton, exact, plain = ([found.get(name, np.zeros(())) for name in names] for found in (triton, exact, plain))
    offs, sizes = list(map(distance, plain, exact)), [np.abs(a).max(initial=0, where=np.isfinite(a)) for a in exact]
    errors = []
    for name, off, own, size in zip(names, map(distance, triton, exact), offs, sizes):
        numpy_off, size = (max(offs), max(sizes)) if together else (own, size)
        allowed, scale = 3 * numpy_off + slack * size, size or 1
        errors.append(Error(not off <= allowed, off / scale, own / scale, allowed / scale, name))
    return errors


def with_witnesses(note):
    """backend.operation, the tape's one door to the operations, such that NumPy repeats what Triton does.

    note(name, *results) gets what X_forward or X_backward returns: Triton's, in float64, in float32. What a forward
    pass saves for its backward pass is opaque to the tape: so what the witnesses saved can travel along.
    """
    real, types = backend.operation, (np.float64, np.float32)

    def operation(kernels, name):
        witness = getattr(ops, name)

        def forward(*arrays, **options):
            out, saved = real(kernels, name)(*arrays, **options)
            own = [options | ({"dtype": in_numpy(out, t).dtype} if "dtype" in options else {}) for t in types]
            outs, notes = zip(*(witness(*(in_numpy(a, t) for a in arrays), **o) for t, o in zip(types, own)))
            note(name, *(o if isinstance(o, tuple) else (o,) for o in (out, *outs)))
            return out, (saved, notes)

        def backward(*douts, saved):
            saved, notes = saved
            grads = real(kernels, name)(*douts, saved=saved)
            note(name, grads, *(witness(*(in_numpy(d, t) for d in douts), saved=n) for t, n in zip(types, notes)))
            return grads
        return forward if name.endswith("_forward") else backward
    return operation


def compare_operations(args):
    """Print the largest error of each result of each operation over all its uses; returns {result: Error}."""
    model, table, uses = make_model(args).to("triton", args.dtype), {}, Counter()

    def note(name, *results):
        print(f"\r{name:34}", end="", file=sys.stderr, flush=True)
        op, _, way = name.rpartition("_")
        inputs = inspect.signature(getattr(ops, op + "_forward")).parameters.values()
        names = ["out"] if way == "forward" else ["d" + p.name for p in inputs if p.kind is not p.KEYWORD_ONLY]
        names += [f"{names[-1]}[{i}]" for i in range(1, len(results[0]))]       # concatenate takes any number
        found = [{f"{op} {n}": in_numpy(a) for n, a in zip(names, part) if a is not None} for part in results]
        for e in judge(SLACK[args.dtype][2], *found):
            table[e.name] = max(e, table.get(e.name, e))
            uses[e.name] += 1

    with mock.patch.object(backend, "operation", with_witnesses(note)):
        model.loss(*batch(model, args, 0)).backward()
    first_used = list(dict.fromkeys(name.split()[0] for name in table))
    table = {name: table[name] for name in sorted(table, key=lambda name: first_used.index(name.split()[0]))}
    print(f"\r{'result':34}{'uses':>4}{'Triton':>10}{'NumPy':>10}")
    for name, e in table.items():
        print(f"{name:34}{uses[name]:4}{e.triton:10.1e}{e.numpy:10.1e}"
              + (f"   <- rounding explains no more than {e.allowed:.1e}" if e.wrong else ""))
    return table


def trainer(args, where, dtype):
    """A function of the step's number that trains on one path: -> {"loss": array}, {parameter: its gradient}"""
    model = make_model(args).to(where, dtype)
    # The usual eps, 1e-8, makes a full step even of a gradient that is mere rounding: the runs would part by luck.
    optimizer = optim.AdamW(model.parameters(), 1e-3, eps=1e-4)
    step = train.training_step(model, optimizer, train.TrainConfig(clip=1.0))

    def run(i):
        tinyllm.random.next_step(i)                 # the same dropout on every path
        (loss,), _ = step([batch(model, args, i)], 1e-3)
        found = {name: in_numpy(p.grad) for name, p in model.named_parameters() if p.grad is not None}
        return {"loss": in_numpy(loss)}, dict(reversed(found.items()))
    return run


def compare_training(args):
    """Train on all paths side by side and print a line per step; returns the Errors of each: the loss, then gradients.

    These come in the order of the backward pass, last layer first: the first to disagree is the nearest to the cause.
    """
    paths, history = (("triton", args.dtype), ("numpy", np.float64), ("numpy", np.float32)), []
    steps = [trainer(args, *path) for path in paths]
    print(f"{'step':>4}{'loss':>9}{'Triton':>10}{'NumPy':>10}{'gradients':>12}{'NumPy':>10}   Triton's worst")
    for i in range(args.steps):
        losses, grads = zip(*(step(i) for step in steps))
        loss, *rest = judge(SLACK[args.dtype][0], *losses) + judge(SLACK[args.dtype][1], *grads, together=True)
        print(f"{i:4d}{losses[1]['loss']:9.4f}{loss.triton:10.1e}{loss.numpy:10.1e}{max(rest).triton:12.1e}"
              f"{max(e.numpy for e in rest):10.1e}   {max(rest).name}", flush=True)
        history.append([loss, *rest])
    return history


def picture(table, history, dtype, path):
    """Left: each result of each operation. Right: the loss and the worst gradient of each training step."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(13, 2.5 + 0.19 * len(table)), layout="constrained")
    left, right = figure.subplots(1, 2)
    for side, label, marker, look in (("allowed", "allowed", "|", {"color": "gray"}),
                                      ("numpy", "NumPy float32", "s", {"color": "tab:orange", "fillstyle": "none"}),
                                      ("triton", f"Triton {dtype}", ".", {"color": "tab:blue"})):
        at = lambda e, side=side: max(getattr(e, side), 1e-9)       # 0 has no logarithm
        left.plot([*map(at, table.values())], range(len(table)), marker, **look)
        right.plot([max(map(at, rest)) for _, *rest in history], marker + "-", label=f"{label}: gradients", **look)
        right.plot([at(loss) for loss, *_ in history], marker + ":", label=f"{label}: loss", **look)
    error = "largest error, relative to the truth's largest entry"
    left.set(title="Each operation by itself", xlabel=error + " (left edge: none)", xscale="log",
             yticks=range(len(table)), yticklabels=table, ylim=(len(table) - 0.5, -0.5))
    right.set(title="The whole model while it learns", xlabel="training step", ylabel=error, yscale="log")
    right.xaxis.get_major_locator().set_params(integer=True)
    left.grid(alpha=0.3)
    right.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=110)


def main(argv=None):
    args = arguments(argv)
    device = backend.get("triton").empty((1,), args.dtype).device       # raises at once what the kernels lack
    model, out = make_model(args), Path(args.out)
    where = "in Triton's interpreter, on the CPU" if device.type == "cpu" else f"on the GPU, {device}"
    print(f"The kernels run {where}. {type(model).__name__} with {model.num_parameters():,} parameters.")
    print("Without options it takes about a minute in the interpreter. Expect errors of a few roundings, each up to\n"
          "6e-8 in float32, 4e-3 in bfloat16, 5e-4 in float16, and somewhat more from step to step in training.")
    print("\nOperations: the largest errors over all uses, relative to the largest entry of the float64 truth")
    table = compare_operations(args)
    print("\nTraining: the error of the loss; the largest error of any gradient, relative to the largest entry of all")
    history = compare_training(args)
    out.mkdir(parents=True, exist_ok=True)
    with script.drawing():
        picture(table, history, args.dtype, out / "compare_paths.png")
        print(f"\nThe same as a picture: {out}/compare_paths.png")
    wrong = [name for name, e in table.items() if e.wrong]
    missed = [f"step {i}, {e.name}: off by {e.triton:.1e}, allowed {e.allowed:.1e}"
              for i, errors in enumerate(history) for e in errors if e.wrong]
    print(f"Operations that disagree: {', '.join(wrong) or 'none'}.")
    print(f"First disagreement in training: {missed[0] if missed else 'none'}.")
    print("The paths disagree." if wrong or missed else "The paths agree: rounding explains every difference.")
    return 1 if wrong or missed else 0


if __name__ == "__main__":
    script.run(main)
