"""The gradients of attention, again without a T x S matrix in memory.

With p the probabilities and r dropout's factors (0 or 1 / (1 - dropout); 1 without), out_i = sum_j p_ij r_ij v_j gives

    dp_ij = r_ij dout_i . v_j          ds_ij = p_ij (dp_ij - delta_i),  delta_i = sum_j p_ij dp_ij = dout_i . out_i
    dq_i = scale sum_j ds_ij k_j       dk_j = scale sum_i ds_ij q_i       dv_j = sum_i p_ij r_ij dout_i

(the ds of softmax.py, see tinyllm/ops/attention.py; Dao 2023, arXiv:2307.08691, algorithm 2). dq sums over keys, dk and
dv over queries, so there is one kernel for each: every number has one writer, no atomics, the same result each time.
The scores are computed in each of them; p = 2^(s - lse) needs no maximum any more.

    as in attention.py, and
    dout_ptr, dq_ptr (B, T, H, D), dk_ptr, dv_ptr (B, S, K, D): with strides, like q, k and v
    delta_ptr        (B, H, T) float32
    dbias_ptr        of bias's shape, float32, row-major
    grids            dq (ceil(T / BLOCK_Q), B H); dkdv (ceil(S / BLOCK_K), B K);
                     dbias (ceil(T / BLOCK_Q), ceil(S / BLOCK_K), batches and heads of the bias)
"""

import torch
import triton
import triton.language as tl

from . import configs, runtime
from .attention_tiles import block_d, extras, load_rows, scores_of, store_rows, strides_of, survivors_of, unmasked_keys


@triton.jit
def delta_kernel(out_ptr, dout_ptr, delta_ptr, T, H, out_strides, dout_strides, BLOCK_Q: tl.constexpr,
                 HEAD_SIZE: tl.constexpr, BLOCK_D: tl.constexpr):
    """delta_i = dout_i . out_i; grid (ceil(T / BLOCK_Q), B H)"""
    batch, head = (tl.program_id(1) // H).to(tl.int64), (tl.program_id(1) % H).to(tl.int64)
    queries = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    out_ptr += batch * out_strides[0] + head * out_strides[2]
    dout_ptr += batch * dout_strides[0] + head * dout_strides[2]
    out = load_rows(out_ptr, queries, out_strides, T, HEAD_SIZE, BLOCK_D, True).to(tl.float32)
    dout = load_rows(dout_ptr, queries, dout_strides, T, HEAD_SIZE, BLOCK_D, True).to(tl.float32)
    tl.store(delta_ptr + (batch * H + head) * T + queries, tl.sum(out * dout, axis=1), mask=queries < T)


@triton.jit
def probabilities_and_ds(a, b, da, db, lse, delta, r, queries, keys, start, end, bias_ptr, sizes, bias_strides, scale,
                         MASKED: tl.constexpr):
    """(p r, ds) of a tile. a = q, b = k, da = dout, db = v; for transposed scores (keys, queries) the other way round.

    The sums over queries, dk and dv, are products of transposed tiles; computed transposed at once, they need not be
    turned round by way of shared memory.
    """
    s = scores_of(a, b, queries, keys, start, end, bias_ptr, sizes, bias_strides, scale, MASKED)
    p = tl.exp2(s - lse)
    dp = tl.dot(da, tl.trans(db), input_precision="ieee") * r
    return p * r, p * (dp - delta)


@triton.jit
def gather_dq(dq, q, dout, lse, delta, first, last, first_query, start, end, k_ptr, v_ptr, bias_ptr, rng_ptr, row,
              sizes, strides, numbers, MASKED: tl.constexpr, BLOCK_K: tl.constexpr, HEAD_SIZE: tl.constexpr,
              BLOCK_D: tl.constexpr):
    """Meet the keys from `first` on, up to `last`, and add their parts of dq."""
    queries = first_query + tl.arange(0, q.shape[0])
    for key in range(first, last, BLOCK_K):
        keys = key + tl.arange(0, BLOCK_K)
        k = load_rows(k_ptr, keys, strides[1], sizes[1], HEAD_SIZE, BLOCK_D, MASKED)
        v = load_rows(v_ptr, keys, strides[2], sizes[1], HEAD_SIZE, BLOCK_D, MASKED)
        r = survivors_of(rng_ptr, row, queries, key, sizes[1], numbers, BLOCK_K)
        _, ds = probabilities_and_ds(q, k, dout, v, lse[:, None], delta[:, None], r, queries[:, None], keys[None, :],
                                      start, end, bias_ptr, sizes, strides[5], numbers[0], MASKED)
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision="ieee")
    return dq


