"""The rules for the next token, each against transformers' own, and all of them in its order."""
import types

import numpy as np
import pytest
import reference_models
import torch
from reference_models import V, theirs_generate
from strategies import normal

from tinyllm import GPT, GPTConfig, generate, manual_seed, ops, warpers
from tinyllm.options import Options
from tinyllm.text import CharTokenizer

library = pytest.importorskip("transformers.generation.logits_process", reason="the reference")

LOGITS = 3 * normal(4, V)
TEXTS = np.random.default_rng(0).integers(0, 6, (4, 12))        # few different tokens: much is repeated


def theirs(processor, logits=LOGITS, texts=TEXTS):
    return processor(torch.tensor(texts), torch.tensor(logits)).numpy()


def equal(found, expected):
    np.testing.assert_array_equal(np.isinf(found), np.isinf(expected))
    np.testing.assert_allclose(found, expected, rtol=1e-15)


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.3, 5.0])
def test_repetition_penalty(penalty):
    equal(warpers.repetition_penalty(LOGITS, TEXTS, penalty),
          theirs(library.RepetitionPenaltyLogitsProcessor(penalty)))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 12, 13, 99])
def test_no_repeat_ngrams(n):
    found = warpers.no_repeat_ngrams(LOGITS, TEXTS, n)
    equal(found, theirs(library.NoRepeatNGramLogitsProcessor(n)))
    assert np.isinf(found).any() == (n < 3)


def test_suppress():
    for tokens in ([3, 7], [3, 7, 999]):
        equal(warpers.suppress(LOGITS, tokens), theirs(library.SuppressTokensLogitsProcessor(tokens)))
    assert (warpers.suppress(LOGITS, [-1, 999]) == LOGITS).all()


@pytest.mark.parametrize("length, stop", [(0, [3]), (12, [3]), (13, [3]), (13, [3, 9])])
def test_minimum_length(length, stop):
    """Of the whole text; counted in new tokens, it is more by the prompt."""
    options = Options(1, min_length=length, stop_tokens=stop).complete(None, 8)
    found = (warpers.warper(options, np.zeros(4, int)) or (lambda logits, texts: logits))(LOGITS, TEXTS)
    equal(found, theirs(library.MinLengthLogitsProcessor(length, stop)))
    options = Options(1, min_new_tokens=max(0, length - 8), stop_tokens=stop, min_length=99).complete(None, 8)
    equal(warpers.warper(options, np.zeros(4, int))(LOGITS, TEXTS),
          theirs(library.MinNewTokensLengthLogitsProcessor(8, max(0, length - 8), stop)))


def test_padding_is_no_part_of_a_text():
    padding = np.array([0, 3, 7, 12 - 1])
    warp = warpers.warper(Options(1, repetition_penalty=2.0, no_repeat_ngram_size=2).complete(None, 12), padding)
    for i, n in enumerate(padding):
        alone = warpers.warper(Options(1, repetition_penalty=2.0, no_repeat_ngram_size=2).complete(None, 12 - n), [0])
        equal(warp(LOGITS, TEXTS)[i:i + 1], alone(LOGITS[i:i + 1], TEXTS[i:i + 1, n:]))
    expected = theirs(library.RepetitionPenaltyLogitsProcessor(2.0, prompt_ignore_length=torch.tensor(padding)))
    equal(warpers.repetition_penalty(LOGITS, warpers.unpadded(TEXTS, padding), 2.0), expected)


def test_rules_write_nothing_that_they_are_given():
    logits, texts = LOGITS.copy(), TEXTS.copy()
    logits.setflags(write=False)
    texts.setflags(write=False)
    for rule in (lambda: warpers.repetition_penalty(logits, texts, 2.0), lambda: warpers.suppress(logits, [1]),
                 lambda: warpers.no_repeat_ngrams(logits, texts, 2)):
        assert (rule() != LOGITS).any()


# The draw

@pytest.mark.parametrize("options", [
    dict(temperature=0.5), dict(temperature=2.5), dict(top_k=5), dict(top_p=0.7), dict(min_p=0.1), dict(min_p=1.0),
    dict(top_k=9, top_p=0.8), dict(top_p=0.5, min_p=0.3), dict(top_p=0.9, min_p=0.05),
    dict(temperature=2.0, top_k=12, top_p=0.9, min_p=0.15)], ids=str)
