"""Tokens that are found in a text before it is cut: "<|endoftext|>", "[MASK]", or a word added to a vocabulary.

    >>> tokens = [AddedToken("<end>", 7), AddedToken("<end>2", 8)]
    >>> [(start, end, token and token.id) for start, end, token in cut_at("a<end>2 b<end>", tokens)]
    [(0, 1, None), (1, 7, 8), (7, 9, None), (9, 14, 7)]

*Special* ones stand for no text, such as the end of a document or a padding. They are looked for only where the caller
allows it: otherwise anybody could end a document by writing "<end>". What is not special is found always.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import regex


@dataclass(frozen=True)
class AddedToken:
    """One such token; the fields have the names and the meanings of Hugging Face's library.

    Attributes:
        content: the string to look for.
        id: its id.
        special: whether it stands for no text.
        normalized: whether to look for it after the text was normalized (and its content too): then in a lower-casing
            tokenizer "Apple" is found in "APPLE".
        single_word: whether to find it only where no letter, digit or "_" touches it.
        lstrip, rstrip: whether it takes up the white space on its left, and on its right.
    """

    content: str
    id: int
    special: bool = True
    normalized: bool = False
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False


def chosen(tokens: Iterable[AddedToken], allowed_special: str | Collection[str]) -> list[AddedToken]:
    """Return the tokens to look for: those that are not special, and the allowed ones of the special.

    Args:
        tokens: all of a tokenizer.
        allowed_special: special tokens, one or several; "all" means every one. What is none of them is a ValueError.
    """
    if allowed_special == "all":
        return list(tokens)
    allowed = [allowed_special] if isinstance(allowed_special, str) else allowed_special
    special = {token.content for token in tokens if token.special}
    for content in allowed:
        if content not in special:
            raise ValueError(f"allowed_special: {content!r} is not a special token of this tokenizer.")
    return [token for token in tokens if not token.special or token.content in allowed]


def behind(ids: Mapping[str, int], tokens: Iterable[AddedToken]) -> list[str]:
    """Return those of ``tokens`` that a vocabulary has not; they have to go on where its ids end, else ValueError."""
    known = dict(ids)
    for token in sorted(tokens, key=lambda token: token.id):
        expected = known.setdefault(token.content, len(known))
        if token.id != expected:
            raise ValueError(f"added_tokens: {token.content!r} has the id {token.id} instead of {expected}.")
    return list(known)[len(ids) :]


def cut_at(text: str, tokens: Collection[AddedToken]) -> Iterator[tuple[int, int, AddedToken | None]]:
    """Cut ``text`` into (start, end, token): where a token stands, and with None what lies between two.

    The leftmost is taken first, and of those that begin at the same place, the longest.
    """
    by_content = {token.content: token for token in tokens}
    done = 0
    for match in _any_of(frozenset(by_content)).finditer(text) if tokens else ():
        token, (start, end) = by_content[match[0]], match.span()
        neighbours = text[max(start - 1, 0) : start] + text[end : end + 1]
        if token.single_word and regex.search(r"\w", neighbours):
            continue
        if token.lstrip:
            start = regex.search(r"\s*\Z", text[done:start]).start() + done
        if token.rstrip:
            end = regex.compile(r"\s*").match(text, end).end()
        if start > done:
            yield done, start, None
        yield start, end, token
        done = end
    if done < len(text):
        yield done, len(text), None


@lru_cache(maxsize=64)
def _any_of(contents: frozenset[str]) -> regex.Pattern:
    longest_first = sorted(contents, key=len, reverse=True)  # "<end>2" before "<end>"
    return regex.compile("|".join(map(regex.escape, longest_first)))
