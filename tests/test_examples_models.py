"""Examples 8 and 9: what the models are asked is right and new to them, and the scripts show what they promise."""
import datetime
import importlib
import json

import numpy as np
import pytest
from test_examples import run

import tinyllm
from tinyllm import metrics

seq2seq, history = importlib.import_module("8_sequence_to_sequence"), importlib.import_module("9_history")
VALUES = {word: i for i, word in enumerate(seq2seq.ONES)} | {word: 10 * i for i, word in enumerate(seq2seq.TENS, 2)}
DATES = ("%d %B %Y", "%B %d, %Y", "the %dth of %B, %Y", "%B %dth %Y", "%d %b %Y", "%A, %d %B %Y", "%d.%m.%Y",
         "%b %d %Y")


def read_number(words):
    """The value of a spoken number, left to right: "thousand" multiplies all before it, "hundred" the last part."""
    total = part = 0
    for word in words.replace("-", " ").replace(" and ", " ").split():
        if word == "thousand":
            total, part = part * 1000, 0
        else:
            part = part * 100 if word == "hundred" else part + VALUES[word]
    return total + part


def test_numbers_in_words_mean_what_they_say():
    rng = np.random.default_rng(0)
    for n in [*range(1200), 999_999, 100_000, 100_001, 110_000, *map(int, rng.integers(0, 10**6, 2000))]:
        assert read_number(seq2seq.in_words(n)) == n, seq2seq.in_words(n)
    assert seq2seq.in_words(41_306) == "forty-one thousand three hundred and six"
    assert seq2seq.in_words(5006) == "five thousand and six"


@pytest.mark.parametrize("form", range(seq2seq.FORMS))
def test_dates_can_be_read_in_every_form(form):
    for i in range(0, seq2seq.DAYS, 997):
        day = seq2seq.FIRST_DAY + datetime.timedelta(i)
        text = seq2seq.written(day, form)
        plain = text.replace("1st", "1th").replace("2nd", "2th").replace("3rd", "3th")
        assert datetime.datetime.strptime(plain, DATES[form]).date() == day, text
        assert not any(wrong in text for wrong in ("11st", "12nd", "13rd"))
    assert seq2seq.FIRST_DAY + datetime.timedelta(seq2seq.DAYS - 1) == datetime.date(2099, 12, 31)


def test_no_question_stands_among_the_examples():
    examples, questions = seq2seq.make_pairs(np.random.default_rng(1), 2000, 200)
    assert (len(examples), len(questions)) == (2000, 200)
    assert not {target for _, target in examples} & {target for _, target in questions}
    assert len({target for _, target in examples + questions}) == 2200
    tasks = [source.split()[0] for source, _ in questions]
    assert tasks.count("number:") == tasks.count("date:") == 100


def test_words_come_back_and_unknown_ones_are_refused():
    words = seq2seq.Words(["number: forty-one", "date: May 3rd", "2087-05-03"])
    assert words.decode([seq2seq.START, *words.encode("2087-05-03"), seq2seq.END, seq2seq.PAD]) == "2087-05-03"
    with pytest.raises(ValueError, match='"number: fifty": "fifty" does not occur'):
        words.encode("number: fifty")


@pytest.mark.parametrize("name", ["seq2seq", "t5"])
def test_the_weights_shown_are_those_of_the_attention_to_the_source(name):
    words = seq2seq.Words(["number: forty-one", "41"])
    model, source = seq2seq.make_model(name, words, 1), "number: forty-one"
    text, weights = seq2seq.looks(model, words, source)
    assert weights.shape == (len(words.encode(text)), len(words.encode(source)))
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)


def test_sequence_to_sequence_runs_and_leaves_its_pictures(tmp_path):
    out = run("8_sequence_to_sequence.py", "--steps", 2, "--ask", "number: nine hundred and six", where=tmp_path)
    assert out.count("it has not seen:") == 4 and out.count("number: nine hundred and six  ->") == 2
    assert (tmp_path / "runs/seq2seq/attention.png").stat().st_size > 5000
    assert (tmp_path / "runs/seq2seq/t5/loss.png").exists()
    again = run("8_sequence_to_sequence.py", "--steps", 2, where=tmp_path)
    assert again.count("It goes on from runs/seq2seq/") == 2
    assert [line for line in again.splitlines() if "it has not" in line] == [
        line for line in out.splitlines() if "it has not" in line]
    refusal = run("8_sequence_to_sequence.py", "--ask", "number: cinq", where=tmp_path, code=1)
    assert run("8_sequence_to_sequence.py", "--ask", " ", where=tmp_path, code=1).startswith('error: --ask " "')
    assert refusal == 'error: "number: cinq": "cinq" does not occur in the examples; write it as they do'


def test_history_compares_all_models_on_one_text(tmp_path):
    rng = np.random.default_rng(0)
    text = "".join(rng.choice(["cookie ", "cook ", "could "], 600)) + "\n"
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    (tmp_path / "other.txt").write_text(text[::-1], encoding="utf-8")
    out = run("9_history.py", "--text", "text.txt", "--also", "other.txt", "--seconds", 0.2, where=tmp_path)
    results = json.loads((tmp_path / "runs/history/history.json").read_text(encoding="utf-8"))
    kinds = [row[0] for row in results["table"]]
    assert kinds == ["3-gram", "5-gram", "12-gram", "RNN", "LSTM", "GPT-2", "Llama"]
    assert all(f"{kind:>8} " in out for kind in kinds) and "N-grams on other, by order" in out
    assert (tmp_path / "runs/history/history.png").stat().st_size > 5000
    for kind, curve in results["curves"].items():
        assert curve[-1][1] < curve[0][1], f"{kind} has learned nothing"
    tokenizer, old, new = history.prepare(tinyllm.text.clean(text, fold=False))
    model = tinyllm.NGram(tinyllm.NGramConfig(vocab_size=tokenizer.vocab_size, order=3)).fit(old)
    windows = np.lib.stride_tricks.sliding_window_view(new, history.CONTEXT + 1)[::history.CONTEXT]
    rest = new[len(windows) * history.CONTEXT:][None]
    total = sum(model.loss(part[:, :-1], part[:, 1:], reduction="sum").item() for part in (windows, rest)
                if part.shape[1] > 1)
    assert results["table"][0][3] == pytest.approx(metrics.bits_per_character(total, 1, len(new) - 1), rel=1e-9)


def test_how_far_a_text_repeats_is_counted():
    old, new = np.array([1, 2, 3, 4, 5]), np.array([9, 2, 3, 4, 1])
    assert history.known(2, old, new) == 0.5                        # 2 3 and 3 4, not 9 2 and 4 1


def test_no_text_and_no_time_to_learn_are_refused(tmp_path):
    (tmp_path / "short.txt").write_text("cookie\n", encoding="utf-8")
    assert run("9_history.py", "--text", "short.txt", where=tmp_path, code=1).startswith("error: the text has 7 char")
    assert run("9_history.py", "--seconds", 0, where=tmp_path, code=1).startswith("error: --seconds 0")
