"""Attention without ever storing the T x S matrix of scores.

    s_ij = scale q_i . k_j + bias_ij,   p_ij = exp(s_ij) / sum_j' exp(s_ij'),   out_i = sum_j p_ij v_j

Twin: tinyllm/ops/attention.py. Sources: Vaswani et al. 2017, arXiv:1706.03762, eq. 1; for the blocks Dao et al. 2022,
arXiv:2205.14135, and Dao 2023, arXiv:2307.08691. The gradients are in attention_gradients.py, a single new token at the
end of a long text in attention_decode.py.

naive_attention_kernel holds the scores of a block of queries for all keys at once. attention_kernel meets the keys
block by block, and keeps three running values a query: the largest score so far m, the sum l of exp(s - m), and the
weighted sum of the v. When a block brings a larger m, what has been summed is scaled down by exp(m_old - m_new): the
online softmax of softmax.py. Of the softmax only lse = m + log l is saved, since exp(s - lse) is p again. Powers are of
2, not of e: the GPU has an instruction for those, and log2(e) is a factor of the scale.

    q_ptr (B, T, H, D), k_source and v_source (B, S, K, D): strides of (batch, token, head) given, D contiguous. The
                        packed (B, T, 3 H D) of self_attention is three such views; nothing is copied apart. Query head
                        h reads key head h // (H / K). TMA: k and v are descriptors, not pointers (see load_tile)
    bias_ptr            (B or 1, H or 1, T, S) or None; strides of (batch, head, query), 0 where it has size 1
    limits_ptr          (B, 2) int32: row b sees the keys start <= j < end
    rng_ptr             (2,) or None: dropout of the probabilities (random.py)
    out_ptr (B, T, H, D), lse_ptr (B, H, T) float32, in powers of 2
    offset              query i sees the keys j <= i + offset: S - T for a causal mask, S for none
    grid                (ceil(T / BLOCK_Q), B H): a block of queries of one head; the last first, as they see most keys
"""

import triton
import triton.language as tl

from . import attention_decode, attention_gradients, configs, runtime
from .attention_tiles import (
    LOG2E, block_d, extras, head_of, hide, limits, load_rows, load_tile, scores_of, sources, store_rows, strides_of,
    survivors_of, visible_keys,
)
from .dropout import keep_threshold
from .softmax import LOWEST


@triton.jit
def naive_attention_kernel(q_ptr, k_ptr, v_ptr, out_ptr, T, S, scale, BLOCK_Q: tl.constexpr, BLOCK_S: tl.constexpr,
                           HEAD_SIZE: tl.constexpr):
    """One head: q (T, D), k and v (S, D) row-major, no mask; BLOCK_S >= S. Grid (ceil(T / BLOCK_Q),)"""
    queries = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    keys = tl.arange(0, BLOCK_S)
    features = tl.arange(0, HEAD_SIZE)
    q = tl.load(q_ptr + queries[:, None] * HEAD_SIZE + features, mask=(queries < T)[:, None], other=0.0)
    k = tl.load(k_ptr + keys[:, None] * HEAD_SIZE + features, mask=(keys < S)[:, None], other=0.0)
    v = tl.load(v_ptr + keys[:, None] * HEAD_SIZE + features, mask=(keys < S)[:, None], other=0.0)
    s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale              # (BLOCK_Q, BLOCK_S)
    s = tl.where((keys < S)[None, :], s, float("-inf"))
    p = tl.exp(s - tl.max(s, axis=1)[:, None])
    p = p / tl.sum(p, axis=1)[:, None]
    out = tl.dot(p.to(v.dtype), v, input_precision="ieee")                  # (BLOCK_Q, D)
    tl.store(out_ptr + queries[:, None] * HEAD_SIZE + features, out, mask=(queries < T)[:, None])


