"""Optimizers against torch.optim, number by number; clipping, saving, schedules."""

import numpy as np
import pytest
import torch
from strategies import normal

from tinyllm import Tensor, nn, optim

SHAPES = [(3,), (4, 3), (), (2, 3, 2)]              # mixed, as the optimizer sorts matrices to the front


def leaves(shapes=SHAPES):
    return [Tensor(normal(*shape, seed=7), requires_grad=True) for shape in shapes]


def gradients(step, shapes=SHAPES):
    return [normal(*shape, seed=100 + step) for shape in shapes]


def compare(ours, theirs, shapes=SHAPES, steps=12, weight_decay=0.0, max_norm=0.0, tolerance=1e-12):
    """Run both on the same gradients, with another learning rate at every step; decay is for matrices only."""
    params, twins = leaves(shapes), [torch.tensor(p.data, requires_grad=True) for p in leaves(shapes)]
    groups = [{"params": [p for p in twins if p.ndim >= 2], "weight_decay": weight_decay},
              {"params": [p for p in twins if p.ndim < 2], "weight_decay": 0.0}]
    ours, theirs = ours(params, weight_decay=weight_decay), theirs(groups)
    for step in range(steps):
        for p, twin, grad in zip(params, twins, gradients(step, shapes)):
            p.grad, twin.grad = grad, torch.tensor(grad)
        for group in theirs.param_groups:
            group["lr"] = 0.1 / (step + 1)
        if max_norm:
            torch.nn.utils.clip_grad_norm_(twins, max_norm)
        theirs.step()
        ours.step(lr=0.1 / (step + 1), max_norm=max_norm)
    for p, twin in zip(params, twins):
        np.testing.assert_allclose(p.data, twin.detach().numpy(), rtol=tolerance, atol=tolerance)


SGDS = [dict(), dict(momentum=0.9), dict(momentum=0.9, nesterov=True)]
ADAMS = [dict(), dict(betas=(0.8, 0.95), eps=1e-3)]


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("options", SGDS)
def test_sgd(options, weight_decay):
    compare(lambda params, **more: optim.SGD(params, lr=1.0, **options, **more),
            lambda groups: torch.optim.SGD(groups, lr=1.0, **options), weight_decay=weight_decay)


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("name", ["Adam", "AdamW"])
@pytest.mark.parametrize("options", ADAMS)
def test_adam(name, options, weight_decay):
    compare(lambda params, **more: getattr(optim, name)(params, **options, **more),
            lambda groups: getattr(torch.optim, name)(groups, **options), weight_decay=weight_decay)


@pytest.mark.parametrize("max_norm", [0.5, 3.0, 1e6])
def test_clipping_on_the_way(max_norm):
    """To the digits of the norm, which is a float32."""
    compare(lambda params, **more: optim.SGD(params, lr=1.0, momentum=0.9, **more),
            lambda groups: torch.optim.SGD(groups, lr=1.0, momentum=0.9), max_norm=max_norm, tolerance=1e-6)


def test_more_numbers_than_fit_into_one_chunk():
    compare(optim.AdamW, torch.optim.AdamW, shapes=[(150, 300), (40_000,)], steps=3, weight_decay=0.1)


def test_defaults_are_those_of_torch():
    for name in ("Adam", "AdamW"):
        ours, theirs = getattr(optim, name)(leaves()), getattr(torch.optim, name)([torch.zeros(1)]).defaults
        for option in ("lr", "betas", "eps", "weight_decay"):
            assert getattr(ours, option) == theirs[option]


@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_clip_grad_norm(max_norm):
    params, twins = leaves(), [torch.tensor(p.data, requires_grad=True) for p in leaves()]
    for p, twin, grad in zip(params, twins, gradients(0)):
        p.grad, twin.grad = grad, torch.tensor(grad)
    params[1].grad = twins[1].grad = None
    before = optim.clip_grad_norm_(params, max_norm)
    np.testing.assert_allclose(before, torch.nn.utils.clip_grad_norm_(twins, max_norm).item(), rtol=1e-6)
    assert params[1].grad is None
    for p, twin in zip(params, twins):
        if p.grad is not None:
            np.testing.assert_allclose(p.grad, twin.grad.numpy(), rtol=1e-6)


def test_clip_grad_norm_keeps_the_type_of_each_gradient():
    params = [Tensor(np.zeros(3), True), Tensor(np.zeros(4, np.float32), True)]
    for p in params:
        p.grad = np.full(p.shape, 2, p.dtype)
    optim.clip_grad_norm_(params, 1.0)
    assert [p.grad.dtype for p in params] == [np.float64, np.float32]


def test_clip_grad_norm_of_no_gradients_is_zero():
    assert optim.clip_grad_norm_(leaves(), 1.0) == 0


