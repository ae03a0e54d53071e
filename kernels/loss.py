"""The language-model head and its loss in one op: the logits are scratch, so they can become their own gradient.

    z = x W^T,   lse_n = log sum_v exp(z_nv)                                       (twin: tinyllm/ops/loss.py)
    loss_n = lse_n - sum_v q_nv z_nv,    q_nv = (1 - e) [v = target_n] + e / V
    d loss_n / d z_nv = exp(z_nv - lse_n) - q_nv
    dx = (dloss/dz) W,   dW = (dloss/dz)^T x

e is the label smoothing of Szegedy et al. 2016, arXiv:1512.00567, section 7. A row whose target is ignore_index has
loss 0 and gradient 0. For a vocabulary of 50,257 the logits are by far the largest array of a training step; writing
the gradient over them keeps one such array instead of three, and leaves two matrix products to the backward pass.

    x_ptr (N, C), weight_ptr (V, C), targets_ptr (N,) integers, losses_ptr (N,)
    logits_ptr     (N, stride): a row's V logits, then dead columns up to a multiple of 64. Loads run over whole rows,
                   so that each thread reads 16 aligned bytes; the dead columns are masked by value instead
    grids          cross_entropy (ceil(N / BLOCK_ROWS),), mean_or_sum (1,), scale_rows (ceil(N / BLOCK_ROWS),)
"""

import triton
import triton.language as tl

from . import runtime
from .linear import matmul

TILE = 4096
# Stands in for minus infinity in a running maximum: -inf - -inf would be NaN.
LOWEST = tl.constexpr(-1e30)


@triton.jit
def cross_entropy_kernel(logits_ptr, targets_ptr, losses_ptr, n_rows, n_vocabulary, stride, ignore_index, smoothing,
                         GRADIENT: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr):
    """One reading finds each row's loss (an online softmax, as in attention.py), a second writes the gradient."""
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    no_row_overhang = rows < n_rows
    targets = tl.load(targets_ptr + rows, mask=no_row_overhang, other=ignore_index).to(tl.int64)
    # 64 bits: 42,690 rows of 50,304 logits pass 2^31
    logits_ptr += rows[:, None].to(tl.int64) * stride

    m = tl.zeros((BLOCK_ROWS,), dtype=tl.float32) + LOWEST
    l = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    target_logit = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    sum_of_logits = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    for first in range(0, n_vocabulary, BLOCK_COLUMNS):
        columns = first + tl.arange(0, BLOCK_COLUMNS)
        no_overhang = no_row_overhang[:, None] & (columns < stride)[None, :]
        no_dead_column = (columns < n_vocabulary)[None, :]
        z = tl.load(logits_ptr + columns[None, :], mask=no_overhang, other=0.0)
        z = tl.where(no_dead_column, z, LOWEST)
        m_new = tl.maximum(m, tl.max(z, axis=1))
        l = l * tl.exp(m - m_new) + tl.sum(tl.exp(z - m_new[:, None]), axis=1)
        m = m_new
        target_logit += tl.sum(tl.where(columns[None, :] == targets[:, None], z, 0.0), axis=1)
        sum_of_logits += tl.sum(tl.where(no_dead_column, z, 0.0), axis=1)

    no_ignored = targets != ignore_index
    # lse = m + log l; m goes to the logits first, because a large m would swallow the digits of a small log l
    loss = tl.log(l) - (1.0 - smoothing) * (target_logit - m) - smoothing * (sum_of_logits / n_vocabulary - m)
    # A GPU cannot raise IndexError. A target outside the vocabulary makes the loss NaN, which nobody overlooks.
    loss = tl.where((targets >= 0) & (targets < n_vocabulary), loss, float("nan"))
    tl.store(losses_ptr + rows, tl.where(no_ignored, loss, 0.0), mask=no_row_overhang)

    if GRADIENT:
        for first in range(0, n_vocabulary, BLOCK_COLUMNS):
            columns = first + tl.arange(0, BLOCK_COLUMNS)
            no_overhang = no_row_overhang[:, None] & (columns < stride)[None, :]
            no_dead_column = (columns < n_vocabulary)[None, :]
            z = tl.load(logits_ptr + columns[None, :], mask=no_overhang, other=0.0)
            p = tl.exp(tl.where(no_dead_column, z, LOWEST) - m[:, None]) / l[:, None]
            is_target = columns[None, :] == targets[:, None]
            dz = p - smoothing / n_vocabulary - tl.where(is_target, 1.0 - smoothing, 0.0)
            dz = tl.where(no_dead_column & no_ignored[:, None], dz, 0.0)
            tl.store(logits_ptr + columns[None, :], dz, mask=no_overhang)


