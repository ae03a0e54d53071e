"""The operations on tensors, as a user calls them. The formulas and derivations stand in ops/, one file per family.

Most are called as in torch, but take less: norms, softmax and losses always work on the last axis. An axis is called
`axis`, as in NumPy. Shapes: B batch, T and S time, C channels, V vocabulary, H heads, D head size. Wrong shapes and
dtypes raise ValueError (shapes.py).
"""
import numpy as np

from . import backend, modes, random, shapes
from .int8 import Int8
from .tensor import Tensor, apply, pair, wants


def maximum(a, b):
    """The larger of both, element by element; the operands broadcast."""
    return apply("maximum", *_operands(a, b))


def relu(x):
    """max(x, 0)"""
    return apply("relu", x)


def sigmoid(x):
    """1 / (1 + e^-x)"""
    return apply("sigmoid", x)


def tanh(x):
    """(e^x - e^-x) / (e^x + e^-x)"""
    return apply("tanh", x)


def softmax(x):
    """e^x / sum e^x over the last axis; a row of -inf only gives zeros."""
    return apply("softmax", x)


def log_softmax(x):
    """x - log sum e^x over the last axis."""
    return apply("log_softmax", x)


def where(condition, a, b):
    """a where condition (an array of booleans) holds, else b; all three broadcast."""
    condition = condition.data if isinstance(condition, Tensor) else condition
    condition = condition if backend.is_array(condition) else np.asarray(condition)
    return apply("where", condition, *_operands(a, b))


def concatenate(tensors, axis=0):
    """Tensors one after another along an existing axis."""
    return apply("concatenate", *tensors, axis=axis)


def split(x, sizes, axis=0):
    """A tuple of pieces along an axis; sizes: one length for all pieces, or a list of lengths."""
    if isinstance(sizes, (int, np.integer)):
        n = x.shape[shapes.axis("split", x, axis)]
        if sizes < 1:
            raise ValueError(f"split: a piece must be at least 1 long, not {sizes}; "
                             "give a length, or a list of lengths")
        sizes = [min(sizes, n - start) for start in range(0, n, sizes)]
    return apply("split", x, sizes=tuple(sizes), axis=axis)


def embedding(ids, weight):
    """Row ids[...] of weight: ids (...) integers, weight (V, C) -> (..., C). An id outside [0, V) raises IndexError."""
    ids = _ids("embedding", ids, weight.shape[0])
    return apply("embedding", ids, weight, needs=wants(None, weight))


def linear(x, weight, bias=None):
    """x W^T + b: x (..., I), weight (O, I), bias (O,) -> (..., O); weight may be Int8 (int8.py)"""
    if isinstance(weight, Int8):
        return linear_int8(x, weight.values, weight.scale, bias)
    return apply("linear", x, weight, bias, needs=wants(x, weight, bias))


def linear_int8(x, weight, scale, bias=None):
    """x (scale w)^T + b without a gradient: x (..., I), arrays w (O, I) int8 and scale (O,), bias (O,) -> (..., O)"""
    if any(wants(x, bias)):
        raise RuntimeError("linear_int8: gradients do not pass through weights in int8; use it inside "
                           "`with no_grad():`, and train a model with weights of its own")
    ops, bias = backend.of(x.data), None if bias is None else bias.data
    if backend.of(weight) is not ops:
        raise ValueError(f"linear_int8: x is on the {ops.name} backend and its weight is not; quantize a model after "
                         "it was moved")
    shapes.check("linear_int8", (x.data, weight, scale, bias), {})
    return Tensor._of(ops.linear_int8(x.data, weight, scale, bias))


def fused_linear(x, weight, bias=None, norm=None, residual=None, activation=None):
    """residual + activation(norm(x) W^T + b), in one go and without a gradient: for writing on a GPU (nn.few_rows)

    x (..., I), weight (O, I), which may be Int8, bias (O,), residual (..., O) -> (..., O). norm: None, or ("layer_norm"
    or "rms_norm", weight (I,), bias (I,) or None, eps). activation: None or "gelu", the tanh form.
    """
    name, norm_weight, norm_bias, eps = norm or (None, None, None, 0.0)
    if any(wants(x, weight, bias, norm_weight, norm_bias, residual)):
        raise RuntimeError("fused_linear: gradients do not pass through it; use it inside `with no_grad():`")
    values, scale = (weight.values, weight.scale) if isinstance(weight, Int8) else (weight.data, None)
    arrays = (x.data, values, scale, *(None if t is None else t.data for t in (bias, norm_weight, norm_bias, residual)))
    options = dict(norm=name, eps=eps, activation=activation)
    shapes.check("fused_linear", arrays, options)
    return Tensor._of(backend.of(x.data).fused_linear(*arrays, **options))


