"""Reductions, and the reverse of broadcasting.

    out[i, k] = factor * sum over j of x[i, j, k], or the maximum          (twin: tinyllm/ops/reduce.py)

Any reduction over neighbouring axes of a row-major array has this form: `outer` counts what lies before those axes,
`inner` what lies after. With outer = 1 it is the column sum by which a bias gets its gradient.

    reduce_columns_kernel      x_ptr (outer, n_reduced, n_inner), out_ptr (outer, parts, n_inner)
               grid (outer * parts * ceil(n_inner / BLOCK_INNER),): each program reduces a part of some columns, from
               its first row to its last
    reduce_rows_kernel         the same with inner = 1 and one part: x_ptr (outer, n_reduced), out_ptr (outer,)
               grid (ceil(outer / BLOCK_OUTER),): each program reduces some rows; neighbouring threads read neighbours
               in both, which is what memory likes
    MAXIMUM    the maximum instead of the sum
    ADD        out has numbers already, to which the results are added
    second_ptr (n_inner,) or None: with outer = 2, where the second result goes, which is then not behind the first

32,768 rows of 768 columns are six columns of tiles: six programs would take for ever. So the rows are cut into parts,
as many as keep all multiprocessors busy, and a second launch reduces the parts' results. The order of the additions
depends on the sizes and on the card alone, so the result is the same each time.

What limits the first launch is how many bytes are on their way at once: memory answers late, and is only busy if it has
been asked for enough until then. The loop therefore asks for the tiles of the next STAGES - 1 rounds before it adds
this one's.
"""

import math

import torch
import triton
import triton.language as tl

from . import runtime
from .elementwise import mul
from .map import map_, power_of_2, row_blocks

TILE, COLUMNS = 2048, 128       # numbers a program works on at once, and how many of them may be side by side
STAGES = 6                      # tiles at hand: the one in work, the others on their way from memory
PROGRAMS = 2                    # of the first launch, for each multiprocessor
SHORTEST = 8                    # tiles a part has at least: less is not worth a second launch


@triton.jit(do_not_specialize=["n_reduced", "n_part", "parts"])
def reduce_columns_kernel(x_ptr, out_ptr, second_ptr, n_reduced, n_inner, n_part, parts, factor,
                          MAXIMUM: tl.constexpr, ADD: tl.constexpr, STAGES: tl.constexpr,
                          BLOCK_REDUCED: tl.constexpr, BLOCK_INNER: tl.constexpr):
    column_blocks = tl.cdiv(n_inner, BLOCK_INNER)
    inner = tl.program_id(0) % column_blocks * BLOCK_INNER + tl.arange(0, BLOCK_INNER)
    place = tl.program_id(0) // column_blocks                           # of the result: outer * parts + part
    start = (place % parts).to(tl.int64) * n_part                       # a column may be longer than 2^31
    end = tl.minimum(start + n_part, n_reduced)
    x_ptr += (place // parts).to(tl.int64) * n_reduced * n_inner
    no_overhang_inner = inner < n_inner
    neutral = float("-inf") if MAXIMUM else 0.0
    total = tl.zeros((BLOCK_REDUCED, BLOCK_INNER), dtype=tl.float32) + neutral
    for first in tl.range(start, end, BLOCK_REDUCED, num_stages=STAGES):
        reduced = first + tl.arange(0, BLOCK_REDUCED)
        no_overhang = (reduced < end)[:, None] & no_overhang_inner[None, :]
        offsets = reduced[:, None].to(tl.int64) * n_inner + inner[None, :]
        x = tl.load(x_ptr + offsets, mask=no_overhang, other=neutral).to(tl.float32)
        total = tl.maximum(total, x) if MAXIMUM else total + x
    result = tl.max(total, axis=0) if MAXIMUM else tl.sum(total, axis=0) * factor
    out_ptr += place.to(tl.int64) * n_inner
    if second_ptr is not None:
        if place == 1:
            out_ptr = second_ptr
    out_ptrs = out_ptr + inner
    if ADD:
        result += tl.load(out_ptrs, mask=no_overhang_inner, other=0.0)
    tl.store(out_ptrs, result, mask=no_overhang_inner)


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


def sum_rows(x, into=None):
    """Column sums of a row-major array, in float32: (rows, ...) -> (...); added to `into`, if there is one."""
    out = _reduce_run(x, 0, 1, 1.0, False, torch.float32, into)
    return out.view(x.shape[1:]) if into is None else into


def sum_rows_of_two(x, into=(None, None)):
    """Column sums of two arrays in one go: (2, rows, C) -> two of (C,), float32; added to `into`, or fresh."""
    if (into[0] is None) is not (into[1] is None):
        return sum_rows(x[0], into[0]), sum_rows(x[1], into[1])
    _, n, inner = x.shape
    x, n = _cut(x, 2, n, inner, False)
    out = _launch(x, 2, n, inner, n, 1.0, False, torch.float32, *into)
    return tuple(out.view(2, inner)) if into[0] is None else into


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


def _reduce_run(x, start, end, factor, maximum, dtype, into=None):
    """Reduce a row-major array over its axes start, ..., end - 1 and keep them with size 1."""
    outer, n, inner = (math.prod(sizes) for sizes in (x.shape[:start], x.shape[start:end], x.shape[end:]))
    shape = (*x.shape[:start], *(1,) * (end - start), *x.shape[end:])
    x, n = _cut(x, outer, n, inner, maximum)
    return _launch(x, outer, n, inner, n, factor, maximum, dtype or torch.float32, into).view(shape)


def _tile(inner):
    """(rows, columns) of a tile. From `inner` alone: a new batch size must not compile a new kernel."""
    columns = min(COLUMNS, power_of_2(inner))
    return TILE // columns, columns


def _cut(x, outer, n, inner, maximum):
    """x as (outer, n, inner), in parts that are reduced already, and how many these are; or x itself and n."""
    n_part = _rows_of_a_part(outer, n, inner)
    if n_part == n:
        return x, n
    return _launch(x, outer, n, inner, n_part, 1.0, maximum, torch.float32), triton.cdiv(n, n_part)


def _rows_of_a_part(outer, n, inner):
    """Into how long parts n rows are cut: whole tiles, enough of them; or n, if it is not worth while."""
    rows, columns = _tile(inner)
    wanted = PROGRAMS * runtime.n_multiprocessors() // max(1, outer * triton.cdiv(inner, columns))
    parts = min(wanted, n // (SHORTEST * rows))
    return triton.cdiv(n, parts * rows) * rows if parts > 1 else n


def _launch(x, outer, n, inner, n_part, factor, maximum, dtype, into=None, second=None):
    """x as (outer, n, inner) -> (outer, parts, inner), each part being the reduction of n_part rows."""
    parts, (rows, columns) = triton.cdiv(n, n_part) if n else 1, _tile(inner)
    out = runtime.empty((outer, parts, inner), dtype) if into is None else into
    if inner == parts == 1 and outer and into is None:
        grid, blocks = row_blocks(outer, n)
        reduce_rows_kernel[grid](x, out, outer, n, factor, MAXIMUM=maximum, BLOCK_OUTER=blocks["BLOCK_ROWS"],
                                 BLOCK_REDUCED=blocks["BLOCK_COLUMNS"])
    elif outer and inner:
        reduce_columns_kernel[(outer * parts * triton.cdiv(inner, columns),)](
            x, out, second, n, inner, n_part, parts, factor, MAXIMUM=maximum, ADD=into is not None, STAGES=STAGES,
            BLOCK_REDUCED=rows, BLOCK_INNER=columns)
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
