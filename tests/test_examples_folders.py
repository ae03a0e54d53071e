"""Examples 5 and 13 to 15 on published folders and on checkpoints: they print what transformers computes."""
import importlib
import re
import runpy
import shutil
import sys

import numpy as np
import pytest
from example_folders import (  # published and trained are fixtures
    CONTEXT,
    PROMPT,
    SENTENCES,
    published,  # noqa: F401
    their_logp,
    theirs,
    torch,
    trained,  # noqa: F401
    written,
)
from reference_folders import change_settings
from test_examples import EXAMPLES, run

import tinyllm
from tinyllm import checkpoint, optim, train
from tinyllm.text import TokenDataset, WordPieceTokenizer, default_corpus


@pytest.fixture
def printed(monkeypatch, capsys, tmp_path):
    """printed(script, *arguments, where=folder): what a script prints, run in this process; pictures go to tmp_path."""
    def call(script, *arguments, where=tmp_path):
        out = [] if script.startswith("5") or "--out" in arguments else ["--out", tmp_path / "picture.png"]
        monkeypatch.chdir(where)
        monkeypatch.setattr(sys, "argv", [script, *map(str, [*arguments, *out])])
        capsys.readouterr()
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
        assert not out or (tmp_path / "picture.png").stat().st_size > 1000
        return capsys.readouterr().out
    return call


# 5: writing

@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
@pytest.mark.parametrize("flags, options", [
    (["--temperature", 0, "--copies", 1], {}),
    (["--num-beams", 3, "--copies", 2, "--length-penalty", 0.5, "--early-stopping", "--no-repeat-ngram-size", 2],
     {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.5, "early_stopping": True,
      "no_repeat_ngram_size": 2}),
    (["--temperature", 0, "--copies", 1, "--repetition-penalty", 1.5, "--min-new-tokens", 8],
     {"repetition_penalty": 1.5, "min_new_tokens": 8})], ids=["greedy", "beams", "rules"])
def test_the_written_text_is_that_of_transformers(name, flags, options, published, printed):
    model, tokenizer = theirs(published / name)
    source = tokenizer(PROMPT, return_tensors="pt", return_token_type_ids=False)
    rows = model.generate(**source, max_new_tokens=12, do_sample=False, pad_token_id=0, **options)
    seen = [0] if name == "t5" else source.input_ids[0].tolist()
    texts = list(written(rows, seen, published / name, tokenizer))
    texts = [text.removeprefix(tokenizer.decode(seen)).removeprefix(" " * (name == "t5")) for text in texts]
    out = printed("5_sample.py", published / name, "--prompt", PROMPT, "--tokens", 12, *flags)
    beginning = "" if name == "t5" else PROMPT
    expected = [f"--- text {i + 1}\n" * (len(texts) > 1) + beginning + text for i, text in enumerate(texts)]
    assert out == "".join(text + "\n" for text in expected) and any(texts)


def test_a_published_model_writes_three_continuations_by_default(published, printed):
    model, tokenizer = tinyllm.load(published / "gpt2")
    ids = tinyllm.model_input(model, tokenizer, "The")
    with pytest.warns(UserWarning, match="outgrown"):
        rows = tinyllm.generate(model, ids, 50, top_k=50, top_p=0.95, num_return_sequences=3, seed=0,
                                stop_tokens=model.settings["eos_token_id"])
    out = printed("5_sample.py", published / "gpt2", "--prompt", "The")     # says so before it begins: no warning
    texts = written(rows, ids, published / "gpt2", tokenizer)
    assert out == "".join(f"--- text {i + 1}\n{text}\n" for i, text in enumerate(texts))


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_a_stop_token_ends_each_text_and_is_not_shown(name, published, printed, tmp_path):
    model, tokenizer = tinyllm.load(published / name)
    ids = tinyllm.model_input(model, tokenizer, "The")
    rows = tinyllm.generate(model, ids, 12, num_return_sequences=3, seed=2, stop_tokens=[])
    rows = rows[:, 1:] if name == "t5" else rows        # without the start token
    seen = [] if name == "t5" else ids
    shutil.copytree(published / name, tmp_path / name)
    change_settings(tmp_path / name, eos_token_id=int(rows[1, len(seen) + 5]))
    out = printed("5_sample.py", tmp_path / name, "--prompt", "The", "--tokens", 12, "--seed", 2, "--copies", 3,
                  "--temperature", 1, "--top-k", 0, "--top-p", 1)
    texts = list(written(rows, seen, tmp_path / name, tokenizer))
    assert out == "".join(f"--- text {i + 1}\n{text}\n" for i, text in enumerate(texts))
    assert len(texts[1]) < len(list(written(rows, seen, published / name, tokenizer))[1])


