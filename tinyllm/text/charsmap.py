"""SentencePiece's table of spellings: "ﬁ" is "fi", "e" with an accent behind it is "é", a line end is a space.

The table stands in a published tokenizer as bytes, its "precompiled charsmap":

    4 bytes         n, the length of the next part (all numbers are little-endian)
    n bytes         a trie of the spellings to replace, in UTF-8, as 32-bit units
    the rest        the replacements, each with a zero byte at its end

The trie is a *double array* (Aoe 1989, "An Efficient Digital Search Algorithm by Using a Double-Array Structure"; the
packing into 32 bits is that of Yata's library darts-clone). A node is an index into the array, and its unit holds

    bits 0 to 7     the byte that leads to it (a unit that holds a value has bit 31 set instead)
    bit 8           whether a spelling ends here; then the unit at its base is the place of the replacement
    bits 9 to 31    its offset: bits 10 to 30, times 256 if bit 9 is set

A node's base is its index XOR its offset, and byte b leads from it to base XOR b, if the unit there has b in it.
"""

import struct
from collections.abc import Iterator

import regex

from .rewrite import Change

LONGEST_CLUSTER = 5  # bytes; longer ones are never looked up as a whole
MOST_KEPT = 1 << 16  # bounds the memory


class CharsMap:
    """The table, as a rule for ``rewrite``: it replaces what is seen as one character, or else its single code points.

    This is how Hugging Face's library reads the table: it takes the *shortest* spelling that a visible character starts
    with, and what stands for that replaces all of the character. (SentencePiece itself takes the longest spelling, and
    goes on behind it. The two differ where an accent follows a letter that is in the table by itself.)

    Args:
        data: the bytes of the table; ValueError if they are not one.
    """

    def __init__(self, data: bytes):
        (size,) = struct.unpack_from("<I", data) if len(data) >= 4 else (0,)
        if size == 0 or size % 4 or len(data) < 4 + size:
            raise ValueError(f"precompiled_charsmap: {len(data)} bytes are too few for its trie of {size}.")
        self._units = struct.unpack_from(f"<{size // 4}I", data, 4)
        self._replacements = data[4 + size :]
        self._found: dict[str, str | None] = {}

    def __call__(self, text: str) -> Iterator[Change]:
        for match in regex.finditer(r"\X", text):
            start = match.start()
            whole = self._replacement(match[0]) if len(match[0].encode("utf-8")) <= LONGEST_CLUSTER else None
            if whole is not None:
                yield start, match.end(), whole
                continue
            for i, character in enumerate(match[0], start):
                new = self._replacement(character)
                if new is not None:
                    yield i, i + 1, new

    def _replacement(self, text: str) -> str | None:
        if text not in self._found:
            if len(self._found) == MOST_KEPT:
                self._found.clear()
            self._found[text] = self._look_up(text.encode("utf-8"))
        return self._found[text]

    def _look_up(self, key: bytes) -> str | None:
        """Return the replacement of the shortest spelling that ``key`` starts with; None if there is none."""
        node = 0
        for byte in key.split(b"\0")[0]:  # strings of C end there
            node ^= self._offset(node) ^ byte
            unit = self._unit(node)
            if unit & 0x800000FF != byte:
                return None
            if unit >> 8 & 1:
                place = self._unit(node ^ self._offset(node)) & 0x7FFFFFFF
                return self._replacements[place : self._replacements.find(b"\0", place)].decode("utf-8", "replace")
        return None

    def _offset(self, node: int) -> int:
        unit = self._unit(node)
        return unit >> 10 << (8 if unit & 1 << 9 else 0)

    def _unit(self, node: int) -> int:
        if node >= len(self._units):
            raise ValueError("precompiled_charsmap: its trie points outside itself, so the file is damaged.")
        return self._units[node]
