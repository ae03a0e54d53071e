"""The tape: what Tensor promises, and every primitive against torch."""

import math
import operator
import weakref

import numpy as np
import pytest
from checks import TORCH, check_same, check_torch, run, run_torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import LAYOUTS, MAKERS, PRIMITIVES, drawn, fixed, normal

from tinyllm import Tensor, detect_anomaly, draw, no_grad
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
    assert len(t) == 3 and [row.shape for row in t] == [(2,)] * 3
    with pytest.raises(TypeError, match="no dimensions"):
        len(Tensor(1.0))


def test_repr_tells_where_it_comes_from():
    assert "requires_grad=True" in repr(leaf(2)) and "from mul" in repr(leaf(2) * 2)


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


def test_shapes_may_be_numpy_integers():
    x = leaf(2, 3)
    assert x.reshape(np.prod(x.shape)).shape == (6,)
    assert [piece.shape for piece in F.split(x, np.int64(1))] == [(1, 3), (1, 3)]


def test_float_types_do_not_mix():
    with pytest.raises(ValueError, match=r"add: mixes float32 and float64.*\.cast"):
        Tensor(np.ones(2, np.float32)) + np.ones(2)


def test_detach_and_to_cut_the_tape():
    x = leaf(2)
    assert not (x * 2).detach().requires_grad
    moved = (x * 2).to("numpy", np.float32)
    assert moved.dtype == np.float32 and moved.node is None


# Every primitive against torch

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


@pytest.mark.parametrize("dtype, error", [(np.float32, 2e-7), (np.float64, 2e-15)])
def test_erf_is_accurate_to_the_last_digits(dtype, error):
    x = np.concatenate([np.linspace(-7, 7, 2001), [0, 1, -1, 6, 100, np.inf, -np.inf]]).astype(dtype)
    found = Tensor(x).erf().numpy()
    assert found.dtype == dtype
    np.testing.assert_allclose(found.astype(np.float64), [math.erf(v) for v in x], rtol=0, atol=error)


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


def test_the_sum_alone_of_add_layer_norm():
    x, branch, weight, c = leaf(3, 4), leaf(3, 4), leaf(4), normal(3, 4, seed=5)
    total, _ = F.add_layer_norm(x, branch, weight)
    (total * c).sum().backward()
    assert (x.grad == c).all() and (branch.grad == c).all() and weight.grad is None


def test_the_norm_alone_of_add_layer_norm():
    case = MAKERS["add_layer_norm"]()
    norm = lambda view: lambda *inputs: view(*inputs)[1]
    check_same(run(norm(F.add_layer_norm), case), run_torch(norm(TORCH["add_layer_norm"]), case))


# In-place changes

def by_assignment(layer):
    layer.weight.data = layer.weight.data + 1


def by_an_optimizer(layer):
    optim.SGD(layer.parameters(), lr=0.1).step()


def by_loading(layer):
    layer.load_state_dict(layer.state_dict())


@pytest.mark.parametrize("change", [by_assignment, by_an_optimizer, by_loading])
def test_backward_refuses_stale_values(change):
    layer = nn.Linear(3, 2)
    loss = layer(Tensor(np.ones((1, 3), np.float32))).sum()
    change(layer)
    with pytest.raises(RuntimeError, match=r"input 1 of linear, of shape \(2, 3\), was changed in place"):
        loss.backward()


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


# Errors

def ones(*shape, dtype=np.float32):
    return Tensor(np.ones(shape, dtype))


