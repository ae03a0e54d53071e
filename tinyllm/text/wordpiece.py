"""WordPiece, the tokenizer of BERT: words, and where a word is not in the vocabulary, its longest known pieces.

    >>> tokenizer = WordPieceTokenizer([*SPECIAL_TOKENS, "un", "aff", "##aff", "##able", "##a", "!"])
    >>> tokenizer.tokenize("Unaffable, Àff!")
    ['un', '##aff', '##able', '[UNK]', 'aff', '!']

Two steps. ``words`` tidies the text and cuts it at white space and punctuation; "uncased" models also lower its letters
and strip their accents. Then each word is cut greedily: the longest piece that it starts with, then the longest piece
that goes on from there, marked "##", and so on; a word in which that fails is [UNK] as a whole. So decoding gives back
the words, but neither the spaces nor what was stripped. (Schuster and Nakajima 2012, "Japanese and Korean Voice
Search"; Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding".)
"""

import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict
from itertools import accumulate, groupby
from pathlib import Path

import regex

from .added_tokens import AddedToken, behind
from .subword import Span, SubwordTokenizer
from .tokenizer_file import checked_text, read_tokenizer, write_tokenizer
from .wordpiece_train import SCORES, alphabet, learn_pieces

# Padding; an unknown word; the start of an input (what a classifier looks at); the end of a part; a hidden token.
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# What decoding closes up, in this order.
CLOSE_UP = {" .": ".", " ?": "?", " !": "!", " ,": ",", " ' ": "'", " n't": "n't", " 'm": "'m", " do not": " don't",
            " 's": "'s", " 've": "'ve", " 're": "'re"}
MAX_WORD_LENGTH = 100  # BERT's: what is longer is no word
CACHE_WORDS = 1 << 16  # bounds the memory; as in bpe.py, what came first stays

# The published tokenizers know the signs, accents and controls of Unicode 8. Those that came later lie in these ranges;
# for BERT they are letters. Two accents and two signs have become something else since.
LATER = (
    "\u05c8-\u05c9\u061d\u07fd\u0890-\u08e2\u09fd-\u09fe\u0a76\u0afa-\u0aff\u0b53-\u0b55\u0c04-\u0c3c\u0c77\u0c84"
    "\u0d00\u0d3b-\u0d3c\u0d81\u0eba\u0ece\u180f-\u1886\u1abf-\u1af0\u1b4e-\u1b4f\u1b7d-\u1b7f\u1df6-\u1dfb"
    "\u2e43-\u2e63\ua82c\ua8c5\ua8ff\ua9bd\U00010d24-\U00010f89\U00011070-\U00011074\U000110c2-\U000110cd\U000111c9"
    "\U000111cf\U0001123e-\U00011241\U0001133b\U000113bb-\U0001145e\U00011660-\U0001166c\U000116b9"
    "\U0001182f-\U00011fff\U00012ff1-\U0001612f\U00016d6d-\U00016f4f\U00016fe2-\U00016fe4\U0001cf00-\U0001d128"
    "\U0001d25b-\U0001d25c\U0001e000-\U0001e6f5\U0001e944-\U0001e95f"
)
CONTROL = regex.compile(rf"(?V1)[[\p{{Cc}}\p{{Cf}}\p{{Co}}\ufffd]--[\t\n\r{LATER}]]")
ACCENT = regex.compile(rf"(?V1)[[\p{{Mn}}\u1734\U0001171e]--[{LATER}]]")
# Chinese characters, each of which is a word: BERT's ranges, with a gap at U+2B820 that the published tokenizers have.
# Not in them: kana and Hangul, written in words or phrases.
CHINESE = regex.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df\U0002a700-\U0002b81f"
                        "\U0002b920-\U0002ceaf\U0002f800-\U0002fa1f]")
# A sign is a word too. Unicode counts the nine of ASCII in front among the symbols; for BERT they are punctuation.
SIGN = rf"[[\p{{P}}--[{LATER}]]$+<=>\^`|~\u166d\U000111c9]"
WORD = regex.compile(rf"(?V1){SIGN}|[^\s{SIGN}]+")


def words(text: str, lowercase: bool = True) -> list[str]:
    """Return the words and signs of ``text``, tidied: BERT's "basic tokenization".

        >>> words("Ça va, 你好？")
        ['ca', 'va', ',', '你', '好', '？']
        >>> words("Ça va", lowercase=False)
        ['Ça', 'va']
    """
    return WORD.findall(tidy(checked_text(text), lowercase))


def tidy(text: str, lowercase: bool = True) -> str:
    """Drop control characters, which show nothing, and set Chinese ones apart with spaces.

    With ``lowercase``, accents go too: each character is written as a letter and its marks (Unicode's NFD), and the
    marks are left out. That takes Hangul syllables apart as well.
    """
    text = CHINESE.sub(r" \g<0> ", CONTROL.sub("", text))
    if lowercase:
        text = ACCENT.sub("", unicodedata.normalize("NFD", text))
        text = "".join(map(str.lower, text))  # one by one: text.lower() would make the last sigma of a Greek word ς
    return text


