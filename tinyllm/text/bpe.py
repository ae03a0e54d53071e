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
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from .added_tokens import AddedToken
from .bpe_merge import apply_merges
from .bpe_train import learn_merges
from .byte_characters import from_characters, to_characters
from .pretokenize import PATTERNS, pretokenize, to_bytes
from .show_work import PieceWork, piece_work
from .subword import Span, SubwordTokenizer
from .tokenizer_file import checked_ids, read_tokenizer, readable, tokens_by_id, write_tokenizer

# A few words make up most of any text (Zipf's law), and they turn up early: so the cache keeps what came first. Both
# numbers bound its memory.
CACHE_PIECES = 1 << 16
CACHE_LENGTH = 64


class BPETokenizer(SubwordTokenizer):
    """Byte-pair encoding with given merges.

    Args:
        merges: pairs of ids; pair number r makes the id 256 + r, and both its ids are smaller than that.
        special_tokens: distinct strings, which get the ids after the last merge.

    Attributes:
        merges: dict from a pair of ids to the id of the two together.
        ranks: dict from a pair of ids to its place in the order of learning, from 0.
        vocabulary: list of the bytes of each id.
        added_tokens, special_tokens: see SubwordTokenizer.
    """

    def __init__(self, merges: Iterable[tuple[int, int]], special_tokens: Sequence[str] = ()):
        _check_special_tokens(special_tokens)
        made: dict[tuple[int, int], int] = {}
        vocabulary = [bytes([i]) for i in range(256)]
        for left, right in merges:
            new = len(vocabulary)
            if not (0 <= left < new and 0 <= right < new) or (left, right) in made:
                raise ValueError(f"merges: ({left}, {right}), for id {new}, is repeated or uses an id not made so far.")
            made[left, right] = new
            vocabulary.append(vocabulary[left] + vocabulary[right])
        added = [AddedToken(token, len(vocabulary) + i) for i, token in enumerate(special_tokens)]
        self._set_up(vocabulary + [token.encode("utf-8") for token in special_tokens], made, added)

    @classmethod
    def from_vocabulary(
        cls,
        vocabulary: Mapping[bytes, int],
        merges: Iterable[tuple[bytes, bytes]],
        added_tokens: Iterable[AddedToken] = (),
        pattern: str = "gpt2",
        whole_pieces: bool = False,
    ) -> "BPETokenizer":
        """Return a tokenizer whose ids stand in any order, such as a published one.

        GPT-2's, for one, has the letters before the control characters, and one token can come of several merges.

        Args:
            vocabulary: the id of each token; every single byte has to be in it.
            merges: pairs of tokens in the order of learning; the two together have to be in the vocabulary.
            added_tokens: tokens that are found in a text first; their ids may lie in the vocabulary or outside.
            pattern: how a text is cut into pieces, "gpt2" or "llama3" (see pretokenize.py).
            whole_pieces: whether a piece that is in the vocabulary is one token without any merge.

        Raises:
            ValueError: a byte or the token of a merge is missing, two tokens have one id, or there is no such pattern.
        """
        if missing := [byte for byte in range(256) if bytes([byte]) not in vocabulary]:
            raise ValueError(f"vocabulary: the byte {missing[0]:#04x} is missing; each of the 256 needs an id.")
        if pattern not in PATTERNS:
            raise ValueError(f"pattern: there is no {pattern!r}; choose one of {', '.join(PATTERNS)}.")
        made = {}
        for left, right in merges:
            if missing := [token for token in (left, right, left + right) if token not in vocabulary]:
                raise ValueError(f"merges: {left!r} + {right!r} needs {missing[0]!r}, which is not in the vocabulary.")
            pair = vocabulary[left], vocabulary[right]
            if pair in made:
                raise ValueError(f"merges: {left!r} + {right!r} occurs twice; give each merge once.")
            made[pair] = vocabulary[left + right]
        added = list(added_tokens)
        tokens = tokens_by_id({**vocabulary, **{token.content.encode("utf-8"): token.id for token in added}})
        tokenizer = cls.__new__(cls)
        tokenizer._set_up([token or b"" for token in tokens], made, added, dict(vocabulary), pattern, whole_pieces)
        return tokenizer

    def _set_up(
        self,
        vocabulary: list[bytes],
        merges: dict[tuple[int, int], int],
        added_tokens: list[AddedToken],
        ids: dict[bytes, int] | None = None,  # None: they are in the order of the class
        pattern: str = "gpt2",
        whole_pieces: bool = False,
    ) -> None:
        self.vocabulary = vocabulary
        self.merges = merges
        self.ranks = {pair: rank for rank, pair in enumerate(merges)}
        self._given_ids = ids
        self._byte_ids = [ids[bytes([byte])] if ids else byte for byte in range(256)]
        self.pattern = pattern
        self.whole_pieces = whole_pieces
        self._cache: dict[str, list[int]] = {}
        self._set_added_tokens(added_tokens)

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
        return self._encode(text, allowed_special)

    def encode_ordinary(self, text: str) -> list[int]:
        """Return the ids of ``text``, in which no added token is looked for, special or not."""
        ids: list[int] = []
        for piece in pretokenize(text, self.pattern):
            found = self._cache.get(piece)
            ids += self._encode_piece(piece) if found is None else found
        return ids

    def _encode_piece(self, piece: str) -> list[int]:
        """The ids of one piece, which are kept for the next time."""
        data = to_bytes(piece)
        if self.whole_pieces and data in self._given_ids:
            found = [self._given_ids[data]]
        else:
            found = apply_merges([self._byte_ids[byte] for byte in data], self.merges, self.ranks)
        if len(piece) <= CACHE_LENGTH and len(self._cache) < CACHE_PIECES:
            self._cache[piece] = found
        return found

    _encode_part = encode_ordinary

    def _normalize(self, text: str) -> str:
        return text

    def _trace(self, text: str) -> tuple[str, list[Span]]:
        return text, [(i, i + 1) for i in range(len(text))]

    def _pieces(self, part: str) -> Iterator[tuple[int, int, int]]:
        start = 0
        for piece in pretokenize(part, self.pattern):
            owner = [start + i for i, character in enumerate(piece) for _ in to_bytes(character)]  # of each byte
            end = 0
            for i in self.encode_ordinary(piece):
                end += len(self.vocabulary[i])
                yield i, owner[end - len(self.vocabulary[i])], owner[end - 1] + 1
            start += len(piece)

    def encode_bytes(self, data: bytes) -> list[int]:
        """Return the ids of any bytes, UTF-8 or not; ``decode_bytes`` gives the same bytes back."""
        return self.encode_ordinary(data.decode("utf-8", errors="surrogateescape"))

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the bytes of ``ids``; an id outside the vocabulary raises ValueError."""
        return b"".join(self.vocabulary[i] for i in checked_ids(ids, self.vocab_size))

    def token_bytes(self, i: int, first: bool) -> bytes:
        """Return the bytes of id ``i``."""
        return self.vocabulary[i]

    def show_work(self, text: str) -> list[PieceWork]:
        """Encode step by step: for each piece of ``text`` its bytes, the merges in order and the ids; print each."""
        pieces = pretokenize(text, self.pattern)
        return [piece_work(piece, self._byte_ids, self.merges, self.ranks, self.vocabulary) for piece in pieces]

    def save(self, folder: str | Path) -> None:
        """Write ``tokenizer.json`` and ``vocabulary.txt`` into ``folder``."""
        tokens = [readable(token) for token in self.vocabulary]
        halves = {new: f" = {tokens[left]} + {tokens[right]}" for (left, right), new in self.merges.items()}
        contents = {"type": "bpe", "merges": list(self.merges), "special_tokens": list(self.special_tokens)}
        if self._given_ids:
            contents = {
                "type": "bpe",
                "vocabulary": {to_characters(token): i for token, i in self._given_ids.items()},
                "merges": [[to_characters(self.vocabulary[i]) for i in pair] for pair in self.merges],
                "added_tokens": [asdict(token) for token in self.added_tokens],
                "pattern": self.pattern,
                "whole_pieces": self.whole_pieces,
            }
        write_tokenizer(folder, contents, [token + halves.get(i, "") for i, token in enumerate(tokens)])

    @classmethod
    def load(cls, folder: str | Path) -> "BPETokenizer":
        """Return the tokenizer saved in ``folder``; ValueError if the file holds something else."""
        contents = read_tokenizer(folder)
        if contents.pop("type") != "bpe":
            raise ValueError(f"{folder}: this is not a saved BPETokenizer; try load_tokenizer.")
        try:
            if "vocabulary" not in contents:
                return cls(contents["merges"], contents["special_tokens"])
            contents["vocabulary"] = {from_characters(token): i for token, i in contents["vocabulary"].items()}
            contents["merges"] = [(from_characters(left), from_characters(right)) for left, right in contents["merges"]]
            contents["added_tokens"] = [AddedToken(**token) for token in contents["added_tokens"]]
            return cls.from_vocabulary(**contents)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{folder}: tokenizer.json is damaged ({error}); save the tokenizer again.") from None


def _check_special_tokens(special_tokens: Sequence[str]) -> None:
    if isinstance(special_tokens, str):  # a string is a collection of strings too, but not of the ones that are meant
        raise ValueError(f"special_tokens: {special_tokens!r} is one string; give a list of strings.")
    if len(set(special_tokens)) != len(special_tokens) or not all(isinstance(t, str) and t for t in special_tokens):
        raise ValueError(f"special_tokens: {list(special_tokens)} must be distinct strings, none of them empty.")
