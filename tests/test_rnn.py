"""Recurrent language models: against torch, with states carried on, generation, training, and both paths."""

import numpy as np
import pytest
import torch
from model_checks import check_two_paths, training
from strategies import integers, normal
from test_recurrent import triton_backend

import tinyllm
from tinyllm import GRULM, LSTMLM, RNNLM, RNNConfig, checkpoint, manual_seed, no_grad, train

V = 11
MODELS = pytest.mark.parametrize("make", [RNNLM, LSTMLM, GRULM])


def language_model(make, dtype=np.float64, **changes):
    """A small one, whose weights are large, so that its logits differ clearly, and depend on what came before."""
    manual_seed(5)
    shape = dict(vocab_size=V, n_positions=6, n_embd=5, n_hidden=7, n_layer=2, dropout=0.0)
    model = make(RNNConfig(**{**shape, **changes}))
    for i, p in enumerate(model.parameters()):
        p.data = p.data + normal(*p.shape, seed=i).astype(np.float32)
    return model.to("numpy", dtype)


def batch(length=7, size=3, seed=0):
    text = integers(V, size, length, seed=seed)
    return text[:, :-1], text[:, 1:]


@MODELS
@pytest.mark.parametrize("tie", [False, True])
def test_the_model_is_the_one_that_torch_would_make(make, tie):
    """Logits, loss and every gradient."""
    model = language_model(make, **(dict(n_embd=7, tie_word_embeddings=True) if tie else {}))
    (ids, targets), params = batch(), model.state_dict()
    theirs = {name: torch.tensor(array, requires_grad=True) for name, array in params.items()}
    layer = getattr(torch.nn, make.layers.__name__)(model.config.n_embd, 7, 2, batch_first=True).double()
    own = {name.removeprefix("rnn."): p for name, p in theirs.items() if name.startswith("rnn.")}
    out, _ = torch.func.functional_call(layer, own, (theirs["wte.weight"][torch.tensor(ids)],))
    logits = out @ theirs["wte.weight" if tie else "lm_head.weight"].T
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(targets).flatten())
    expected.backward()
    loss = model.loss(ids, targets)
    loss.backward()
    np.testing.assert_allclose(model(ids).numpy(), logits.detach().numpy(), rtol=0, atol=1e-10)
    np.testing.assert_allclose(loss.item(), expected.item(), rtol=1e-12)
    for name, p in model.named_parameters():
        np.testing.assert_allclose(p.grad, theirs[name].grad.numpy(), rtol=0, atol=1e-10, err_msg=name)


@MODELS
def test_a_state_continues_the_text(make):
    model, (ids, targets) = language_model(make), batch(10)
    whole, pieces, state = model(ids).numpy(), [], None
    for a, b in ((0, 1), (1, 4), (4, 9)):
        logits, state = model(ids[:, a:b], state=state, return_state=True)
        pieces.append(logits.numpy())
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, rtol=0, atol=1e-12)
    first, state = model.loss(ids[:, :4], targets[:, :4], "sum", return_state=True)
    second = model.loss(ids[:, 4:], targets[:, 4:], "sum", state=state)
    np.testing.assert_allclose(first.item() + second.item(), model.loss(ids, targets, "sum").item(), rtol=1e-12)
    np.testing.assert_allclose(model.next_logits(ids).numpy(), whole[:, -1], rtol=0, atol=1e-12)


def test_gradients_end_where_the_state_came_from():
    """Truncated back-propagation: the second piece's loss says nothing about the first piece's tokens."""
    model = language_model(LSTMLM)
    _, state = model(np.array([[1, 2]]), return_state=True)
    assert not any(s.requires_grad for s in state)
    loss = model.loss(np.array([[3, 4]]), np.array([[4, 5]]), state=state)
    loss.backward()
    touched = np.abs(model.wte.weight.grad).max(axis=1) > 0
    assert touched.nonzero()[0].tolist() == [3, 4]


