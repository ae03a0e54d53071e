"""Inputs: arrays of all kinds, and for every operation the cases that tests run it on.

A case is (arrays, options), the arguments of the operation in functional.py. Arrays of floats become Tensors that
require a gradient; integers, booleans and None are passed on as they are. A maker builds a case from a few sizes; FIXED
lists sizes that must always be tried (block edges, size 1, nothing at all), DRAWN says how Hypothesis draws others.
"""

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

FEW, SOME = st.integers(1, 3), st.integers(1, 6)
SCALES = st.sampled_from([1.0, 1.0, 30.0])      # 30: a softmax of such logits is nearly one-hot
LAYOUTS = ["plain", "transposed", "strided", "reversed"]


def normal(*shape, seed=0, size=1.0):
    """Normal numbers that float32 holds exactly, as float64: a case is the same in both."""
    numbers = np.random.default_rng([seed, *shape]).standard_normal(shape, dtype=np.float32) * np.float32(size)
    return np.asarray(numbers, np.float64)


def integers(high, *shape, seed=0, low=0):
    return np.random.default_rng([seed, *shape]).integers(low, high, shape)


def away_from_zero(array, distance=0.5):
    return np.where(array < 0, array - distance, array + distance)


def lay(array, layout):
    """The same values, laid out in memory in another way."""
    if not array.ndim:
        return array
    if layout == "transposed":
        return np.ascontiguousarray(array.T).T
    if layout == "strided":
        wide = np.full((*array.shape, 2), np.nan, array.dtype)
        wide[..., 0] = array
        return wide[..., 0]
    if layout == "reversed":
        return np.ascontiguousarray(array[::-1])[::-1]
    return array


# Makers. Primitives first.

def unary(shape=(2, 3), size=1.0):
    return (normal(*shape, size=size),), {}


def positive(shape=(2, 3)):
    return (np.asarray(np.abs(normal(*shape)) + 0.125),), {}


def binary(shapes=((3, 3), (3,))):
    return tuple(normal(*shape, seed=i) for i, shape in enumerate(shapes)), {}


def quotient(shapes=((2, 3), (3,))):
    a, b = binary(shapes)[0]
    return (a, away_from_zero(b)), {}


def power(shapes=((2, 3), (3,))):
    a, b = binary(shapes)[0]
    return (np.asarray(np.abs(a) + 0.125), b), {}


def choice(shapes=((2, 3), (3,), ())):
    condition, a, b = binary(shapes)[0]
    return (np.asarray(condition > 0), a, b), {}


def reduction(shape=(2, 3, 4), axis=1, keepdims=False):
    """axis: None, a number or a tuple; taken modulo the number of axes that there are."""
    fit = lambda i: i % len(shape) - len(shape) * (i < 0)
    if axis is not None and shape:
        axis = fit(axis) if isinstance(axis, int) else tuple({i % len(shape): fit(i) for i in axis}.values())
    return (normal(*shape),), {"axis": axis if shape else None, "keepdims": keepdims}


def reshape(shape=(2, 3, 4), to=(6, -1)):
    return (normal(*shape),), {"shape": to}


def permute(shape=(2, 3, 4), axes=(2, 0, 1)):
    return (normal(*shape),), {"axes": axes}


def getitem(shape=(4, 3), index=np.array([1, 1, 3, 1])):
    return (normal(*shape),), {"index": index}


def concatenate(sizes=(2, 1, 3), before=(2,), after=(3,)):
    return tuple(normal(*before, n, *after, seed=i) for i, n in enumerate(sizes)), {"axis": len(before)}


def split(sizes=(2, 1, 3), before=(2,), after=(3,)):
    return (normal(*before, sum(sizes), *after),), {"sizes": tuple(sizes), "axis": len(before)}


def cast(shape=(2, 3), dtype=np.float64):
    return (normal(*shape),), {"dtype": dtype}


# Makers of the fused operations.

def linear(rows=(2, 3), n_in=4, n_out=4, bias=True):
    return (normal(*rows, n_in), normal(n_out, n_in, seed=1), normal(n_out, seed=2) if bias else None), {}


