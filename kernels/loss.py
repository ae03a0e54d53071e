"""Cross-entropy: alone, and as one op with the layer before it, whose logits then are scratch.

    z = x W^T,   lse_n = log sum_v exp(z_nv)                                       (twin: tinyllm/ops/loss.py)
    loss_n = lse_n - sum_v q_nv z_nv,    q_nv = (1 - e) [v = target_n] + e / V
    d loss_n / d z_nv = exp(z_nv - lse_n) - q_nv
    dx = (dloss/dz) W,   dW = (dloss/dz)^T x

e is the label smoothing of Szegedy et al. 2016, arXiv:1512.00567, section 7. A row whose target is ignore_index has
loss 0 and gradient 0. For a vocabulary of 50,257 the logits are by far the largest array of a training step; writing
the gradient over them keeps one such array instead of three, and leaves two matrix products to the backward pass.

naive_cross_entropy_kernel reads each row twice: for the loss (an online softmax, see softmax.py), and for the gradient.
cross_entropy_kernel reads it once: a row of 50,304 bfloat16 numbers is 98 KB, and a multiprocessor has 256 KB of
registers, so the row stays there. Rows that are too long for that take the former.

A thread reads eight numbers at once where they are 16 bytes that begin at a multiple of 16, and one by one elsewhere,
which takes eight times as many instructions. A row of 50,257 begins anywhere. So its body, from the first such border
to the last, is read in whole vectors; the ends, up to seven numbers before and seven behind, are a block of their own.

    logits_ptr, dlogits_ptr   (N, stride), maybe the same array: a row's V logits, then dead columns up to a multiple of
                   64. Loads run over whole rows; the dead columns are masked by value instead, and their gradient is
                   0. stride = V where there are none
    targets_ptr (N,) integers, losses_ptr (N,) float32
    GRADIENT       whether dlogits is written.  SMOOTH: whether smoothing is not 0
    RAGGED         whether rows begin elsewhere than at 16 bytes; they have no dead columns then
    grids          naive (ceil(N / BLOCK_ROWS),), one reading (N,), mean_or_sum (1,), scale_rows (ceil(N / BLOCK_ROWS),)
"""

import triton
import triton.language as tl

from . import runtime
from .elementwise import mul
from .map import map_, row_blocks
from .product import product, weight_gradient
from .softmax import LOWEST

IN_REGISTERS = 57_344       # 16-bit numbers a row may have to stay in registers
PIECE = 16_384              # of a row, one block of registers: 16 warps x 32 threads x 32 numbers
VECTOR = tl.constexpr(8)    # 16-bit numbers in 16 bytes


@triton.jit
def loss_of(m, l, target_logit, sum_of_logits, targets, n_vocabulary, ignore_index, smoothing):
    """loss_n from the maximum m of a row, l = sum exp(z - m), its target's logit, and the sum of its logits."""
    # lse = m + log l; m goes to the logits first, because a large m would swallow the digits of a small log l
    loss = tl.log(l) - (1.0 - smoothing) * (target_logit - m) - smoothing * (sum_of_logits / n_vocabulary - m)
    # A GPU cannot raise IndexError. A target outside the vocabulary makes the loss NaN, which nobody overlooks.
    loss = tl.where((targets >= 0) & (targets < n_vocabulary), loss, float("nan"))
    return tl.where(targets != ignore_index, loss, 0.0)


@triton.jit
def gradient_of(z, m, l, is_target, counts, n_vocabulary, smoothing):
    """d loss / d z, formed in float32: rounding p to 16 bits before subtracting 1 would leave nothing if p is 0.999."""
    dz = tl.exp(z - m) / l - smoothing / n_vocabulary - tl.where(is_target, 1.0 - smoothing, 0.0)
    return tl.where(counts, dz, 0.0)