def linear_gelu(x, weight, bias=None):
    """gelu(x W^T + b), GELU in its tanh form: x (..., I), weight (O, I), bias (O,) -> (..., O)"""
    return apply("linear_gelu", x, weight, bias, needs=wants(x, weight, bias))


def mlp(x, weight1, bias1, weight2, bias2):
    """gelu(x W1^T + b1) W2^T + b2: x (..., C), weight1 (H, C), weight2 (O, H), biases (H,), (O,) or None -> (..., O)"""
    if isinstance(weight1, Int8):
        return linear(gelu(linear(x, weight1, bias1), approximate="tanh"), weight2, bias2)
    return apply("mlp", x, weight1, bias1, weight2, bias2, needs=wants(x, weight1, bias1, weight2, bias2))


def gelu(x, approximate="none"):
    """x P(X <= x) for a normal X; approximate="tanh" is GPT-2's form, the default is exact."""
    return apply("gelu", x, approximate=approximate, needs=wants(x))


def silu(x):
    """x * sigmoid(x)"""
    return apply("silu", x, needs=wants(x))


def swiglu(gate, x):
    """silu(gate) * x, two tensors of one shape."""
    return apply("swiglu", gate, x, needs=wants(gate, x))


def layer_norm(x, weight, bias=None, eps=1e-5):
    """(x - mean) / sqrt(var + eps) * weight + bias over the last axis: x (..., C), weight and bias (C,) -> (..., C)"""
    return apply("layer_norm", x, weight, bias, eps=eps)


def add_layer_norm(x, branch, weight, bias=None, eps=1e-5):
    """(x + branch, layer_norm(x + branch)): x and branch (..., C), weight and bias (C,) -> two of (..., C)"""
    return apply("add_layer_norm", x, branch, weight, bias, eps=eps)