def test_the_first_word_behind_a_prompt_keeps_its_space(tmp_path, printed):
    words = WordPieceTokenizer.train(" ".join(SENTENCES), 60)
    model = tinyllm.GPT(tinyllm.GPTConfig.preset("nano", vocab_size=words.vocab_size))
    checkpoint.save(tmp_path / "words", model, optim.AdamW(model.parameters()), {"step": 1}, words)
    row, = tinyllm.generate(model, words.encode("the list"), 5, seed=0, temperature=0.8)
    out = printed("5_sample.py", "words", "--prompt", "the list", "--tokens", 5)
    assert out == words.decode(row) + "\n" and out[8] == " "


def test_a_stop_string_ends_each_text_where_it_first_comes(trained, printed):
    flags = ["--prompt", "e", "--copies", 4, "--tokens", 30, "--temperature", 3, "--seed", 3]
    split = lambda out: re.split(r"--- text \d\n", out)[1:]
    free = split(printed("5_sample.py", *flags, where=trained))
    assert len(free) == 4
    stop = free[0][9:11]
    for text, whole in zip(split(printed("5_sample.py", *flags, "--stop", stop, where=trained)), free):
        end = whole.find(stop) + 2 if stop in whole else len(whole)
        assert text == whole[:end] + "\n" * (stop in whole)


def test_int8_is_written_with_and_its_cost_printed(published, monkeypatch, printed):
    model, tokenizer = tinyllm.load(published / "gpt2")
    small, ids = tinyllm.quantized(model), tokenizer.encode("The")
    row = tinyllm.generate(small, ids, 12, temperature=0, stop_tokens=model.settings["eos_token_id"])[0]
    text, = written([row], ids, published / "gpt2", tokenizer)
    monkeypatch.setattr(sys, "stderr", sys.stdout)
    out = printed("5_sample.py", published / "gpt2", "--prompt", "The", "--tokens", 12, "--temperature", 0, "--copies",
                  1, "--int8")
    assert f"\n{text}\n" in out
    ids = np.array([tokenizer.encode(default_corpus()[-10_000:])[-CONTEXT - 1:]])
    after, before = (np.exp(m.loss(ids[:, :-1], ids[:, 1:]).item()) for m in (small, model))
    assert f"int8: a perplexity of {after:.3f} instead of {before:.3f} on 40 tokens" in out and after != before


def test_int8_of_an_encoder_decoder_is_judged_by_its_own_answer(published, monkeypatch, printed):
    model, tokenizer = tinyllm.load(published / "t5")
    source = np.array([tinyllm.model_input(model, tokenizer, "The")])
    answer = tinyllm.generate(model, source, 50, temperature=0, stop_tokens=model.settings["eos_token_id"])[:, 1:]
    before, after = map(np.exp, tinyllm.quantize.losses(model, source, answer))
    monkeypatch.setattr(sys, "stderr", sys.stdout)
    out = printed("5_sample.py", published / "t5", "--prompt", "The", "--tokens", 3, "--int8")
    assert f"int8: a perplexity of {after:.3f} instead of {before:.3f} on {answer.size} tokens that it answers" in out


