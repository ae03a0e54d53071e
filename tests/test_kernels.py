"""What the kernels promise beyond agreeing with NumPy: the naive versions, optimizers, draws, errors, huge arrays."""

import importlib
import os

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the kernels' arrays are torch tensors: pip install tinyllm[triton]")
triton = pytest.importorskip("triton", reason="Triton exists for Linux only: pip install tinyllm[triton]")

from agreement import Fences, fenced  # noqa: E402
from strategies import integers, normal  # noqa: E402

from tinyllm import kernels, ops  # noqa: E402
from tinyllm.kernels import attention, loss, map, matmul, optim, runtime, softmax  # noqa: E402

RNG = np.array([7, 3])
REAL_EMPTY = runtime.empty


def put(array, dtype="float32"):
    return runtime.from_numpy(array, dtype if np.asarray(array).dtype.kind == "f" else None)


def near(found, expected, rtol=1e-5, atol=1e-6):
    np.testing.assert_allclose(runtime.to_numpy(found), expected, rtol=rtol, atol=atol)


# Arrays

def test_arrays_go_in_and_out():
    array = np.arange(6.0).reshape(2, 3)
    tensor = runtime.from_numpy(array.T, "float32")
    assert tensor.dtype == torch.float32 and tensor.shape == (3, 2)
    np.testing.assert_array_equal(runtime.to_numpy(tensor), array.T)
    tensor.zero_()
    assert array[1, 2] == 5, "from_numpy must copy"
    assert runtime.from_numpy(np.int64(3)).shape == () and runtime.from_numpy(np.arange(3)).dtype == torch.int64
    assert runtime.to_numpy(runtime.from_numpy(array, "bfloat16")).dtype == np.float32


def test_own_copies_views_only():
    whole = runtime.empty((2, 3))
    assert runtime.own(whole) is whole
    for view in (whole[:1], whole.view(6), whole.T):
        assert runtime.own(view).data_ptr() != whole.data_ptr() and runtime.own(view).is_contiguous()


def test_float64_is_refused():
    with pytest.raises(NotImplementedError, match=r'not float64.*\.to\("triton", dtype="float32"\)'):
        REAL_EMPTY((2,), np.float64)


def test_bfloat16_needs_ampere(monkeypatch):
    monkeypatch.setattr(runtime, "capability", lambda: (7, 5))
    with pytest.raises(NotImplementedError, match="8.0 or newer, and this one has 7.5: use float16"):
        REAL_EMPTY((2,), "bfloat16")
    REAL_EMPTY((2,), "float16")


def test_device_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for ours, tritons, message in [(False, False, "NVIDIA GPU.*TRITON_INTERPRET=1"), (True, False, "changed after")]:
        monkeypatch.setattr(runtime, "INTERPRETED", ours)
        monkeypatch.setattr(runtime, "TRITON_INTERPRETED", tritons)
        with pytest.raises(RuntimeError, match=message):
            runtime.device()


# The naive versions, which stand before the fast ones to be read

def test_add_kernel():
    a, b = normal(130), normal(130, seed=1)
    with fenced() as fences:
        out = fences.empty((130,))
        map.add_kernel[(3,)](fences.put(a), fences.put(b), out, 130, BLOCK=64)
        near(out, a + b)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_naive_matmul(dtype):
    a, b = integers(5, 33, 18, low=-4), integers(5, 18, 20, low=-4, seed=1)      # whole numbers: exact in either type
    with fenced() as fences:
        out = fences.empty((33, 20))
        matmul.naive_matmul_kernel[(3, 2)](fences.put(a.astype(float), dtype), fences.put(b.astype(float), dtype), out,
                                           33, 20, 18, BLOCK_M=16, BLOCK_N=16, BLOCK_K=16)
        near(out, a @ b, rtol=0, atol=0)


def test_naive_softmax():
    x = normal(4, 13)
    with fenced() as fences:
        out = fences.empty((4, 13))
        softmax.naive_softmax_kernel[(4,)](fences.put(x), out, 13, BLOCK_COLUMNS=16)
        near(out, ops.softmax_forward(x)[0])


