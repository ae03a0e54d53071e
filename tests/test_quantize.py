"""Weights in int8: what rounding may do to a number, the layer in NumPy, and whole models that write with them."""
import copy
import importlib

import numpy as np
import pytest
from checks import EPS32, assert_near, check_same
from hypothesis import given
from hypothesis import strategies as st
from strategies import integers, lay, normal
from test_beams import KINDS, make
from test_contract import poisoned, untouched
from test_threads import three  # noqa: F401

from tinyllm import Tensor, composed, generate, no_grad, nn, ops, quantized, stream
from tinyllm import functional as F
from tinyllm.int8 import Int8
from tinyllm.quantize import losses

MODELS = [kind for kind in KINDS if kind != "n-gram"]


# Rounding

@given(rows=st.integers(1, 5), columns=st.integers(1, 70), exponent=st.integers(-150, 100), seed=st.integers(0, 99))
def test_no_weight_moves_by_more_than_half_a_step(rows, columns, exponent, seed):
    weight = np.ldexp(normal(rows, columns, seed=seed), exponent).astype(np.float32)
    small = Int8.of(Tensor(weight))
    largest = np.abs(weight).max(axis=1).astype(np.float64)
    np.testing.assert_allclose(small.scale * 127.0, np.where(small.values.any(axis=1), largest, 127), rtol=2**-23,
                               atol=127 * 2.0**-150)                        # below 2^-126, float32 has fixed steps
    error = np.abs(weight - small.values * small.scale.astype(np.float64)[:, None])
    assert (error <= small.scale[:, None] * (0.5 + 2**-16) * (largest[:, None] > 1e-36) + 1e-37).all()
    assert small.values.dtype == np.int8 and small.scale.dtype == np.float32 and small.values.min() >= -127


