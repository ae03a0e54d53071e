"""Both tokenizers, against plain references and through files."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyllm.text import BPETokenizer, CharTokenizer, load_tokenizer
from tinyllm.text.pretokenize import pretokenize
from tinyllm.text.show_work import PieceWork

END = "<|endoftext|>"
SAMPLE = "the cat, the hat; it's 42 cats' hats\n\n  你好，世界！ 你好 👩‍🚀 naïve café. " * 3
few_letters = st.text(alphabet="ab '\n你", max_size=60)


@pytest.fixture(scope="module")
def sample_tokenizer():
    return BPETokenizer.train(SAMPLE, 300, [END])


def join_pair(ids, pair, new):
    out = []
    for i in ids:
        if out and (out[-1], i) == pair:
            out[-1] = new
        else:
            out.append(i)
    return out


def naive_train(text, num_merges):
    """Count every pair of every piece again for each merge."""
    pieces = [list(piece.encode()) for piece in pretokenize(text)]
    merges = []
    while len(merges) < num_merges:
        counts = Counter(pair for ids in pieces for pair in zip(ids, ids[1:]))
        if not counts:
            break
        pair = min(counts, key=lambda pair: (-counts[pair], pair))
        pieces = [join_pair(ids, pair, 256 + len(merges)) for ids in pieces]
        merges.append(pair)
    return merges


def naive_encode(text, merges):
    """Apply the lowest-ranked merge to the leftmost place, one place at a time."""
    out = []
    for piece in pretokenize(text):
        ids = list(piece.encode())
        while any(pair in merges for pair in zip(ids, ids[1:])):
            new, i = min((merges[pair], i) for i, pair in enumerate(zip(ids, ids[1:])) if pair in merges)
            ids[i : i + 2] = [new]
        out += ids
    return out


@given(few_letters, st.integers(0, 20))
def test_training_equals_naive_training(text, num_merges):
    assert list(BPETokenizer.train(text, 256 + num_merges).merges) == naive_train(text, num_merges)


@given(few_letters, few_letters)
def test_encoding_equals_naive_encoding(training_text, text):
    tokenizer = BPETokenizer.train(training_text, 300)
    assert tokenizer.encode(text) == naive_encode(text, tokenizer.merges)
    assert [i for work in tokenizer.show_work(text) for i in work.ids] == tokenizer.encode(text)


@given(st.text())
def test_every_text_round_trips(sample_tokenizer, text):
    assert "".join(pretokenize(text)) == text
    assert sample_tokenizer.decode(sample_tokenizer.encode(text)) == text
    if text:
        characters = CharTokenizer.train(text)
        assert characters.decode(characters.encode(text)) == text


@given(st.binary())
def test_every_byte_string_round_trips(sample_tokenizer, data):
    assert sample_tokenizer.decode_bytes(sample_tokenizer.encode_bytes(data)) == data


def test_worked_example():
    tokenizer = BPETokenizer.train("aaabdaaabac", 259)
    assert tokenizer.vocabulary[256:] == [b"aa", b"ab", b"aaab"]
    assert tokenizer.encode("aaabdaaabac") == [258, ord("d"), 258, ord("a"), ord("c")]


def test_show_work():
    work = BPETokenizer.train("low low low lower", 259).show_work("low lower")
    assert [(step.rank, step.left + step.right) for step in work[1].steps] == [(0, b"lo"), (1, b"low"), (2, b" low")]
    assert str(work[1]) == (
        "piece ' lower', bytes 20 6c 6f 77 65 72\n"
        "  merge 0: 'l' + 'o'         ' ' 'lo' 'w' 'e' 'r'\n"
        "  merge 1: 'lo' + 'w'        ' ' 'low' 'e' 'r'\n"
        "  merge 2: ' ' + 'low'       ' low' 'e' 'r'\n"
        "  ids 258 101 114"
    )
    assert BPETokenizer([]).show_work("x") == [PieceWork("x", b"x", [], [120])]


def test_pieces():
    assert pretokenize("I'll  say:\n\n x2") == ["I", "'ll", " ", " say", ":", "\n\n", " x", "2"]


def test_empty_text_and_running_out_of_pairs():
    empty = BPETokenizer.train("", 1000, [END])
    assert empty.vocab_size == 257 and empty.encode("") == [] and empty.decode([]) == ""
    assert empty.encode("é") == [0xC3, 0xA9]
    assert BPETokenizer.train("abc", 1000).vocab_size == 258
    assert BPETokenizer.train("abc abc", 256).merges == {}
    assert CharTokenizer.train("").encode("") == []


def test_long_pieces_take_linear_time():
    """Quadratic time would be hours."""
    text = "a" * 200_000
    tokenizer = BPETokenizer.train(text, 266)
    ids = tokenizer.encode(text)
    assert len(ids) < 300 and tokenizer.decode(ids) == text


def test_special_tokens():
    tokenizer = BPETokenizer.train(SAMPLE, 300, [END, END + "2"])
    end, end2 = tokenizer.special_tokens.values()
    assert (end, end2) == (298, 299) and tokenizer.vocab_size == 300
    text = f"a{END}{END}2b"
    for allowed in ("all", [END, END + "2"]):
        assert tokenizer.encode(text, allowed_special=allowed) == [ord("a"), end, end2, ord("b")]
    for allowed in (END, {END}):
        assert tokenizer.encode(text, allowed_special=allowed) == [ord("a"), end, end, ord("2"), ord("b")]
    ordinary = tokenizer.encode(text)
    assert max(ordinary) < end and ordinary == tokenizer.encode_ordinary(text)
    assert tokenizer.decode([end, ord("b")]) == END + "b"
    with pytest.raises(ValueError, match="'<other>' is not a special token"):
        tokenizer.encode(text, allowed_special="<other>")
    for wrong in (END, [END, END], [""], [3]):
        with pytest.raises(ValueError, match="special_tokens"):
            BPETokenizer([], wrong)


def test_decoding_what_is_not_utf8():
    tokenizer = BPETokenizer([])
    assert tokenizer.decode(np.array([0xE4, 0xBD, ord("a")])) == "\ufffda"
    assert tokenizer.decode_bytes([0xE4, 0xBD]) == b"\xe4\xbd"


def test_lone_surrogates():
    with pytest.raises(ValueError, match="lone surrogate"):
        BPETokenizer([]).encode("a\ud800")
    assert BPETokenizer([]).encode("\udcff") == [0xFF]


def test_wrong_arguments():
    with pytest.raises(ValueError, match="vocab_size: 256 is too small.*at least 257"):
        BPETokenizer.train("a", 256, [END])
    with pytest.raises(ValueError, match="merges: "):
        BPETokenizer([(97, 256)])
    with pytest.raises(ValueError, match="merges: "):
        BPETokenizer([(97, 98), (97, 98)])
    with pytest.raises(ValueError, match="'é' at position 2 is not in"):
        CharTokenizer.train("abc").encode("abé")
    for tokenizer in (BPETokenizer([]), CharTokenizer("abc")):
        for wrong in (-1, tokenizer.vocab_size):
            with pytest.raises(ValueError, match=f"{wrong} at position 1 is outside"):
                tokenizer.decode([0, wrong])


@pytest.mark.parametrize("make", [lambda: BPETokenizer.train(SAMPLE, 300, [END]), lambda: CharTokenizer.train(SAMPLE)])
def test_save_and_load(make, tmp_path):
    tokenizer = make()
    tokenizer.save(tmp_path / "new" / "folder")
    loaded = load_tokenizer(tmp_path / "new" / "folder")
    assert type(loaded) is type(tokenizer)
    assert {**vars(loaded), "_cache": 0} == {**vars(tokenizer), "_cache": 0}
    lines = (tmp_path / "new" / "folder" / "vocabulary.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) == tokenizer.vocab_size


def test_vocabulary_for_people(tmp_path):
    BPETokenizer.train("low low", 258, [END]).save(tmp_path)
    assert (tmp_path / "vocabulary.txt").read_text(encoding="utf-8").split("\n")[254:] == [
        "254\tb'\\xfe'",
        "255\tb'\\xff'",
        "256\t'lo' = 'l' + 'o'",
        f"257\t{END!r}",
        "",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ('{"model": {}}', "its model is None; supported are BPE"),
        ('{"type": "morse"}', "of type 'morse'"),
        ('{"type": "char"}', "not a saved CharTokenizer"),
        ('{"type": "char", "characters": "aa"}', "occurs twice"),
        ('{"type": "bpe"}', "damaged"),
        ('{"type": "bpe", "merges": [[97, 999]], "special_tokens": []}', "damaged"),
        ('{"type": "bpe", "merges": [["a", "b"]], "special_tokens": []}', "damaged"),
        ('{"type": "bpe", "merges": [[97]], "special_tokens": []}', "damaged"),
        ('{"type": "bpe", "merges": [], "special_tokens": [1]}', "damaged"),
    ],
)
def test_damaged_files(content, message, tmp_path):
    (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_tokenizer(tmp_path)


def test_missing_file_and_wrong_class(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no tokenizer.json in this folder"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"type": "char", "characters": "ab"}), encoding="utf-8")
    with pytest.raises(ValueError, match="not a saved BPETokenizer"):
        BPETokenizer.load(tmp_path)
