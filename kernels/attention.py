"""Causal self-attention on packed q, k, v, without ever storing the T x T matrix of scores.

    s_ij = scale q_i . k_j,   p_ij = exp(s_ij) / sum_j' exp(s_ij'),   out_i = sum_j p_ij v_j

Twin: tinyllm/ops/attention.py. Sources: Vaswani et al. 2017, arXiv:1706.03762, eq. 1; for the blocks Dao et al. 2022,
arXiv:2205.14135, and Dao 2023, arXiv:2307.08691.

Forward: a program owns BLOCK_Q queries of one head and meets the keys block by block. It keeps three running values a
query: the largest score so far m, the sum l of exp(s - m), and the weighted sum of the v. When a block brings a larger
m, what has been summed is scaled down by exp(m_old - m_new): the *online softmax* (Milakov & Gimelshein 2018,
arXiv:1805.02867). Of the softmax only lse = m + log l is saved, since exp(s - lse) is p again.

Backward: with dp_ij = dout_i . v_j the softmax gives ds_ij = p_ij (dp_ij - delta_i), where
delta_i = sum_j p_ij dp_ij = dout_i . out_i; then

    dq_i = scale sum_j ds_ij k_j        dk_j = scale sum_i ds_ij q_i        dv_j = sum_i p_ij dout_i

dq sums over keys, dk and dv over queries, so there is one kernel for each: every number has one writer, no atomics.

    q_ptr, k_ptr, v_ptr, dq_ptr, dk_ptr, dv_ptr    (B, T, H, D) inside a packed (B, T, 3 H D): a token is stride_token
                                                   from the next, a sequence stride_batch; nothing is copied apart
    out_ptr, dout_ptr                              (B, T, H, D)
    lse_ptr, delta_ptr                             (B, H, T)
    key_start_ptr, key_end_ptr                     (B,) integers or None: row b attends to keys in [start, end) only
    grid                                           (B H, ceil(T / block)): a head of a sequence, a block of its tokens
"""

import math

import triton
import triton.language as tl

from . import runtime

# Stands in for minus infinity in a running maximum: -inf - -inf would be NaN.
LOWEST = tl.constexpr(-1e30)


@triton.jit
def load_rows(ptr, rows, columns, stride, n_rows, n_columns):
    """A tile of a matrix whose rows lie `stride` apart; zero where it hangs over."""
    no_overhang = (rows < n_rows)[:, None] & (columns < n_columns)[None, :]
    return tl.load(ptr + rows[:, None].to(tl.int64) * stride + columns[None, :], mask=no_overhang, other=0.0)


@triton.jit
def store_rows(ptr, rows, columns, stride, n_rows, n_columns, tile):
    no_overhang = (rows < n_rows)[:, None] & (columns < n_columns)[None, :]
    tl.store(ptr + rows[:, None].to(tl.int64) * stride + columns[None, :], tile, mask=no_overhang)


@triton.jit
def key_range(key_start_ptr, key_end_ptr, batch, n_tokens):
    """The keys [start, end) that exist for this sequence."""
    start = 0
    end = n_tokens
    if key_start_ptr is not None:
        start = tl.maximum(tl.load(key_start_ptr + batch).to(tl.int32), 0)
    if key_end_ptr is not None:
        end = tl.minimum(tl.load(key_end_ptr + batch).to(tl.int32), n_tokens)
    return start, end


@triton.jit
def legal_pairs(queries, keys, start, end, n_tokens, CAUSAL: tl.constexpr):
    """Which query may look at which key."""
    no_overhang = (queries < n_tokens)[:, None]
    no_padding = ((keys >= start) & (keys < end))[None, :]
    legal = no_overhang & no_padding
    if CAUSAL:
        no_future = keys[None, :] <= queries[:, None]
        legal = legal & no_future
    return legal