def tidy_and_trace(text: str, lowercase: bool = True) -> tuple[str, list[Span]]:
    """Return ``tidy(text)``, and for each of its characters the span of ``text`` that it came from."""
    clean = {character: tidy(character, lowercase=False) for character in set(text)}
    spelled = [(new, (i, i + 1)) for i, character in enumerate(text) for new in clean[character]]
    if lowercase:
        spelled = _lower_and_trace(spelled)
    return "".join(new for new, _ in spelled), [span for _, span in spelled]


def _lower_and_trace(characters: list[tuple[str, Span]]) -> list[tuple[str, Span]]:
    """NFD, no accents, small letters. NFD also sorts the marks that follow a letter by where they stand on it.

    As in Hugging Face's library, the first part of each character gets the next span, even if it was sorted, and the
    other parts the same again.
    """
    parts = [(part, k == 0) for old, _ in characters for k, part in enumerate(unicodedata.normalize("NFD", old))]
    place = lambda item: unicodedata.combining(item[0])
    ordered = [item for is_mark, run in groupby(parts, lambda item: place(item) > 0)
               for item in (sorted(run, key=place) if is_mark else run)]
    number = accumulate(is_first for _, is_first in ordered)
    return [
        (new, characters[n - 1][1]) for (part, _), n in zip(ordered, number) for new in ACCENT.sub("", part).lower()
    ]


