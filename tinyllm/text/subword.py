"""What the tokenizers with pieces of words share: special and added tokens, offsets into the text, decoding.

Encoding has the same four steps in BPE, WordPiece and Unigram:

    text         "Ça va[SEP]"           cut at the tokens that go first (added_tokens.py)
    parts        "Ça va"  [SEP]         normalize: tidy, lower, strip accents; BPE does nothing here
                 "ca va"  [SEP]         cut at the added tokens that are found in normalized text
                 "ca va"  [SEP]         cut into pieces
    ids          7 8      102
    offsets      (0, 2) (3, 5) (5, 10)  from the pieces back through every step

A class brings ``_normalize`` and ``_encode_part``, which are fast, and for offsets ``_trace`` and ``_pieces``, which do
the same and also say where everything was.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from .added_tokens import AddedToken, chosen, cut_at
from .tokenizer_file import checked_ids

Span = tuple[int, int]  # start and end, in characters


class SubwordTokenizer:
    """The base of BPETokenizer, WordPieceTokenizer and UnigramTokenizer.

    Attributes:
        added_tokens: the list of AddedToken.
        special_tokens: dict from a special token to its id.
    """

    vocab_size: int

    def _set_added_tokens(self, tokens: Iterable[AddedToken]) -> None:
        self.added_tokens = list(tokens)
        self.special_tokens = {token.content: token.id for token in self.added_tokens if token.special}
        if len({token.content for token in self.added_tokens}) != len(self.added_tokens):
            raise ValueError("added_tokens: a token occurs twice; give each token once.")

    # What each class does in its own way ------------------------------------------------------------------------------

    def _normalize(self, text: str) -> str:
        """The text to cut into pieces."""
        raise NotImplementedError

    def _trace(self, text: str) -> tuple[str, Sequence[Span]]:
        """The same text, and for each of its characters the span of ``text`` that it stands for."""
        raise NotImplementedError

    def _encode_part(self, part: str) -> list[int]:
        """The ids of normalized text in which no token is to be found."""
        raise NotImplementedError

    def _pieces(self, part: str) -> Iterable[tuple[int, int, int]]:
        """The same ids, each with the start and the end of its piece in ``part``."""
        raise NotImplementedError

    def token_bytes(self, i: int, first: bool) -> bytes:
        """What id ``i`` adds to a decoded text in UTF-8; ``first``: whether nothing stands before it."""
        raise NotImplementedError

    # What they share --------------------------------------------------------------------------------------------------

    def _tokens_to_find(self, allowed_special: str | Collection[str]) -> tuple[list[AddedToken], list[AddedToken]]:
        """The tokens to look for in the text as it is, and those to look for in normalized text."""
        tokens = chosen(self.added_tokens, allowed_special)
        late = [replace(token, content=self._normalize(token.content)) for token in tokens if token.normalized]
        return [token for token in tokens if not token.normalized], [token for token in late if token.content]

    def _encode(self, text: str, allowed_special: str | Collection[str]) -> list[int]:
        early, late = self._tokens_to_find(allowed_special)
        ids: list[int] = []
        for start, end, token in cut_at(text, early):
            if token:
                ids.append(token.id)
                continue
            part = self._normalize(text[start:end])
            for start, end, token in cut_at(part, late):
                ids += [token.id] if token else self._encode_part(part[start:end])
        return ids

    def encode_with_offsets(
        self, text: str, allowed_special: str | Collection[str] = ()
    ) -> tuple[list[int], list[Span]]:
        """Return (ids, offsets): ``encode``'s ids, and for each the characters it stands for, ``text[start:end]``.

        Where an id is a part of a character, as bytes can be, its span is the whole character, so spans may overlap.
        They may also leave gaps: white space between words, and characters that the tokenizer drops.

        Args:
            text, allowed_special: as for ``encode``.
        """
        early, late = self._tokens_to_find(allowed_special)
        ids: list[int] = []
        offsets: list[Span] = []
        for origin, stop, token in cut_at(text, early):
            if token:
                ids.append(token.id)
                offsets.append((origin, stop))
                continue
            part, spans = self._trace(text[origin:stop])
            for start, end, token in cut_at(part, late):
                pieces = [(token.id, 0, end - start)] if token else self._pieces(part[start:end])
                for i, first, last in pieces:
                    ids.append(i)
                    offsets.append((origin + spans[start + first][0], origin + spans[start + last - 1][1]))
        return ids, offsets

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """Return the text of ``ids``; an id outside the vocabulary raises ValueError.

        A model can produce bytes that are not UTF-8, say half a Chinese character: they become U+FFFD, "�".

        Args:
            ids: the ids.
            skip_special_tokens: whether to leave special tokens out instead of showing them.
        """
        checked = checked_ids(ids, self.vocab_size)
        if skip_special_tokens:
            special = set(self.special_tokens.values())
            checked = [i for i in checked if i not in special]
        data = b"".join(self.token_bytes(i, first=position == 0) for position, i in enumerate(checked))
        return data.decode("utf-8", errors="replace")
