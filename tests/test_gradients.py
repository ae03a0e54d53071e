"""Every gradient against finite differences, in float64, and what gradcheck itself promises."""

import numpy as np
import pytest
from checks import check_gradient
from hypothesis import given
from hypothesis import strategies as st
from strategies import FUSED, MAKERS, PRIMITIVES, drawn

from tinyllm import Tensor, gradcheck
from tinyllm import functional as F

SMOOTH = [op for op in PRIMITIVES + FUSED if op != "cast"]      # rounding to another type has no slope


@pytest.mark.parametrize("op", SMOOTH)
@given(data=st.data())
def test_gradient(op, data):
    check_gradient(op, data.draw(drawn(op)))


@pytest.mark.parametrize("op, sizes", [("attention", dict(T=66, B=1, H=1, D=2, causal=True, dropout=0.3)),
                                       ("self_attention", dict(T=66, B=1, H=1, D=2, keys="both")),
                                       ("embedding", dict(rows=(40,), vocabulary=3)), ("linear", dict(rows=(70,)))])
def test_gradient_of_many_elements(op, sizes):
    """More than 64: only random directions are checked; more than one block of queries."""
    check_gradient(op, MAKERS[op](**sizes))


def test_gradient_of_the_large_embedding(monkeypatch):
    """Above a limit the gradient is summed in another way."""
    monkeypatch.setattr("tinyllm.ops.embedding.ONE_HOT_LIMIT", 0)
    check_gradient("embedding", MAKERS["embedding"](rows=(4, 5), vocabulary=6))


# gradcheck itself

def forgetful(a, b):
    """a + b, where the gradient of b[1, 2] is lost."""
    mask = np.zeros(b.shape, bool)
    mask[1, 2] = True
    return a + F.where(mask, b.detach(), b)


def leaf(*shape, dtype=np.float64):
    return Tensor(np.ones(shape, dtype), requires_grad=True)


def test_gradcheck_names_the_input_and_its_worst_entry():
    with pytest.raises(AssertionError, match=r"forgetful: 1 of 2 .* input 1 of shape \(2, 3\), entry \(1, 2\): "
                                             r"backward\(\) gives 0, finite differences -?0\.\d+, .* the allowed"):
        gradcheck(forgetful, [leaf(2, 3), leaf(2, 3)])


def test_gradcheck_finds_one_wrong_entry_among_many():
    with pytest.raises(AssertionError, match=r"input 1 of shape \(20, 30\), entry \(1, 2\): backward\(\) gives 0"):
        gradcheck(forgetful, [leaf(20, 30), leaf(20, 30)])


def test_gradcheck_names_a_direction_where_there_are_too_many_entries():
    with pytest.raises(AssertionError, match=r"input 1 of shape \(90, 90\), a random direction: backward"):
        gradcheck(forgetful, [leaf(90, 90), leaf(90, 90)])


def test_gradcheck_names_the_worst_of_all_inputs():
    def wrong(a, b, c):     # the slopes are a little off in a, and far off in c
        return a * 1.0001 - a.detach() * 0.0001 + b + c.detach()
    with pytest.raises(AssertionError, match=r"wrong: 2 of 3 gradients are wrong, most of all input 2 of shape \(2,\)"):
        gradcheck(wrong, [leaf(2), leaf(2), leaf(2)])


@pytest.mark.parametrize("small", [1e-6, 1e-7])
def test_gradcheck_finds_a_small_wrong_entry_beside_large_ones(small):
    """Half of the slope of a[1] is lost, and the slopes of the others are a million times as large."""
    scale = Tensor(np.array([1.0, small, 1.0, 1.0]))

    def half(a):
        return F.where(np.arange(4) == 1, (a + a.detach()) * 0.5, a) * scale
    with pytest.raises(AssertionError, match=r"half: .* entry \(1,\): backward"):
        gradcheck(half, [leaf(4)])
    assert gradcheck(lambda a: a * scale, [leaf(4)])


def test_gradcheck_refuses_float32():
    with pytest.raises(ValueError, match="input 1 is float32.*float64"):
        gradcheck(lambda a, b: a, [leaf(2), leaf(2, dtype=np.float32)])


def test_gradcheck_needs_a_gradient_to_check():
    with pytest.raises(ValueError, match="none of the inputs requires a gradient"):
        gradcheck(lambda a: a, [Tensor(np.ones(2))])


def test_gradcheck_does_not_accept_nan():
    with pytest.raises(AssertionError, match="nan"):
        gradcheck(lambda a: a * np.nan, [leaf(2)])


def test_gradcheck_takes_several_outputs_constants_and_empty_inputs():
    assert gradcheck(lambda a, ids, empty: (a[ids], a * 0, empty * 2), [leaf(3), np.array([0, 0]), leaf(0, 2)])


def test_gradcheck_leaves_its_inputs_alone():
    a = leaf(3)
    gradcheck(lambda a: a * a, [a])
    assert a.grad is None and (a.data == 1).all()


def test_a_function_that_ignores_its_inputs_is_refused():
    """Both sides would be zero, and the check would pass whatever the function computes."""
    known = leaf(3)
    with pytest.raises(ValueError, match="fn must compute with the tensors that it is given"):
        gradcheck(lambda a: known * known, [leaf(3)])
