"""Generation: the loop that draws one token after another."""

import warnings

import numpy as np
import pytest
import reference_models
from test_beams import KINDS, make

from tinyllm import BERT, GPT, BERTConfig, GPTConfig, Tensor, generate, manual_seed, no_grad, random, stream
from tinyllm.text import CharTokenizer

V = 11


def model(n_positions=8, **changes):
    """Wide initial weights, so that the logits differ clearly; float64, so that rounding decides nothing."""
    manual_seed(5)
    shape = dict(vocab_size=V, n_positions=n_positions, n_embd=16, n_layer=2, n_head=2, initializer_range=0.4)
    return GPT(GPTConfig(**{**shape, **changes})).to("numpy", np.float64)


def quiet(*args, **options):
    """generate(), where outgrowing the context is expected."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return generate(*args, **options)


def prompts(length, batch=2):
    return np.random.default_rng(length).integers(0, V, (batch, length))


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
    with no_grad():
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
    with pytest.warns(UserWarning, match="outgrown the context of 8 tokens.*last 4 to 8") as caught:
        generate(gpt, prompts(3), 30)
    assert len(caught) == 1
    printed = warnings.formatwarning(caught[0].message, caught[0].category, caught[0].filename, caught[0].lineno)
    assert printed.count("\n") == 1 and len(printed) < 140


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


def test_without_a_seed_every_text_is_another_and_the_global_seed_decides_them():
    gpt, texts = model(), []
    for seed in (1, 1, 2):
        manual_seed(seed)
        texts.append([generate(gpt, [1], 7).tolist() for _ in range(2)])
    assert texts[0] == texts[1] != texts[2] and texts[0][0] != texts[0][1]
    manual_seed(1)
    assert [[[1, *(int(new[0]) for new in stream(gpt, [1], 7))]]] == texts[0][:1]


def test_with_a_seed_generation_leaves_the_random_state_alone():
    gpt, before = model(), random.get_state()
    generate(gpt, [1], 3, seed=0)
    assert random.get_state() == before


def test_samples_of_one_prompt_differ_from_the_first_token_on():
    firsts = generate(model(), [1], 1, temperature=3.0, num_return_sequences=20)[:, 1]
    assert len(set(firsts.tolist())) > 3


def test_prompts_may_be_lists_or_tensors_and_lengths_totals():
    gpt = model()
    text = generate(gpt, [1, 2], 3, temperature=0)
    np.testing.assert_array_equal(generate(gpt, Tensor(np.array([1, 2])), 3, temperature=0), text)
    np.testing.assert_array_equal(generate(gpt, [[1, 2]], max_length=5, temperature=0), text)
    assert generate(gpt, [1, 2], max_length=1).tolist() == [[1, 2]] == generate(gpt, [1, 2], 0).tolist()


def test_a_stop_token_ends_the_text():
    gpt, ids = model(), prompts(2, batch=1)
    free = generate(gpt, ids, 6, seed=3)[0, 2:].tolist()
    stop = free[2]
    expected = free[: free.index(stop) + 1]
    for tokens in ([stop], {stop}, (stop,), stop, np.int64(stop)):
        assert generate(gpt, ids, 6, seed=3, stop_tokens=tokens)[0, 2:].tolist() == expected


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
    assert all(part.training == training for part in gpt.modules())
    with pytest.raises(IndexError):
        generate(gpt, [V], 2)
    assert all(part.training == training for part in gpt.modules())


def test_no_dropout_while_streams_of_one_model_take_turns():
    gpt = model(16, embd_pdrop=0.5, attn_pdrop=0.5, resid_pdrop=0.5).train()
    alone = np.stack(list(stream(gpt, [1, 2], 8, temperature=0)))
    first, second = (stream(gpt, prompt, 8, temperature=0) for prompt in ([3], [1, 2]))
    next(first)
    text = [next(second)]
    first.close()
    np.testing.assert_array_equal(np.stack([*text, *second]), alone)
    assert gpt.training and gpt.drop.training


def test_wrong_requests_are_explained():
    gpt = model()
    with pytest.raises(ValueError, match="max_new_tokens or max_length"):
        generate(gpt, [1])
    with pytest.raises(ValueError, match="T at least 1"):
        generate(gpt, [], 3)
    with pytest.raises(ValueError, match=r"not \(1, 1, 1\)"):
        generate(gpt, [[[1]]], 3)
    for prompt in ("hello", [0.5, 1.5]):
        with pytest.raises(ValueError, match="the prompt must be token ids, not .*tokenizer.encode"):
            generate(gpt, prompt, 3)
    for name, ids in (("stop_tokens", "a"), ("suppress_tokens", "ab"), ("stop_tokens", [1.5])):
        with pytest.raises(ValueError, match=f"generate: {name} must be token ids, not .*encode"):
            generate(gpt, [1], 3, **{name: ids})
    assert 0 not in generate(gpt, [1], 8, suppress_tokens=0, seed=1)
    for copies in (0, -1):
        with pytest.raises(ValueError, match=f"num_return_sequences must be at least 1, not {copies}"):
            generate(gpt, [1], 3, num_return_sequences=copies)
    for length in (dict(max_new_tokens=-1), dict(max_length=-2)):
        with pytest.raises(ValueError, match="generate: max_new_tokens=.* and max_length=.* must not be negative"):
            generate(gpt, [1], **length)
    with pytest.raises(ValueError, match="a seed is a whole number"):
        generate(gpt, [1], 3, seed=-1)


# As transformers does

@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
@pytest.mark.parametrize("stop", [[], [3, 9, 17]], ids=["endless", "with ends"])
def test_greedy_texts_are_those_of_transformers(name, stop):
    """With prompts of different lengths: padding on the left, for T5's source on the right."""
    model, reference = getattr(reference_models, name)()
    padded = np.random.default_rng(0).integers(2, 23, (4, 6))
    mask = np.arange(6) < np.array([6, 3, 1, 5])[:, None] if name == "t5" else np.arange(6) >= [[0], [3], [5], [1]]
    padded[~mask] = 0
    text = generate(model, [row[some].tolist() for row, some in zip(padded, mask)], 10, temperature=0, stop_tokens=stop,
                    pad_token_id=0)
    expected = reference_models.theirs_generate(reference, padded, mask, max_new_tokens=10, pad_token_id=0,
                                                eos_token_id=stop or None)
    np.testing.assert_array_equal(text, expected)
    assert np.isin(text[:, -10:], stop).any() == bool(stop)