def mlp(rows=(2, 3), n_in=4, n_hidden=5, n_out=3, bias=True):
    (x, weight1, *bias1), _ = linear(rows, n_in, n_hidden, bias)
    (_, weight2, *bias2), _ = linear(rows, n_hidden, n_out, bias)
    return (x, weight1, *(bias1 or [None]), weight2 + 0.1, *(bias2 or [None])), {}


def embedding(rows=(2, 5), vocabulary=4, channels=3):
    return (integers(vocabulary, *rows), normal(vocabulary, channels)), {}


def gelu(shape=(2, 3), size=1.0, approximate="none"):
    return (normal(*shape, size=size),), {"approximate": approximate}


def pair(shape=(2, 3)):
    return (normal(*shape), normal(*shape, seed=1)), {}


def layer_norm(rows=(2, 3), channels=5, bias=True, mean=0.0, constant=False):
    """Signs alternate: in a nearly constant row the slope changes faster than finite differences can follow."""
    x = away_from_zero(np.abs(normal(*rows, channels))) * np.resize([1, -1], channels) + mean
    x = np.ones_like(x) if constant else x
    return (x, normal(channels, seed=1), normal(channels, seed=2) if bias else None), {}


def add_layer_norm(rows=(2, 3), channels=5, bias=True):
    x, weight, bias = layer_norm(rows, channels, bias)[0]
    return (x, normal(*x.shape, seed=3), weight, bias), {}


def rms_norm(rows=(2, 3), channels=5):
    return layer_norm(rows, channels)[0][:2], {}


def softmax(rows=(2, 3), channels=5, size=1.0):
    return (normal(*rows, channels, size=size),), {}


def attention(B=2, T=3, H=2, D=4, S=None, groups=1, bias=None, keys=None, size=1.0, hidden=False, **options):
    """bias: which of the axes (B, H) it has, as in (True, False). keys: limits at random, some rows see nothing.
    hidden: a bias of -inf, which is how arbitrary masks come in; row 0 sees nothing."""
    S = T if S is None else S
    q, k, v = normal(B, T, H * groups, D, size=size), normal(B, S, H, D, seed=1), normal(B, S, H, D, seed=2)
    if bias is not None:
        bias = normal(B if bias[0] else 1, H * groups if bias[1] else 1, T, S, seed=3)
        if hidden:
            bias = np.where((bias > 0.5) | (np.arange(T) == 0)[:, None], -np.inf, bias)
    start, end = (integers(S + 2, B, seed=4, low=-1), integers(S + 2, B, seed=5, low=-1)) if keys else (None, None)
    return (q, k, v, bias, start if keys != "end" else None, end if keys != "start" else None), options


def self_attention(B=2, T=3, H=2, D=4, keys=None, size=1.0, **options):
    start, end = attention(B, T, H, D, keys=keys)[0][4:]
    return (normal(B, T, 3 * H * D, size=size), start, end), {"n_head": H, **options}


def rope(B=2, T=3, H=2, half=2, interleaved=False, start=0):
    return (normal(B, T, H, 2 * half),), {"positions": np.arange(start, start + T), "interleaved": interleaved}


def dropout(shape=(4, 5), p=0.3):
    return (normal(*shape),), {"p": p}


def rnn(B=2, T=3, n_in=4, n_hidden=5, bias=(True, True), states=(True,), gates=1, size=0.5):
    """bias, states: which of the biases and of the initial states there are."""
    sizes = [(gates * n_hidden, n_in), (gates * n_hidden, n_hidden)]
    weights = [normal(*shape, seed=i, size=size) for i, shape in enumerate(sizes)]
    biases = [normal(gates * n_hidden, seed=3 + i) if there else None for i, there in enumerate(bias)]
    states = [normal(B, n_hidden, seed=5 + i) if there else None for i, there in enumerate(states)]
    return (normal(B, T, n_in, seed=7), *states, *weights, *biases), {}


def lstm(states=(True, True), **sizes):
    return rnn(states=states, gates=4, **sizes)


