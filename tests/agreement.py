"""The Triton kernels against the engine: every output and gradient of an operation, within what rounding explains.

The truth is the operation composed of primitives, in NumPy and float64, on inputs that the kernels' type holds exactly.
The measure is what a plain computation in that type would do, every primitive's result rounded to it:

    max|error| <= 2 (gradients: 3) x max|error of the plain computation| + 4 eps max(sum of |terms|)

The plain computation may be lucky, so it is done three times, rounding to the nearest once and twice at random. eps is
float32's, whatever is stored, since all sums are float32.

The interpreter forgives much, so the arrays are set traps: each stands between fences, each fresh one is full of NaN
until a kernel fills it, and inputs must not change.
"""

import contextlib
import functools

import numpy as np
import pytest
import torch
from checks import (COMPOSED, DROPOUT, EPS32, FUNCTIONAL, absolute_values, as_tuple, assert_near, changed_primitives,
                    distance, is_float, random_rounding, run, upstream)
from strategies import FUSED

from tinyllm import Tensor, random
from tinyllm.kernels import configs, runtime

UNIT = {"float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}      # the largest relative error of one rounding
FENCE = 64          # numbers on each side of an array; a multiple of 16 bytes, so that alignment stays as it was


def nearest(array, dtype):
    """An array of floats rounded to a type, in its own dtype."""
    if not is_float(array) or dtype == "float32" and array.dtype == np.float32:
        return array
    rounded = torch.from_numpy(np.array(array)).to(getattr(torch, dtype)).double().numpy()
    return rounded.astype(array.dtype)


class Fences:
    """Allocates like runtime.empty, but between fences and full of poison."""

    def __init__(self):
        self.buffers = []

    def empty(self, shape, dtype=torch.float32):
        dtype = runtime.torch_dtype(dtype)
        shape = tuple(shape) if np.iterable(shape) else (shape,)
        integer = 0 if dtype.is_floating_point or dtype == torch.bool else max(-(2**30), torch.iinfo(dtype).min)
        poison = float("nan") if dtype.is_floating_point else integer
        size = int(np.prod(shape, dtype=np.int64))
        buffer = torch.full((size + 2 * FENCE,), poison, dtype=dtype, device=runtime.device())
        buffer[:FENCE] = buffer[FENCE + size:] = 1
        self.buffers.append(buffer)
        return buffer[FENCE:FENCE + size].view(shape)

    def put(self, array, dtype="float32", layout="plain"):
        """An array on the device: floats as `dtype`; layout: "plain", "transposed", "strided" (every other place)."""
        array = torch.from_numpy(np.array(array))
        array = array.to(getattr(torch, dtype)) if array.is_floating_point() else array
        if layout == "transposed" and array.ndim > 1:
            place = self.empty(array.shape[::-1], array.dtype).permute(*range(array.ndim)[::-1])
        elif layout == "strided" and array.ndim:
            place = self.empty((*array.shape, 2), array.dtype)[..., 0]
        else:
            place = self.empty(array.shape, array.dtype)
        return place.copy_(array)

    def check(self):
        for buffer in self.buffers:
            fence = torch.cat([buffer[:FENCE], buffer[len(buffer) - FENCE:]])
            assert (fence == 1).all(), "a kernel wrote beside its array"


@contextlib.contextmanager
def fenced():
    """Inside, all arrays of the kernels are fenced and poisoned; the fences are checked at the end."""
    with pytest.MonkeyPatch.context() as patch:
        fences = Fences()
        patch.setattr(runtime, "empty", fences.empty)
        yield fences
        fences.check()


@contextlib.contextmanager
def small_tiles():
    """Inside, the interpreter's tiles are so small that little arrays have several, and edges."""
    of_keys = {f"attention{part}": dict(BLOCK_Q=16, BLOCK_K=16) for part in ("", "_dq", "_dkdv", "_dbias")}
    of_all = {"matmul": dict(BLOCK_M=32, BLOCK_N=32, BLOCK_K=32, GROUP_M=2), "attention_decode": dict(BLOCK_K=16),
              "fused_linear_rows": dict(WEIGHTS=512),
              "fused_linear_tiles": dict(BLOCK_M=32, BLOCK_N=32, BLOCK_K=32, GROUP_M=2, PARTS=4)}
    rows = [(kernel, "interpreter", "any", configs.ANY, tile) for kernel, tile in (of_keys | of_all).items()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(configs, "TABLE", rows + configs.TABLE)
        yield


def run_kernels(op, case, dtype, layout="plain"):
    """checks.run() on the Triton backend: outputs and gradients as NumPy arrays."""
    arrays, options = case
    random.set_state(DROPOUT)
    with fenced() as fences:
        inputs = [fences.put(a, dtype, layout) if isinstance(a, np.ndarray) else a for a in arrays]
        before = [None if a is None else a.clone() for a in inputs]
        tensors = [Tensor._of(x) if is_float(a) else x for x, a in zip(inputs, arrays)]
        for tensor in tensors:
            if isinstance(tensor, Tensor):
                tensor.requires_grad = True
        outs, loss = as_tuple(FUNCTIONAL[op](*tensors, **options)), 0
        for i, out in enumerate(outs):
            dout = nearest(upstream(i, out.shape), dtype)
            loss += (out * Tensor._of(fences.put(dout, str(out.dtype)[6:], layout))).sum()
        loss.backward()
        for old, new in zip(before, inputs):
            assert old is None or torch.equal(old, new), f"{op} wrote into an input"
        grads = [t.grad for t in tensors if isinstance(t, Tensor)]
        return [out.numpy() for out in outs], [None if g is None else runtime.to_numpy(g) for g in grads]


@contextlib.contextmanager
def everything_rounded(dtype):
    """Inside, each result of a primitive, forward and backward, is rounded to the nearest number of a type."""
    def shorten(x):
        return tuple(map(shorten, x)) if isinstance(x, tuple) else x if x is None else nearest(x, dtype)

    def forward(op, real, *arrays, **options):
        out, saved = real(*arrays, **options)
        return shorten(out), saved

    with changed_primitives(forward, lambda op, real, *douts, saved: shorten(tuple(real(*douts, saved=saved)))):
        yield


def expected(op, case, dtype):
    """(case, truth, allowances): the case with rounded inputs, and what each output and gradient may be off."""
    arrays, options = case
    case = tuple(nearest(a, dtype) for a in arrays), options
    compute = functools.partial(run, (COMPOSED if op in FUSED else FUNCTIONAL)[op], case,
                                upstream=lambda i, shape: nearest(upstream(i, shape), dtype))
    truth, samples = compute(), []
    with everything_rounded(dtype):
        samples.append(compute())
    for seed in range(2):
        with random_rounding(seed, UNIT[dtype]):
            samples.append(compute())
    with absolute_values():
        terms = compute()
    if op in ("sum", "mean"):                       # which cancel already on the way forward
        terms = run(FUNCTIONAL[op], ([np.asarray(np.abs(a)) for a in case[0]], options))[0], terms[1]
    allowances = []
    for kind, factor in ((0, 2), (1, 3)):
        allowances.append([
            factor * max(distance(sample[kind][i], true) for sample in samples)
            + 4 * EPS32 * np.abs(terms[kind][i][np.isfinite(terms[kind][i])]).max(initial=0)
            for i, true in enumerate(truth[kind])])
    return case, truth, allowances


def check_kernels(op, case, dtype="float32", layout="plain"):
    """The rule above, for one case."""
    case, truth, allowances = expected(op, case, dtype)
    found = run_kernels(op, case, dtype, layout)
    for kind, ours, theirs, allowed in zip(("output", "gradient"), found, truth, allowances):
        for i, (a, b, limit) in enumerate(zip(ours, theirs, allowed, strict=True)):
            assert_near(f"{dtype} {kind} {i}", a, b, limit)
