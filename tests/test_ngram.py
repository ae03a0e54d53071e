"""The n-gram model, against a plain implementation with dictionaries, and on text."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save

from tinyllm import NGram, NGramConfig, functional, generate, metrics
from tinyllm.models.ngram_counts import discounts, fit_weights
from tinyllm.text import CharTokenizer, TokenDataset, default_corpus, split
from tinyllm.train import evaluate

SMOOTHINGS = [
    dict(smoothing="add-k", k=1.0),
    dict(smoothing="add-k", k=0.01),
    dict(smoothing="interpolation", weights=(0.9, 0.5, 0.25)),
    dict(smoothing="kneser-ney", discount="modified"),
    dict(smoothing="kneser-ney", discount="single"),
    dict(smoothing="kneser-ney", discount=0.6),
]
EACH = pytest.mark.parametrize("options", SMOOTHINGS, ids=lambda o: "-".join(map(str, o.values())))
TEXT = np.random.default_rng(0).integers(0, 6, 400) ** 2 // 5         # tokens 0 1 3 5, unevenly; 2 and 4 never occur


def config(order=3, vocab_size=6, **options):
    if "weights" in options:
        options["weights"] = options["weights"] and options["weights"][:order]
    return NGramConfig(vocab_size, order, **options)


class Plain:
    """The same model from its definition: counts of tuples, and one token at a time."""

    def __init__(self, c, tokens):
        self.c, tokens = c, [int(t) for t in tokens]
        grams = lambda n: [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
        self.counts = [Counter(grams(n)) for n in range(c.order + 1)]
        self.lower_counts = list(self.counts)
        if c.smoothing == "kneser-ney":
            for n in range(1, c.order):
                before = defaultdict(set)
                for gram in grams(n + 1):
                    before[gram[1:]].add(gram[0])
                self.lower_counts[n] = Counter({gram: len(those) for gram, those in before.items()})

    def p(self, w, h, top=True):
        """p(w | h), h a tuple of any length."""
        c = self.c
        h = tuple(h[max(0, len(h) - c.order + 1):])
        counts = (self.counts if top else self.lower_counts)[len(h) + 1]
        seen = {gram[-1]: count for gram, count in counts.items() if gram[:-1] == h}
        total, lower = sum(seen.values()), self.p(w, h[1:], top=False) if h else 1 / c.vocab_size
        if c.smoothing == "add-k":
            return (seen.get(w, 0) + c.k) / (total + c.k * c.vocab_size)
        if not total:
            return lower
        if c.smoothing == "interpolation":
            weight = c.weights[len(h)]
            return weight * seen.get(w, 0) / total + (1 - weight) * lower
        D = self.discounts(counts)
        kept_back = sum(D[min(count, 3)] for count in seen.values())
        return (seen.get(w, 0) - D[min(seen.get(w, 0), 3)]) / total + kept_back / total * lower

    def discounts(self, counts):
        of = Counter(counts.values())
        Y = of[1] / (of[1] + 2 * of[2]) if of[1] else 0.75
        if self.c.discount == "modified" and of[1] and of[2] and of[3] and of[4]:
            D = [0, 1 - 2 * Y * of[2] / of[1], 2 - 3 * Y * of[3] / of[2], 3 - 4 * Y * of[4] / of[3]]
            if min(D[1:]) > 0:
                return D
        return [0] + 3 * [self.c.discount if isinstance(self.c.discount, float) else Y]


@EACH
@given(text=st.lists(st.integers(0, 3), min_size=1, max_size=60), window=st.lists(st.integers(0, 4), min_size=2,
       max_size=9), order=st.integers(1, 3))
def test_equals_the_definition(options, text, window, order):
    """Any text, seen and unseen contexts, windows shorter and longer than the order: target by target and as logits."""
    c = config(order, vocab_size=5, **options)
    model, plain = NGram(c).fit(np.array(text)), Plain(c, text)
    ids = np.array([window, window[::-1]])
    got = model.logprob(ids[:, :-1], ids[:, 1:])
    for row, values in zip(ids, got):
        expected = [math.log(plain.p(row[t], tuple(row[:t]))) for t in range(1, len(row))]
        np.testing.assert_allclose(values, expected, rtol=1e-10, atol=1e-12)
    logits = model(ids).numpy()
    for t in range(len(window)):
        expected = [math.log(plain.p(w, tuple(window[: t + 1]))) for w in range(5)]
        np.testing.assert_allclose(logits[0, t], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [SMOOTHINGS[1], SMOOTHINGS[3]], ids=lambda o: o["smoothing"])
def test_order_12_and_a_large_vocabulary(options):
    """Keys do not overflow: ids up to GPT-2's 50,256, contexts of 11 tokens that do occur again."""
    text = np.tile(np.random.default_rng(1).integers(50_200, 50_257, 50), 4)
    text[70::31] = 50_256                                               # something new in each repetition
    c = NGramConfig(50_257, 12, **options)
    got = NGram(c).fit(text[:150]).logprob(text[None, 120:-1], text[None, 121:])[0]
    plain = Plain(c, text[:150])
    expected = [math.log(plain.p(text[t], tuple(text[120:t]))) for t in range(121, 200)]
    assert max(expected) - min(expected) > 5                            # what is known and what is new
    np.testing.assert_allclose(got, expected, rtol=1e-9)


