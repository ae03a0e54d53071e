"""Gradients that are added to an array in place: what an optimizer's flat buffer gets from each operation."""
import inspect

import numpy as np
import pytest

pytest.importorskip("torch", reason="the kernels' arrays are torch tensors: pip install tinyllm[triton]")
pytest.importorskip("triton", reason="Triton exists for Linux only: pip install tinyllm[triton]")

from checks import FUNCTIONAL, as_tuple, is_float, upstream  # noqa: E402
from strategies import MAKERS  # noqa: E402

import tinyllm  # noqa: E402
from tinyllm import Tensor, backend, kernels, nn, ops, optim, train  # noqa: E402
from tinyllm.kernels import configs, matmul_tma, runtime  # noqa: E402

WITH_INTO = [op for op in MAKERS if "into" in inspect.signature(getattr(ops, op + "_backward")).parameters]
SIZES = {"linear": dict(rows=(256,), n_in=64, n_out=136)}       # for a kernel of Hopper's as well


def gradients(op, where, before=None, dtype=None):
    """Each float input's gradient; before: what stands in its buffer, or None: no buffers."""
    arrays, options = MAKERS[op](**SIZES.get(op, {}))
    leaves = [Tensor(a.astype(np.float32), requires_grad=True).to(where, dtype) if is_float(a) else a for a in arrays]
    for leaf in leaves:
        if isinstance(leaf, Tensor) and before is not None:
            leaf.grad = leaf.grad_buffer = backend.get(where).from_numpy(np.full(leaf.shape, before, np.float32))
    outs = as_tuple(FUNCTIONAL[op](*leaves, **options))
    douts = [Tensor(upstream(i, out.shape).astype(np.float32)).to(where, out.dtype) for i, out in enumerate(outs)]
    sum((out * dout).sum() for out, dout in zip(outs, douts)).backward()
    leaves = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    in_place = [before is not None and leaf.grad is leaf.grad_buffer for leaf in leaves]
    return [backend.get(where).to_numpy(leaf.grad) for leaf in leaves], in_place


@pytest.mark.parametrize("architecture", ["numpy", "triton", "sm_90", "the same order"])
@pytest.mark.parametrize("op", WITH_INTO)
def test_gradients_of_weights_are_added_to_what_is_there(op, architecture, monkeypatch):
    where, dtype = "numpy" if architecture == "numpy" else "triton", None
    if architecture == "sm_90":                                     # whose own kernels multiply 16-bit numbers
        monkeypatch.setattr(configs, "architecture", lambda: "sm_90")
        dtype, used, add = "bfloat16", [], matmul_tma.add_product
        monkeypatch.setattr(matmul_tma, "add_product", lambda *a: used.append(op) or add(*a))
    monkeypatch.setattr(runtime, "deterministic", architecture == "the same order")
    alone, _ = gradients(op, where, dtype=dtype)
    together, in_place = gradients(op, where, 2.0, dtype)
    assert architecture != "sm_90" or op != "linear" or used == [op, op]
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_allclose(b - 2, a, rtol=1e-5, atol=1e-5 * max(1, np.abs(a).max()))
    weights = [i for i, a in enumerate(MAKERS[op](**SIZES.get(op, {}))[0]) if is_float(a)]
    assert all(done for i, done in zip(weights, in_place) if i >= (2 if op == "add_layer_norm" else 1)), in_place


def test_all_ways_to_have_weights_are_among_them():
    assert set(WITH_INTO) >= {"linear", "linear_gelu", "mlp", "embedding", "layer_norm", "add_layer_norm", "rms_norm",
                              "linear_cross_entropy"}


def test_a_weight_used_twice_and_one_whose_operation_knows_nothing_of_it():
    """In and out of the buffer: the step is that of ordinary gradients."""
    ends = []
    for collect in (False, True):
        tinyllm.manual_seed(0)
        layer, free = nn.Linear(4, 4).to("triton"), Tensor(np.ones((4, 4), np.float32), requires_grad=True).to("triton")
        optimizer = optim.SGD([*layer.parameters(), free], 0.1)
        for _ in range(2):
            optimizer.collect_gradients() if collect else optimizer.zero_grad()
            x = Tensor(np.eye(4, dtype=np.float32)).to("triton")
            (layer(layer(x)) * (free + layer.weight)).sum().backward()
            optimizer.step()
        ends.append(optimizer.flat)
    np.testing.assert_allclose(*map(runtime.to_numpy, ends), rtol=1e-6)


def test_zero_grad_after_collecting_forgets_the_buffer():
    p = Tensor(np.ones(3, np.float32), requires_grad=True).to("triton")
    optimizer = optim.SGD([p], 1.0)
    optimizer.collect_gradients()
    (p * 5.0).sum().backward()
    optimizer.zero_grad()
    (p * 2.0).sum().backward()
    optimizer.step()
    np.testing.assert_array_equal(p.numpy(), np.full(3, -1))


def test_a_training_step_copies_no_gradient_of_a_gpt(monkeypatch):
    model = tinyllm.GPT(tinyllm.GPTConfig.preset("nano", vocab_size=65)).to("triton")
    optimizer = optim.AdamW(model.parameters())
    step = train.training_step(model, optimizer, train.TrainConfig())
    ids = np.random.default_rng(0).integers(0, 65, (2, 17))
    step([(ids[:, :-1], ids[:, 1:])], 1e-3)
    assert all(p.grad is p.grad_buffer for p in optimizer.params) and kernels.records


def test_a_parameter_that_is_frozen_later_stays_as_it_is():
    layer = nn.LayerNorm(4).to("triton")
    optimizer = optim.SGD(layer.parameters(), 1.0)
    layer.weight.requires_grad = False
    optimizer.collect_gradients()
    (layer(Tensor(np.arange(8, dtype=np.float32).reshape(2, 4)).to("triton")) * 3.0).sum().backward()
    optimizer.step()
    assert (layer.weight.numpy() == 1).all() and (layer.bias.numpy() != 0).all()