@MODELS
def test_next_logits_piece_by_piece_are_those_of_the_whole(make):
    model, (ids, _) = language_model(make), batch(9)
    cache = model.new_cache(3)
    for a, b in ((0, 3), (3, 4), (4, 8)):
        with no_grad():
            found = model.next_logits(ids[:, a:b], cache)
        np.testing.assert_allclose(found.numpy(), model(ids[:, :b]).numpy()[:, -1], rtol=0, atol=1e-12)


@MODELS
def test_generation_with_its_cache_is_the_one_without(make):
    """Prompts shorter and longer than what it keeps in view, texts that outgrow it."""
    model = language_model(make)
    for length in (1, 5, 9):
        ids = integers(V, 2, length, seed=length)
        for how in (dict(temperature=0), dict(temperature=0.9, seed=1)):
            with pytest.warns(UserWarning, match="outgrown"):
                cached, plain = (tinyllm.generate(model, ids, 14, use_cache=use, **how) for use in (True, False))
            np.testing.assert_array_equal(cached, plain)


def test_a_token_costs_the_same_however_long_the_text_is():
    """With its cache, the model looks at one new token each time, and the cache does not grow."""
    model, seen = language_model(LSTMLM, n_positions=100), []
    hidden = model.hidden
    model.hidden = lambda ids, state: (seen.append((ids.shape, [s.shape for s in state or ()])), hidden(ids, state))[1]
    tinyllm.generate(model, [[1, 2, 3]], 4)
    assert seen == [((1, 3), [])] + 3 * [((1, 1), [(2, 1, 7), (2, 1, 7)])]


def test_a_cache_is_for_writing():
    model = language_model(LSTMLM)
    with pytest.raises(RuntimeError, match="StateCache: gradients do not pass through a cache"):
        model.next_logits(np.array([[1]]), model.new_cache(1))


def test_dropout_ends_with_training():
    model = language_model(LSTMLM, dropout=0.5)
    assert model.loss(*batch()).item() != model.loss(*batch()).item()
    model.eval()
    assert model.loss(*batch()).item() == model.loss(*batch()).item()


COUNTS = [(RNNLM, 1), (GRULM, 3), (LSTMLM, 4)]


@pytest.mark.parametrize("make, gates", COUNTS)
def test_parameters_and_operations_counted_by_hand(make, gates):
    layer = lambda n: gates * 7 * (n + 7 + 2)
    model, tied = language_model(make), language_model(make, n_embd=7, tie_word_embeddings=True)
    assert model.num_parameters() == V * 5 + layer(5) + layer(7) + V * 7
    assert model.flops_per_token() == 6 * (layer(5) + layer(7) + V * 7)
    assert tied.num_parameters() == 2 * layer(7) + V * 7
    assert tied.flops_per_token() == 6 * tied.num_parameters()


def test_published_sizes():
    """Zaremba et al. 2014 on 10,000 words: 20 and 66 million, in LSTMs that have one bias, and a head that has one."""
    for name, published in (("medium", 20e6), ("large", 66e6)):
        c = RNNConfig.preset(name)
        layer = 4 * c.n_hidden * (c.n_embd + c.n_hidden + 1)
        assert abs(2 * c.vocab_size * c.n_embd + c.vocab_size + c.n_layer * layer - published) < 0.03 * published


@pytest.mark.parametrize("tie", [False, True])
def test_it_starts_undecided(tie):
    manual_seed(1)
    model = LSTMLM(RNNConfig(vocab_size=300, n_embd=64, n_hidden=64, dropout=0.0, tie_word_embeddings=tie))
    loss = model.loss(integers(300, 4, 8), integers(300, 4, 8, seed=1)).item()
    assert abs(loss - np.log(300)) < 0.1


