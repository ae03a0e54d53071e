"""The recipes in examples/: XLNet's two streams, T5's spans, and a unigram vocabulary, each against its promise."""
import importlib
import itertools
import math
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_checks import check_random_directions
from test_examples import run

import tinyllm
from tinyllm.text import BPETokenizer, UnigramTokenizer, load_tokenizer

xlnet, spans, unigram = (importlib.import_module(name) for name in (
    "10_xlnet", "11_span_corruption", "12_unigram_vocabulary"))


# XLNet: orders of prediction, and two streams

IDS = np.random.default_rng(0).integers(0, 11, (2, 5))


@pytest.fixture
def model(monkeypatch):
    monkeypatch.setattr(xlnet, "WIDTH", 16)
    monkeypatch.setattr(xlnet, "HEADS", 2)
    monkeypatch.setattr(xlnet, "LAYERS", 2)
    model = xlnet.XLNet(11).to("numpy", np.float64)
    model.wte.weight.data = 20 * model.wte.weight.data      # far from where it starts, so that attention is not uniform
    return model


@pytest.mark.parametrize("T", [1, 7, 40])
def test_an_order_holds_every_position_once_and_spans_in_reading_order(T):
    rng, starts = np.random.default_rng(0), set()
    for _ in range(50):
        order = xlnet.draw_order(T, rng)
        assert sorted(order) == list(range(T))
        runs = np.split(order, np.flatnonzero(np.diff(order) != 1) + 1)
        starts.add(order[0])
        assert T < 40 or len(runs) >= 4                     # at most 5 in a span, though two may meet in order
    assert len(starts) > T / 4


def test_no_prediction_sees_its_own_token_or_a_later_one_in_any_order(model):
    """All 24 orders of 4 positions: a changed token changes exactly the predictions that come after it."""
    ids = IDS[:1, :4]
    for order in map(np.array, itertools.permutations(range(4))):
        before = model(ids, order, 4).numpy()[0]                                            # (T, V), in order
        for t, place in enumerate(order):
            other = ids.copy()
            other[0, place] = (ids[0, place] + 1) % 11
            after = model(other, order, 4).numpy()[0]
            np.testing.assert_array_equal(after[:t + 1], before[:t + 1])
            assert (after[t + 1:] != before[t + 1:]).any(-1).all()


def test_what_is_predicted_does_not_depend_on_how_many_are_asked_for(model):
    order = np.array([3, 0, 4, 2, 1])
    everything = model(IDS, order, 5).numpy()
    for n in (1, 2, 4):
        np.testing.assert_allclose(model(IDS, order, n).numpy(), everything[:, -n:], atol=1e-12)
    losses = model.loss(IDS, order, 2, "none").numpy()
    log_p = everything[:, 3:] - np.log(np.exp(everything[:, 3:]).sum(-1, keepdims=True))
    np.testing.assert_allclose(losses, -np.take_along_axis(log_p, IDS[:, order[3:], None], -1)[..., 0], rtol=1e-9)
    assert model.loss(IDS, order, 2).item() == pytest.approx(losses.mean(), rel=1e-12)


def test_the_order_of_what_is_visible_matters_to_nobody_but_the_content(model):
    """In one layer, a query sees a set: the last prediction is the same in whichever order the others came."""
    model.h = model.h[:1]
    first, second = (model(IDS, np.array(order), 1).numpy() for order in ([0, 1, 3, 4, 2], [4, 0, 3, 1, 2]))
    np.testing.assert_allclose(first, second, atol=1e-12)


def test_in_reading_order_the_content_stream_is_a_causal_model(model):
    """The same weights with causal=True instead of a mask made from the order, and no second stream."""
    F = tinyllm.functional
    x, turns = model.wte(IDS), F.rope_tables(np.arange(5), 8, dtype=np.float64)
    for block in model.h:
        q, k, v = (layer(block.ln_1(x)).reshape(2, 5, 2, 8) for layer in (block.q, block.k, block.v))
        y = F.attention(F.rope(q, *turns), F.rope(k, *turns), v, causal=True)
        x = x + block.o(y.reshape(2, 5, 16))
        x = x + block.mlp(block.ln_2(x))
    np.testing.assert_allclose(model.streams(IDS, np.arange(5), 3)[0].numpy(), model.ln_f(x).numpy(), atol=1e-12)


def test_gradients_of_the_permutation_loss(model):
    check_random_directions(model, lambda: model.loss(IDS, np.array([3, 0, 4, 2, 1]), 4))
    assert np.abs(model.query.grad).max() > 0