@triton.jit
def naive_cross_entropy_kernel(logits_ptr, dlogits_ptr, targets_ptr, losses_ptr, n_rows, n_vocabulary, stride,
                               ignore_index, smoothing, GRADIENT: tl.constexpr,
                               BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr):
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    no_row_overhang = rows < n_rows
    targets = tl.load(targets_ptr + rows, mask=no_row_overhang, other=ignore_index).to(tl.int64)
    start = rows[:, None].to(tl.int64) * stride         # 64 bits: 42,691 rows of 50,304 logits pass 2^31
    m = tl.zeros((BLOCK_ROWS,), dtype=tl.float32) + LOWEST
    l = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    target_logit = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    sum_of_logits = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    for first in range(0, n_vocabulary, BLOCK_COLUMNS):
        columns = first + tl.arange(0, BLOCK_COLUMNS)
        no_overhang = no_row_overhang[:, None] & (columns < stride)[None, :]
        no_dead_column = (columns < n_vocabulary)[None, :]
        z = tl.load(logits_ptr + start + columns[None, :], mask=no_overhang, other=0.0).to(tl.float32)
        z = tl.where(no_dead_column, z, LOWEST)
        m_new = tl.maximum(m, tl.max(z, axis=1))
        l = l * tl.exp(m - m_new) + tl.sum(tl.exp(z - m_new[:, None]), axis=1)
        m = m_new
        target_logit += tl.sum(tl.where(columns[None, :] == targets[:, None], z, 0.0), axis=1)
        sum_of_logits += tl.sum(tl.where(no_dead_column, z, 0.0), axis=1)
    losses = loss_of(m, l, target_logit, sum_of_logits, targets, n_vocabulary, ignore_index, smoothing)
    tl.store(losses_ptr + rows, losses, mask=no_row_overhang)
    if GRADIENT:
        for first in range(0, stride, BLOCK_COLUMNS):
            columns = first + tl.arange(0, BLOCK_COLUMNS)
            no_overhang = no_row_overhang[:, None] & (columns < stride)[None, :]
            counts = (columns < n_vocabulary)[None, :] & (targets != ignore_index)[:, None]
            z = tl.load(logits_ptr + start + columns[None, :], mask=no_overhang, other=0.0).to(tl.float32)
            z = tl.where(counts, z, LOWEST)
            is_target = columns[None, :] == targets[:, None]
            dz = gradient_of(z, m[:, None], l[:, None], is_target, counts, n_vocabulary, smoothing)
            tl.store(dlogits_ptr + start + columns[None, :], dz, mask=no_overhang)


