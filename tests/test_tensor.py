"""The tape: what Tensor promises."""

import threading
import weakref

import numpy as np
import pytest
from strategies import normal

from tinyllm import Tensor, no_grad
from tinyllm import functional as F
from tinyllm import nn, optim


def leaf(*shape, dtype=np.float64):
    return Tensor(normal(*shape).astype(dtype), requires_grad=True)


# What a Tensor is made of

def test_numbers_and_lists_become_float32_and_arrays_keep_their_dtype():
    assert all(Tensor(data).dtype == np.float32 for data in (1, 2.5, True, [1, 2], [[1.0], [2.0]]))
    assert all(Tensor(np.zeros(2, dtype)).dtype == dtype for dtype in (np.float32, np.float64, np.int64))
    assert Tensor(np.float64(1)).dtype == np.float64


def test_arrays_are_copied():
    array = np.zeros(3)
    t = Tensor(array)
    array[0] = 1
    assert t.data[0] == 0 and not np.shares_memory(Tensor(t).data, t.data)


def test_only_floats_can_require_a_gradient():
    with pytest.raises(ValueError, match="int64.*astype"):
        Tensor(np.arange(3), requires_grad=True)


def test_a_misspelled_attribute_raises():
    with pytest.raises(AttributeError):
        Tensor(1.0).requires_gard = True


def test_len_and_iteration():
    t = leaf(3, 2)
    assert len(t) == 3 and [row.shape for row in t] == [(2,)] * 3 and t[[]].shape == (0, 2)
    with pytest.raises(TypeError, match="no dimensions"):
        len(Tensor(1.0))


def test_repr_tells_where_it_comes_from():
    assert "requires_grad=True" in repr(leaf(2)) and "from mul" in repr(leaf(2) * 2)


def test_shapes_may_be_numpy_integers():
    x = leaf(2, 3)
    assert x.reshape(np.prod(x.shape)).shape == (6,)
    assert [piece.shape for piece in F.split(x, np.int64(1))] == [(1, 3), (1, 3)]


def test_detach_and_to_cut_the_tape():
    x = leaf(2)
    assert not (x * 2).detach().requires_grad
    moved = (x * 2).to("numpy", np.float32)
    assert moved.dtype == np.float32 and moved.node is None


# The walk

def test_a_diamond_adds_up():
    a = Tensor(3.0, requires_grad=True)
    b = a * a
    (b + a).backward()
    assert a.grad == 7


def test_a_value_used_twice_waits_for_both_gradients():
    """b reaches the loss along a short and a long path; a must see b's gradient once, and complete."""
    a = Tensor(2.0, requires_grad=True)
    b = a * 3
    c = b.exp().log() * 1
    (b * c).backward()                              # 9 a^2
    np.testing.assert_allclose(a.grad, 36, rtol=1e-6)


def test_the_number_of_paths_costs_nothing():
    """2^60 paths, 60 nodes: every node is visited once."""
    x = leaf()
    y = x
    for _ in range(60):
        y = y + y
    y.backward()
    assert x.grad == 2.0 ** 60


def test_ten_thousand_operations_deep():
    x = leaf(2)
    y = x
    for _ in range(10_000):
        y = -y
    y.sum().backward()
    assert x.grad.tolist() == [1, 1]


def test_a_deep_graph_can_be_dropped():
    """Without backward() Python frees the chain of nodes itself, and must not recurse too deep."""
    y = leaf(2)
    for _ in range(20_000):
        y = -y
    del y


def test_gradients_add_up_over_calls_until_they_are_cleared():
    x = Tensor([1.0, 2.0], requires_grad=True)
    (x * 2).sum().backward()
    (x * 3).sum().backward()
    assert x.grad.tolist() == [5, 5]
    x.grad = None
    (x * 3).sum().backward()
    assert x.grad.tolist() == [3, 3]


def test_the_gradient_of_a_number_is_an_array():
    x = Tensor(2.0, requires_grad=True)
    for _ in range(2):
        (x * x).backward()
    assert isinstance(x.grad, np.ndarray) and x.grad.shape == () and x.grad == 8


def test_each_leaf_owns_its_gradient():
    a, b, seed = leaf(3), leaf(3), np.ones(3)
    (a + b).reshape(3).backward(seed)
    a.grad += 1
    assert b.grad.tolist() == [1, 1, 1] == seed.tolist()


def test_a_leaf_is_its_own_gradient():
    x = leaf(2)
    x.backward(np.array([1.0, 2.0]))
    assert x.grad.tolist() == [1, 2]


def test_backward_starts_at_one_number_or_with_a_gradient():
    x = leaf(2, 3)
    with pytest.raises(ValueError, match=r"shape \(2, 3\).*\.sum\(\)"):
        (x * 2).backward()
    with pytest.raises(ValueError, match=r"\(3,\).*\(2, 3\)"):
        (x * 2).backward(np.ones(3))
    with pytest.raises(ValueError, match="requires_grad=True"):
        Tensor(1.0).backward()
    (x * 2)[:1, :1].backward()                      # a single number, whatever its axes
    assert x.grad.sum() == 2


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (1, 1)])
def test_numbers_and_empty_arrays(shape):
    x = leaf(*shape)
    ((x * 2).exp().reshape(-1) + 1).sum().backward()
    assert x.grad.shape == shape


def test_a_second_backward_says_what_to_do():
    x = leaf(3)
    y = x * x
    y.sum().backward()
    with pytest.raises(RuntimeError, match="mul a second time.*retain_graph=True"):
        y.sum().backward()