def test_positions_enter_only_by_their_distance(model):
    """A text and its order, moved to the right behind a token that comes last: nothing changes for the others."""
    order = np.array([3, 0, 4, 2, 1])
    moved = np.concatenate([[[7], [7]], IDS], axis=1)
    shifted = model(moved, np.concatenate([order + 1, [0]]), 6).numpy()[:, :5]
    np.testing.assert_allclose(shifted, model(IDS, order, 5).numpy(), atol=1e-12)


def test_a_gap_is_filled_from_the_side_that_is_said(model):
    for name, (order, predicted) in xlnet.gap_orders(9, 3, 5).items():
        assert sorted(order) == list(range(9)) and order[9 - predicted:][:2].tolist() == [3, 4]
        seen = set(order[:9 - predicted].tolist())
        assert seen == {"left side": {0, 1, 2}, "right side": {5, 6, 7, 8}, "both sides": {0, 1, 2, 5, 6, 7, 8}}[name]
    ids, order = IDS[:1], np.array([0, 4, 1, 2, 3])
    first, second = xlnet.fill(model, ids, order, 3, 2)
    again = ids.copy()
    again[0, 1] = first
    assert first == model(ids, order, 3).numpy()[0, 0].argmax()
    assert second == model(again, order, 3).numpy()[0, 1].argmax()


# Span corruption

@given(st.integers(2, 200), st.integers(0, 2**32), st.floats(0.05, 0.9), st.floats(1, 6))
def test_spans_are_as_many_as_promised_and_never_touch(length, seed, density, mean_span):
    hidden, number = spans.how_much(length, density, mean_span)
    assert hidden == min(max(round(length * density), 1), length - 1)
    assert number == min(max(round(hidden / mean_span), 1), hidden, length - hidden + 1)
    drawn = spans.draw_spans(length, np.random.default_rng(seed), density, mean_span)
    assert drawn == spans.draw_spans(length, np.random.default_rng(seed), density, mean_span)
    assert len(drawn) == number and sum(end - start for start, end in drawn) == hidden
    edges = [edge for span in drawn for edge in span]
    assert 0 <= edges[0] and edges[-1] <= length and all(a < b for a, b in itertools.pairwise(edges))


def test_the_papers_figures():
    """Section 3.3.4: of 500 tokens, 15 % in 25 spans are 75 tokens, 3 in each."""
    assert spans.how_much(500) == (75, 25)


@pytest.mark.parametrize("length, density, mean_span", [(7, 0.45, 1.5), (6, 0.5, 1), (5, 0.8, 2)])
def test_all_choices_of_spans_are_equally_likely(length, density, mean_span):
    """Against a list of all masks with so many hidden tokens in so many runs."""
    hidden, number = spans.how_much(length, density, mean_span)
    runs = lambda mask: sum(a and not b for a, b in zip(mask, (False, *mask)))
    possible = {mask for mask in itertools.product([False, True], repeat=length)
                if sum(mask) == hidden and runs(mask) == number}
    rng, n, found = np.random.default_rng(0), 400 * len(possible), Counter()
    for _ in range(n):
        drawn = spans.draw_spans(length, rng, density, mean_span)
        found[tuple(any(start <= i < end for start, end in drawn) for i in range(length))] += 1
    assert set(found) == possible and len(possible) > 1
    chi_squared = sum((count - 400) ** 2 / 400 for count in found.values())
    assert chi_squared < len(possible) + 5 * math.sqrt(2 * len(possible))       # five standard deviations


@given(st.integers(2, 60), st.integers(0, 2**32))
def test_source_and_target_give_the_text_back(length, seed):
    ids, sentinels = list(range(100, 100 + length)), list(range(30))
    hidden, number = spans.how_much(length)
    source, target = spans.corrupt(ids, spans.draw_spans(length, np.random.default_rng(seed)), sentinels)
    assert spans.fill_in(source, spans.read_spans([*target, 99, 5], sentinels, end=99)) == ids
    assert len(source) == length - hidden + number and len(target) == hidden + number + 1
    assert [token for token in source if token < 30] == sentinels[:number]
    assert [token for token in target if token < 30] == sentinels[:number + 1] and target[-1] == sentinels[number]
    assert not any(a < 30 and b < 30 for row in (source, target) for a, b in itertools.pairwise(row))


