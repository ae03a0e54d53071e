"""Published tokenizers: ids, offsets and decoded texts equal those of Hugging Face's library, for any text."""

import json
import struct
import unicodedata
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference_tokenizers import (
    ADDED,
    CHARSMAP,
    CORPUS,
    END,
    LLAMA3,
    MARKED,
    spiece,
    tokenizers,
    train_bpe,
    train_unigram,
    train_wordpiece,
    write_gpt2,
)

from tinyllm.text import BPETokenizer, StreamingDecoder, load_tokenizer
from tinyllm.text.byte_characters import from_characters, to_characters
from tinyllm.text.pretokenize import pretokenize

transformers = pytest.importorskip("transformers", reason="compares with Hugging Face's transformers; pip install it")

TEXTS = st.lists(st.one_of(st.text(max_size=12), st.text("abcd ", max_size=12), st.sampled_from(MARKED),
                           st.sampled_from(CORPUS.split(" "))), max_size=8).map("".join)


def check(ours, theirs, unlike=lambda character: False, decode=True):
    """Compare ids, offsets and decoding on any text without the characters that the two know otherwise. Among these
    are always the ones that Python does not know: newer tables have letters there.
    """
    def compare(text):
        text = "".join(c for c in text if unicodedata.category(c) != "Cn" and not unlike(c))
        expected = theirs.encode(text, add_special_tokens=False)
        ids = ours.encode(text, allowed_special="all")
        assert ids == expected.ids, text
        assert ours.encode_with_offsets(text, allowed_special="all") == (ids, expected.offsets), text
        for skip in (False, True) if decode else ():
            shown = theirs.decode(ids, skip_special_tokens=skip)
            assert ours.decode(ids, skip_special_tokens=skip) == shown
        stream = StreamingDecoder(ours)
        parts = [stream.add(i) for i in ids]
        assert "".join(parts) + stream.finish() == ours.decode(ids)
        assert "\ufffd" not in "".join(parts) or "\ufffd" in text

        ordinary = ours.encode(text)
        assert ours.encode_with_offsets(text)[0] == ordinary
        unknown = {ours.special_tokens.get(token) for token in ("[UNK]", "<unk>")}
        assert not {*ordinary} & {*ours.special_tokens.values()} - unknown

    given(TEXTS)(compare)()
    for between in ("", " ", "x", "  "):
        compare(between.join(MARKED))
    for start in range(0, len(CORPUS), 2000):
        compare(CORPUS[start : start + 2000])


# Byte-level BPE -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bpe():
    return train_bpe()


def cut_otherwise(theirs, pattern):
    """Whether a character is a letter or a digit in one of the two only: the package regex knows a newer Unicode."""
    @cache
    def differ(character):
        text = f"a{character}1"
        cut = [text[i:j] for _, (i, j) in theirs.pre_tokenizer.pre_tokenize_str(text)]
        return character != " " and pretokenize(text, pattern) != cut       # offsets leave out a space before a word

    known = (c for c in map(chr, (*range(0x250), *range(0x250, 0xD800, 50))) if unicodedata.category(c) != "Cn")
    assert not any(map(differ, known))
    return differ


@pytest.mark.parametrize("names", [("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")])
def test_gpt2_files(bpe, names, tmp_path):
    ids, merges = write_gpt2(bpe, tmp_path, *names, shuffled=True)
    ours = load_tokenizer(tmp_path)
    assert ours.vocab_size == 600 and ours.special_tokens == {END: ids[END]} and ids[END] not in (0, 599)
    theirs = transformers.GPT2Tokenizer(vocab=ids, merges=merges).backend_tokenizer
    check(ours, theirs, cut_otherwise(theirs, "gpt2"))


def test_gpt2_tokenizer_json_with_added_tokens(bpe, tmp_path):
    theirs = tokenizers.Tokenizer.from_str(bpe.to_str())
    theirs.add_tokens(ADDED)
    theirs.save(str(tmp_path / "tokenizer.json"))
    ours = load_tokenizer(tmp_path)
    assert ours.vocab_size == theirs.get_vocab_size() == 605
    check(ours, theirs, cut_otherwise(theirs, "gpt2"))


def test_llama3_tokenizer_json(tmp_path):
    """Several merges make one token, and a piece that is a token needs none."""
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(LLAMA3), "isolated")
    level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    theirs = train_bpe(pre_tokenizer=tokenizers.pre_tokenizers.Sequence([split, level]))
    contents = json.loads(theirs.to_str())
    model = contents["model"]
    ids = model["vocab"]
    every = [[token[:k], token[k:]] for token in ids for k in range(1, len(token)) if {token[:k], token[k:]} <= {*ids}]
    assert len(every) > len(model["merges"])
    model["merges"] = sorted(every, key=lambda pair: ids["".join(pair)])
    model["ignore_merges"] = True
    model["vocab"] = {token: i - 1 for token, i in ids.items() if token != END} | {"Ġunreachable": 599}
    contents["added_tokens"][0]["id"] = 600         # behind the others
    (tmp_path / "tokenizer.json").write_text(json.dumps(contents), encoding="utf-8")
    theirs, ours = tokenizers.Tokenizer.from_str(json.dumps(contents)), load_tokenizer(tmp_path)
    assert ours.encode(" unreachable" + END, allowed_special=END) == [599, 600]
    check(ours, theirs, cut_otherwise(theirs, "llama3"))


