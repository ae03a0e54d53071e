"""Published tokenizers in files: small files beside them, saved again, and damaged."""

import json

import pytest
from reference_tokenizers import (
    ADDED,
    BERT_SPECIAL,
    CHARSMAP,
    CORPUS,
    END,
    MARKED,
    message,
    spiece,
    tokenizers,
    train_bpe,
    train_unigram,
    train_wordpiece,
    write_gpt2,
)

from tinyllm.text import BPETokenizer, CharTokenizer, StreamingDecoder, load_tokenizer


@pytest.fixture(scope="module")
def bpe():
    return train_bpe()


@pytest.fixture(scope="module")
def unigram():
    return train_unigram(True)


def test_saved_and_loaded_again(bpe, unigram, tmp_path):
    wordpiece = tokenizers.Tokenizer.from_str(train_wordpiece(True).to_str())
    for kind, theirs in (("bpe", tokenizers.Tokenizer.from_str(bpe.to_str())), ("wordpiece", wordpiece),
                         ("unigram", tokenizers.Tokenizer.from_str(unigram.to_str()))):
        theirs.add_tokens(ADDED)
        (tmp_path / kind).mkdir()
        theirs.save(str(tmp_path / kind / "tokenizer.json"))
        published = load_tokenizer(tmp_path / kind)
        published.save(tmp_path / kind / "saved")
        saved = load_tokenizer(tmp_path / kind / "saved")
        assert json.loads((tmp_path / kind / "saved" / "tokenizer.json").read_text("utf-8"))["type"] == kind
        assert saved.added_tokens == published.added_tokens and saved.vocab_size == published.vocab_size
        for text in (CORPUS[:2000] + CORPUS[-600:], " ".join(MARKED)):
            assert saved.encode_with_offsets(text, "all") == published.encode_with_offsets(text, "all")
            assert saved.decode(saved.encode(text, allowed_special="all")) == published.decode(saved.encode(
                text, allowed_special="all"))
        with pytest.raises(ValueError, match="half a character, a lone surrogate"):
            published.encode("a\ud83d")
        with pytest.raises(ValueError, match="half a character, a lone surrogate"):
            published.encode_with_offsets("a\ud83d")


def test_special_tokens_of_the_small_files(bpe, tmp_path):
    """added_tokens.json has ids, the others say what is special; a token without an id comes behind all others."""
    write_gpt2(bpe, tmp_path)
    write = lambda name, contents: (tmp_path / name).write_text(json.dumps(contents), encoding="utf-8")
    write("added_tokens.json", {"<word>": 600, "<pad>": 601})
    write("special_tokens_map.json", {"eos_token": END, "pad_token": {"content": "<pad>", "lstrip": True},
                                      "additional_special_tokens": ["<x>"]})
    write("tokenizer_config.json", {"bos_token": END, "sep_token": "<sep>", "model_max_length": 1024,
                                    "added_tokens_decoder": {"602": {"content": "<x>", "special": True}}})
    ours = load_tokenizer(tmp_path)
    assert ours.special_tokens == {END: 0, "<pad>": 601, "<x>": 602, "<sep>": 603} and ours.vocab_size == 604
    assert ours.encode("<word>  <pad><x><sep>", allowed_special="all") == [600, 601, 602, 603]
    assert ours.encode("<word>")[0] == 600 and 601 not in ours.encode("<pad>")
    with pytest.raises(ValueError, match="'<word>' is not a special token"):
        ours.encode("a", allowed_special="<word>")


def test_streaming_characters():
    stream = StreamingDecoder(CharTokenizer("né"))
    assert stream.add([0, 1]) + stream.add(1) + stream.finish() == "néé"
    assert CharTokenizer("né").encode_with_offsets("én") == ([1, 0], [(0, 1), (1, 2)])
    stream = StreamingDecoder(BPETokenizer([], ["<end>"]), skip_special_tokens=True)
    assert [stream.add(i) for i in (0xE4, 256, 0xBD)] == ["", "", ""] and stream.finish() == "\ufffd"
    assert stream.add([0xE4, 0x41]) == "\ufffdA" and stream.finish() == ""
    with pytest.raises(ValueError, match="257 at position 0 is outside"):
        stream.add(257)


# Damage ---------------------------------------------------------------------------------------------------------------