class WordPieceTokenizer(SubwordTokenizer):
    """WordPiece with a given vocabulary.

    Args:
        vocabulary: distinct strings, in the order of their ids; the SPECIAL_TOKENS have to be among them.
        lowercase: whether ``words`` lowers letters and strips accents.
        added_tokens: further tokens that are found in a text first, in the vocabulary or behind it.

    Attributes:
        vocabulary: the list of the tokens.
        added_tokens, special_tokens: see SubwordTokenizer; the SPECIAL_TOKENS are among them.
    """

    def __init__(self, vocabulary: Iterable[str], lowercase: bool = True, added_tokens: Iterable[AddedToken] = ()):
        self.vocabulary = list(vocabulary)
        self.lowercase = lowercase
        self._ids = {token: i for i, token in enumerate(self.vocabulary)}
        if len(self._ids) != len(self.vocabulary) or not all(isinstance(t, str) and t.split() for t in self._ids):
            raise ValueError("vocabulary: it must be distinct strings, none of them blank; give each token once.")
        if missing := [token for token in SPECIAL_TOKENS if token not in self._ids]:
            raise ValueError(f"vocabulary: {', '.join(missing)} is missing; put all of {SPECIAL_TOKENS} in.")
        special = {token: AddedToken(token, self._ids[token]) for token in SPECIAL_TOKENS}
        self._set_added_tokens((special | {token.content: token for token in added_tokens}).values())
        self.vocabulary += behind(self._ids, self.added_tokens)
        self._longest = max(map(len, self._ids))
        self._cache: dict[str, list[int]] = {}

    @classmethod
    def train(
        cls, text: str, vocab_size: int, lowercase: bool = True, score: str = "likelihood"
    ) -> "WordPieceTokenizer":
        """Learn a vocabulary from ``text``: the special tokens, its characters, and pieces, ``vocab_size`` in all.

        A short text can run out of pieces before: then ``tokenizer.vocab_size`` is smaller than asked for.

        Args:
            text: what to learn from; may be empty. Special tokens in it are treated as ordinary text.
            vocab_size: at least what the special tokens and the characters need; otherwise ValueError.
            lowercase: as for the class.
            score: which two pieces to join next, "likelihood", "ratio" or "count" (see wordpiece_train.py).
        """
        if score not in SCORES:
            raise ValueError(f"score: there is no {score!r}; choose one of {', '.join(SCORES)}.")
        word_counts = {word: n for word, n in Counter(words(text, lowercase)).items() if len(word) <= MAX_WORD_LENGTH}
        first = [*SPECIAL_TOKENS, *alphabet(word_counts)]
        if vocab_size < len(first):
            raise ValueError(
                f"vocab_size: {vocab_size} is too small for {len(SPECIAL_TOKENS)} special tokens and the text's "
                f"characters, which as first or later ones in words make {len(first) - len(SPECIAL_TOKENS)}; ask for "
                f"at least {len(first)}."
            )
        return cls(first + learn_pieces(word_counts, vocab_size - len(first), score), lowercase)

    @property
    def vocab_size(self) -> int:
        """The number of ids, special tokens included."""
        return len(self.vocabulary)

    def tokenize(self, text: str) -> list[str]:
        """Return the tokens of ``text`` as strings, in which nothing is a special token but [UNK]."""
        return [self.vocabulary[i] for i in self.encode(text)]

    def encode(
        self, text: str, add_special_tokens: bool = False, allowed_special: str | Collection[str] = ()
    ) -> list[int]:
        """Return the ids of ``text``.

        Args:
            text: any text; a lone surrogate in it raises ValueError.
            add_special_tokens: whether to put [CLS] in front and [SEP] at the end, which makes it an input for BERT.
                Off by default, unlike in Hugging Face's library, so that the ids of two texts can be joined.
            allowed_special: the special tokens to look for in the text, such as "[MASK]", or "all". Others are ordinary
                characters, so that nobody can end a part by writing "[SEP]".
        """
        ids = self._encode(text, allowed_special)
        if add_special_tokens:
            return [self.special_tokens["[CLS]"], *ids, self.special_tokens["[SEP]"]]
        return ids

    def encode_pair(
        self, first: str, second: str, allowed_special: str | Collection[str] = ()
    ) -> tuple[list[int], list[int]]:
        """Return (ids, token type ids) of [CLS] first [SEP] second [SEP]; the type is 0 up to the first [SEP], then 1.

        Arguments as for ``encode``.
        """
        ids = self.encode(first, True, allowed_special)
        more = self.encode(second, True, allowed_special)[1:]
        return ids + more, [0] * len(ids) + [1] * len(more)

    def _normalize(self, text: str) -> str:
        return tidy(checked_text(text), self.lowercase)

    def _trace(self, text: str) -> tuple[str, list[Span]]:
        return tidy_and_trace(checked_text(text), self.lowercase)

    def _encode_part(self, part: str) -> list[int]:
        ids: list[int] = []
        for word in WORD.findall(part):
            ids += self._encode_word(word)
        return ids

    def _pieces(self, part: str) -> Iterator[tuple[int, int, int]]:
        for match in WORD.finditer(part):
            ids, start = self._encode_word(match[0]), match.start()
            if ids == [self.special_tokens["[UNK]"]]:
                yield ids[0], start, match.end()
                continue
            for i in ids:
                end = start + len(self.vocabulary[i]) - (2 if start > match.start() else 0)  # without "##"
                yield i, start, end
                start = end

    def _encode_word(self, word: str) -> list[int]:
        found = self._cache.get(word)
        if found is None:
            found = self._longest_first(word) if len(word) <= MAX_WORD_LENGTH else [self.special_tokens["[UNK]"]]
            if len(self._cache) < CACHE_WORDS:
                self._cache[word] = found
        return found

    def _longest_first(self, word: str) -> list[int]:
        """Take the longest piece of the vocabulary each time; [UNK] for the whole word where there is none."""
        ids: list[int] = []
        start = 0
        while start < len(word):
            mark = "##" if start else ""
            for end in range(min(len(word), start + self._longest), start, -1):
                piece = self._ids.get(mark + word[start:end])
                if piece is not None:
                    break
            else:
                return [self.special_tokens["[UNK]"]]
            ids.append(piece)
            start = end
        return ids

    def token_bytes(self, i: int, first: bool) -> bytes:
        """Return a space and token ``i``, or what goes on from the token before it, without "##".

        Where a text had spaces is not known any more. As in Hugging Face's library, there are none before the signs and
        English endings in CLOSE_UP; before others there are, as in "it ' s ( so )".
        """
        token = self.vocabulary[i]
        if not first:
            token = token[2:] if token.startswith("##") else " " + token
        for apart, together in CLOSE_UP.items():
            token = token.replace(apart, together)
        return token.encode("utf-8")

    def save(self, folder: str | Path) -> None:
        """Write ``tokenizer.json`` and ``vocabulary.txt`` into ``folder``, and ``vocab.txt``, BERT's own format."""
        contents = {"type": "wordpiece", "vocabulary": list(self._ids), "lowercase": self.lowercase}
        standard = [AddedToken(token, self._ids[token]) for token in SPECIAL_TOKENS]
        if self.added_tokens != standard:
            contents["added_tokens"] = [asdict(token) for token in self.added_tokens]
        write_tokenizer(folder, contents, map(repr, self.vocabulary))
        lines = "".join(token + "\n" for token in self._ids)
        (Path(folder) / "vocab.txt").write_text(lines, encoding="utf-8", newline="\n")

    @classmethod
    def load(cls, folder: str | Path) -> "WordPieceTokenizer":
        """Return the tokenizer saved in ``folder``; ValueError if the file holds something else."""
        contents = read_tokenizer(folder)
        if contents["type"] != "wordpiece":
            raise ValueError(f"{folder}: this is not a saved WordPieceTokenizer; try load_tokenizer.")
        try:
            added = [AddedToken(**token) for token in contents.get("added_tokens", ())]
            return cls(contents["vocabulary"], contents["lowercase"], added)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{folder}: tokenizer.json is damaged ({error}); save the tokenizer again.") from None

    @classmethod
    def from_vocab(cls, path: str | Path, lowercase: bool = True) -> "WordPieceTokenizer":
        """Return the tokenizer of a ``vocab.txt``, one token a line, as BERT's are published.

        Args:
            path: the file.
            lowercase: True for "uncased" models; the file does not tell.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is not such a vocabulary.
        """
        if not Path(path).exists():
            raise FileNotFoundError(f"{path}: there is no such file; give the path of a vocab.txt.")
        try:
            return cls(Path(path).read_text(encoding="utf-8").removesuffix("\n").split("\n"), lowercase)
        except ValueError as error:
            raise ValueError(f"{path}: this is not a vocabulary of BERT's ({error})") from None
