"""Recurrent layers: against torch, over long sequences, in pieces, and what leads where in time."""

import numpy as np
import pytest
import torch
from checks import check_composed, check_same, run, run_torch
from strategies import MAKERS, normal
from test_nn import replace
from test_threads import three  # noqa: F401

from tinyllm import Tensor, backend, composed, gradcheck, manual_seed, nn
from tinyllm import functional as F

KINDS = pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])


def tensors(*shapes, dtype=np.float64):
    return [Tensor(normal(*shape, seed=i).astype(dtype), requires_grad=True) for i, shape in enumerate(shapes)]


def layers(kind, *sizes, dtype=np.float64, **options):
    """Our module and torch's, with the same weights, which have the same names."""
    manual_seed(3)
    ours = getattr(nn, kind)(*sizes, **options).to("numpy", dtype)
    theirs = getattr(torch.nn, kind)(*sizes, batch_first=True, **options).to(torch.float64)
    theirs.load_state_dict({name: torch.tensor(array) for name, array in ours.state_dict().items()})
    return ours, theirs


def triton_backend():
    pytest.importorskip("triton", reason="Triton exists for Linux only: pip install tinyllm[triton]")
    return backend.get("triton")


# Against torch

def flat(result):
    """(out, state) or (out, (h, c)) as one tuple."""
    out, state = result
    return (out, *state) if isinstance(state, tuple) else (out, state)


@KINDS
@pytest.mark.parametrize("B, T, num_layers", [(1, 1, 1), (3, 1, 2), (2, 7, 3), (65, 3, 1), (1, 40, 2)])
@pytest.mark.parametrize("given", [False, True])
def test_layers_are_those_of_torch(kind, B, T, num_layers, given):
    """Outputs, states, and the gradients of input, states and weights, in float64."""
    ours, theirs = layers(kind, 4, 5, num_layers)
    values = [p.numpy() for p in ours.parameters()]
    states = [normal(num_layers, B, 5, seed=i) for i in range(len(ours.states) if given else 0)]
    pack = lambda parts: None if not parts else parts[0] if len(parts) == 1 else tuple(parts)

    def here(x, *rest):
        replace(ours, rest[len(states):])
        return flat(ours(x, pack(rest[:len(states)])))

    def there(x, *rest):
        params = dict(zip(ours.state_dict(), rest[len(states):]))
        return flat(torch.func.functional_call(theirs, params, (x, pack(rest[:len(states)]))))

    case = (normal(B, T, 4, seed=9), *states, *values), {}
    check_same(run(here, case), run_torch(there, case))


@KINDS
def test_float32_is_near_torch_in_float64(kind):
    """Within 1e-5 of the size of each array."""
    ours, theirs = layers(kind, 8, 16, 2, dtype=np.float32)
    x, c = normal(4, 50, 8), normal(4, 50, 16, seed=1)
    x32, x64 = Tensor(x.astype(np.float32), requires_grad=True), torch.tensor(x, requires_grad=True)
    (ours(x32)[0] * Tensor(c.astype(np.float32))).sum().backward()
    (theirs(x64)[0] * torch.tensor(c)).sum().backward()
    pairs = [(x32.grad, x64.grad), *((p.grad, q.grad) for p, q in zip(ours.parameters(), theirs.parameters()))]
    for found, expected in pairs:
        expected = expected.numpy()
        assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_a_thousand_steps():
    """The gradient of an LSTM reaches from the last step to the first one, finite, and equal to torch's."""
    ours, theirs = layers("LSTM", 3, 8, dtype=np.float32)
    ours.bias_ih_l0.data[8:16] += 4         # forget gates that are nearly open: c is a long memory
    theirs.bias_ih_l0.data[8:16] += 4
    x = normal(2, 1000, 3)
    x32, x64 = Tensor(x.astype(np.float32), requires_grad=True), torch.tensor(x, requires_grad=True)
    ours(x32)[0][:, -1].sum().backward()
    theirs(x64)[0][:, -1].sum().backward()
    for found, expected in [(x32.grad, x64.grad), *((p.grad, q.grad) for p, q in
                                                    zip(ours.parameters(), theirs.parameters()))]:
        assert np.isfinite(found).all()
        assert np.abs(found - expected.numpy()).max() < 1e-5 * expected.abs().max()
    assert np.abs(x32.grad[:, 0]).max() > 0