@triton.jit
def cross_entropy_kernel(logits_ptr, dlogits_ptr, targets_ptr, losses_ptr, n_vocabulary, stride, ignore_index,
                         smoothing, GRADIENT: tl.constexpr, SMOOTH: tl.constexpr, RAGGED: tl.constexpr,
                         PIECES: tl.constexpr, PIECE: tl.constexpr, LAST: tl.constexpr):
    """A row is PIECES blocks of PIECE columns, which need no mask, and a last one of LAST; a tuple holds them. A RAGGED
    row has a head of `lead` numbers before, and a tail behind.
    """
    row = tl.program_id(0).to(tl.int64)
    body, lead, n_body, n_live = row * stride, 0, stride, n_vocabulary
    if RAGGED:
        lead = tl.minimum((tl.cdiv(body, VECTOR) * VECTOR - body).to(tl.int32), stride)
        n_body = (stride - lead) // VECTOR * VECTOR
        n_live = n_body
        body = tl.multiple_of(body + lead, VECTOR)
    pieces = ()
    for i in tl.static_range(PIECES):
        pieces = pieces + (tl.load(logits_ptr + body + i * PIECE + tl.arange(0, PIECE)),)
    columns = PIECES * PIECE + tl.arange(0, LAST)
    no_dead_column = columns < n_live
    last = tl.load(logits_ptr + body + columns, mask=columns < n_body, other=0.0)
    last = tl.where(no_dead_column, last, float("-inf"))
    blocks = pieces + (last,)
    if RAGGED:
        places = tl.arange(0, 2 * VECTOR)       # VECTOR of them for the head, as many for the tail
        ends = body + tl.where(places < VECTOR, places - lead, n_body + places - VECTOR)
        exist = tl.where(places < VECTOR, places < lead, places - VECTOR < stride - lead - n_body)
        z_ends = tl.load(logits_ptr + ends, mask=exist, other=float("-inf"))
        blocks = blocks + (z_ends,)
    m, l = tl.max(last.to(tl.float32)), 0.0
    for i in tl.static_range(len(blocks)):
        m = tl.maximum(m, tl.max(blocks[i].to(tl.float32)))
    for i in tl.static_range(len(blocks)):
        l += tl.sum(tl.exp(blocks[i].to(tl.float32) - m))
    sum_of_logits = 0.0
    if SMOOTH:
        sum_of_logits = tl.sum(tl.where(no_dead_column, last.to(tl.float32), 0.0))
        for i in tl.static_range(PIECES):
            sum_of_logits += tl.sum(pieces[i].to(tl.float32))
        if RAGGED:
            sum_of_logits += tl.sum(tl.where(exist, z_ends.to(tl.float32), 0.0))

    target = tl.load(targets_ptr + row).to(tl.int64)
    counts = target != ignore_index
    exists = (target >= 0) & (target < n_vocabulary)
    target_logit = tl.load(logits_ptr + row * stride + target, mask=exists, other=0.0).to(tl.float32)
    loss = loss_of(m, l, target_logit, sum_of_logits, target, n_vocabulary, ignore_index, smoothing)
    tl.store(losses_ptr + row, loss)
    if GRADIENT:
        tl.debug_barrier()      # dlogits may be logits: all threads have read the target's logit
        share = tl.where(counts, 1.0 / l, 0.0)
        floor = tl.where(counts, smoothing / n_vocabulary, 0.0)
        for i in tl.static_range(PIECES):
            dz = tl.exp(pieces[i].to(tl.float32) - m) * share - floor
            tl.store(dlogits_ptr + body + i * PIECE + tl.arange(0, PIECE), dz)
        dz = tl.where(no_dead_column, tl.exp(last.to(tl.float32) - m) * share - floor, 0.0)
        tl.store(dlogits_ptr + body + columns, dz, mask=columns < n_body)
        if RAGGED:
            tl.store(dlogits_ptr + ends, tl.exp(z_ends.to(tl.float32) - m) * share - floor, mask=exist)
        # The target's own gradient has one more summand. Asking each column whether it is the target would cost the
        # registers that hold the row; so it is written again, once all threads have written theirs.
        tl.debug_barrier()
        dz = tl.exp(target_logit - m) * share - floor - (1.0 - smoothing)
        tl.store(dlogits_ptr + row * stride + target, dz, mask=exists & counts)


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
    share = 1.0
    if MEAN:
        share = 1.0 / tl.maximum(tl.sum(count), 1)      # all ignored: 0 / 1, not 0 / 0
    tl.store(loss_ptr, tl.sum(total) * share)
    tl.store(share_ptr, share)


@triton.jit
def scale_rows_kernel(x_ptr, dout_ptr, stride_dout, share_ptr, out_ptr, n_rows, n_columns,
                      BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr):
    """out[n, :] = x[n, :] * dout[n] * share; x_ptr and out_ptr (N, C) may be the same array."""
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    factor = tl.load(dout_ptr + rows * stride_dout, mask=rows < n_rows, other=0.0)      # a scalar has stride 0
    if share_ptr is not None:
        factor *= tl.load(share_ptr)
    for first in range(0, n_columns, BLOCK_COLUMNS):
        columns = first + tl.arange(0, BLOCK_COLUMNS)
        no_overhang = (rows < n_rows)[:, None] & (columns < n_columns)[None, :]
        offsets = rows[:, None].to(tl.int64) * n_columns + columns[None, :]
        x = tl.load(x_ptr + offsets, mask=no_overhang, other=0.0).to(tl.float32)
        tl.store(out_ptr + offsets, x * factor[:, None], mask=no_overhang)


@triton.jit
def product_of_three(a, b, c):
    return a * (b * c)


def cross_entropy_forward(logits, targets, *, ignore_index=-100, label_smoothing=0.0, reduction="mean"):
    """loss = -log softmax(logits)[target]: logits (..., V), targets (...) integers -> (loss float32, saved).

    reduction "mean" (over the targets that count) or "sum": loss is 0-d; "none": (...), 0 where ignored. A target
    outside [0, V) makes the loss NaN.
    """
    logits, flat = runtime.contiguous(logits), runtime.contiguous(targets).view(-1)
    dlogits = runtime.empty(logits.shape, logits.dtype)
    losses = _losses(runtime.as_rows(logits), runtime.as_rows(dlogits), flat, logits.shape[-1], ignore_index,
                     label_smoothing, True)
    loss, share = _reduce(losses, flat, ignore_index, reduction)
    return (loss.view(targets.shape) if reduction == "none" else loss), (dlogits, share)


