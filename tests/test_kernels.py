"""The Triton kernels against torch.autograd in float64: every output and every gradient, at sizes around block edges.

Without a GPU the kernels run in Triton's interpreter. It runs programs one after another and forgives much, so the
arrays are set traps: each stands between fences, each output is full of NaN until a kernel fills it, inputs must not
change. test_compile_gate.py compiles the same kernels for real GPUs, which needs none.

Tolerance: max|error| <= 2 (gradients: 3) x max|error of the same computation by torch in float32| + 4 eps scale, where
scale is the largest sum of |terms| (where the op is linear in each argument), else the largest |true value|.
"""

import os

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the kernels' arrays are torch tensors: pip install tinyllm[triton]")
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before triton is imported, which decorates functions of its own
triton = pytest.importorskip("triton", reason="Triton exists for Linux only: pip install tinyllm[triton]")

from tinyllm import kernels  # noqa: E402
from tinyllm.kernels import norm, optim, runtime  # noqa: E402

F = torch.nn.functional
REAL_EMPTY = runtime.empty  # the tests replace it, see Fences
EPS = float(np.finfo(np.float32).eps)
FENCE = 64  # numbers on each side of an array; a multiple of 16 bytes, so that alignment stays as it was


class Fences:
    """Allocates like runtime.empty, but between fences and full of poison."""

    def __init__(self):
        self.buffers = []

    def empty(self, shape, dtype=torch.float32):
        dtype = runtime.torch_dtype(dtype)
        shape = tuple(shape) if np.iterable(shape) else (shape,)
        poison = float("nan") if dtype.is_floating_point else -(2**30)
        size = int(np.prod(shape, dtype=np.int64))
        buffer = torch.full((size + 2 * FENCE,), poison, dtype=dtype, device=runtime.device())
        buffer[:FENCE] = buffer[FENCE + size:] = 12345
        self.buffers.append(buffer)
        return buffer[FENCE:FENCE + size].view(shape)

    def put(self, tensor, strided=False):
        """A float32 (or integer) copy of a CPU tensor on the device; strided: every other element of a wider one."""
        tensor = tensor.float() if tensor.is_floating_point() else tensor
        if strided and tensor.ndim:
            place = self.empty((*tensor.shape, 2), tensor.dtype)[..., 0]
        else:
            place = self.empty(tensor.shape, tensor.dtype)
        return place.copy_(tensor)

    def check(self):
        for buffer in self.buffers:
            fence = torch.cat([buffer[:FENCE], buffer[len(buffer) - FENCE:]])
            assert (fence == 12345).all(), "a fence is broken"


@pytest.fixture(autouse=True)
def fences(monkeypatch):
    fences = Fences()
    monkeypatch.setattr(runtime, "empty", fences.empty)
    yield fences
    fences.check()


def normal(*shape, seed=0, size=1.0):
    """Standard normal numbers that float32 can hold, in float64."""
    return torch.as_tensor(np.random.default_rng([seed, *shape]).normal(size=shape) * size).float().double()


def integers(high, *shape, seed=0):
    return torch.as_tensor(np.random.default_rng([seed, *shape]).integers(0, high, shape))


def as_tuple(value):
    return value if isinstance(value, tuple) else (value,)


def torch_results(reference, arrays, douts, dtype):
    """Outputs and gradients by torch.autograd in `dtype`; None for a gradient that does not exist."""
    leaves = [a.to(dtype, copy=True).requires_grad_() if a is not None and a.is_floating_point() else a for a in arrays]
    outs = as_tuple(reference(*leaves))
    used = [(out, dout.to(dtype)) for out, dout in zip(outs, douts) if dout is not None]
    floats = [leaf for leaf in leaves if leaf is not None and leaf.is_floating_point()]
    found = iter(torch.autograd.grad([u[0] for u in used], floats, [u[1] for u in used], allow_unused=True))
    grads = [next(found) if leaf is not None and leaf.is_floating_point() else None for leaf in leaves]
    return [out.detach() for out in outs], grads


def close(name, got, truth, plain, factor, scale=None):
    if truth is None:
        return
    truth, plain, got = truth.double(), plain.double(), got.cpu().double()
    assert got.shape == truth.shape, f"{name}: shape {tuple(got.shape)}, not {tuple(truth.shape)}"
    if truth.numel() == 0:
        return
    scale = truth.abs().max() if scale is None else scale.abs().max()
    allowed = factor * (plain - truth).abs().max() + 4 * EPS * scale
    error = (got - truth).abs().max()
    assert error <= allowed, f"{name}: error {error:.3g} exceeds {allowed:.3g}"  # False for NaN