def test_naive_attention():
    q, k, v = normal(19, 16), normal(13, 16, seed=1), normal(13, 16, seed=2)
    with fenced() as fences:
        out = fences.empty((19, 16))
        attention.naive_attention_kernel[(2,)](*map_put(fences, q, k, v), out, 19, 13, 0.25, BLOCK_Q=16, BLOCK_S=16,
                                               HEAD_SIZE=16)
        expected, _ = ops.attention_forward(*(x[None, :, None] for x in (q, k, v)))
        near(out, expected[0, :, 0])


def map_put(fences, *arrays):
    return [fences.put(a) for a in arrays]


# Optimizers: the same steps as NumPy takes in float64

ADAMS = [dict(), dict(max_norm=1.0, weight_decay=0.1), dict(decoupled=False, weight_decay=0.1, max_norm=1e6),
         dict(beta1=0.0, beta2=0.5)]
SGDS = [dict(), dict(momentum=0.9, weight_decay=0.1), dict(momentum=0.8, nesterov=True, max_norm=1.0)]


@pytest.mark.parametrize("step, options", [("adamw_step", o) for o in ADAMS] + [("sgd_step", o) for o in SGDS])
@pytest.mark.parametrize("n", [5, 2049])
def test_optimizer_steps(step, options, n):
    buffers = [normal(n, seed=9), *(np.zeros(n) for _ in range(2 if step == "adamw_step" else 1))]
    if step == "sgd_step" and not options.get("momentum"):
        buffers[1] = None
    with fenced() as fences:
        ours = [None if b is None else fences.put(b) for b in buffers]
        working = fences.put(buffers[0], "bfloat16")
        for t, rate in enumerate((0.1, 0.03, 0.2, 0.01), start=1):
            grad = normal(n, seed=t)
            norm = kernels.grad_norm(fences.put(grad))
            near(norm, np.linalg.norm(grad))
            getattr(ops, step)(buffers[0], grad, *buffers[1:], np.array([rate, t]), np.linalg.norm(grad), **options)
            getattr(kernels, step)(ours[0], fences.put(grad), *ours[1:], fences.put(np.array([rate, t])), norm, working,
                                   **options)
        for found, expected in zip(ours, buffers):
            if found is not None:
                near(found, expected, rtol=2e-5, atol=2e-6)
        assert torch.equal(working, ours[0].to(torch.bfloat16))


@pytest.mark.parametrize("n", [1, 8191, 8193])
def test_grad_norm(n, monkeypatch):
    """A program walks over several blocks; the gradient may be strided."""
    monkeypatch.setattr(optim, "MAX_PROGRAMS", 2)
    monkeypatch.setattr(optim.configs, "lookup", lambda *_: {"BLOCK": 1024})
    with fenced() as fences:
        near(kernels.grad_norm(fences.put(normal(n), layout="strided")), np.linalg.norm(normal(n)))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_broken_gradient_changes_nothing(bad):
    grad, hyper = put(np.array([1.0, bad, 2.0])), put(np.array([0.1, 1.0]))
    buffers = [put(np.abs(normal(3, seed=s))) for s in range(3)]
    before = [buffer.clone() for buffer in buffers]
    kernels.adamw_step(buffers[0], grad, *buffers[1:], hyper, kernels.grad_norm(grad), max_norm=1.0)
    kernels.sgd_step(buffers[0], grad, buffers[1], hyper, kernels.grad_norm(grad), momentum=0.5)
    assert all(torch.equal(old, new) for old, new in zip(before, buffers))


def test_optimizers_refuse_gaps():
    gaps, whole = Fences().put(normal(3), layout="strided"), put(normal(3))
    with pytest.raises(ValueError, match="adamw_step writes in place.*contiguous"):
        kernels.adamw_step(gaps, whole, whole, whole, whole[:2])
    with pytest.raises(ValueError, match="sgd_step writes in place"):
        kernels.sgd_step(whole, whole, gaps, whole[:2], momentum=0.9)


# Random numbers and draws: the same as NumPy's

