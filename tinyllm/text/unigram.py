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

import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

import regex

from .added_tokens import AddedToken, behind
from .normalizer import normalizer_rules
from .rewrite import normalize, rewrite, rewrite_and_trace
from .subword import Span, SubwordTokenizer
from .tokenizer_file import checked_text, read_tokenizer, write_tokenizer

SPACE = "▁"
UNKNOWN_PENALTY = 10.0  # SentencePiece's: an unknown character costs this much more than the worst piece
CACHE_WORDS = 1 << 16  # both bound the memory; as in bpe.py, what came first stays
CACHE_LENGTH = 64

# Where a text is cut before Viterbi's algorithm, as published tokenizers have it. "text": not at all. "space": before
# each space, so that no piece holds one inside. "word": the same, and white space itself is dropped.
CUTS = {"text": regex.compile("(?s).+"), "space": regex.compile("(?s).+"), "word": regex.compile(r"\S+")}


class UnigramTokenizer(SubwordTokenizer):
    """A unigram tokenizer with a given vocabulary.

    Args:
        pieces: (piece, score) in the order of their ids; the score is the natural logarithm of the probability.
        unk_token: the piece for what no other covers, in this list.
        special_tokens: further pieces that stand for no text, such as "</s>"; their scores do not count.
        byte_fallback: whether an unknown character becomes the pieces "<0x00>" to "<0xFF>" of its UTF-8 bytes, all of
            which have to be in the list, instead of unk_token.
        normalization: "nmt_nfkc" (see ``normalize`` in rewrite.py), or "identity": the text as it is, each space kept.
            Then, if "▁" is a piece, decoding gives back every text without unknowns (and without a "▁" of its own,
            which comes back as a space). Or what a published file says (see normalizer.py).
        cut: one of CUTS.
        added_tokens: further tokens that are found in a text first, in the list of pieces or behind it.

    Attributes:
        pieces: the list of the (piece, score).
        added_tokens, special_tokens: see SubwordTokenizer; unk_token is among the special ones.
    """

    def __init__(
        self,
        pieces: Iterable[tuple[str, float]],
        unk_token: str = "<unk>",
        special_tokens: Collection[str] = (),
        byte_fallback: bool = False,
        normalization: str | dict = "nmt_nfkc",
        cut: str = "text",
        added_tokens: Iterable[AddedToken] = (),
    ):
        self.pieces = [(piece, float(score)) for piece, score in pieces]
        self.unk_token = unk_token
        self.byte_fallback = byte_fallback
        self.normalization = normalization
        self.cut = cut
        ids = {piece: i for i, (piece, _) in enumerate(self.pieces)}
        byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)] if byte_fallback else []
        self._check(ids, special_tokens, byte_tokens)
        self._rules = normalizer_rules(normalization)
        special = {token: AddedToken(token, ids[token]) for token in (unk_token, *special_tokens)}
        self._set_added_tokens((special | {token.content: token for token in added_tokens}).values())
        self._unknown = ids[unk_token]
        self._bytes = [ids[token] for token in byte_tokens]

        textless = {*self.special_tokens, *byte_tokens}
        self._found = {piece: (ids[piece], score) for piece, score in self.pieces if piece not in textless}
        self._longest = max(map(len, self._found), default=1)
        self._unknown_score = min((score for _, score in self._found.values()), default=0.0) - UNKNOWN_PENALTY
        # Also where nothing has to be cut, words can be cut one by one, as a piece ends where a word begins; unless
        # some piece holds a space inside, or a space itself is unknown and so part of a run of unknowns.
        crossing = SPACE not in self._found or any(SPACE in piece[1:] for piece in self._found)
        whole = cut == "text" and crossing
        self._words = regex.compile("(?s).+" if whole else f"{SPACE}?[^{SPACE}]+|{SPACE}")
        self._cache: dict[str, list[int]] = {}

        self._num_pieces = len(self.pieces)
        self.pieces += [(token, 0.0) for token in behind(ids, self.added_tokens)]
        shown = [piece.replace(SPACE, " ") if piece in self._found else piece for piece, _ in self.pieces]
        self._texts = [text.encode("utf-8") for text in shown]
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
        if self.cut not in CUTS:
            raise ValueError(f"cut: there is no {self.cut!r}; choose one of {', '.join(CUTS)}.")

    @property
    def vocab_size(self) -> int:
        """The number of ids, special tokens and bytes included."""
        return len(self.pieces)

    def tokenize(self, text: str) -> list[str]:
        """Return the pieces of ``text`` as strings."""
        return [self.pieces[i][0] for i in self.encode(text)]

    def encode(
        self, text: str, add_special_tokens: bool = False, allowed_special: str | Collection[str] = ()
    ) -> list[int]:
        """Return the ids of the likeliest cut of ``text``; a lone surrogate in it raises ValueError.

        Of two cuts that are equally likely, the one whose last differing piece is longer is taken.

        Args:
            text: any text.
            add_special_tokens: whether to put "</s>" at the end, as T5's texts have it.
            allowed_special: the special tokens to look for in the text, such as "<extra_id_0>", or "all".
        """
        ids = self._encode(text, allowed_special)
        if not add_special_tokens:
            return ids
        if "</s>" not in self.special_tokens:
            raise ValueError('add_special_tokens: this tokenizer has no "</s>"; put it among its special_tokens.')
        return [*ids, self.special_tokens["</s>"]]

    def _normalize(self, text: str) -> str:
        text = checked_text(text)
        return normalize(text) if self.normalization == "nmt_nfkc" else rewrite(text, self._rules)

    def _trace(self, text: str) -> tuple[str, list[Span]]:
        return rewrite_and_trace(checked_text(text), self._rules)

    def _words_of(self, part: str) -> Iterator[tuple[str, int, int]]:
        """The words to cut (see CUTS), with "▁" for a space and one in front of the first.

        Each comes with its place in ``part``, and with the smallest place that is in ``part``: the "▁" in front is not.
        """
        for match in CUTS[self.cut].finditer(part):
            text, place = match[0].replace(" ", SPACE), match.start()
            if self.cut == "text" or not text.startswith(SPACE):
                text, place = SPACE + text, place - 1
            for word in self._words.finditer(text):
                yield word[0], place + word.start(), match.start()

    def _encode_part(self, part: str) -> list[int]:
        ids: list[int] = []
        for word, _, _ in self._words_of(part):
            found = self._cache.get(word)
            if found is None:
                found = [i for i, _, _ in self._cut_word(word)]
                if len(word) <= CACHE_LENGTH and len(self._cache) < CACHE_WORDS:
                    self._cache[word] = found
            ids += found
        return ids

    def _pieces(self, part: str) -> Iterator[tuple[int, int, int]]:
        for word, place, first in self._words_of(part):
            for i, start, end in self._cut_word(word):  # the "▁" in front stands for the character behind it
                yield i, max(place + start, first), max(place + end, first + 1)

    def _cut_word(self, word: str) -> Iterator[tuple[int, int, int]]:
        """The best cut as (id, start, end); a run of unknown characters is one unk_token, or all its bytes."""
        start = 0
        for unknown, run in groupby(self._best_cut(word), lambda item: item[1] == self._unknown):
            pieces = list(run)
            if unknown:
                pieces = [("".join(character for character, _ in pieces), self._unknown)]
            for piece, i in pieces:
                end = start + len(piece)
                as_bytes = unknown and self.byte_fallback
                for token in [self._bytes[byte] for byte in piece.encode("utf-8")] if as_bytes else [i]:
                    yield token, start, end
                start = end

    def _best_cut(self, text: str) -> list[tuple[str, int]]:
        """Return (piece, id) of the best cut, by Viterbi's algorithm; the id of an unknown character is unk_token's."""
        unknown = (self._unknown, self._unknown_score)
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

    def token_bytes(self, i: int, first: bool) -> bytes:
        """Return the bytes of piece ``i``, with spaces for "▁"; not the first one, which encode put in front."""
        text = self._texts[i]
        return text.removeprefix(b" ") if first and self.pieces[i][0].startswith(SPACE) else text

    def save(self, folder: str | Path) -> None:
        """Write ``tokenizer.json`` and ``vocabulary.txt`` into ``folder``."""
        pieces = self.pieces[: self._num_pieces]
        known = {piece: i for i, (piece, _) in enumerate(pieces)}
        contents = {
            "type": "unigram",
            "pieces": pieces,
            "unk_token": self.unk_token,
            "special_tokens": [token for token in self.special_tokens if token in known and token != self.unk_token],
            "byte_fallback": self.byte_fallback,
            "normalization": self.normalization,
        }
        if self.cut != "text":
            contents["cut"] = self.cut
        in_the_list = lambda token: token == AddedToken(token.content, known.get(token.content, -1))
        if added := [asdict(token) for token in self.added_tokens if not in_the_list(token)]:
            contents["added_tokens"] = added
        write_tokenizer(folder, contents, [f"{piece!r}\t{score}" for piece, score in self.pieces])

    @classmethod
    def load(cls, folder: str | Path) -> "UnigramTokenizer":
        """Return the tokenizer saved in ``folder``; ValueError if the file holds something else."""
        contents = read_tokenizer(folder)
        if contents.pop("type") != "unigram":
            raise ValueError(f"{folder}: this is not a saved UnigramTokenizer; try load_tokenizer.")
        try:
            contents["added_tokens"] = [AddedToken(**token) for token in contents.get("added_tokens", ())]
            return cls(**contents)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{folder}: tokenizer.json is damaged ({error}); save the tokenizer again.") from None
