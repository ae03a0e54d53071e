"""Generation, sampling, the random numbers behind them, and metrics."""

import importlib
import math
import warnings

import numpy as np
import pytest

from tinyllm import GPT, GPTConfig, Tensor, generate, manual_seed, metrics, ops, random, stream
from tinyllm import functional as F

V = 11


def model(n_positions=8):
    """Wide initial weights, so that the logits differ clearly; float64, so that rounding decides nothing."""
    manual_seed(5)
    shape = dict(vocab_size=V, n_positions=n_positions, n_embd=16, n_layer=2, n_head=2, initializer_range=0.4)
    return GPT(GPTConfig(**shape)).to("numpy", np.float64)


def quiet(*args, **options):
    """generate(), where outgrowing the context is expected."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return generate(*args, **options)


def prompts(length, batch=2):
    return np.random.default_rng(length).integers(0, V, (batch, length))


# Generation

@pytest.mark.parametrize("n_positions", [1, 5, 8])
def test_the_cache_changes_nothing(n_positions):
    """Prompts shorter and longer than the context, texts that outgrow it once and more often."""
    gpt = model(n_positions)
    for length in (1, 2, n_positions - 1, n_positions, n_positions + 1, 2 * n_positions + 1):
        if length:
            ids = prompts(length)
            new = 2 * n_positions + 3
            cached, plain = (quiet(gpt, ids, new, temperature=0, use_cache=use) for use in (True, False))
            np.testing.assert_array_equal(cached, plain)
            assert cached.shape == (2, length + new) and (cached[:, :length] == ids).all()


def test_logits_piece_by_piece_are_those_of_the_whole():
    gpt = model()
    gpt.eval()
    ids = prompts(8)
    cache = gpt.new_cache(2)
    pieces = [gpt(ids[:, a:b], cache).numpy() for a, b in ((0, 3), (3, 4), (4, 8))]
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), gpt(ids).numpy(), rtol=1e-10)


def test_greedy_takes_the_most_likely_token():
    gpt = model()
    text = generate(gpt, [1, 2], 5, temperature=0)
    gpt.eval()
    for n in range(2, 7):
        assert text[0, n] == gpt(text[:, :n]).numpy()[0, -1].argmax()


def test_outgrowing_the_context_warns_once():
    gpt = model()
    assert generate(gpt, prompts(3), 6).shape == (2, 9)     # the last token need not be read: no warning
    with pytest.warns(UserWarning, match="outgrown the model's context of 8 tokens.*4 to 8") as caught:
        generate(gpt, prompts(3), 30)
    assert len(caught) == 1


def test_stream_yields_what_generate_returns():
    gpt, ids = model(), prompts(2)
    options = dict(max_new_tokens=5, seed=4, num_return_sequences=2, top_k=5)
    tokens = list(stream(gpt, ids, **options))
    assert all(new.shape == (4,) and new.dtype == np.int64 for new in tokens)
    text = generate(gpt, ids, **options)
    np.testing.assert_array_equal(text[:, 2:], np.stack(tokens, axis=1))
    np.testing.assert_array_equal(text[:, :2], np.repeat(ids, 2, axis=0))


def test_a_seed_decides_the_text():
    gpt = model()
    texts = [generate(gpt, [1], 7, seed=seed).tolist() for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_generation_leaves_the_random_state_alone():
    gpt, before = model(), random.get_state()
    generate(gpt, [1], 3)
    assert random.get_state() == before


def test_samples_of_one_prompt_differ_from_the_first_token_on():
    firsts = generate(model(), [1], 1, temperature=3.0, num_return_sequences=20)[:, 1]
    assert len(set(firsts.tolist())) > 3


def test_prompts_may_be_lists_and_lengths_totals():
    gpt = model()
    text = generate(gpt, [1, 2], 3, temperature=0)
    np.testing.assert_array_equal(generate(gpt, [[1, 2]], max_length=5, temperature=0), text)
    assert generate(gpt, [1, 2], max_length=1).tolist() == [[1, 2]] == generate(gpt, [1, 2], 0).tolist()


def test_a_stop_token_ends_the_text():
    gpt, ids = model(), prompts(2, batch=1)
    free = generate(gpt, ids, 6, seed=3)[0, 2:].tolist()
    stop = free[2]
    expected = free[: free.index(stop) + 1]
    assert generate(gpt, ids, 6, seed=3, stop_tokens=[stop])[0, 2:].tolist() == expected


def test_a_text_that_is_over_repeats_its_stop_token_until_all_are():
    gpt, ids = model(), prompts(2, batch=6)
    text = generate(gpt, ids, 6, seed=1, temperature=2.0, stop_tokens=[0, 1])[:, 2:]
    free = generate(gpt, ids, 6, seed=1, temperature=2.0)[:, 2:]
    ends = [next((i for i, token in enumerate(row) if token in (0, 1)), 6) for row in free]
    assert len(set(ends)) > 1 and text.shape[1] == min(6, max(ends) + 1)
    for row, whole, end in zip(text, free, ends):
        np.testing.assert_array_equal(row[: end + 1], whole[: end + 1][: len(row)])
        assert (row[end:] == row[min(end, len(row) - 1)]).all()


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_put_back(training):
    gpt = model().train(training)
    generate(gpt, [1], 2)
    assert all(part.training == training for part in gpt.modules())
    half_read = stream(gpt, [1], 5)
    next(half_read)
    assert not gpt.training                         # no dropout while it writes
    half_read.close()
    assert all(part.training == training for part in gpt.modules())
    with pytest.raises(IndexError):
        generate(gpt, [V], 2)
    assert all(part.training == training for part in gpt.modules())


def test_wrong_requests_are_explained():
    gpt = model()
    with pytest.raises(ValueError, match="max_new_tokens or max_length"):
        generate(gpt, [1])
    with pytest.raises(ValueError, match="T at least 1"):
        generate(gpt, [], 3)
    with pytest.raises(ValueError, match=r"not \(1, 1, 1\)"):
        generate(gpt, [[[1]]], 3)


# Sampling

def draw(p, n=6000, **options):
    """How often each token comes when `n` rows draw from the probabilities p."""
    logits = np.repeat(np.log(np.array([p], np.float32)), n, axis=0)
    return np.bincount(ops.sample(logits, (7, 1), **options), minlength=len(p))


def assert_distributed(counts, p):
    """Chi-square: with k degrees of freedom its mean is k and its variance 2 k; 4 standard deviations are a lot."""
    expected = np.array(p) / np.sum(p) * counts.sum()
    possible = expected > 0
    assert (counts[~possible] == 0).all()
    statistic = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    freedom = possible.sum() - 1
    assert statistic < freedom + 4 * math.sqrt(2 * freedom), statistic


P = [0.4, 0.3, 0.15, 0.1, 0.05]


def test_samples_are_distributed_as_the_softmax():
    assert_distributed(draw(P), P)


def test_samples_of_successive_steps_are_distributed_as_the_softmax():
    logits = np.log(np.array([P], np.float32))
    tokens = [int(ops.sample(logits, (3, step))[0]) for step in range(1500)]
    assert_distributed(np.bincount(tokens, minlength=5), P)
    pairs = [5 * a + b for a, b in zip(tokens, tokens[1:])]
    assert_distributed(np.bincount(pairs, minlength=25), np.outer(P, P).ravel())


def test_rows_draw_independently():
    """Two rows agree as often as chance has it."""
    tokens = ops.sample(np.repeat(np.log(np.array([P], np.float32)), 6000, axis=0), (1, 1)).reshape(-1, 2)
    assert_distributed(np.bincount(5 * tokens[:, 0] + tokens[:, 1], minlength=25), np.outer(P, P).ravel())


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_sharpens_or_flattens(temperature):
    assert_distributed(draw(P, temperature=temperature), np.array(P) ** (1 / temperature))


def test_temperature_zero_is_greedy():
    assert ops.sample(np.array([[0.0, 2, 1], [5, 2, 1]]), (0, 0), temperature=0).tolist() == [1, 0]


@pytest.mark.parametrize("top_k", [None, 0, 5, 99])
def test_no_top_k(top_k):
    np.testing.assert_array_equal(draw(P, top_k=top_k), draw(P))


@pytest.mark.parametrize("top_p", [None, 1, 1.5])
def test_no_top_p(top_p):
    np.testing.assert_array_equal(draw(P, top_p=top_p), draw(P))


KEPT = [(dict(top_k=1), 1), (dict(top_k=2), 2), (dict(top_k=4), 4), (dict(top_p=0.35), 1), (dict(top_p=0.65), 2),
        (dict(top_p=0.72), 3), (dict(top_p=1e-9), 1), (dict(top_k=2, top_p=0.5), 1), (dict(top_k=2, top_p=0.6), 2)]


@pytest.mark.parametrize("options, n", KEPT)
def test_top_k_and_top_p_keep_the_most_likely(options, n):
    """n of them; with both, top-p counts the mass that top-k left (0.4 of 0.7 is more than a half)."""
    order = [3, 0, 4, 1, 2]                         # the order in which tokens stand must not matter
    p = np.array(P)[order]
    kept = np.where(np.isin(order, range(n)), p, 0)
    counts = draw(p, **options)
    assert_distributed(counts, kept) if n > 1 else np.testing.assert_array_equal(counts > 0, kept > 0)


def test_equal_logits_leave_exactly_k():
    tokens = ops.sample(np.zeros((2000, 6), np.float32), (2, 0), top_k=3)
    assert set(tokens.tolist()) == {0, 1, 2}


@pytest.mark.parametrize("bits", [0, 0xFFFFFFFF])
def test_the_rarest_random_numbers_choose_no_forbidden_token(bits, monkeypatch):
    """A uniform number that rounds to 0 or 1 would make the noise infinite. With V = 50257 that is no rare event."""
    extreme = lambda rng, n, site: np.where(np.arange(n) == 2, bits, 2**31).astype(np.uint32)
    monkeypatch.setattr(importlib.import_module("tinyllm.ops.sample"), "first_bits", extreme)
    assert ops.sample(np.array([[5.0, 1, 0]]), (0, 0), top_k=2).tolist() == [0]
    assert ops.sample(np.array([[60.0, 1, 0]]), (0, 0)).tolist() == [0]


def test_sample_takes_tensors_and_continues_the_global_stream():
    logits = Tensor(np.zeros((50, 9), np.float32))
    manual_seed(1)
    first, second = F.sample(logits), F.sample(logits)
    manual_seed(1)
    np.testing.assert_array_equal(F.sample(logits), first)
    assert (first != second).any()
    np.testing.assert_array_equal(F.sample(logits, rng=np.array([1, 0])), first)


# Philox

VECTORS = [     # from Random123's kat_vectors: counter, key, result of philox4x32-10
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize("counter, key, result", VECTORS)
def test_philox_gives_the_published_numbers(counter, key, result):
    words = lambda text: [int(word, 16) for word in text.split()]
    found = ops.philox(tuple(words(key)), [np.array([w], np.uint64) for w in words(counter)])
    assert [int(w[0]) for w in found] == words(result)


def test_an_element_number_decides_its_bits():
    """Element e is word e % 4 of the counter (e // 4, site, step, 0); Triton counts the same way."""
    rng = (2**62 + 12345, 3)                        # both halves of the seed matter
    bits = ops.first_bits(rng, 40_001, site=2)      # more than one piece, and not a multiple of four
    for element in (0, 5, 16_383, 16_384, 40_000):
        words = ops.philox((12345, 2**30), [np.array([w], np.uint64) for w in (element // 4, 2, 3, 0)])
        assert bits[element] == words[element % 4][0]


@pytest.mark.parametrize("other", [((2, 1), 0), ((1, 2), 0), ((1, 1), 1), ((1 + 2**32, 1), 0)])
def test_another_seed_step_or_site_gives_independent_bits(other):
    (rng, site), n = other, 4000
    signs = lambda bits: (bits >> 31).astype(int) * 2 - 1
    agreement = (signs(ops.first_bits((1, 1), n, 0)) * signs(ops.first_bits(rng, n, site))).sum()
    assert abs(agreement) < 4 * math.sqrt(n)


# Dropout

@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_mean(p):
    n = 20_000
    out = F.dropout(Tensor(np.ones(n, np.float32)), p).numpy()
    np.testing.assert_allclose(np.unique(out), [0, 1 / (1 - p)], rtol=1e-6)
    assert abs((out == 0).mean() - p) < 4 * math.sqrt(p * (1 - p) / n)


def test_a_seed_decides_the_dropout_mask():
    x, masks = Tensor(np.ones(100, np.float32)), []
    for seed in (1, 1, 2):
        manual_seed(seed)
        masks.append([F.dropout(x, 0.5).numpy().tolist() for _ in range(2)])
    assert masks[0] == masks[1] != masks[2]
    assert masks[0][0] != masks[0][1]               # two calls in one step draw two masks


def test_every_step_draws_other_masks():
    x, masks = Tensor(np.ones(100, np.float32)), []
    manual_seed(1)
    for step in (0, 1, 0):
        random.next_step(step)
        masks.append(F.dropout(x, 0.5).numpy().tolist())
    assert masks[0] == masks[2] != masks[1]


def test_the_state_of_dropout_can_be_restored():
    x = Tensor(np.ones(100, np.float32))
    manual_seed(3)
    random.next_step()
    F.dropout(x)
    state = random.get_state()
    expected = F.dropout(x).numpy()
    random.set_state(state)
    np.testing.assert_array_equal(F.dropout(x).numpy(), expected)


# Metrics

def test_perplexity():
    assert metrics.perplexity(0.0) == 1
    assert metrics.perplexity(math.log(8)) == pytest.approx(8)
    assert metrics.perplexity(1e6) == math.inf      # and no OverflowError
    assert math.isnan(metrics.perplexity(math.nan))


def test_bits_per_byte_and_character():
    """10 tokens at 3 bits each, for a text of 15 bytes that are 12 characters."""
    assert metrics.bits_per_byte(3 * math.log(2), 10, 15) == pytest.approx(2)
    assert metrics.bits_per_character(3 * math.log(2), 10, 12) == pytest.approx(2.5)


def test_accuracy():
    assert metrics.accuracy([[1, 2], [3, 4]], [[1, 0], [3, -100]]) == pytest.approx(2 / 3)
    assert metrics.accuracy([1, 0], [7, 0], ignore_index=7) == 1
    assert math.isnan(metrics.accuracy([1], [-100]))
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2,\).*argmax"):
        metrics.accuracy(np.zeros((2, 3)), [1, 2])