@pytest.fixture(scope="module")
def tokenizer():
    return BPETokenizer.train("the cat sat on the mat and the dog sat on the cat. " * 9, 290,
                              [spans.PAD, spans.END, *spans.SENTINEL])


def test_the_datasets_pairs_are_of_one_size_and_the_windows_are_fixed(tokenizer):
    tokens = np.array(tokenizer.encode("the dog and the cat sat on the mat. " * 40))
    data, end = spans.SpanDataset(tokens, tokenizer), tokenizer.special_tokens[spans.END]
    hidden, number = spans.how_much(spans.CONTEXT)
    sources, targets = data.batch(3, np.random.default_rng(1))
    assert sources.shape == (3, spans.CONTEXT - hidden + number) and targets.shape == (3, hidden + number + 2)
    assert (targets[:, -1] == end).all() and len({tuple(row) for row in sources.tolist()}) == 3
    texts = []
    for (sources, targets), again in zip(data.windows(4), data.windows(4), strict=True):
        np.testing.assert_array_equal(sources, again[0])
        texts += [spans.fill_in(source, spans.read_spans(target, data.sentinels, end))
                  for source, target in zip(sources.tolist(), targets.tolist())]
    full = len(tokens) // spans.CONTEXT * spans.CONTEXT
    assert np.concatenate(texts).tolist() == tokens[:full].tolist()


def test_a_sentence_with_gaps_is_read_like_a_source(tokenizer):
    first, second = (tokenizer.special_tokens[token] for token in spans.SENTINEL[:2])
    assert spans.read("the ___ sat on___.", tokenizer) == [
        *tokenizer.encode("the"), first, *tokenizer.encode(" sat on"), second, *tokenizer.encode(".")]
    for bad in ("no gap", "___" * 10):
        with pytest.raises(ValueError, match="gaps; write ___ for 1 to 9"):
            spans.read(bad, tokenizer)


# A unigram vocabulary

WORDS = Counter({"▁low": 5, "▁lower": 2, "▁newest": 6, "▁widest": 3, "▁new": 4, "▁": 1})


def all_cuts(word, scores):
    """Every way to cut a word into known pieces, with its probability."""
    if not word:
        yield (), 1.0
    for end in range(1, len(word) + 1):
        if word[:end] in scores:
            for cut, p in all_cuts(word[end:], scores):
                yield (word[:end], *cut), math.exp(scores[word[:end]]) * p


@pytest.mark.parametrize("word", ["▁newest", "▁lower", "l"])
def test_expected_counts_are_those_of_all_cuts(word):
    scores = unigram.seed_scores(WORDS, 100)
    cuts = list(all_cuts(word, scores))
    total = sum(p for _, p in cuts)
    expected = Counter()
    for cut, p in cuts:
        for piece in cut:
            expected[piece] += p / total
    ln_p, used = unigram.expected_counts(word, scores)
    found = Counter()
    for piece, share in used:
        found[piece] += share
    assert len(cuts) > 9 or word == "l"
    assert ln_p == pytest.approx(math.log(total), rel=1e-12)
    assert found == pytest.approx(expected, rel=1e-10)
    best = sorted(cuts, key=lambda pair: -pair[1])[:5]
    ours = unigram.best_cuts(word, scores, 5)
    assert [math.exp(ln_p) for ln_p, _ in ours] == pytest.approx([p for _, p in best], rel=1e-10)
    assert ours[0][1] == best[0][0]


def test_a_long_word_does_not_underflow():
    scores = unigram.normalized({"a": 1, "aa": 1, "b": 10**6})
    ln_p, used = unigram.expected_counts("a" * 3000, scores)
    assert math.isfinite(ln_p) and sum(len(piece) * share for piece, share in used) == pytest.approx(3000)


def test_a_step_of_em_never_lowers_the_likelihood():
    words = unigram.count_words("the cat sat on the mat and the other cat sat there, that is that. " * 3)
    scores, likelihoods = unigram.seed_scores(words, 80), []
    for _ in range(30):
        assert sum(map(math.exp, scores.values())) == pytest.approx(1, rel=1e-12)
        scores, likelihood = unigram.em_step(words, scores)
        likelihoods.append(likelihood)
    assert likelihoods[-1] > likelihoods[0] + 1
    assert all(b >= a - 1e-6 for a, b in itertools.pairwise(likelihoods))     # NEVER costs a little: 1e-9 a piece


