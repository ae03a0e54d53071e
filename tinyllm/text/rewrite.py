"""Rewriting a text by rules, with or without keeping track of where each character came from.

A rule says what it changes, as (start, end, new): ``text[start:end]`` becomes ``new``. With the rule that makes "ﬁ" two
letters and the rule that leaves one of several spaces, then

    text       "ﬁ  n"                             spans (0, 1) (1, 2) (2, 3) (3, 4)
    changes    (0, 1, "fi")        -> "fi  n"     spans (0, 1) (0, 1) (1, 2) (2, 3) (3, 4)
    changes    (2, 3, "")          -> "fi n"      spans (0, 1) (0, 1) (2, 3) (3, 4)

The new characters stand for the old ones one by one; if there are more new than old ones, all further ones stand for
the last. That is what Hugging Face's library does, too.
"""

import unicodedata
from collections.abc import Callable, Iterable, Iterator

import regex

Change = tuple[int, int, str]
Rule = Callable[[str], Iterable[Change]]
Span = tuple[int, int]


def rewrite(text: str, rules: Iterable[Rule]) -> str:
    """Return ``text`` after all rules, one after the other."""
    for rule in rules:
        parts, done = [], 0
        for start, end, new in rule(text):
            parts += [text[done:start], new]
            done = end
        text = "".join(parts) + text[done:]
    return text


def rewrite_and_trace(text: str, rules: Iterable[Rule]) -> tuple[str, list[Span]]:
    """Return ``rewrite(text, rules)``, and for each of its characters the span of ``text`` that it stands for."""
    spans = [(i, i + 1) for i in range(len(text))]
    for rule in rules:
        changes = list(rule(text))
        new_spans: list[Span] = []
        done = 0
        for start, end, new in changes:
            new_spans += spans[done:start]
            new_spans += [spans[min(start + k, end - 1)] for k in range(len(new))]
            done = end
        spans = new_spans + spans[done:]
        text = rewrite(text, [lambda _, changes=changes: changes])
    return text, spans


def replacing(pattern: regex.Pattern, new: str) -> Rule:
    """Return the rule that puts ``new`` wherever ``pattern`` matches; it stands for the last character of the match."""

    def rule(text: str) -> Iterator[Change]:
        for match in pattern.finditer(text):
            yield match.start(), match.end() - 1, ""
            yield match.end() - 1, match.end(), new

    return rule


def stripping(left: bool, right: bool) -> Rule:
    """Return the rule that drops white space at the ends."""
    ends = [r"\A\s+"] * left + [r"(?<!\s)\s+\Z"] * right
    return replacing(regex.compile("|".join(ends) or "(?!)"), "")


# SentencePiece's default, "nmt_nfkc" ---------------------------------------------------------------------------------

# What it adds to Unicode's NFKC: signs that become a space, and controls that are dropped.
SPACES = "\t\n\f\r\u061c\u1680\u200b\u200c\u200e\u200f\u2028\u2029\u2581\ufeff\ufffd"
DROPPED = "".join(map(chr, [*range(9), 0x0B, *range(0x0E, 0x20), 0x7F, 0x8F, 0x9F]))
# What NFKC treats by itself here: the tilde stays, and what are letters of Hangul by themselves make no syllable.
BY_ITSELF = regex.compile("([～\u3131-\u318e\u3260-\u326d\uffa0-\uffdc])")
SPACES_AND_CONTROLS = str.maketrans(SPACES, " " * len(SPACES), DROPPED)


def normalize(text: str) -> str:
    """Return ``text`` as SentencePiece does by default ("nmt_nfkc"): one spelling per character, single spaces.

    NFKC makes "ﬁ" two letters and "①" a digit; only the full-width tilde stays, as Japanese tells it from the other.
    All white space becomes spaces, line ends too, of which one is left between two words and none at the ends.
    """
    return regex.sub(" +", " ", _one_spelling(text.translate(SPACES_AND_CONTROLS))).strip(" ")


def _one_spelling(text: str) -> str:
    return "".join(part if part == "～" else unicodedata.normalize("NFKC", part) for part in BY_ITSELF.split(text))


def _one_spelling_each(text: str) -> Iterator[Change]:
    """The same as a rule: only what is seen as one character changes together, for instance "e" and its accent."""
    for match in regex.finditer(r"\X", text):
        new = _one_spelling(match[0])
        if new != match[0]:
            yield match.start(), match.end(), new


NMT_NFKC: list[Rule] = [  # what normalize does, as rules
    replacing(regex.compile(f"[{DROPPED}]"), ""),
    replacing(regex.compile(f"[{SPACES}]"), " "),
    _one_spelling_each,
    replacing(regex.compile(" {2,}"), " "),
    replacing(regex.compile(r"\A | \Z"), ""),
]
