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
from collections.abc import Collection, Iterable
from pathlib import Path

import regex

from .tokenizer_file import checked_ids, checked_text, read_tokenizer, write_tokenizer
from .wordpiece_train import SCORES, alphabet, learn_pieces

# Padding; an unknown word; the start of an input (what a classifier looks at); the end of a part; a hidden token.
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_WORD_LENGTH = 100  # BERT's: what is longer is no word
CACHE_WORDS = 1 << 16  # bounds the memory; as in bpe.py, what came first stays

CONTROL = regex.compile(r"(?![\t\n\r])[\p{Cc}\p{Cf}\p{Co}]|\ufffd")
# Chinese characters, each of which is a word: BERT's ranges. Not in them: kana and Hangul, written in words or phrases.
CHINESE = regex.compile(
    "[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df\U0002a700-\U0002ceaf\U0002f800-\U0002fa1f]"
)
ACCENT = regex.compile(r"\p{Mn}")
# A sign is a word too. Unicode counts the nine of ASCII in front among the symbols; for BERT they are punctuation.
WORD = regex.compile(r"[$+<=>^`|~\p{P}]|[^\s$+<=>^`|~\p{P}]+")


def words(text: str, lowercase: bool = True) -> list[str]:
    """Return the words and signs of ``text``, tidied: BERT's "basic tokenization".

    Control characters, which show nothing, are dropped. With ``lowercase``, accents go too: each character is written
    as a letter and its marks (Unicode's NFD), and the marks are left out. That takes Hangul syllables apart as well.

        >>> words("Ça va, 你好？")
        ['ca', 'va', ',', '你', '好', '？']
        >>> words("Ça va", lowercase=False)
        ['Ça', 'va']
    """
    text = CHINESE.sub(r" \g<0> ", CONTROL.sub("", checked_text(text)))
    if lowercase:
        text = ACCENT.sub("", unicodedata.normalize("NFD", text))
        text = "".join(map(str.lower, text))  # one by one: text.lower() would make the last sigma of a Greek word ς
    return WORD.findall(text)


class WordPieceTokenizer:
    """WordPiece with a given vocabulary.

    Args:
        vocabulary: distinct strings, in the order of their ids; the SPECIAL_TOKENS have to be among them.
        lowercase: whether ``words`` lowers letters and strips accents.

    Attributes:
        vocabulary: the list of the tokens.
        special_tokens: dict from a special token to its id.
    """

    def __init__(self, vocabulary: Iterable[str], lowercase: bool = True):
        self.vocabulary = list(vocabulary)
        self.lowercase = lowercase
        self._ids = {token: i for i, token in enumerate(self.vocabulary)}
        if len(self._ids) != len(self.vocabulary) or not all(isinstance(t, str) and t.split() for t in self._ids):
            raise ValueError("vocabulary: it must be distinct strings, none of them blank; give each token once.")
        if missing := [token for token in SPECIAL_TOKENS if token not in self._ids]:
            raise ValueError(f"vocabulary: {', '.join(missing)} is missing; put all of {SPECIAL_TOKENS} in.")
        self.special_tokens = {token: self._ids[token] for token in SPECIAL_TOKENS}
        self._longest = max(map(len, self.vocabulary))
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
        ids: list[int] = []
        for i, part in enumerate(self._parts(text, allowed_special)):
            if i % 2:
                ids.append(self.special_tokens[part])
            else:
                for word in words(part, self.lowercase):
                    ids += self._encode_word(word)
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

    def _parts(self, text: str, allowed_special: str | Collection[str]) -> list[str]:
        """Cut ``text`` at the special tokens to look for: every second part is one of them."""
        if allowed_special == "all":
            allowed_special = SPECIAL_TOKENS
        elif isinstance(allowed_special, str):
            allowed_special = [allowed_special]
        for token in allowed_special:
            if token not in self.special_tokens:
                raise ValueError(f"allowed_special: {token!r} is not a special token of this tokenizer.")
        return regex.split(f"({'|'.join(map(regex.escape, allowed_special))})", text) if allowed_special else [text]

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

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """Return the words of ``ids`` with a space between two; an id outside the vocabulary raises ValueError.

        Spaces before a comma, say, stay: where a text had none is not known any more.

        Args:
            ids: the ids; a "##" piece is joined to what stands before it.
            skip_special_tokens: whether to leave special tokens out instead of showing them.
        """
        tokens = [self.vocabulary[i] for i in checked_ids(ids, self.vocab_size)]
        if skip_special_tokens:
            tokens = [token for token in tokens if token not in self.special_tokens]
        return " ".join(tokens).replace(" ##", "")

    def save(self, folder: str | Path) -> None:
        """Write ``tokenizer.json`` and ``vocabulary.txt`` into ``folder``, and ``vocab.txt``, BERT's own format."""
        contents = {"type": "wordpiece", "vocabulary": self.vocabulary, "lowercase": self.lowercase}
        write_tokenizer(folder, contents, map(repr, self.vocabulary))
        lines = "".join(token + "\n" for token in self.vocabulary)
        (Path(folder) / "vocab.txt").write_text(lines, encoding="utf-8", newline="\n")

    @classmethod
    def load(cls, folder: str | Path) -> "WordPieceTokenizer":
        """Return the tokenizer saved in ``folder``; ValueError if the file holds something else."""
        contents = read_tokenizer(folder)
        if contents["type"] != "wordpiece":
            raise ValueError(f"{folder}: this is not a saved WordPieceTokenizer; try load_tokenizer.")
        try:
            return cls(contents["vocabulary"], contents["lowercase"])
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