@pytest.mark.parametrize("op, pick", [("rnn", [1]), ("lstm", [1, 2]), ("lstm", [1]), ("lstm", [2]), ("lstm", [0, 2])])
def test_gradients_of_some_outputs_alone(op, pick):
    """The others, such as those of the single steps, are used by nobody."""
    some = lambda view: lambda *inputs: tuple(view(*inputs)[i] for i in pick)
    case = MAKERS[op](B=2, T=4)
    check_same(run(some(getattr(F, op)), case), run(some(getattr(composed, op)), case))


@pytest.mark.parametrize("op, pick", [("rnn", 1), ("lstm", 1), ("lstm", 2)])
def test_gradients_of_one_state_alone_on_triton(op, pick):
    """The kernels run without the gradients that are None."""
    arrays, _ = MAKERS[op](B=2, T=3)
    grads = []
    for ops in (backend.get("numpy"), triton_backend()):
        outs, saved = getattr(ops, op + "_forward")(*(ops.from_numpy(a, np.float32) for a in arrays))
        douts = [out if i == pick else None for i, out in enumerate(outs)]
        grads.append([ops.to_numpy(g) for g in getattr(ops, op + "_backward")(*douts, saved=saved)])
    for expected, found in zip(*grads, strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_gru_has_the_slopes_of_finite_differences():
    shapes = [(2, 3, 4), (2, 5), (15, 4), (15, 5), (15,), (15,)]
    assert gradcheck(F.gru, tensors(*shapes))
    assert gradcheck(lambda x, a, b: F.gru(x, None, a, b), tensors((2, 3, 4), (15, 4), (15, 5)))


@pytest.mark.usefixtures("three")
def test_threads_and_pieces_change_nothing(monkeypatch):
    """The slopes of all steps are computed by several threads, in pieces of a few rows."""
    monkeypatch.setattr("tinyllm.ops.memory.CHUNK", 12)
    for sizes in (dict(), dict(B=3, T=6, n_hidden=9)):
        check_composed("lstm", MAKERS["lstm"](**sizes))


@pytest.mark.parametrize("op", ["rnn", "lstm"])
def test_only_the_gradients_that_are_needed_are_computed(op):
    arrays, _ = MAKERS[op](B=2, T=3)
    for ops in (backend.get("numpy"), triton_backend()):
        inputs = [ops.from_numpy(a, np.float32) for a in arrays]
        for wanted in range(len(arrays)):
            needs = tuple(i == wanted for i in range(len(arrays)))
            outs, saved = getattr(ops, op + "_forward")(*inputs, needs=needs)
            grads = getattr(ops, op + "_backward")(*outs, saved=saved)
            assert tuple(grad is not None for grad in grads) == needs


# What a sequence is

@KINDS
def test_nothing_leaks_from_the_future(kind):
    layer, _ = layers(kind, 4, 5, 2)
    x = normal(2, 6, 4)
    before = layer(Tensor(x))[0].numpy()
    for t in range(6):
        changed = x.copy()
        changed[:, t] += 1
        after = layer(Tensor(changed))[0].numpy()
        np.testing.assert_array_equal(after[:, :t], before[:, :t])
        assert (after[:, t:] != before[:, t:]).any(axis=-1).all()       # while every later step sees the change


@KINDS
def test_the_order_of_the_batch_does_not_matter(kind):
    layer, _ = layers(kind, 4, 5, 2)
    x, order = normal(5, 6, 4), np.array([3, 0, 4, 1, 2])
    for whole, mixed in zip(flat(layer(Tensor(x))), flat(layer(Tensor(x[order])))):
        expected = whole.numpy()[order] if whole.shape[0] == 5 else whole.numpy()[:, order]
        np.testing.assert_allclose(mixed.numpy(), expected, rtol=0, atol=1e-14)


@KINDS
@pytest.mark.parametrize("cuts", [(3,), (1, 2, 6)])
def test_a_sequence_in_pieces_is_the_whole(kind, cuts):
    """Outputs, the last state, and the gradients, which go through the states from piece to piece."""
    layer, _ = layers(kind, 4, 5, 2)

    def in_pieces(x):
        state, outs = None, []
        for a, b in zip((0, *cuts), (*cuts, 7)):
            out, state = layer(x[:, a:b], state)
            outs.append(out)
        return flat((F.concatenate(outs, axis=1), state))

    case = (normal(3, 7, 4),), {}
    check_same(run(in_pieces, case), run(lambda x: flat(layer(x)), case))


def test_dropout_lies_between_layers():
    layer, x = nn.RNN(4, 5, 1, dropout=0.9), Tensor(normal(1, 3, 4).astype(np.float32))
    assert (layer(x)[0].numpy() == layer(x)[0].numpy()).all()           # after the last one there is none
    deep = nn.RNN(4, 5, 2, dropout=0.9)
    assert (deep(x)[0].numpy() != deep(x)[0].numpy()).any()
    deep.eval()
    assert (deep(x)[0].numpy() == deep(x)[0].numpy()).all()


@KINDS
def test_modules_start_as_those_of_torch(kind):
    manual_seed(0)
    layer = getattr(nn, kind)(30, 100, 2)
    assert [(n, p.shape) for n, p in layer.named_parameters()] == [
        (n, tuple(p.shape)) for n, p in getattr(torch.nn, kind)(30, 100, 2).named_parameters()]
    for p in layer.parameters():                                        # uniform in +-0.1
        assert 0.09 < np.abs(p.data).max() <= 0.1 and abs(p.data.std() - 0.1 / 3**0.5) < 0.01


# Errors

ONES = lambda *shape: Tensor(np.ones(shape, np.float32))
WRONG = [
    (lambda: F.rnn(ONES(2, 3), None, ONES(4, 3), ONES(4, 4)), r"rnn: x must be \(B, T, C\).*x \(2, 3\).*x\[None\]"),
    (lambda: F.gru(ONES(2, 0, 3), None, ONES(12, 3), ONES(12, 4)), r"gru: x must be .* at least one step"),
    (lambda: F.rnn(ONES(2, 3, 3), None, ONES(4, 5), ONES(4, 4)), r"rnn: weight_ih must be \(4, 3\).*weight_ih \(4, 5"),
    (lambda: F.lstm(ONES(2, 3, 3), None, None, ONES(4, 3), ONES(4, 4)),
     r"lstm: weight_ih must be \(4 \* 4, 3\) and weight_hh \(4 \* 4, 4\) .*and each gate"),
    (lambda: F.gru(ONES(2, 3, 3), ONES(3, 4), ONES(12, 3), ONES(12, 4)), r"gru: h0 must be \(2, 4\) \(h0 \(3, 4\)\)"),
    (lambda: F.lstm(ONES(2, 3, 3), None, ONES(2, 5), ONES(16, 3), ONES(16, 4)), r"lstm: c0 must be \(2, 4\)"),
    (lambda: F.rnn(ONES(2, 3, 3), None, ONES(4, 3), ONES(4, 4), None, ONES(3)), r"rnn: bias_hh must have shape \(4,\)"),
    (lambda: nn.LSTM(3, 4)(ONES(2, 3, 3), ONES(1, 2, 4)), r"LSTM: the state must be h and c .*, not \(1, 2, 4\); "),
    (lambda: nn.GRU(3, 4, 2)(ONES(2, 3, 3), ONES(1, 2, 4)), r"GRU: the state must be h .*2, 4\), .*not \(1, 2, 4"),
]


@pytest.mark.parametrize("wrong, message", WRONG, ids=[str(i) for i in range(len(WRONG))])
def test_wrong_arguments_are_explained(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


# Kernels

@pytest.mark.parametrize("op, sizes, dtype", [
    ("lstm", dict(B=17, n_hidden=33), "float32"), ("lstm", dict(B=17, n_hidden=33), "bfloat16"),
    ("lstm", dict(B=16, n_hidden=32), "float16"), ("lstm", dict(B=15, n_hidden=31, states=(False, True)), "bfloat16"),
    ("rnn", dict(B=17, n_hidden=33), "float32"), ("rnn", dict(B=16, n_hidden=31), "bfloat16")])
def test_kernels_at_the_edges_of_tiles(op, sizes, dtype, monkeypatch):
    """Tiles of 16 by 16: one less, as many, one more; three of the features."""
    triton_backend()
    from agreement import check_kernels, configs
    small = dict(BLOCK_B=16, BLOCK_H=16, BLOCK_K=16)
    rows = [(op + kernel, "interpreter", "any", configs.ANY, small) for kernel in ("_step", "_step_backward")]
    monkeypatch.setattr(configs, "TABLE", rows + configs.TABLE)
    check_kernels(op, MAKERS[op](T=2, size=0.25, **sizes), dtype)
