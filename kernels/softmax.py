"""Softmax and its logarithm, over the last axis.

    out_i = e^(x_i - m) / l,  m = max_j x_j,  l = sum_j e^(x_j - m)          (twin: tinyllm/ops/softmax.py)
    dx = out (dout - sum(dout out));    log_softmax: dx = dout - softmax(x) sum(dout)

naive_softmax_kernel holds a whole row in registers. softmax_kernel reads rows of any length in pieces, and finds m and
l in one reading by the *online softmax*: when a piece brings a larger maximum, what has been summed so far is scaled
down by e^(m_old - m_new) (Milakov & Gimelshein 2018, arXiv:1805.02867). loss.py and attention.py are built on it.

The backward pass needs a row's sum before its first result. Of rows that fit a tile, both arrays wait in registers;
longer ones are read twice (long_softmax_backward_kernel).

    x_ptr, out_ptr, dout_ptr, dx_ptr    (rows, C)
    grid                                (ceil(rows / BLOCK_ROWS),)
    LOGARITHM                           log_softmax instead of softmax
"""

import triton
import triton.language as tl

from . import runtime
from .map import TILE, power_of_2, row_blocks

# Stands in for minus infinity in a running maximum: -inf - -inf would be NaN.
LOWEST = tl.constexpr(-1e30)


@triton.jit
def naive_softmax_kernel(x_ptr, out_ptr, n_columns, BLOCK_COLUMNS: tl.constexpr):
    """One program a row; BLOCK_COLUMNS >= C"""
    columns = tl.arange(0, BLOCK_COLUMNS)
    offsets = tl.program_id(0).to(tl.int64) * n_columns + columns
    x = tl.load(x_ptr + offsets, mask=columns < n_columns, other=float("-inf")).to(tl.float32)
    e = tl.exp(x - tl.max(x))
    tl.store(out_ptr + offsets, e / tl.sum(e), mask=columns < n_columns)


@triton.jit
def softmax_kernel(x_ptr, out_ptr, n_rows, n_columns, LOGARITHM: tl.constexpr,
                   BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr):
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    start = rows[:, None].to(tl.int64) * n_columns
    m = tl.zeros((BLOCK_ROWS,), dtype=tl.float32) + LOWEST
    l = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    for first in range(0, n_columns, BLOCK_COLUMNS):
        columns = first + tl.arange(0, BLOCK_COLUMNS)
        no_overhang = (rows < n_rows)[:, None] & (columns < n_columns)[None, :]
        x = tl.load(x_ptr + start + columns[None, :], mask=no_overhang, other=float("-inf")).to(tl.float32)
        m_new = tl.maximum(m, tl.max(x, axis=1))
        l = l * tl.exp(m - m_new) + tl.sum(tl.exp(x - m_new[:, None]), axis=1)
        m = m_new
    l = tl.where(l == 0.0, 1.0, l)      # a row of -inf alone: softmax 0, log_softmax -inf
    for first in range(0, n_columns, BLOCK_COLUMNS):
        columns = first + tl.arange(0, BLOCK_COLUMNS)
        no_overhang = (rows < n_rows)[:, None] & (columns < n_columns)[None, :]
        x = tl.load(x_ptr + start + columns[None, :], mask=no_overhang, other=float("-inf")).to(tl.float32)
        if LOGARITHM:
            out = x - m[:, None] - tl.log(l)[:, None]
        else:
            out = tl.exp(x - m[:, None]) / l[:, None]
        tl.store(out_ptr + start + columns[None, :], out, mask=no_overhang)


@triton.jit
def gradient_of_scores(dout, out, total, LOGARITHM: tl.constexpr):
    """dx from a block of dout and out, and the rows' sums of dout out (LOGARITHM: of dout)."""
    return dout - tl.exp(out) * total[:, None] if LOGARITHM else out * (dout - total[:, None])