q = ones(2, 3, 4, 5)
WRONG = [
    (lambda: ones(2, 3) + ones(2, 4), r"add: .*axis -1 .*\(2, 3\).*\(2, 4\).*equal or 1"),
    (lambda: ones(4, 3) * ones(2, 3), r"mul: .*axis -2"),
    (lambda: F.where(np.ones((2, 3), bool), ones(3), ones(2)), r"where: .*\(2, 3\).*\(3,\).*\(2,\)"),
    (lambda: ones(2, 3) @ ones(4, 3), r"matmul: .*\(3\).*\(4\).*did you mean b.transpose\(-1, -2\)"),
    (lambda: ones(2, 3) @ ones(4, 5), r"matmul: .*check which axis"),
    (lambda: ones(2, 1, 3) @ ones(3, 3, 1), r"matmul: the batch axes"),
    (lambda: ones() @ ones(2), "matmul: a number.*use *"),
    (lambda: F.linear(ones(2, 3), ones(3, 4)), r"linear: .*x \(2, 3\), weight \(3, 4\).*needs \.T"),
    (lambda: F.linear_gelu(ones(2, 3), ones(4, 3), ones(3)), r"linear_gelu: bias must have shape \(4,\)"),
    (lambda: F.embedding(np.ones(2), ones(3, 4)), "embedding: ids must be integers, not float64.*astype"),
    (lambda: F.embedding(np.ones(2, int), ones(3)), r"embedding: weight must be a matrix \(weight \(3,\)\)"),
    (lambda: F.layer_norm(ones(2, 3), ones(2)), r"layer_norm: weight must match .*x \(2, 3\), weight \(2,\)"),
    (lambda: F.rms_norm(ones(2, 3), ones(2)), r"rms_norm: weight must match .*x \(2, 3\), weight \(2,\)"),
    (lambda: F.add_layer_norm(ones(2, 3), ones(3), ones(3)), r"add_layer_norm: both .*\(2, 3\).*\(3,\).*not broadcast"),
    (lambda: F.swiglu(ones(2, 3), ones(3)), r"swiglu: both arguments must have one shape \(a \(2, 3\), b \(3,\)\)"),
    (lambda: F.attention(ones(2, 3, 4), q, q), r"attention: q must be \(B, T, H, D\).*q \(2, 3, 4\)"),
    (lambda: F.attention(q, ones(2, 3, 4, 6), ones(2, 3, 4, 6)), "attention: q, k and v must agree in .*head size"),
    (lambda: F.attention(q, q[:, :, :3], q[:, :, :3]), r"attention: the heads of q \(axis 2\) must be a multiple"),
    (lambda: F.attention(q, q, q, ones(2, 3, 3)), r"attention: bias must be \(2, 4, 3, 3\).*bias \(2, 3, 3\)"),
    (lambda: F.attention(q, q, q, key_start=np.zeros(3, int)), r"attention: key_start must be \(2,\)"),
    (lambda: F.attention(q, q, q, key_end=np.zeros(2)), "attention: key_end must be integers"),
    (lambda: F.attention(q, q, q, dropout=1.0), r"attention: the dropout probability must be in \[0, 1\)"),
    (lambda: F.self_attention(ones(2, 3, 12), n_head=3), r"self_attention: .*n_head=3 \(qkv \(2, 3, 12\)\)"),
    (lambda: F.rope(q[..., :4], np.ones((3, 2)), np.ones((3, 2))), "rope: mixes float32 and float64"),
    (lambda: F.rope(q, *F.rope_tables(range(3), 4)), r"rope: x must be \(B, T, H, D\) with D even"),
    (lambda: F.dropout(ones(2), 1.0), r"dropout: .*got p=1.0"),
    (lambda: F.cross_entropy(ones(2, 3), [0, 1, 2]), r"cross_entropy: .*one target per row.*\(2, 3\).*\(3,\)"),
    (lambda: F.cross_entropy(ones(1, 3), [0.5]), "cross_entropy: targets must be integers"),
    (lambda: F.cross_entropy(ones(1, 3), [0], reduction="max"), "cross_entropy: reduction must be .*'max'"),
    (lambda: F.cross_entropy(ones(1, 3), [0], label_smoothing=2), "cross_entropy: label_smoothing must be between"),
    (lambda: F.linear_cross_entropy(ones(2, 3), ones(5, 3), [0]), r"linear_cross_entropy: .*one target per row"),
    (lambda: F.linear_cross_entropy(ones(2, 3), ones(3, 5), [0, 0]), r"linear_cross_entropy: .*weight \(3, 5\)"),
    (lambda: ones(2, 3).sum(axis=2), r"sum: there is no axis 2 \(x \(2, 3\)\)"),
    (lambda: ones(2, 0).max(axis=1), "max: there is no maximum of nothing"),
    (lambda: ones(2, 3).reshape(4, -1), r"reshape: 6 elements do not fill shape \(4, -1\)"),
    (lambda: ones(2, 3).permute(0, 0), r"permute: \(0, 0\) does not name each of the 2 axes once"),
    (lambda: ones(2, 3).permute(2, 3), r"permute: \(2, 3\) does not name each of the 2 axes once"),
    (lambda: F.concatenate([ones(2, 3), ones(3, 2)]), r"concatenate: all axes but 0 .*\(2, 3\).*\(3, 2\)"),
    (lambda: F.concatenate([ones(2), ones(2)], axis=1), "concatenate: there is no axis 1"),
    (lambda: F.split(ones(4), [1, 2]), r"split: the sizes \(1, 2\) must add up to the length of axis 0"),
]


