"""Bytes written as printable characters, as GPT-2's files have them: " low" is "Ġlow" there, and a line end "Ċ".

A vocabulary of bytes has tokens such as b"\\xe4\\xbd", two thirds of a Chinese character, which no text file can hold.
So each byte gets a character of its own: the 188 printable ones of Latin-1 stand for themselves, and the other 68, in
order, are shown as the characters from U+0100 on. (From the encoder released with Radford et al. 2019, "Language Models
are Unsupervised Multitask Learners".)
"""

PRINTABLE = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}  # U+00AD is the soft hyphen, not seen
OTHERS = [byte for byte in range(256) if byte not in PRINTABLE]
CHARACTERS = {byte: chr(byte) for byte in PRINTABLE} | {byte: chr(256 + k) for k, byte in enumerate(OTHERS)}
BYTES = {character: byte for byte, character in CHARACTERS.items()}


def to_characters(data: bytes) -> str:
    """Return one printable character per byte."""
    return "".join(map(CHARACTERS.__getitem__, data))


def from_characters(text: str) -> bytes:
    """Return the bytes that ``to_characters`` was given; ValueError for a text with a character that means no byte."""
    try:
        return bytes(map(BYTES.__getitem__, text))
    except KeyError as error:
        raise ValueError(f"{text!r} is not a token of bytes: {error.args[0]!r} stands for no byte.") from None
