"""Beam search: the texts that transformers finds, the best of all texts where there are few, and no change by a cache,
a batch, padding, or the path.
"""
import itertools

import numpy as np
import pytest
import reference_models
from reference_models import V, theirs_generate

import tinyllm
from tinyllm import GPT, GPTConfig, generate, manual_seed, nn, stream
from tinyllm.beam import Beams
from tinyllm.generate import Reader, _write
from tinyllm.options import Options

PROMPTS = np.random.default_rng(0).integers(2, V, (3, 4))
STOP = [3, 9, 17]               # do come
KINDS = {
    "gpt": lambda: GPT(GPTConfig(vocab_size=V, n_positions=16, n_embd=16, n_layer=2, n_head=2, initializer_range=0.5)),
    "llama": lambda: GPT(GPTConfig(vocab_size=V, n_positions=16, n_embd=16, n_layer=1, n_head=4, n_kv_head=2,
                                   norm="rms_norm", position="rotary", mlp="swiglu", initializer_range=0.5)),
    "transformer-lm": lambda: tinyllm.TransformerLM(tinyllm.TransformerLMConfig(
        vocab_size=V, d_model=16, nhead=2, dim_feedforward=24, num_layers=2, n_positions=16)),
    "lstm": lambda: tinyllm.LSTMLM(tinyllm.RNNConfig(vocab_size=V, n_positions=16, n_embd=16, n_hidden=16)),
    "rnn": lambda: tinyllm.RNNLM(tinyllm.RNNConfig(vocab_size=V, n_positions=16, n_embd=16, n_hidden=16)),
    "gru": lambda: tinyllm.GRULM(tinyllm.RNNConfig(vocab_size=V, n_positions=16, n_embd=16, n_hidden=16)),
    "n-gram": lambda: tinyllm.NGram(tinyllm.NGramConfig(vocab_size=V, order=4)).fit(
        np.random.default_rng(0).choice([2, 4, 5, 9], 300)),
    "seq2seq": lambda: tinyllm.Seq2Seq(tinyllm.Seq2SeqConfig(
        vocab_size=V, d_model=16, nhead=2, dim_feedforward=24, num_encoder_layers=1, num_decoder_layers=2)),
    "t5": lambda: tinyllm.T5(tinyllm.T5Config(
        vocab_size=V, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, tie_word_embeddings=False)),
}


def make(kind, where="numpy", dtype=np.float64):
    """A model in float64, so that rounding decides nothing; an n-gram model has no parameters to convert."""
    manual_seed(7)
    return KINDS[kind]().to(where, dtype)


@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0, 2.0])
@pytest.mark.parametrize("early_stopping", [True, False, "never"])
@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_the_texts_are_those_of_transformers(name, early_stopping, length_penalty):
    """Batches, with padded sources for T5; some texts end, others do not; one stop token, several, many, none."""
    model, reference = getattr(reference_models, name)()
    prompts, mask = PROMPTS.copy(), np.ones((3, 4), bool)
    if name == "t5":
        mask = np.arange(4) < np.array([4, 2, 3])[:, None]
        prompts[~mask] = 0
    ended = 0
    for num_beams, stop, n in ((2, STOP[:1], 1), (3, STOP, 2), (4, STOP, 4), (3, range(8, 20), 1), (3, [], 3)):
        options = dict(max_new_tokens=8, num_beams=num_beams, length_penalty=length_penalty,
                       early_stopping=early_stopping, num_return_sequences=n)
        texts = generate(model, prompts, stop_tokens=stop, pad_token_id=1, **options)
        expected = theirs_generate(reference, prompts, mask, eos_token_id=list(stop) or None, pad_token_id=1, **options)
        np.testing.assert_array_equal(texts, expected)
        ended += np.isin(texts[:, -8:], stop).any(axis=1).sum()
    assert 0 < ended < 33


def test_prompts_of_different_lengths_as_in_transformers():
    model, reference = reference_models.gpt2()
    padded = PROMPTS.copy()
    padded[1, :2] = padded[2, :1] = 1
    mask = padded != 1
    options = dict(max_new_tokens=7, num_beams=3, num_return_sequences=2, pad_token_id=1)
    texts = generate(model, [row[some].tolist() for row, some in zip(padded, mask)], stop_tokens=STOP, **options)
    np.testing.assert_array_equal(texts, theirs_generate(reference, padded, mask, eos_token_id=STOP, **options))


def test_with_beams_enough_for_all_texts_it_finds_the_best():
    """All 3 + 9 texts of two tokens, or fewer that end in 0, scored one by one."""
    manual_seed(2)
    model = GPT(GPTConfig(vocab_size=4, n_positions=8, n_embd=8, n_layer=1, n_head=1, initializer_range=0.5))
    model.to("numpy", np.float64).eval()
    for length_penalty in (0.0, 1.0, 3.0):
        scores = {}
        for tokens in itertools.product(range(4), repeat=3):
            tokens = tokens[:tokens.index(0) + 1] if 0 in tokens else tokens
            text = np.array([[1, 2, *tokens]])
            loss = model.loss(text[:, :-1], text[:, 1:], reduction="none").numpy()[0, 1:].sum()
            scores[tokens] = -loss / len(tokens)**length_penalty
        best = sorted(scores, key=scores.get, reverse=True)[:5]
        texts = generate(model, [1, 2], 3, num_beams=16, num_return_sequences=5, length_penalty=length_penalty,
                         early_stopping="never", stop_tokens=0, pad_token_id=3)
        for text, tokens in zip(texts, best):
            assert text[2:].tolist() == [*tokens, *[3] * (texts.shape[1] - 2 - len(tokens))]