@pytest.mark.parametrize("wrong, message", WRONG, ids=[message.partition(":")[0] for _, message in WRONG])
def test_wrong_arguments_are_explained(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


@pytest.mark.parametrize("ids", [[0, 3], [[0], [-1]]])
def test_an_id_outside_the_vocabulary_is_named_with_its_place(ids):
    place = r"\(1,\)" if ids[1] == 3 else r"\(1, 0\)"
    for use in (lambda: F.embedding(ids, ones(3, 2)), lambda: F.cross_entropy(ones(*np.shape(ids), 3), ids),
                lambda: F.linear_cross_entropy(ones(*np.shape(ids), 2), ones(3, 2), ids)):
        with pytest.raises(IndexError, match=f"token id (3|-1) at position {place} is outside the vocabulary of 3"):
            use()


def test_an_operation_needs_a_tensor():
    with pytest.raises(TypeError, match=r"relu: none of its inputs is a Tensor"):
        F.relu(np.ones(3))


# Anomaly mode

def test_anomaly_mode_names_the_operation_whose_output_is_nan():
    with np.errstate(all="ignore"), detect_anomaly():
        with pytest.raises(FloatingPointError, match=r"output 0 of log .*\(1,\)"):
            (Tensor([1.0]) - 2).log() * 3


def test_anomaly_mode_names_the_operation_whose_gradient_is_nan():
    x = Tensor([0.0], requires_grad=True)
    with np.errstate(all="ignore"), detect_anomaly():
        with pytest.raises(FloatingPointError, match="gradient 0 of sqrt"):
            (x.sqrt() * 0).sum().backward()         # 0 * infinity
    with np.errstate(all="ignore"):                 # outside the block nothing is looked at
        (x.sqrt() * 0).sum().backward()
    assert np.isnan(x.grad).all()


# Pictures

def small_graph():
    a, b = Tensor(3.0, requires_grad=True), Tensor(np.ones((2, 2), np.float32))
    return a, (a * b).sum()


def test_draw_shows_operations_shapes_names_and_edges():
    a, loss = small_graph()
    text = draw(loss, names={a: "alpha"})
    assert text.startswith("digraph {")
    assert all(label in text for label in ('"alpha = 3"', '"constant\\n2 x 2"', '"mul\\n2 x 2"', '"sum\\nnumber"'))
    assert text.count("->") == 3 and "|grad|" not in text


def test_draw_shows_gradients_after_backward():
    _, loss = small_graph()
    loss.backward(retain_graph=True)
    text = draw(loss)
    assert '"mul\\n2 x 2\\n|grad| 2"' in text and '"parameter = 3\\n|grad| 4"' in text


def test_draw_takes_names_from_a_module():
    layer = nn.Linear(2, 3)
    text = draw(layer(Tensor([[1.0, 2.0]])), names=layer)
    assert '"weight\\n3 x 2"' in text and '"bias\\n3"' in text


def test_draw_says_that_the_graph_is_gone():
    _, loss = small_graph()
    loss.backward()
    with pytest.raises(ValueError, match="freed the graph at sum.*retain_graph=True"):
        draw(loss)


@pytest.mark.parametrize("name, start", [("g.dot", b"digraph"), ("g.png", b"\x89PNG"), ("g.svg", b"<?xml")])
def test_draw_writes_files_without_graphviz(name, start, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda program: None)
    draw(small_graph()[1], tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(start)


def test_draw_refuses_other_files(tmp_path):
    with pytest.raises(ValueError, match="must end in .dot, .svg or .png"):
        draw(small_graph()[1], tmp_path / "g.jpg")
