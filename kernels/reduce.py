"""Reductions, and the reverse of broadcasting.

    out[i, k] = factor * sum over j of x[i, j, k], or the maximum          (twin: tinyllm/ops/reduce.py)

Any reduction over neighbouring axes of a row-major array has this form: `outer` counts what lies before those axes,
`inner` what lies after. With outer = 1 it is the column sum by which a bias gets its gradient.

    reduce_columns_kernel      x_ptr (outer, n_reduced, n_inner), out_ptr (outer, n_inner)
               grid (outer, ceil(n_inner / BLOCK_INNER)): each program reduces some columns from top to bottom
    reduce_rows_kernel         the same with inner = 1: x_ptr (outer, n_reduced), out_ptr (outer,)
               grid (ceil(outer / BLOCK_OUTER),): each program reduces some rows; neighbouring threads read neighbours
               in both, which is what memory likes
    MAXIMUM    the maximum instead of the sum

The order of the additions never changes, so the result is the same each time. A long and narrow array would keep few
programs busy for a long time. It is cut across: many programs reduce a part each, and a second launch their results.
"""

import math

import torch
import triton
import triton.language as tl

from . import runtime
from .elementwise import mul
from .map import map_, power_of_2, row_blocks

TILE, COLUMNS = 2048, 512       # numbers a program works on at once, and how many of them may be side by side
LONG, PROGRAMS = 256, 512       # a column is cut if it is longer, until there are so many programs


@triton.jit(do_not_specialize=["n_reduced"])
def reduce_columns_kernel(x_ptr, out_ptr, n_reduced, n_inner, factor, MAXIMUM: tl.constexpr,
                          BLOCK_REDUCED: tl.constexpr, BLOCK_INNER: tl.constexpr):
    outer = tl.program_id(0).to(tl.int64)
    inner = tl.program_id(1) * BLOCK_INNER + tl.arange(0, BLOCK_INNER)
    x_ptr += outer * n_reduced * n_inner
    no_overhang_inner = inner < n_inner
    neutral = float("-inf") if MAXIMUM else 0.0
    total = tl.zeros((BLOCK_REDUCED, BLOCK_INNER), dtype=tl.float32) + neutral
    for first in range(0, n_reduced, BLOCK_REDUCED):
        reduced = first + tl.arange(0, BLOCK_REDUCED)
        no_overhang = (reduced < n_reduced)[:, None] & no_overhang_inner[None, :]
        offsets = reduced[:, None].to(tl.int64) * n_inner + inner[None, :]
        x = tl.load(x_ptr + offsets, mask=no_overhang, other=neutral).to(tl.float32)
        total = tl.maximum(total, x) if MAXIMUM else total + x
    result = tl.max(total, axis=0) if MAXIMUM else tl.sum(total, axis=0) * factor
    tl.store(out_ptr + outer * n_inner + inner, result, mask=no_overhang_inner)


@triton.jit
def reduce_rows_kernel(x_ptr, out_ptr, n_outer, n_reduced, factor, MAXIMUM: tl.constexpr, BLOCK_OUTER: tl.constexpr,
                       BLOCK_REDUCED: tl.constexpr):
    outer = (tl.program_id(0) * BLOCK_OUTER + tl.arange(0, BLOCK_OUTER)).to(tl.int64)
    neutral = float("-inf") if MAXIMUM else 0.0
    total = tl.zeros((BLOCK_OUTER, BLOCK_REDUCED), dtype=tl.float32) + neutral
    for first in range(0, n_reduced, BLOCK_REDUCED):
        reduced = first + tl.arange(0, BLOCK_REDUCED)
        no_overhang = (outer < n_outer)[:, None] & (reduced < n_reduced)[None, :]
        x = tl.load(x_ptr + outer[:, None] * n_reduced + reduced[None, :], mask=no_overhang, other=neutral)
        total = tl.maximum(total, x.to(tl.float32)) if MAXIMUM else total + x.to(tl.float32)
    result = tl.max(total, axis=1) if MAXIMUM else tl.sum(total, axis=1) * factor
    tl.store(out_ptr + outer, result, mask=outer < n_outer)


def sum_forward(x, *, axis=None, keepdims=False):
    """out = sum of x over `axis` (an integer, a tuple, or None for all)."""
    return _reduced(x, axis, keepdims), (x.shape, axis, keepdims)


def sum_backward(dout, saved):
    """Every summand has derivative 1: dx = dout, repeated (a view, whose strides along those axes are 0)."""
    return (_spread(dout, *saved),)


def mean_forward(x, *, axis=None, keepdims=False):
    """out = mean of x over `axis`"""
    n = math.prod(x.shape[a] for a in _axes(axis, x.ndim))
    return _reduced(x, axis, keepdims, 1 / n if n else math.nan), (x.shape, axis, keepdims, n)


