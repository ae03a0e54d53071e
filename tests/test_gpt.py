"""The GPT against the same model in torch, and what makes it a language model."""

import numpy as np
import pytest
import torch
import torch_twin
from strategies import integers, normal

from tinyllm import GPT, GPTConfig, gradcheck, manual_seed, optim
from tinyllm import functional as F
from tinyllm.models.gpt import NO_DROPOUT


def config(**changes):
    return GPTConfig(**{**dict(vocab_size=13, n_positions=8, n_embd=12, n_layer=2, n_head=3), **NO_DROPOUT, **changes})


def twins(bias=True):
    """Our GPT and torch's, with the same weights, in float64. Biases and norms are moved away from where they start."""
    manual_seed(1)
    model = GPT(config(bias=bias)).to("numpy", np.float64)
    for i, p in enumerate(model.parameters()):
        p.data = p.data + 0.2 * normal(*p.shape, seed=i)
    twin = torch_twin.TorchGPT(model.config).double()
    twin.load_state_dict({name: torch.tensor(array) for name, array in model.state_dict().items()})
    return model, twin


def batch(step=0):
    text = integers(13, 3, 8, seed=step)
    return text[:, :-1], text[:, 1:]


def assert_equal(ours, theirs, tolerance=1e-10):
    allowed = tolerance * max(1, theirs.abs().max().item())
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=0, atol=allowed)


@pytest.mark.parametrize("bias", [True, False])
def test_logits_loss_and_every_gradient(bias):
    model, twin = twins(bias)
    ids, targets = batch()
    assert_equal(model(ids).numpy(), twin(torch.tensor(ids)))
    ours, theirs = model.loss(ids, targets), twin.loss(torch.tensor(ids), torch.tensor(targets))
    assert_equal(ours.numpy(), theirs)
    ours.backward()
    theirs.backward()
    grads = dict(twin.named_parameters())
    assert set(grads) == set(model.state_dict())
    for name, p in model.named_parameters():
        assert_equal(p.grad, grads[name].grad)