@pytest.mark.parametrize("name", ["gpt2", "t5"])
@pytest.mark.parametrize("lengths", [dict(max_length=7), dict(max_new_tokens=4), dict(max_length=3, max_new_tokens=5),
                                     dict(max_length=12, min_length=9), dict(max_length=12, min_new_tokens=7),
                                     dict(max_length=12, min_new_tokens=6, min_length=11)], ids=str)
def test_lengths_are_counted_as_in_transformers(name, lengths):
    """With its prompt for a GPT, with the start token for T5; new tokens win over lengths."""
    model, reference = getattr(reference_models, name)()
    ids = np.random.default_rng(3).integers(2, 23, (2, 3))
    stop = np.unique(generate(model, ids, 10, temperature=0)[:, 5:]).tolist()       # ends early unless held back
    text = generate(model, ids, temperature=0, stop_tokens=stop, pad_token_id=0, **lengths)
    expected = reference_models.theirs_generate(reference, ids, eos_token_id=stop, pad_token_id=0, **lengths)
    np.testing.assert_array_equal(text, expected)


# Prompts of different lengths

@pytest.mark.parametrize("kind", KINDS)
def test_padding_is_not_there(kind):
    """Each prompt writes what it writes alone. Long prompts do not fit into the context of 16 tokens from the first
    token on, and the texts of all, those of encoder-decoders aside, outgrow it at different times.
    """
    new = 6 if kind in ("seq2seq", "t5") else 40
    model = make(kind, dtype=None if kind == "n-gram" else np.float64)
    prompts = [np.random.default_rng(i).integers(1, 23, n) for i, n in enumerate((3, 19, 1, 7, 7, 2))]
    for use_cache in (True, False):
        text = quiet(model, prompts, new, temperature=0, pad_token_id=0, use_cache=use_cache, stop_tokens=())
        for row, prompt in zip(text, prompts):
            alone = quiet(model, prompt, new, temperature=0, stop_tokens=())[0]
            assert row[-new:].tolist() == alone[-new:].tolist()
            assert hasattr(model, "read_source") or row.tolist() == [0] * (19 - len(prompt)) + alone.tolist()


def test_samples_of_padded_prompts_are_the_same_too():
    """Noise depends on the row: row 0 and its copies draw as they do alone."""
    gpt = model(16)
    text = generate(gpt, [[1, 2], [3, 4, 5, 6]], 6, seed=3, num_return_sequences=2, pad_token_id=0)
    np.testing.assert_array_equal(text[:2, 2:], generate(gpt, [1, 2], 6, seed=3, num_return_sequences=2))
    assert (text[:2, :2] == 0).all() and (text[2:, :4] == [3, 4, 5, 6]).all()


def test_both_paths_write_the_same_behind_padding():
    pytest.importorskip("triton", reason="the Triton path needs triton, which exists for Linux only")
    for kind in ("llama", "transformer-lm", "lstm", "seq2seq"):
        texts = [generate(make(kind, where, None), [[5, 6, 7], [8]], 4, temperature=0.7, top_p=0.9, min_p=0.01, seed=2,
                          no_repeat_ngram_size=2, pad_token_id=0) for where in ("numpy", "triton")]
        np.testing.assert_array_equal(*texts, err_msg=kind)


# Ends

