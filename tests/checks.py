"""The checks that several test files share: the views of an operation compute the same numbers, forward and backward.

test_broken.py runs the same functions on broken operations, where each must fail.
"""

import contextlib
import functools

import numpy as np
import pytest
import torch
from strategies import MAKERS, PRIMITIVES, lay, normal

from tinyllm import Tensor, composed, gradcheck, ops, random
from tinyllm import functional as F

EPS32 = float(np.finfo(np.float32).eps)
DROPOUT = {"seed": 3, "step": 1, "site": 0}     # set before each run, so that every view draws the same masks


def _rope(view):
    """Positions instead of tables, so that the tables get the dtype of x; on the Triton backend float32."""
    tables = lambda x, positions: F.rope_tables(
        positions, x.shape[3], dtype=x.dtype if isinstance(x.dtype, np.dtype) else np.float32)
    return lambda x, positions, interleaved: view.rope(x, *tables(x, positions), interleaved)


FUNCTIONAL = {op: getattr(F, op, None) or getattr(Tensor, op, None) for op in MAKERS} | {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b, "div": lambda a, b: a / b,
    "pow": lambda a, b: a ** b, "neg": lambda x: -x, "matmul": lambda a, b: a @ b,
    "reshape": lambda x, shape: x.reshape(shape), "permute": lambda x, axes: x.permute(axes),
    "getitem": lambda x, index: x[index], "concatenate": lambda *pieces, axis: F.concatenate(pieces, axis),
    "rope": _rope(F)}
COMPOSED = {op: getattr(composed, op) for op in MAKERS if hasattr(composed, op)} | {"rope": _rope(composed)}


def as_tuple(value):
    return value if isinstance(value, tuple) else (value,)


def is_float(array):
    return isinstance(array, np.ndarray) and array.dtype.kind == "f"


def leaf(array, dtype=np.float64, layout="plain"):
    """A Tensor that requires a gradient; other arguments stay as they are."""
    if not is_float(array):
        return array
    made = Tensor(array.astype(dtype), requires_grad=True)
    made.data = lay(made.data, layout)
    return made


def upstream(i, shape):
    """The gradient that arrives at output i: nowhere uniform."""
    return normal(*shape, seed=100 + i)


def forward(fn, case, dtype=np.float64, layout="plain"):
    """The inputs as Tensors, and a tuple of outputs."""
    arrays, options = case
    random.set_state(DROPOUT)
    inputs = [leaf(array, dtype, layout) for array in arrays]
    return inputs, as_tuple(fn(*inputs, **options))


def run(fn, case, dtype=np.float64, layout="plain", upstream=upstream):
    """Outputs and gradients, as two lists of arrays; inputs that have no gradient are left out."""
    inputs, outs = forward(fn, case, dtype, layout)
    loss = Tensor(np.zeros((), outs[0].dtype))
    for i, out in enumerate(outs):
        loss += (out * Tensor._of(lay(upstream(i, out.shape).astype(out.dtype), layout))).sum()
    loss.backward()
    return [out.numpy() for out in outs], [t.grad for t in inputs if isinstance(t, Tensor)]


def run_torch(fn, case):
    """run(), by torch in float64."""
    arrays, options = case
    inputs = [None if a is None else torch.tensor(a, requires_grad=is_float(a)) for a in arrays]
    outs = as_tuple(fn(*inputs, **options))
    sum((out * torch.tensor(upstream(i, out.shape))).sum() for i, out in enumerate(outs)).backward()
    return [out.detach().numpy() for out in outs], [t.grad.numpy() for t in inputs if t is not None and t.requires_grad]


def assert_near(name, found, expected, allowed):
    """max |found - expected| <= allowed; equal infinities are near, NaN never is."""
    assert found is not None, f"{name}: there is none"
    assert found.shape == expected.shape, f"{name}: shape {found.shape} instead of {expected.shape}"
    worst = distance(found, expected)
    assert worst <= allowed, f"{name}: off by {worst:.3g}, allowed {allowed:.3g}"


def check_same(found, expected, tolerance=1e-10):
    """Two run()s in float64 agree. Inputs are of size 1, so 1e-10 is far above rounding and far below any mistake."""
    for kind, ours, theirs in zip(("output", "gradient"), found, expected):
        assert len(ours) == len(theirs), f"{len(ours)} {kind}s instead of {len(theirs)}"
        for i, (a, b) in enumerate(zip(ours, theirs)):
            assert_near(f"{kind} {i}", a, b, tolerance * np.abs(b[np.isfinite(b)]).max(initial=1))


def check_composed(op, case, layout="plain"):
    """functional = composed, to the last digits of float64."""
    check_same(run(FUNCTIONAL[op], case, layout=layout), run(COMPOSED[op], case))


