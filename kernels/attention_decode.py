"""Attention for a few new tokens at the end of a long text, which is what generation does for each of them.

There is one block of queries, so attention.py would give each head to one program that walks along all keys alone, and
most of the GPU would sleep. Here the keys are split: each program meets its stretch of them, with a running m, l and
total as in attention.py, and writes these down; whoever comes last (last.py) merges the parts of each query,

    m = max over parts of m_s,   l = sum of l_s 2^(m_s - m),   out = sum of total_s 2^(m_s - m) / l

("flash-decoding", Dao et al. 2023; there in a second launch). All query heads that read one key head share the program,
so keys and values are read once; their queries are the rows of one tile.

A step of writing puts its new keys and values into the cache first. That needs no launch of its own: the program into
whose stretch they fall does it, before it reads. How many positions the cache holds stands in the GPU's memory, so that
a recorded step (graph.py) can be played back for the next token; programs behind the end write an empty part.

    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr     as in attention.py
    start_ptr, end_ptr     row b sees the keys from start[b] on (None: from 0), up to end[b]; any strides, also 0
    bias_ptr         (H, S) or None: added to the scores of a query at the last place; others find theirs further right
    new_k_ptr, new_v_ptr   (B, T, K, D) or None: what to put into the cache at end[b], which then ends T later
    partial_ptr      (B, K, parts, ROWS, D + 2) float32: total, m and l of each row; None if there is one part
    counter_ptr      (B, K) zeros, or None
    ROWS             query heads a key head times new tokens, rounded up; a tensor core takes no fewer than 16
    PARTS            the parts, rounded up
    grid             (parts, B K)
"""

import torch
import triton
import triton.language as tl

from . import configs, runtime
from .attention_tiles import LOG2E, block_d, load_rows, scores_of, strides_of
from .last import comes_last, counters
from .softmax import LOWEST

ROWS = 16           # query heads a key head times new tokens, up to which attention.py comes here
SHORTEST = 128      # keys from which on splitting pays


@triton.jit
def append(k_ptr, v_ptr, new_k_ptr, new_v_ptr, rows, T, end, first, last, strides, new_strides, HEAD_SIZE: tl.constexpr,
           BLOCK_D: tl.constexpr):
    """Put T new keys and values of a head behind the `end` that the cache holds: those between first and last."""
    features = tl.arange(0, BLOCK_D)
    new_k = load_rows(new_k_ptr, rows, new_strides[0], T, HEAD_SIZE, BLOCK_D, True)         # (ROWS, BLOCK_D)
    new_v = load_rows(new_v_ptr, rows, new_strides[1], T, HEAD_SIZE, BLOCK_D, True)
    places = (end + rows).to(tl.int64)
    mine = ((rows < T) & (places >= first) & (places < last))[:, None] & (features < HEAD_SIZE)[None, :]
    tl.store(k_ptr + places[:, None] * strides[1][1] + features[None, :], new_k, mask=mine)
    tl.store(v_ptr + places[:, None] * strides[2][1] + features[None, :], new_v, mask=mine)
    tl.debug_barrier()          # what some threads of this program wrote, others will read