def rms_norm(x, weight, eps=1e-6):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis: x (..., C), weight (C,) -> (..., C)"""
    return apply("rms_norm", x, weight, eps=eps)


def attention(q, k, v, bias=None, key_start=None, key_end=None, *, causal=False, scale=None, dropout=0.0):
    """softmax(q k^T * scale + bias) v: q (B, T, H, D), k and v (B, S, K, D) -> (B, T, H, D).

    K divides H (grouped heads). bias (B or 1, H or 1, T, S), differentiable. key_start, key_end (B,) integers: row b
    sees the keys start <= j < end. causal: query i sees keys j <= i + S - T. A query that may see nothing gets zeros.
    """
    rng, site = random.draw() if dropout else (None, 0)
    out = apply("attention", q, k, v, bias, _limits(key_start), _limits(key_end), rng,
                causal=causal, scale=scale, dropout=dropout, site=site)
    if modes.here.attention_maps is not None:
        _watch(q, k, bias, key_start, key_end, causal=causal, scale=scale)
    return out


def self_attention(qkv, key_start=None, key_end=None, *, n_head, causal=True, scale=None, dropout=0.0):
    """attention() for queries, keys and values side by side: qkv (B, T, 3 C) -> (B, T, C)"""
    rng, site = random.draw() if dropout else (None, 0)
    out = apply("self_attention", qkv, _limits(key_start), _limits(key_end), rng,
                n_head=n_head, causal=causal, scale=scale, dropout=dropout, site=site)
    if modes.here.attention_maps is not None:
        q, k, _ = split(qkv.reshape(*qkv.shape[:2], 3 * n_head, -1), n_head, axis=2)        # (B, T, H, D)
        _watch(q, k, None, key_start, key_end, causal=causal, scale=scale)
    return out


def cached_attention(q, k, v, k_cache, v_cache, position, key_start=None, bias=None, *, scale=None):
    """A step of writing: k and v (B, T, K, D) go into the cache, in place; q (B, T, H, D) looks at all that is in it.

    k_cache, v_cache: arrays (B, S, K, D). position: an array (1,), how many positions they hold already. bias (1, H, 1,
    S) or None: that of a query at the last place of the cache; others, n places before, find theirs n places further.
    Gradients do not pass. -> (B, T, H, D). nn.KVCache.attend() calls it.
    """
    if any(wants(q, k, v)):
        raise RuntimeError("cached_attention: gradients do not pass through a cache; use it inside `with no_grad():`")
    return Tensor._of(backend.of(k_cache).cached_attention(q.data, k.data, v.data, k_cache, v_cache, position,
                                                           key_start, None if bias is None else bias.data, scale=scale))


def attention_weights(q, k, bias=None, key_start=None, key_end=None, *, causal=False, scale=None):
    """How much each query of attention() looks at each key: q (B, T, H, D), k (B, S, K, D) -> (B, H, T, S)

    The fused operations never hold all of them; composed.py spells this out, for whoever wants to see them.
    """
    from . import composed              # which imports this file
    return composed.attention_weights(q, k, bias, key_start, key_end, causal=causal, scale=scale)


def _watch(*arrays, **options):
    """Give the weights of an attention to whoever watches (modes.watch_attention)."""
    with modes.no_grad():
        modes.here.attention_maps.append(attention_weights(*arrays, **options).numpy())


ROPE_SCALING = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def rope_tables(positions, size, base=10000.0, dtype=np.float32, scaling=None):
    """cos and sin of position * base^(-2i/size): positions (T,) -> two arrays (T, size/2), for rope()

    scaling: Llama 3.1's way to read further than it was trained, a dictionary as in its config.json. A pair of features
    that turned less than low_freq_factor times in original_max_position_embeddings positions turns `factor` times
    slower, one that turned more than high_freq_factor times stays, and between the two it is a mixture.
    """
    speeds = base ** (-np.arange(0, size, 2) / size)
    if scaling is not None:
        turns, low, high = (scaling["original_max_position_embeddings"] * speeds / (2 * np.pi),
                            scaling["low_freq_factor"], scaling["high_freq_factor"])
        kept = np.clip((turns - low) / (high - low), 0, 1)
        speeds = speeds * (kept + (1 - kept) / scaling["factor"])
    angles = np.outer(positions, speeds)
    return np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)


def rope(x, cos, sin, interleaved=False, position=None):
    """Rotate each pair of features by its position's angle: x (B, T, H, D), cos and sin (T, D/2) -> (B, T, H, D)

    position: an array (1,) that says in which row of longer tables the first token's angles stand; None: in the first.
    """
    return apply("rope", x, cos, sin, position, interleaved=interleaved)


def rnn(x, h0, weight_ih, weight_hh, bias_ih=None, bias_hh=None):
    """h_t = tanh(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh), step by step: x (B, T, C) -> h (B, T, H), h_last (B, H)

    h0 (B, H) or None (zeros), weight_ih (H, C), weight_hh (H, H), biases (H,) or None. h_last continues the sequence:
    it is the h0 of the next piece.
    """
    return apply("rnn", x, h0, weight_ih, weight_hh, bias_ih, bias_hh,
                 needs=wants(x, h0, weight_ih, weight_hh, bias_ih, bias_hh))


def lstm(x, h0, c0, weight_ih, weight_hh, bias_ih=None, bias_hh=None):
    """An RNN with a memory c behind gates: x (B, T, C) -> h (B, T, H), h_last (B, H), c_last (B, H)

    With i, f, g, o the four parts of W_ih x_t + b_ih + W_hh h_{t-1} + b_hh: c_t = sigmoid(f) c_{t-1} + sigmoid(i)
    tanh(g), h_t = sigmoid(o) tanh(c_t). h0, c0 (B, H) or None (zeros), weight_ih (4H, C), weight_hh (4H, H), biases
    (4H,) or None.
    """
    return apply("lstm", x, h0, c0, weight_ih, weight_hh, bias_ih, bias_hh,
                 needs=wants(x, h0, c0, weight_ih, weight_hh, bias_ih, bias_hh))


def gru(x, h0, weight_ih, weight_hh, bias_ih=None, bias_hh=None):
    """Between rnn() and lstm(), two gates and one state: x (B, T, C) -> h (B, T, H), h_last (B, H)

    h0 (B, H) or None (zeros), weight_ih (3H, C), weight_hh (3H, H), biases (3H,) or None. It is no operation of its
    own: composed.py spells it out in others, and it takes longer than an lstm().
    """
    from . import composed              # which imports this file
    shapes.check("gru", (x, h0, weight_ih, weight_hh, bias_ih, bias_hh), {})
    return composed.gru(x, h0, weight_ih, weight_hh, bias_ih, bias_hh)


def dropout(x, p=0.5):
    """Zero each element with probability p and scale the others by 1/(1-p). While training only: nn.Dropout decides."""
    if p == 0:
        return x
    rng, site = random.draw()
    return apply("dropout", x, rng, p=p, site=site)


def cross_entropy(logits, targets, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """-log softmax(logits)[target]: logits (..., V), targets (...) integers -> scalar, or (...) with reduction="none".

    A target of ignore_index counts for nothing; any other outside [0, V) raises IndexError.
    """
    targets = _ids("cross_entropy", targets, logits.shape[-1], ignore_index)
    return apply("cross_entropy", logits, targets, ignore_index=ignore_index, reduction=reduction,
                 label_smoothing=label_smoothing)


def linear_cross_entropy(x, weight, targets, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """cross_entropy(linear(x, weight), targets) without keeping the logits: x (..., C), weight (V, C), targets (...)"""
    targets = _ids("linear_cross_entropy", targets, weight.shape[0], ignore_index)
    if x.shape[:-1] != tuple(targets.shape):
        raise ValueError(f"linear_cross_entropy: there must be one target per row of x (x {x.shape}, targets "
                         f"{tuple(targets.shape)}); all axes but the last must agree")
    if isinstance(weight, Int8):
        return cross_entropy(linear(x, weight), targets, ignore_index, reduction, label_smoothing)
    losses = apply("linear_cross_entropy", x.reshape(-1, x.shape[-1]), weight, targets.reshape(-1),
                   ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing,
                   needs=wants(x, weight, None))
    return losses.reshape(targets.shape) if reduction == "none" else losses


def sample(logits, temperature=1.0, top_k=None, top_p=None, min_p=None, rng=None):
    """One token id per row, drawn from softmax(logits / temperature): logits (B, V) -> int64 array (B,).
    See ops/sample.py.

    rng: an array (seed, step) for a draw that can be repeated; None takes the next one after tinyllm.manual_seed().
    """
    data = logits.data if isinstance(logits, Tensor) else shapes.numbers(logits)
    options = dict(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    shapes.check("sample", (data,), options)
    rng, site = random.draw() if rng is None else (rng, 0)
    return backend.of(data).sample(data, rng, **options, site=site)


def _operands(a, b):
    """Two operands of which one may be a number or an array; without any Tensor, apply() says what is missing."""
    return pair(a, b) if isinstance(a, Tensor) or isinstance(b, Tensor) else (a, b)


def _limits(lengths):
    """Key limits, which may be a list, as an array."""
    return np.asarray(lengths) if isinstance(lengths, (list, tuple)) else lengths


def _ids(name, ids, vocabulary, ignore_index=None):
    """Token ids as an integer array, each inside the vocabulary. Ids on a GPU were checked before they went there."""
    if isinstance(ids, Tensor):
        ids = ids.data
    if backend.is_array(ids) and not isinstance(ids, np.ndarray):
        return ids
    ids = np.asarray(ids)
    if ids.size == 0 and ids.dtype == np.float64:       # np.asarray([]) is float64
        ids = ids.astype(np.int64)
    if ids.size and ids.dtype.kind in "iu":
        inside = (ids >= 0) & (ids < vocabulary)
        if ignore_index is not None:
            inside |= ids == ignore_index
        if not inside.all():
            place = tuple(int(i) for i in np.argwhere(~inside)[0])
            raise IndexError(f"{name}: token id {ids[place]} at position {place} is outside the vocabulary of "
                             f"{vocabulary} (0 to {vocabulary - 1}); was the text encoded with this model's tokenizer?")
    return ids