@triton.jit
def attention_dq_kernel(q_ptr, k_ptr, v_ptr, dout_ptr, bias_ptr, limits_ptr, rng_ptr, lse_ptr, delta_ptr, dq_ptr,
                        H, group, sizes, strides, numbers, scale, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
                        HEAD_SIZE: tl.constexpr, BLOCK_D: tl.constexpr):
    T, S, offset = sizes
    batch, head = (tl.program_id(1) // H).to(tl.int64), (tl.program_id(1) % H).to(tl.int64)
    first_query = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_Q
    queries = first_query + tl.arange(0, BLOCK_Q)
    q_ptr += batch * strides[0][0] + head * strides[0][2]
    k_ptr += batch * strides[1][0] + head // group * strides[1][2]
    v_ptr += batch * strides[2][0] + head // group * strides[2][2]
    dout_ptr += batch * strides[3][0] + head * strides[3][2]
    dq_ptr += batch * strides[4][0] + head * strides[4][2]
    if bias_ptr is not None:
        bias_ptr += batch * strides[5][0] + head * strides[5][1]
    row = (batch * H + head) * T
    q = load_rows(q_ptr, queries, strides[0], T, HEAD_SIZE, BLOCK_D, True)
    dout = load_rows(dout_ptr, queries, strides[3], T, HEAD_SIZE, BLOCK_D, True)
    lse = tl.load(lse_ptr + row + queries, mask=queries < T, other=float("inf"))
    delta = tl.load(delta_ptr + row + queries, mask=queries < T, other=0.0)
    start, middle, end = unmasked_keys(limits_ptr, batch, first_query, BLOCK_Q, S, offset, BLOCK_K)
    dq = tl.zeros((BLOCK_Q, BLOCK_D), dtype=tl.float32)
    dq = gather_dq(dq, q, dout, lse, delta, start // BLOCK_K * BLOCK_K, middle, first_query, start, end, k_ptr, v_ptr,
                   bias_ptr, rng_ptr, row, sizes, strides, numbers, False, BLOCK_K, HEAD_SIZE, BLOCK_D)
    dq = gather_dq(dq, q, dout, lse, delta, middle, end, first_query, start, end, k_ptr, v_ptr,
                   bias_ptr, rng_ptr, row, sizes, strides, numbers, True, BLOCK_K, HEAD_SIZE, BLOCK_D)
    store_rows(dq_ptr, queries, strides[4], T, HEAD_SIZE, BLOCK_D, dq * scale)


@triton.jit
def gather_dkdv(dk, dv, k, v, first, last, first_key, start, end, q_ptr, dout_ptr, bias_ptr, rng_ptr, lse_ptr,
                delta_ptr, row, sizes, strides, numbers, MASKED: tl.constexpr, BLOCK_Q: tl.constexpr,
                BLOCK_K: tl.constexpr, HEAD_SIZE: tl.constexpr, BLOCK_D: tl.constexpr):
    """Meet the queries from `first` on, up to `last`, and add their parts of dk and dv."""
    T, keys = sizes[0], first_key + tl.arange(0, BLOCK_K)
    for query in range(first, last, BLOCK_Q):
        queries = query + tl.arange(0, BLOCK_Q)
        q = load_rows(q_ptr, queries, strides[0], T, HEAD_SIZE, BLOCK_D, True)
        dout = load_rows(dout_ptr, queries, strides[3], T, HEAD_SIZE, BLOCK_D, True)
        lse = tl.load(lse_ptr + row + queries, mask=queries < T, other=float("inf"))        # p = 0 where they hang over
        delta = tl.load(delta_ptr + row + queries, mask=queries < T, other=0.0)
        r = survivors_of(rng_ptr, row, queries, first_key, sizes[1], numbers, BLOCK_K)
        if rng_ptr is not None:
            r = tl.trans(r)
        dropped, ds = probabilities_and_ds(k, q, v, dout, lse[None, :], delta[None, :], r, queries[None, :],
                                           keys[:, None], start, end, bias_ptr, sizes, strides[6], numbers[0], MASKED)
        dv = tl.dot(dropped.to(dout.dtype), dout, dv, input_precision="ieee")       # (BLOCK_K, BLOCK_D)
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision="ieee")
    return dk, dv


