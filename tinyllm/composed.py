"""The fused operations again, spelled out in primitive tensor operations,
as their papers write them: the specification.

Each function here takes the arguments of its namesake in functional.py and needs no backward pass of its own: the tape
differentiates the primitives. It is slower, because every line is a pass over memory, and the tests hold both together.
"""
import math

import numpy as np

from . import backend, random
from . import functional as F
from .functional import concatenate, maximum, relu, rope_tables, sigmoid, split, tanh, where    # primitives already
from .tensor import Tensor


def _constant(array, like):
    """A NumPy array as a tensor on the backend and in the dtype of another."""
    return Tensor._of(backend.of(like.data).from_numpy(array, dtype=like.dtype))


def embedding(ids, weight):
    """Row ids[...] of weight: indexing is a primitive."""
    return weight[F._ids("embedding", ids, weight.shape[0])]


def linear(x, weight, bias=None):
    """y = x W^T + b"""
    y = x @ weight.T
    return y if bias is None else y + bias


def linear_int8(x, weight, scale, bias=None):
    """x W^T + b with W = scale * w"""
    ops = backend.of(weight)
    return linear(x, _constant(ops.to_numpy(weight) * ops.to_numpy(scale)[:, None], x), bias)


def fused_linear(x, weight, bias=None, norm=None, residual=None, activation=None):
    """residual + activation(norm(x) W^T + b)"""
    if norm is not None:
        name, *vectors, eps = norm
        x = layer_norm(x, *vectors, eps) if name == "layer_norm" else rms_norm(x, vectors[0], eps)
    y = linear(x, weight, bias)
    y = gelu(y, approximate="tanh") if activation == "gelu" else y
    return y if residual is None else residual + y


def linear_gelu(x, weight, bias=None):
    """gelu(x W^T + b)"""
    return gelu(linear(x, weight, bias), approximate="tanh")


def mlp(x, weight1, bias1, weight2, bias2):
    """linear(gelu(linear(x)))"""
    return linear(linear_gelu(x, weight1, bias1), weight2, bias2)


def gelu(x, approximate="none"):
    """x (1 + erf(x / sqrt 2)) / 2, or with tanh(sqrt(2/pi) (x + 0.044715 x^3)) in the place of erf"""
    if approximate == "tanh":
        return 0.5 * x * (1 + (math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)).tanh())
    return 0.5 * x * (1 + (x * math.sqrt(0.5)).erf())


def silu(x):
    """x sigmoid(x)"""
    return x * x.sigmoid()


def swiglu(gate, x):
    """silu(gate) x"""
    return silu(gate) * x


def layer_norm(x, weight, bias=None, eps=1e-5):
    """(x - mean) / sqrt(var + eps) * weight + bias"""
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred * centred).mean(axis=-1, keepdims=True)
    y = centred / (variance + eps).sqrt() * weight
    return y if bias is None else y + bias


def add_layer_norm(x, branch, weight, bias=None, eps=1e-5):
    """x + branch, and its norm"""
    total = x + branch
    return total, layer_norm(total, weight, bias, eps)


def rms_norm(x, weight, eps=1e-6):
    """x / sqrt(mean(x^2) + eps) * weight"""
    return x / ((x * x).mean(axis=-1, keepdims=True) + eps).sqrt() * weight


def softmax(x):
    """e^x / sum e^x, with the row's maximum taken off first: a constant, as it cancels"""
    p, total = _exp_and_sum(x)[:2]
    return p / total


def log_softmax(x):
    """x - log sum e^x"""
    _, total, shifted = _exp_and_sum(x)
    return shifted - total.log()


def _exp_and_sum(x):
    top = x.detach().numpy().max(axis=-1, keepdims=True, initial=-np.inf)
    shifted = x - _constant(np.where(np.isneginf(top), 0, top), x)
    p = shifted.exp()
    total = p.sum(axis=-1, keepdims=True)
    return p, total + _constant(total.numpy() == 0, x), shifted     # a row of -inf only: 0 / 1 instead of 0 / 0


def attention(q, k, v, bias=None, key_start=None, key_end=None, *, causal=False, scale=None, dropout=0.0):
    """softmax(q k^T * scale + bias, forbidden keys at -inf) v"""
    p = attention_weights(q, k, bias, key_start, key_end, causal=causal, scale=scale)   # (B, H, T, S)
    if dropout:
        p = F.dropout(p, dropout)
    return (p @ _every_head(v, q)).permute(0, 2, 1, 3)                      # (B, T, H, D)


