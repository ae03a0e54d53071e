"""The unigram tokenizer of SentencePiece, T5 and XLNet: of all ways to cut a text into pieces, the likeliest.

Each piece x has a probability p(x), and pieces are taken to be independent of each other (hence "unigram"). A cut of a
text into x_1 .. x_m then has the probability p(x_1) ... p(x_m), and the best cut maximises the sum of scores ln p(x_i)
(Kudo 2018, "Subword Regularization: Improving Neural Network Translation Models with Multiple Subword Candidates",
section 3.2). A text of n characters has up to 2^(n-1) cuts, but the best one ends in some piece, and what stands
before that piece must itself be cut in the best way. So with best(e) the score of the best cut of the first e
characters,

    best(0) = 0,    best(e) = max over s < e of  best(s) + score(text[s:e])        where text[s:e] is a piece

which is Viterbi's algorithm (1967): one pass from left to right, then back along the s that won. For instance

    >>> scores = {"▁lo": -3.2, "▁low": -3.0, "er": -3.5, "wer": -5.0, **dict.fromkeys("▁lower", -4.0)}
    >>> tokenizer = UnigramTokenizer([("<unk>", 0.0), *scores.items()])
    >>> tokenizer.tokenize("lower")
    ['▁low', 'er']

    text        ▁       ▁l      ▁lo     ▁low    ▁lowe               ▁lower
    best        -4      -8      -3.2    -3      -3 - 4 = -7         the largest of -3 - 3.5 (er), -3.2 - 5 (wer), -7 - 4
    last piece  ▁       l       ▁lo     ▁low    e                   er

"▁" (U+2581) stands for a space, so that pieces know where words begin and decoding is joining; one is put in front of
the text as well. The vocabulary is made elsewhere: here it is given, or read from a file.
"""

import json
import math
import unicodedata
from collections.abc import Collection, Iterable
from pathlib import Path

import regex

from .tokenizer_file import checked_ids, checked_text, read_tokenizer, write_tokenizer

SPACE = "▁"
UNKNOWN_PENALTY = 10.0  # SentencePiece's: an unknown character costs this much more than the worst piece
UNKNOWN_TEXT = " ⁇ "  # how SentencePiece shows one
NORMALIZATIONS = ("nmt_nfkc", "identity")
CACHE_WORDS = 1 << 16  # both bound the memory; as in bpe.py, what came first stays
CACHE_LENGTH = 64

# What SentencePiece's "nmt_nfkc" adds to Unicode's NFKC: signs that become a space, and controls that are dropped.
SPACES = "\t\n\f\r\u061c\u1680\u200b\u200c\u200e\u200f\u2028\u2029\u2581\ufeff\ufffd"
DROPPED = "".join(map(chr, [*range(9), 0x0B, *range(0x0E, 0x20), 0x7F, 0x8F, 0x9F]))
SPACES_AND_CONTROLS = str.maketrans(SPACES, " " * len(SPACES), DROPPED)


def normalize(text: str) -> str:
    """Return ``text`` as SentencePiece does by default ("nmt_nfkc"): one spelling per character, single spaces.

    NFKC makes "ﬁ" two letters and "①" a digit; only the full-width tilde stays, as Japanese tells it from the other.
    All white space becomes spaces, line ends too, of which one is left between two words and none at the ends.
    """
    parts = text.translate(SPACES_AND_CONTROLS).split("～")
    text = "～".join(unicodedata.normalize("NFKC", part) for part in parts)
    return regex.sub(" +", " ", text).strip(" ")