@EACH
@pytest.mark.parametrize("order", [1, 2, 3])
def test_probabilities_sum_to_one(options, order):
    """After contexts that occurred, that did not, and that hold tokens which never did; over the whole vocabulary."""
    model = NGram(config(order, **options)).fit(TEXT)
    ids = np.array([[0, 1, 3], [5, 5, 5], [2, 4, 2], [0, 2, 1], [4, 0, 1]])
    for t in range(1, 4):
        p = np.exp([model.logprob(ids[:, :t], np.column_stack([ids[:, 1:t], np.full(5, w)]))[:, -1] for w in range(6)])
        np.testing.assert_allclose(p.sum(axis=0), 1, rtol=1e-12)
        assert (p > 0).all()
        np.testing.assert_allclose(model.next_logits(ids[:, :t]).numpy(), np.log(p).T, rtol=1e-5, atol=1e-6)


def test_add_k_is_the_textbook_formula():
    """After "0 1" came 0, 1 and 0: (2 + 1) / (3 + 3) with Laplace's rule; after "2 2" nothing, so 1/3 each."""
    model = NGram(config(3, 3, smoothing="add-k")).fit(np.array([0, 1, 0, 1, 1, 0, 1, 0]))
    p = np.exp(model.next_logits(np.array([[0, 1], [2, 2]])).numpy())
    np.testing.assert_allclose(p, [[3 / 6, 2 / 6, 1 / 6], [1 / 3] * 3], rtol=1e-6)


def test_kneser_ney_by_hand():
    """San 0, Francisco 1, glasses 2, others 3 to 6. Francisco occurs most, but only after San; glasses after four.

    11 different bigrams, with D = 1/2: p(Francisco) = (1 - D) / 11 + 6 D / 11 / 7, as six tokens have something before.
    """
    text = np.array([0, 1, 0, 1, 0, 1, 0, 1, 3, 2, 4, 2, 5, 2, 6, 2])
    model = NGram(config(2, 7, smoothing="kneser-ney", discount=0.5)).fit(text)
    before = {0: {1}, 1: {0}, 2: {3, 4, 5, 6}, 3: {1}, 4: {2}, 5: {2}, 6: {2}}
    total = sum(map(len, before.values()))
    p_1 = [(len(before[w]) - 0.5) / total + 7 * 0.5 / total / 7 for w in range(7)]
    assert p_1[2] > 3 * p_1[1]
    after_2 = np.exp(model.next_logits(np.array([[2]])).numpy()[0])       # seen: 4 5 6, once each
    np.testing.assert_allclose(after_2, [(w in (4, 5, 6)) * 0.5 / 3 + 1.5 / 3 * p_1[w] for w in range(7)], rtol=1e-6)


def test_discounts():
    """n_1 .. n_4 = 8, 4, 2, 1: Y = 1/2; D = 2 - 3/2 * 2/4, 3 - 4/2 * 1/2."""
    counts = np.repeat([0, 1, 2, 3, 4, 5, 9], [3, 8, 4, 2, 1, 7, 5])
    np.testing.assert_allclose(discounts(counts, "modified"), [0, 0.5, 1.25, 2])
    np.testing.assert_allclose(discounts(counts, "single"), [0, 0.5, 0.5, 0.5])
    np.testing.assert_allclose(discounts(counts, 0.3), [0, 0.3, 0.3, 0.3])
    np.testing.assert_allclose(discounts(counts[counts != 4], "modified"), [0, 0.5, 0.5, 0.5])
    np.testing.assert_allclose(discounts(counts[counts != 1], "modified"), [0, 0.75, 0.75, 0.75])
    np.testing.assert_allclose(discounts(np.array([1, 1, 2, 3, 3, 3, 4]), "modified"), [0] + [0.5] * 3)    # D_2 < 0