def damaged(path, message, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as error:
        load_tokenizer(path.parent)
    assert "\n" not in str(error.value)


def test_damaged_gpt2_files(bpe, tmp_path):
    ids, _ = write_gpt2(bpe, tmp_path)
    lines = (tmp_path / "merges.txt").read_text("utf-8").split("\n")
    for line, error in (("Ġt", "line 3: 'Ġt' is not a merge"), ("a b c", "line 3: 'a b c' is not a merge"),
                        ("a  b", "line 3"), ("Ġ q€", "line 3: the merge 'Ġ q€' needs 'q€'"),
                        ("q z", "line 3: the merge 'q z' needs 'qz', which is not in the vocabulary")):
        damaged(tmp_path / "merges.txt", error, "\n".join([*lines[:2], line, *lines[3:]]))
    damaged(tmp_path / "merges.txt", "merges.txt: byte 1 is not UTF-8", b"a\xff b")
    damaged(tmp_path / "merges.txt", "occurs twice", "\n".join([*lines[:-1], lines[1]]))
    (tmp_path / "merges.txt").write_text("\r\n".join(lines), encoding="utf-8")
    assert load_tokenizer(tmp_path).vocab_size == 600
    for content, error in (
        ("{", "vocab.json: the file is not JSON"), ("[" * 100_000, "vocab.json: the file is not JSON"),
        ("[]", "not a JSON object"), ("{}", "no token in it"), ({**ids, "!!": 5}, "'%' and '!!' have the same id, 5"),
        ({**ids, "x": "1"}, "'x' has the id '1'"), ({**ids, "x": 10**12}, "'x' has the id 1000000000000"),
        ({**ids, "x": -1}, "'x' has the id -1"), ({t: i for t, i in ids.items() if t != "he"}, "needs 'he'"),
        ({t: i for t, i in ids.items() if t != "Ā"}, "the byte 0x00 is missing"),
        ({**ids, "你": 600}, "stands for no byte"),
    ):
        damaged(tmp_path / "vocab.json", error, content if isinstance(content, str) else json.dumps(content))
    (tmp_path / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
    damaged(tmp_path / "added_tokens.json", "added tokens: '<x>' with the id 'y'", '{"<x>": "y"}')
    damaged(tmp_path / "added_tokens.json", "same id, 7", '{"<x>": 7}')
    (tmp_path / "added_tokens.json").unlink()
    damaged(tmp_path / "tokenizer_config.json", "a .json file in it is damaged", '{"added_tokens_decoder": [1]}')


def test_damaged_spiece_model(tmp_path):
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0), ("▁a", -2.0)]
    path, whole = tmp_path / "spiece.model", spiece(pieces)
    path.write_bytes(whole)
    assert load_tokenizer(tmp_path).encode("a b") == [4, 3, 2]
    for end in [*range(90), *range(90, len(whole) - 3, 97), len(whole) - 4]:
        damaged(path, "not a SentencePiece model, or it is damaged", whole[:end])
    damaged(path, "it ends inside field", whole[:-5])
    damaged(path, "it ends before its settings", b"")
    damaged(path, "not a SentencePiece model, or it is damaged", b"PK\x03\x04 this is a zip")
    damaged(path, "a number is longer than 64 bits", b"\x0a" + b"\xff" * 11)
    damaged(path, "a field holds int instead of bytes", message((1, 5)))
    damaged(path, "not finite", spiece([*pieces, ("x", float("nan"))]))
    damaged(path, "distinct", spiece([*pieces, ("▁a", -1.0)]))
    damaged(path, "0 of its pieces are of type 2", spiece(pieces[:2] + pieces[3:]))
    damaged(path, "its model type is 2; only unigram", spiece(pieces, [(3, 2)]))
    damaged(path, "made without add_dummy_prefix", spiece(pieces, (), [(3, 0)]))
    damaged(path, "too few for its trie", spiece(pieces, (), [(2, CHARSMAP[:50])]))
    path.write_bytes(whole)
    damaged(tmp_path / "tokenizer_config.json", "extra_ids 1000000000000", '{"extra_ids": 1000000000000}')
    (tmp_path / "tokenizer_config.json").write_text('{"extra_ids": 2, "added_tokens_decoder": {"6": {"content": '
                                                    '"<extra_id_0>", "lstrip": true, "special": true}}}')
    ours = load_tokenizer(tmp_path)
    assert ours.encode_with_offsets("a <extra_id_0> a", "all") == ([4, 6, 4], [(0, 1), (1, 14), (15, 16)])


