"""A linear layer with all that stands around it in a Transformer's block: for writing, not for training.

    out = residual + activation(scale (norm(x) w^T) + b)            (twin: tinyllm/ops/fused_linear.py)

With one row of x, each weight is used once: there is no work for a tensor core, and time is what it takes to read the
weights. fused_linear_rows_kernel gives a program some rows of the weights, as many as its registers hold, and asks for
all of them at once, 16 bytes a thread, before it does anything else. While they are on their way it normalises x, which
every program does again for itself: that is a thousand numbers, and a launch of its own would take longer. A few rows
of x come one after another, for the weights that are there already.

With more of them, as in a batch or a prompt, tensor cores pay, and what comes before is a launch of its own (norm.py):
every program would have to do it for all the rows. fused_linear_tiles_kernel is the tiled product of matmul.py, with
small tiles; and as a small matrix has not enough of those for a whole GPU, the sum over i is cut into parts, which the
last program of each tile adds up (last.py). Each program waits for memory a few times instead of a few dozen.

Weights may have 8 bits and a scale for each row (linear_int8.py). They are widened on their way from memory; no integer
up to 127 loses anything in 16 bits.

    x_ptr                          (N, I) row-major
    weight_ptr                     (O, I) row-major
    scale_ptr, bias_ptr            (O,) or None
    norm_weight_ptr, norm_bias_ptr (I,); the second, or both, may be None
    residual_ptr, out_ptr          (N, O) row-major; the first may be None
    partial_ptr, counter_ptr       (tiles, PARTS, BLOCK_M, BLOCK_N) float32: the parts of each tile; (tiles,) zeros;
                                   both None if there is one part
    NORM                           "none", "layer_norm" or "rms_norm"
    grids                          (ceil(O / BLOCK_O),), and for tiles (ceil(N / BLOCK_M) ceil(O / BLOCK_N), PARTS)
"""

import triton
import triton.language as tl

from . import configs, runtime
from .activation import gelu_tanh
from .last import comes_last, counters
from .matmul import tile_of
from .norm import layer_norm_forward, rms_norm_forward

FEW = 4             # rows of x, up to which the first kernel takes them
BATCH = 64          # rows of x, up to which linear.py comes here if no gradient is wanted ...
WIDE = 8192         # ... and outputs: many more give product.py's large tiles enough to do
STEPS = 2           # blocks along i, at least, in a part of the sum


@triton.jit
def statistics(x_ptr, n_in, eps, NORM: tl.constexpr, BLOCK_I: tl.constexpr):
    """What norm(x) subtracts from a row of x, and what it multiplies with.

    As in norm.py, in two passes: what is squared is small, also where the mean is large. For "rms_norm" the mean is 0,
    for "none" nothing changes.
    """
    ins = tl.arange(0, BLOCK_I)
    mean, rstd = 0.0, 1.0
    if NORM == "layer_norm":
        total = tl.zeros((BLOCK_I,), dtype=tl.float32)
        for first in range(0, n_in, BLOCK_I):
            total += tl.load(x_ptr + first + ins, mask=first + ins < n_in, other=0.0).to(tl.float32)
        mean = tl.sum(total) / n_in
    if NORM != "none":
        squares = tl.zeros((BLOCK_I,), dtype=tl.float32)
        for first in range(0, n_in, BLOCK_I):
            x = tl.load(x_ptr + first + ins, mask=first + ins < n_in, other=0.0).to(tl.float32)
            centered = tl.where(first + ins < n_in, x - mean, 0.0)
            squares += centered * centered
        rstd = 1.0 / tl.sqrt(tl.sum(squares) / n_in + eps)
    return mean, rstd


@triton.jit
def vector(ptr, places, n, otherwise):
    """Some numbers of a vector of n, in float32; where there is no vector, `otherwise`."""
    if ptr is None:
        numbers = tl.zeros(places.shape, dtype=tl.float32) + otherwise
    else:
        numbers = tl.load(ptr + places, mask=places < n, other=0.0).to(tl.float32)
    return numbers


@triton.jit
def finish(total, scale, bias, residual_ptr, out_ptr, places, no_overhang, GELU: tl.constexpr):
    """What follows the product: total (M, N), to be stored at `places` (M, N)."""
    out = total * scale + bias
    if GELU:
        out = gelu_tanh(out)
    if residual_ptr is not None:
        out += tl.load(residual_ptr + places, mask=no_overhang, other=0.0).to(tl.float32)
    tl.store(out_ptr + places, out, mask=no_overhang)


@triton.jit
def fused_linear_rows_kernel(x_ptr, weight_ptr, scale_ptr, bias_ptr, norm_weight_ptr, norm_bias_ptr, residual_ptr,
                             out_ptr, n_rows, n_out, n_in, eps, NORM: tl.constexpr, GELU: tl.constexpr,
                             BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr):
    outs = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)[:, None]
    ins = tl.arange(0, BLOCK_I)[None, :]
    # What can be asked for at once comes first: each look into memory takes half a microsecond.
    weight_rows = weight_ptr + (outs % n_out).to(tl.int64) * n_in           # what hangs over starts again
    weight = tl.load(weight_rows + ins, mask=ins < n_in, other=0)           # (BLOCK_O, BLOCK_I): the first, or all
    scale, bias = vector(scale_ptr, outs, n_out, 1.0), vector(bias_ptr, outs, n_out, 0.0)           # (BLOCK_O, 1)
    gain, shift = vector(norm_weight_ptr, ins, n_in, 1.0), vector(norm_bias_ptr, ins, n_in, 0.0)    # (1, BLOCK_I)
    for row in range(0, n_rows):
        x_row = x_ptr + row * n_in
        mean, rstd = statistics(x_row, n_in, eps, NORM, BLOCK_I)
        x = tl.load(x_row + ins, mask=ins < n_in, other=0.0).to(tl.float32)
        total = weight.to(tl.float32) * ((x - mean) * rstd * gain + shift)
        for first in range(BLOCK_I, n_in, BLOCK_I):
            more = first + ins
            x = tl.load(x_row + more, mask=more < n_in, other=0.0).to(tl.float32)
            x = (x - mean) * rstd * vector(norm_weight_ptr, more, n_in, 1.0) + vector(norm_bias_ptr, more, n_in, 0.0)
            total += tl.load(weight_rows + more, mask=more < n_in, other=0).to(tl.float32) * x
        finish(tl.sum(total, axis=1, keep_dims=True), scale, bias, residual_ptr, out_ptr, row * n_out + outs,
               outs < n_out, GELU)