def check_torch(op, case, layout="plain"):
    """functional = torch.autograd."""
    check_same(run(FUNCTIONAL[op], case, layout=layout), run_torch(TORCH[op], case))


def check_gradient(op, case):
    """The gradients of functional are those of finite differences."""
    arrays, options = case
    fn = lambda *inputs: FUNCTIONAL[op](*inputs, **options)
    gradcheck(fn, [leaf(array) for array in arrays])


def check_float32(op, case, layout="plain"):
    """In float32: max|error| <= 2 (gradients: 3) * max|error of composed float32| + 4 * what rounding can amount to.

    The truth is composed in float64, from the same numbers. The second summand allows for bad luck where the composed
    computation is lucky: how far the truth moves when each intermediate result is rounded at random, and for gradients
    eps * (largest sum of |terms|) as well, since a fused backward pass may add up the same terms in another order.
    """
    truth, plain = run(COMPOSED[op], case), run(COMPOSED[op], case, np.float32)
    found = run(FUNCTIONAL[op], case, np.float32, layout)
    moved = []
    for seed in range(3):
        with random_rounding(seed):
            moved.append(run(COMPOSED[op], case))
    with absolute_values():
        terms = run(COMPOSED[op], case)
    for kind, factor, *results in zip(("output", "gradient"), (2, 3), truth, plain, found, terms, *moved):
        for i, (true, near, ours, sums, *others) in enumerate(zip(*results, strict=True)):
            rounding = max(distance(other, true) for other in others)
            rounding += EPS32 * np.abs(sums).max(initial=0) if kind == "gradient" else 0
            assert ours.dtype == np.float32, f"{kind} {i} is {ours.dtype}"
            assert_near(f"{kind} {i}", ours, true, factor * distance(near, true) + 4 * rounding)


def distance(a, b):
    """max |a - b|; equal infinities are not apart."""
    with np.errstate(invalid="ignore"):
        return np.where(a == b, 0, np.abs(a - b)).max(initial=0)


@contextlib.contextmanager
def changed_primitives(forward, backward):
    """Inside, forward(op, real, *arrays, **options) and backward(op, real, *douts, saved) replace the primitives."""
    with pytest.MonkeyPatch.context() as patch:
        for op in PRIMITIVES:
            for suffix, new in (("_forward", forward), ("_backward", backward)):
                patch.setattr(ops, op + suffix, functools.partial(new, op, getattr(ops, op + suffix)))
        yield


def random_rounding(seed, unit=EPS32 / 2):
    """Inside, each result of a primitive, forward and backward, is off by the factor 1 + unit or 1 - unit, at random.

    unit: the largest relative error of one rounding, by default to float32.
    """
    rng = np.random.default_rng(seed)

    def shake(x):
        if isinstance(x, tuple):
            return tuple(map(shake, x))
        return x if x is None or x.dtype.kind != "f" else x * (1 + unit * rng.choice([-1, 1], x.shape))

    def forward(op, real, *arrays, **options):
        out, saved = real(*arrays, **options)
        return shake(out), saved

    return changed_primitives(forward, lambda op, real, *douts, saved: shake(tuple(real(*douts, saved=saved))))


def absolute_values():
    """Inside, backward() takes the absolute value of everything: nothing cancels, and gradients become sums of |terms|.

    This is so easy because of what primitives are: each multiplies the gradient that arrives with a derivative, element
    by element, or moves it. Only a matrix product must be told to take the absolute value of its factors first.
    """
    def backward(op, real, *douts, saved):
        if op == "matmul":
            saved = (*map(np.abs, saved[:2]), *saved[2:])
        grads = real(*(None if d is None else np.abs(d) for d in douts), saved=saved)
        return tuple(None if g is None else np.abs(g) for g in grads)

    return changed_primitives(lambda op, real, *arrays, **options: real(*arrays, **options), backward)


# torch's own operations, as independent witnesses.

def _torch_getitem(x, index):
    """Look up which elements NumPy would take: torch itself knows no negative steps."""
    return x.reshape(-1)[torch.as_tensor(np.arange(x.numel()).reshape(x.shape)[index].copy())]


def _over(reduce):
    """A torch reduction that takes axis and keepdims as NumPy does."""
    return lambda x, axis, keepdims: reduce(x, dim=tuple(range(x.ndim)) if axis is None else axis, keepdim=keepdims)


def _torch_norm(x, weight, bias=None):
    return torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias)