def test_draws_have_the_distribution_of_transformers(options):
    """Its warpers, in its order; 8,000 draws: which tokens come, and how often, to five standard deviations."""
    scores = torch.tensor(normal(1, V))
    for name, make in (("temperature", library.TemperatureLogitsWarper), ("top_k", library.TopKLogitsWarper),
                       ("top_p", library.TopPLogitsWarper), ("min_p", library.MinPLogitsWarper)):
        scores = make(options[name])(None, scores) if name in options else scores
    p, n = torch.softmax(scores, dim=-1).numpy()[0], 8000
    counts = np.bincount(ops.sample(np.repeat(normal(1, V), n, axis=0), (5, 1), **options), minlength=V)
    assert (counts[p == 0] == 0).all()
    np.testing.assert_array_less(np.abs(counts - n * p), 5 * np.sqrt(n * p * (1 - p)) + 1e-9 + (p == 0))


@pytest.mark.parametrize("min_p", [-0.1, 1.1])
def test_min_p_is_a_share(min_p):
    with pytest.raises(ValueError, match=f"sample: min_p must be a number from 0 to 1, not {min_p}"):
        generate(GPT(GPTConfig(vocab_size=5, n_positions=4, n_embd=4, n_layer=1, n_head=1)), [1], 2, min_p=min_p)


# All of them

RULES = [dict(repetition_penalty=1.5), dict(no_repeat_ngram_size=1), dict(min_length=12), dict(min_new_tokens=9),
         dict(suppress_tokens=[5, 17]),
         dict(repetition_penalty=3.0, no_repeat_ngram_size=2, min_new_tokens=9, suppress_tokens=[5, 17])]


@pytest.mark.parametrize("options", RULES, ids=str)
@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("make", [reference_models.gpt2, reference_models.t5])
def test_texts_under_rules_are_those_of_transformers(make, num_beams, options):
    """In another order the rules give other texts. Beam search applies them to log-probabilities."""
    model, reference = make()
    ids = np.random.default_rng(1).integers(2, V, (8, 3))
    stop = generate(model, ids, 12, temperature=0)[:4, -6].tolist()         # tokens that do come
    how = dict(temperature=0, stop_tokens=stop, pad_token_id=1, num_beams=num_beams)
    text = generate(model, ids, 12, **how, **options)
    expected = theirs_generate(reference, ids, max_new_tokens=12, eos_token_id=stop, pad_token_id=1,
                               num_beams=num_beams, **options)
    np.testing.assert_array_equal(text, expected)
    assert not np.array_equal(text, generate(model, ids, 12, **how))        # the rules matter


def test_rules_that_leave_nothing_are_named():
    manual_seed(0)
    model = GPT(GPTConfig(vocab_size=4, n_positions=9, n_embd=4, n_layer=1, n_head=1))
    with pytest.raises(ValueError, match="generate: the rules .* leave no token as number 4; loosen one"):
        generate(model, [0], 9, no_repeat_ngram_size=1)
    with pytest.raises(ValueError, match="generate: beam search found 0 texts of 1; there are no others, or"):
        generate(model, [0], 9, no_repeat_ngram_size=1, num_beams=2)


# The end of a text

@pytest.mark.parametrize("text, string, completed", [
    ("abcb", "cb", [4]), ("abab", "ab", [2, 4]), ("aaaa", "aa", [2, 3, 4]), ("abc", "x", []), ("aXb", "X", [2])])
def test_a_stop_string_ends_a_text_where_it_is_complete(text, string, completed):
    tokenizer = CharTokenizer("abcxX")
    o = Options(1, stop_strings=string, tokenizer=tokenizer).complete(None, 1)
    ids = np.array(tokenizer.encode(text))
    assert [n for n in range(1, len(ids) + 1) if warpers.ends(o, [ids[:n]])[0]] == completed


def test_a_stop_string_may_lie_within_tokens_and_across_them():
    """Pieces of several characters and half characters: wherever the text so far has one more of the string."""
    pieces = ["ab".encode(), b"b", b"a", "é".encode()[:1], "é".encode()[1:], b"xab!", b"\n\n"]
    decode = lambda ids: b"".join(pieces[i] for i in ids).decode("utf-8", errors="replace")
    rng = np.random.default_rng(0)
    for string in ("ba", "é", "\n\n", "éab", "b\n"):
        o = Options(1, stop_strings=[string, "never"], tokenizer=types.SimpleNamespace(decode=decode)).complete(None, 1)
        for _ in range(6):
            ids = rng.integers(0, len(pieces), 12)
            overlapping = lambda n: sum(decode(ids[:n])[i:].startswith(string) for i in range(99))
            for n in range(1, len(ids) + 1):
                assert warpers.ends(o, [ids[:n]])[0] == (overlapping(n) > overlapping(n - 1)), (string, ids[:n])
