"""The simplest tokenizer: one token per character.

    >>> tokenizer = CharTokenizer.train("banana")
    >>> tokenizer.characters
    'abn'
    >>> tokenizer.encode("nab")
    [2, 0, 1]

Nothing to learn and nothing to go wrong, but sequences are long, and a character that was not in the training text
has no id. Both are what byte-pair encoding (bpe.py) mends.
"""

from collections.abc import Iterable
from pathlib import Path

from .tokenizer_file import checked_ids, read_tokenizer, write_tokenizer


class CharTokenizer:
    """Maps each of a fixed set of characters to its position in ``characters``.

    Args:
        characters: the vocabulary, a string of distinct characters: id 0 is the first of them.
    """

    def __init__(self, characters: str):
        if len(set(characters)) != len(characters):
            raise ValueError("characters: one occurs twice; give each character once.")
        self.characters = characters
        self._ids = {character: i for i, character in enumerate(characters)}

    @classmethod
    def train(cls, text: str) -> "CharTokenizer":
        """Return the tokenizer whose vocabulary is the sorted distinct characters of ``text``."""
        return cls("".join(sorted(set(text))))

    @property
    def vocab_size(self) -> int:
        """The number of ids."""
        return len(self.characters)

    def encode(self, text: str) -> list[int]:
        """Return an id for each character; ValueError names the first one that is not in the vocabulary."""
        try:
            return [self._ids[character] for character in text]
        except KeyError as error:
            unknown = error.args[0]
            raise ValueError(
                f"text: {unknown!r} at position {text.index(unknown)} is not in this tokenizer's vocabulary; "
                "train it on a text with that character, or use BPETokenizer, which knows every text."
            ) from None

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return (ids, offsets): ``encode``'s ids, and for each the (start, end) of its character in ``text``."""
        return self.encode(text), [(i, i + 1) for i in range(len(text))]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ``ids``; an id outside the vocabulary raises ValueError."""
        return "".join(self.characters[i] for i in checked_ids(ids, self.vocab_size))

    def token_bytes(self, i: int, first: bool) -> bytes:
        """Return what id ``i`` adds to a decoded text, in UTF-8; see StreamingDecoder."""
        return self.characters[i].encode("utf-8", errors="replace")

    def save(self, folder: str | Path) -> None:
        """Write ``tokenizer.json`` and ``vocabulary.txt`` into ``folder``."""
        write_tokenizer(folder, {"type": "char", "characters": self.characters}, map(repr, self.characters))

    @classmethod
    def load(cls, folder: str | Path) -> "CharTokenizer":
        """Return the tokenizer saved in ``folder``; ValueError if the file holds something else."""
        contents = read_tokenizer(folder)
        if contents["type"] != "char" or not isinstance(contents.get("characters"), str):
            raise ValueError(f"{folder}: this is not a saved CharTokenizer; try load_tokenizer.")
        return cls(contents["characters"])
