r"""Tidying raw text, in any language.

A model learns whatever it is shown, also the invisible: a byte-order mark, a carriage return or a second way to spell
"é" each cost entries in the vocabulary and teach nothing. Every function here takes a text and returns a text, and
``clean`` applies them in an order that makes cleaning twice the same as cleaning once:

    >>> clean("\ufeffcafe\u0301   au lait\r\n\r\n\r\n\r\n你好\u3000世界")
    'café au lait\n\n你好 世界'
"""

import unicodedata

import regex

# Every character that ends a line somewhere: form feeds and Unicode's own separators too, so that no words are glued.
LINE_END = regex.compile(r"\r\n|[\r\v\f\x85\u2028\u2029]")

# What a reader cannot see and a model should not learn:
#   control characters (Cc) but \n and \t, and lone surrogates (Cs), which UTF-8 cannot hold;
#   U+00AD soft hyphen, U+200B zero-width space, U+2060 word joiner: hints on where a line may be broken;
#   U+FEFF byte-order mark: a trace of how a file was stored;
#   U+061C, U+200E-F, U+202A-E, U+2066-9: the direction of display, which the letters themselves already imply.
# Not in the list, though as invisible: U+200C and U+200D, the zero-width (non-)joiners. They spell words in Persian and
# in the scripts of India, and hold emoji such as families together. Variation selectors and emoji tags stay as well.
INVISIBLE = regex.compile(
    r"(?![\n\t])[\p{Cc}\p{Cs}\u00ad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]"
)


def remove_controls(text: str) -> str:
    """Write every line end as "\\n" and drop the other control and invisible formatting characters (see INVISIBLE)."""
    return INVISIBLE.sub("", LINE_END.sub("\n", text))


def normalize(text: str, form: str = "NFC") -> str:
    """Give every character one spelling (Unicode Standard Annex #15).

    "NFC" composes: "e" + accent becomes "é", and nothing looks different afterwards. "NFKC" also replaces variants:
    "ﬁ" by "fi", full-width "Ａ" by "A", "①" by "1", and the full-width comma of Chinese by ",". That loses something.
    """
    return unicodedata.normalize(form, text)


def fold_spaces(text: str) -> str:
    """Make every run of white space within a line one space, and strip both ends of each line.

    This flattens indentation too: leave it out for program code.
    """
    return regex.sub(r" ?\n ?", "\n", regex.sub(r"[^\S\n]+", " ", text)).strip(" ")


def fold_blank_lines(text: str) -> str:
    """Leave at most one blank line in a row, and none at either end of the text."""
    return regex.sub(r"\n{3,}", "\n\n", text).strip("\n")


def keep_lines(text: str, min_chars: int = 0, max_chars: int | None = None) -> str:
    """Keep the lines of ``min_chars`` to ``max_chars`` characters; blank lines always stay, as they part paragraphs."""
    longest = len(text) if max_chars is None else max_chars
    return "\n".join(line for line in text.split("\n") if not line or min_chars <= len(line) <= longest)


def remove_duplicate_lines(text: str) -> str:
    """Keep only the first of equal lines, wherever they stand; blank lines always stay."""
    seen: set[str] = set()
    lines = []
    for line in text.split("\n"):
        if not line or line not in seen:
            lines.append(line)
            seen.add(line)
    return "\n".join(lines)


def clean(
    text: str,
    form: str = "NFC",
    fold: bool = True,
    unique_lines: bool = False,
    min_chars: int = 0,
    max_chars: int | None = None,
) -> str:
    """Apply the functions above: controls, normal form, white space, line lengths, duplicates, blank lines.

    Args:
        text: what to clean.
        form: Unicode normal form, "NFC", "NFKC", "NFD" or "NFKD"; any other raises ValueError.
        fold: whether to fold white space; False for program code.
        unique_lines: whether to drop repeated lines. Off, because a play repeats its speakers' names with reason.
        min_chars, max_chars: lengths of the lines to keep.
    """
    # Controls go first: one between a letter and its accent would keep the two from being composed.
    text = normalize(remove_controls(text), form)
    if fold:
        text = fold_spaces(text)
    text = keep_lines(text, min_chars, max_chars)
    if unique_lines:
        text = remove_duplicate_lines(text)
    return fold_blank_lines(text) if fold else text