def agree(fences, op, reference, *arrays, unused=(), multilinear=False, strided=False, **options):
    """Compare kernels.{op}_forward and _backward with `reference`, a torch function of the same arrays."""
    forward, backward = getattr(kernels, op + "_forward"), getattr(kernels, op + "_backward")
    with torch.no_grad():
        shapes = [out.shape for out in as_tuple(reference(*arrays))]
    douts = [None if i in unused else normal(*shape, seed=7 + i) for i, shape in enumerate(shapes)]
    truth = torch_results(reference, arrays, douts, torch.float64)
    plain = torch_results(reference, arrays, douts, torch.float32)
    scales = [[None] * len(part) for part in truth]
    if multilinear:
        absolute = [a.abs() if a is not None and a.is_floating_point() else a for a in arrays]
        scales = torch_results(reference, absolute, [d if d is None else d.abs() for d in douts], torch.float64)

    given = [None if a is None else fences.put(a, strided) for a in arrays]
    given_douts = [None if d is None else fences.put(d, strided) for d in douts]
    before = [None if g is None else g.clone() for g in given + given_douts]
    outs, saved = forward(*given, **options)
    outs = as_tuple(outs)
    assert len(outs) == len(truth[0])
    for i, out in enumerate(outs):
        close(f"{op} output {i}", out, truth[0][i], plain[0][i], 2, scales[0][i])
    for turn in ("first", "second"):  # backward may run twice: it must leave `saved` as it was
        grads = backward(*given_douts, saved)
        assert isinstance(grads, tuple) and len(grads) == len(truth[1]), f"{len(grads)} gradients"
        for i, grad in enumerate(grads):
            close(f"{op} gradient {i}, {turn} time", grad, truth[1][i], plain[1][i], 3, scales[1][i])
    for old, new in zip(before, given + given_douts):
        assert old is None or torch.equal(old, new), "an input was written"


def test_runtime():
    array = np.arange(6.0).reshape(2, 3)
    tensor = runtime.from_numpy(array.T, "float32")
    assert tensor.dtype == torch.float32 and tensor.shape == (3, 2)
    np.testing.assert_array_equal(runtime.to_numpy(tensor), array.T)
    tensor.zero_()
    assert array[1, 2] == 5, "from_numpy must copy"
    assert runtime.from_numpy(np.int64(3)).shape == () and runtime.from_numpy(np.arange(3)).dtype == torch.int64

    def step():
        pass

    assert kernels.capture(step) is step


def test_other_float_types_are_refused():
    for dtype in ("bfloat16", np.float64):
        with pytest.raises(NotImplementedError, match="float32"):
            REAL_EMPTY((2,), dtype)


def test_device_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for ours, tritons, message in [(False, False, "NVIDIA GPU.*TRITON_INTERPRET=1"), (True, False, "changed after")]:
        monkeypatch.setattr(runtime, "INTERPRETED", ours)
        monkeypatch.setattr(runtime, "TRITON_INTERPRETED", tritons)
        with pytest.raises(RuntimeError, match=message):
            runtime.device()


SHAPES_TO_ADD = [((4097,), (4097,)), ((2, 7, 5), (7, 5)), ((5,), (3, 1, 5)), ((2, 1, 5), (7, 1)), ((3,), ()),
                 ((0, 3), (3,))]


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("a, b", SHAPES_TO_ADD)
def test_add(fences, a, b, strided):
    a, b = normal(*a), normal(*b, seed=1)
    out, saved = kernels.add_forward(fences.put(a, strided), fences.put(b, strided))
    assert torch.equal(out.cpu(), (a.float() + b.float()))
    dout = fences.put(normal(*out.shape))
    assert all(grad is dout for grad in kernels.add_backward(dout, saved))


@pytest.mark.parametrize("shape, target", [
    ((65, 5), (5,)), ((3, 65, 5), (65, 1)), ((2, 3, 4, 5), (3, 1, 5)), ((2049,), ()), ((31, 65), (1, 65)),
    ((4, 7), (4, 1)), ((2, 3), (2, 3)), ((0, 3), (3,)), ((1, 3), (3,))])
def test_unbroadcast(fences, shape, target):
    grad = normal(*shape)
    got = kernels.unbroadcast(fences.put(grad, strided=True), target)
    axes = [i for i in range(grad.ndim) if i < grad.ndim - len(target) or target[i - grad.ndim] == 1]
    total, plain, scale = ((x.sum(axes) if axes else x).reshape(target) for x in (grad, grad.float(), grad.abs()))
    close("unbroadcast", got, total, plain, 3, scale)


