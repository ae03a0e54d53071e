"""Normalisation of rows: LayerNorm, alone and together with the residual addition before it, and RMSNorm.

    xhat = (x - mean(x)) rstd,  rstd = 1 / sqrt(var(x) + eps),  out = xhat weight + bias        over a row's C channels
    dx   = rstd (g - mean(g) - xhat mean(g xhat)),  g = dout weight
    dweight = sum over rows of dout xhat,  dbias = sum over rows of dout
                                                  Ba, Kiros & Hinton 2016, arXiv:1607.06450 (twin: tinyllm/ops/norm.py)
    add_layer_norm:  total = x + branch,  out = layer_norm(total),  dx = dbranch = dtotal + the dx above
    rms_norm:        no mean: rstd = 1 / sqrt(mean(x^2) + eps),  dx = rstd (g - xhat mean(g xhat))
                                                  Zhang & Sennrich 2019, arXiv:1910.07467

A row is read once, into registers; its mean, then its variance around that mean, cost no further reading.

    x_ptr, branch_ptr, total_ptr, out_ptr, dout_ptr, dtotal_ptr, dx_ptr        (rows, C)
    weight_ptr, bias_ptr      (C,)
    mean_ptr, rstd_ptr        (rows,), float32 whatever x is
    partial_ptr               (2, programs, C): each program's own share of dweight and dbias; rms_norm (programs, C)
    grid of forward           (ceil(rows / BLOCK_ROWS),)
    grid of backward          (programs,), a few for each multiprocessor: each walks over many blocks of rows and sums
                              its share in registers; a second launch adds the shares. No atomics, the same result
                              each time. While it computes, the next STAGES - 1 blocks come from memory.

A pointer that may be None is decided when the kernel is compiled; what hangs on it is then not in the kernel at all.
"""

import triton
import triton.language as tl

from . import runtime
from .reduce import sum_rows, sum_rows_of_two

TILE = 4096         # numbers in registers at once: as many rows as fit
TILE_BACKWARD = 2048        # fewer, because there are two or three arrays, and the shares of dweight and dbias besides
PROGRAMS = 4        # of the backward pass, for each multiprocessor; as many as its registers hold at once
STAGES = 3          # blocks of rows at hand: the one in work, the others on their way from memory


@triton.jit
def layer_norm_forward_kernel(x_ptr, branch_ptr, weight_ptr, bias_ptr, total_ptr, out_ptr, mean_ptr, rstd_ptr,
                              n_rows, n_columns, eps, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr):
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = tl.arange(0, BLOCK_COLUMNS)
    no_column_overhang = columns < n_columns
    no_overhang = (rows < n_rows)[:, None] & no_column_overhang[None, :]
    offsets = rows[:, None].to(tl.int64) * n_columns + columns[None, :]

    x = tl.load(x_ptr + offsets, mask=no_overhang, other=0.0).to(tl.float32)
    if branch_ptr is not None:
        x += tl.load(branch_ptr + offsets, mask=no_overhang, other=0.0).to(tl.float32)
        x = x.to(total_ptr.dtype.element_ty).to(tl.float32)  # as it is stored: the backward pass reads it from there
        tl.store(total_ptr + offsets, x, mask=no_overhang)
    mean = tl.sum(x, axis=1) / n_columns
    centered = tl.where(no_overhang, x - mean[:, None], 0.0)  # the overhang must not count in the variance
    variance = tl.sum(centered * centered, axis=1) / n_columns
    rstd = 1.0 / tl.sqrt(variance + eps)

    weight = tl.load(weight_ptr + columns, mask=no_column_overhang, other=0.0).to(tl.float32)
    out = centered * rstd[:, None] * weight[None, :]
    if bias_ptr is not None:
        out += tl.load(bias_ptr + columns, mask=no_column_overhang, other=0.0).to(tl.float32)[None, :]
    tl.store(out_ptr + offsets, out, mask=no_overhang)
    tl.store(mean_ptr + rows, mean, mask=rows < n_rows)
    tl.store(rstd_ptr + rows, rstd, mask=rows < n_rows)