def test_the_largest_of_each_row_is_exact_and_zeros_stay():
    small = Int8.of(Tensor(np.array([[1.0, -254.0, 0.5], [0, 0, 0], [-3, 0, 3]], np.float32)))
    assert small.values.tolist() == [[0, -127, 0], [0, 0, 0], [-127, 0, 127]] and small.scale[1] == 1
    assert small.numpy().tolist() == [[0, -254, 0], [0, 0, 0], [-3, 0, 3]]
    assert small[1:].shape == (2, 3) and small[1:].numpy().tolist() == [[0, 0, 0], [-3, 0, 3]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused(bad):
    with pytest.raises(ValueError, match=r"Int8: the matrix \(2, 3\) holds NaN or infinity"):
        Int8.of(Tensor(np.array([[1, 2, 3], [1, bad, 3]])))


@pytest.mark.parametrize("layout", ["plain", "transposed", "strided", "reversed"])
def test_the_layout_in_memory_does_not_matter(layout):
    weight = normal(130, 20)
    plain, other = Int8.of(Tensor._of(weight)), Int8.of(Tensor._of(lay(weight, layout)))
    np.testing.assert_array_equal(plain.values, other.values)
    np.testing.assert_array_equal(plain.scale, other.scale)
    assert other.values.flags.c_contiguous


# The layer, in NumPy

SHAPES = [((), 4, 3), ((1,), 1, 1), ((0,), 4, 3), ((2, 3), 7, 5), ((1, 1), 33, 65), ((3,), 0, 2), ((5,), 40, 300)]


def layer(rows, n_in, n_out, bias=True):
    """x, weight, scale, bias; the scales differ by orders of magnitude."""
    scale = np.ldexp(1.5, integers(3, n_out, low=-6)).astype(np.float32)
    return (normal(*rows, n_in), integers(128, n_out, n_in, low=-127).astype(np.int8), scale,
            normal(n_out, seed=2) if bias else None)


def view(function, arrays, dtype):
    x, weight, scale, bias = arrays
    with no_grad():
        return function(Tensor(x.astype(dtype)), weight, scale, None if bias is None else Tensor(bias.astype(dtype)))


@pytest.mark.parametrize("piece", [1, 40, 10**6])
@pytest.mark.parametrize("rows, n_in, n_out", SHAPES)
def test_functional_is_composed(rows, n_in, n_out, piece, monkeypatch):
    """In pieces of one row of weights, of several, and as a whole."""
    monkeypatch.setattr(importlib.import_module("tinyllm.ops.linear_int8"), "PIECE", piece)
    for bias in (True, False):
        found, expected = (view(f.linear_int8, layer(rows, n_in, n_out, bias), np.float64) for f in (F, composed))
        check_same(([found.numpy()], []), ([expected.numpy()], []))


@pytest.mark.parametrize("rows, n_in, n_out", SHAPES)
def test_three_threads_compute_what_one_does(rows, n_in, n_out, three, monkeypatch):  # noqa: F811
    test_functional_is_composed(rows, n_in, n_out, 1, monkeypatch)


def allowed(arrays, unit=EPS32 / 2):
    """The truth, and how far off a sum of n products in float32 may be, if rounding moves the result by its share unit:
    unit |truth| + n eps sum |terms|
    """
    x, weight, scale, bias = (None if a is None else a.astype(np.float64) for a in arrays)
    weight, bias = weight * scale[:, None], np.zeros(len(scale)) if bias is None else bias
    truth, terms = x @ weight.T + bias, np.abs(x) @ np.abs(weight).T + np.abs(bias)
    return truth, (unit * np.abs(truth) + (weight.shape[1] + 3) * EPS32 * terms).max(initial=0)


@pytest.mark.parametrize("rows", [(), (3,), (2, 5)])
def test_float32_stays_float32_and_nothing_given_is_written(rows):
    arrays = [a.astype(np.float32) if a.dtype == np.float64 else a for a in layer(rows, 700, 900)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tinyllm.ops.memory.empty", poisoned)
        out = untouched("linear_int8", ops.linear_int8, arrays)
    assert out.dtype == np.float32
    assert_near("out", out, *allowed(arrays))


def test_sums_of_float16_do_not_overflow_before_they_are_scaled():
    weight = Int8.of(Tensor(np.full((2, 768), 0.5, np.float16)))
    out = ops.linear_int8(np.ones((3, 768), np.float16), weight.values, weight.scale)
    assert out.dtype == np.float16 and (out == 384).all()


@pytest.mark.parametrize("layout", ["plain", "transposed", "strided", "reversed"])
@pytest.mark.parametrize("n", [0, 1, 2, 8, 9])
def test_few_rows_of_a_float_layer(n, layout):
    """One row, a few and many take different ways through BLAS."""
    x, weight = normal(n, 701).astype(np.float32), normal(1500, 701, seed=1).astype(np.float32)
    out, _ = ops.linear_forward(lay(x, layout), lay(weight, layout))
    assert_near("out", out, *allowed((x, weight, np.ones(1500), None)))


@pytest.mark.parametrize("n", [1, 2, 8])
def test_few_rows_of_a_float_layer_on_three_threads(n, three):  # noqa: F811
    test_few_rows_of_a_float_layer(n, "plain")


# Whole models

@pytest.mark.parametrize("function", ["linear", "mlp", "linear_cross_entropy"])
def test_operations_take_int8_in_the_place_of_a_weight(function):
    x, (weight, weight2) = Tensor(normal(2, 3, 8)), (Int8.of(Tensor(normal(8, 8, seed=seed))) for seed in (1, 2))
    bias, targets = Tensor(normal(8, seed=3)), integers(8, 2, 3)
    rest = {"linear": (bias,), "mlp": (bias, weight2, None), "linear_cross_entropy": (targets, 3, "none", 0.1)}
    plain = lambda a: Tensor(a.values * a.scale.astype(np.float64)[:, None]) if isinstance(a, Int8) else a
    found = getattr(F, function)(x, weight, *rest[function])
    expected = getattr(F, function)(x, plain(weight), *map(plain, rest[function]))
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-10)


def rounded(model):
    """By another way: a model of the same class with rounded numbers in the places of its matrices, its head untied."""
    model = copy.deepcopy(model)
    model.lm_head = copy.deepcopy(model.lm_head)
    matrices = [m.weight for m in model.modules() if isinstance(m, nn.Linear) or m is model.lm_head]
    matrices += [p for name, p in model.named_parameters() if name.endswith("in_proj_weight")]
    for p in {id(p): p for p in matrices}.values():
        scale = np.float32(np.abs(p.data).max(axis=1, keepdims=True) / 127).astype(p.dtype)
        p.data = np.rint(p.data / scale) * scale
    return model.eval(), len(matrices)


def batch(model):
    ids = integers(22, 2, 7, low=3)
    return (ids, integers(22, 2, 5, low=3, seed=1)) if hasattr(model, "read_source") else (ids,)


@pytest.mark.parametrize("kind", MODELS)
def test_a_quantized_model_is_the_model_with_rounded_matrices(kind):
    model = make(kind)
    expected, n_matrices = rounded(model)
    small = quantized(model)
    found = {id(part) for module in small.modules() for part in vars(module).values() if isinstance(part, Int8)}
    assert len(found) == n_matrices >= (1 if kind in ("lstm", "rnn", "gru") else 5)
    with no_grad():
        logits, wanted, plain = (m(*batch(model)).numpy() for m in (small, expected, model.eval()))
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-10 * np.abs(wanted).max())
    assert np.abs(logits - plain).max() > 1e-6, "nothing was rounded"