@pytest.mark.parametrize("max_norm, tolerance", [(0.0, 1e-9), (0.5, 1e-6)])     # the gradient's norm is a float32
def test_ten_steps_of_training(max_norm, tolerance):
    model, twin = twins()
    ours = optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    theirs = torch_twin.adamw(twin, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    for step in range(10):
        ids, targets = batch(step)
        loss = model.loss(ids, targets)
        loss.backward()
        ours.step(lr=1e-2 / (step + 1), max_norm=max_norm)
        ours.zero_grad()
        expected = torch_twin.train_step(twin, theirs, torch.tensor(ids), torch.tensor(targets), 1e-2 / (step + 1),
                                         max_norm or 1e9)
        np.testing.assert_allclose(loss.item(), expected, rtol=tolerance)
    for (name, p), q in zip(model.named_parameters(), map(dict(twin.named_parameters()).get, model.state_dict())):
        assert_equal(p.data, q, tolerance)


def test_nothing_leaks_from_the_future():
    model, _ = twins()
    ids, _ = batch()
    before = model(ids).numpy()
    for t in range(ids.shape[1]):
        changed = ids.copy()
        changed[:, t] = (changed[:, t] + 1) % 13
        after = model(changed).numpy()
        np.testing.assert_array_equal(after[:, :t], before[:, :t])
        assert (after[:, t:] != before[:, t:]).any(axis=-1).all()      # while every later position sees the change


def test_rows_of_a_batch_do_not_see_each_other():
    model, _ = twins()
    ids, _ = batch()
    np.testing.assert_allclose(model(ids[1:2]).numpy(), model(ids).numpy()[1:2], rtol=1e-12)


def test_gradients_with_dropout_everywhere():
    manual_seed(2)
    model = GPT(config(embd_pdrop=0.2, attn_pdrop=0.2, resid_pdrop=0.2)).to("numpy", np.float64)
    ids, targets = batch()

    def loss(weight):
        model.wte.weight = weight
        return model.loss(ids, targets)

    assert gradcheck(loss, [model.wte.weight])


def test_dropout_ends_with_training():
    model, (ids, targets) = GPT(config(embd_pdrop=0.5)), batch()
    losses = lambda: [model.loss(ids, targets).item() for _ in range(2)]
    first, second = losses()
    assert first != second
    model.eval()
    first, second = losses()
    assert first == second


def test_loss_is_the_cross_entropy_of_the_logits():
    model, _ = twins()
    ids, targets = (array.copy() for array in batch())
    targets[0, :3] = -100
    for reduction in ("mean", "sum", "none"):
        expected = F.cross_entropy(model(ids), targets, reduction=reduction)
        np.testing.assert_allclose(model.loss(ids, targets, reduction).numpy(), expected.numpy(), rtol=1e-12)


def test_next_logits_are_those_of_the_last_position():
    model, _ = twins()
    ids, _ = batch()
    np.testing.assert_allclose(model.next_logits(ids).numpy(), model(ids).numpy()[:, -1], rtol=1e-12)


def test_it_starts_undecided_with_the_published_spread():
    manual_seed(3)
    model = GPT(config(vocab_size=300, n_embd=96, n_layer=3))
    for name, p in model.named_parameters():
        if p.ndim == 2:
            spread = 0.02 / 6**0.5 if name.endswith("c_proj.weight") else 0.02
            assert abs(p.data.std() / spread - 1) < 0.1 and abs(p.data.mean()) < 4 * spread / p.data.size**0.5, name
        else:
            assert (p.data == (0 if name.endswith("bias") else 1)).all(), name
    loss = model.loss(integers(300, 4, 8), integers(300, 4, 8, seed=1)).item()
    assert abs(loss - np.log(300)) < 0.1


def parameters(c):
    """How many a GPT of this configuration has, by hand."""
    vectors = 13 * c.n_embd if c.bias else 2 * c.n_embd         # 2 norms (4 C), and biases of 3 C, C, 4 C and C
    block = 12 * c.n_embd**2 + vectors                          # matrices of 3, 1, 4 and 4 C^2
    return (c.vocab_size + c.n_positions) * c.n_embd + c.n_layer * block + (2 if c.bias else 1) * c.n_embd


@pytest.mark.parametrize("changes", [{}, {"bias": False}, dict(n_layer=3, n_embd=6, vocab_size=7, n_positions=5)])
def test_parameters_counted_by_hand(changes):
    assert GPT(config(**changes)).num_parameters() == parameters(config(**changes))


PUBLISHED = {"gpt2": 124_439_808, "gpt2-medium": 354_823_168, "gpt2-large": 774_030_080, "gpt2-xl": 1_557_611_200}


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_have_the_published_size(name):
    c = GPTConfig.preset(name)
    assert parameters(c) == PUBLISHED[name] and c.n_embd % c.n_head == 0


def test_presets_can_be_changed_and_must_exist():
    assert GPTConfig.preset("tiny", vocab_size=65).vocab_size == 65
    with pytest.raises(ValueError, match='"gpt3"; choose one of nano, tiny, .*gpt2-xl'):
        GPTConfig.preset("gpt3")


@pytest.mark.parametrize("field, value, message", [
    ("vocab_size", 0, "vocab_size is 0; it should be a whole number"), ("n_positions", -1, "n_positions is -1"),
    ("n_embd", 1.5, "n_embd is 1.5"), ("n_layer", "2", "n_layer is '2'"), ("n_head", 0, "n_head is 0"),
    ("n_head", 5, "n_embd is 12; it should be a multiple of n_head=5"),
    ("embd_pdrop", 1.0, "embd_pdrop is 1.0; .*0 to below 1"),
    ("attn_pdrop", -0.1, "attn_pdrop is -0.1"), ("resid_pdrop", float("nan"), "resid_pdrop is nan"),
    ("resid_pdrop", None, "resid_pdrop is None")])
def test_a_wrong_configuration_names_the_field(field, value, message):
    with pytest.raises(ValueError, match="GPTConfig: " + message):
        config(**{field: value})


def test_operations_per_token_by_hand():
    c = config()
    matrices = 13 * 12 + 2 * 12 * 12**2 + 2 * 13 * 12 + 2 * 12      # everything but the table of positions
    assert GPT(c).flops_per_token(context=4) == 6 * matrices + 12 * 2 * 12 * 4


def test_wrong_inputs_are_explained():
    model = GPT(config())
    with pytest.raises(ValueError, match="9 tokens are more than its n_positions=8"):
        model(np.zeros((1, 9), int))
    with pytest.raises(IndexError, match="token id 13 at position .* outside the vocabulary of 13"):
        model([[0, 13]])
    with pytest.raises(IndexError, match="token id 13"):
        model.loss([[0, 1]], [[1, 13]])
    with pytest.raises(ValueError, match=r"\(batch, time\), not \(2,\).*ids\[None\]"):
        model(np.zeros(2, int))
