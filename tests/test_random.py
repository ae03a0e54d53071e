"""Random numbers, and what is drawn with them: tokens and dropout masks."""

import importlib
import math
import re

import numpy as np
import pytest
from strategies import normal

from tinyllm import Tensor, composed, manual_seed, ops, random
from tinyllm import functional as F

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
    extreme = lambda rng, shape, site: np.where(np.arange(shape[1]) == 2, bits, 2**31).astype(np.uint32)[None]
    monkeypatch.setattr(importlib.import_module("tinyllm.ops.sample"), "bits_of_rows", extreme)
    assert ops.sample(np.array([[5.0, 1, 0]]), (0, 0), top_k=2).tolist() == [0]
    assert ops.sample(np.array([[60.0, 1, 0]]), (0, 0)).tolist() == [0]


@pytest.mark.parametrize("temperature", [1e-5, 1e-38, 1e-40, 1e-46, 1e-300])
@pytest.mark.parametrize("options", [dict(), dict(top_k=3), dict(top_p=0.9)])
def test_the_coldest_draws_are_greedy(temperature, options):
    """No warning (they are errors here), whatever float32 makes of the temperature."""
    logits = np.array([[1.0, 3, -np.inf, 2.9], [-3e38, -1e38, -2e38, -3e38], [0, 0.5, -1e-3, 0]], np.float32)
    assert ops.sample(logits, (1, 2), temperature=temperature, **options).tolist() == [1, 1, 1]


def test_an_infinite_logit_wins():
    logits = np.array([[0.0, np.inf, 5.0], [-np.inf, -np.inf, 0.0]], np.float32).repeat(20, axis=0)
    assert ops.sample(logits, (1, 2)).tolist() == [1] * 20 + [2] * 20


@pytest.mark.parametrize("options", [
    dict(temperature=-1.0), dict(temperature=math.nan), dict(temperature=math.inf), dict(top_k=-1), dict(top_k=1.5),
    dict(top_p=0.0), dict(top_p=-0.5), dict(top_p=1.5), dict(top_p=math.nan)])
def test_wrong_ways_to_sample_are_explained(options):
    message = "sample: temperature must be .*, top_k a whole number .*, and top_p above 0 and at most 1; got .*"
    with pytest.raises(ValueError, match=message + re.escape("{}={}".format(*next(iter(options.items()))))):
        F.sample(Tensor(np.zeros((2, 3), np.float32)), **options)


@pytest.mark.parametrize("shape", [(3,), (2, 0), (1, 2, 3)])
def test_logits_are_a_row_per_text(shape):
    with pytest.raises(ValueError, match=r"sample: logits must be \(B, V\)"):
        F.sample(np.zeros(shape, np.float32))


@pytest.mark.parametrize("options", [
    dict(), dict(temperature=0), dict(temperature=0.3), dict(temperature=1e-40), dict(top_k=1), dict(top_k=5),
    dict(top_k=99), dict(top_p=0.3), dict(top_p=1e-6), dict(top_p=1), dict(top_k=7, top_p=0.8, temperature=2.0),
    dict(min_p=0), dict(min_p=0.3), dict(min_p=1), dict(top_k=9, top_p=0.9, min_p=0.2, temperature=1.5)])
def test_sample_is_what_its_composed_view_spells_out(options):
    for seed in range(10):
        logits, rng = normal(40, 23, seed=seed, size=2.0).astype(np.float32), np.array([seed, 5])
        np.testing.assert_array_equal(F.sample(logits, rng=rng, **options), composed.sample(logits, rng=rng, **options))
    manual_seed(4)
    expected = F.sample(logits, **options)
    manual_seed(4)
    np.testing.assert_array_equal(composed.sample(Tensor(logits), **options), expected)


def test_sample_takes_tensors_and_continues_the_global_stream():
    logits = Tensor(np.zeros((50, 9), np.float32))
    manual_seed(1)
    first, second = F.sample(logits), F.sample(logits)
    manual_seed(1)
    np.testing.assert_array_equal(F.sample(logits), first)
    assert (first != second).any()
    np.testing.assert_array_equal(F.sample(logits, rng=np.array([1, 0])), first)


@pytest.mark.parametrize("seed", [-1, 2**63, 0.5, math.nan])
def test_a_seed_is_a_whole_number(seed):
    before = random.get_state()
    with pytest.raises(ValueError, match="a seed is a whole number from 0 to below 2.63, not"):
        manual_seed(seed)
    assert random.get_state() == before


def test_new_seeds_follow_from_the_seed():
    seeds = []
    for start in (1, 1, 2):
        manual_seed(start)
        seeds.append([random.new_seed() for _ in range(20)])
    assert seeds[0] == seeds[1] != seeds[2] and len(set(seeds[0])) == 20
    assert all(0 <= seed < 2**63 for seed in seeds[0]) and max(seeds[0]) > 2**60


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
