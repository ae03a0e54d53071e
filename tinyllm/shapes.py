"""One check per operation, on shapes and dtypes alone: the error a user reads instead of a failure deep inside.

Every message names the operation, the arguments with their shapes, what disagrees, and what to do. Both backends share
these checks; they never look at a value, so they cost microseconds and work on a GPU without waiting for it.
"""
import math

import numpy as np


def numbers(data):
    """A number, a nested list of numbers or an array, as an array; TypeError for anything else."""
    array = data if type(data).__module__ == "torch" else np.asarray(data)
    if getattr(array.dtype, "kind", "f") not in "biuf":
        what = f"{array.dtype} array" if isinstance(data, np.ndarray) else type(data).__name__
        raise TypeError(f"a Tensor holds numbers: give it a number, a list of numbers or an array of them, not {what} "
                        f"{str(data)[:30]!r}")
    return array


def axis(name, x, number):
    """One axis of x, counted from the front; ValueError if x has no such axis."""
    if not -x.ndim <= number < x.ndim:
        _fail(name, f"there is no axis {number}", f"x has {x.ndim} axes", x=x)
    return number % x.ndim


def is_float(array):
    """Whether an array of either backend holds floating-point numbers."""
    kind = getattr(array.dtype, "kind", None)           # NumPy has it, torch has is_floating_point
    return kind == "f" if kind else array.dtype.is_floating_point


def is_integer(array):
    """Whether an array of either backend holds integers."""
    kind = getattr(array.dtype, "kind", None)
    return kind in "iu" if kind else not (array.dtype.is_floating_point or array.dtype.is_complex)


def mismatch(own, state):
    """What is wrong with a state of named arrays, in words; own: the right names and shapes. Empty if all fits."""
    wrong = [name for name in own if name in state and np.shape(state[name]) != tuple(own[name])]
    problems = {
        "missing": [name for name in own if name not in state],
        "unexpected": [name for name in state if name not in own],
        "mis-shaped": [f"{name} is {np.shape(state[name])}, should be {tuple(own[name])}" for name in wrong],
    }
    return "; ".join(f"{kind}: {', '.join(names)}" for kind, names in problems.items() if names)


def check(name, arrays, options):
    """Raise ValueError if the arrays do not fit operation `name`."""
    rule = RULES.get(name)
    if rule:
        rule(name, arrays, options)
    for i, array in enumerate(arrays[:FLOATS.get(name, 0)]):
        if array is not None and not is_float(array):
            raise ValueError(f"{name}: argument {i} must be floating point, not {array.dtype}; convert it, with "
                             ".cast(np.float32) for a tensor or .astype(np.float32) for an array")
    dtypes = {a.dtype for a in arrays if a is not None and is_float(a)}
    # the tables of rope, and the scales of integers
    float32_too = name == "rope" and arrays[0].dtype.itemsize == 2 or name in ("linear_int8", "fused_linear")
    if len(dtypes) > 1 and not float32_too:
        names = sorted(str(d).removeprefix("torch.") for d in dtypes)
        raise ValueError(f"{name}: mixes {' and '.join(names)}; convert one side, with .cast(...) for a tensor or "
                         ".astype(np.float32) for an array (NumPy makes float64 unless told otherwise)")


def _fail(name, problem, hint, **arguments):
    shapes = ", ".join(f"{k} {tuple(a.shape)}" for k, a in arguments.items() if a is not None)
    raise ValueError(f"{name}: {problem} ({shapes}); {hint}")


def _integers(name, what, array):
    if not is_integer(array):
        raise ValueError(f"{name}: {what} must be integers, not {array.dtype}; use {what}.astype(np.int64)")


def _broadcast(name, arrays, options, labels=("a", "b")):
    if len({tuple(a.shape) for a in arrays}) == 1:
        return
    try:
        np.broadcast_shapes(*(tuple(a.shape) for a in arrays))
    except ValueError:
        longest = max(a.ndim for a in arrays)
        padded = [(1,) * (longest - a.ndim) + tuple(a.shape) for a in arrays]
        axis = max(i for i, sizes in enumerate(zip(*padded)) if len(set(sizes) - {1}) > 1) - longest
        _fail(name, f"the shapes disagree in axis {axis}", "sizes must be equal or 1, counted from the last axis; "
              "perhaps one side needs .reshape(...) or .transpose(-1, -2)", **dict(zip(labels, arrays)))


def _where(name, arrays, options):
    _broadcast(name, arrays, options, ("condition", "a", "b"))


