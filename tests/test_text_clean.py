"""Reading and cleaning text."""

import doctest
import importlib
import pkgutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinyllm.text
from tinyllm.text import clean, default_corpus, describe, keep_lines, normalize, read_chunks, read_text
from tinyllm.text import remove_controls, remove_duplicate_lines

MODULES = [module.name for module in pkgutil.iter_modules(tinyllm.text.__path__, "tinyllm.text.")]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@given(st.text(), st.sampled_from(["NFC", "NFKC"]), st.booleans(), st.booleans())
def test_cleaning_twice_is_cleaning_once(text, form, fold, unique_lines):
    once = clean(text, form=form, fold=fold, unique_lines=unique_lines)
    assert clean(once, form=form, fold=fold, unique_lines=unique_lines) == once


def test_controls():
    assert remove_controls("a\0b\tc\r\nd\re\x0cf\u2028g") == "ab\tc\nd\ne\nf\ng"
    assert remove_controls("\ufeffx\u200by\u202ez\u00ad\ud800") == "xyz"


@pytest.mark.parametrize("text", ["می‌خواهم", "क्‍ष", "👨‍👩‍👧", "🏴󠁧󠁢󠁳󠁣󠁴󠁿", "❤️", "你好，世界。"])
def test_scripts_and_emoji_survive(text):
    assert clean(text) == text


def test_normal_forms():
    assert normalize("e\u0301Ａ") == "\u00e9Ａ"
    assert normalize("Ａ，ﬁ", "NFKC") == "A,fi"
    with pytest.raises(ValueError):
        clean("a", form="NFX")


def test_a_control_between_letter_and_accent():
    assert clean("e\u200b\u0301") == "\u00e9"


def test_white_space():
    assert clean("  a \u3000 b\t\n \n\n\n c  ") == "a b\n\nc"
    assert clean("if x:\n    y\n", fold=False) == "if x:\n    y\n"


def test_lines():
    assert keep_lines("a\nbbb\n\nccccc", min_chars=2, max_chars=4) == "bbb\n"
    assert remove_duplicate_lines("a\n\nb\na\n\nc") == "a\n\nb\n\nc"
    assert clean("x\nx", unique_lines=True) == "x"
    assert clean("x\nx") == "x\nx"


def test_read_files(tmp_path):
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_bytes("你好\r\nworld".encode())
    two.write_bytes("é".encode())
    assert read_text(one, two) == "你好\nworld\né"
    assert "".join(read_chunks(one, two, size=1)) == read_text(one, two)
    one.write_bytes(b"\xef\xbb\xbfa")  # a byte-order mark
    assert read_text(one, one) == "a\na"


def test_read_errors(tmp_path):
    path = tmp_path / "bad.txt"
    with pytest.raises(FileNotFoundError, match="bad.txt: there is no such file"):
        read_text(path)
    for empty in (b"", b"\xef\xbb\xbf"):
        path.write_bytes(empty)
        with pytest.raises(ValueError, match="bad.txt: the file is empty"):
            read_text(path)
    for start in (0, 10, 20_000):  # the decoder works in blocks of 8 kB
        path.write_bytes(b"a\n" * (start // 2) + b"\xff")
        with pytest.raises(ValueError, match=f"bad.txt: the bytes from offset {start} on are not UTF-8"):
            read_text(path)
    path.write_bytes("好".encode()[:2])  # cut off in the middle of a character
    with pytest.raises(ValueError, match="offset 0 on"):
        read_text(path)
    with pytest.raises(ValueError, match="name at least one"):
        read_text()


def test_default_corpus():
    text = default_corpus()
    assert 300_000 < len(text) < 1_000_000 and "lambda" in text
    assert describe(text).startswith(f"{len(text):,} characters")
    assert describe("a") != describe("b")
