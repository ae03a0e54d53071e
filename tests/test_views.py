"""The views of an operation agree: fused = composed = torch, forward and every gradient."""

import numpy as np
import pytest
from checks import FUNCTIONAL, TORCH, check_composed, check_float32, check_same, check_torch, leaf, run, run_torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import FUSED, LAYOUTS, MAKERS, drawn, fixed, normal

from tinyllm import Tensor
from tinyllm import functional as F

ALL_FIXED = pytest.mark.parametrize("op, sizes", fixed(*FUSED))
layouts = st.sampled_from(LAYOUTS)


@ALL_FIXED
def test_composed(op, sizes):
    check_composed(op, MAKERS[op](**sizes))


@ALL_FIXED
def test_float32(op, sizes):
    check_float32(op, MAKERS[op](**sizes))


@pytest.mark.parametrize("op, sizes", fixed(*(op for op in FUSED if op in TORCH), without="dropout"))
def test_torch(op, sizes):
    check_torch(op, MAKERS[op](**sizes))


@pytest.mark.parametrize("op", FUSED)
@given(data=st.data(), layout=layouts)
def test_composed_on_any_shape_and_layout(op, data, layout):
    check_composed(op, data.draw(drawn(op, smallest=0)), layout)


@pytest.mark.parametrize("op", FUSED)
@given(data=st.data(), layout=layouts)
def test_float32_on_any_shape_and_layout(op, data, layout):
    check_float32(op, data.draw(drawn(op, smallest=0)), layout)


CHUNKED = ["linear_gelu", "gelu", "silu", "swiglu", "layer_norm", "add_layer_norm", "cross_entropy",
           "linear_cross_entropy"]


@pytest.mark.parametrize("op, sizes", fixed(*CHUNKED))
def test_the_size_of_a_chunk_does_not_matter(op, sizes, monkeypatch):
    """Pieces of a few rows: a last one that is smaller, rows that are longer than a piece."""
    monkeypatch.setattr("tinyllm.ops.memory.CHUNK", 12)
    check_composed(op, MAKERS[op](**sizes))


@pytest.mark.parametrize("op, sizes", fixed("attention", "self_attention"))
def test_the_size_of_a_block_does_not_matter(op, sizes, monkeypatch):
    monkeypatch.setattr("tinyllm.ops.attention.BLOCK", 2)
    check_composed(op, MAKERS[op](**sizes))


# One of two outputs alone

def test_the_sum_alone_of_add_layer_norm():
    x, branch, weight = (leaf(normal(*shape)) for shape in ((3, 4), (3, 4), (4,)))
    c = normal(3, 4, seed=5)
    total, _ = F.add_layer_norm(x, branch, weight)
    (total * c).sum().backward()
    assert (x.grad == c).all() and (branch.grad == c).all() and weight.grad is None


def test_the_norm_alone_of_add_layer_norm():
    case = MAKERS["add_layer_norm"]()
    norm = lambda view: lambda *inputs: view(*inputs)[1]
    check_same(run(norm(F.add_layer_norm), case), run_torch(norm(TORCH["add_layer_norm"]), case))


# What is masked is exactly zero

@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("limits", [(0, 0), (5, 9), (9, 12), (3, 2)])
def test_a_query_that_sees_nothing_gives_zeros_and_gets_zeros(causal, limits):
    """Row 1 of the batch sees no key at all; row 0 sees all of them."""
    (q, k, v, *_), options = MAKERS["attention"](T=4, S=5, causal=causal)
    start, end = np.array([0, limits[0]]), np.array([5, limits[1]])
    (out,), grads = run(FUNCTIONAL["attention"], ((q, k, v, None, start, end), options))
    for array in (out, *grads):
        assert (array[1] == 0).all() and np.isfinite(array).all() and (array[0] != 0).any()


def test_queries_before_the_first_key_see_nothing():
    """With more queries than keys, the causal mask hides every key from the first ones."""
    (out,), (dq, _, _) = run(FUNCTIONAL["attention"], MAKERS["attention"](T=5, S=2, causal=True))
    assert (out[:, :3] == 0).all() and (dq[:, :3] == 0).all() and (out[:, 3:] != 0).all()


def test_a_masked_key_has_no_influence():
    (q, k, v, *_), _ = MAKERS["attention"](T=4)
    end = np.array([2, 4])
    before = F.attention(Tensor(q), Tensor(k), Tensor(v), key_end=end).numpy()
    k[0, 2:], v[0, 2:] = 1e9, 1e9
    np.testing.assert_array_equal(F.attention(Tensor(q), Tensor(k), Tensor(v), key_end=end).numpy(), before)


def test_softmax_where_nothing_is_allowed():
    x = np.array([[-np.inf, -np.inf], [-np.inf, 3.0]])
    (out,), (dx,) = run(F.softmax, ((x,), {}))
    assert out.tolist() == [[0, 0], [0, 1]] and dx.tolist() == [[0, 0], [0, 0]]
    assert F.log_softmax(Tensor(x)).numpy().tolist() == [[-np.inf, -np.inf], [-np.inf, 0]]


def test_ignored_targets_have_no_loss_and_no_gradient():
    (logits, _), _ = MAKERS["cross_entropy"](rows=(3,))
    (loss,), (dlogits,) = run(F.cross_entropy, ((logits, np.array([1, -100, 2])), {"reduction": "none"}))
    assert loss[1] == 0 and (dlogits[1] == 0).all() and (dlogits[[0, 2]] != 0).all()
    (loss,), (dlogits,) = run(F.cross_entropy, ((logits, np.full(3, -100)), {}))
    assert loss == 0 and (dlogits == 0).all()