@triton.jit
def fused_linear_tiles_kernel(x_ptr, weight_ptr, scale_ptr, bias_ptr, residual_ptr, out_ptr, partial_ptr, counter_ptr,
                              n_rows, n_out, n_in, GELU: tl.constexpr, PARTS: tl.constexpr, BLOCK_M: tl.constexpr,
                              BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr):
    tile, part = tl.program_id(0), tl.program_id(1)
    tile_row, tile_column = tile_of(tile, n_rows, n_out, BLOCK_M, BLOCK_N, GROUP_M)
    tile_rows, tile_outs = tl.arange(0, BLOCK_M)[:, None], tl.arange(0, BLOCK_N)[None, :]
    rows, outs = tile_row * BLOCK_M + tile_rows, tile_column * BLOCK_N + tile_outs
    x_rows = x_ptr + (rows % n_rows).to(tl.int64) * n_in
    weight_rows = weight_ptr + (outs % n_out).to(tl.int64) * n_in
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    stretch = tl.cdiv(tl.cdiv(n_in, BLOCK_K), PARTS) * BLOCK_K
    for first in range(part * stretch, tl.minimum((part + 1) * stretch, n_in), BLOCK_K):
        ins = first + tl.arange(0, BLOCK_K)
        x = tl.load(x_rows + ins[None, :], mask=(ins < n_in)[None, :], other=0.0)
        weight = tl.load(weight_rows + ins[:, None], mask=(ins < n_in)[:, None], other=0)
        total = tl.dot(x, weight.to(x.dtype), total, input_precision="ieee")
    finishes = True
    if PARTS > 1:
        parts = partial_ptr + tile * (PARTS * BLOCK_M * BLOCK_N) + tile_rows * BLOCK_N + tile_outs
        tl.store(parts + part * (BLOCK_M * BLOCK_N), total)
        finishes = comes_last(counter_ptr + tile, PARTS)
    if finishes:
        if PARTS > 1:
            total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
            for i in tl.static_range(PARTS):
                total += tl.load(parts + i * (BLOCK_M * BLOCK_N))
        finish(total, vector(scale_ptr, outs, n_out, 1.0), vector(bias_ptr, outs, n_out, 0.0), residual_ptr, out_ptr,
               rows.to(tl.int64) * n_out + outs, (rows < n_rows) & (outs < n_out), GELU)


def fused_linear(x, weight, scale=None, bias=None, norm_weight=None, norm_bias=None, residual=None, *,
                 norm=None, eps=1e-5, activation=None):
    """out = residual + activation(scale (norm(x) w^T) + b): x (..., I) -> (..., O)

    weight (O, I), floating point, or int8 with scale (O,); bias (O,) or None; residual (..., O) or None; norm: None,
    "layer_norm" or "rms_norm", with norm_weight (I,) and norm_bias (I,) or None; activation: None or "gelu", the tanh
    form.
    """
    rows, (n_out, n_in) = runtime.as_rows(x), weight.shape
    out = runtime.empty((*x.shape[:-1], n_out), x.dtype)
    weight, scale, bias, norm_weight, norm_bias, residual = map(
        runtime.contiguous, (weight, scale, bias, norm_weight, norm_bias, residual))
    sizes, GELU = (len(rows), n_out, n_in), activation == "gelu"
    if not out.numel():
        return out
    if len(rows) <= FEW:
        config = configs.lookup("fused_linear_rows", x.dtype, n_out)
        weights = config.pop("WEIGHTS")         # how many of them a program holds at a time
        block_i = min(weights, triton.next_power_of_2(max(16, n_in)))
        fused_linear_rows_kernel[(triton.cdiv(n_out, weights // block_i),)](
            rows, weight, scale, bias, norm_weight, norm_bias, residual, out, *sizes, eps, NORM=norm or "none",
            GELU=GELU, BLOCK_O=weights // block_i, BLOCK_I=block_i, **config)
        return out
    if norm == "layer_norm":
        rows, _ = layer_norm_forward(rows, norm_weight, norm_bias, eps=eps)
    if norm == "rms_norm":
        rows, _ = rms_norm_forward(rows, norm_weight, eps=eps)
    config = configs.lookup("fused_linear_tiles", x.dtype, len(rows))
    tile, most = (config["BLOCK_M"], config["BLOCK_N"]), config.pop("PARTS")
    tiles, parts = triton.cdiv(len(rows), tile[0]) * triton.cdiv(n_out, tile[1]), 1
    while (2 * parts <= most and 2 * parts * tiles <= 2 * runtime.n_multiprocessors()
           and 2 * parts * STEPS * config["BLOCK_K"] <= n_in):
        parts *= 2
    partial = runtime.empty((tiles, parts, *tile)) if parts > 1 else None
    fused_linear_tiles_kernel[(tiles, parts)](
        rows, weight, scale, bias, residual, out, partial, counters(tiles) if parts > 1 else None, *sizes,
        GELU=GELU, PARTS=parts, **config)
    return out