@triton.jit
def layer_norm_backward_kernel(dout_ptr, dtotal_ptr, x_ptr, weight_ptr, mean_ptr, rstd_ptr, dx_ptr, partial_ptr,
                               n_rows, n_columns, STAGES: tl.constexpr, BLOCK_ROWS: tl.constexpr,
                               BLOCK_COLUMNS: tl.constexpr):
    columns = tl.arange(0, BLOCK_COLUMNS)
    no_column_overhang = columns < n_columns
    weight = tl.load(weight_ptr + columns, mask=no_column_overhang, other=0.0).to(tl.float32)
    dweight = tl.zeros((BLOCK_COLUMNS,), dtype=tl.float32)
    dbias = tl.zeros((BLOCK_COLUMNS,), dtype=tl.float32)

    for block in tl.range(tl.program_id(0), tl.cdiv(n_rows, BLOCK_ROWS), tl.num_programs(0), num_stages=STAGES):
        rows = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        no_overhang = (rows < n_rows)[:, None] & no_column_overhang[None, :]
        offsets = rows[:, None].to(tl.int64) * n_columns + columns[None, :]
        x = tl.load(x_ptr + offsets, mask=no_overhang, other=0.0).to(tl.float32)
        dout = tl.load(dout_ptr + offsets, mask=no_overhang, other=0.0).to(tl.float32)
        mean = tl.load(mean_ptr + rows, mask=rows < n_rows, other=0.0)
        rstd = tl.load(rstd_ptr + rows, mask=rows < n_rows, other=0.0)

        xhat = (x - mean[:, None]) * rstd[:, None]
        g = dout * weight[None, :]  # zero in the overhang, as dout is there: the sums below need no mask
        mean_g = tl.sum(g, axis=1) / n_columns
        mean_g_xhat = tl.sum(g * xhat, axis=1) / n_columns
        dx = (g - mean_g[:, None] - xhat * mean_g_xhat[:, None]) * rstd[:, None]
        if dtotal_ptr is not None:
            dx += tl.load(dtotal_ptr + offsets, mask=no_overhang, other=0.0).to(tl.float32)
        tl.store(dx_ptr + offsets, dx, mask=no_overhang)
        dweight += tl.sum(dout * xhat, axis=0)
        dbias += tl.sum(dout, axis=0)

    partial_ptr += tl.program_id(0) * n_columns
    tl.store(partial_ptr + columns, dweight, mask=no_column_overhang)
    tl.store(partial_ptr + tl.num_programs(0) * n_columns + columns, dbias, mask=no_column_overhang)


def layer_norm_forward(x, weight, bias=None, *, eps=1e-5):
    """out = (x - mean) / sqrt(var + eps) weight + bias: x (..., C), weight (C,), bias (C,) or None -> (out, saved)."""
    (_, out), saved = _normalise(x, None, weight, bias, eps)
    return out, saved


def layer_norm_backward(dout, saved, into=(None, None, None)):
    """dout (..., C) -> (dx (..., C), dweight (C,), dbias (C,) or None).

    into: arrays to which dweight and dbias are added, IN PLACE, or None (as in linear.py).
    """
    return _differentiate(None, dout, saved, into[1:])


def add_layer_norm_forward(x, branch, weight, bias=None, *, eps=1e-5):
    """total = x + branch, out = layer_norm(total): x and branch (..., C) -> ((total, out), saved).

    Fused, because both are bound by memory: total is normalised while it is still in registers.
    """
    return _normalise(x, branch, weight, bias, eps)


def add_layer_norm_backward(dtotal, dout, saved, into=(None, None, None, None)):
    """dtotal, dout (..., C), either may be None -> (dx, dbranch (the same array), dweight, dbias or None)."""
    if dout is None:
        return dtotal, dtotal, None, None
    dx, dweight, dbias = _differentiate(dtotal, dout, saved, into[2:])
    return dx, dx, dweight, dbias


def _normalise(x, branch, weight, bias, eps):
    x, branch, weight, bias = map(runtime.contiguous, (x, branch, weight, bias))
    total = x if branch is None else runtime.empty(x.shape, x.dtype)
    n_rows, n_columns = runtime.as_rows(x).shape
    out, mean, rstd = runtime.empty(x.shape, x.dtype), runtime.empty((n_rows,)), runtime.empty((n_rows,))
    if x.numel():
        grid, blocks = _forward_grid(n_rows, n_columns)
        layer_norm_forward_kernel[grid](x, branch, weight, bias, total, out, mean, rstd, n_rows, n_columns, eps,
                                        **blocks)
    return (total, out), (total, weight, bias is not None, mean, rstd)


def _differentiate(dtotal, dout, saved, into):
    total, weight, has_bias, mean, rstd = saved
    dout, dtotal = map(runtime.contiguous, (dout, dtotal))
    n_rows, n_columns = runtime.as_rows(total).shape
    dx = runtime.empty(total.shape, total.dtype)
    grid, blocks = _backward_grid(n_rows, n_columns)
    partial = runtime.empty((2, *grid, n_columns))
    if total.numel():
        layer_norm_backward_kernel[grid](dout, dtotal, total, weight, mean, rstd, dx, partial, n_rows, n_columns,
                                         **blocks)
    if not has_bias:
        return dx, sum_rows(partial[0], into[0]), None
    return dx, *sum_rows_of_two(partial, into)