class UnigramTokenizer:
    """A unigram tokenizer with a given vocabulary.

    Args:
        pieces: (piece, score) in the order of their ids; the score is the natural logarithm of the probability.
        unk_token: the piece for what no other covers, in this list.
        special_tokens: further pieces that stand for no text, such as "</s>"; they are never found in a text, and their
            scores do not count.
        byte_fallback: whether an unknown character becomes the pieces "<0x00>" to "<0xFF>" of its UTF-8 bytes, all of
            which have to be in the list, instead of unk_token.
        normalization: "nmt_nfkc" (see ``normalize``), or "identity": the text as it is, each space kept. Then decoding
            gives back every text without unknowns (and without a "▁" of its own, which comes back as a space).

    Attributes:
        pieces: the list of the (piece, score).
        special_tokens: dict from a special token, unk_token included, to its id.
    """

    def __init__(
        self,
        pieces: Iterable[tuple[str, float]],
        unk_token: str = "<unk>",
        special_tokens: Collection[str] = (),
        byte_fallback: bool = False,
        normalization: str = "nmt_nfkc",
    ):
        self.pieces = [(piece, float(score)) for piece, score in pieces]
        self.unk_token = unk_token
        self.byte_fallback = byte_fallback
        self.normalization = normalization
        ids = {piece: i for i, (piece, _) in enumerate(self.pieces)}
        byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)] if byte_fallback else []
        self._check(ids, special_tokens, byte_tokens)
        self.special_tokens = {token: ids[token] for token in (unk_token, *special_tokens)}
        self._bytes = [ids[token] for token in byte_tokens]

        textless = {*self.special_tokens, *byte_tokens}
        self._found = {piece: (ids[piece], score) for piece, score in self.pieces if piece not in textless}
        self._longest = max(map(len, self._found), default=1)
        self._unknown_score = min((score for _, score in self._found.values()), default=0.0) - UNKNOWN_PENALTY
        # Words can be cut one by one, as a piece ends where a word begins; unless some piece holds a space inside, or a
        # space itself is unknown and so part of a run of unknowns.
        crossing = SPACE not in self._found or any(SPACE in piece[1:] for piece in self._found)
        self._words = regex.compile("(?s).+" if crossing else f"{SPACE}?[^{SPACE}]+|{SPACE}")
        self._cache: dict[str, list[int]] = {}

        self._texts = [piece.encode("utf-8") for piece, _ in self.pieces]  # for decoding
        for i in self.special_tokens.values():
            self._texts[i] = UNKNOWN_TEXT.encode("utf-8") if i == ids[unk_token] else b""
        for byte, i in enumerate(self._bytes):
            self._texts[i] = bytes([byte])

    def _check(self, ids: dict[str, int], special_tokens: Collection[str], byte_tokens: list[str]) -> None:
        if len(ids) != len(self.pieces) or not all(isinstance(piece, str) and piece for piece in ids):
            raise ValueError("pieces: they must be distinct strings, none of them empty; give each piece once.")
        if wrong := [piece for piece, score in self.pieces if not math.isfinite(score)]:
            raise ValueError(f"pieces: the score of {wrong[0]!r} is not finite; give the logarithm of a probability.")
        if isinstance(special_tokens, str):
            raise ValueError(f"special_tokens: {special_tokens!r} is one string; give a list of strings.")
        for token in (self.unk_token, *special_tokens, *byte_tokens):
            if token not in ids:
                raise ValueError(f"pieces: {token!r} is missing; every special token and byte needs a piece.")
        if self.normalization not in NORMALIZATIONS:
            raise ValueError(
                f"normalization: there is no {self.normalization!r}; choose one of {', '.join(NORMALIZATIONS)}."
            )

    @property
    def vocab_size(self) -> int:
        """The number of ids, special tokens and bytes included."""
        return len(self.pieces)

    def tokenize(self, text: str) -> list[str]:
        """Return the pieces of ``text`` as strings."""
        return [self.pieces[i][0] for i in self.encode(text)]

    def encode(self, text: str) -> list[int]:
        """Return the ids of the likeliest cut of ``text``; a lone surrogate in it raises ValueError.

        Of two cuts that are equally likely, the one whose last differing piece is longer is taken.
        """
        text = checked_text(text)
        if self.normalization == "nmt_nfkc":
            text = normalize(text)
        if not text:
            return []
        ids: list[int] = []
        for word in self._words.findall(SPACE + text.replace(" ", SPACE)):
            found = self._cache.get(word)
            if found is None:
                found = self._ids_of(word)
                if len(word) <= CACHE_LENGTH and len(self._cache) < CACHE_WORDS:
                    self._cache[word] = found
            ids += found
        return ids

    def _ids_of(self, word: str) -> list[int]:
        """The pieces of the best cut as ids; unknown characters as bytes, or a run of them as one unk_token."""
        ids: list[int] = []
        unknown = self.special_tokens[self.unk_token]
        for piece, i in self._best_cut(word):
            if i != unknown:
                ids.append(i)
            elif self.byte_fallback:
                ids += [self._bytes[byte] for byte in piece.encode("utf-8")]
            elif ids[-1:] != [unknown]:
                ids.append(unknown)
        return ids

    def _best_cut(self, text: str) -> list[tuple[str, int]]:
        """Return (piece, id) of the best cut, by Viterbi's algorithm; the id of an unknown character is unk_token's."""
        unknown = (self.special_tokens[self.unk_token], self._unknown_score)
        best = [0.0] + [float("-inf")] * len(text)  # of the cuts that end at each place
        last = [(0, 0)] * len(best)  # where the last piece of that cut starts, and its id
        for start in range(len(text)):
            for end in range(start + 1, min(start + self._longest, len(text)) + 1):
                found = self._found.get(text[start:end], unknown if end == start + 1 else None)
                if found and best[start] + found[1] > best[end]:
                    best[end] = best[start] + found[1]
                    last[end] = (start, found[0])
        cut = []
        end = len(text)
        while end:
            start, i = last[end]
            cut.append((text[start:end], i))
            end = start
        return cut[::-1]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ``ids``; an id outside the vocabulary raises ValueError.

        The unknown is shown as " ⁇ ", other special tokens are not shown. Bytes that are no UTF-8 become U+FFFD, "�".
        """
        data = b"".join(self._texts[i] for i in checked_ids(ids, self.vocab_size))
        text = data.decode("utf-8", errors="replace").replace(SPACE, " ")
        return text.removeprefix(" ")  # the one that encode put in front

    def save(self, folder: str | Path) -> None:
        """Write ``tokenizer.json`` and ``vocabulary.txt`` into ``folder``."""
        contents = {
            "type": "unigram",
            "pieces": self.pieces,
            "unk_token": self.unk_token,
            "special_tokens": [token for token in self.special_tokens if token != self.unk_token],
            "byte_fallback": self.byte_fallback,
            "normalization": self.normalization,
        }
        write_tokenizer(folder, contents, [f"{piece!r}\t{score}" for piece, score in self.pieces])

    @classmethod
    def load(cls, folder: str | Path) -> "UnigramTokenizer":
        """Return the tokenizer saved in ``folder``; ValueError if the file holds something else."""
        contents = read_tokenizer(folder)
        if contents.pop("type") != "unigram":
            raise ValueError(f"{folder}: this is not a saved UnigramTokenizer; try load_tokenizer.")
        try:
            return cls(**contents)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{folder}: tokenizer.json is damaged ({error}); save the tokenizer again.") from None

    @classmethod
    def from_huggingface(cls, path: str | Path) -> "UnigramTokenizer":
        """Return the tokenizer of a ``tokenizer.json`` as Hugging Face's library writes it for SentencePiece models.

        Pieces, special tokens and byte fallback are taken from it. If it normalizes the text, that is done by
        ``normalize``: the tables of most models come from SentencePiece's default. What it adds around a text, such as
        a "</s>" at the end, is up to the caller.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is not of a unigram model, or normalizes in another way, such as lower-casing.
        """
        if not Path(path).exists():
            raise FileNotFoundError(f"{path}: there is no such file; give the path of a tokenizer.json.")
        try:
            contents = json.loads(Path(path).read_text(encoding="utf-8"))
            model, added = contents["model"], contents.get("added_tokens") or []
            if model["type"] != "Unigram":
                raise ValueError(f"its model is {model['type']}")
            unknown_steps = _steps(contents.get("normalizer")) - {"Precompiled", "NFKC", "Nmt", "Replace", "Strip"}
            if unknown_steps:
                raise ValueError(f"it normalizes with {', '.join(sorted(unknown_steps))}")
            pieces = [tuple(piece) for piece in model["vocab"]]
            for token in sorted(added, key=lambda token: token["id"]):
                if token["id"] == len(pieces):  # one that was added behind the model's own
                    pieces.append((token["content"], 0.0))
            unk_token = pieces[model["unk_id"]][0]
            special = [token["content"] for token in added if token["special"]]
            normalization = "nmt_nfkc" if contents.get("normalizer") else "identity"
            return cls(pieces, unk_token, special, model.get("byte_fallback", False), normalization)
        except (KeyError, TypeError, IndexError, ValueError) as error:
            raise ValueError(f"{path}: this is not a unigram tokenizer that can be read here ({error}).") from None


def _steps(normalizer: dict | None) -> set[str]:
    """The types of all steps of a normalizer, which may be a sequence of others."""
    if not normalizer:
        return set()
    if normalizer["type"] == "Sequence":
        return set().union(*map(_steps, normalizer["normalizers"]))
    return {normalizer["type"]}