def _matmul(name, arrays, options):
    a, b = arrays
    if not a.ndim or not b.ndim:
        _fail(name, "a number has no rows or columns", "use * to scale", a=a, b=b)
    inner = b.shape[-2] if b.ndim > 1 else b.shape[0]
    if a.shape[-1] != inner:
        _fail(name, f"the columns of a ({a.shape[-1]}) must be the rows of b ({inner})",
              "did you mean b.transpose(-1, -2)?" if a.shape[-1] == b.shape[-1] else "check which axis is summed",
              a=a, b=b)
    try:
        np.broadcast_shapes(tuple(a.shape[:-2]), tuple(b.shape[:-2]))
    except ValueError:
        _fail(name, "the batch axes do not broadcast", "all axes but the last two must be equal or 1", a=a, b=b)


def _linear(name, arrays, options):
    x, weight, bias = (*arrays, None)[:3]
    if weight.ndim != 2 or not x.ndim or x.shape[-1] != weight.shape[1]:
        _fail(name, "the last axis of x must be the second of weight", "weight is (out_features, in_features); "
              "a weight stored the other way round needs .T", x=x, weight=weight)
    _bias(name, weight, bias)


def _linear_int8(name, arrays, options):
    x, weight, scale, bias = arrays
    _linear(name, (x, weight, bias), options)
    if str(weight.dtype).removeprefix("torch.") != "int8" or tuple(scale.shape) != (weight.shape[0],):
        _fail(name, f"weight must be int8, not {weight.dtype}, and scale must have shape ({weight.shape[0]},)",
              "Int8.of(weight) makes both", weight=weight, scale=scale)
    if not is_float(x) or bias is not None and bias.dtype != x.dtype:
        _fail(name, "x and bias must be floating point, and of one dtype", "convert one side", x=x, bias=bias)


def _fused_linear(name, arrays, options):
    x, weight, scale, bias, norm_weight, norm_bias, residual = arrays
    (_linear if scale is None else _linear_int8)(name, (x, weight, bias) if scale is None else arrays[:4], options)
    _norm(name, (x, norm_weight, norm_bias), options)
    if residual is not None and tuple(residual.shape) != (*x.shape[:-1], weight.shape[0]):
        _fail(name, "the residual must have the shape of the output", "fused operations do not broadcast", x=x,
              weight=weight, residual=residual)
    if options["norm"] not in (None, "layer_norm", "rms_norm") or options["activation"] not in (None, "gelu"):
        raise ValueError(f'{name}: norm must be None, "layer_norm" or "rms_norm", and activation None or "gelu", not '
                         f"{options['norm']!r} and {options['activation']!r}")


def _bias(name, weight, bias):
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        _fail(name, f"bias must have shape ({weight.shape[0]},)", "one number per output feature",
              weight=weight, bias=bias)


def _mlp(name, arrays, options):
    x, weight1, bias1, weight2, bias2 = arrays
    _linear(name, (x, weight1, bias1), options)
    if weight2.ndim != 2 or weight2.shape[1] != weight1.shape[0]:
        _fail(name, "the second axis of weight2 must be the first of weight1",
              "weights are (out_features, in_features)", weight1=weight1, weight2=weight2)
    _bias(name, weight2, bias2)


def _embedding(name, arrays, options):
    ids, weight = arrays
    _integers(name, "ids", ids)
    if weight.ndim != 2 or not is_float(weight):
        _fail(name, f"weight must be a matrix of floating-point numbers, not {weight.dtype}",
              "it is (vocabulary, features)", weight=weight)


def _norm(name, arrays, options):
    x, *vectors = arrays
    for label, vector in zip(("weight", "bias"), vectors):
        if vector is not None and (not x.ndim or tuple(vector.shape) != (x.shape[-1],)):
            _fail(name, f"{label} must match the last axis of x", "one number per feature", x=x, **{label: vector})


def _add_layer_norm(name, arrays, options):
    x, branch, *vectors = arrays
    _same(name, (x, branch), options)
    _norm(name, (x, *vectors), options)


def _same(name, arrays, options):
    a, b = arrays
    if tuple(a.shape) != tuple(b.shape):
        _fail(name, "both arguments must have one shape", "fused operations do not broadcast", a=a, b=b)