def cross_entropy(rows=(2, 3), vocabulary=5, ignored="some", size=1.0, **options):
    """ignored: "none", "some" or "all" of the targets."""
    targets, number = integers(vocabulary, *rows, seed=1), np.arange(np.prod(rows, dtype=int)).reshape(rows)
    left_out = {"none": number < 0, "some": number % 3 == 1, "all": number >= 0}[ignored]
    targets = np.where(left_out, options.get("ignore_index", -100), targets)
    return (normal(*rows, vocabulary, size=size), targets), options


def linear_cross_entropy(rows=(2, 3), vocabulary=5, channels=4, **options):
    (_, targets), options = cross_entropy(rows, vocabulary, **options)
    return (normal(*rows, channels), normal(vocabulary, channels, seed=1), targets), options


ROWS = [dict(rows=(65,)), dict(rows=()), dict(rows=(1, 1)), dict(rows=(0,)), dict(rows=(2, 0))]
LOSSES = [dict(reduction="sum"), dict(reduction="none"), dict(label_smoothing=0.1), dict(ignored="all"),
          dict(ignored="none", reduction="mean"), dict(ignore_index=2, label_smoothing=1.0, reduction="none")]
KEYS = [dict(keys="start"), dict(keys="end", causal=False), dict(keys="both"), dict(keys="both", causal=False, T=5)]
EDGES = [dict(B=1, H=1, T=63, D=3), dict(B=1, H=1, T=64), dict(B=1, T=65), dict(B=1, H=1, T=129, keys="both")]
RECURRENT = [dict(), dict(bias=(False, False)), dict(bias=(True, False)), dict(bias=(False, True), T=1),
             dict(B=1, T=4, n_in=1, n_hidden=1), dict(B=3, T=6, n_hidden=9, size=1.0)]

MAKERS = dict(
    add=binary, sub=binary, mul=binary, div=quotient, pow=power, maximum=binary, where=choice, neg=unary, exp=unary,
    log=positive, sqrt=positive, tanh=unary, sigmoid=unary, relu=unary, erf=unary, sum=reduction, mean=reduction,
    max=reduction, matmul=binary, reshape=reshape, permute=permute, getitem=getitem, concatenate=concatenate,
    split=split, cast=cast, linear=linear, linear_gelu=linear, mlp=mlp, embedding=embedding, gelu=gelu, silu=unary,
    swiglu=pair, layer_norm=layer_norm, add_layer_norm=add_layer_norm, rms_norm=rms_norm, softmax=softmax,
    log_softmax=softmax, attention=attention, self_attention=self_attention, rope=rope, dropout=dropout,
    cross_entropy=cross_entropy, linear_cross_entropy=linear_cross_entropy, rnn=rnn, lstm=lstm,
)
FUSED = list(MAKERS)[list(MAKERS).index("linear"):]
PRIMITIVES = [op for op in MAKERS if op not in FUSED]

_SHAPES = [dict(shape=()), dict(shape=(1,)), dict(shape=(0, 3)), dict(shape=(2, 1, 3))]
_PAIRS = [dict(shapes=shapes) for shapes in (((), (2, 3)), ((2, 1), (1, 3)), ((0, 3), (1, 1)), ((3, 1, 2), (2, 1)))]
_REDUCTIONS = [dict(axis=None), dict(axis=(0, -1), keepdims=True), dict(axis=-1), dict(shape=()),
               dict(axis=None, keepdims=True)]
_PIECES = [dict(), dict(sizes=(1,)), dict(sizes=(0, 2), before=()), dict(sizes=(1, 1), before=(2, 0), after=())]
_MATRICES = [((3, 2, 4), (4, 5)), ((4,), (4,)), ((4,), (3, 4, 2)), ((2, 3, 4), (4,)), ((2, 1, 3, 4), (5, 4, 1)),
             ((3, 0), (0, 2)), ((0, 3, 4), (4, 2)), ((1, 1), (1, 1))]
_INDICES = [-1, (slice(None), 2), (slice(3, 0, -2), None), (Ellipsis, [0, 0, 2]),
            (np.array([[0, 3], [3, 3]]), np.array([1, 1])), normal(4, 3) > 0, slice(2, 2), (0, 1),
            ((0, 0, 2),), range(3)]