@MODELS
def test_training_saving_and_resuming(make, tmp_path):
    """train.py as it is: a run that was interrupted and resumed ends in the same bits, and its model can be loaded."""
    data = [tinyllm.text.TokenDataset(np.tile([1, 2, 3, 4], n), 6) for n in (60, 6)]
    config = train.TrainConfig(steps=30, batch_size=4, lr=0.05, warmup=1, eval_every=30, save_every=15, sample_tokens=0)
    finals = []
    for folder, stop, resume in (("whole", None, None), ("cut", 15, None), ("cut", None, "checkpoint-000015")):
        manual_seed(1)
        model = make(RNNConfig(vocab_size=5, n_positions=6, n_embd=4, n_hidden=8, n_layer=1, dropout=0.1))
        loss = train.train(model, *data, config, tmp_path / folder, resume=resume and tmp_path / folder / resume,
                           stop_at=stop)
        finals.append((loss, model.state_dict()))
    assert finals[0][0] == finals[2][0] < 0.5                           # from ln 5 = 1.6: what comes next is certain
    loaded, _ = checkpoint.load_model(tmp_path / "cut")
    assert type(loaded) is make and loaded.config == model.config
    for name, array in loaded.state_dict().items():
        np.testing.assert_array_equal(array, finals[0][1][name])


WRONG = [
    (lambda: RNNConfig(n_layer=0), "RNNConfig: n_layer is 0; it should be a whole number"),
    (lambda: RNNConfig(dropout=1.0), "RNNConfig: dropout is 1.0; it should be a probability"),
    (lambda: RNNConfig(n_embd=3, tie_word_embeddings=True), "n_embd is 3; it should be n_hidden=650 with tie_word"),
    (lambda: RNNConfig.preset("huge"), 'no preset "huge"; choose one of nano'),
    (lambda: language_model(LSTMLM)([1, 2]), r"ids must be \(batch, time\), not \(2,\).*ids\[None\]"),
]


@pytest.mark.parametrize("wrong, message", WRONG, ids=[str(i) for i in range(len(WRONG))])
def test_wrong_arguments_are_explained(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


# Both paths

def small(make, n_layer, where, dtype=None):
    manual_seed(1)
    shape = dict(vocab_size=V, n_positions=3, n_embd=8, n_hidden=16, n_layer=n_layer, dropout=0.2)
    return make(RNNConfig(**shape)).to(where, dtype)


@pytest.mark.parametrize("make, steps, n_layer", [(LSTMLM, 10, 1), (RNNLM, 4, 2), (GRULM, 2, 1)])
def test_training_steps_agree_in_the_loss_and_in_every_gradient(make, steps, n_layer):
    triton_backend()
    batches = [batch(4, 2, seed=i) for i in range(steps)]
    check_two_paths(lambda where, dtype: small(make, n_layer, where, dtype), batches, lr=1e-2)


def test_three_steps_in_bfloat16_follow_the_float64_run():
    """bfloat16 rounds to 1 in 256. A loss averages such errors over tokens and features, a gradient adds them up."""
    triton_backend()
    exact, half = (training(small(LSTMLM, 2, *how), [batch(4, 2, seed=i) for i in range(3)], lr=1e-2)
                   for how in (("numpy", np.float64), ("triton", "bfloat16")))
    for step, (a, b) in enumerate(zip(exact, half)):
        assert abs(a["loss"] - b["loss"]) < 2.0**-8 * a["loss"], f"step {step}: loss {b['loss']} instead of {a['loss']}"
        largest = max(np.abs(g).max() for name, g in a.items() if name not in ("loss", "norm"))
        for name in a:
            assert np.abs(a[name] - b[name]).max() < 2.0**-4 * largest, f"step {step}: {name}"


@MODELS
def test_both_paths_write_the_same_text(make):
    triton_backend()
    texts = []
    for where in ("numpy", "triton"):
        model = language_model(make, np.float32, n_positions=6).to(where)
        texts.append(tinyllm.generate(model, [[1, 2], [3, 4]], 4, temperature=0.8, top_k=8, seed=3).tolist())
    assert texts[0] == texts[1]


def test_a_state_continues_the_text_on_triton():
    triton_backend()
    ids, _ = batch()
    expected = language_model(LSTMLM)(ids).numpy()
    model = language_model(LSTMLM, np.float32).to("triton")
    first, state = model(ids[:, :2], return_state=True)
    second = model(ids[:, 2:], state=state)
    np.testing.assert_allclose(np.concatenate([first.numpy(), second.numpy()], axis=1), expected, rtol=0, atol=1e-5)
