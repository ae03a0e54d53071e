"""Small tokenizers trained by Hugging Face's library, and the files they are published in: a reference for tests."""

import json
import random
import struct

import pytest

from tinyllm.text import default_corpus

tokenizers = pytest.importorskip("tokenizers", reason="compares with Hugging Face's tokenizers; pip install it")

END = "<|endoftext|>"
CORPUS = default_corpus()[:60_000] + " naïve café, 你好世界。 مرحبا بالعالم 👩‍🚀👩‍🚀 \n\n\t  ...  it's IT'S 12345 There" * 20
LLAMA3 = (                                              # as in its tokenizer.json
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+")
BERT_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ADDED = [  # every flag
    tokenizers.AddedToken("<|im|>", special=True, normalized=False),
    tokenizers.AddedToken("<mask>", special=True, lstrip=True, rstrip=True, normalized=False),
    tokenizers.AddedToken("Covid", normalized=True),
    tokenizers.AddedToken("ab", single_word=True, normalized=False),
    tokenizers.AddedToken("<|im|>2", special=True, normalized=False),
]
MARKED = [END, "<|im|>", "<|im|>2", "<mask>", " <mask> ", "COVID", "Covid", "ab", "ab ", "[MASK]", "</s>", "<unk>",
          "<extra_id_0>", "\u1100\u1161", "e\u0301\u0323", "\u302e\U0001d165", "\u302a\U0001d165", "ﬁ", "'S", "'ſ",
          "'There", "１\u0301\u0301", "o\u0308", "È\u302e", "  \n ", "\0", "１２", "𝒜", "👩‍🚀", "مرحبا", "你好", "▁"]


def train_bpe(vocab_size=600, pre_tokenizer=None):
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer = pre_tokenizer or tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END], show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet())
    theirs.train_from_iterator([CORPUS], trainer)
    return theirs


def write_gpt2(tokenizer, folder, vocabulary="vocab.json", merges="merges.txt", shuffled=False):
    """The files as GPT-2's are published; ``shuffled`` gives ids in any order."""
    model = json.loads(tokenizer.to_str())["model"]
    ids = model["vocab"]
    if shuffled:
        order = random.Random(0).sample(range(len(ids)), len(ids))
        ids = {token: order[i] for token, i in ids.items()}
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    (folder / vocabulary).write_text(json.dumps(ids), encoding="utf-8")
    (folder / merges).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return ids, [tuple(pair) for pair in model["merges"]]


def train_wordpiece(lowercase):
    theirs = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    theirs.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lowercase)
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    theirs.decoder = tokenizers.decoders.WordPiece(cleanup=False)
    theirs.train_from_iterator([CORPUS], tokenizers.trainers.WordPieceTrainer(
        vocab_size=500, special_tokens=BERT_SPECIAL, show_progress=False))
    return theirs


# Unigram --------------------------------------------------------------------------------------------------------------


def double_array(spellings):
    """A precompiled charsmap, by first fit; see charsmap.py. The keys and values are texts."""
    root, strings = {}, b""
    for old, new in sorted((old.encode(), new.encode()) for old, new in spellings.items()):
        node = root
        for byte in old:
            node = node.setdefault(byte, {})
        node[None] = len(strings)
        strings += new + b"\0"
    units, taken = {}, {0}

    def place(at, node, label):
        labels = [0 if byte is None else byte for byte in node]
        offset = next(o for o in range(1, 1 << 21) if not any((at ^ o ^ byte) in taken for byte in labels))
        taken.update(at ^ offset ^ byte for byte in labels)
        units[at] = label | offset << 10 | (None in node) << 8
        for byte, child in node.items():
            if byte is None:
                units[at ^ offset] = 1 << 31 | child
            else:
                place(at ^ offset ^ byte, child, byte)

    place(0, root, 0)
    trie = struct.pack(f"<{max(units) + 256}I", *(units.get(i, 0) for i in range(max(units) + 256)))
    return struct.pack("<I", len(trie)) + trie + strings


SPELLINGS = {"ﬁ": "fi", "e\u0301": "é", "é": "é", "a\u0301": "á", "o\u0308": "oe", "１": "1", "２": "2", "\t": " ",
             "\n": " ", "\u3000": " ", "\u200b": " ", "\x01": "", "𝒜": "A", "㍿": "株式会社", "\u1100\u1161": "가", "▁": " "}
CHARSMAP = double_array(SPELLINGS)


def train_unigram(cut_at_white_space):
    theirs = tokenizers.Tokenizer(tokenizers.models.Unigram())
    normalizers, space = tokenizers.normalizers, tokenizers.pre_tokenizers.Metaspace(prepend_scheme="always")
    theirs.normalizer = normalizers.Precompiled(CHARSMAP)
    theirs.pre_tokenizer = space
    if cut_at_white_space:
        theirs.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([tokenizers.pre_tokenizers.WhitespaceSplit(), space])
    else:
        theirs.normalizer = normalizers.Sequence([
            normalizers.Precompiled(CHARSMAP), normalizers.Strip(left=False, right=True),
            normalizers.Replace(tokenizers.Regex(" {2,}"), "▁")])
    theirs.decoder = tokenizers.decoders.Metaspace(prepend_scheme="always")
    theirs.train_from_iterator([CORPUS], tokenizers.trainers.UnigramTrainer(
        vocab_size=400, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False))
    return theirs


def varint(n):
    return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + varint(n >> 7)


def message(*fields):
    """A protocol buffer of (number, value): a float, an integer, or bytes."""
    out = b""
    for number, value in fields:
        if isinstance(value, float):
            out += varint(8 * number + 5) + struct.pack("<f", value)
        elif isinstance(value, int):
            out += varint(8 * number) + varint(value)
        else:
            out += varint(8 * number + 2) + varint(len(value)) + value
    return out


def spiece(pieces, trainer=(), normalizer=()):
    """A spiece.model, with fields that the reader does not know; a setting given again replaces the first."""
    types = {"<pad>": [(3, 3)], "</s>": [(3, 3)], "<unk>": [(3, 2)]}
    coded = [message((1, piece.encode()), (2, score), *types.get(piece, [])) for piece, score in pieces]
    trainer = message((3, 1), (40, 2), (10, 0.9995), *trainer)
    normalizer = message((1, b"nmt_nfkc"), (2, CHARSMAP), *normalizer)
    return message(*((1, piece) for piece in coded), (2, trainer), (3, normalizer), (99, 5))