def test_lengths_and_tokens_can_be_asked_for(published, printed):
    """--max-length counts the prompt; --stop-tokens and --suppress-tokens take ids."""
    model, tokenizer = tinyllm.load(published / "gpt2")
    ids = tokenizer.encode("The")
    how = dict(temperature=0, min_length=len(ids) + 2, suppress_tokens=[3, 4])
    free = tinyllm.generate(model, ids, max_length=len(ids) + 8, stop_tokens=(), **how | {"min_length": 0})[0]
    end = int(free[-3])
    row = tinyllm.generate(model, ids, max_length=len(ids) + 8, stop_tokens=[end], **how)[0]
    text, = written([row], ids, published / "gpt2", tokenizer)
    out = printed("5_sample.py", published / "gpt2", "--prompt", "The", "--temperature", 0, "--copies", 1,
                  "--max-length", len(ids) + 8, "--min-length", len(ids) + 2, "--suppress-tokens", 3, 4,
                  "--stop-tokens", end)
    assert out == text.removesuffix(tokenizer.decode([end])) + "\n" and len(row) < len(free)


def test_both_paths_write_the_same(trained, printed):
    """On the GPU, or in Triton's interpreter."""
    pytest.importorskip("triton", reason="the Triton path needs triton, which exists for Linux only")
    flags = ["--prompt", "The", "--tokens", 4, "--copies", 2, "--seed", 5]
    numpy, triton = (printed("5_sample.py", *flags, "--backend", name, where=trained) for name in ("numpy", "triton"))
    assert numpy == triton


# 13: a prompt