@triton.jit
def attend(q, m, l, total, first_query, start, middle, end, k_source, v_source, bias_ptr, rng_ptr, batch, key_head, row,
           sizes, strides, numbers, BLOCK_K: tl.constexpr, HEAD_SIZE: tl.constexpr, BLOCK_D: tl.constexpr,
           TMA: tl.constexpr):
    """Meet the keys from `start` up to `end`: the running m, l and total of the queries."""
    queries = first_query + tl.arange(0, q.shape[0])
    scale, later = numbers[0], 1.0
    if bias_ptr is None and q.dtype != tl.float32:
        scale, later = 1.0, numbers[0]      # as it is positive, it can wait: s scale - m is one instruction
    for key in range(start // BLOCK_K * BLOCK_K, end, BLOCK_K):
        keys = key + tl.arange(0, BLOCK_K)
        k = load_tile(k_source, strides[1], batch, key_head, key, sizes[1], BLOCK_K, HEAD_SIZE, BLOCK_D, TMA)
        s = scores_of(q, k, queries[:, None], keys[None, :], start, end, bias_ptr, sizes, strides[4], scale, False)
        if (key < start) | (key + BLOCK_K > middle):
            s = hide(s, queries[:, None], keys[None, :], start, end, sizes[2], float("-inf"))
        m_new = tl.maximum(m, tl.max(s, axis=1) * later)
        p = tl.exp2(s * later - m_new[:, None])                                                 # (BLOCK_Q, BLOCK_K)
        shrink = tl.exp2(m - m_new)
        l = l * shrink + tl.sum(p, axis=1)
        p *= survivors_of(rng_ptr, row, queries, key, sizes[1], numbers, BLOCK_K)
        v = load_tile(v_source, strides[2], batch, key_head, key, sizes[1], BLOCK_K, HEAD_SIZE, BLOCK_D, TMA)
        total = tl.dot(p.to(v.dtype), v, total * shrink[:, None], input_precision="ieee")
        m = m_new
    return m, l, total


@triton.jit
def attention_kernel(q_ptr, k_source, v_source, bias_ptr, limits_ptr, rng_ptr, out_ptr, lse_ptr, H, group, sizes,
                     strides, numbers, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, HEAD_SIZE: tl.constexpr,
                     BLOCK_D: tl.constexpr, TMA: tl.constexpr):
    T, S, offset = sizes
    batch, head = tl.program_id(1) // H, tl.program_id(1) % H
    first_query = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_Q
    queries = first_query + tl.arange(0, BLOCK_Q)
    row = tl.program_id(1).to(tl.int64) * T
    if bias_ptr is not None:
        bias_ptr += batch.to(tl.int64) * strides[4][0] + head.to(tl.int64) * strides[4][1]

    q = load_rows(head_of(q_ptr, strides[0], batch, head), queries, strides[0], T, HEAD_SIZE, BLOCK_D, True)
    m = tl.zeros((BLOCK_Q,), dtype=tl.float32) + LOWEST
    l = tl.zeros((BLOCK_Q,), dtype=tl.float32)
    total = tl.zeros((BLOCK_Q, BLOCK_D), dtype=tl.float32)
    start, middle, end = visible_keys(limits_ptr, batch, first_query, BLOCK_Q, S, offset)
    m, l, total = attend(q, m, l, total, first_query, start, middle, end, k_source, v_source, bias_ptr, rng_ptr, batch,
                         head // group, row, sizes, strides, numbers, BLOCK_K, HEAD_SIZE, BLOCK_D, TMA)

    l = tl.where(l == 0.0, 1.0, l)      # no visible key at all: out is 0, and lse anything finite
    store_rows(head_of(out_ptr, strides[3], batch, head), queries, strides[3], T, HEAD_SIZE, BLOCK_D,
               total * (1.0 / l)[:, None])
    tl.store(lse_ptr + row + queries, m + tl.log2(l), mask=queries < T)


def attention_forward(q, k, v, bias=None, key_start=None, key_end=None, rng=None, *,
                      causal=False, scale=None, dropout=0.0, site=0):
    """out = softmax(scale q k^T + bias) v: q (B, T, H, D), k and v (B, S, K, D) -> (out (B, T, H, D), saved).

    K divides H. bias (B or 1, H or 1, T, S) or None. key_start, key_end (B,) integers or None: row b sees the keys
    start <= j < end only. causal: query i sees keys j <= i + S - T. A query that sees nothing gives zeros.

    Raises NotImplementedError for heads larger than 128.
    """
    q, k, v, bias = (x if x is None or x.stride(-1) == 1 else runtime.contiguous(x) for x in (q, k, v, bias))
    out = runtime.empty(q.shape, q.dtype)
    saved = attend_to(q, k, v, out, bias, limits(key_start, key_end, q.shape[0], k.shape[1]), rng,
                      causal, scale, dropout, site)
    return out, saved


def attention_backward(dout, saved):
    """dout (B, T, H, D) -> (dq, dk, dv, dbias, None, None, None); probabilities are computed again from q, k, lse."""
    q, k, v, bias, *_ = saved
    dq, dk, dv = (runtime.empty(x.shape, x.dtype) for x in (q, k, v))
    dbias = attention_gradients.backward(dout, dq, dk, dv, saved)
    return dq, dk, dv, dbias, None, None, None


def self_attention_forward(qkv, key_start=None, key_end=None, rng=None, *,
                           n_head, causal=True, scale=None, dropout=0.0, site=0):
    """attention_forward with q, k, v side by side in one array: qkv (B, T, 3 C) -> (out (B, T, C), saved)."""
    qkv = runtime.contiguous(qkv)
    B, T, C3 = qkv.shape
    out = runtime.empty((B, T, C3 // 3), qkv.dtype)
    heads = out.view(B, T, n_head, C3 // 3 // n_head)
    saved = attend_to(*unpack(qkv, n_head), heads, None, limits(key_start, key_end, B, T), rng, causal, scale, dropout,
                      site)
    return out, (n_head, saved)


def self_attention_backward(dout, saved):
    """dout (B, T, C) -> (dqkv (B, T, 3 C), None, None, None)."""
    n_head, saved = saved
    B, T, C = dout.shape
    dqkv = runtime.empty((B, T, 3 * C), dout.dtype)
    attention_gradients.backward(dout.unflatten(2, (n_head, C // n_head)), *unpack(dqkv, n_head), saved)
    return dqkv, None, None, None


def unpack(qkv, n_head):
    """Three (B, T, H, D) views of a packed (B, T, 3 C) array."""
    return qkv.unflatten(2, (3, n_head, qkv.shape[2] // (3 * n_head))).unbind(2)


def attend_to(q, k, v, out, bias, limits, rng, causal, scale, dropout, site):
    """Fill `out`; return what the backward pass needs."""
    (B, T, H, D), S = q.shape, k.shape[1]
    if D > 128:
        raise NotImplementedError(f"attention: a head of {D} features does not fit the kernel's registers: "
                                  "choose n_head so that a head has at most 128, or use the numpy backend")
    lse = runtime.empty((B, H, T))
    group, offset = H // max(1, k.shape[2]), S - T if causal else S
    scale = D ** -0.5 if scale is None else scale
    rng = rng if dropout else None
    sizes, numbers = (T, S, offset), (scale * LOG2E.value, site, keep_threshold(dropout), 1 / (1 - dropout))
    saved = (q, k, v, bias, limits, rng, out, lse, group, sizes, numbers, scale)
    if not out.numel():
        return saved
    if bias is None and rng is None and T * group <= attention_decode.ROWS and S >= attention_decode.SHORTEST:
        attention_decode.forward(q, k, v, *limits.unbind(1), out, lse, group, sizes, numbers)
        return saved
    if bias is None and scale <= 0:     # the kernel may multiply scores by a positive scale only, or else with a bias
        bias = runtime.empty((S,), q.dtype).zero_().expand(1, 1, T, S)
    kv, config = sources(configs.lookup("attention" + extras(bias, rng), q.dtype, D), "BLOCK_K", k, v)
    attention_kernel[(triton.cdiv(T, config["BLOCK_Q"]), B * H)](
        q, *kv, bias, limits, rng, out, lse, H, group, sizes, strides_of(q, k, v, out, bias=bias), numbers,
        HEAD_SIZE=D, BLOCK_D=block_d(D), **config)
    return saved