def heldout_shares():
    """Relative frequencies of 3 orders for 300 tokens; some contexts unknown."""
    rng = np.random.default_rng(2)
    mass, rest = rng.uniform(0, 1, (3, 300)) ** 3, (rng.uniform(0, 1, (3, 300)) < [[0.0], [0.1], [0.4]]) * 1.0
    return np.where(rest == 1, 0, mass), rest


def likelihood(weights, mass, rest, vocab_size=50):
    p = np.full(mass.shape[1], 1 / vocab_size)
    for weight, m, r in zip(weights, mass, rest):
        p = np.where(r == 1, p, weight * m + (1 - weight) * p)
    return np.log(p).mean()


def test_em_never_lowers_the_likelihood_and_ends_at_a_maximum():
    mass, rest = heldout_shares()
    values = [likelihood(fit_weights(mass, rest, 50, rounds), mass, rest) for rounds in range(30)]
    assert (np.diff(values) >= -1e-12).all() and values[5] > values[0] + 0.01
    best = fit_weights(mass, rest, 50, rounds=1000)
    for n in range(3):
        for step in (-0.02, 0.02):
            other = best.copy()
            other[n] += step
            assert likelihood(other, mass, rest) < likelihood(best, mass, rest)


def test_weights_are_fitted_on_heldout_text_by_default_the_last_tenth():
    interpolated = lambda weights=None: NGram(config(smoothing="interpolation", weights=weights))
    loss = lambda model: math.log(model.perplexity(TEXT[300:]))
    others = [(0.5, 0.5, 0.5), (0.9, 0.1, 0.1), (0.1, 0.9, 0.9)]
    fitted = loss(interpolated().fit(TEXT[:300], TEXT[300:]))
    assert all(fitted < loss(interpolated(weights).fit(TEXT[:300])) for weights in others)
    default, same = interpolated().fit(TEXT), interpolated().fit(TEXT[:360], TEXT[360:])
    for a, b in zip(default.levels, same.levels):
        assert a.rest.min() == b.rest.min()                             # 1 - lambda
    assert default.num_parameters() == interpolated((0.5,) * 3).fit(TEXT).num_parameters()      # all of it is counted


@EACH
def test_loss_is_the_cross_entropy_of_the_logits(options):
    model = NGram(config(**options)).fit(TEXT)
    ids, targets = TEXT[:40].reshape(4, 10), TEXT[1:41].reshape(4, 10).copy()
    targets[1, 3:6] = -100
    for reduction in ("mean", "sum", "none"):
        expected = functional.cross_entropy(model(ids), targets, reduction=reduction)
        got = model.loss(ids, targets, reduction=reduction)
        assert got.shape == expected.shape and not got.requires_grad and got.dtype == np.float64
        np.testing.assert_allclose(got.numpy(), expected.numpy(), rtol=1e-5, atol=1e-6)
    assert model.loss(ids, np.full((4, 10), -100)).item() == 0


def test_evaluate_over_one_long_window_is_the_perplexity_and_short_windows_know_less():
    model = NGram(config(3)).fit(TEXT[:300])
    val = TEXT[250:]
    whole = evaluate(model, TokenDataset(val, len(val) - 1), 1)
    assert metrics.perplexity(whole) == pytest.approx(model.perplexity(val), rel=1e-12)
    one_token = evaluate(model, TokenDataset(val, 1), 50)
    np.testing.assert_allclose(one_token, model.loss(val[:-1, None], val[1:, None]).item(), rtol=1e-12)
    assert one_token > whole


@EACH
def test_generation(options):
    """With the cache and without, long past n - 1 tokens; greedy takes the likeliest."""
    model = NGram(config(**options)).fit(TEXT)
    texts = [generate(model, [[0, 1], [5, 3]], 30, seed=3, use_cache=use) for use in (True, False)]
    np.testing.assert_array_equal(*texts)
    greedy = generate(model, [0], 5, temperature=0)
    for t in range(1, 6):
        assert greedy[0, t] == model(greedy[:, :t]).numpy()[0, -1].argmax()


