"""The unigram tokenizer: against all cuts there are, by hand, through files, and against Hugging Face's."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyllm.text import UnigramTokenizer, load_tokenizer
from tinyllm.text.rewrite import NMT_NFKC, normalize, rewrite

BYTES = [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
LOWER = [("<unk>", 0.0), ("▁lo", -3.2), ("▁low", -3.0), ("er", -3.5), ("wer", -5.0), *((c, -4.0) for c in "▁lower")]
PIECES = st.dictionaries(st.text("ab▁é", min_size=1, max_size=3), st.floats(-10, -0.1), max_size=12)
TEXTS = st.text("ab éx", max_size=9)


def vocabulary(pieces, byte_fallback=False):
    return [("<unk>", 0.0), *pieces.items(), *(BYTES if byte_fallback else [])]


def all_cuts(text):
    """Every way to cut a text into pieces."""
    if not text:
        yield ()
    for end in range(1, len(text) + 1):
        for rest in all_cuts(text[end:]):
            yield (text[:end], *rest)


@given(PIECES, TEXTS)
def test_the_cut_is_the_likeliest_of_all(pieces, text):
    """A character that is no piece costs 10 more than the worst piece; the scores of bytes do not count."""
    unknown = min(pieces.values(), default=0.0) - 10
    tokenizer = UnigramTokenizer(vocabulary(pieces, True), byte_fallback=True, normalization="identity")
    tokens = tokenizer.tokenize(text)
    if "▁" in pieces:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    starts_character = lambda token: not 0x80 <= int(token[3:5], 16) < 0xC0
    found = sum(pieces[token] if token in pieces else unknown * starts_character(token) for token in tokens)
    score = lambda cut: sum(pieces.get(x, unknown if len(x) == 1 else -math.inf) for x in cut)
    whole = "▁" + text.replace(" ", "▁") if text else ""
    assert found == pytest.approx(max(map(score, all_cuts(whole)), default=0), rel=1e-12)

    without_bytes = UnigramTokenizer(vocabulary(pieces), normalization="identity").tokenize(text)
    expected = [token if token in pieces else "<unk>" for token in tokens]
    assert without_bytes == [x for x, before in zip(expected, [None, *expected]) if {x, before} != {"<unk>"}]


def test_by_hand():
    """The table in the docstring of unigram.py."""
    tokenizer = UnigramTokenizer(LOWER)
    assert tokenizer.tokenize("lower") == ["▁low", "er"]
    assert tokenizer.tokenize("low low") == ["▁low", "▁low"]
    assert tokenizer.tokenize("lo we") == ["▁lo", "▁", "w", "e"]
    assert tokenizer.tokenize("lxyze lowz") == ["▁", "l", "<unk>", "e", "▁low", "<unk>"]
    assert UnigramTokenizer([*LOWER, ("▁lower", -6.6)]).tokenize("lower") == ["▁low", "er"]
    assert UnigramTokenizer([*LOWER, ("▁lower", -6.4)]).tokenize("lower") == ["▁lower"]


def test_what_an_unknown_character_costs():
    """10 more than the worst piece, here -15: then abc costs -1, so the pieces of 3 * -5 are better, of 4 * -5 not."""
    tokenizer = UnigramTokenizer(vocabulary(dict.fromkeys(["▁", "xa", "b", "c", "d"], -5.0) | {"abc": -1, "abcd": -1}))
    assert tokenizer.tokenize("xabc") == ["▁", "xa", "b", "c"]
    assert tokenizer.tokenize("xabcd") == ["▁", "<unk>", "abcd"]


def test_of_equally_likely_cuts_the_last_piece_is_the_longer_one():
    tokenizer = UnigramTokenizer(vocabulary({"▁": -1, "ab": -2, "a": -1, "bc": -2, "c": -1}))
    assert tokenizer.tokenize("abc") == ["▁", "a", "bc"]


def test_a_piece_may_reach_over_a_space():
    pieces = {"▁": -2.0, "▁a": -2.0, "b": -2.0, "▁a▁": -1.0, "a▁b": -1.0, "▁▁": -1.5}
    tokenizer = UnigramTokenizer(vocabulary(pieces), normalization="identity")
    assert tokenizer.tokenize("a b") == ["▁", "a▁b"] and tokenizer.tokenize("a  b") == ["▁a▁", "▁", "b"]
    assert tokenizer.tokenize("  a\nb") == ["▁▁", "▁a", "<unk>", "b"]


@pytest.mark.parametrize(("text", "expected"), [
    ("  a \t\n b\r\n", "a b"),
    ("e\u0301ﬁ①Ａ\u00a0x\u3000y", "éfi1A x y"),
    ("～~", "～~"),                               # the full-width tilde stays
    ("a\u200bb\u200cc\ufeffd\u2028e", "a b c d e"),
    ("a\0b\x1bc\x7fd", "abcd"),
    ("▁a▁b", "a b"),
    (" \n", ""),
])
def test_normalization(text, expected):
    assert normalize(text) == expected
    tokenizer = UnigramTokenizer(vocabulary({"▁": -1.0}, True), byte_fallback=True)
    assert tokenizer.decode(tokenizer.encode(text)) == expected


@given(st.text())
def test_texts_come_back(text):
    pieces = vocabulary({"▁": -3.0, "▁a": -2.0, "é": -5.0, "你好": -4.0, "\n": -4.0, "▁the": -4.0}, True)
    tokenizer = UnigramTokenizer(pieces, byte_fallback=True, normalization="identity")
    assert tokenizer.decode(tokenizer.encode(text)) == text.replace("▁", " ")
    tidied = UnigramTokenizer(pieces, byte_fallback=True)
    assert tidied.decode(tidied.encode(text)) == normalize(text) == normalize(normalize(text))


@given(st.text() | st.text("aﬁ① \n\0e\u0301\u1100\u1161～▁", max_size=20))
def test_offsets(text):
    """Normalizing by rules, which keep track of places, is the same as at once; each piece is where it came from."""
    assert rewrite(text, NMT_NFKC) == normalize(text)
    for normalization in ("nmt_nfkc", "identity"):
        tokenizer = UnigramTokenizer(vocabulary({"▁": -3.0, "▁a": -2.0, "fi": -5.0, "e": -4.0}, True),
                                     byte_fallback=True, normalization=normalization)
        ids, offsets = tokenizer.encode_with_offsets(text)
        assert ids == tokenizer.encode(text)
        assert offsets == sorted(offsets) and all(0 <= start < end <= len(text) for start, end in offsets)
    jamo = UnigramTokenizer([("<unk>", 0.0), ("▁", -1.0), ("큐", -2.0), ("ᄏ", -3.0), ("ᅲ", -3.0)])
    assert jamo.encode("ㅋㅠ") == jamo.encode_with_offsets("ㅋㅠ")[0] == [1, 3, 4]    # no syllable, as in NFKC
    assert UnigramTokenizer(LOWER).encode_with_offsets("  lower \n lo") == ([2, 3, 1], [(2, 5), (5, 7), (9, 12)])


def test_decoding():
    tokenizer = UnigramTokenizer([*LOWER, ("</s>", 0), *BYTES], "<unk>", ["</s>"], byte_fallback=True)
    ids = {piece: i for i, (piece, _) in enumerate(tokenizer.pieces)}
    decode = lambda *pieces: tokenizer.decode([ids[piece] for piece in pieces])
    assert decode("▁low", "er", "</s>") == "lower</s>" and decode("</s>", "▁low") == "</s> low"
    assert tokenizer.decode([ids["</s>"], ids["▁low"], ids["<unk>"]], skip_special_tokens=True) == "low"
    assert decode("▁low", "<unk>", "er", "▁low") == "low<unk>er low"
    assert decode("▁low", "<0xC3>", "<0xA9>", "er") == "lowéer"
    assert decode("▁low", "<0xC3>", "er") == "low\ufffder"
    assert decode("er", "▁", "▁low") == "er  low" and decode() == ""


def test_special_tokens_are_not_found_in_a_text():
    tokenizer = UnigramTokenizer([("<pad>", 0), ("</s>", 0), ("<unk>", 0), ("▁", -2), *((c, -3) for c in "</s>unk")],
                                 special_tokens=["<pad>", "</s>"])
    assert tokenizer.special_tokens == {"<unk>": 2, "<pad>": 0, "</s>": 1}
    assert tokenizer.tokenize("</s> <unk>") == ["▁", *"</s>", "▁", *"<unk>"]
    literal = UnigramTokenizer(vocabulary({"▁": -1, **dict(BYTES)}))        # no byte fallback: pieces like any other
    assert literal.tokenize("<0x41>") == ["▁", "<0x41>"]


def test_empty_and_long_texts():
    tokenizer = UnigramTokenizer(LOWER)
    assert tokenizer.encode("") == tokenizer.encode(" \n") == [] and tokenizer.decode([]) == ""
    assert len(tokenizer.encode("wer" * 100_000)) == 100_001                # quadratic time would be hours
    assert UnigramTokenizer([("<unk>", 0)]).tokenize("a b") == ["<unk>"]


def test_save_and_load(tmp_path):
    for tokenizer in (UnigramTokenizer(LOWER), UnigramTokenizer([("?", 0), ("</s>", 0.0), ("▁a", -0.1), *BYTES], "?",
                                                                ["</s>"], True, "identity")):
        tokenizer.save(tmp_path)
        loaded = load_tokenizer(tmp_path)
        assert {**vars(loaded), "_cache": 0} == {**vars(tokenizer), "_cache": 0}
        lines = (tmp_path / "vocabulary.txt").read_text(encoding="utf-8").splitlines()
        assert len(lines) == tokenizer.vocab_size and lines[2].startswith("2\t'▁")


def test_wrong_arguments():
    for options, message in (
        ({"pieces": [("a", -1)]}, "'<unk>' is missing"),
        ({"pieces": LOWER, "special_tokens": ["</s>"]}, "'</s>' is missing"),
        ({"pieces": LOWER, "special_tokens": "er"}, "is one string"),
        ({"pieces": LOWER, "byte_fallback": True}, "'<0x00>' is missing"),
        ({"pieces": [*LOWER, ("er", -1)]}, "distinct strings"),
        ({"pieces": [*LOWER, ("", -1)]}, "none of them empty"),
        ({"pieces": [*LOWER, ("x", math.nan)]}, "score of 'x' is not finite"),
        ({"pieces": [*LOWER, ("x", -math.inf)]}, "score of 'x' is not finite"),
        ({"pieces": LOWER, "normalization": "nfd"}, "no 'nfd'; choose one of nmt_nfkc, identity"),
    ):
        with pytest.raises(ValueError, match=message):
            UnigramTokenizer(**options)
    with pytest.raises(ValueError, match="is half a character"):
        UnigramTokenizer(LOWER).encode("a\udcff")
    with pytest.raises(ValueError, match="-1 at position 0 is outside"):
        UnigramTokenizer(LOWER).decode([-1])


@pytest.mark.parametrize("contents", ['{"type": "unigram"}', '{"type": "unigram", "pieces": [["a"]]}',
                                      '{"type": "unigram", "pieces": [["a", 1]]}', '{"type": "unigram", "x": 1}'])
def test_damaged_files(contents, tmp_path):
    (tmp_path / "tokenizer.json").write_text(contents, encoding="utf-8")
    with pytest.raises(ValueError, match="damaged"):
        load_tokenizer(tmp_path)
