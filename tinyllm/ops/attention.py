"""Attention: every position asks a question (q), offers a key (k), and hands out a value (v).

    out = softmax(q k^T * scale + bias) v        per batch row and head (Vaswani et al. 2017, eq. 1)

The score matrix is worked off in blocks of BLOCK queries. A block stays in the cache, and with a causal mask the keys
to its right are never multiplied at all. Blocks are kept transposed, (keys, queries): what belongs to one query then
runs down a column, and NumPy takes the maximum of columns four times faster than that of rows.
"""
import numpy as np

from . import memory
from .dropout import keep_mask
from .threads import in_parallel

BLOCK = 64


def attention_forward(q, k, v, bias=None, key_start=None, key_end=None, rng=None, *,
                      causal=False, scale=None, dropout=0.0, site=0):
    """out_i = sum_j softmax_j(scale * q_i . k_j + bias_ij) v_j over the keys j that query i may see.

    q (B, T, H, D); k, v (B, S, K, D), where K divides H: query head h reads key head h // (H/K) (grouped heads).
    bias (B or 1, H or 1, T, S): added to the scores. key_start, key_end (B,): row b sees keys start <= j < end only.
    causal: query i sees keys j <= i + S - T, so the last query sees all. scale: 1/sqrt(D) unless given.
    dropout: probability of dropping a probability, with rng = (seed, step). -> (B, T, H, D)
    A query that may see nothing gets zeros.
    """
    groups = q.shape[2] // k.shape[2]
    if groups > 1:
        k, v = np.repeat(k, groups, axis=2), np.repeat(v, groups, axis=2)
    out = memory.empty(q.shape, q.dtype)
    mask = _key_mask(key_start, key_end, k.shape[1], q.dtype)
    keep = keep_mask(rng, (q.shape[0], q.shape[2], q.shape[1], k.shape[1]), dropout, site) if dropout else None
    core = _attend(*map(_heads_first, (q, k, v, out)), bias, mask, keep, causal, scale, dropout)
    return out, (k, v, groups, None if bias is None else bias.shape, core)


