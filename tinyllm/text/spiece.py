"""Reading SentencePiece's ``spiece.model``: a protocol buffer, taken apart by hand.

A protocol buffer is a list of fields, each a key and a value. The key is a number, 8 * (number of the field) + (kind):

    kind 0      an integer: seven bits per byte, the lowest first; all bytes but the last have their top bit set
    kind 1, 5   8 or 4 bytes, such as a float
    kind 2      a length and so many bytes: a text, or again a list of fields

    0a 0c  0a 05 e2 96 81 6c 6f  15 cd cc 4c c0      a piece of 12 bytes: its text "▁lo", its score -3.2

What the numbers mean (in SentencePiece's sentencepiece_model.proto): the model has pieces (1), the trainer's settings
(2) and the normalizer's (3); a piece has its text (1), score (2) and type (3). Of the settings only those are read that
decide how a text is cut. (Protocol Buffers' own documentation, "Encoding".)
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # types of pieces; NORMAL is not written
UNIGRAM = 1  # the model type: the others are BPE, words and characters


@dataclass
class SentencePieceModel:
    """What ``spiece.model`` holds, as far as it matters here; the defaults are SentencePiece's."""

    pieces: list[tuple[str, float, int]] = field(default_factory=list)  # (text, score, type), in the order of ids
    model_type: int = UNIGRAM
    byte_fallback: bool = False
    charsmap: bytes = b""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    escape_whitespaces: bool = True


def read_spiece(path: str | Path) -> SentencePieceModel:
    """Return the contents of a ``spiece.model``; ValueError if it is cut off, or not such a file."""
    try:
        model = SentencePieceModel()
        missing = {1, 2, 3}
        for number, value in _fields(Path(path).read_bytes()):
            missing -= {number}
            if number == 1:
                model.pieces.append(_piece(_expect(value, bytes)))
            elif number == 2:
                trainer = dict(_fields(_expect(value, bytes)))
                model.model_type = _expect(trainer.get(3, UNIGRAM), int)
                model.byte_fallback = bool(trainer.get(35, False))
            elif number == 3:
                normalizer = dict(_fields(_expect(value, bytes)))
                model.charsmap = _expect(normalizer.get(2, b""), bytes)
                model.add_dummy_prefix = bool(normalizer.get(3, True))
                model.remove_extra_whitespaces = bool(normalizer.get(4, True))
                model.escape_whitespaces = bool(normalizer.get(5, True))
        if missing:
            raise ValueError("it ends before its settings")
        return model
    except ValueError as error:
        raise ValueError(f"{path}: this is not a SentencePiece model, or it is damaged ({error}).") from None


def _piece(data: bytes) -> tuple[str, float, int]:
    fields = dict(_fields(data))
    text, score = _expect(fields.get(1, b""), bytes), _expect(fields.get(2, 0.0), float)
    return text.decode("utf-8"), score, _expect(fields.get(3, NORMAL), int)


def _expect(value, kind: type):
    if not isinstance(value, kind):
        raise ValueError(f"a field holds {type(value).__name__} instead of {kind.__name__}")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """Yield (number, value) of each field of a message."""
    place = 0
    while place < len(data):
        key, place = _integer(data, place)
        number, kind = divmod(key, 8)
        if kind == 0:
            value, place = _integer(data, place)
        elif kind in (1, 2, 5):
            size = {1: 8, 5: 4}.get(kind)
            if size is None:
                size, place = _integer(data, place)
            if place + size > len(data):
                raise ValueError(f"it ends inside field {number}")
            value = data[place : place + size]
            place += size
            if kind == 5:
                (value,) = struct.unpack("<f", value)
        else:
            raise ValueError(f"field {number} is of kind {kind}, which is not in use")
        yield number, value


def _integer(data: bytes, place: int) -> tuple[int, int]:
    """Return the integer that begins at ``place``, and the place behind it."""
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            raise ValueError("it ends inside a number")
        value |= (data[place] & 0x7F) << shift
        place += 1
        if data[place - 1] < 0x80:
            return value, place
    raise ValueError("a number is longer than 64 bits")
