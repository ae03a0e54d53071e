"""Every primitive against torch."""

import math

import numpy as np
import pytest
from checks import TORCH, check_same, check_torch, run, run_torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import LAYOUTS, MAKERS, PRIMITIVES, drawn, fixed

from tinyllm import Tensor
from tinyllm import functional as F


@pytest.mark.parametrize("op, sizes", fixed(*(op for op in PRIMITIVES if op in TORCH)))
def test_primitive(op, sizes):
    check_torch(op, MAKERS[op](**sizes))


@pytest.mark.parametrize("op", [op for op in PRIMITIVES if op in TORCH])
@given(data=st.data(), layout=st.sampled_from(LAYOUTS))
def test_primitive_on_any_shape_and_layout(op, data, layout):
    check_torch(op, data.draw(drawn(op, smallest=0)), layout)


TIES = [("max", np.array([[1.0, 2, 2], [2, 0, 1]]), dict(axis=axis, keepdims=False)) for axis in (None, 0, 1)]
TIES += [("maximum", (np.array([1.0, 2, 3]), np.array([2.0, 2, 2])), {}), ("relu", np.array([-1.0, 0, 1]), {})]


@pytest.mark.parametrize("op, arrays, options", TIES)
def test_ties_share_the_gradient_as_in_torch(op, arrays, options):
    case = arrays if isinstance(arrays, tuple) else (arrays,), options
    check_torch(op, case)


@pytest.mark.parametrize("power", [2, 3.0, 1, 0, -1, 0.5])
def test_powers_of_zero_and_of_negative_numbers(power):
    base = np.array([2.0, 0.0] if power == 0.5 else [2.0, -1.5] if power < 0 else [2.0, -1.5, 0.0])
    with np.errstate(divide="ignore"):
        check_same(run(lambda x: x ** power, ((base,), {})), run_torch(lambda x: x ** power, ((base,), {})))


def test_cast_there_and_back():
    x = Tensor(np.array([1.0, 1 / 3]), requires_grad=True)
    y = x.cast(np.float32)
    y.backward(np.array([1, 2], np.float32))
    assert y.dtype == np.float32 and y.data[1] == np.float32(1 / 3)
    assert x.grad.dtype == np.float64 and x.grad.tolist() == [1, 2]


def test_sigmoid_and_tanh_far_out():
    """No warning (they are errors here), no NaN."""
    x = Tensor([-1000.0, 1000.0], requires_grad=True)
    assert x.sigmoid().numpy().tolist() == [0, 1] and x.tanh().numpy().tolist() == [-1, 1]
    (x.sigmoid() + x.tanh() + F.silu(x)).sum().backward()
    assert x.grad.tolist() == [0, 1]


@pytest.mark.parametrize("dtype, error", [(np.float32, 2e-7), (np.float64, 2e-15), (np.float16, 3e-4)])
def test_erf_is_accurate_to_the_last_digits(dtype, error):
    x = np.concatenate([np.linspace(-7, 7, 2001), [0, 1, -1, 6, 100, np.inf, -np.inf]]).astype(dtype)
    found = Tensor(x).erf().numpy()
    assert found.dtype == dtype
    np.testing.assert_allclose(found.astype(np.float64), [math.erf(v) for v in x], rtol=0, atol=error)