def cross_entropy_backward(dout, saved):
    """dlogits = dout * (softmax(logits) - target distribution)   [/ count, for the mean]."""
    dlogits, share = saved
    if share is None:                                   # a factor for each row
        return map_(mul, dlogits, dout[..., None], dtype=dlogits.dtype), None
    return map_(product_of_three, dlogits, dout, share, dtype=dlogits.dtype), None


def linear_cross_entropy_forward(x, weight, targets, *, ignore_index=-100, label_smoothing=0.0, reduction="mean",
                                 needs=(True, True, False)):
    """cross_entropy(x W^T, targets): x (N, C), weight (V, C), targets (N,) integers -> (loss float32, saved).

    All rows ignored: 0, not NaN. `needs` says which gradients backward will compute.
    """
    x, weight, targets = map(runtime.contiguous, (x, weight, targets))
    vocabulary, stride = weight.shape[0], triton.cdiv(weight.shape[0], 64) * 64
    logits = runtime.empty((x.shape[0], stride), x.dtype)
    if x.shape[0]:
        product(x, weight.T, logits)
    losses = _losses(logits, logits, targets, vocabulary, ignore_index, label_smoothing, needs[0] or needs[1])
    loss, share = _reduce(losses, targets, ignore_index, reduction)
    return loss, (logits, x, weight, share, needs)      # the logits are their own gradient now


def linear_cross_entropy_backward(dout, saved, into=(None, None, None)):
    """dout, of the loss's shape -> (dx (N, C), dweight (V, C) in float32, None).

    dlogits belongs to the sum of the losses and is not touched: each row's factor multiplies the narrow matrices.
    """
    dlogits, x, weight, share, needs = saved
    dx = dweight = None
    if needs[0]:
        dx = runtime.empty(x.shape, x.dtype)
        if x.shape[0]:
            product(dlogits, weight, dx)
        _scale_rows(dx, dout, share, out=dx)
    if needs[1]:
        scaled = _scale_rows(x, dout, share, out=runtime.empty(x.shape, x.dtype))
        dweight = weight_gradient(dlogits, scaled, weight.shape[0], into[1])
    return dx, dweight, None


def _losses(logits, dlogits, targets, vocabulary, ignore_index, smoothing, gradient):
    """The loss of each row (N,), and its gradient into dlogits; both matrices have rows of `stride` numbers."""
    n_rows, stride = logits.shape
    losses = runtime.empty((n_rows,))
    numbers = (vocabulary, stride, ignore_index, float(smoothing))
    ragged, vector = stride % 16 != 0, VECTOR.value         # Triton looks at no other divisor than 16
    if n_rows and logits.element_size() == 2 and stride <= IN_REGISTERS:
        # the body of a row is no shorter, and no longer, than
        shortest, longest = (max(0, stride - vector + 1), stride // vector * vector) if ragged else (stride - 1, stride)
        pieces = shortest // PIECE
        last = triton.next_power_of_2(max(1, longest - pieces * PIECE))
        cross_entropy_kernel[(n_rows,)](logits, dlogits, targets, losses, *numbers, GRADIENT=gradient,
                                        SMOOTH=smoothing > 0, RAGGED=ragged, PIECES=pieces, PIECE=PIECE, LAST=last,
                                        num_warps=16 if stride > 8192 else 4)
    elif n_rows:
        grid, blocks = row_blocks(n_rows, stride)
        naive_cross_entropy_kernel[grid](logits, dlogits, targets, losses, n_rows, *numbers, GRADIENT=gradient,
                                         **blocks)
    return losses


def _reduce(losses, targets, ignore_index, reduction):
    """(loss, share): see mean_or_sum_kernel; share is None without reduction."""
    if reduction == "none":
        return losses, None
    loss, share = runtime.empty(()), runtime.empty(())
    # one program, which memory makes wait at each round: so a few wide rounds
    mean_or_sum_kernel[(1,)](losses, targets, loss, share, len(losses), ignore_index, MEAN=reduction == "mean",
                             BLOCK=8192, num_warps=32)
    return loss, share


def _scale_rows(x, dout, share, out):
    if x.numel():
        grid, blocks = row_blocks(*x.shape)
        scale_rows_kernel[grid](x, dout, dout.stride(0) if dout.ndim else 0, share, out, *x.shape, **blocks)
    return out
