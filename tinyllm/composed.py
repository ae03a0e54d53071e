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
    (B, T, H, D), S, groups = q.shape, k.shape[1], q.shape[2] // k.shape[2]
    share = np.repeat(np.arange(k.shape[2]), groups)                        # the key head of each query head
    q, k, v = (x.permute(0, 2, 1, 3) for x in (q, k[:, :, share], v[:, :, share]))      # (B, H, T or S, D)
    scores = q @ k.transpose(2, 3) * (D ** -0.5 if scale is None else scale)            # (B, H, T, S)
    if bias is not None:
        scores = scores + bias
    i, j = np.arange(T)[:, None], np.arange(S)
    allowed = np.ones((B, 1, T, S), bool) if not causal else np.broadcast_to(j <= i + S - T, (B, 1, T, S))
    if key_start is not None:
        allowed = allowed & (j >= np.asarray(key_start)[:, None, None, None])
    if key_end is not None:
        allowed = allowed & (j < np.asarray(key_end)[:, None, None, None])
    p = softmax(where(allowed, scores, _constant(np.array(-np.inf), scores)))
    if dropout:
        p = F.dropout(p, dropout)
    return (p @ v).permute(0, 2, 1, 3)                                      # (B, T, H, D)


def self_attention(qkv, key_start=None, key_end=None, *, n_head, causal=True, scale=None, dropout=0.0):
    """attention() between three thirds of one array"""
    B, T, C3 = qkv.shape
    q, k, v = (part.reshape(B, T, n_head, C3 // 3 // n_head) for part in split(qkv, C3 // 3, axis=2))
    out = attention(q, k, v, None, key_start, key_end, causal=causal, scale=scale, dropout=dropout)
    return out.reshape(B, T, C3 // 3)


def rope(x, cos, sin, interleaved=False):
    """(a, b) -> (a cos - b sin, a sin + b cos)"""
    half = x.shape[-1] // 2
    first, second = (slice(0, None, 2), slice(1, None, 2)) if interleaved else (slice(0, half), slice(half, None))
    a, b = x[..., first], x[..., second]
    cos, sin = _constant(cos[:, None], x), _constant(sin[:, None], x)       # (T, 1, D/2)
    a, b = a * cos - b * sin, a * sin + b * cos
    if not interleaved:
        return concatenate([a, b], axis=-1)
    pairs = concatenate([a.reshape(*a.shape, 1), b.reshape(*b.shape, 1)], axis=-1)
    return pairs.reshape(x.shape)


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