# WordPiece ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lowercase", [True, False])
def test_bert_files(lowercase, tmp_path):
    theirs = train_wordpiece(lowercase)
    unlike = lambda character: lowercase and character == "\U00011938"      # which the library takes apart
    ids = theirs.get_vocab()
    (tmp_path / "vocab.txt").write_text("".join(t + "\n" for t in sorted(ids, key=ids.get)), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lowercase}), encoding="utf-8")
    reference = transformers.BertTokenizer(vocab=ids, do_lower_case=lowercase).backend_tokenizer
    ours = load_tokenizer(tmp_path)
    check(ours, reference, unlike)
    text = "Hello [MASK] world"
    assert ours.encode(text, add_special_tokens=True, allowed_special="all") == reference.encode(text).ids

    reference.add_tokens(ADDED)
    reference.save(str(tmp_path / "tokenizer.json"))
    check(load_tokenizer(tmp_path), reference, unlike, decode=False)        # theirs shows "Covid" in small letters


def test_what_stands_beside_a_tokenizer_json_counts(tmp_path):
    """As in AutoTokenizer: letters are kept, and a token is found, though tokenizer.json says nothing of it."""
    tokenizer = train_wordpiece(True)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": False, "added_tokens_decoder": {
        str(tokenizer.token_to_id("a")): {"content": "a", "special": False, "normalized": False, "single_word": True}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    theirs, ours = transformers.AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)
    for text in ("Hello World", "Ça VA", "hello a world"):
        assert ours.encode(text) == theirs(text, add_special_tokens=False).input_ids
    assert not ours.lowercase and "a" in {token.content for token in ours.added_tokens}


# Unigram --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unigram():
    return train_unigram(True)


@pytest.mark.parametrize("cut_at_white_space", [True, False])
def test_t5_tokenizer_json(unigram, cut_at_white_space, tmp_path):
    theirs = tokenizers.Tokenizer.from_str((unigram if cut_at_white_space else train_unigram(False)).to_str())
    theirs.add_tokens(ADDED)
    theirs.save(str(tmp_path / "tokenizer.json"))
    check_unigram(load_tokenizer(tmp_path), theirs)


def check_unigram(ours, theirs):
    """Without characters that are dropped: after one at the beginning, the library's offsets are one off."""
    check(ours, theirs, "\x01".__eq__)
    assert ours.encode("\x01a\x01b") == theirs.encode("\x01a\x01b", add_special_tokens=False).ids


def test_t5_spiece_model(unigram, tmp_path):
    pieces = [tuple(piece) for piece in json.loads(unigram.to_str())["model"]["vocab"]]
    (tmp_path / "spiece.model").write_bytes(spiece(pieces))
    ours = load_tokenizer(tmp_path)
    rounded = [(piece, struct.unpack("<f", struct.pack("<f", score))[0]) for piece, score in pieces]
    gaps = [(f"<extra_id_{i}>", 0.0) for i in reversed(range(100))]
    theirs = transformers.T5Tokenizer(vocab=rounded + gaps, _spm_precompiled_charsmap=CHARSMAP)
    assert ours.pieces == rounded + gaps and ours.vocab_size == 500
    check_unigram(ours, theirs.backend_tokenizer)
    assert ours.encode("a <extra_id_3> b", True, "all") == theirs("a <extra_id_3> b").input_ids


def test_byte_fallback(unigram, tmp_path):
    contents = json.loads(unigram.to_str())
    contents["model"]["byte_fallback"] = True
    contents["model"]["vocab"] += [[f"<0x{byte:02X}>", -20.0] for byte in range(256)]
    (tmp_path / "tokenizer.json").write_text(json.dumps(contents), encoding="utf-8")
    ours = load_tokenizer(tmp_path)
    check(ours, tokenizers.Tokenizer.from_str(json.dumps(contents)), "\x01".__eq__, decode=False)
    assert ours.decode(ours.encode("Ж a 🤣")) == "Ж a 🤣" and ours.vocab_size == 656


# Merges in any order --------------------------------------------------------------------------------------------------


@given(st.randoms(use_true_random=False), st.text("ab", max_size=40))
def test_merges_in_any_order(random, text):
    """Also those in which a late merge makes possible an early one, and in which several make one token."""
    tokens = ["a", "b"]
    pairs = []
    for _ in range(random.randrange(12)):
        pair = random.choice(tokens), random.choice(tokens)
        if len("".join(pair)) < 7 and pair not in pairs:
            pairs.append(pair)
            tokens += [t for t in ["".join(pair)] if t not in tokens]
    random.shuffle(pairs)
    ids = {to_characters(bytes([byte])): byte for byte in range(256)}
    ids |= {token: 256 + i for i, token in enumerate(tokens[2:])}
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE(ids, pairs))
    coded = {from_characters(token): i for token, i in ids.items()}
    ours = BPETokenizer.from_vocabulary(coded, [(left.encode(), right.encode()) for left, right in pairs])
    assert ours.encode(text) == theirs.encode(text).ids
    assert [i for work in ours.show_work(text) for i in work.ids] == ours.encode(text)