def test_step_returns_the_norm_before_clipping():
    params = leaves()
    for p, grad in zip(params, gradients(0)):
        p.grad = grad
    norm = optim.SGD(params, lr=0.0).step(max_norm=0.1)
    np.testing.assert_allclose(norm, np.sqrt(sum((g * g).sum() for g in gradients(0))), rtol=1e-6)


MAKERS = [lambda params: optim.SGD(params, lr=0.1, momentum=0.9), lambda params: optim.AdamW(params, lr=0.1)]


def train(optimizer, params, steps):
    for step in steps:
        for p, grad in zip(params, gradients(step)):
            p.grad = grad
        optimizer.step(max_norm=1.0)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_gradient_that_is_not_finite_changes_no_number(make, broken):
    params = leaves()
    optimizer = make(params)
    train(optimizer, params, range(2))
    values, (state, _) = [p.data.copy() for p in params], optimizer.state_dict()
    params[0].grad[1] = broken
    assert not np.isfinite(optimizer.step(max_norm=1.0))
    for old, new in [*zip(values, [p.data for p in params]), *zip(state.values(), optimizer.state_dict()[0].values())]:
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("make", MAKERS)
def test_saving_and_resuming_is_exact(make):
    params = leaves()
    optimizer = make(params)
    train(optimizer, params, range(3))
    copies = [Tensor(p.data, requires_grad=True) for p in params]
    resumed = make(copies)
    resumed.load_state_dict(*optimizer.state_dict())
    train(optimizer, params, range(3, 6))
    train(resumed, copies, range(3, 6))
    for p, q in zip(params, copies):
        np.testing.assert_array_equal(p.data, q.data)
    assert resumed.steps == 6 and resumed.lr == optimizer.lr


def test_a_saved_state_is_a_copy():
    params = leaves()
    optimizer = optim.AdamW(params)
    train(optimizer, params, range(1))
    state = optimizer.state_dict()[0]
    before = {name: array.copy() for name, array in state.items()}
    train(optimizer, params, range(1, 2))
    for name, array in state.items():
        np.testing.assert_array_equal(array, before[name])


def test_a_foreign_state_is_refused():
    state = optim.AdamW(leaves()).state_dict()
    with pytest.raises(ValueError, match="SGD.*another optimizer"):
        optim.SGD(leaves(), lr=0.1).load_state_dict(*state)
    with pytest.raises(ValueError, match="AdamW.*another shapes"):
        optim.AdamW(leaves([(2,)])).load_state_dict(*state)


def test_replaced_data_is_picked_up():
    p = Tensor([1.0, 2.0], requires_grad=True)
    optimizer = optim.SGD([p], lr=1.0)
    p.data = np.array([10, 20], np.float32)
    p.grad = np.ones(2, np.float32)
    optimizer.step()
    assert p.data.tolist() == [9, 19]


def test_the_learning_rate_of_a_step_stays():
    p = Tensor([0.0], requires_grad=True)
    optimizer = optim.SGD([p], lr=1.0)
    for lr in (None, 0.5, None):
        p.grad = np.ones(1, np.float32)
        optimizer.step(lr=lr)
    assert p.data.tolist() == [-2.0] and optimizer.lr == 0.5


def test_a_missing_gradient_counts_as_zero():
    still, moved = Tensor([1.0], requires_grad=True), Tensor([1.0], requires_grad=True)
    optimizer = optim.SGD([still, moved], lr=1.0)
    still.grad = np.ones(1, np.float32)
    optimizer.step()
    optimizer.zero_grad()
    assert still.grad is None
    moved.grad = np.ones(1, np.float32)
    optimizer.step()                                # the first one's old gradient is not left in a buffer
    assert still.data.tolist() == moved.data.tolist() == [0]


def test_frozen_parameters_are_left_alone():
    frozen, learned = Tensor([1.0]), Tensor([1.0], requires_grad=True)
    optimizer = optim.SGD([frozen, learned], lr=1.0)
    frozen.grad = learned.grad = np.ones(1, np.float32)
    optimizer.step()
    assert frozen.data.tolist() == [1] and learned.data.tolist() == [0]
    with pytest.raises(ValueError, match="SGD: there is no parameter"):
        optim.SGD([frozen], lr=1.0)


@pytest.mark.parametrize("wrong, error, message", [
    (Tensor([1.0], requires_grad=True), TypeError, "SGD: give it a list of Tensors, such as .*not a Tensor"),
    ("weights", TypeError, "SGD: give it a list of Tensors.*not a str"),
    (None, TypeError, "SGD: give it a list of Tensors.*not a NoneType"),
    ([Tensor([1.0], requires_grad=True), np.ones(1)], TypeError, "SGD: parameter 1 is no Tensor but a ndarray"),
    (nn.Linear(2, 1).named_parameters(), TypeError, "SGD: parameter 0 is no Tensor but a tuple"),
    ([], ValueError, "SGD: there is no parameter that requires a gradient, among 0 given"),
    ([Tensor(np.ones(2, dtype), requires_grad=True) for dtype in (np.float32, np.float64)], ValueError,
     "SGD: all parameters must be of one dtype.*float32 on numpy and float64 on numpy"),
])
def test_parameters_of_the_wrong_kind_are_explained(wrong, error, message):
    with pytest.raises(error, match=message):
        optim.SGD(wrong, lr=0.1)