@pytest.mark.parametrize("seed, step, site", [(0, 0, 0), (2**62 + 12345, 3, 2), (5, 2**31 + 1, 1)])
def test_random_bits(seed, step, site):
    rng = np.array([seed, step])
    np.testing.assert_array_equal(runtime.to_numpy(kernels.first_bits(put(rng), 1030, site)),
                                  ops.first_bits(rng, 1030, site))


DRAWS = [dict(), dict(temperature=0), dict(temperature=0.3), dict(temperature=1e-40), dict(temperature=1e30),
         dict(temperature=1e-46, top_p=0.9), dict(temperature=1e-40, top_k=3), dict(top_k=1), dict(top_k=5),
         dict(top_k=10**6), dict(top_p=0.3), dict(top_p=0.9), dict(top_p=1e-6),
         dict(top_k=7, top_p=0.8, temperature=2.0), dict(min_p=0.3), dict(min_p=1.0),
         dict(top_k=9, top_p=0.9, min_p=0.1, temperature=1.5), dict(site=4)]


@pytest.mark.parametrize("options", DRAWS)
@pytest.mark.parametrize("V, dtype", [(5, "float32"), (37, "bfloat16"), (300, "float32")])
def test_draws(options, V, dtype, monkeypatch):
    module = importlib.import_module("tinyllm.kernels.sample")
    monkeypatch.setattr(module, "BLOCK", 64)        # a row in several pieces
    monkeypatch.setattr(module, "GROUP", 4)         # fewer groups than some top_k
    monkeypatch.setattr(module, "PLACES", 16)       # a shortlist in several pieces, too
    logits = put(normal(3, V, size=2.0), dtype)
    with fenced():
        found = runtime.to_numpy(kernels.sample(logits, RNG, **options))
    np.testing.assert_array_equal(found, ops.sample(runtime.to_numpy(logits), RNG, **options))


@pytest.mark.parametrize("options", [dict(top_k=50, temperature=0.8), dict(top_k=3000), dict(top_p=0.95), dict(),
                                     dict(top_k=50, top_p=0.9), dict(temperature=0)])
def test_draws_from_fifty_thousand(options):
    """bfloat16 has so few numbers that many tokens share the one at which top-k ends."""
    logits = put(normal(2, 50257, size=2.0), "bfloat16")
    found = runtime.to_numpy(kernels.sample(logits, RNG, **options))
    np.testing.assert_array_equal(found, ops.sample(runtime.to_numpy(logits), RNG, **options))


def test_draws_among_equals():
    """Of tokens of equal score the first ones are kept, and the first of equal largest ones is greedy's choice."""
    logits = np.array([[0.0, 1.0, 1.0, 1.5, 1.0, -2.0, 1.0], [1.0, 1.0, 1.0, 1.5, 1.0, -2.0, 1.0]], np.float32)
    logits = logits.repeat(8, axis=0)
    for options in (dict(top_k=3), dict(top_p=0.4), dict(top_k=4, top_p=0.7), dict(temperature=0)):
        found = runtime.to_numpy(kernels.sample(put(logits), RNG, **options))
        np.testing.assert_array_equal(found, ops.sample(logits, RNG, **options))


def test_draws_from_negative_infinite_and_strided_logits():
    logits = np.array([[-1e30, -np.inf, -5.0, -7.0, -np.inf]], np.float32).repeat(8, axis=0)
    wide = Fences().put(logits, layout="transposed")
    for options in (dict(), dict(top_k=2), dict(top_p=0.9), dict(temperature=0), dict(temperature=1e-40)):
        np.testing.assert_array_equal(runtime.to_numpy(kernels.sample(wide, RNG, **options)),
                                      ops.sample(logits, RNG, **options))


# What a GPU cannot raise becomes NaN

def test_foreign_ids_and_targets_are_nan():
    out, _ = kernels.embedding_forward(put(np.array([0, 5, -1])), put(normal(5, 4)))
    assert not out[0].isnan().any() and out[1:].isnan().all()
    for dtype in ("float32", "bfloat16"):
        found, _ = kernels.cross_entropy_forward(put(normal(3, 5), dtype), put(np.array([0, 5, -1])), reduction="none")
        assert not found[0].isnan() and found[1:].isnan().all()