def test_reshape(fences):
    x = fences.put(normal(2, 3, 4), strided=True)
    out, saved = kernels.reshape_forward(x, shape=(-1, 4))
    (dx,) = kernels.reshape_backward(out, saved)
    assert out.shape == (6, 4) and torch.equal(dx, x)


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("shape, vocabulary, channels", [
    ((2, 16), 11, 32), ((33,), 3, 129), ((1,), 1, 1), ((31,), 65, 127)])
def test_embedding(fences, shape, vocabulary, channels, strided):
    ids, weight = integers(vocabulary, *shape), normal(vocabulary, channels)
    agree(fences, "embedding", F.embedding, ids, weight, multilinear=True, strided=strided)


def test_embedding_of_a_foreign_id_is_nan(fences):
    out, _ = kernels.embedding_forward(torch.tensor([0, 5, -1], device=runtime.device()), fences.put(normal(5, 4)))
    assert not out[0].isnan().any() and out[1:].isnan().all()


LINEAR_SIZES = [((2, 5), 7, 3), ((65,), 33, 63), ((63,), 31, 65), ((1,), 1, 1), ((64,), 32, 64), ((1, 3, 2), 65, 129)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape, n_in, n_out", LINEAR_SIZES)
def test_linear(fences, shape, n_in, n_out, bias):
    arrays = normal(*shape, n_in), normal(n_out, n_in, seed=1), normal(n_out, seed=2) if bias else None
    agree(fences, "linear", F.linear, *arrays, multilinear=True, strided=not bias)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape, n_in, n_out", LINEAR_SIZES)
def test_linear_gelu(fences, shape, n_in, n_out, bias):
    arrays = normal(*shape, n_in), normal(n_out, n_in, seed=1), normal(n_out, seed=2) if bias else None
    agree(fences, "linear_gelu", lambda x, w, b: F.gelu(F.linear(x, w, b), approximate="tanh"), *arrays,
          strided=not bias)


def test_gelu_at_the_ends(fences):
    """exp must overflow nowhere, and a saturated gelu pass on exactly 0 or 1."""
    x = torch.tensor([[-3e4], [-50.0], [-1e-4], [0.0], [1e-4], [50.0], [3e4]]).double()
    agree(fences, "linear_gelu", lambda x, w, b: F.gelu(F.linear(x, w, b), approximate="tanh"), x,
          torch.ones(1, 1).double(), None)


@pytest.mark.parametrize("op", ["linear", "linear_gelu"])
def test_linear_computes_only_what_is_needed(fences, op):
    x, weight, bias = (fences.put(t) for t in (normal(3, 4), normal(5, 4), normal(5)))
    for needs in [(True, False, False), (False, True, False), (False, False, True)]:
        _, saved = getattr(kernels, op + "_forward")(x, weight, bias, needs=needs)
        grads = getattr(kernels, op + "_backward")(fences.put(normal(3, 5)), saved)
        assert tuple(grad is not None for grad in grads) == needs


def layer_norm(x, weight, bias, eps=1e-5):
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def add_layer_norm(x, branch, weight, bias):
    return x + branch, layer_norm(x + branch, weight, bias)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(2, 3, 5), (129, 32), (33, 127), (1, 1), (9, 1025), (5 * 64 + 1, 61)])
def test_layer_norm(fences, monkeypatch, shape, bias):
    monkeypatch.setattr(norm, "MAX_PROGRAMS", 2)  # so that a program walks over several blocks of rows
    x = normal(*shape) + 3  # a mean far from 0: the variance is taken around it
    arrays = x, normal(shape[-1], seed=1), normal(shape[-1], seed=2) if bias else None
    agree(fences, "layer_norm", layer_norm, *arrays, strided=not bias)


@pytest.mark.parametrize("unused", [(), (0,), (1,)])
@pytest.mark.parametrize("shape", [(2, 3, 5), (129, 33)])
def test_add_layer_norm(fences, shape, unused):
    arrays = normal(*shape), normal(*shape, seed=3), normal(shape[-1], seed=1), normal(shape[-1], seed=2)
    agree(fences, "add_layer_norm", add_layer_norm, *arrays, unused=unused, strided=unused == (0,))


