"""The linear layer with weights of one byte each: for writing, not for training.

    out_no = scale_o (sum over i of x_ni w_oi) + b_o            (twin: tinyllm/ops/linear_int8.py)

With one row of x, each weight is used once: there is no work for a tensor core, and time is what it takes to read the
weights, 16 of them at a time. linear_int8_kernel gives a program BLOCK_O rows of the weights; it walks along them and
sums up only at the end. Several rows of x, as in a prompt, share what is read: linear_int8_tiles_kernel is the tiled
product of matmul.py, with a second factor that is widened on its way from memory. No integer up to 127 loses anything
in 16 bits.

    x_ptr             (N, I) row-major
    weight_ptr        (O, I) row-major int8
    scale_ptr         (O,) float32
    bias_ptr          (O,) or None
    out_ptr           (N, O) row-major
    grids             (ceil(O / BLOCK_O), N), and for tiles (ceil(N / BLOCK_M) ceil(O / BLOCK_N),)
"""

import triton
import triton.language as tl

from . import configs, runtime
from .matmul import tile_of

FEW = 4             # rows of x, up to which the weights are read again for each, from the L2 cache (not measured)


@triton.jit
def linear_int8_kernel(x_ptr, weight_ptr, scale_ptr, bias_ptr, out_ptr, n_out, n_in, BLOCK_O: tl.constexpr,
                       BLOCK_I: tl.constexpr):
    row = tl.program_id(1).to(tl.int64)
    outs = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    weight_rows = weight_ptr + (outs % n_out).to(tl.int64)[:, None] * n_in      # what hangs over starts again
    total = tl.zeros((BLOCK_O, BLOCK_I), dtype=tl.float32)
    for first in range(0, n_in, BLOCK_I):
        ins = first + tl.arange(0, BLOCK_I)
        x = tl.load(x_ptr + row * n_in + ins, mask=ins < n_in, other=0.0).to(tl.float32)
        weight = tl.load(weight_rows + ins[None, :], mask=(ins < n_in)[None, :], other=0)
        total += weight.to(tl.float32) * x[None, :]
    out = tl.sum(total, axis=1) * tl.load(scale_ptr + outs, mask=outs < n_out, other=0.0)
    if bias_ptr is not None:
        out += tl.load(bias_ptr + outs, mask=outs < n_out, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * n_out + outs, out, mask=outs < n_out)


@triton.jit
def linear_int8_tiles_kernel(x_ptr, weight_ptr, scale_ptr, bias_ptr, out_ptr, n_rows, n_out, n_in,
                             BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
                             GROUP_M: tl.constexpr):
    tile_row, tile_column = tile_of(tl.program_id(0), n_rows, n_out, BLOCK_M, BLOCK_N, GROUP_M)
    rows = tile_row * BLOCK_M + tl.arange(0, BLOCK_M)
    outs = tile_column * BLOCK_N + tl.arange(0, BLOCK_N)
    x_rows = x_ptr + (rows % n_rows).to(tl.int64)[:, None] * n_in
    weight_rows = weight_ptr + (outs % n_out).to(tl.int64)[None, :] * n_in
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for first in range(0, n_in, BLOCK_K):
        ins = first + tl.arange(0, BLOCK_K)
        x = tl.load(x_rows + ins[None, :], mask=(ins < n_in)[None, :], other=0.0)
        weight = tl.load(weight_rows + ins[:, None], mask=(ins < n_in)[:, None], other=0)
        total = tl.dot(x, weight.to(x.dtype), total, input_precision="ieee")
    total *= tl.load(scale_ptr + outs, mask=outs < n_out, other=0.0)[None, :]
    if bias_ptr is not None:
        total += tl.load(bias_ptr + outs, mask=outs < n_out, other=0.0).to(tl.float32)[None, :]
    offsets = rows.to(tl.int64)[:, None] * n_out + outs[None, :]
    tl.store(out_ptr + offsets, total, mask=(rows < n_rows)[:, None] & (outs < n_out)[None, :])


def linear_int8(x, weight, scale, bias=None):
    """out = (x w^T) scale + b: x (..., I), weight (O, I) int8, scale (O,) float32, bias (O,) or None -> (..., O)."""
    out, rows, n_out = runtime.empty((*x.shape[:-1], len(weight)), x.dtype), runtime.as_rows(x), len(weight)
    arrays = rows, *map(runtime.contiguous, (weight, scale, bias)), out
    if not out.numel():
        return out
    if len(rows) <= FEW:
        config = configs.lookup("linear_int8", x.dtype)
        grid = (triton.cdiv(n_out, config["BLOCK_O"]), len(rows))
        linear_int8_kernel[grid](*arrays, n_out, x.shape[-1], **config)
    else:
        config = configs.lookup("linear_int8_tiles", x.dtype, len(rows))
        grid = (triton.cdiv(len(rows), config["BLOCK_M"]) * triton.cdiv(n_out, config["BLOCK_N"]),)
        linear_int8_tiles_kernel[grid](*arrays, len(rows), n_out, x.shape[-1], **config)
    return out