def test_one_beam_is_greedy():
    model = make("gpt")
    stop = [0, 13]
    greedy = generate(model, PROMPTS, 8, temperature=0, stop_tokens=stop, pad_token_id=1)
    o, padding = Options(8, stop_tokens=stop, pad_token_id=1).complete(model.config, 4), np.zeros(3, int)
    beams = Beams(o, padding, steps=8)
    list(_write(model, Reader(model, padding, 16, 12, True), beams, PROMPTS, 8))
    np.testing.assert_array_equal(beams.texts(), greedy)
    assert np.isin(greedy[:, 4:], stop).any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_a_batch_and_padding_change_nothing(kind):
    """Each prompt alone without a cache, and all together with one; beams cross, so that the cache is reordered."""
    model = make(kind, dtype=None if kind == "n-gram" else np.float64)
    prompts = [PROMPTS[0].tolist(), PROMPTS[1, 2:].tolist(), PROMPTS[2, :1].tolist()]
    how = dict(max_new_tokens=7, num_beams=3, num_return_sequences=2, stop_tokens=STOP, pad_token_id=0)
    together = generate(model, prompts, **how)
    for i, prompt in enumerate(prompts):
        alone = generate(model, [prompt], use_cache=False, **how)
        start = 4 - len(prompt) if not hasattr(model, "read_source") else 0
        both = together[2 * i:2 * i + 2, start:]
        np.testing.assert_array_equal(both[:, :alone.shape[1]], alone)
        assert (both[:, alone.shape[1]:] == 0).all()


def test_beams_beyond_the_context():
    model = make("gpt")
    with pytest.warns(UserWarning, match="outgrown the context of 16 tokens"):
        texts = [generate(model, PROMPTS, 20, num_beams=3, use_cache=use) for use in (True, False)]
    np.testing.assert_array_equal(*texts)
    assert texts[0].shape == (3, 24)


@pytest.mark.parametrize("kind", ["gpt", "t5", "lstm"])
def test_both_paths_find_the_same_texts(kind):
    pytest.importorskip("triton", reason="the Triton path needs triton, which exists for Linux only")
    texts = [generate(make(kind, where, None), [[5, 6, 7], [8, 9]], 4, num_beams=2, num_return_sequences=2,
                      stop_tokens=STOP, pad_token_id=0, repetition_penalty=1.2) for where in ("numpy", "triton")]
    np.testing.assert_array_equal(*texts)


@pytest.mark.parametrize("where", ["numpy", "triton"])
def test_reordering_a_cache(where):
    if where == "triton":
        pytest.importorskip("triton", reason="the Triton path needs triton, which exists for Linux only")
    like = tinyllm.Tensor(np.zeros(1, np.float32)).to(where)
    cache, k = nn.KVCache(4, 5, 1, 2, like.data), np.arange(24, dtype=np.float32).reshape(4, 3, 1, 2)
    put = lambda array: tinyllm.Tensor(array).to(where)
    cache.append(put(k), put(-k))
    rows = np.array([2, 0, 2, 3])
    cache.reorder(rows)
    keys, values = cache.append(put(k[:, :1]), put(k[:, :1]))
    np.testing.assert_array_equal(keys.numpy(), np.concatenate([k[rows], k[:, :1]], axis=1))
    np.testing.assert_array_equal(values.numpy(), np.concatenate([-k[rows], k[:, :1]], axis=1))


def test_what_is_forbidden_is_not_found():
    """After 1, tokens 1 and 2 can follow each other for four tokens in two ways without a pair coming twice; then 0."""
    manual_seed(1)
    model = GPT(GPTConfig(vocab_size=3, n_positions=9, n_embd=4, n_layer=1, n_head=1, initializer_range=0.5))
    how = dict(num_beams=4, no_repeat_ngram_size=2, stop_tokens=0, min_new_tokens=4)
    texts = generate(model, [1], 8, num_return_sequences=2, **how)
    assert sorted(texts.tolist()) == [[1, 1, 2, 2, 1, 0], [1, 2, 2, 1, 1, 0]]
    with pytest.raises(ValueError, match="beam search found 2 texts of 3; there are no others, or the rules"):
        generate(model, [1], 8, num_return_sequences=3, **how)


def test_no_token_at_all():
    texts = generate(make("gpt"), PROMPTS, 0, num_beams=3, num_return_sequences=2)
    np.testing.assert_array_equal(texts, np.repeat(PROMPTS, 2, axis=0))


@pytest.mark.parametrize("options, message", [
    (dict(num_beams=0), "num_beams must be at least 1, not 0, and a whole number"),
    (dict(num_beams=1.5), "num_beams must be at least 1, not 1.5, and a whole number"),
    (dict(num_beams=2, num_return_sequences=3), "num_return_sequences=3 is more than num_beams=2; beam search keeps"),
    (dict(num_beams=2, top_k=5, top_p=0.9), "beam search draws nothing, so top_k and top_p would do nothing"),
    (dict(num_beams=2, temperature=0.8), "beam search draws nothing, so temperature would"),
    (dict(num_beams=2, early_stopping="soon"), 'early_stopping must be True, False or "never", not \'soon\''),
    (dict(length_penalty=2.0), "length_penalty and early_stopping belong to beam search; add num_beams=2 or more"),
    (dict(early_stopping=True), "length_penalty and early_stopping belong to beam search"),
])
def test_wrong_options_are_explained(options, message):
    with pytest.raises(ValueError, match="generate: " + message):
        generate(make("gpt"), [1], 3, **options)


def test_beams_cannot_be_streamed():
    with pytest.raises(ValueError, match="beam search knows its text only at the end.*use generate"):
        stream(make("gpt"), [1], 3, num_beams=2)