@triton.jit
def attention_forward_kernel(q_ptr, k_ptr, v_ptr, key_start_ptr, key_end_ptr, out_ptr, lse_ptr,
                             n_tokens, n_head, head_size, stride_batch, stride_token, scale, CAUSAL: tl.constexpr,
                             BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr):
    batch_head = tl.program_id(0)
    head = batch_head % n_head
    batch = (batch_head // n_head).to(tl.int64)
    queries = tl.program_id(1) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    columns = tl.arange(0, BLOCK_D)
    packed = batch * stride_batch + head * head_size
    start, end = key_range(key_start_ptr, key_end_ptr, batch, n_tokens)
    if CAUSAL:
        end = tl.minimum(end, (tl.program_id(1) + 1) * BLOCK_Q)

    q = load_rows(q_ptr + packed, queries, columns, stride_token, n_tokens, head_size)  # (BLOCK_Q, BLOCK_D)
    m = tl.zeros((BLOCK_Q,), dtype=tl.float32) + LOWEST
    l = tl.zeros((BLOCK_Q,), dtype=tl.float32)
    total = tl.zeros((BLOCK_Q, BLOCK_D), dtype=tl.float32)
    for first in range(start, end, BLOCK_K):
        keys = first + tl.arange(0, BLOCK_K)
        k = load_rows(k_ptr + packed, keys, columns, stride_token, n_tokens, head_size)
        v = load_rows(v_ptr + packed, keys, columns, stride_token, n_tokens, head_size)
        legal = legal_pairs(queries, keys, start, end, n_tokens, CAUSAL)
        s = tl.where(legal, tl.dot(q, tl.trans(k), input_precision="ieee") * scale, LOWEST)  # (BLOCK_Q, BLOCK_K)
        m_new = tl.maximum(m, tl.max(s, axis=1))
        shrink = tl.exp(m - m_new)
        # `where`, because in a row without any legal key so far s - m_new is 0, not minus infinity
        p = tl.where(legal, tl.exp(s - m_new[:, None]), 0.0)
        l = l * shrink + tl.sum(p, axis=1)
        total = tl.dot(p, v, total * shrink[:, None], input_precision="ieee")
        m = m_new

    l = tl.where(l == 0.0, 1.0, l)  # no legal key at all: out is 0, and lse anything finite
    out = out_ptr + (batch * n_tokens * n_head + head) * head_size
    store_rows(out, queries, columns, n_head * head_size, n_tokens, head_size, total / l[:, None])
    tl.store(lse_ptr + batch_head.to(tl.int64) * n_tokens + queries, m + tl.log(l), mask=queries < n_tokens)


@triton.jit
def attention_dq_kernel(q_ptr, k_ptr, v_ptr, key_start_ptr, key_end_ptr, out_ptr, dout_ptr, lse_ptr, delta_ptr, dq_ptr,
                        n_tokens, n_head, head_size, stride_batch, stride_token, scale, CAUSAL: tl.constexpr,
                        BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr):
    """dq of one block of queries, and their delta, which attention_dkdv_kernel reads in the next launch."""
    batch_head = tl.program_id(0)
    head = batch_head % n_head
    batch = (batch_head // n_head).to(tl.int64)
    queries = tl.program_id(1) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    columns = tl.arange(0, BLOCK_D)
    packed = batch * stride_batch + head * head_size
    flat = (batch * n_tokens * n_head + head) * head_size
    start, end = key_range(key_start_ptr, key_end_ptr, batch, n_tokens)
    if CAUSAL:
        end = tl.minimum(end, (tl.program_id(1) + 1) * BLOCK_Q)

    q = load_rows(q_ptr + packed, queries, columns, stride_token, n_tokens, head_size)  # (BLOCK_Q, BLOCK_D)
    dout = load_rows(dout_ptr + flat, queries, columns, n_head * head_size, n_tokens, head_size)
    out = load_rows(out_ptr + flat, queries, columns, n_head * head_size, n_tokens, head_size)
    delta = tl.sum(dout * out, axis=1)
    no_overhang = queries < n_tokens
    tl.store(delta_ptr + batch_head.to(tl.int64) * n_tokens + queries, delta, mask=no_overhang)
    lse = tl.load(lse_ptr + batch_head.to(tl.int64) * n_tokens + queries, mask=no_overhang, other=0.0)

    dq = tl.zeros((BLOCK_Q, BLOCK_D), dtype=tl.float32)
    for first in range(start, end, BLOCK_K):
        keys = first + tl.arange(0, BLOCK_K)
        k = load_rows(k_ptr + packed, keys, columns, stride_token, n_tokens, head_size)
        v = load_rows(v_ptr + packed, keys, columns, stride_token, n_tokens, head_size)
        legal = legal_pairs(queries, keys, start, end, n_tokens, CAUSAL)
        s = tl.where(legal, tl.dot(q, tl.trans(k), input_precision="ieee") * scale, LOWEST)  # (BLOCK_Q, BLOCK_K)
        p = tl.where(legal, tl.exp(s - lse[:, None]), 0.0)
        dp = tl.dot(dout, tl.trans(v), input_precision="ieee")
        ds = p * (dp - delta[:, None])
        dq = tl.dot(ds, k, dq, input_precision="ieee")
    store_rows(dq_ptr + packed, queries, columns, stride_token, n_tokens, head_size, dq * scale)


@triton.jit
def attention_dkdv_kernel(q_ptr, k_ptr, v_ptr, key_start_ptr, key_end_ptr, dout_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr,
                          n_tokens, n_head, head_size, stride_batch, stride_token, scale, CAUSAL: tl.constexpr,
                          BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr):
    """dk and dv of one block of keys. Scores stand transposed, (BLOCK_K, BLOCK_Q): a key's sums run along its row."""
    batch_head = tl.program_id(0)
    head = batch_head % n_head
    batch = (batch_head // n_head).to(tl.int64)
    keys = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    columns = tl.arange(0, BLOCK_D)
    packed = batch * stride_batch + head * head_size
    flat = (batch * n_tokens * n_head + head) * head_size
    start, end = key_range(key_start_ptr, key_end_ptr, batch, n_tokens)
    first_query = 0
    if CAUSAL:
        first_query = tl.program_id(1) * BLOCK_K  # earlier queries cannot look at these keys

    k = load_rows(k_ptr + packed, keys, columns, stride_token, n_tokens, head_size)  # (BLOCK_K, BLOCK_D)
    v = load_rows(v_ptr + packed, keys, columns, stride_token, n_tokens, head_size)
    dk = tl.zeros((BLOCK_K, BLOCK_D), dtype=tl.float32)
    dv = tl.zeros((BLOCK_K, BLOCK_D), dtype=tl.float32)
    for first in range(first_query, n_tokens, BLOCK_Q):
        queries = first + tl.arange(0, BLOCK_Q)
        q = load_rows(q_ptr + packed, queries, columns, stride_token, n_tokens, head_size)
        dout = load_rows(dout_ptr + flat, queries, columns, n_head * head_size, n_tokens, head_size)
        lse = tl.load(lse_ptr + batch_head.to(tl.int64) * n_tokens + queries, mask=queries < n_tokens, other=0.0)
        delta = tl.load(delta_ptr + batch_head.to(tl.int64) * n_tokens + queries, mask=queries < n_tokens, other=0.0)
        legal = tl.trans(legal_pairs(queries, keys, start, end, n_tokens, CAUSAL))
        s = tl.where(legal, tl.dot(k, tl.trans(q), input_precision="ieee") * scale, LOWEST)  # (BLOCK_K, BLOCK_Q)
        p = tl.where(legal, tl.exp(s - lse[None, :]), 0.0)
        dv = tl.dot(p, dout, dv, input_precision="ieee")
        dp = tl.dot(v, tl.trans(dout), input_precision="ieee")
        ds = p * (dp - delta[None, :])
        dk = tl.dot(ds, q, dk, input_precision="ieee")
    store_rows(dk_ptr + packed, keys, columns, stride_token, n_tokens, head_size, dk * scale)
    store_rows(dv_ptr + packed, keys, columns, stride_token, n_tokens, head_size, dv)


def self_attention_forward(qkv, key_start=None, key_end=None, rng=None, *,
                           n_head, causal=True, scale=None, dropout=0.0, site=0):
    """Multi-head self-attention: qkv (B, T, 3 C), packed q | k | v, heads of D = C / n_head -> (out (B, T, C), saved).

    key_start, key_end (B,) integers or None: row b attends to keys [start, end) only; None is 0 and T.
    A query without any legal key gives zeros, and passes zeros back. scale: None is 1 / sqrt(D).

    Raises NotImplementedError for dropout, and for heads larger than 128.
    """
    if dropout > 0:
        raise NotImplementedError("attention dropout has no kernel yet: pass dropout=0.0, or use the numpy backend")
    batch, n_tokens, packed = qkv.shape
    channels = packed // 3
    head_size = channels // n_head
    if head_size > 128:
        raise NotImplementedError(f"a head of {head_size} channels does not fit the kernel's registers: "
                                  "choose n_head so that a head has at most 128")
    qkv = runtime.contiguous(qkv)
    limits = [None if limit is None else runtime.contiguous(limit) for limit in (key_start, key_end)]
    scale = 1 / math.sqrt(head_size) if scale is None else float(scale)
    out = runtime.empty((batch, n_tokens, channels), qkv.dtype)
    lse = runtime.empty((batch, n_head, n_tokens))
    sizes = (n_tokens, n_head, head_size, n_tokens * packed, packed, scale, causal)
    blocks = _blocks(head_size)
    grid = (batch * n_head, triton.cdiv(n_tokens, blocks["BLOCK_Q"]))
    attention_forward_kernel[grid](*qkv.split(channels, dim=-1), *limits, out, lse, *sizes, **blocks)
    return out, (qkv, limits, out, lse, sizes)


def self_attention_backward(dout, saved):
    """dout (B, T, C) -> (dqkv (B, T, 3 C), None, None, None). The probabilities are computed again from q, k, lse."""
    qkv, limits, out, lse, sizes = saved
    batch, n_head, n_tokens = lse.shape
    channels = out.shape[-1]
    dout = runtime.contiguous(dout)
    dqkv = runtime.empty(qkv.shape, qkv.dtype)
    delta = runtime.empty(lse.shape)
    q, k, v = qkv.split(channels, dim=-1)
    dq, dk, dv = dqkv.split(channels, dim=-1)
    blocks = _blocks(channels // n_head)
    grid = (batch * n_head, triton.cdiv(n_tokens, blocks["BLOCK_Q"]))
    attention_dq_kernel[grid](q, k, v, *limits, out, dout, lse, delta, dq, *sizes, **blocks)
    grid = (batch * n_head, triton.cdiv(n_tokens, blocks["BLOCK_K"]))
    attention_dkdv_kernel[grid](q, k, v, *limits, dout, lse, delta, dk, dv, *sizes, **blocks)
    return dqkv, None, None, None


def _blocks(head_size):
    """Tiles that leave the registers room for float32 products without tensor cores; a dot wants 16 columns or more."""
    block_d = max(16, triton.next_power_of_2(head_size))
    block = 32 if block_d <= 64 else 16
    return {"BLOCK_Q": block, "BLOCK_K": block, "BLOCK_D": block_d, "num_warps": 8}
