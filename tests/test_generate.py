"""Generation: the loop that draws one token after another."""

import warnings

import numpy as np
import pytest

from tinyllm import GPT, GPTConfig, Tensor, generate, manual_seed, no_grad, random, stream

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
    for prompt in ("hello", [0.5, 1.5]):
        with pytest.raises(ValueError, match="the prompt must be token ids, not .*tokenizer.encode"):
            generate(gpt, prompt, 3)
    for copies in (0, -1):
        with pytest.raises(ValueError, match=f"num_return_sequences must be at least 1, not {copies}"):
            generate(gpt, [1], 3, num_return_sequences=copies)
    for length in (dict(max_new_tokens=-1), dict(max_length=-2)):
        with pytest.raises(ValueError, match="generate: max_new_tokens=.* and max_length=.* must not be negative"):
            generate(gpt, [1], **length)
    with pytest.raises(ValueError, match="a seed is a whole number"):
        generate(gpt, [1], 3, seed=-1)