def attention_backward(dout, saved):
    """With P the softmax:  dv = P^T dout,  dP = dout v^T,  dS = P * (dP - rowsum(dout * out)),  dq = scale dS k,
    dk = scale dS^T q,  dbias = dS.

    The middle one is softmax_backward: rowsum(dP * P) = sum_j (dout . v_j) P_j = dout . out,
    which needs no T x S array.
    """
    k, v, groups, bias_shape, core = saved
    dq = memory.empty(dout.shape, dout.dtype)
    dk, dv = memory.empty(k.shape, k.dtype), memory.empty(v.shape, v.dtype)
    dbias = None if bias_shape is None else np.zeros(bias_shape, dout.dtype)
    _attend_backward(*map(_heads_first, (dout, dq, dk, dv)), dbias, core)
    if groups > 1:      # each key head served `groups` query heads: it gets the sum of their gradients
        heads = (*dk.shape[:2], dk.shape[2] // groups, groups, dk.shape[3])
        dk, dv = dk.reshape(heads).sum(axis=3), dv.reshape(heads).sum(axis=3)
    return dq, dk, dv, dbias, None, None, None


def self_attention_forward(qkv, key_start=None, key_end=None, rng=None, *,
                           n_head, causal=True, scale=None, dropout=0.0, site=0):
    """attention_forward with q, k, v side by side in one array, as one linear layer makes them: no split, no copy.

    qkv (B, T, 3 C) = q | k | v, each C = n_head * D -> (B, T, C)
    """
    B, T, C3 = qkv.shape
    out = memory.empty((B, T, C3 // 3), qkv.dtype)
    q, k, v = _unpack(qkv, n_head)
    mask = _key_mask(key_start, key_end, T, qkv.dtype)
    keep = keep_mask(rng, (B, n_head, T, T), dropout, site) if dropout else None
    heads = _heads_first(out.reshape(B, T, n_head, C3 // 3 // n_head))
    core = _attend(q, k, v, heads, None, mask, keep, causal, scale, dropout)
    return out, (qkv.shape, n_head, core)


def self_attention_backward(dout, saved):
    """attention_backward, with dq, dk, dv written side by side."""
    (B, T, C3), n_head, core = saved
    dqkv = memory.empty((B, T, C3), dout.dtype)
    dout = _heads_first(dout.reshape(B, T, n_head, C3 // 3 // n_head))
    _attend_backward(dout, *_unpack(dqkv, n_head), None, core)
    return dqkv, None, None, None


def _heads_first(x):
    """View (B, T, H, D) as (B, H, T, D): a batch of B x H matrices for matmul."""
    return x.transpose(0, 2, 1, 3)


def _unpack(qkv, n_head):
    """Three (B, H, T, D) views of a packed (B, T, 3 C) array."""
    B, T, C3 = qkv.shape
    parts = qkv.reshape(B, T, 3, n_head, C3 // (3 * n_head))
    return tuple(_heads_first(parts[:, :, i]) for i in range(3))


def _key_mask(start, end, S, dtype):
    """(B, 1, S, 1): 0 for keys in [start, end), -inf for the others; None when every key is visible."""
    if start is None and end is None:
        return None
    j = np.arange(S)
    visible = np.ones(S, bool) if start is None else j >= np.asarray(start)[:, None]
    visible = visible if end is None else visible & (j < np.asarray(end)[:, None])
    return np.where(visible, 0, -np.inf).astype(dtype)[:, None, :, None]


def _blocks(T, S, causal):
    """(first query, end of queries, end of visible keys) for each block, the last one first."""
    for i in reversed(range(0, T, BLOCK)):
        stop = min(i + BLOCK, T)
        yield i, stop, (max(0, stop + S - T) if causal else S)


def _mask_future(scores, i, offset):
    """-inf on the keys j > i + offset; they all lie in the block's last rows, below the diagonal of (keys, queries)."""
    keys, n = scores.shape[-2:]
    if keys <= i + offset + 1:                      # the first query sees them all, as in writing token by token
        return
    first = max(0, i + offset)                      # every query sees the keys before this one
    future = np.arange(first, keys)[:, None] > np.arange(i, i + n) + offset
    scores[..., first:, :] += np.where(future, -np.inf, 0).astype(scores.dtype)


def _attend(q, k, v, out, bias, mask, keep, causal, scale, dropout):
    """The forward pass on (B, H, T, D) views: fills `out`, returns what the backward pass needs."""
    B, H, T, D = q.shape
    S = k.shape[2]
    q = q * (D ** -0.5 if scale is None else scale)     # T x D products instead of T x S on the scores
    blocks = [memory.empty((B, H, keys, stop - i), q.dtype) for i, stop, keys in _blocks(T, S, causal)]

    def rows(b):        # b: a slice of the batch
        for (i, stop, keys), p in zip(_blocks(T, S, causal), blocks):
            p = np.matmul(k[b, :, :keys], q[b, :, i:stop].swapaxes(2, 3), out=p[b])     # scores (B, H, keys, n)
            if bias is not None:
                p += bias[b if len(bias) > 1 else slice(None), :, i:stop, :keys].swapaxes(2, 3)
            if mask is not None:
                p += mask[b, :, :keys]
            if causal:
                _mask_future(p, i, S - T)
            top = p.max(axis=-2, keepdims=True, initial=-np.inf)            # (B, H, 1, n)
            top[np.isneginf(top)] = 0               # a query that sees nothing: e^(-inf - 0) = 0
            p -= top
            np.exp(p, out=p)
            total = np.ones((1, keys), p.dtype) @ p                         # (B, H, 1, n)
            total[total == 0] = 1                   # ... and 0 / 1 = 0
            p *= 1 / total
            dropped = p if keep is None else p * _survivors(keep[b], i, stop, keys, dropout, p.dtype)
            np.matmul(dropped.swapaxes(2, 3), v[b, :, :keys], out=out[b, :, i:stop])

    in_parallel(rows, B, 8 * B * H * T * S)
    return q, k, v, out, blocks, keep, causal, scale, dropout


def _survivors(keep, i, stop, keys, dropout, dtype):
    """Dropout's factors for a block, 0 or 1 / (1 - dropout): (B, H, keys, n)"""
    return keep[:, :, i:stop, :keys].swapaxes(2, 3) * dtype.type(1 / (1 - dropout))


def _attend_backward(dout, dq, dk, dv, dbias, core):
    """The backward pass on (B, H, T, D) views: fills dq, dk, dv, adds to dbias."""
    q, k, v, out, blocks, keep, causal, scale, dropout = core
    B, H, T, D = q.shape
    S = k.shape[2]

    def rows(b):        # b: a slice of the batch
        delta = np.vecdot(dout[b], out[b])[:, :, None]  # rowsum(dout * out): (B, H, 1, T)
        for block, ((i, stop, keys), p) in enumerate(zip(_blocks(T, S, causal), blocks)):
            p, queries, d = p[b], q[b, :, i:stop], dout[b, :, i:stop]
            ds = np.matmul(v[b, :, :keys], d.swapaxes(2, 3))                # dP^T (B, H, keys, n)
            dropped = p
            if keep is not None:
                survivors = _survivors(keep[b], i, stop, keys, dropout, p.dtype)
                dropped = p * survivors
                ds *= survivors
            ds -= delta[..., i:stop]
            ds *= p
            np.matmul(ds.swapaxes(2, 3), k[b, :, :keys], out=dq[b, :, i:stop])
            if block == 0:  # the last queries see every key: they fill dk and dv, the others add to them
                np.matmul(ds, queries, out=dk[b])
                np.matmul(dropped, d, out=dv[b])
            else:
                dk[b, :, :keys] += np.matmul(ds, queries)
                dv[b, :, :keys] += np.matmul(dropped, d)
            if dbias is not None:
                axes = tuple(a for a in (0, 1) if dbias.shape[a] == 1)
                where = b if len(dbias) > 1 else slice(None)
                dbias[where, :, i:stop, :keys] += ds.swapaxes(2, 3).sum(axis=axes, keepdims=True)
        dq[b] *= D ** -0.5 if scale is None else scale

    # a bias shared by the batch is summed over it: one thread only
    in_parallel(rows, B, 0 if dbias is not None else 8 * B * H * T * S)
    if not blocks:      # no queries at all
        dk[...] = dv[...] = 0


def cached_attention(q, k, v, k_cache, v_cache, position, key_start=None, bias=None, *, scale=None):
    """kv_append() and then attention_forward(), causal, over all that the cache holds: a step of writing.

    q (B, T, H, D); k, v (B, T, K, D); k_cache, v_cache (B, S, K, D), written IN PLACE; position (1,) integer: how
    many positions they hold already, position + T <= S; key_start (B,) or None; bias (1, H, 1, S) or None: what is
    added to the scores of a query at the last place of the cache. It shall depend on the distance of the key alone, so
    that for a query n places before, it lies n places further. -> (B, T, H, D)
    The position is an array, and the cache is handed over whole, so that a step can be recorded (kernels/graph.py).
    """
    T, S, first = k.shape[1], k_cache.shape[1], int(position[0])
    kv_append(k_cache, v_cache, k, v, position=first)
    if bias is not None:
        distance = np.arange(first, first + T)[:, None] - np.arange(first + T)      # of the keys, to the left
        bias = bias[:, :, 0, S - 1 - np.maximum(distance, 0)]                       # (1, H, T, first + T)
    k, v = k_cache[:, :first + T], v_cache[:, :first + T]
    return attention_forward(q, k, v, bias, key_start, causal=True, scale=scale)[0]


def text_positions(position, key_start):
    """How far a token at `position` (1,) is behind the start of each text: max(position - key_start, 0) -> (B,)

    key_start (B,) integers.
    """
    return np.maximum(position - key_start, 0)


def kv_append(k_cache, v_cache, k, v, *, position):
    """Write new keys and values into the cache, IN PLACE, behind the `position` that it holds already.

    k_cache, v_cache (B, S, K, D); k, v (B, T, K, D) with position + T <= S.
    """
    k_cache[:, position:position + k.shape[1]] = k
    v_cache[:, position:position + v.shape[1]] = v


def kv_reorder(k_cache, v_cache, rows, *, length):
    """Let row i of the cache, IN PLACE, hold the first `length` positions that row rows[i] held: for beam search.

    k_cache, v_cache (B, S, K, D); rows (B,) int64, in which a row may occur often, or not at all.
    """
    k_cache[:, :length] = k_cache[rows, :length]
    v_cache[:, :length] = v_cache[rows, :length]