FIXED = {op: [dict(), *_SHAPES] for op in MAKERS if MAKERS[op] in (unary, positive, gelu, dropout, pair, cast)}
FIXED |= {op: [dict(), *_PAIRS] for op in MAKERS if MAKERS[op] in (binary, quotient, power)}
FIXED |= dict(
    where=[dict(), dict(shapes=((2, 1), (1, 3), (3,)))],
    sum=[dict(), *_REDUCTIONS, dict(shape=(0, 3), axis=0)], mean=[dict(), *_REDUCTIONS], max=[dict(), *_REDUCTIONS],
    matmul=[dict(shapes=shapes) for shapes in _MATRICES],
    reshape=[dict(), dict(shape=(1,), to=()), dict(shape=(0, 3), to=(3, -1, 2)), dict(to=(4, 3, 2))],
    permute=[dict(), dict(shape=(), axes=()), dict(axes=(-1, 0, 1)), dict(shape=(0, 2), axes=(1, 0))],
    getitem=[dict(), *[dict(index=index) for index in _INDICES]],
    concatenate=_PIECES, split=_PIECES,
    linear=[dict(bias=False), dict(n_in=3, n_out=65), dict(n_in=1, n_out=1), dict(n_in=0), *ROWS],
    mlp=[dict(), dict(bias=False), dict(n_hidden=65), dict(n_in=1, n_hidden=1, n_out=1), *ROWS],
    embedding=[dict(vocabulary=1), dict(channels=1), *ROWS], gelu=[*FIXED["gelu"], dict(approximate="tanh", size=4.0)],
    layer_norm=[dict(bias=False), dict(channels=1), dict(constant=True), dict(mean=300.0, channels=33), *ROWS],
    add_layer_norm=[dict(bias=False), dict(channels=1), *ROWS], rms_norm=[dict(channels=1), *ROWS],
    softmax=[dict(size=30.0), dict(size=1e4), dict(channels=1), *ROWS],
    cross_entropy=[dict(), dict(vocabulary=1), dict(size=30.0), *LOSSES, *ROWS],
    linear_cross_entropy=[dict(), dict(vocabulary=1), *LOSSES, *ROWS],
    attention=[
        dict(), dict(causal=True, groups=3), dict(T=2, S=5, causal=True), dict(T=5, S=2, causal=True), dict(T=1, S=1),
        dict(bias=(True, True)), dict(bias=(False, True), causal=True), dict(bias=(True, False), groups=2),
        dict(bias=(False, False), hidden=True, T=5), dict(scale=0.3), dict(dropout=0.4, causal=True), dict(size=30.0),
        dict(size=1e4, causal=True), dict(S=0, groups=2), dict(T=0, groups=2), dict(B=0, groups=2),
        dict(T=65, S=70, B=1, causal=True, keys="both"), dict(T=129, S=3, B=1, H=1, D=2, bias=(False, False)),
        *[{"causal": True, **sizes} for sizes in KEYS + EDGES]],
    self_attention=[dict(), dict(causal=False), dict(dropout=0.4), dict(scale=0.3), dict(T=1), dict(T=0), dict(B=0),
                    dict(size=30.0), *KEYS, *EDGES],
    rnn=[*RECURRENT, dict(states=(False,))],
    lstm=[*RECURRENT, dict(states=(False, False)), dict(states=(True, False)), dict(states=(False, True), size=4.0)],
    rope=[dict(), dict(interleaved=True), dict(start=100), dict(B=0), dict(T=1, half=1)],
)
FIXED["linear_gelu"], FIXED["log_softmax"] = FIXED["linear"], FIXED["softmax"]


def fixed(*ops, without=None):
    """Parameters (operation, sizes), every fixed case of each, for pytest.mark.parametrize. without: an option."""
    return [pytest.param(op, sizes, id=" ".join([op, *(f"{k}={v}".replace("\n", "") for k, v in sizes.items())]))
            for op in ops for sizes in FIXED[op] if without not in sizes]