def attention(n_head, causal=True, scale=None):
    """Self-attention spelled out, with the scores as a T x T matrix."""
    def reference(qkv, key_start, key_end, rng):
        batch, time, packed = qkv.shape
        q, k, v = qkv.view(batch, time, 3, n_head, packed // 3 // n_head).permute(2, 0, 3, 1, 4)
        tokens = torch.arange(time)
        legal = torch.ones(batch, 1, time, time, dtype=torch.bool)
        if causal:
            legal = legal & (tokens[None, :] <= tokens[:, None])
        if key_start is not None:
            legal = legal & (tokens >= key_start[:, None, None, None])
        if key_end is not None:
            legal = legal & (tokens < key_end[:, None, None, None])
        scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
        scores = scores.masked_fill(~legal, -1e9)
        p = torch.softmax(scores, dim=-1) * legal  # a row of illegal keys alone becomes 0
        return (p @ v).transpose(1, 2).reshape(batch, time, packed // 3)
    return reference


@pytest.mark.parametrize("batch, time, n_head, size", [
    (1, 1, 1, 1), (2, 15, 2, 16), (1, 32, 1, 8), (1, 33, 2, 32), (1, 31, 1, 48), (1, 17, 1, 128), (1, 65, 1, 20)])
@pytest.mark.parametrize("causal", [True, False])
def test_self_attention(fences, batch, time, n_head, size, causal):
    qkv = normal(batch, time, 3 * n_head * size, size=1.5)
    agree(fences, "self_attention", attention(n_head, causal), qkv, None, None, None,
          n_head=n_head, causal=causal, strided=causal)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("time", [5, 33])
def test_self_attention_keys(fences, time, causal):
    """Padding on the left, on the right, everywhere, nowhere; limits that lie outside the sequence."""
    key_start = torch.tensor([2, 0, 3, -4, time - 1])
    key_end = torch.tensor([time, time - 2, 3, time + 9, time])
    qkv, n_head = normal(5, time, 3 * 8), 2 if time < 10 else 1
    pairs = [(key_start, None), (None, key_end.int())] if time < 10 else []
    for start, end in [(key_start, key_end)] + pairs:
        agree(fences, "self_attention", attention(n_head, causal), qkv, start, end, None, n_head=n_head,
              causal=causal)


def test_self_attention_scale_and_peaks(fences):
    """Scores in the hundreds: exp must be taken of differences only."""
    agree(fences, "self_attention", attention(1, scale=0.7), normal(1, 40, 3 * 16, size=12.0), None, None, None,
          n_head=1, scale=0.7)


def test_self_attention_refuses(fences):
    with pytest.raises(NotImplementedError, match="dropout"):
        kernels.self_attention_forward(fences.put(normal(1, 2, 6)), n_head=1, dropout=0.1)
    with pytest.raises(NotImplementedError, match="n_head"):
        kernels.self_attention_forward(fences.put(normal(1, 2, 3 * 129)), n_head=1)


def head(**options):
    return lambda x, weight, targets: F.cross_entropy(x @ weight.T, targets, **options)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("rows, channels, vocabulary", [(5, 8, 65), (33, 4, 64), (3, 3, 1), (5, 4, 2049)])
def test_linear_cross_entropy(fences, rows, channels, vocabulary, smoothing, reduction):
    targets = integers(vocabulary, rows)
    targets[1::3] = -100
    x, weight = normal(rows, channels, size=2.0), normal(vocabulary, channels, seed=1)
    options = {"label_smoothing": smoothing, "reduction": reduction}
    agree(fences, "linear_cross_entropy", head(**options), x, weight, targets, strided=smoothing == 0, **options)


def test_linear_cross_entropy_of_many_rows(fences):
    """More rows than the kernel that adds up the losses takes at once."""
    agree(fences, "linear_cross_entropy", head(), normal(1025, 2), normal(3, 2), integers(3, 1025))


def test_linear_cross_entropy_when_sure(fences):
    """p of the target close to 1: its gradient is p - 1, which must not be rounded before the subtraction."""
    x, weight = torch.eye(6).double() * 12 + 300, torch.eye(6).double()
    agree(fences, "linear_cross_entropy", head(), x, weight, torch.arange(6))


def test_linear_cross_entropy_of_nothing(fences):
    x, weight, targets = fences.put(normal(4, 3)), fences.put(normal(7, 3)), fences.put(torch.full((4,), 9))
    loss, saved = kernels.linear_cross_entropy_forward(x, weight, targets, ignore_index=9)
    dx, dweight, none = kernels.linear_cross_entropy_backward(fences.put(torch.tensor(1.0)), saved)
    assert loss == 0 and (dx == 0).all() and (dweight == 0).all() and none is None


def test_linear_cross_entropy_options(fences):
    x, weight, targets = fences.put(normal(4, 3)), fences.put(normal(7, 3)), fences.put(integers(7, 4))
    loss, saved = kernels.linear_cross_entropy_forward(x, weight, targets, needs=(True, False, False))
    assert kernels.linear_cross_entropy_backward(loss, saved)[1] is None
    bare, _ = kernels.linear_cross_entropy_forward(x, weight, targets, needs=(False, False, False))
    assert bare == loss
    targets[2] = 7
    assert kernels.linear_cross_entropy_forward(x, weight, targets)[0].isnan(), "a target outside the vocabulary"
    with pytest.raises(ValueError, match="reduction"):
        kernels.linear_cross_entropy_forward(x, weight, targets, reduction="max")


@pytest.mark.parametrize("n", [1, 2047, 2049, 8193])
def test_grad_norm(fences, monkeypatch, n):
    monkeypatch.setattr(optim, "MAX_PROGRAMS", 2)  # so that a program walks over several blocks
    grad = normal(n)
    close("norm", kernels.grad_norm(fences.put(grad, strided=True)), grad.norm(), grad.float().norm(), 2)


def torch_adamw(decoupled, param, grads, rates, betas, eps, weight_decay, max_norm, dtype):
    param = param.to(dtype, copy=True)
    optimizer = torch.optim.AdamW if decoupled else torch.optim.Adam
    optimizer = optimizer([param], betas=betas, eps=eps, weight_decay=weight_decay, foreach=False)
    for grad, rate in zip(grads, rates):
        optimizer.param_groups[0]["lr"] = rate
        grad = grad.to(dtype)
        scale = min(1.0, max_norm / (grad.norm() + 1e-6)) if max_norm else 1.0
        param.grad = grad * scale
        optimizer.step()
    state = optimizer.state[param]
    return param, state["exp_avg"], state["exp_avg_sq"]


@pytest.mark.parametrize("max_norm, decoupled", [(0.0, True), (1.0, True), (1e6, False)])
@pytest.mark.parametrize("n, betas", [(5, (0.9, 0.999)), (2049, (0.9, 0.95)), (3, (0.0, 0.5))])
def test_adamw(fences, n, betas, max_norm, decoupled):
    grads, rates = [normal(n, seed=s) for s in range(4)], [0.1, 0.03, 0.2, 0.01]
    options = {"beta1": betas[0], "beta2": betas[1], "eps": 1e-8, "weight_decay": 0.1, "max_norm": max_norm,
               "decoupled": decoupled}
    buffers = [fences.put(normal(n, seed=9)), fences.put(torch.zeros(n)), fences.put(torch.zeros(n))]
    for step, (grad, rate) in enumerate(zip(grads, rates), start=1):
        grad, hyper = fences.put(grad), fences.put(torch.tensor([rate, step]))
        kernels.adamw_step(buffers[0], grad, *buffers[1:], hyper, kernels.grad_norm(grad), **options)
    args = (decoupled, normal(n, seed=9), grads, rates, betas, 1e-8, 0.1, max_norm)
    truth, plain = torch_adamw(*args, torch.float64), torch_adamw(*args, torch.float32)
    for name, *values in zip(("param", "exp_avg", "exp_avg_sq"), buffers, truth, plain):
        close(name, *values, 2, scale=torch.ones(()) if name == "param" else None)


def test_adamw_leaves_a_broken_step_out(fences):
    options = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "max_norm": 1.0}
    hyper = fences.put(torch.tensor([0.1, 1.0]))
    for bad in (float("nan"), float("inf")):
        grad = fences.put(torch.tensor([1.0, bad, 2.0]))
        buffers = [fences.put(normal(3, seed=s).abs()) for s in range(3)]
        before = [buffer.clone() for buffer in buffers]
        kernels.adamw_step(buffers[0], grad, *buffers[1:], hyper, kernels.grad_norm(grad), **options)
        assert all(torch.equal(old, new) for old, new in zip(before, buffers))
    kernels.adamw_step(buffers[0], fences.put(normal(3)), *buffers[1:], hyper, None, **options)
    assert not torch.equal(before[0], buffers[0])
    with pytest.raises(ValueError, match="contiguous"):
        kernels.adamw_step(fences.put(normal(3), strided=True), grad, *buffers[1:], hyper, None, **options)