def test_parameters_are_counts_and_fitting_again_starts_over():
    model = NGram(config(2, 3))
    assert model.num_parameters() == 0 and model.perplexity([0, 1, 2]) == pytest.approx(3)      # nothing known yet
    assert model.fit(np.array([0, 1, 0, 1, 2])).num_parameters() == 3 + 3                       # 0 1 2; 01 10 12
    assert model.fit(np.array([0, 0])).num_parameters() == 2
    assert NGram(config(4)).fit(TEXT[:2]).num_parameters() == len(set(TEXT[:2])) + 1


@EACH
def test_the_start_of_a_window_is_predicted_by_a_model_of_lower_order(options):
    """Order 3 after one token is order 2."""
    three, two = (NGram(config(order, **options)).fit(TEXT) for order in (3, 2))
    np.testing.assert_allclose(three(TEXT[:50, None]).numpy(), two(TEXT[:50, None]).numpy(), rtol=1e-6)


@EACH
def test_state_through_a_file(options):
    model = NGram(config(**options)).fit(TEXT)
    described = model.config_dict()
    assert described.pop("model_type") == "ngram"
    other = NGram(NGramConfig(**described))
    other.load_state_dict(load(save(model.state_dict())))
    np.testing.assert_array_equal(other(TEXT[None]).numpy(), model(TEXT[None]).numpy())
    with pytest.raises(ValueError, match="every order up to 2"):
        NGram(config(2)).load_state_dict(model.state_dict())
    with pytest.raises(ValueError, match="nothing is not keys, mass and rest"):
        other.load_state_dict(NGram(config()).state_dict())


def test_on_text():
    """Held-out characters of the default corpus, which changes with each release of Python: one figure, loosely."""
    corpus = default_corpus()
    tokenizer = CharTokenizer.train(corpus)
    train, val = split(np.array(tokenizer.encode(corpus)))
    bits = lambda order, **options: math.log2(NGram(config(order, tokenizer.vocab_size, **options)).fit(
        train).perplexity(val))
    by_order = [bits(order) for order in (1, 2, 3, 5)]
    assert all(a > b + 0.4 for a, b in zip(by_order, by_order[1:]))
    single, interpolation = bits(5, discount="single"), bits(5, smoothing="interpolation")
    add_k = min(bits(5, smoothing="add-k", k=k) for k in (1, 0.01))
    assert by_order[-1] < single < interpolation < add_k
    assert single == pytest.approx(1.79, abs=0.1)


def test_wrong_configurations():
    for field, value, message in (
        ("order", 0, "order must be 1 or more, not 6 and 0"),
        ("vocab_size", 0, "not 0 and 3"),
        ("smoothing", "good-turing", 'no smoothing "good-turing"; choose one of add-k'),
        ("k", 0, "k must be above 0"),
        ("weights", (0.5, 0.5), "weights must be 3 numbers"),
        ("weights", (0.5, 0.5, 1.0), "below 1"),
        ("discount", 0, "discount must be"),
        ("discount", "triple", "discount must be"),
    ):
        with pytest.raises(ValueError, match=message):
            config(**{field: value})


def test_wrong_arguments():
    model = NGram(config()).fit(TEXT)
    weightless = NGram(config(smoothing="interpolation"))
    for error, message, call in (
        (ValueError, r"tokens must be one row \(N,\) .* not int64 \(1, 400\)", lambda: model.fit(TEXT[None])),
        (ValueError, "tokens must be .* not float64", lambda: model.fit(TEXT / 2)),
        (ValueError, r"ids must be \(batch, time\)", lambda: model(TEXT)),
        (ValueError, "at least one token id", lambda: model.perplexity(TEXT[:1])),
        (IndexError, "tokens go from 1 to 6, outside the vocabulary of 6", lambda: model.fit(TEXT + 1)),
        (IndexError, "targets go from -1 to 3", lambda: model.logprob([[0, 1]], [[3, -1]])),
        (ValueError, r"ids \(1, 400\), targets \(1, 399\)", lambda: model.loss(TEXT[None], TEXT[None, 1:])),
        (ValueError, "reduction must be", lambda: model.loss(TEXT[None], TEXT[None], reduction="median")),
        (ValueError, "2 tokens are too few to fit weights on", lambda: weightless.fit(TEXT[:20])),
        (ValueError, "3 tokens are too few", lambda: weightless.fit(TEXT, TEXT[:3])),
    ):
        with pytest.raises(error, match=message):
            call()