def test_a_parameter_given_twice_is_one():
    p = Tensor([1.0], requires_grad=True)
    optimizer = optim.SGD((p, p), lr=1.0)
    p.grad = np.ones(1, np.float32)
    assert optimizer.step() == 1 and p.data.tolist() == [0]


def test_a_model_that_moved_away_is_noticed():
    layer = nn.Linear(3, 2)
    optimizer = optim.SGD(layer.parameters(), lr=0.1)
    layer.to("numpy", np.float64)
    before = layer.state_dict()
    for p in layer.parameters():
        p.grad = np.ones(p.shape)
    for use in (optimizer.step, optimizer.apply, lambda: optimizer.load_state_dict(*optimizer.state_dict())):
        with pytest.raises(ValueError, match=r"SGD: a parameter of shape \(2, 3\), float32 on numpy, has become "
                                             r"\(2, 3\), float64 on numpy; make the optimizer after model.to\(...\)"):
            use()
    for name, p in layer.named_parameters():
        assert p.dtype == np.float64 and (p.data == before[name]).all()


def test_a_parameter_of_another_shape_is_noticed():
    p = Tensor([1.0, 2.0], requires_grad=True)
    optimizer = optim.SGD([p], lr=1.0)
    p.data = np.ones(1, np.float32)
    with pytest.raises(ValueError, match=r"of shape \(2,\), .* has become \(1,\)"):
        optimizer.step()


@pytest.mark.parametrize("change, message", [
    (lambda arrays, numbers: arrays.pop("exp_avg"), "missing: exp_avg; nothing was loaded"),
    (lambda arrays, numbers: numbers.pop("steps"), "missing: steps; nothing"),
    (lambda arrays, numbers: arrays.update(velocity=np.zeros(2)), "unexpected: velocity; nothing"),
    (lambda arrays, numbers: arrays.update(exp_avg_sq=np.zeros(2)),
     r"mis-shaped: exp_avg_sq is \(2,\), should be \(28,\)"),
])
def test_a_state_that_does_not_fit_is_not_loaded(change, message):
    params = leaves()
    optimizer = optim.AdamW(params)
    train(optimizer, params, range(2))
    before = {name: array.copy() for name, array in optimizer.state_dict()[0].items()}
    arrays, numbers = optimizer.state_dict()
    arrays, numbers = {name: array + 1 for name, array in arrays.items()}, {**numbers, "lr": 9.0}
    change(arrays, numbers)
    with pytest.raises(ValueError, match="AdamW.load_state_dict: " + message):
        optimizer.load_state_dict(arrays, numbers)
    assert optimizer.lr != 9
    for name, array in optimizer.state_dict()[0].items():
        np.testing.assert_array_equal(array, before[name])


# Schedules

SCHEDULES = {
    "cosine": optim.cosine(3.0, total=20, warmup=4, floor=1.0),
    "linear": optim.linear(3.0, total=20, warmup=4, floor=1.0),
    "inverse_sqrt": optim.inverse_sqrt(3.0, warmup=4),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_warm_up_rises_from_above_zero_to_the_peak_and_then_falls(name):
    rates = [SCHEDULES[name](step) for step in range(30)]
    np.testing.assert_allclose(rates[:5], [0.6, 1.2, 1.8, 2.4, 3.0])
    assert all(a >= b for a, b in zip(rates[4:], rates[5:])) and rates[5] < 3


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_decay_ends_at_the_floor_and_stays(name):
    schedule = SCHEDULES[name]
    np.testing.assert_allclose([schedule(12), schedule(20), schedule(1000)], [2, 1, 1])


def test_the_cosine_is_flat_at_both_ends_and_the_line_is_not():
    a, b = SCHEDULES["cosine"], SCHEDULES["linear"]
    np.testing.assert_allclose(a(8), 1 + (1 + np.cos(np.pi / 4)))
    np.testing.assert_allclose(b(8), 2.5)


def test_inverse_sqrt_halves_when_the_step_is_four_times_the_warm_up():
    np.testing.assert_allclose([SCHEDULES["inverse_sqrt"](16), SCHEDULES["inverse_sqrt"](64)], [1.5, 0.75])


def test_without_warm_up_the_first_step_has_the_full_rate():
    for schedule in (optim.constant(2.0), optim.cosine(2.0, 10), optim.linear(2.0, 10), optim.inverse_sqrt(2.0, 0)):
        assert schedule(0) == 2 and schedule(5) > 0
