"""A linear layer with all that stands around it, in one launch: the three views, and models that write with it."""
import numpy as np
import pytest
from checks import EPS32, assert_near, check_same, random_rounding
from strategies import integers, normal

from tinyllm import Tensor, composed, no_grad, ops
from tinyllm import functional as F
from tinyllm.int8 import Int8

pytest.importorskip("torch", reason="the kernels' arrays are torch tensors: pip install tinyllm[triton]")
pytest.importorskip("triton", reason="Triton exists for Linux only: pip install tinyllm[triton]")

from agreement import UNIT, everything_rounded, fenced, nearest, small_tiles  # noqa: E402
from test_beams import make  # noqa: E402

from tinyllm import kernels  # noqa: E402
from tinyllm.kernels import last, runtime  # noqa: E402

WAYS = [dict(), dict(norm="layer_norm"), dict(norm="layer_norm", vectors=1, activation="gelu"),
        dict(norm="rms_norm", bias=False), dict(residual=True), dict(norm="rms_norm", residual=True, activation="gelu")]
SHAPES = [((1,), 33, 20), ((1,), 600, 17), ((3,), 33, 65), ((2, 4), 40, 31), ((20,), 65, 33), ((9,), 300, 30),
          ((), 1, 1), ((0,), 3, 4)]
EPS = 1e-5


def case(rows, n_in, n_out, int8=False, norm=None, vectors=2, bias=True, residual=False, activation=None):
    """(arrays, options) of ops.fused_linear; the mean of x is not zero."""
    weight, scale = normal(n_out, n_in, seed=1), None
    if int8:
        weight, scale = integers(128, n_out, n_in, low=-127).astype(np.int8), np.ldexp(1.5, integers(3, n_out, low=-6))
    arrays = [normal(*rows, n_in) + 0.5, weight, scale, normal(n_out, seed=2) if bias else None,
              normal(n_in, seed=3) if norm else None,
              normal(n_in, seed=4) if norm == "layer_norm" and vectors > 1 else None,
              normal(*rows, n_out, seed=5) if residual else None]
    return arrays, dict(norm=norm, activation=activation)


def view(function, arrays, norm, activation):
    """F's or composed's on tensors; composed knows no integers."""
    x, weight, scale, bias, norm_weight, norm_bias, residual = arrays
    tensor = lambda a: None if a is None else Tensor(a)
    if function is F.fused_linear and scale is not None:
        weight = Int8(weight, scale)
    else:
        weight = Tensor(weight if scale is None else weight * scale[:, None])
    norm = norm and (norm, tensor(norm_weight), tensor(norm_bias), EPS)
    with no_grad():
        return function(Tensor(x), weight, tensor(bias), norm, tensor(residual), activation).numpy()


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_functional_is_composed(way, int8):
    for rows, n_in, n_out in SHAPES:
        arrays, options = case(rows, n_in, n_out, int8, **way)
        found, expected = (view(f, arrays, **options) for f in (F.fused_linear, composed.fused_linear))
        check_same(([found], []), ([expected], []))


def check_kernel(arrays, options, dtype):
    """Within what rounding each step of the composed view explains: the rule of agreement.py."""
    arrays = [a if a is None or i == 2 else nearest(a, dtype) for i, a in enumerate(arrays)]
    truth, samples = view(composed.fused_linear, arrays, **options), []
    with everything_rounded(dtype):
        samples.append(view(composed.fused_linear, arrays, **options))
    for seed in range(2):
        with random_rounding(seed, UNIT[dtype]):
            samples.append(view(composed.fused_linear, arrays, **options))
    x = np.abs(arrays[0]).max(initial=0) if options["norm"] is None else np.sqrt(max(1, arrays[0].shape[-1]))
    weight = np.abs(arrays[1]).max(initial=0) * (1 if arrays[2] is None else arrays[2].max(initial=0))
    terms = x * weight * arrays[1].shape[1] + np.abs(truth).max(initial=0)
    limit = 2 * max(np.abs(sample - truth).max(initial=0) for sample in samples) + 4 * EPS32 * terms
    with fenced() as fences:
        given = [None if a is None else fences.put(a, "float32" if i == 2 else dtype) for i, a in enumerate(arrays)]
        before = [None if a is None else a.clone() for a in given]
        out = runtime.to_numpy(kernels.fused_linear(*given, **options, eps=EPS))
        assert all(a is None or (a == b).all() for a, b in zip(given, before))
    assert_near(f"{dtype} {options}", out, truth, limit)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_kernels_at_the_edges_of_tiles(way, dtype):
    with small_tiles():
        for i, (rows, n_in, n_out) in enumerate(SHAPES):
            check_kernel(*case(rows, n_in, n_out, i % 2 == 0, **way), dtype)


@pytest.mark.parametrize("rows", [1, 5])
def test_kernels_with_the_tiles_of_the_table(rows):
    check_kernel(*case((rows,), 700, 130, norm="layer_norm", activation="gelu"), "bfloat16")


def test_counters_are_left_at_zero():
    """The next launch counts from there, as do those of a recorded step."""
    with small_tiles():
        check_kernel(*case((9,), 300, 30), "float32")
    assert all((counter == 0).all() for counter in last._counters.values()) and last._counters


def test_a_layer_without_a_gradient_takes_the_same_kernels(monkeypatch):
    names, x, weight = [], Tensor(normal(3, 40)).to("triton", "float32"), Tensor(normal(20, 40)).to("triton", "float32")
    real = kernels.linear.fused_linear
    monkeypatch.setattr(kernels.linear, "fused_linear", lambda *args: names.append("few") or real(*args))
    expected = F.linear(Tensor(x.numpy()), Tensor(weight.numpy())).numpy()
    np.testing.assert_allclose(F.linear(x, weight).numpy(), expected, rtol=1e-5, atol=1e-5)
    weight.requires_grad = True
    assert F.linear(x, weight).requires_grad and names == ["few"]


def test_gradients_and_shapes_are_refused():
    x, weight = Tensor(normal(2, 3)), Tensor(normal(4, 3), requires_grad=True)
    with pytest.raises(RuntimeError, match="fused_linear: gradients do not pass through it"):
        F.fused_linear(x, weight)
    with no_grad():
        with pytest.raises(ValueError, match="fused_linear: the residual must have the shape of the output"):
            F.fused_linear(x, weight, residual=x)
        with pytest.raises(ValueError, match='fused_linear: norm must be None, .* "gelu", not None and'):
            F.fused_linear(x, weight, activation="relu")
        with pytest.raises(ValueError, match="fused_linear: the last axis of x must be the second of weight"):
            F.fused_linear(x, Tensor(normal(4, 2)))


@pytest.mark.parametrize("kind", ["gpt", "llama"])
def test_a_step_of_a_block_is_the_block(kind):
    """On NumPy no model takes this way; here it is asked for."""
    block, x = make(kind).eval().h[0], Tensor(normal(2, 3, 16))
    caches = [make(kind).new_cache(2, 5)[0] for _ in range(2)]
    with no_grad():
        plain = sum(block(x, None, caches[0]))
        step = block.mlp.step(block.attn.step(x, block.ln_1, caches[1], None), block.ln_2)
    np.testing.assert_allclose(step.numpy(), plain.numpy(), rtol=1e-9)
    assert (ops.to_numpy(caches[0].k)[:, :3] == ops.to_numpy(caches[1].k)[:, :3]).all()