@triton.jit
def mean_or_sum_kernel(losses_ptr, targets_ptr, loss_ptr, share_ptr, n_rows, ignore_index,
                       MEAN: tl.constexpr, BLOCK: tl.constexpr):
    """loss = share * sum of losses; share, one row's part in it, is 1 or 1 / (number of rows not ignored)."""
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    count = tl.zeros((BLOCK,), dtype=tl.int32)
    for first in range(0, n_rows, BLOCK):
        rows = first + tl.arange(0, BLOCK)
        total += tl.load(losses_ptr + rows, mask=rows < n_rows, other=0.0)
        targets = tl.load(targets_ptr + rows, mask=rows < n_rows, other=ignore_index)
        count += (targets != ignore_index).to(tl.int32)
    if MEAN:
        share = 1.0 / tl.maximum(tl.sum(count), 1)  # all ignored: 0 / 1, not 0 / 0
    else:
        share = 1.0
    tl.store(loss_ptr, tl.sum(total) * share)
    tl.store(share_ptr, share)


@triton.jit
def scale_rows_kernel(x_ptr, dout_ptr, stride_dout, share_ptr, out_ptr, n_rows, n_columns,
                      BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr):
    """out[n, :] = x[n, :] * dout[n] * share; x_ptr and out_ptr (N, C) may be the same array."""
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    factor = tl.load(dout_ptr + rows * stride_dout, mask=rows < n_rows, other=0.0)  # a scalar has stride 0
    if share_ptr is not None:
        factor *= tl.load(share_ptr)
    for first in range(0, n_columns, BLOCK_COLUMNS):
        columns = first + tl.arange(0, BLOCK_COLUMNS)
        no_overhang = (rows < n_rows)[:, None] & (columns < n_columns)[None, :]
        offsets = rows[:, None].to(tl.int64) * n_columns + columns[None, :]
        x = tl.load(x_ptr + offsets, mask=no_overhang, other=0.0)
        tl.store(out_ptr + offsets, x * factor[:, None], mask=no_overhang)


def linear_cross_entropy_forward(x, weight, targets, *, ignore_index=-100, label_smoothing=0.0, reduction="mean",
                                 needs=(True, True, False)):
    """cross_entropy(x W^T, targets): x (N, C), weight (V, C), targets (N,) integers -> (loss, saved).

    reduction "mean" (over the rows not ignored) or "sum": loss is 0-d; "none": (N,). All rows ignored: 0, not NaN.
    `needs` says which gradients backward will compute. A target outside [0, V) makes the loss NaN.

    Raises ValueError for another reduction.
    """
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f'reduction is "mean", "sum" or "none", not {reduction!r}')
    x = runtime.contiguous(x)
    targets = runtime.contiguous(targets)
    (n_rows, _), vocabulary = x.shape, weight.shape[0]
    stride = triton.cdiv(vocabulary, 64) * 64
    logits = runtime.empty((n_rows, stride), x.dtype)
    losses = runtime.empty((n_rows,))
    matmul(x, weight.T, logits)
    blocks = _blocks(stride)
    cross_entropy_kernel[(triton.cdiv(n_rows, blocks["BLOCK_ROWS"]),)](
        logits, targets, losses, n_rows, vocabulary, stride, ignore_index, float(label_smoothing),
        GRADIENT=needs[0] or needs[1], **blocks)
    loss, share = losses, None
    if reduction != "none":
        loss, share = runtime.empty(()), runtime.empty(())
        mean_or_sum_kernel[(1,)](losses, targets, loss, share, n_rows, ignore_index, MEAN=reduction == "mean",
                                 BLOCK=1024)
    dlogits = logits[:, :vocabulary]  # what the second reading has made of them; see the kernel
    return loss, (dlogits, x, weight, share, needs)


def linear_cross_entropy_backward(dout, saved):
    """dout, of the loss's shape -> (dx (N, C), dweight (V, C), None).

    dlogits belongs to the sum of the losses and is not touched: each row's factor multiplies the narrow matrices.
    """
    dlogits, x, weight, share, needs = saved
    dx = dweight = None
    if needs[0]:
        dx = matmul(dlogits, weight, runtime.empty(x.shape, x.dtype))
        _scale_rows(dx, dout, share, out=dx)
    if needs[1]:
        scaled = _scale_rows(x, dout, share, out=runtime.empty(x.shape, x.dtype))
        dweight = matmul(dlogits.T, scaled, runtime.empty(weight.shape, weight.dtype))
    return dx, dweight, None


def _scale_rows(x, dout, share, out):
    blocks = _blocks(x.shape[1])
    stride_dout = dout.stride(0) if dout.ndim else 0
    scale_rows_kernel[(triton.cdiv(x.shape[0], blocks["BLOCK_ROWS"]),)](
        x, dout, stride_dout, share, out, *x.shape, **blocks)
    return out


def _blocks(n_columns):
    """Long pieces of a row, and as many rows as fill the tile."""
    block_columns = min(1024, triton.next_power_of_2(n_columns))
    return {"BLOCK_ROWS": TILE // block_columns, "BLOCK_COLUMNS": block_columns}