def attention_weights(q, k, bias=None, key_start=None, key_end=None, *, causal=False, scale=None):
    """How much each query looks at each key: attention() without v; q (B, T, H, D), k (B, S, K, D) -> (B, H, T, S)"""
    (B, T, H, D), S = q.shape, k.shape[1]
    scores = q.permute(0, 2, 1, 3) @ _every_head(k, q).transpose(2, 3)      # (B, H, T, S)
    scores = scores * (D ** -0.5 if scale is None else scale)
    if bias is not None:
        scores = scores + bias
    i, j = np.arange(T)[:, None], np.arange(S)
    allowed = np.ones((B, 1, T, S), bool) if not causal else np.broadcast_to(j <= i + S - T, (B, 1, T, S))
    if key_start is not None:
        allowed = allowed & (j >= np.asarray(key_start)[:, None, None, None])
    if key_end is not None:
        allowed = allowed & (j < np.asarray(key_end)[:, None, None, None])
    return softmax(where(allowed, scores, _constant(np.array(-np.inf), scores)))


def _every_head(x, q):
    """Keys or values (B, S, K, D) for each of the H heads of q: (B, H, S, D); H/K of them share a head of x"""
    share = np.repeat(np.arange(x.shape[2]), q.shape[2] // x.shape[2])
    return x[:, :, share].permute(0, 2, 1, 3)


def cached_attention(q, k, v, k_cache, v_cache, position, key_start=None, bias=None, *, scale=None):
    """attention() to what was there before, and to k and v behind it; here, the cache stays as it is"""
    k, v = (concatenate([Tensor._of(cache[:, :position[0]]), new], axis=1)
            for cache, new in ((k_cache, k), (v_cache, v)))
    if bias is not None:
        distance = np.arange(q.shape[1])[:, None] + position[0] - np.arange(k.shape[1])     # of the keys, to the left
        bias = bias[:, :, 0, bias.shape[3] - 1 - np.maximum(distance, 0)]
    return attention(q, k, v, bias, key_start, causal=True, scale=scale)


def self_attention(qkv, key_start=None, key_end=None, *, n_head, causal=True, scale=None, dropout=0.0):
    """attention() between three thirds of one array"""
    B, T, C3 = qkv.shape
    q, k, v = (part.reshape(B, T, n_head, C3 // 3 // n_head) for part in split(qkv, C3 // 3, axis=2))
    out = attention(q, k, v, None, key_start, key_end, causal=causal, scale=scale, dropout=dropout)
    return out.reshape(B, T, C3 // 3)


def rope(x, cos, sin, interleaved=False, position=None):
    """(a, b) -> (a cos - b sin, a sin + b cos)"""
    if position is not None:
        cos, sin = (table[position[0]:position[0] + x.shape[1]] for table in (cos, sin))
    half = x.shape[-1] // 2
    first, second = (slice(0, None, 2), slice(1, None, 2)) if interleaved else (slice(0, half), slice(half, None))
    a, b = x[..., first], x[..., second]
    cos, sin = _constant(cos[:, None], x), _constant(sin[:, None], x)       # (T, 1, D/2)
    a, b = a * cos - b * sin, a * sin + b * cos
    if not interleaved:
        return concatenate([a, b], axis=-1)
    pairs = concatenate([a.reshape(*a.shape, 1), b.reshape(*b.shape, 1)], axis=-1)
    return pairs.reshape(x.shape)


def rnn(x, h0, weight_ih, weight_hh, bias_ih=None, bias_hh=None):
    """h_t = tanh(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)"""
    h, outs = _state(h0, x, weight_hh), []
    for x_t in _steps(x):
        h = (linear(x_t, weight_ih, bias_ih) + linear(h, weight_hh, bias_hh)).tanh()
        outs.append(h)
    return _sequence(outs), h


def lstm(x, h0, c0, weight_ih, weight_hh, bias_ih=None, bias_hh=None):
    """c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g), h_t = sigmoid(o) tanh(c_t)"""
    h, c, outs = _state(h0, x, weight_hh), _state(c0, x, weight_hh), []
    for x_t in _steps(x):
        i, f, g, o = split(linear(x_t, weight_ih, bias_ih) + linear(h, weight_hh, bias_hh), h.shape[1], axis=1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        outs.append(h)
    return _sequence(outs), h, c


def gru(x, h0, weight_ih, weight_hh, bias_ih=None, bias_hh=None):
    """h_t = (1 - z) n + z h_{t-1}:  z says how much of the state stays, n is what takes the place of the rest,

        r = sigmoid(W_ir x_t + b_ir + W_hr h_{t-1} + b_hr),     n = tanh(W_in x_t + b_in + r * (W_hn h_{t-1} + b_hn)),
        z = sigmoid(W_iz x_t + b_iz + W_hz h_{t-1} + b_hz)

    Source: Cho et al. 2014, "Learning phrase representations", section 2.3. As in torch, r multiplies W_hn h + b_hn and
    not h, so that one product serves all three, and the weights' rows are in the order r, z, n. This is no second view
    of a fused operation, but what runs; hence F.linear.
    """
    h, outs = _state(h0, x, weight_hh), []
    for a in _steps(F.linear(x, weight_ih, bias_ih)):
        a_r, a_z, a_n = split(a, h.shape[1], axis=1)
        b_r, b_z, b_n = split(F.linear(h, weight_hh, bias_hh), h.shape[1], axis=1)
        r, z = (a_r + b_r).sigmoid(), (a_z + b_z).sigmoid()
        n = (a_n + r * b_n).tanh()
        h = n + z * (h - n)
        outs.append(h)
    return _sequence(outs), h


def _state(first, x, weight_hh):
    """The state before the first step: (B, H)"""
    return _constant(np.zeros((x.shape[0], weight_hh.shape[1])), x) if first is None else first


def _steps(x):
    """(B, T, C) -> T tensors (B, C)"""
    return [x_t.reshape(x.shape[0], x.shape[2]) for x_t in split(x, 1, axis=1)]


def _sequence(steps):
    """T tensors (B, H) -> (B, T, H)"""
    return concatenate([h.reshape(h.shape[0], 1, h.shape[1]) for h in steps], axis=1)


def dropout(x, p=0.5):
    """x * keep / (1 - p)"""
    rng, site = random.draw()
    keep = backend.get("numpy").keep_mask(rng, x.shape, p, site)
    return x * _constant(keep, x) * (1 / (1 - p))


def cross_entropy(logits, targets, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """-sum of (target distribution) * log softmax(logits)"""
    targets, V = F._ids("cross_entropy", targets, logits.shape[-1], ignore_index), logits.shape[-1]
    counts = targets != ignore_index
    wanted = np.eye(V)[np.where(counts, targets, 0)] * (1 - label_smoothing) + label_smoothing / V
    losses = -(log_softmax(logits) * _constant(wanted * counts[..., None], logits)).sum(axis=-1)
    if reduction == "none":
        return losses
    return losses.sum() / (max(1, int(counts.sum())) if reduction == "mean" else 1)


def linear_cross_entropy(x, weight, targets, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """cross_entropy of the logits x W^T"""
    return cross_entropy(linear(x, weight), targets, ignore_index, reduction, label_smoothing)


def sample(logits, temperature=1.0, top_k=None, top_p=None, min_p=None, rng=None):
    """argmax of logits / temperature + Gumbel noise over the tokens kept: a draw from their softmax (Gumbel 1954)

    Top-k keeps a token if fewer than k are better. Of what it leaves, top-p keeps one if the better ones do not have
    the mass p yet (Holtzman et al. 2019, eq. 2), and min-p what is at least min_p times as likely as the best. There is
    nothing to differentiate: in NumPy and float64.
    """
    rng, site = random.draw() if rng is None else (rng, 0)
    z = (logits.numpy() if isinstance(logits, Tensor) else np.asarray(logits)).astype(np.float64)   # (B, V)
    if temperature == 0:
        return z.argmax(axis=-1)
    better = z[:, None, :] > z[:, :, None]                                  # [b, v, w]: w is better than v, (B, V, V)
    kept = better.sum(axis=-1) < (top_k or z.shape[-1])
    if top_p is not None:
        p = softmax(Tensor(np.where(kept, z / temperature, -np.inf))).numpy()
        kept &= np.where(better, p[:, None, :], 0).sum(axis=-1) < top_p
    if min_p:
        p = softmax(Tensor(z / temperature)).numpy()
        kept &= p >= min_p * p.max(axis=-1, keepdims=True)
    bits = backend.get("numpy").bits_of_rows(rng, z.shape, site)
    noise = -np.log(-np.log(((bits >> np.uint32(9)) + 0.5) * 2**-23))       # 23 bits: a number inside (0, 1)
    return np.where(kept, z / temperature + noise, -np.inf).argmax(axis=-1)