def _attention(name, arrays, options):
    q, k, v, bias, start, end, rng = (*arrays, *[None] * 7)[:7]
    if not q.ndim == k.ndim == v.ndim == 4 or k.shape[:3] != v.shape[:3]:
        _fail(name, "q must be (B, T, H, D), k and v (B, S, K, D)", "split the features into heads with .reshape",
              q=q, k=k, v=v)
    if q.shape[0] != k.shape[0] or not q.shape[3] == k.shape[3] == v.shape[3]:
        _fail(name, "q, k and v must agree in batch (axis 0) and head size (axis 3)", "check the reshape into heads",
              q=q, k=k, v=v)
    if k.shape[2] == 0 or q.shape[2] % k.shape[2]:
        _fail(name, "the heads of q (axis 2) must be a multiple of those of k", "each key head serves equally many",
              q=q, k=k)
    full = (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
    if bias is not None and (bias.ndim != 4 or any(n not in (m, 1) for n, m in zip(bias.shape[:2], full))
                             or tuple(bias.shape[2:]) != full[2:]):
        _fail(name, f"bias must be {full}, batch and heads may be 1", "it is added to the scores", q=q, k=k, bias=bias)
    _attention_options(name, q.shape[0], start, end, rng, options)


def _self_attention(name, arrays, options):
    qkv, start, end, rng = (*arrays, *[None] * 4)[:4]
    heads = options["n_head"]
    if qkv.ndim != 3 or heads < 1 or qkv.shape[2] % (3 * heads):
        _fail(name, f"qkv must be (B, T, 3 * C) with C a multiple of n_head={heads}", "check n_head", qkv=qkv)
    _attention_options(name, qkv.shape[0], start, end, rng, options)


def _attention_options(name, batch, start, end, rng, options):
    for label, array in (("key_start", start), ("key_end", end)):
        if array is not None:
            _integers(name, label, array)
            if tuple(array.shape) != (batch,):
                _fail(name, f"{label} must be ({batch},)", "one number per batch row", **{label: array})
    if options.get("dropout"):
        _probability(name, rng, options["dropout"])


def _recurrent(name, arrays, options):
    x, *states, weight_ih, weight_hh, bias_ih, bias_hh = arrays
    gates = {"rnn": 1, "gru": 3, "lstm": 4}[name]
    if x.ndim != 3 or x.shape[1] < 1:
        _fail(name, "x must be (B, T, C) with at least one step", "one text is a batch of one: x[None]", x=x)
    (B, _, C), hidden = x.shape, weight_hh.shape[-1] if weight_hh.ndim else 0
    rows = f"{gates} * {hidden}" if gates > 1 else hidden
    if tuple(weight_hh.shape) != (gates * hidden, hidden) or tuple(weight_ih.shape) != (gates * hidden, C):
        _fail(name, f"weight_ih must be ({rows}, {C}) and weight_hh ({rows}, {hidden})", "a row for each feature of "
              "the state" + (" and each gate" if gates > 1 else ""), x=x, weight_ih=weight_ih, weight_hh=weight_hh)
    for label, state in zip(("h0", "c0"), states):
        if state is not None and tuple(state.shape) != (B, hidden):
            _fail(name, f"{label} must be ({B}, {hidden})", "one state per batch row, or None for zeros",
                  **{label: state})
    for label, bias in (("bias_ih", bias_ih), ("bias_hh", bias_hh)):
        if bias is not None and tuple(bias.shape) != (gates * hidden,):
            _fail(name, f"{label} must have shape ({gates * hidden},)", "one number per row of its weight",
                  **{label: bias})


def _dropout(name, arrays, options):
    _probability(name, arrays[1], options["p"])


def _probability(name, rng, p):
    if not 0 <= p < 1 or rng is None:
        raise ValueError(f"{name}: the dropout probability must be in [0, 1) and needs rng=(seed, step), got p={p}")


def _rope(name, arrays, options):
    x, cos, sin, position = (*arrays, None)[:4]
    if x.ndim != 4 or x.shape[-1] % 2 or tuple(cos.shape) != tuple(sin.shape) \
            or tuple(cos.shape) != (x.shape[1] if position is None else cos.shape[0], x.shape[3] // 2):
        _fail(name, "x must be (B, T, H, D) with D even, cos and sin (T, D/2)", "check the tables",
              x=x, cos=cos, sin=sin)


def _cross_entropy(name, arrays, options):
    logits, targets = arrays
    _targets(name, logits, targets, options)


def _linear_cross_entropy(name, arrays, options):
    x, weight, targets = arrays
    _linear(name, (x, weight), options)
    _targets(name, x, targets, options)


def _targets(name, x, targets, options):
    _integers(name, "targets", targets)
    if tuple(x.shape[:-1]) != tuple(targets.shape):
        _fail(name, "there must be one target per row", "all axes but the last must agree", x=x, targets=targets)
    if options.get("reduction", "mean") not in ("mean", "sum", "none"):
        raise ValueError(f'{name}: reduction must be "mean", "sum" or "none", not {options["reduction"]!r}')
    if not 0 <= options.get("label_smoothing", 0) <= 1:
        raise ValueError(f"{name}: label_smoothing must be between 0 and 1, not {options['label_smoothing']}")


def _axis(name, arrays, options):
    (x,), axes = arrays, options.get("axis")
    axes = [axis(name, x, a) for a in (() if axes is None else axes if isinstance(axes, tuple) else (axes,))]
    if len(set(axes)) < len(axes):
        _fail(name, f"axis {max(axes, key=axes.count)} is named twice", "name each axis once", x=x)
    if name == "max" and 0 in ([x.shape[a] for a in axes] or [math.prod(x.shape)]):
        _fail(name, "there is no maximum of nothing", "skip empty tensors", x=x)


def _reshape(name, arrays, options):
    (x,), shape = arrays, options["shape"]
    size, known = math.prod(x.shape), math.prod(n for n in shape if n != -1)
    if size != known if -1 not in shape else shape.count(-1) > 1 or known == 0 or size % known:
        _fail(name, f"{size} elements do not fill shape {shape}", "one entry may be -1", x=x)


def _permute(name, arrays, options):
    (x,), axes = arrays, options["axes"]
    if sorted(a + x.ndim if a < 0 else a for a in axes) != list(range(x.ndim)):
        _fail(name, f"{axes} does not name each of the {x.ndim} axes once", "list every axis", x=x)


def _concatenate(name, arrays, options):
    first = arrays[0]
    along = axis(name, first, options.get("axis", 0))
    rest = [[n for i, n in enumerate(a.shape) if i != along] for a in arrays]
    if any(a.ndim != first.ndim for a in arrays) or any(r != rest[0] for r in rest):
        _fail(name, f"all axes but {along} must agree", "check the shapes",
              **{f"tensor {i}": a for i, a in enumerate(arrays)})


def _split(name, arrays, options):
    (x,), sizes = arrays, options["sizes"]
    along = axis(name, x, options.get("axis", 0))
    if sum(sizes) != x.shape[along] or min(sizes, default=0) < 0:
        _fail(name, f"the sizes {sizes} must be 0 or more and add up to the length of axis {along}",
              "give a length, or a list of lengths", x=x)


def _sample(name, arrays, options):
    (logits,), temperature, top_k, top_p = arrays, options["temperature"], options["top_k"] or 0, options["top_p"]
    if logits.ndim != 2 or not logits.shape[1]:
        _fail(name, "logits must be (B, V)", "one text is a batch of one: logits[None]", logits=logits)
    if not 0 <= temperature <= 1e30 or top_k < 0 or top_k != int(top_k) or not 0 < (1 if top_p is None else top_p) <= 1:
        raise ValueError(f"{name}: temperature must be a number from 0 to 1e30, top_k a whole number from 0 on, and "
                         f"top_p above 0 and at most 1; got temperature={temperature}, top_k={options['top_k']}, "
                         f"top_p={top_p}")
    if not 0 <= (options.get("min_p") or 0) <= 1:
        raise ValueError(f"{name}: min_p must be a number from 0 to 1, not {options['min_p']}")


def _gelu(name, arrays, options):
    if options["approximate"] not in ("none", "tanh"):
        raise ValueError(f'{name}: approximate must be "none" (exact) or "tanh", not {options["approximate"]!r}')


RULES = dict(
    gelu=_gelu, sample=_sample,
    add=_broadcast, sub=_broadcast, mul=_broadcast, div=_broadcast, pow=_broadcast,
    maximum=_broadcast, where=_where,
    sum=_axis, mean=_axis, max=_axis, reshape=_reshape, permute=_permute, concatenate=_concatenate, split=_split,
    matmul=_matmul, linear=_linear, linear_int8=_linear_int8, linear_gelu=_linear,
    fused_linear=_fused_linear, mlp=_mlp, embedding=_embedding,
    layer_norm=_norm, rms_norm=_norm,
    add_layer_norm=_add_layer_norm, swiglu=_same, attention=_attention, self_attention=_self_attention, rope=_rope,
    rnn=_recurrent, lstm=_recurrent, gru=_recurrent,
    dropout=_dropout, cross_entropy=_cross_entropy, linear_cross_entropy=_linear_cross_entropy,
)
FLOATS = dict(      # how many of the arguments, from the first on, must be floating point
    erf=1, gelu=1, silu=1, swiglu=2, linear=3, linear_gelu=3, mlp=5, layer_norm=3, add_layer_norm=4, rms_norm=2,
    softmax=1, log_softmax=1, attention=4, self_attention=1, rope=3, rnn=6, lstm=7, gru=6, dropout=1, sample=1,
    cross_entropy=1, linear_cross_entropy=2,
)