@pytest.mark.parametrize("kind", MODELS)
def test_the_model_itself_is_untouched(kind):
    model = make(kind).train()
    before, arrays = model.state_dict(), [p.data for p in model.parameters()]
    prompt = integers(22, 2, 4, low=3)
    text = generate(model, prompt, 3, temperature=0, quantize="int8")
    losses(model, *batch(model)[:1], batch(model)[-1])
    assert all(p.data is array for p, array in zip(model.parameters(), arrays)) and model.training
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    loss = model.loss(*batch(model)[:1], batch(model)[-1])
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    np.testing.assert_array_equal(text, generate(quantized(model), prompt, 3, temperature=0))


@pytest.mark.parametrize("kind", ["gpt", "llama", "seq2seq", "t5"])
def test_it_streams_searches_and_goes_on_after_padding(kind):
    model = make(kind)
    small, prompts = quantized(model), [[3, 4, 5], [6]]
    how = dict(max_new_tokens=4, seed=1, pad_token_id=0, stop_tokens=())
    text = generate(model, prompts, quantize="int8", **how)
    np.testing.assert_array_equal(text, generate(small, prompts, **how))
    np.testing.assert_array_equal(text[:, -4:], np.stack(list(stream(model, prompts, quantize="int8", **how)), axis=1))
    np.testing.assert_array_equal(generate(model, prompts, quantize="int8", num_beams=3, **how),
                                  generate(rounded(model)[0], prompts, num_beams=3, **how))


def test_the_cost_of_a_text_can_be_measured():
    model, ids = make("gpt"), integers(23, 2, 12)
    plain, rough = losses(model, ids[:, :-1], ids[:, 1:])
    assert plain == model.eval().loss(ids[:, :-1], ids[:, 1:]).item()
    assert rough == quantized(model).loss(ids[:, :-1], ids[:, 1:]).item()
    assert 0 < abs(rough - plain) < 0.1


def test_matrices_take_a_byte_per_number():
    model = make("gpt", dtype=None)
    parts = [part for module in quantized(model).modules() for part in vars(module).values() if isinstance(part, Int8)]
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and not name.startswith("wpe")]
    assert sum(part.values.nbytes for part in parts) == sum(p.data.nbytes for p in matrices) / 4
    assert sum(part.scale.nbytes for part in parts) == 4 * sum(len(p.data) for p in matrices)


# What makes no sense

def test_a_copy_has_no_parameters(tmp_path):
    small = quantized(make("gpt"))
    assert quantized(small) is small
    for use in (small.parameters, small.state_dict, small.num_parameters, lambda: small.to("numpy"),
                lambda: small.load_state_dict({}), lambda: small.save_pretrained(tmp_path)):
        with pytest.raises(RuntimeError, match="quantized: this copy .* can write, but not be trained, saved or moved"):
            use()
    with pytest.raises(ValueError, match="quantized: ndarray is no Module, so it has no matrices"):
        quantized(np.ones(3))


@pytest.mark.parametrize("wrong", ["int4", True, 8])
def test_other_formats_are_refused(wrong):
    with pytest.raises(ValueError, match=f'generate: quantize must be "int8" or None, not {wrong!r}'):
        generate(make("gpt"), [1], 2, quantize=wrong)


def test_no_gradient_passes():
    x, weight = Tensor(normal(2, 4), requires_grad=True), Int8.of(Tensor(normal(3, 4)))
    with pytest.raises(RuntimeError, match=r"linear_int8: gradients do not pass .*`with no_grad\(\):`"):
        F.linear(x, weight)
    with no_grad():
        F.linear(x, weight)


@pytest.mark.parametrize("change, message", [
    (dict(x=np.ones((2, 5))), "linear_int8: the last axis of x must be the second of weight"),
    (dict(weight=np.ones((3, 4))), r"linear_int8: weight must be int8, not float64, and scale must have shape \(3,\)"),
    (dict(scale=np.ones(4, np.float32)), r"scale must have shape \(3,\) .*; Int8.of\(weight\) makes both"),
    (dict(bias=np.ones(4)), r"linear_int8: bias must have shape \(3,\)"),
    (dict(bias=np.ones(3, np.float32)), "linear_int8: x and bias must be floating point, and of one dtype"),
    (dict(x=np.ones((2, 4), int)), "linear_int8: x and bias must be floating point"),
])
def test_wrong_arguments_are_explained(change, message):
    arrays = dict(x=np.ones((2, 4)), weight=np.ones((3, 4), np.int8), scale=np.ones(3, np.float32), bias=None) | change
    with pytest.raises(ValueError, match=message):
        F.linear_int8(Tensor(arrays["x"]), arrays["weight"], arrays["scale"],
                      None if arrays["bias"] is None else Tensor(arrays["bias"]))
