"""Hiding tokens for BERT: how many, which, as what; and that train.py takes such data as it is."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinyllm
from tinyllm import train
from tinyllm.text import BPETokenizer, MaskedDataset, WordPieceTokenizer, mask_tokens
from tinyllm.text.wordpiece import SPECIAL_TOKENS

TOKENIZER = WordPieceTokenizer([*SPECIAL_TOKENS, *"abcdefghijklmnopqrstuvwxyz"])
MASK, SPECIAL = TOKENIZER.special_tokens["[MASK]"], set(TOKENIZER.special_tokens.values())
CLS, SEP = (TOKENIZER.special_tokens[name] for name in ("[CLS]", "[SEP]"))


def text(n, seed=0):
    return np.random.default_rng(seed).integers(len(SPECIAL), TOKENIZER.vocab_size, n)


def assert_share(found, expected, n):
    """Within four standard deviations of a share among n."""
    assert abs(found - expected) < 4 * (expected * (1 - expected) / n) ** 0.5, (found, expected)


def test_shares_are_the_papers():
    ids = text(100_000)
    inputs, targets = mask_tokens(ids, TOKENIZER, np.random.default_rng(0))
    chosen = targets != -100
    assert (targets[chosen] == ids[chosen]).all() and (inputs[~chosen] == ids[~chosen]).all()
    n = chosen.sum()
    assert_share(n / len(ids), 0.15, len(ids))
    assert_share((inputs[chosen] == MASK).mean(), 0.8, n)
    others = 26                                                     # one in 26 random tokens is the right one
    assert_share((inputs[chosen] == ids[chosen]).mean(), 0.1 + 0.1 / others, n)
    random = inputs[chosen & (inputs != MASK) & (inputs != ids)]
    counts = np.bincount(random, minlength=TOKENIZER.vocab_size)
    assert counts[: len(SPECIAL)].sum() == 0                        # never a special token, and any other
    for count in counts[len(SPECIAL):]:
        assert_share(count / len(random), 1 / others, len(random))


def test_choices_are_independent_of_each_other():
    """Neighbours are both chosen as often as chance says, and so are places above each other in a batch."""
    chosen = mask_tokens(text(40_000).reshape(200, 200), TOKENIZER, np.random.default_rng(0))[1] != -100
    assert_share((chosen[:, 1:] & chosen[:, :-1]).mean(), 0.15**2, chosen.size)
    assert_share((chosen[1:] & chosen[:-1]).mean(), 0.15**2, chosen.size)


@given(st.integers(0, 50), st.integers(0, 9))
def test_special_tokens_are_never_hidden(n, seed):
    ids = np.random.default_rng(seed).integers(0, TOKENIZER.vocab_size, (2, n))
    inputs, targets = mask_tokens(ids, TOKENIZER, np.random.default_rng(seed), probability=1.0)
    special = np.isin(ids, list(SPECIAL))
    assert (inputs[special] == ids[special]).all() and (targets[special] == -100).all()
    assert (targets[~special] == ids[~special]).all()
    assert inputs.dtype == targets.dtype == np.int64 and inputs.shape == targets.shape == ids.shape


def test_the_generator_decides_and_the_ids_stay():
    ids = text(500)
    before = ids.copy()
    a, b, c = (mask_tokens(ids, TOKENIZER, np.random.default_rng(seed)) for seed in ([1, 2], [1, 2], [1, 3]))
    np.testing.assert_array_equal(a, b)
    assert (a[1] != c[1]).any() and (ids == before).all()


def original(inputs, targets):
    return np.where(targets == -100, inputs, targets)


@given(st.integers(2, 60), st.integers(3, 12), st.integers(1, 5))
def test_windows_hold_every_token_once_between_cls_and_sep(n, context, batch_size):
    tokens = text(n)
    batches = list(MaskedDataset(tokens, context, TOKENIZER).windows(batch_size))
    rows = [original(*batch) for batch in batches]
    assert np.concatenate([row[:, 1:-1].ravel() for row in rows]).tolist() == tokens.tolist()
    for (inputs, targets), row in zip(batches, rows):
        assert (row[:, 0] == CLS).all() and (row[:, -1] == SEP).all()
        assert inputs.shape == targets.shape and inputs.dtype == targets.dtype == np.int64
        assert inputs.shape[0] <= batch_size and inputs.shape[1] <= context
        assert inputs.shape[1] == context or inputs.shape[0] == 1


def test_an_evaluation_asks_the_same_questions_each_time():
    """Whatever the size of a batch, and others in each window."""
    data = MaskedDataset(np.tile(text(40), 20), 42, TOKENIZER)
    once = [np.concatenate(arrays) for arrays in zip(*data.windows(3))]
    again = [np.concatenate(arrays) for arrays in zip(*data.windows(7))]
    np.testing.assert_array_equal(once, again)
    assert len({row.tobytes() for row in once[1]}) == 20            # the same forty tokens, other ones hidden


def test_batches_reach_every_start_and_repeat_with_the_seed():
    tokens = np.arange(5, 13)
    data = MaskedDataset(tokens, 5, TOKENIZER)
    batch = data.batch(300, np.random.default_rng(0))
    rows = original(*batch)
    assert rows.shape == (300, 5) and (rows[:, 0] == CLS).all() and (rows[:, -1] == SEP).all()
    assert set(rows[:, 1]) == set(range(5, 11)) and (np.diff(rows[:, 1:-1], axis=1) == 1).all()
    np.testing.assert_array_equal(batch, data.batch(300, np.random.default_rng(0)))
    assert len(MaskedDataset(tokens[:3], 5, TOKENIZER).batch(2, np.random.default_rng(0))[0]) == 2


def test_fingerprints_tell_data_apart():
    tokens = text(50)
    same = [MaskedDataset(tokens, 8, TOKENIZER).fingerprint() for _ in range(2)]
    others = [MaskedDataset(tokens, 9, TOKENIZER), MaskedDataset(tokens[1:], 8, TOKENIZER),
              MaskedDataset(tokens, 8, TOKENIZER, 0.2), MaskedDataset(text(50, seed=1), 8, TOKENIZER)]
    assert len({*same, *(data.fingerprint() for data in others)}) == 5


def test_any_tokenizer_with_the_special_tokens_will_do():
    tokenizer = BPETokenizer.train("low lower lowest", 270, ["[CLS]", "[SEP]", "[MASK]"])
    data = MaskedDataset(tokenizer.encode("lowest lower low"), 6, tokenizer, 1.0)
    inputs, targets = data.batch(2, np.random.default_rng(0))
    assert tokenizer.special_tokens["[MASK]"] in inputs and (targets[:, [0, -1]] == -100).all()
    with pytest.raises(ValueError, match=r"tokenizer: it has no \[CLS\], \[MASK\], \[SEP\]"):
        MaskedDataset([1, 2, 3], 6, BPETokenizer([]))


def test_wrong_arguments_are_explained():
    with pytest.raises(ValueError, match="context: 2 is too small"):
        MaskedDataset([5, 6], 2, TOKENIZER)
    with pytest.raises(ValueError, match="at least 2 integers"):
        MaskedDataset([5], 8, TOKENIZER)
    for share in (0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="probability: .* above 0, at most 1"):
            MaskedDataset([5, 6], 8, TOKENIZER, share)
    short = MaskedDataset([5, 6, 7], 6, TOKENIZER)
    assert [inputs.shape for inputs, _ in short.windows(4)] == [(1, 5)]
    with pytest.raises(ValueError, match="3 tokens long, and a context of 6 needs at least 4"):
        short.batch(1, np.random.default_rng(0))


def test_training_a_bert_that_is_interrupted_and_resumed_ends_in_the_same_bits(tmp_path):
    """train.py as it is: loss, evaluation, checkpoints with their tokenizer."""
    data = [MaskedDataset(part, 10, TOKENIZER) for part in (text(300), text(61, seed=1))]
    settings = train.TrainConfig(steps=4, batch_size=3, grad_accum=2, eval_every=4, save_every=2, log_every=2,
                                 sample_tokens=0)
    finals = []
    for folder, stop, resume in (("whole", None, None), ("cut", 2, None), ("cut", None, "checkpoint-000002")):
        tinyllm.manual_seed(1)
        model = tinyllm.BERT(tinyllm.BERTConfig(
            vocab_size=TOKENIZER.vocab_size, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=16, max_position_embeddings=10))
        loss = train.train(model, *data, settings, tmp_path / folder, TOKENIZER,
                           resume=resume and tmp_path / folder / resume, stop_at=stop)
        finals.append((loss, model.state_dict()))
    assert finals[0][0] == finals[2][0] and abs(finals[0][0] - np.log(TOKENIZER.vocab_size)) < 0.3
    assert all(np.array_equal(finals[0][1][name], finals[2][1][name]) for name in finals[0][1])
    again, tokenizer = tinyllm.checkpoint.load_model(tmp_path / "whole")
    assert again.config == model.config and tokenizer.vocabulary == TOKENIZER.vocabulary
    assert train.evaluate(again, data[1], 5) == pytest.approx(finals[0][0], rel=1e-6)