def test_heads_of_more_than_128_features_are_refused():
    q = put(normal(1, 2, 1, 129))
    with pytest.raises(NotImplementedError, match="a head of 129 features.*at most 128"):
        kernels.attention_forward(q, q, q)


@pytest.mark.parametrize("op", ["pow", "matmul", "embedding", "linear", "linear_gelu", "mlp", "linear_cross_entropy"])
def test_only_the_gradients_that_are_needed_are_computed(op):
    from strategies import MAKERS
    arrays, options = MAKERS[op]() if op in ("pow", "matmul") else MAKERS[op](rows=(5,))
    inputs = [put(a) for a in arrays]
    for wanted in (i for i, array in enumerate(arrays) if array.dtype.kind == "f"):
        needs = tuple(i == wanted for i in range(len(arrays)))
        out, saved = getattr(kernels, op + "_forward")(*inputs, **options, needs=needs)
        grads = getattr(kernels, op + "_backward")(torch.ones_like(out), saved=saved)
        assert tuple(grad is not None for grad in grads) == needs


# Arrays of more than 2^31 numbers: huge strides, of which only the corners exist in memory

FAR = 2**30 + 64


def far_apart(*shape):
    """Three blocks of numbers, (3, ...), that lie FAR apart, with room before, where an offset that wraps lands."""
    if os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < 12e9:
        pytest.skip("9 GB of address space may be refused here, though hardly a page of them is used")
    room = torch.empty(2**31 + 2 * FAR + 1024, dtype=torch.bfloat16, device=runtime.device())
    inner = torch.empty(shape[1:]).stride()
    return room[2**31:].as_strided(shape, (FAR, *inner))


def test_a_product_past_2_31():
    a, out = far_apart(3, 8), far_apart(3, 8)
    a.copy_(torch.arange(24).view(3, 8))
    matmul.launch(a[None, None], torch.eye(8, dtype=torch.bfloat16, device=a.device)[None, None], out[None, None])
    assert torch.equal(out, a)
    matmul.launch(a.T[None, None], torch.eye(3, dtype=torch.bfloat16, device=a.device)[None, None],
                  (out := torch.empty(8, 3, dtype=torch.bfloat16, device=a.device))[None, None])
    assert torch.equal(out, a.T)


def test_elements_past_2_31():
    x = far_apart(3, 5).copy_(torch.arange(15).view(3, 5))
    out, _ = kernels.add_forward(x, x)
    assert torch.equal(out, (torch.arange(15).view(3, 5) * 2).bfloat16().to(out.device))


def test_cross_entropy_past_2_31():
    logits = far_apart(3, 5)
    logits.copy_(torch.from_numpy(normal(3, 5)))
    targets, losses = put(np.array([0, 2, 4])), runtime.empty((3,))
    expected, _ = ops.cross_entropy_forward(logits.double().cpu().numpy(), np.array([0, 2, 4]), reduction="none")
    numbers = (5, FAR, -100, 0.0)
    loss.naive_cross_entropy_kernel[(1,)](logits, logits, targets, losses, 3, *numbers, GRADIENT=False, BLOCK_ROWS=4,
                                          BLOCK_COLUMNS=16)
    near(losses, expected)
    loss.cross_entropy_kernel[(3,)](logits, logits, targets, losses, *numbers, GRADIENT=True, SMOOTH=False,
                                    RAGGED=False, PIECES=0, PIECE=16, LAST=8)
    near(losses, expected)
    assert (logits.float().sum(1).abs() < 0.02).all()      # a row's gradient sums to zero


def test_attention_past_2_31():
    q = far_apart(3, 4, 1, 16)
    q.copy_(torch.from_numpy(normal(3, 4, 1, 16)))
    out, saved = kernels.attention_forward(q, q, q, causal=True)
    near(out, kernels.attention_forward(*[q.contiguous()] * 3, causal=True)[0].float().cpu().numpy(), 0, 0)
    dq = kernels.attention_backward(out, saved)[0]
    near(dq, kernels.attention_backward(out, kernels.attention_forward(*[q.contiguous()] * 3, causal=True)[1])[0]
         .float().cpu().numpy(), 0, 0)