@triton.jit
def rms_norm_forward_kernel(x_ptr, weight_ptr, out_ptr, rstd_ptr, n_rows, n_columns, eps,
                            BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr):
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = tl.arange(0, BLOCK_COLUMNS)
    no_overhang = (rows < n_rows)[:, None] & (columns < n_columns)[None, :]
    offsets = rows[:, None].to(tl.int64) * n_columns + columns[None, :]
    x = tl.load(x_ptr + offsets, mask=no_overhang, other=0.0).to(tl.float32)
    rstd = 1.0 / tl.sqrt(tl.sum(x * x, axis=1) / n_columns + eps)
    weight = tl.load(weight_ptr + columns, mask=columns < n_columns, other=0.0).to(tl.float32)
    tl.store(out_ptr + offsets, x * rstd[:, None] * weight[None, :], mask=no_overhang)
    tl.store(rstd_ptr + rows, rstd, mask=rows < n_rows)


@triton.jit
def rms_norm_backward_kernel(dout_ptr, x_ptr, weight_ptr, rstd_ptr, dx_ptr, partial_ptr, n_rows, n_columns,
                             STAGES: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr):
    columns = tl.arange(0, BLOCK_COLUMNS)
    weight = tl.load(weight_ptr + columns, mask=columns < n_columns, other=0.0).to(tl.float32)
    dweight = tl.zeros((BLOCK_COLUMNS,), dtype=tl.float32)
    for block in tl.range(tl.program_id(0), tl.cdiv(n_rows, BLOCK_ROWS), tl.num_programs(0), num_stages=STAGES):
        rows = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        no_overhang = (rows < n_rows)[:, None] & (columns < n_columns)[None, :]
        offsets = rows[:, None].to(tl.int64) * n_columns + columns[None, :]
        x = tl.load(x_ptr + offsets, mask=no_overhang, other=0.0).to(tl.float32)
        dout = tl.load(dout_ptr + offsets, mask=no_overhang, other=0.0).to(tl.float32)
        rstd = tl.load(rstd_ptr + rows, mask=rows < n_rows, other=0.0)
        xhat = x * rstd[:, None]
        g = dout * weight[None, :]
        mean_g_xhat = tl.sum(g * xhat, axis=1) / n_columns
        tl.store(dx_ptr + offsets, (g - xhat * mean_g_xhat[:, None]) * rstd[:, None], mask=no_overhang)
        dweight += tl.sum(dout * xhat, axis=0)
    tl.store(partial_ptr + tl.program_id(0) * n_columns + columns, dweight, mask=columns < n_columns)


def rms_norm_forward(x, weight, *, eps=1e-6):
    """out = x / sqrt(mean(x^2) + eps) weight: x (..., C), weight (C,) -> (out, saved)."""
    x, weight = runtime.contiguous(x), runtime.contiguous(weight)
    n_rows, n_columns = runtime.as_rows(x).shape
    out, rstd = runtime.empty(x.shape, x.dtype), runtime.empty((n_rows,))
    if x.numel():
        grid, blocks = _forward_grid(n_rows, n_columns)
        rms_norm_forward_kernel[grid](x, weight, out, rstd, n_rows, n_columns, eps, **blocks)
    return out, (x, weight, rstd)


def rms_norm_backward(dout, saved, into=(None, None)):
    """dout (..., C) -> (dx (..., C), dweight (C,))."""
    x, weight, rstd = saved
    n_rows, n_columns = runtime.as_rows(x).shape
    dx = runtime.empty(x.shape, x.dtype)
    grid, blocks = _backward_grid(n_rows, n_columns)
    partial = runtime.empty((*grid, n_columns))
    if x.numel():
        rms_norm_backward_kernel[grid](runtime.contiguous(dout), x, weight, rstd, dx, partial, n_rows, n_columns,
                                       **blocks)
    return dx, sum_rows(partial, into[1])


def _forward_grid(n_rows, n_columns, tile=None):
    """Whole rows, as many as fit the tile. From C alone: a new batch size must not compile a new kernel."""
    block_columns = triton.next_power_of_2(n_columns)
    block_rows = max(1, (tile or TILE) // block_columns)
    return (triton.cdiv(n_rows, block_rows),), {"BLOCK_ROWS": block_rows, "BLOCK_COLUMNS": block_columns,
                                                "num_warps": 4 if block_columns <= 4096 else 16}


def _backward_grid(n_rows, n_columns):
    grid, blocks = _forward_grid(n_rows, n_columns, TILE_BACKWARD)
    stages = STAGES if blocks["BLOCK_COLUMNS"] <= TILE_BACKWARD else 1      # shared memory would not hold several
    return (min(grid[0], PROGRAMS * runtime.n_multiprocessors()),), {"STAGES": stages, **blocks}