def _torch_attention(q, k, v, bias=None, key_start=None, key_end=None, *, causal=False, scale=None):
    (B, T, H, _), S = q.shape, k.shape[1]
    query, key = torch.arange(T)[:, None], torch.arange(S)
    seen = torch.ones(B, 1, T, S, dtype=torch.bool)
    if causal:
        seen = seen & (key <= query + S - T)
    if key_start is not None:
        seen = seen & (key >= key_start[:, None, None, None])
    if key_end is not None:
        seen = seen & (key < key_end[:, None, None, None])
    anything = seen.any(-1, keepdim=True)           # torch has NaN where a query sees nothing: let it see all, drop it
    mask = torch.zeros(B, H, T, S, dtype=q.dtype).masked_fill(~(seen | ~anything), -torch.inf)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask if bias is None else mask + bias, scale=scale,
                                                           enable_gqa=True)
    return (out * anything).transpose(1, 2)


def _torch_self_attention(qkv, key_start, key_end, *, n_head, causal=True, scale=None):
    B, T, C3 = qkv.shape
    q, k, v = (part.reshape(B, T, n_head, C3 // 3 // n_head) for part in qkv.split(C3 // 3, dim=2))
    return _torch_attention(q, k, v, None, key_start, key_end, causal=causal, scale=scale).reshape(B, T, C3 // 3)


def _torch_rope(x, positions, interleaved):
    """Multiply complex numbers by e^(i angle)."""
    half = x.shape[-1] // 2
    a, b = (x[..., ::2], x[..., 1::2]) if interleaved else (x[..., :half], x[..., half:])
    angles = torch.outer(torch.tensor(positions), 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half))
    turned = torch.complex(a, b) * torch.polar(torch.ones_like(angles), angles)[:, None]
    parts = torch.stack([turned.real, turned.imag], dim=-1)
    return (parts if interleaved else parts.transpose(-1, -2)).reshape(x.shape)


def _torch_recurrent(function, gates):
    """torch's RNN of one layer; it wants all states and biases or none, so those left out are zeros."""
    def run(x, *rest):
        *states, weight_ih, weight_hh, bias_ih, bias_hh = rest
        states = [x.new_zeros(len(x), weight_hh.shape[1]) if state is None else state for state in states]
        biases = [x.new_zeros(len(weight_hh)) if bias is None else bias for bias in (bias_ih, bias_hh)]
        states = [state[None] for state in states]                  # one layer
        out, *last = function(x, states if gates == 4 else states[0], [weight_ih, weight_hh, *biases], True, 1, 0.0,
                              False, False, True)
        return out, *(state[0] for state in last)
    return run


def _torch_cross_entropy(logits, targets, **options):
    if options.get("reduction", "mean") == "mean" and bool((targets == options.get("ignore_index", -100)).all()):
        return logits.sum() * 0                     # torch says NaN where nothing counts
    rows, flat = logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)
    loss = torch.nn.functional.cross_entropy(rows, flat, **options)
    return loss.reshape(targets.shape) if options.get("reduction") == "none" else loss


TORCH = {op: getattr(torch, op) for op in ("add", "sub", "mul", "div", "pow", "maximum", "where", "neg", "exp", "log",
                                           "sqrt", "tanh", "sigmoid", "relu", "erf", "matmul")} | {
    "sum": _over(torch.sum), "mean": _over(torch.mean), "max": _over(torch.amax),
    "reshape": torch.reshape, "permute": lambda x, axes: x.permute(axes), "getitem": _torch_getitem,
    "concatenate": lambda *pieces, axis: torch.cat(pieces, axis),
    "split": lambda x, sizes, axis: torch.split(x, sizes, axis),
    "linear": torch.nn.functional.linear, "embedding": torch.nn.functional.embedding, "gelu": torch.nn.functional.gelu,
    "linear_gelu": lambda *xs: torch.nn.functional.gelu(torch.nn.functional.linear(*xs), approximate="tanh"),
    "mlp": lambda x, w1, b1, w2, b2: torch.nn.functional.linear(
        torch.nn.functional.gelu(torch.nn.functional.linear(x, w1, b1), approximate="tanh"), w2, b2),
    "silu": torch.nn.functional.silu, "swiglu": lambda gate, x: torch.nn.functional.silu(gate) * x,
    "layer_norm": _torch_norm, "add_layer_norm": lambda x, branch, *xs: (x + branch, _torch_norm(x + branch, *xs)),
    "rms_norm": lambda x, weight: torch.nn.functional.rms_norm(x, x.shape[-1:], weight, 1e-6),
    "softmax": lambda x: x.softmax(-1), "log_softmax": lambda x: x.log_softmax(-1),
    "attention": _torch_attention, "self_attention": _torch_self_attention, "rope": _torch_rope,
    "cross_entropy": _torch_cross_entropy,
    "rnn": _torch_recurrent(torch.rnn_tanh, 1), "lstm": _torch_recurrent(torch.lstm, 4),
    "linear_cross_entropy": lambda x, weight, *rest, **options: _torch_cross_entropy(x @ weight.T, *rest, **options),
}
