"""Dropout: switch elements off at random while training.

    out = x keep / (1 - p),  dx = dout keep / (1 - p)          (twin: tinyllm/ops/dropout.py)

keep is never stored: both passes draw it from the same counters (random.py).

    x_ptr, out_ptr   (rows, columns)
    rng_ptr          (2,) seed and step
    grid             (ceil(rows / BLOCK_ROWS),)
"""

import triton
import triton.language as tl

from . import runtime
from .map import row_blocks
from .random import random_bits


@triton.jit
def survivors(rng_ptr, site, quads, threshold, scale):
    """1 / (1 - p) for the elements that stay, 0 for the others: quads (..., n) -> (..., 4 n)."""
    return tl.where(random_bits(rng_ptr, site, quads).to(tl.int64) >= threshold, scale, 0.0)


@triton.jit
def dropout_kernel(x_ptr, rng_ptr, out_ptr, n_rows, n_columns, site, threshold, scale,
                   BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr):
    rows = (tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)).to(tl.int64)[:, None]
    for first in range(0, n_columns, BLOCK_COLUMNS):
        # rows count as rounded up to a multiple of four, so each begins with a new counter
        quads = rows * tl.cdiv(n_columns, 4) + first // 4 + tl.arange(0, BLOCK_COLUMNS // 4)[None, :]
        columns = first + tl.arange(0, BLOCK_COLUMNS)[None, :]
        no_overhang = (rows < n_rows) & (columns < n_columns)
        x = tl.load(x_ptr + rows * n_columns + columns, mask=no_overhang, other=0.0).to(tl.float32)
        x *= survivors(rng_ptr, site, quads, threshold, scale)
        tl.store(out_ptr + rows * n_columns + columns, x, mask=no_overhang)


def keep_threshold(p):
    """An element stays if its 32 random bits are at least this."""
    return int(min(p * 2**32, 2**32 - 1))


def dropout_forward(x, rng, *, p, site=0):
    """out = x keep / (1 - p): x any shape, rng (2,) int64 on the device, 0 <= p < 1."""
    return _drop(x, rng, p, site), (rng, p, site)


def dropout_backward(dout, saved):
    """dx = dout keep / (1 - p)"""
    return _drop(dout, *saved), None


def _drop(x, rng, p, site):
    x, out = runtime.contiguous(x), runtime.empty(x.shape, x.dtype)
    if x.numel():
        n_rows, n_columns = runtime.as_rows(x if x.ndim else x[None]).shape
        grid, blocks = row_blocks(n_rows, max(4, n_columns))
        dropout_kernel[grid](x, rng, out, n_rows, n_columns, site, keep_threshold(p), 1 / (1 - p), **blocks)
    return out