def test_a_text_ends_with_its_stop_string():
    """A batch of samples: each ends where its string is complete, also if that began in the prompt."""
    gpt, tokenizer = model(64), CharTokenizer("abcdefghijk"[:V])
    how = dict(max_new_tokens=30, seed=1, num_return_sequences=8, temperature=1.5)
    free = [tokenizer.decode(row) for row in generate(gpt, [3, 4], **how)]
    common = free[0][1:3]                           # starts within the prompt
    strings = [common, free[1][9:11], free[2][4:7]]
    text = generate(gpt, [3, 4], **how, stop_strings=strings, tokenizer=tokenizer, pad_token_id=0)
    for row, whole in zip(text, free):
        end = min([whole.find(s, 3 - len(s)) + len(s) for s in strings if whole.find(s, 3 - len(s)) >= 0] + [32])
        written = tokenizer.decode(row)
        assert written == (whole[:end] + "a" * 32)[:len(written)]
    assert text.shape[1] <= 32 and free[0][1:3] == common
    one = generate(gpt, [3, 4], 30, seed=1, temperature=1.5, stop_strings=common, tokenizer=tokenizer)
    assert one.shape == (1, 3)


def test_an_encoder_decoder_ends_with_its_own_token():
    """Unless told otherwise; texts that are over are filled up with its padding, in a stream as well."""
    t5, _ = reference_models.t5()
    t5.config.eos_token_id = end = 2                # which does come
    source = np.random.default_rng(0).integers(2, 23, (40, 4))
    free = generate(t5, source, 12, temperature=0, stop_tokens=())
    text = generate(t5, source, 12, temperature=0)
    ends = [row.tolist().index(end) if end in row else 13 for row in free]
    assert min(ends) < 12
    for row, whole, n in zip(text, free, ends):
        assert row.tolist() == (whole[:n + 1].tolist() + [0] * 13)[:len(row)]
    np.testing.assert_array_equal(np.stack(list(stream(t5, source, 12, temperature=0)), axis=1), text[:, 1:])


def test_a_published_model_ends_with_what_its_config_json_says():
    """GPTConfig has no eos_token_id."""
    gpt = model(64)
    free = generate(gpt, [3], 20, seed=1)[0].tolist()
    end = free[4]
    gpt.settings = {"eos_token_id": [end]}
    assert generate(gpt, [3], 20, seed=1)[0].tolist() == free[:free.index(end, 1) + 1]
    assert generate(gpt, [3], 20, seed=1, stop_tokens=())[0].tolist() == free


@pytest.mark.parametrize("options, message", [
    (dict(repetition_penalty=0), "repetition_penalty must be above 0, not 0"),
    (dict(no_repeat_ngram_size=-1), "no_repeat_ngram_size must be at least 0, not -1"),
    (dict(min_length=5), "min_length and min_new_tokens keep stop tokens away, and there are none; add stop_tokens"),
    (dict(min_new_tokens=-2), "min_new_tokens must be at least 0, not -2"),
    (dict(stop_strings="x"), "stop_strings needs tokenizer=..., to read what the model writes"),
    (dict(stop_strings=["x", ""], tokenizer=CharTokenizer("x")), "an empty stop string would end every text at once"),
])
def test_wrong_options_are_explained_before_anything_is_computed(options, message):
    with pytest.raises(ValueError, match="generate: " + message):
        stream(model(), [1], 3, **options)


@pytest.mark.parametrize("beams", [1, 2])
def test_damaged_weights_write_nothing(beams):
    gpt = model()
    gpt.h[1].mlp.c_fc.weight.data[3] = np.nan
    with pytest.raises(FloatingPointError, match="the model's logits are NaN, no numbers; its weights are damaged"):
        generate(gpt, [1, 2], 3, num_beams=beams)


def test_prompts_and_models_that_do_not_fit_are_explained():
    with pytest.raises(ValueError, match="the prompts have different lengths; say what shall fill them up"):
        generate(model(), [[1, 2], [3]], 2)
    with pytest.raises(ValueError, match=r"T at least 1, not \(0,\)"):
        generate(model(), [[1, 2], []], 2)
    for pad in (-1, V):
        with pytest.raises(ValueError, match=f"pad_token_id={pad} is no token of this model; any from 0 to {V - 1}"):
            generate(model(), [[1, 2], [3]], 2, pad_token_id=pad)
    with pytest.raises(ValueError, match="the prompt must be token ids, not float64"):
        generate(model(), [[1, 2], [0.5]], 2)
    with pytest.raises(ValueError, match="top_p above 0 and at most 1; got .*top_p=2"):
        generate(model(), [1], 2, top_p=2)
    bert = BERT(BERTConfig(vocab_size=5, hidden_size=4, num_hidden_layers=1, num_attention_heads=1))
    with pytest.raises(ValueError, match=r"BERT has no next_logits\(\), so it cannot write"):
        generate(bert, [1], 2)