def drawn(op, smallest=1):
    """A strategy for cases of `op`. smallest: 0 draws empty arrays too, where they are legal."""
    shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=smallest, max_side=4)
    rows, few = shapes, st.integers(smallest, 3)
    tuples = lambda **options: hnp.mutually_broadcastable_shapes(min_side=smallest, max_side=4, max_dims=3, **options)
    shape_pairs = tuples(num_shapes=2).map(lambda found: found.input_shapes)
    axes = st.one_of(st.none(), st.integers(-3, 2), st.lists(st.integers(-3, 2), min_size=1, max_size=2).map(tuple))
    pieces = dict(sizes=st.lists(few, min_size=1, max_size=3), before=shapes, after=shapes)
    full = hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=4)
    losses = dict(vocabulary=SOME, ignored=st.sampled_from(["none", "some", "all"]),
                  label_smoothing=st.sampled_from([0.0, 0.2]),
                  reduction=st.sampled_from(["mean", "sum", "none"]), ignore_index=st.sampled_from([-100, 0]))
    heads = dict(B=FEW, H=FEW, D=SOME, keys=st.sampled_from([None, None, "start", "end", "both"]), causal=st.booleans(),
                 size=SCALES, dropout=st.sampled_from([0.0, 0.0, 0.5]))
    recurrent = dict(B=few, T=SOME, n_in=SOME, n_hidden=SOME, bias=st.tuples(st.booleans(), st.booleans()))
    sizes = {
        unary: dict(shape=shapes), positive: dict(shape=shapes), pair: dict(shape=shapes), cast: dict(shape=shapes),
        binary: dict(shapes=shape_pairs), quotient: dict(shapes=shape_pairs), power: dict(shapes=shape_pairs),
        choice: dict(shapes=tuples(num_shapes=3).map(lambda found: found.input_shapes)),
        reduction: dict(shape=shapes, axis=axes, keepdims=st.booleans()),
        concatenate: pieces, split: pieces,
        linear: dict(rows=rows, n_in=SOME, n_out=SOME, bias=st.booleans()),
        mlp: dict(rows=rows, n_in=SOME, n_hidden=SOME, n_out=SOME, bias=st.booleans()),
        embedding: dict(rows=rows, vocabulary=SOME, channels=SOME),
        gelu: dict(shape=shapes, size=SCALES, approximate=st.sampled_from(["none", "tanh"])),
        layer_norm: dict(rows=rows, channels=SOME, bias=st.booleans(), mean=st.sampled_from([0.0, 3.0])),
        add_layer_norm: dict(rows=rows, channels=SOME, bias=st.booleans()), rms_norm: dict(rows=rows, channels=SOME),
        softmax: dict(rows=rows, channels=SOME, size=SCALES),
        dropout: dict(shape=shapes, p=st.sampled_from([0.1, 0.9])),
        attention: heads | dict(T=st.integers(smallest, 6), S=st.integers(smallest, 6), groups=FEW,
                                bias=st.none() | st.tuples(st.booleans(), st.booleans())),
        self_attention: heads | dict(T=SOME), rope: dict(B=few, T=few, H=few, half=FEW, interleaved=st.booleans()),
        cross_entropy: losses | dict(rows=rows, size=SCALES),
        linear_cross_entropy: losses | dict(rows=rows, channels=SOME),
        rnn: recurrent | dict(states=st.tuples(st.booleans())),
        lstm: recurrent | dict(states=st.tuples(st.booleans(), st.booleans())),
    }
    strategies = {
        "max": st.builds(reduction, shape=full, axis=axes), "mean": st.builds(reduction, shape=full, axis=axes),
        "matmul": st.builds(binary, tuples(signature=np.matmul.signature).map(lambda found: found.input_shapes)),
        "reshape": full.flatmap(lambda shape: st.builds(reshape, shape=st.just(shape), to=st.sampled_from(
            [(-1,), shape[::-1], (*shape, 1), (shape[0], -1)]))),
        "permute": full.flatmap(lambda shape: st.builds(permute, shape=st.just(shape), axes=st.permutations(
            range(len(shape))).map(tuple))),
        "getitem": full.flatmap(lambda shape: st.builds(getitem, shape=st.just(shape), index=st.one_of(
            hnp.basic_indices(shape, allow_newaxis=True), hnp.integer_array_indices(shape)))),
    }
    return strategies[op] if op in strategies else st.builds(MAKERS[op], **sizes[MAKERS[op]])