@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_probabilities_are_the_softmax_of_transformers_logits(name, published, printed):
    model, tokenizer = theirs(published / name)
    ids = tokenizer(PROMPT).input_ids
    logp = their_logp(model, ids)
    out = printed("13_look_at_a_prompt.py", published / name, "--prompt", PROMPT, "--layer", 2)
    row = r"^ +(\d+) +(\d+) +(?:(\d+)-(\d+))? +(b?'.*'|\".*\")(?: +([\d.]+)% +([\d.]+))?"
    rows = re.findall(row, out, re.MULTILINE)
    assert [int(row[1]) for row in rows] == ids
    for t, (_, i, start, end, token, share, bits) in enumerate(rows):
        if start and not token.startswith("b"):
            assert token == repr(PROMPT[int(start):int(end)])
        if t:
            np.testing.assert_allclose(float(share) / 100, np.exp(logp[t - 1, int(i)]), atol=1e-6)
            np.testing.assert_allclose(float(bits), -logp[t - 1, int(i)] / np.log(2), atol=0.006)
    assert (rows[0][2] == "") == (name == "llama")              # a token in front of the text has no span
    mean = -np.mean([logp[t, i] for t, i in enumerate(ids[1:])])
    assert float(re.search(r"a perplexity of ([\d.]+):", out)[1]) == pytest.approx(np.exp(mean), rel=1e-4)
    following = re.findall(r"^  .* ([\d.]+)%", out.split("What comes next")[1], re.MULTILINE)
    np.testing.assert_allclose(np.array(following, float) / 100, np.sort(np.exp(logp[-1]))[::-1][:10], atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_attention_maps_are_those_of_transformers(name, published):
    module = importlib.import_module("13_look_at_a_prompt")
    model, tokenizer = tinyllm.load(published / name)
    ids, _ = module.pieces(model, tokenizer, PROMPT)
    _, maps = module.look(model, ids)
    expected = theirs(published / name)[0](torch.tensor([ids]), output_attentions=True).attentions
    assert len(maps) == len(expected) == 2
    for ours, layer in zip(maps, expected):
        np.testing.assert_allclose(ours, layer[0].detach(), atol=1e-5)


# 14: sentences

@pytest.mark.parametrize("name", ["bert", "trunk"])
def test_similarities_are_cosines_of_the_mean_vectors(name, published, printed):
    model, tokenizer = theirs(published / name)
    means = []
    for sentence in SENTENCES:              # one by one, so without any padding
        x = getattr(model, "bert", model)(**tokenizer(sentence, return_tensors="pt")).last_hidden_state[0].detach()
        means.append(x.double().mean(0))
    expected = torch.nn.functional.cosine_similarity(torch.stack(means)[:, None], torch.stack(means)[None], dim=-1)
    module = importlib.import_module("14_sentence_similarity")
    ours, own_tokenizer = tinyllm.load(published / name)
    v = module.vectors(getattr(ours, "bert", ours), own_tokenizer, SENTENCES)
    np.testing.assert_allclose(v @ v.T, expected, atol=1e-5)
    flags = [part for sentence in SENTENCES for part in ("--sentence", sentence)]
    out = printed("14_sentence_similarity.py", published / name, *flags)
    rows = [re.findall(r"-?\d\.\d\d", line) for line in out.splitlines() if re.match(r" +\d  ", line)]
    np.testing.assert_allclose(np.array(rows[-3:], float), expected, atol=0.006)
    assert [row[i] for i, row in enumerate(rows[-3:])] == ["1.00"] * 3


# 15: perplexity

def table(out):
    """stride -> (tokens before it, at least; perplexity; bits per byte)"""
    rows = re.findall(r"^ +(\d+) +(\d+) +[\d.]+ +([\d.]+) +([\d.]+)$", out, re.MULTILINE)
    return {int(stride): tuple(map(float, rest)) for stride, *rest in rows}


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("n_tokens", [61, 9])               # longer, and shorter than a window
def test_perplexity_is_that_of_each_token_after_what_its_window_shows(name, n_tokens, published, printed, tmp_path):
    text = default_corpus()[5000:5400] + "naïve 你好" + default_corpus()[7000:7400]
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    model, tokenizer = theirs(published / name)
    ids = tokenizer(text).input_ids[:n_tokens]
    n_bytes = len(tinyllm.load(published / name)[1].decode(ids[1:]).encode())
    strides = [CONTEXT, 7, 1]
    found = table(printed("15_perplexity.py", published / name, "--text", "text.txt", "--tokens", n_tokens,
                          "--stride", *strides))
    for stride in strides:
        losses, befores = [], []
        for t in range(1, n_tokens):        # token t is in the first window, or in the k-th one after it
            k = max(0, -(-(t - CONTEXT) // stride))
            end = min(CONTEXT + k * stride, n_tokens - 1)
            before = ids[max(0, end - CONTEXT):t]
            losses.append(-their_logp(model, before)[-1, ids[t]])
            befores.append(len(before))
        least, perplexity, bits = found[stride]
        assert least == min(befores[CONTEXT:], default=n_tokens - 1)
        np.testing.assert_allclose(perplexity, np.exp(np.mean(losses)), rtol=1e-4)
        np.testing.assert_allclose(bits, np.sum(losses) / np.log(2) / n_bytes, rtol=1e-4)
    if n_tokens > CONTEXT:
        assert len({perplexity for _, perplexity, _ in found.values()}) == 3


def test_windows_that_do_not_overlap_are_those_of_the_training_loop(trained, printed, tmp_path):
    module = importlib.import_module("15_perplexity")
    model, tokenizer = tinyllm.load(trained / "runs/gpt")
    ids = np.array(tokenizer.encode(default_corpus()[:32 * 40 + 1]))
    data = TokenDataset(ids, 32)
    losses, seen = module.surprise(model, ids, 32, 32)
    direct = [model.loss(*batch, reduction="none").numpy().ravel() for batch in data.windows(7)]
    np.testing.assert_allclose(losses, np.concatenate(direct), rtol=1e-4)
    np.testing.assert_array_equal(seen, np.tile(np.arange(1, 33), 40))
    (tmp_path / "text.txt").write_text(default_corpus()[:32 * 40 + 1], encoding="utf-8")
    out = printed("15_perplexity.py", trained / "runs/gpt", "--text", "text.txt", "--int8", "--stride", 32)
    expected = [np.exp(train.evaluate(m, data, 8)) for m in (model, tinyllm.quantized(model))]
    (row,) = re.findall(r"^ +32 +1 +[\d.]+ +([\d.]+) +[\d.]+ +([\d.]+)$", out, re.MULTILINE)
    np.testing.assert_allclose(np.array(row, float), expected, rtol=1e-5)
    assert row[0] != row[1]


# All of them on what was trained here, and misused

@pytest.mark.parametrize("script, flags, lines", [
    ("5_sample.py", ["--tokens", 20], r"\A\n.{20}\n\Z"),
    ("13_look_at_a_prompt.py", [], "parameters look at 28 tokens"),
    ("14_sentence_similarity.py", ["--sentence", "a list", "--sentence", "an error"], "The most similar:\n  0"),
    ("15_perplexity.py", ["--tokens", 200], r"\n +32 +1 .*\n +16 +17 .*\n +8 +25 ")])
def test_every_script_runs_on_what_was_trained_here(script, flags, lines, trained, printed):
    assert re.search(lines, printed(script, *flags, where=trained), re.DOTALL)


MISSING = {"5_sample.py": "3_train_gpt.py", "13_look_at_a_prompt.py": "3_train_gpt.py",
           "14_sentence_similarity.py": "7_masked_language_model.py", "15_perplexity.py": "3_train_gpt.py"}


@pytest.mark.parametrize("script", MISSING)
def test_without_a_model_a_script_says_which_one_to_train(script, tmp_path):
    assert re.match(rf"error: there is no .*python examples/{MISSING[script]}", run(script, where=tmp_path, code=1))


@pytest.mark.parametrize("script, arguments, message", [
    ("5_sample.py", ["bert"], "BERT has no next_logits"),
    ("5_sample.py", ["gpt2", "--prompt", ""], "the prompt must be"),
    ("5_sample.py", ["gpt2", "--num-beams", 2, "--top-k", 5], "beam search draws nothing, so top_k would do nothing"),
    ("5_sample.py", ["gpt2", "--early-stopping"], "belong to beam search"),
    ("5_sample.py", ["gpt2", "--stop", ""], "an empty stop string"),
    ("5_sample.py", ["gpt2", "--dtype", "float16"], "--dtype float16: NumPy computes in float32"),
    ("13_look_at_a_prompt.py", ["t5"], "t5 holds a T5, which does not guess the next token"),
    ("13_look_at_a_prompt.py", ["gpt2", "--prompt", ""], "the prompt is empty"),
    ("13_look_at_a_prompt.py", ["gpt2", "--prompt", "a " * 60], "more than its n_positions=40"),
    ("13_look_at_a_prompt.py", ["gpt2", "--layer", 3], "--layer 3: the model has 2 layers"),
    ("14_sentence_similarity.py", ["gpt2"], "gpt2 holds a GPT, which does not look at a whole sentence"),
    ("14_sentence_similarity.py", ["bert", "--sentence", "a"], "one sentence is like no other"),
    ("14_sentence_similarity.py", ["bert", "--sentence", "a " * 60, "--sentence", "b"], "max_position_embeddings=40"),
    ("15_perplexity.py", ["bert"], "bert holds a BERT, which does not guess"),
    ("15_perplexity.py", ["gpt2", "--window", 41], "--window 41: the model reads 1 to 40 tokens"),
    ("15_perplexity.py", ["gpt2", "--stride", 41], "--stride 41: a stride is 1 to 40"),
    ("15_perplexity.py", ["gpt2", "--tokens", 1], "the text has 1 tokens; it takes two"),
    ("15_perplexity.py", ["gpt2", "--tokens", -1], "--tokens -1"),
    ("15_perplexity.py", ["gpt2", "--text", "none.txt"], "none.txt: there is no such file"),
    ("15_perplexity.py", ["gpt2", "--dtype", "bfloat16"], "--dtype bfloat16: NumPy computes in float32"),
])
def test_misuse_is_refused_in_one_sentence(script, arguments, message, published, printed):
    with pytest.raises(SystemExit, match=f"error: .*{message}") as refused:
        printed(script, *arguments, where=published)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("script, name", [("5_sample.py", "gpt2"), ("13_look_at_a_prompt.py", "gpt2"),
                                          ("14_sentence_similarity.py", "bert"), ("15_perplexity.py", "gpt2")])
def test_damaged_weights_are_named(script, name, published, tmp_path, printed):
    shutil.copytree(published / name, tmp_path / name)
    model = tinyllm.load(tmp_path / name)[0]
    for parameter in model.parameters():
        parameter.data = np.full(parameter.shape, np.nan, np.float32)
    model.save_pretrained(tmp_path / name)
    with pytest.raises(SystemExit, match="error: .* its weights are damaged"):
        printed(script, name, where=tmp_path)
