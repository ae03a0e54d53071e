"""The gradients of attention, again without a T x S matrix in memory.

With p the probabilities and r dropout's factors (0 or 1 / (1 - dropout); 1 without), out_i = sum_j p_ij r_ij v_j gives

    dp_ij = r_ij dout_i . v_j          ds_ij = p_ij (dp_ij - delta_i),  delta_i = sum_j p_ij dp_ij = dout_i . out_i
    dq_i = scale sum_j ds_ij k_j       dk_j = scale sum_i ds_ij q_i       dv_j = sum_i p_ij r_ij dout_i

(the ds of softmax.py, see tinyllm/ops/attention.py; Dao 2023, arXiv:2307.08691, algorithm 2). dq sums over keys, dk and
dv over queries, so there is one kernel for each: every number has one writer, no atomics, the same result each time.
The scores are computed in each of them; p = 2^(s - lse) needs no maximum any more.

*One pass* would spare two of seven products, as q k^T and dout v^T are computed twice: the loop of dk and dv could add
its part of dq to a sum in memory. On an H100 (32 rows of 1024 tokens, 12 heads of 64) it took 616 us instead of 510,
both measured with an earlier way to load the tiles of q (attention_tiles.py).

    as in attention.py, and
    dout_source, dq_ptr (B, T, H, D), dk_ptr, dv_ptr (B, S, K, D): with strides, like q, k and v
    delta_ptr        (B, H, T) float32; the dq kernel, which runs first, computes it
    dbias_ptr        of bias's shape, float32, row-major
    grids            dq (ceil(T / BLOCK_Q), B H); dkdv (ceil(S / BLOCK_K), B K);
                     dbias (ceil(T / BLOCK_Q), ceil(S / BLOCK_K), batches and heads of the bias)
"""

import functools

import torch
import triton
import triton.language as tl

from . import configs, runtime
from .attention_tiles import (
    block_d, extras, head_of, hide, load_numbers, load_rows, load_tile, scores_of, sources, store_rows, strides_of,
    survivors_of, visible_keys,
)


@triton.jit
def probabilities_and_ds(a, b, da, db, lse, delta, r, queries, keys, start, end, some_hidden, bias_ptr, sizes,
                         bias_strides, scale):
    """(p r, ds) of a tile. a = q, b = k, da = dout, db = v; for transposed scores (keys, queries) the other way round.

    The sums over queries, dk and dv, are products of transposed tiles; computed transposed at once, they need not be
    turned round by way of shared memory.
    """
    log_p = scores_of(a, b, queries, keys, start, end, bias_ptr, sizes, bias_strides, scale, False) - lse
    if some_hidden:
        log_p = hide(log_p, queries, keys, start, end, sizes[2], float("-inf"))
    p = tl.exp2(log_p)
    dp = tl.dot(da, tl.trans(db), input_precision="ieee") * r
    return p * r, p * (dp - delta)