def test_retain_graph_allows_another():
    x = leaf(3)
    y = (x * x).sum()
    y.backward(retain_graph=True)
    y.backward()
    np.testing.assert_allclose(x.grad, 4 * x.data)
    with pytest.raises(RuntimeError, match="a second time"):
        y.backward()


def test_no_grad_records_nothing():
    x = leaf(3)
    with no_grad():
        y = F.linear(x, leaf(2, 3)) * 2
    assert y.node is None and not y.requires_grad
    assert (x * 2).node is not None


def test_no_grad_ends_with_its_block():
    x = leaf(3)
    with pytest.raises(ZeroDivisionError):
        with no_grad():
            with no_grad():
                pass
            assert not (x * 2).requires_grad        # the inner one restores the outer one, not the default
            1 / 0
    assert (x * 2).requires_grad


def test_constants_get_no_gradient():
    x, constant = leaf(2), Tensor(np.ones(2))
    (x * constant).sum().backward()
    assert constant.grad is None


def test_unused_outputs_count_as_zero():
    x = leaf(6)
    _, middle, _ = F.split(x, [1, 2, 3])
    (middle * 5).sum().backward()
    assert x.grad.tolist() == [0, 5, 5, 0, 0, 0]


# In-place changes

def by_assignment(layer):
    layer.weight.data = layer.weight.data + 1


def in_place(layer):
    layer.weight.data *= 2


def through_a_detached_one(layer):
    layer.weight.detach().data *= 2


def by_an_optimizer(layer):
    optim.SGD(layer.parameters(), lr=0.1).step()


def by_loading(layer):
    layer.load_state_dict(layer.state_dict())


@pytest.mark.parametrize("change", [by_assignment, in_place, through_a_detached_one, by_an_optimizer, by_loading])
def test_backward_refuses_stale_values(change):
    layer = nn.Linear(3, 2)
    loss = layer(Tensor(np.ones((1, 3), np.float32))).sum()
    change(layer)
    with pytest.raises(RuntimeError, match=r"input 1 of linear, of shape \(2, 3\), was changed in place"):
        loss.backward()


def test_backward_refuses_stale_values_of_a_detached_tensor():
    layer, x = nn.Linear(3, 2), leaf(1, 3, dtype=np.float32)
    loss = (x * layer.weight.detach()).sum()
    in_place(layer)
    with pytest.raises(RuntimeError, match=r"input 1 of mul, of shape \(2, 3\), was changed in place"):
        loss.backward()


@pytest.mark.parametrize("name", ["tanh", "exp", "sigmoid"])
def test_backward_refuses_an_output_that_was_changed(name):
    """Its gradient is computed from it."""
    x = leaf(2, 3)
    y = getattr(x, name)()
    y.data *= 2
    with pytest.raises(RuntimeError, match=f"the output of {name} was changed in place after the forward pass"):
        y.sum().backward()


def test_an_index_belongs_to_the_tape():
    x, rows = leaf(2, 3), [[0, 0], [1, 1]]
    y = x[rows]
    rows[0][0] = 1
    y.sum().backward()
    np.testing.assert_array_equal(x.grad, np.full((2, 3), 2.0))


def test_each_thread_has_its_own_no_grad():
    def write(entered, leave):
        with no_grad():
            entered.set()
            leave.wait()

    events = [threading.Event() for _ in range(4)]
    threads = [threading.Thread(target=write, args=events[i:i + 2]) for i in (0, 2)]
    for thread, entered in zip(threads, events[::2]):
        thread.start()
        entered.wait()
    assert (leaf(2) * 2.0).requires_grad
    for thread, leave in zip(threads, events[1::2]):        # the first to come is the first to go
        leave.set()
        thread.join()
    assert (leaf(2) * 2.0).requires_grad


def test_a_detached_tensor_keeps_the_old_array_when_its_source_gets_another():
    layer, x = nn.Linear(3, 2), leaf(1, 3, dtype=np.float32)
    fixed = layer.weight.detach()
    loss = (x * fixed).sum()
    by_assignment(layer)
    loss.backward()
    np.testing.assert_array_equal(x.grad, fixed.data.sum(0, keepdims=True))


IDS = [
    lambda weight, ids: F.embedding(ids, weight), lambda weight, ids: weight[ids], lambda weight, ids: weight[ids, 0],
    lambda weight, ids: F.cross_entropy(weight, ids), lambda weight, ids: F.linear_cross_entropy(weight, weight, ids),
    lambda weight, ids: F.where(ids > 0, weight, 0), lambda weight, ids: weight * ids,
]


@pytest.mark.parametrize("use", IDS)
def test_ids_may_change_before_backward(use):
    """A batch is often read into the same array again."""
    grads = []
    for change in (False, True):
        weight, ids = leaf(3, 3), np.array([0, 2, 1])
        out = use(weight, ids)
        if change:
            ids[...] = 1
        out.sum().backward()
        grads.append(weight.grad)
    np.testing.assert_array_equal(*grads)


def test_a_step_between_two_losses_is_no_change():
    layer = nn.Linear(3, 2)
    optimizer = optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(2):
        layer(Tensor(np.ones((1, 3), np.float32))).sum().backward()
        optimizer.step()


# Memory

def test_backward_frees_the_graph():
    x = leaf(3)
    hidden = x * 2
    loss = (hidden * hidden).sum()
    kept = weakref.ref(hidden)
    del hidden
    assert kept() is not None
    loss.backward()
    assert kept() is None                           # at once: nothing waits for the garbage collector


def test_a_dropped_graph_is_freed_without_backward():
    x = leaf(3)
    hidden = x * 2
    loss, kept = (hidden * hidden).sum(), weakref.ref(hidden)
    del hidden, loss
    assert kept() is None
