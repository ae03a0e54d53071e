"""What may stand beside a Tensor in a + b, and what a Tensor can be made of."""

import operator

import numpy as np
import pytest
from strategies import normal

from tinyllm import Tensor
from tinyllm import functional as F

BINARY = [operator.add, operator.sub, operator.mul, operator.truediv, operator.pow, operator.matmul]


@pytest.mark.parametrize("op", BINARY)
@pytest.mark.parametrize("turned", [False, True])
def test_arrays_mix_with_tensors_on_either_side(op, turned):
    a, b = np.abs(normal(3, 3)) + 0.5, np.abs(normal(3, 3, seed=1))
    result = op(a, Tensor(b)) if turned else op(Tensor(a), b)
    assert isinstance(result, Tensor)
    np.testing.assert_allclose(result.numpy(), op(a, b))


@pytest.mark.parametrize("op", BINARY[:-1])
@pytest.mark.parametrize("number", [2, 0.5, np.float64(0.5), np.int64(2)])
def test_numbers_take_the_dtype_of_the_tensor(op, number):
    array = np.array([1.5, 2], np.float32)
    right, left = op(Tensor(array), number), op(number, Tensor(array))
    assert right.dtype == left.dtype == np.float32
    np.testing.assert_allclose(right.numpy(), op(array, float(number)), rtol=1e-6)
    np.testing.assert_allclose(left.numpy(), op(float(number), array), rtol=1e-6)


def test_functions_of_two_tensors_take_numbers_too():
    x = Tensor([-1.0, 2.0])
    assert F.maximum(x, 0.0).numpy().tolist() == [0, 2]
    assert F.where(np.array([True, False]), x, 0.0).numpy().tolist() == [-1, 0]


INTEGERS = {"array": np.array([[2, 1], [1, 3]]), "bytes": np.array([[2, 1], [1, 3]], np.uint8),
            "booleans": np.array([[True, True], [False, True]]), "Tensor": Tensor(np.array([[2, 1], [1, 3]])),
            "list": [[2, 1], [1, 3]], "list of floats": [[0.5, 1.5], [1.0, 2.0]],
            "list of booleans": [[True, False], [True, True]]}


@pytest.mark.parametrize("op", [*BINARY, F.maximum, lambda a, b: F.where([True, False], a, b)])
@pytest.mark.parametrize("kind", INTEGERS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_integers_and_lists_take_the_dtype_of_the_tensor(op, kind, dtype):
    x, other = Tensor(np.abs(normal(2, 2)) + 0.5).cast(dtype), INTEGERS[kind]
    floats = Tensor(np.array(other.numpy() if isinstance(other, Tensor) else other).astype(dtype))
    with np.errstate(divide="ignore"):
        for found, expected in ((op(x, other), op(x, floats)), (op(other, x), op(floats, x))):
            assert found.dtype == dtype
            np.testing.assert_array_equal(found.numpy(), expected.numpy())


def test_integers_stay_integers_among_themselves():
    ids = Tensor(np.array([1, 2]))
    assert all(t.dtype == np.int64 for t in (ids + 1, ids * ids, 3 - ids, ids + [1, 1]))


def test_gradients_pass_beside_integers():
    x = Tensor([1.0, 2.0], requires_grad=True)
    (x * np.array([2, 3]) + Tensor(np.array([1, 1]))).sum().backward()
    assert x.grad.dtype == np.float32 and x.grad.tolist() == [2, 3]


@pytest.mark.parametrize("other", [np.ones(2), np.array(1.0), Tensor(np.ones(2))])
def test_float_types_do_not_mix(other):
    with pytest.raises(ValueError, match=r"add: mixes float32 and float64.*\.cast"):
        Tensor(np.ones(2, np.float32)) + other


@pytest.mark.parametrize("wrong", [None, "3", "abc", [1, None], ["1"], object(), 1j, np.array(["a"]), [Tensor(1.0)]])
def test_what_is_no_number_is_refused(wrong):
    x = Tensor([1.0])
    for use in (lambda: Tensor(wrong), lambda: x + wrong, lambda: wrong * x, lambda: F.maximum(x, wrong)):
        with pytest.raises(TypeError, match="a Tensor holds numbers: give it a number, a list"):
            use()