def mean_backward(dout, saved):
    """dx = dout / n, repeated, for a mean over n elements."""
    *how, n = saved
    return (_spread(map_(mul, dout, _constant(1 / max(1, n), dout)), *how),)


@triton.jit
def equal(a, b):
    return tl.where(a == b, 1.0, 0.0)


@triton.jit
def share_of_winner(dout, x, top, winners):
    return tl.where(x == top, dout / winners, 0.0)


def max_forward(x, *, axis=None, keepdims=False):
    """out = maximum of x over `axis`"""
    out = _reduced(x, axis, keepdims, maximum=True)
    return out, (x, out, axis, keepdims)


def max_backward(dout, saved):
    """The largest element gets the gradient; equal ones share it evenly."""
    x, out, axis, keepdims = saved
    top, dout = (_spread(a, x.shape, axis, keepdims) for a in (out, dout))
    winners = _reduced(map_(equal, x, top, dtype=torch.float32), axis, True).expand(x.shape)
    return (map_(share_of_winner, dout, x, top, winners, dtype=x.dtype),)


def unbroadcast(grad, shape):
    """Undo broadcasting: sum `grad` over the axes that were repeated -> an array of shape `shape`.

    If out[i, j] = a[j] for every i, then a[j] moves a whole column of out, and its gradient is the column's sum.
    """
    extra = grad.ndim - len(shape)
    stretched = tuple(i for i, n in enumerate((1,) * extra + tuple(shape)) if n == 1 and grad.shape[i] != 1)
    return runtime.contiguous(_reduced(grad, stretched, True)).view(shape)


def sum_rows(x):
    """Column sums of a row-major array, in float32: (rows, ...) -> (...)."""
    return _reduced(x, 0, False, dtype=torch.float32)


def _reduced(x, axis, keepdims, factor=1.0, maximum=False, dtype=None):
    """Reduce over axes: one launch for each run of neighbouring ones; in float32 but for the last result."""
    axes, x, out = _axes(axis, x.ndim), runtime.contiguous(x), x
    runs = []
    for a in axes:
        if runs and runs[-1][1] == a:
            runs[-1][1] = a + 1
        else:
            runs.append([a, a + 1])
    for i, (start, end) in enumerate(runs):
        last = i == len(runs) - 1
        out = _reduce_run(x, start, end, factor if last else 1.0, maximum, (dtype or out.dtype) if last else None)
        x = out
    if not keepdims:
        out = out.view([n for a, n in enumerate(out.shape) if a not in axes])
    return out


def _reduce_run(x, start, end, factor, maximum, dtype):
    """Reduce a row-major array over its axes start, ..., end - 1 and keep them with size 1."""
    outer, n, inner = (math.prod(sizes) for sizes in (x.shape[:start], x.shape[start:end], x.shape[end:]))
    shape = (*x.shape[:start], *(1,) * (end - start), *x.shape[end:])
    block_inner, parts = min(COLUMNS, power_of_2(inner)), 1     # from `inner` alone: no new kernel for a new batch size
    while n % (2 * parts) == 0 and n // parts > LONG and outer * parts * triton.cdiv(inner, block_inner) < PROGRAMS:
        parts *= 2
    if parts > 1:
        x = _reduce_run(x.view(outer * parts, n // parts, inner), 1, 2, 1.0, maximum, torch.float32)
        return _reduce_run(x.view(outer, parts, inner), 1, 2, factor, maximum, dtype).view(shape)
    out = runtime.empty(shape, dtype or torch.float32)
    if inner == 1 and outer:
        grid, blocks = row_blocks(outer, n)
        reduce_rows_kernel[grid](x, out, outer, n, factor, MAXIMUM=maximum, BLOCK_OUTER=blocks["BLOCK_ROWS"],
                                 BLOCK_REDUCED=blocks["BLOCK_COLUMNS"])
    elif outer and inner:
        reduce_columns_kernel[(outer, triton.cdiv(inner, block_inner))](
            x, out, n, inner, factor, MAXIMUM=maximum, BLOCK_REDUCED=TILE // block_inner, BLOCK_INNER=block_inner)
    return out


def _axes(axis, ndim):
    """The axes to reduce as sorted numbers from 0 on."""
    if axis is None:
        return list(range(ndim))
    return sorted(a % ndim for a in (axis if isinstance(axis, tuple) else (axis,)))


def _spread(grad, shape, axis, keepdims):
    """Put reduced axes back with length 1, then repeat along them."""
    if not keepdims:
        axes = _axes(axis, len(shape))
        grad = grad.reshape([1 if a in axes else n for a, n in enumerate(shape)])
    return grad.expand(shape)


def _constant(value, like):
    """A number as a 0-d array on the device."""
    return runtime.empty((), torch.float32).fill_(value)
