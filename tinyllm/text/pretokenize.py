"""Cutting a text into pieces before byte-pair encoding: words, numbers, punctuation and white space.

    >>> pretokenize("He's 42, isn't he?")
    ['He', "'s", ' 42', ',', ' isn', "'t", ' he', '?']

Tokens never cross the ends of a piece. Without that, "dog." and "dog," would each earn a token of their own, and the
encoder could not treat a text word by word. A space goes with the word after it, so that most words are one piece.
"""

import regex

# The pattern of GPT-2 (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"), from its released
# encoder. Reading it: an English contraction; letters; digits; other signs, each after one optional space; white space
# up to the last one before a word (which that word takes); any other white space.
GPT2 = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""

# The pattern of Llama 3 (Grattafiori et al. 2024, "The Llama 3 Herd of Models"), from its released tokenizer.json. Also
# capital contractions; a word takes any one sign before it; numbers by three digits; line ends go with signs, or form
# pieces of their own.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS = {"gpt2": regex.compile(GPT2), "llama3": regex.compile(LLAMA3)}

# Where a text may be cut so that its parts give the same pieces as the whole: before a space that follows something
# else. No alternative of the patterns goes on from a sign to white space, line ends aside, so a piece always ends
# there. "(?r)" searches from the end.
LAST_CUT = regex.compile(r"(?r)(?<=\S)[^\S\r\n]")


def pretokenize(text: str, pattern: str = "gpt2") -> list[str]:
    """Return the pieces of ``text``: joined, they are the text again. ``pattern``: the name of one of PATTERNS."""
    return PATTERNS[pattern].findall(text)


def to_bytes(piece: str) -> bytes:
    """Return the UTF-8 bytes of a piece.

    Python can read bytes that are not UTF-8 into lone surrogates, one per byte (PEP 383, errors="surrogateescape");
    here they turn back into those bytes. Any other lone surrogate stands for nothing and raises ValueError.
    """
    try:
        return piece.encode("utf-8", errors="surrogateescape")
    except UnicodeEncodeError as error:
        bad = piece[error.start]
        raise ValueError(f"text: {bad!r} is half a character, a lone surrogate; remove it, as clean() does.") from None