def test_other_kinds_of_tokenizer_json(bpe, unigram, tmp_path):
    path = tmp_path / "tokenizer.json"

    def changed(tokenizer, message, **changes):
        contents = json.loads(tokenizer.to_str())
        for key, value in changes.items():
            (contents["model"] if key in contents["model"] else contents)[key] = value
        damaged(path, message, json.dumps(contents))

    wordpiece = train_wordpiece(True)
    changed(bpe, "its model is 'WordLevel'; supported are BPE, WordPiece, Unigram", type="WordLevel")
    changed(bpe, "normalizer is NFC, which is not supported", normalizer={"type": "NFC"})
    changed(bpe, "byte_fallback is True", byte_fallback=True)
    changed(bpe, "end_of_word_suffix is '</w>'", end_of_word_suffix="</w>")
    changed(bpe, "merge number 0: 'ab' is not a merge", merges=["ab"])
    changed(bpe, "pre_tokenizer is 'Whitespace'", pre_tokenizer={"type": "Whitespace"})
    changed(bpe, "add_prefix_space is True", pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True})
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    changed(bpe, "cuts text by the pattern", pre_tokenizer={"type": "Sequence", "pretokenizers": [split, level]})
    steps = [{"type": "Digits"}, {"type": "Punctuation"}, level]
    changed(bpe, r"Digits \+ Punctuation \+ ByteLevel is not", pre_tokenizer={"type": "Sequence",
                                                                             "pretokenizers": steps})
    changed(bpe, "damaged", pre_tokenizer=None)
    changed(bpe, "damaged", vocab=None)
    changed(bpe, "damaged", model=[])
    changed(bpe, "damaged", added_tokens=[5])
    changed(wordpiece, "continuing_subword_prefix is '@@'", continuing_subword_prefix="@@")
    changed(wordpiece, "no token has the id 6", vocab={t: i for t, i in wordpiece.get_vocab().items() if i != 6})
    changed(wordpiece, r"\[MASK\] is missing", vocab={**{t: i for i, t in enumerate(BERT_SPECIAL[:4])}, "a": 4})
    changed(wordpiece, "normalizer is 'Lowercase'|damaged", normalizer={"type": "Lowercase"})
    changed(unigram, "the normalizer NFKC is not supported", normalizer={"type": "NFKC"})
    changed(unigram, r"replaces the pattern '\(a\+\)\+', which is not", normalizer={
        "type": "Replace", "pattern": {"Regex": "(a+)+"}, "content": ""})
    changed(unigram, "not base64", normalizer={"type": "Precompiled", "precompiled_charsmap": "?"})
    changed(unigram, "pre_tokenizer Whitespace is not supported", pre_tokenizer={"type": "Whitespace"})
    changed(unigram, "damaged: its vocabulary is no list of pieces and their scores", vocab=[["a", 0.0], ["b"]])
    changed(unigram, "damaged", unk_id=10_000)
    changed(unigram, "damaged", unk_id=None)


def test_a_space_that_nobody_wrote_is_refused(bpe, tmp_path):
    """In either kind of file; Hugging Face's library begins each text with it."""
    bpe.save(str(tmp_path / "tokenizer.json"))
    write_gpt2(bpe, tmp_path, "vocab.json", "merges.txt")
    (tmp_path / "tokenizer_config.json").write_text('{"add_prefix_space": true}', encoding="utf-8")
    for _ in range(2):
        with pytest.raises(ValueError, match="tokenizer_config.json sets add_prefix_space otherwise than GPT-2"):
            load_tokenizer(tmp_path)
        (tmp_path / "tokenizer.json").unlink(missing_ok=True)


def test_vocab_txt_that_is_none(tmp_path):
    path = tmp_path / "vocab.txt"
    damaged(path, "this is not a vocabulary of BERT's .*missing", "a\nb\n")
    damaged(path, "distinct", "\n".join([*BERT_SPECIAL, "a", "a"]))
    path.write_text("\r\n".join([*BERT_SPECIAL, "a"]), encoding="utf-8", newline="")
    assert load_tokenizer(tmp_path).encode("A") == [5]
    damaged(tmp_path / "tokenizer_config.json", "strip_accents", '{"strip_accents": false}')
    with pytest.raises(FileNotFoundError, match=r"nor any of vocab.json \+ merges.txt, .*spiece.model"):
        load_tokenizer(tmp_path / "nowhere")