@triton.jit
def attention_decode_kernel(q_ptr, k_ptr, v_ptr, start_ptr, end_ptr, bias_ptr, new_k_ptr, new_v_ptr, partial_ptr,
                            counter_ptr, out_ptr, lse_ptr, key_heads, group, sizes, strides, new_strides, limit_strides,
                            numbers, ROWS: tl.constexpr, PARTS: tl.constexpr, BLOCK_K: tl.constexpr,
                            HEAD_SIZE: tl.constexpr, BLOCK_D: tl.constexpr):
    T, S, offset = sizes
    batch, key_head = (tl.program_id(1) // key_heads).to(tl.int64), (tl.program_id(1) % key_heads).to(tl.int64)
    rows, features = tl.arange(0, ROWS), tl.arange(0, BLOCK_D)
    queries, heads, real = rows % T, key_head * group + rows // T, rows < T * group
    places = batch * strides[0][0] + queries * strides[0][1] + heads * strides[0][2]
    no_overhang = real[:, None] & (features < HEAD_SIZE)[None, :]
    q = tl.load(q_ptr + places[:, None] + features[None, :], mask=no_overhang, other=0.0)
    k_ptr += batch * strides[1][0] + key_head * strides[1][2]
    v_ptr += batch * strides[2][0] + key_head * strides[2][2]
    start = 0
    if start_ptr is not None:
        start = tl.maximum(tl.load(start_ptr + batch * limit_strides[0]).to(tl.int32), 0)
    end = tl.minimum(tl.load(end_ptr + batch * limit_strides[1]).to(tl.int32), S)
    stretch = tl.cdiv(tl.cdiv(S, tl.num_programs(0)), BLOCK_K) * BLOCK_K
    first = tl.program_id(0) * stretch
    if new_k_ptr is not None:
        new_k_ptr += batch * new_strides[0][0] + key_head * new_strides[0][2]
        new_v_ptr += batch * new_strides[1][0] + key_head * new_strides[1][2]
        append(k_ptr, v_ptr, new_k_ptr, new_v_ptr, rows, T, end, first, tl.minimum(first + stretch, S), strides,
               new_strides, HEAD_SIZE, BLOCK_D)
        offset, end = end, tl.minimum(end + T, S)
    sizes = (T, S, offset)
    m = tl.zeros((ROWS,), dtype=tl.float32) + LOWEST
    l = tl.zeros((ROWS,), dtype=tl.float32)
    total = tl.zeros((ROWS, BLOCK_D), dtype=tl.float32)
    for key in range(tl.maximum(first, start // BLOCK_K * BLOCK_K), tl.minimum(first + stretch, end), BLOCK_K):
        keys = key + tl.arange(0, BLOCK_K)
        k = load_rows(k_ptr, keys, strides[1], end, HEAD_SIZE, BLOCK_D, True)       # what lies behind may be NaN
        s = scores_of(q, k, queries[:, None], keys[None, :], start, end, None, sizes, strides[4], numbers[0], True)
        if bias_ptr is not None:
            distance = (queries + offset)[:, None] - keys[None, :]
            biases = bias_ptr + heads[:, None] * S + (S - 1) - distance
            s += tl.load(biases, mask=(distance >= 0) & real[:, None], other=0.0).to(tl.float32) * LOG2E
        m_new = tl.maximum(m, tl.max(s, axis=1))
        p = tl.exp2(s - m_new[:, None])
        shrink = tl.exp2(m - m_new)
        l = l * shrink + tl.sum(p, axis=1)
        v = load_rows(v_ptr, keys, strides[2], end, HEAD_SIZE, BLOCK_D, True)
        total = tl.dot(p.to(v.dtype), v, total * shrink[:, None], input_precision="ieee")
        m = m_new
    out_ptr += batch * strides[3][0]
    lse_ptr += batch * key_heads * group * T
    if PARTS == 1:
        l = tl.where(l == 0.0, 1.0, l)          # no visible key at all
        out_rows = out_ptr + queries * strides[3][1] + heads * strides[3][2]
        tl.store(out_rows[:, None] + features[None, :], total * (1.0 / l)[:, None], mask=no_overhang)
        tl.store(lse_ptr + heads * T + queries, m + tl.log2(l), mask=real)
    else:
        n_parts = tl.num_programs(0)
        partial_ptr += tl.program_id(1).to(tl.int64) * n_parts * ROWS * (HEAD_SIZE + 2)
        mine = partial_ptr + (tl.program_id(0) * ROWS + rows) * (HEAD_SIZE + 2)
        tl.store(mine[:, None] + features[None, :], total, mask=no_overhang)
        tl.store(mine + HEAD_SIZE, m, mask=real)
        tl.store(mine + HEAD_SIZE + 1, l, mask=real)
        if comes_last(counter_ptr + tl.program_id(1), n_parts):
            for row in range(0, T * group):
                query, head = row % T, key_head * group + row // T
                merge(partial_ptr + row * (HEAD_SIZE + 2), out_ptr + query * strides[3][1] + head * strides[3][2],
                      lse_ptr + head * T + query, n_parts, ROWS, PARTS, HEAD_SIZE, BLOCK_D)


@triton.jit
def merge(partial_ptr, out_ptr, lse_ptr, n_parts, ROWS: tl.constexpr, PARTS: tl.constexpr, HEAD_SIZE: tl.constexpr,
          BLOCK_D: tl.constexpr):
    """The parts of one query, of which the first is at partial_ptr, and each next one ROWS rows behind."""
    parts, features = tl.arange(0, PARTS), tl.arange(0, BLOCK_D)
    partial_rows = partial_ptr + parts * ROWS * (HEAD_SIZE + 2)
    m_parts = tl.load(partial_rows + HEAD_SIZE, mask=parts < n_parts, other=LOWEST)
    l_parts = tl.load(partial_rows + HEAD_SIZE + 1, mask=parts < n_parts, other=0.0)
    no_overhang = (parts < n_parts)[:, None] & (features < HEAD_SIZE)[None, :]
    totals = tl.load(partial_rows[:, None] + features[None, :], mask=no_overhang, other=0.0)
    m = tl.max(m_parts)
    shares = tl.exp2(m_parts - m)
    l = tl.sum(l_parts * shares)
    l = tl.where(l == 0.0, 1.0, l)              # no visible key at all
    tl.store(out_ptr + features, tl.sum(totals * shares[:, None], axis=0) / l, mask=features < HEAD_SIZE)
    tl.store(lse_ptr, m + tl.log2(l))


def forward(q, k, v, start, end, out, lse, group, sizes, numbers, bias=None, new=(None, None)):
    """Fill out and lse: q (B, T, H, D) with T * group a few, k and v (B, S, K, D), start (B,) or None, end (B,).

    bias (1, H, 1, S) or None; new: keys and values (B, T, K, D) that go into k and v, at `end`, before anybody looks.
    """
    (B, T, _, D), (S, key_heads) = q.shape, k.shape[1:3]
    config = configs.lookup("attention_decode", q.dtype, D)
    wanted = triton.cdiv(2 * runtime.n_multiprocessors(), B * key_heads)
    parts = max(1, min(wanted, triton.cdiv(S, config["BLOCK_K"]), 64))
    rows = max(16, triton.next_power_of_2(T * group))
    partial, counted = None, None
    if parts > 1:
        partial, counted = runtime.empty((B, key_heads, parts, rows, D + 2)), counters(B * key_heads)
    strides, new_strides = strides_of(q, k, v, out), strides_of(*(x for x in new if x is not None))[:2]
    limit_strides = tuple(0 if x is None else x.stride(0) for x in (start, end))
    attention_decode_kernel[(parts, B * key_heads)](
        q, k, v, start, end, bias, *new, partial, counted, out, lse, key_heads, group, sizes, strides, new_strides,
        limit_strides, numbers, ROWS=rows, PARTS=triton.next_power_of_2(parts), HEAD_SIZE=D, BLOCK_D=block_d(D),
        **config)


def cached_attention(q, k, v, k_cache, v_cache, position, key_start=None, bias=None, *, scale=None):
    """Put new keys and values into the cache, IN PLACE, and attend to all that it then holds, causally.

    q (B, T, H, D); k, v (B, T, K, D); k_cache, v_cache (B, S, K, D); position (1,) integer: how many positions they
    hold already, position + T <= S; key_start (B,) or None; bias (1, H, 1, S) or None, that of a query at the last
    place, which depends on the distance of the key alone. -> (B, T, H, D)
    """
    q, k, v = (x if x.stride(-1) == 1 else runtime.contiguous(x) for x in (q, k, v))
    (B, T, H, D), (S, key_heads) = q.shape, k_cache.shape[1:3]
    if D > 128:
        raise NotImplementedError(f"cached_attention: a head of {D} features does not fit the kernel's registers")
    out, lse = runtime.empty(q.shape, q.dtype), runtime.empty((B, H, T))
    if out.numel():
        forward(q, k_cache, v_cache, key_start, position.expand(B), out, lse, H // key_heads, (T, S, 0),
                ((D ** -0.5 if scale is None else scale) * LOG2E.value,),
                None if bias is None else runtime.contiguous(bias), (k, v))
    return out


@triton.jit
def text_positions_kernel(position_ptr, key_start_ptr, out_ptr, n, BLOCK: tl.constexpr):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    position = tl.load(position_ptr) - tl.load(key_start_ptr + rows, mask=rows < n, other=0)
    tl.store(out_ptr + rows, tl.maximum(position, 0), mask=rows < n)


def text_positions(position, key_start):
    """How far a token at `position` (1,) is behind the start of each text: max(position - key_start, 0) -> (B,)"""
    out = runtime.empty(key_start.shape, torch.int64)
    text_positions_kernel[(triton.cdiv(len(out), 256),)](position, key_start, out, len(out), BLOCK=256)
    return out


def kv_append(k_cache, v_cache, k, v, *, position):
    """Write new keys and values into the cache, IN PLACE, behind the `position` that it holds already.

    k_cache, v_cache (B, S, K, D); k, v (B, T, K, D) with position + T <= S. A copy, so torch does it.
    """
    k_cache[:, position:position + k.shape[1]] = k
    v_cache[:, position:position + v.shape[1]] = v


def kv_reorder(k_cache, v_cache, rows, *, length):
    """Let row i of the cache, IN PLACE, hold the first `length` positions that row rows[i] held: for beam search.

    k_cache, v_cache (B, S, K, D); rows (B,) int64. A copy, so torch does it: out, in the new order, and back.
    """
    k_cache[:, :length] = k_cache[rows, :length]
    v_cache[:, :length] = v_cache[rows, :length]
