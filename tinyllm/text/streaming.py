"""Showing a text while a model writes it: ids go in one by one, text comes out as soon as it is certain.

    >>> from tinyllm.text import BPETokenizer
    >>> stream = StreamingDecoder(BPETokenizer([]))         # no merges: each id is a byte
    >>> [stream.add(i) for i in "né!".encode()]
    ['n', '', 'é', '!']

Decoding each id on its own would print "�" for the two halves of "é". Decoding everything again for each id would take
time that grows with the square of the length. Here an incomplete character waits until the rest of it has come.
"""

import codecs
from collections.abc import Iterable

from .char import CharTokenizer
from .subword import SubwordTokenizer
from .tokenizer_file import checked_ids


class StreamingDecoder:
    """Decodes ids as they come. All that ``add`` and ``finish`` return, joined, is what ``decode`` makes of all ids.

    Args:
        tokenizer: any of tinyllm's.
        skip_special_tokens: whether to leave special tokens out instead of showing them.
    """

    def __init__(self, tokenizer: CharTokenizer | SubwordTokenizer, skip_special_tokens: bool = False):
        self.tokenizer = tokenizer
        special = getattr(tokenizer, "special_tokens", {})
        self._skipped = set(special.values()) if skip_special_tokens else set()
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._first = True

    def add(self, ids: int | Iterable[int]) -> str:
        """Return the text that became certain with these ids, one or several; "" if a character is still open."""
        ids = checked_ids(ids if isinstance(ids, Iterable) else [ids], self.tokenizer.vocab_size)
        text = ""
        for i in ids:
            if i not in self._skipped:
                text += self._utf8.decode(self.tokenizer.token_bytes(i, self._first))
                self._first = False
        return text

    def finish(self) -> str:
        """Return what is left at the end, "�" for a character that stayed incomplete, and be ready for a new text."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        self._first = True
        return rest