@triton.jit
def attention_dq_kernel(q_ptr, k_source, v_source, dout_ptr, out_ptr, lse_ptr, delta_ptr, bias_ptr, limits_ptr, rng_ptr,
                        dq_ptr, H, group, sizes, strides, numbers, scale, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
                        HEAD_SIZE: tl.constexpr, BLOCK_D: tl.constexpr, TMA: tl.constexpr):
    T, S, offset = sizes
    batch, head = tl.program_id(1) // H, tl.program_id(1) % H
    first_query = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_Q
    queries = first_query + tl.arange(0, BLOCK_Q)
    row = tl.program_id(1).to(tl.int64) * T
    if bias_ptr is not None:
        bias_ptr += batch.to(tl.int64) * strides[6][0] + head.to(tl.int64) * strides[6][1]
    q = load_rows(head_of(q_ptr, strides[0], batch, head), queries, strides[0], T, HEAD_SIZE, BLOCK_D, True)
    dout = load_rows(head_of(dout_ptr, strides[3], batch, head), queries, strides[3], T, HEAD_SIZE, BLOCK_D, True)
    out = load_rows(head_of(out_ptr, strides[4], batch, head), queries, strides[4], T, HEAD_SIZE, BLOCK_D, True)
    delta = tl.sum(out.to(tl.float32) * dout.to(tl.float32), axis=1)
    tl.store(delta_ptr + row + queries, delta, mask=queries < T)
    lse = tl.load(lse_ptr + row + queries, mask=queries < T, other=0.0)
    start, middle, end = visible_keys(limits_ptr, batch, first_query, BLOCK_Q, S, offset)
    dq = tl.zeros((BLOCK_Q, BLOCK_D), dtype=tl.float32)
    for key in range(start // BLOCK_K * BLOCK_K, end, BLOCK_K):
        keys = key + tl.arange(0, BLOCK_K)
        k = load_tile(k_source, strides[1], batch, head // group, key, S, BLOCK_K, HEAD_SIZE, BLOCK_D, TMA)
        v = load_tile(v_source, strides[2], batch, head // group, key, S, BLOCK_K, HEAD_SIZE, BLOCK_D, TMA)
        r = survivors_of(rng_ptr, row, queries, key, S, numbers, BLOCK_K)
        some_hidden = (key < start) | (key + BLOCK_K > middle)
        _, ds = probabilities_and_ds(q, k, dout, v, lse[:, None], delta[:, None], r, queries[:, None], keys[None, :],
                                      start, end, some_hidden, bias_ptr, sizes, strides[6], numbers[0])
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision="ieee")
    store_rows(head_of(dq_ptr, strides[5], batch, head), queries, strides[5], T, HEAD_SIZE, BLOCK_D, dq * scale)


@triton.jit
def gather_dkdv(dk, dv, k, v, first, middle, first_key, start, end, q_source, dout_source, lse_source, delta_source,
                bias_ptr, rng_ptr, batch, head, H, sizes, strides, numbers, BLOCK_Q: tl.constexpr,
                HEAD_SIZE: tl.constexpr, BLOCK_D: tl.constexpr, TMA: tl.constexpr):
    """Meet a head's queries from `first` on, and add their parts of dk and dv."""
    T, S, offset = sizes
    keys = first_key + tl.arange(0, k.shape[0])
    row = (batch.to(tl.int64) * H + head) * T
    for query in range(first, T, BLOCK_Q):
        queries = query + tl.arange(0, BLOCK_Q)
        q = load_tile(q_source, strides[0], batch, head, query, T, BLOCK_Q, HEAD_SIZE, BLOCK_D, TMA)
        dout = load_tile(dout_source, strides[3], batch, head, query, T, BLOCK_Q, HEAD_SIZE, BLOCK_D, TMA)
        # where rows hang over, q, dout, lse and delta are 0, and so is all that they add
        lse = load_numbers(lse_source, batch, head, H, query, T, BLOCK_Q, TMA)
        delta = load_numbers(delta_source, batch, head, H, query, T, BLOCK_Q, TMA)
        r = survivors_of(rng_ptr, row, queries, first_key, S, numbers, k.shape[0])
        if rng_ptr is not None:
            r = tl.trans(r)
        dropped, ds = probabilities_and_ds(k, q, v, dout, lse[None, :], delta[None, :], r, queries[None, :],
                                           keys[:, None], start, end, query < middle, bias_ptr, sizes, strides[6],
                                           numbers[0])
        dv = tl.dot(dropped.to(dout.dtype), dout, dv, input_precision="ieee")       # (BLOCK_K, BLOCK_D)
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision="ieee")
    return dk, dv


@triton.jit
def attention_dkdv_kernel(q_source, k_ptr, v_ptr, dout_source, lse_source, delta_source, bias_ptr, limits_ptr,
                          rng_ptr, dk_ptr, dv_ptr, H, group, sizes, strides, numbers, scale, BLOCK_Q: tl.constexpr,
                          BLOCK_K: tl.constexpr, HEAD_SIZE: tl.constexpr, BLOCK_D: tl.constexpr, TMA: tl.constexpr):
    T, S, offset = sizes
    key_heads = H // group
    batch, key_head = tl.program_id(1) // key_heads, tl.program_id(1) % key_heads
    first_key = tl.program_id(0) * BLOCK_K
    keys = first_key + tl.arange(0, BLOCK_K)
    start = tl.maximum(tl.load(limits_ptr + batch * 2), 0)
    end = tl.minimum(tl.load(limits_ptr + batch * 2 + 1), S)
    # the first query that sees the first key, and the first that sees them all; padding hides some from everybody
    first = tl.maximum(first_key - offset, 0) // BLOCK_Q * BLOCK_Q
    middle = tl.maximum(first_key + BLOCK_K - 1 - offset, 0)
    middle = tl.where((first_key >= start) & (first_key + BLOCK_K <= end), middle, T)
    k = load_rows(head_of(k_ptr, strides[1], batch, key_head), keys, strides[1], S, HEAD_SIZE, BLOCK_D, True)
    v = load_rows(head_of(v_ptr, strides[2], batch, key_head), keys, strides[2], S, HEAD_SIZE, BLOCK_D, True)
    dk = tl.zeros((BLOCK_K, BLOCK_D), dtype=tl.float32)
    dv = tl.zeros((BLOCK_K, BLOCK_D), dtype=tl.float32)
    for member in range(0, group):      # all query heads that read this key head
        head = key_head * group + member
        bias_head = bias_ptr
        if bias_ptr is not None:
            bias_head += batch.to(tl.int64) * strides[6][0] + head.to(tl.int64) * strides[6][1]
        dk, dv = gather_dkdv(dk, dv, k, v, first, middle, first_key, start, end, q_source, dout_source, lse_source,
                             delta_source, bias_head, rng_ptr, batch, head, H, sizes, strides, numbers, BLOCK_Q,
                             HEAD_SIZE, BLOCK_D, TMA)
    store_rows(head_of(dk_ptr, strides[4], batch, key_head), keys, strides[4], S, HEAD_SIZE, BLOCK_D, dk * scale)
    store_rows(head_of(dv_ptr, strides[5], batch, key_head), keys, strides[5], S, HEAD_SIZE, BLOCK_D, dv)


@triton.jit
def attention_dbias_kernel(q_ptr, k_ptr, v_ptr, dout_ptr, lse_ptr, delta_ptr, bias_ptr, limits_ptr, rng_ptr, dbias_ptr,
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
        lse = tl.load(lse_ptr + row + queries, mask=queries < T, other=0.0)
        delta = tl.load(delta_ptr + row + queries, mask=queries < T, other=0.0)
        bias_head = bias_ptr + batch * strides[4][0] + head * strides[4][1]
        r = survivors_of(rng_ptr, row, queries, tl.program_id(1) * BLOCK_K, S, numbers, BLOCK_K)
        _, ds = probabilities_and_ds(q, k, dout, v, lse[:, None], delta[:, None], r, queries[:, None], keys[None, :],
                                      start, end, True, bias_head, sizes, strides[4], numbers[0])
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
    delta, extra, tiles = runtime.empty(lse.shape), extras(bias, rng), {"HEAD_SIZE": D, "BLOCK_D": block_d(D)}
    others, strides = (bias, limits, rng), functools.partial(strides_of, q, k, v, dout, bias=bias)

    kv, config = sources(configs.lookup("attention_dq" + extra, q.dtype, D), "BLOCK_K", k, v)
    attention_dq_kernel[(triton.cdiv(T, config["BLOCK_Q"]), B * H)](
        q, *kv, dout, out, lse, delta, *others, dq, H, group, sizes, strides(out, dq), numbers, scale, **tiles,
        **config)
    read, config = sources(configs.lookup("attention_dkdv" + extra, q.dtype, D), "BLOCK_Q", q, dout, lse, delta)
    attention_dkdv_kernel[(triton.cdiv(S, config["BLOCK_K"]), B * key_heads)](
        read[0], k, v, *read[1:], *others, dk, dv, H, group, sizes, strides(dk, dv), numbers, scale, **tiles, **config)
    if bias is not None:
        config = configs.lookup("attention_dbias", q.dtype, D)
        grid = (triton.cdiv(T, config["BLOCK_Q"]), triton.cdiv(S, config["BLOCK_K"]), bias.shape[0] * bias.shape[1])
        attention_dbias_kernel[grid](q, k, v, dout, lse, delta, *others, dbias, B, H, *bias.shape[:2], group, sizes,
                                     strides(), numbers, **tiles, **config)
    return dbias
