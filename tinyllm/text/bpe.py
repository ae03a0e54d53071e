"""Byte-level byte-pair encoding, the tokenizer of GPT-2: from any text to ids and back.

    >>> tokenizer = BPETokenizer.train("low low low lower", vocab_size=259)
    >>> tokenizer.vocabulary[256:]
    [b'lo', b'low', b' low']
    >>> tokenizer.encode("lower")
    [257, 101, 114]

Ids 0 to 255 are the bytes, so that every text has an encoding, in any language; then come the merges, in the order of
learning (bpe_train.py); last, the special tokens, which stand for no text, such as the end of a document.
(Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units"; Radford et al. 2019, "Language
Models are Unsupervised Multitask Learners".)
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import regex

from .bpe_merge import apply_merges
from .bpe_train import learn_merges
from .pretokenize import pretokenize, to_bytes
from .show_work import PieceWork, piece_work
from .tokenizer_file import checked_ids, read_tokenizer, readable, write_tokenizer

# A few words make up most of any text (Zipf's law), and they turn up early: so the cache keeps what came first. Both
# numbers bound its memory.
CACHE_PIECES = 1 << 16
CACHE_LENGTH = 64


class BPETokenizer:
    """Byte-pair encoding with given merges.

    Args:
        merges: pairs of ids; pair number r makes the id 256 + r, and both its ids are smaller than that.
        special_tokens: distinct strings, which get the ids after the last merge.

    Attributes:
        merges: dict from a pair of ids to the id of the two together.
        vocabulary: list of the bytes of each id.
        special_tokens: dict from a special token to its id.
    """

    def __init__(self, merges: Iterable[tuple[int, int]], special_tokens: Sequence[str] = ()):
        _check_special_tokens(special_tokens)
        self.merges: dict[tuple[int, int], int] = {}
        self.vocabulary = [bytes([i]) for i in range(256)]
        for left, right in merges:
            new = len(self.vocabulary)
            if not (0 <= left < new and 0 <= right < new) or (left, right) in self.merges:
                raise ValueError(f"merges: ({left}, {right}), for id {new}, is repeated or uses an id not made so far.")
            self.merges[left, right] = new
            self.vocabulary.append(self.vocabulary[left] + self.vocabulary[right])
        self.special_tokens = {token: len(self.vocabulary) + i for i, token in enumerate(special_tokens)}
        self.vocabulary += [token.encode("utf-8") for token in special_tokens]
        self._cache: dict[str, list[int]] = {}

    @classmethod
    def train(cls, text: str, vocab_size: int, special_tokens: Sequence[str] = ()) -> "BPETokenizer":
        """Learn merges from ``text`` until there are ``vocab_size`` ids.

        A short text can run out of pairs to merge before: then ``tokenizer.vocab_size`` is smaller than asked for.

        Args:
            text: what to learn from; may be empty. Special tokens in it are treated as ordinary text.
            vocab_size: at least 256 and the number of special tokens; otherwise ValueError.
            special_tokens: as for the class.
        """
        smallest = 256 + len(special_tokens)
        if vocab_size < smallest:
            raise ValueError(
                f"vocab_size: {vocab_size} is too small for 256 bytes and {len(special_tokens)} special tokens; "
                f"ask for at least {smallest}."
            )
        word_counts = {to_bytes(piece): count for piece, count in Counter(pretokenize(text)).items()}
        return cls(learn_merges(word_counts, vocab_size - smallest), special_tokens)

    @property
    def vocab_size(self) -> int:
        """The number of ids: bytes, merges and special tokens."""
        return len(self.vocabulary)

    def encode(self, text: str, allowed_special: str | Collection[str] = ()) -> list[int]:
        """Return the ids of ``text``.

        Special tokens are found only if allowed. By default "<|endoftext|>" in a text is thirteen ordinary characters,
        so that nobody can end a document by writing that.

        Args:
            text: any text; a lone surrogate in it raises ValueError (see ``to_bytes`` in pretokenize.py).
            allowed_special: the special tokens to look for, or "all"; one that is not this tokenizer's is a ValueError.
        """
        if allowed_special == "all":
            allowed_special = self.special_tokens
        elif isinstance(allowed_special, str):
            allowed_special = [allowed_special]
        for token in allowed_special:
            if token not in self.special_tokens:
                raise ValueError(f"allowed_special: {token!r} is not a special token of this tokenizer.")
        if not allowed_special:
            return self.encode_ordinary(text)
        longest_first = sorted(allowed_special, key=len, reverse=True)  # "<|end|>2" before "<|end|>"
        ids: list[int] = []
        for part in regex.split(f"({'|'.join(map(regex.escape, longest_first))})", text):
            ids += [self.special_tokens[part]] if part in allowed_special else self.encode_ordinary(part)
        return ids

    def encode_ordinary(self, text: str) -> list[int]:
        """Return the ids of ``text``, in which nothing is a special token."""
        ids: list[int] = []
        for piece in pretokenize(text):
            found = self._cache.get(piece)
            if found is None:
                found = apply_merges(to_bytes(piece), self.merges)
                if len(piece) <= CACHE_LENGTH and len(self._cache) < CACHE_PIECES:
                    self._cache[piece] = found
            ids += found
        return ids

    def encode_bytes(self, data: bytes) -> list[int]:
        """Return the ids of any bytes, UTF-8 or not; ``decode_bytes`` gives the same bytes back."""
        return self.encode_ordinary(data.decode("utf-8", errors="surrogateescape"))

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the bytes of ``ids``; an id outside the vocabulary raises ValueError."""
        return b"".join(self.vocabulary[i] for i in checked_ids(ids, self.vocab_size))

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ``ids``.

        A model can produce bytes that are not UTF-8, say half a Chinese character: they become U+FFFD, "�".
        """
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def show_work(self, text: str) -> list[PieceWork]:
        """Encode step by step: for each piece of ``text`` its bytes, the merges in order and the ids; print each."""
        return [piece_work(piece, self.merges, self.vocabulary) for piece in pretokenize(text)]

    def save(self, folder: str | Path) -> None:
        """Write ``tokenizer.json`` and ``vocabulary.txt`` into ``folder``."""
        tokens = [readable(token) for token in self.vocabulary]
        halves = {new: f" = {tokens[left]} + {tokens[right]}" for (left, right), new in self.merges.items()}
        contents = {"type": "bpe", "merges": list(self.merges), "special_tokens": list(self.special_tokens)}
        write_tokenizer(folder, contents, [token + halves.get(i, "") for i, token in enumerate(tokens)])

    @classmethod
    def load(cls, folder: str | Path) -> "BPETokenizer":
        """Return the tokenizer saved in ``folder``; ValueError if the file holds something else."""
        contents = read_tokenizer(folder)
        if contents["type"] != "bpe":
            raise ValueError(f"{folder}: this is not a saved BPETokenizer; try load_tokenizer.")
        try:
            return cls(contents["merges"], contents["special_tokens"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{folder}: tokenizer.json is damaged ({error}); save the tokenizer again.") from None


def _check_special_tokens(special_tokens: Sequence[str]) -> None:
    if isinstance(special_tokens, str):  # a string is a collection of strings too, but not of the ones that are meant
        raise ValueError(f"special_tokens: {special_tokens!r} is one string; give a list of strings.")
    if len(set(special_tokens)) != len(special_tokens) or not all(isinstance(t, str) and t for t in special_tokens):
        raise ValueError(f"special_tokens: {list(special_tokens)} must be distinct strings, none of them empty.")