@triton.jit
def softmax_backward_kernel(dout_ptr, out_ptr, dx_ptr, n_rows, n_columns, LOGARITHM: tl.constexpr,
                            BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr):
    """One program for some rows; BLOCK_COLUMNS >= C, so that each number is read once"""
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = tl.arange(0, BLOCK_COLUMNS)
    offsets = rows[:, None].to(tl.int64) * n_columns + columns[None, :]
    no_overhang = (rows < n_rows)[:, None] & (columns < n_columns)[None, :]
    dout = tl.load(dout_ptr + offsets, mask=no_overhang, other=0.0).to(tl.float32)
    out = tl.load(out_ptr + offsets, mask=no_overhang, other=0.0).to(tl.float32)
    total = tl.sum(dout if LOGARITHM else dout * out, axis=1)
    tl.store(dx_ptr + offsets, gradient_of_scores(dout, out, total, LOGARITHM), mask=no_overhang)


@triton.jit
def long_softmax_backward_kernel(dout_ptr, out_ptr, dx_ptr, n_rows, n_columns, LOGARITHM: tl.constexpr,
                                 BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr):
    """The same for rows of any length, in pieces: once for the sum, once more for the gradient"""
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    start = rows[:, None].to(tl.int64) * n_columns
    total = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    for first in range(0, n_columns, BLOCK_COLUMNS):
        columns = first + tl.arange(0, BLOCK_COLUMNS)
        no_overhang = (rows < n_rows)[:, None] & (columns < n_columns)[None, :]
        dout = tl.load(dout_ptr + start + columns[None, :], mask=no_overhang, other=0.0).to(tl.float32)
        if not LOGARITHM:
            dout *= tl.load(out_ptr + start + columns[None, :], mask=no_overhang, other=0.0).to(tl.float32)
        total += tl.sum(dout, axis=1)
    for first in range(0, n_columns, BLOCK_COLUMNS):
        columns = first + tl.arange(0, BLOCK_COLUMNS)
        no_overhang = (rows < n_rows)[:, None] & (columns < n_columns)[None, :]
        dout = tl.load(dout_ptr + start + columns[None, :], mask=no_overhang, other=0.0).to(tl.float32)
        out = tl.load(out_ptr + start + columns[None, :], mask=no_overhang, other=0.0).to(tl.float32)
        tl.store(dx_ptr + start + columns[None, :], gradient_of_scores(dout, out, total, LOGARITHM), mask=no_overhang)


def softmax_forward(x):
    """out = softmax(x) over the last axis: (..., C) -> (..., C); a row of -inf only gives zeros, never NaN."""
    out = _forward(x, False)
    return out, (out,)


def softmax_backward(dout, saved):
    """dx = out (dout - sum(dout out))"""
    return (_backward(dout, *saved, False),)


def log_softmax_forward(x):
    """out = x - log(sum_j e^(x_j)) over the last axis; a row of -inf only stays -inf."""
    out = _forward(x, True)
    return out, (out,)


def log_softmax_backward(dout, saved):
    """dx = dout - softmax(x) sum(dout)"""
    return (_backward(dout, *saved, True),)


def _forward(x, logarithm):
    x, out = runtime.contiguous(x), runtime.empty(x.shape, x.dtype)
    if x.numel():
        n_rows, n_columns = runtime.as_rows(x).shape
        grid, blocks = row_blocks(n_rows, n_columns)
        softmax_kernel[grid](x, out, n_rows, n_columns, LOGARITHM=logarithm, **blocks)
    return out


def _backward(dout, out, logarithm):
    dout, dx = runtime.contiguous(dout), runtime.empty(out.shape, out.dtype)
    if out.numel():
        n_rows, n_columns = runtime.as_rows(out).shape
        whole = power_of_2(n_columns)
        if whole <= TILE:
            rows = TILE // whole
            softmax_backward_kernel[(triton.cdiv(n_rows, rows),)](dout, out, dx, n_rows, n_columns,
                                                                  LOGARITHM=logarithm, BLOCK_ROWS=rows,
                                                                  BLOCK_COLUMNS=whole)
        else:
            grid, blocks = row_blocks(n_rows, n_columns)
            long_softmax_backward_kernel[grid](dout, out, dx, n_rows, n_columns, LOGARITHM=logarithm, **blocks)
    return dx