def test_a_step_of_em_counts_each_word_as_often_as_it_occurs():
    old = unigram.seed_scores(WORDS, 100)
    new, likelihood = unigram.em_step(WORDS, old)
    expected, ln_p = Counter(), 0
    for word, n in WORDS.items():
        cuts = list(all_cuts(word, old))
        total = sum(p for _, p in cuts)
        ln_p += n * math.log(total)
        for cut, p in cuts:
            expected.update({piece: n * p / total * cut.count(piece) for piece in set(cut)})
    assert likelihood == pytest.approx(ln_p, rel=1e-12)
    used = {piece: count / expected.total() for piece, count in expected.items()}
    assert {piece: math.exp(score) for piece, score in new.items()} == pytest.approx(used, abs=1e-9)


def test_the_seed_saves_most_and_keeps_every_character():
    scores = unigram.seed_scores(WORDS, 14)
    assert len(scores) == 14 and set("▁lowernstid") <= set(scores)
    counts = Counter(word[i:j] for word in WORDS.elements()
                     for i in range(len(word)) for j in range(i + 1, len(word) + 1))
    longer = sorted((n * len(piece) for piece, n in counts.items() if len(piece) > 1), reverse=True)
    assert sorted((counts[p] * len(p) for p in scores if len(p) > 1), reverse=True) == longer[:3]


def test_pruning_takes_what_is_missed_least():
    """One use of "bbb" is dearer to do without than one of "ba", but there are fewer."""
    scores = unigram.normalized({"a": 10, "b": 10, "ab": 30, "ba": 3, "bbb": 1})
    assert set(unigram.prune(scores, 4)) == {"a", "b", "ab", "ba"} and set(unigram.prune(scores, 3)) == {"a", "b", "ab"}
    each = {x: scores[x] - max(math.log(p) for cut, p in all_cuts(x, scores) if len(cut) > 1) for x in ("ba", "bbb")}
    assert each["bbb"] > each["ba"] and each["bbb"] < 3 * each["ba"]
    assert sum(map(math.exp, unigram.prune(scores, 4).values())) == pytest.approx(1)


def test_a_learned_vocabulary_is_a_tokenizer_that_brings_texts_back(tmp_path):
    text = "the cat sat on the mat, and the other cat sat there; that is that. " * 3
    words = unigram.count_words(text)
    *_, (scores, bits) = unigram.learn(words, 40)
    assert len(scores) == 40 and bits < math.log2(len(set("".join(words))))
    tokenizer = unigram.as_tokenizer(scores)
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert isinstance(again, UnigramTokenizer) and again.vocab_size == 41
    for part in (text.strip(), "the mats, that cats net"):
        assert again.decode(again.encode(part)) == part and again.encode(part) == tokenizer.encode(part)
    likeliest = unigram.best_cuts("▁other", scores, 1)[0][1]
    assert tuple(again.tokenize("other")) == likeliest


def test_a_vocabulary_smaller_than_the_alphabet_is_refused():
    with pytest.raises(ValueError, match="size: the text has 11 different characters"):
        next(unigram.learn(WORDS, 10))


# The scripts, run for a moment

@pytest.mark.parametrize("script, arguments, said, picture", [
    ("10_xlnet.py", ["--steps", 2], r"both sides  visible: \d\.\d\d", "runs/xlnet.png"),
    ("11_span_corruption.py", ["--steps", 2, "--sentence", "A ___ is here."], r"A\[.*\] is here", "runs/t5/spans.png"),
    ("12_unigram_vocabulary.py", ["--size", 260, "--word", "class"], "text comes back", "runs/unigram/vocabulary.png"),
])
def test_a_script_runs_to_its_end_and_leaves_a_picture(tmp_path, script, arguments, said, picture):
    assert re.search(said, run(script, *arguments, where=tmp_path))
    assert (tmp_path / picture).stat().st_size > 10_000


@pytest.mark.parametrize("script, arguments, message", [
    ("11_span_corruption.py", ["--sentence", "no gap"], "error: the sentence .* has 0 gaps"),
    ("11_span_corruption.py", ["--resume"], "error: there is no checkpoint in runs/t5"),
    ("12_unigram_vocabulary.py", ["--size", 20], "error: --size: 20 is too small"),
    ("12_unigram_vocabulary.py", ["--word", "☃"], "error: --word: '☃' does not occur"),
])
def test_misuse_is_refused_in_one_sentence(tmp_path, script, arguments, message):
    assert re.match(message, run(script, *arguments, where=tmp_path, code=1))