@triton.jit
def attention_dkdv_kernel(q_ptr, k_ptr, v_ptr, dout_ptr, bias_ptr, limits_ptr, rng_ptr, lse_ptr, delta_ptr, dk_ptr,
                          dv_ptr, H, group, sizes, strides, numbers, scale, BLOCK_Q: tl.constexpr,
                          BLOCK_K: tl.constexpr, HEAD_SIZE: tl.constexpr, BLOCK_D: tl.constexpr):
    T, S, offset = sizes
    key_heads = H // group
    batch, key_head = (tl.program_id(1) // key_heads).to(tl.int64), (tl.program_id(1) % key_heads).to(tl.int64)
    first_key = tl.program_id(0) * BLOCK_K
    keys = first_key + tl.arange(0, BLOCK_K)
    start = tl.maximum(tl.load(limits_ptr + batch * 2), 0)
    end = tl.minimum(tl.load(limits_ptr + batch * 2 + 1), S)
    # the first query that sees the first key, and the first that sees them all; padding hides some from everybody
    first = tl.maximum(first_key - offset, 0) // BLOCK_Q * BLOCK_Q
    middle = tl.minimum(tl.cdiv(tl.maximum(first_key + BLOCK_K - 1 - offset, 0), BLOCK_Q) * BLOCK_Q, T)
    middle = tl.where((first_key >= start) & (first_key + BLOCK_K <= end), middle, T)
    if bias_ptr is not None:
        middle = T      # a second loop would cost registers that the bias takes
    k_ptr += batch * strides[1][0] + key_head * strides[1][2]
    v_ptr += batch * strides[2][0] + key_head * strides[2][2]
    k = load_rows(k_ptr, keys, strides[1], S, HEAD_SIZE, BLOCK_D, True)
    v = load_rows(v_ptr, keys, strides[2], S, HEAD_SIZE, BLOCK_D, True)
    dk = tl.zeros((BLOCK_K, BLOCK_D), dtype=tl.float32)
    dv = tl.zeros((BLOCK_K, BLOCK_D), dtype=tl.float32)
    for member in range(0, group):      # all query heads that read this key head
        head = key_head * group + member
        q_head = q_ptr + batch * strides[0][0] + head * strides[0][2]
        dout_head = dout_ptr + batch * strides[3][0] + head * strides[3][2]
        bias_head = bias_ptr
        if bias_ptr is not None:
            bias_head += batch * strides[6][0] + head * strides[6][1]
        row = (batch * H + head) * T
        dk, dv = gather_dkdv(dk, dv, k, v, first, middle, first_key, start, end, q_head, dout_head, bias_head, rng_ptr,
                             lse_ptr, delta_ptr, row, sizes, strides, numbers, True, BLOCK_Q, BLOCK_K, HEAD_SIZE,
                             BLOCK_D)
        if bias_ptr is None:
            dk, dv = gather_dkdv(dk, dv, k, v, middle, T, first_key, start, end, q_head, dout_head, bias_head, rng_ptr,
                             lse_ptr, delta_ptr, row, sizes, strides, numbers, False, BLOCK_Q, BLOCK_K, HEAD_SIZE,
                             BLOCK_D)
    dk_ptr += batch * strides[4][0] + key_head * strides[4][2]
    dv_ptr += batch * strides[5][0] + key_head * strides[5][2]
    store_rows(dk_ptr, keys, strides[4], S, HEAD_SIZE, BLOCK_D, dk * scale)
    store_rows(dv_ptr, keys, strides[5], S, HEAD_SIZE, BLOCK_D, dv)


@triton.jit
def attention_dbias_kernel(q_ptr, k_ptr, v_ptr, dout_ptr, bias_ptr, limits_ptr, rng_ptr, lse_ptr, delta_ptr, dbias_ptr,
                           B, H, bias_batch, bias_heads, group, sizes, strides, numbers, BLOCK_Q: tl.constexpr,
                           BLOCK_K: tl.constexpr, HEAD_SIZE: tl.constexpr, BLOCK_D: tl.constexpr):
    """dbias = ds, summed over the batch rows and heads that share the bias."""
    T, S, offset = sizes
    queries = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    keys = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    own_batch, own_head = (tl.program_id(2) // bias_heads).to(tl.int64), (tl.program_id(2) % bias_heads).to(tl.int64)
    total = tl.zeros((BLOCK_Q, BLOCK_K), dtype=tl.float32)
    for shared in range(0, B // bias_batch * (H // bias_heads)):
        batch = own_batch + shared // (H // bias_heads)     # one of both is 0: what is shared starts there
        head = own_head + shared % (H // bias_heads)
        start = tl.maximum(tl.load(limits_ptr + batch * 2), 0)
        end = tl.minimum(tl.load(limits_ptr + batch * 2 + 1), S)
        row = (batch * H + head) * T
        q_head = q_ptr + batch * strides[0][0] + head * strides[0][2]
        k_head = k_ptr + batch * strides[1][0] + head // group * strides[1][2]
        v_head = v_ptr + batch * strides[2][0] + head // group * strides[2][2]
        dout_head = dout_ptr + batch * strides[3][0] + head * strides[3][2]
        q = load_rows(q_head, queries, strides[0], T, HEAD_SIZE, BLOCK_D, True)
        k = load_rows(k_head, keys, strides[1], S, HEAD_SIZE, BLOCK_D, True)
        v = load_rows(v_head, keys, strides[2], S, HEAD_SIZE, BLOCK_D, True)
        dout = load_rows(dout_head, queries, strides[3], T, HEAD_SIZE, BLOCK_D, True)
        lse = tl.load(lse_ptr + row + queries, mask=queries < T, other=float("inf"))
        delta = tl.load(delta_ptr + row + queries, mask=queries < T, other=0.0)
        bias_head = bias_ptr + batch * strides[4][0] + head * strides[4][1]
        r = survivors_of(rng_ptr, row, queries, tl.program_id(1) * BLOCK_K, S, numbers, BLOCK_K)
        _, ds = probabilities_and_ds(q, k, dout, v, lse[:, None], delta[:, None], r, queries[:, None], keys[None, :],
                                      start, end, bias_head, sizes, strides[4], numbers[0], True)
        total += ds
    places = dbias_ptr + (tl.program_id(2).to(tl.int64) * T + queries)[:, None] * S + keys[None, :]
    tl.store(places, total, mask=(queries < T)[:, None] & (keys < S)[None, :])


def backward(dout, dq, dk, dv, saved):
    """Fill dq, dk and dv (strided like q, k and v); return dbias, or None where there was no bias."""
    q, k, v, bias, limits, rng, out, lse, group, sizes, numbers, scale = saved
    (B, T, H, D), (S, key_heads) = q.shape, k.shape[1:3]
    dout = dout if dout.stride(-1) == 1 else runtime.contiguous(dout)
    dbias = None if bias is None else runtime.empty(bias.shape, torch.float32)
    if not q.numel() or not k.numel():
        for gradient in (dq, dk, dv) + (() if bias is None else (dbias,)):
            gradient.zero_()
        return dbias
    delta, tiles = runtime.empty(lse.shape), {"HEAD_SIZE": D, "BLOCK_D": block_d(D)}
    inputs = (q, k, v, dout, bias, limits, rng, lse, delta)
    delta_kernel[(triton.cdiv(T, 64), B * H)](out, dout, delta, T, H, out.stride()[:3], dout.stride()[:3], BLOCK_Q=64,
                                              **tiles)
    extra = extras(bias, rng)
    config = configs.lookup("attention_dq" + extra, q.dtype, D)
    attention_dq_kernel[(triton.cdiv(T, config["BLOCK_Q"]), B * H)](
        *inputs, dq, H, group, sizes, strides_of(q, k, v, dout, dq, bias=bias), numbers, scale, **tiles, **config)
    config = configs.lookup("attention_dkdv" + extra, q.dtype, D)
    attention_dkdv_kernel[(triton.cdiv(S, config["BLOCK_K"]), B * key_heads)](
        *inputs, dk, dv, H, group, sizes, strides_of(q, k, v, dout, dk, dv, bias=bias), numbers, scale,
        **tiles, **config)
    if bias is not None:
        config = configs.lookup("attention_dbias", q.dtype, D)
        grid = (triton.cdiv(T, config["BLOCK_Q"]), triton.cdiv(S, config["BLOCK_K"]), bias.shape[0] * bias.shape[1])
        attention_dbias_kernel[grid](*inputs, dbias, B, H, *bias.shape[:2], group, sizes,
                                     strides_of(q, k, v, dout, bias=bias), numbers, **tiles, **config)
    return dbias
