"""Loading a tokenizer of any kind from the folder it was saved in."""

from pathlib import Path

from .bpe import BPETokenizer
from .char import CharTokenizer
from .tokenizer_file import read_tokenizer
from .unigram import UnigramTokenizer
from .wordpiece import WordPieceTokenizer

TYPES = {"char": CharTokenizer, "bpe": BPETokenizer, "wordpiece": WordPieceTokenizer, "unigram": UnigramTokenizer}


def load_tokenizer(folder: str | Path) -> CharTokenizer | BPETokenizer | WordPieceTokenizer | UnigramTokenizer:
    """Return the tokenizer saved in ``folder``, whichever class it is of.

    Raises:
        FileNotFoundError: the folder holds no ``tokenizer.json``.
        ValueError: the file is damaged, or is not one of ours.
    """
    kind = read_tokenizer(folder)["type"]
    if kind not in TYPES:
        raise ValueError(f"{folder}: tokenizer.json is of type {kind!r}; this version reads {', '.join(TYPES)}.")
    return TYPES[kind].load(folder)
