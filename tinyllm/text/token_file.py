"""Tokens on disk: written chunk by chunk, read through a memory map, so that a corpus may be larger than memory.

A token file is a header of 32 bytes and then nothing but ids, little-endian, of 2 bytes each if the vocabulary allows,
else of 4. With a vocabulary of 300, the tokens 7, 8, 299 are stored as

    "tinyllm\\0"  2 (bytes per id)  3 (ids)  300 (vocabulary)      then  07 00  08 00  2b 01
"""

import os
import struct
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

import numpy as np
import regex

from .bpe import BPETokenizer
from .char import CharTokenizer
from .pretokenize import LAST_CUT
from .read import read_chunks

HEADER = struct.Struct("<8sQQQ")  # magic, bytes per id, number of ids, vocabulary size
MAGIC = b"tinyllm\0"
CHUNK = 1 << 20  # tokens held in memory while writing


def write_token_file(path: str | Path, tokens: np.ndarray | Iterable[int], vocab_size: int) -> int:
    """Write ``tokens`` and return how many they are. The file appears whole or not at all.

    Args:
        path: the file to write; one that exists is replaced.
        tokens: ids from 0 to ``vocab_size - 1``: an array of shape (n,), or any iterable, which is read once.
        vocab_size: the size of the vocabulary that the ids belong to.

    Raises:
        ValueError: an id is outside the vocabulary, or is not an integer.
    """
    width = 2 if vocab_size <= 1 << 16 else 4
    temporary = Path(f"{path}.{os.getpid()}.tmp")  # in the same folder, as a rename cannot move between file systems
    count = 0
    try:
        with open(temporary, "wb") as file:
            file.write(bytes(HEADER.size))  # the count is not known yet
            for chunk in _chunks(tokens):
                if chunk.ndim != 1 or chunk.dtype.kind not in "iu" or chunk.min() < 0 or chunk.max() >= vocab_size:
                    raise ValueError(
                        f"tokens: one from number {count} to {count + len(chunk) - 1} is not an id from 0 to "
                        f"{vocab_size - 1}; encode with the tokenizer whose vocab_size you gave."
                    )
                file.write(chunk.astype(f"<u{width}").tobytes())
                count += len(chunk)
            file.seek(0)
            file.write(HEADER.pack(MAGIC, width, count, vocab_size))
            file.flush()
            os.fsync(file.fileno())  # the ids have to be on the disk before the name points at them
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return count


def _chunks(tokens: np.ndarray | Iterable[int]) -> Iterator[np.ndarray]:
    if isinstance(tokens, np.ndarray):
        for start in range(0, len(tokens), CHUNK):
            yield tokens[start : start + CHUNK]
    else:
        rest = iter(tokens)
        while chunk := list(islice(rest, CHUNK)):
            yield np.array(chunk)


def open_token_file(path: str | Path, vocab_size: int | None = None) -> np.memmap:
    """Return the ids in a token file, a read-only np.memmap of shape (n,), uint16 or uint32.

    Args:
        path: a file written by ``write_token_file`` or ``tokenize_file``.
        vocab_size: if given, a file written for another size of vocabulary is refused.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a token file, is cut off, or is for another vocabulary.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"{path}: there is no such file; write it with tokenize_file.")
    with open(path, "rb") as file:
        header = file.read(HEADER.size)
    if len(header) < HEADER.size or not header.startswith(MAGIC):
        raise ValueError(f"{path}: this is not a token file; write one with tokenize_file.")
    _, width, count, stored_size = HEADER.unpack(header)
    expected, actual = HEADER.size + width * count, Path(path).stat().st_size
    if width not in (2, 4) or actual != expected:
        raise ValueError(f"{path}: {actual} bytes long instead of {expected}, so it is damaged; write it again.")
    if vocab_size not in (None, stored_size):
        raise ValueError(
            f"{path}: written for a vocabulary of {stored_size} ids, not {vocab_size}; use the tokenizer it was "
            "written with, or write it again."
        )
    return np.memmap(path, dtype=f"<u{width}", mode="r", offset=HEADER.size, shape=(count,))


def tokenize_file(
    paths: str | Path | Iterable[str | Path], tokenizer: BPETokenizer | CharTokenizer, out_path: str | Path
) -> int:
    """Encode text files into one token file, as ``tokenizer.encode(read_text(*paths))`` would, and return the count.

    Only a part of the text is in memory at a time: cut before white space, where no token can reach across (a text
    without any is held whole, and so is any if the tokenizer has an added token with white space in it or around it).
    Special tokens are treated as ordinary text.

    Args:
        paths: one UTF-8 text file, or several.
        tokenizer: what to encode with.
        out_path: the token file to write.
    """
    paths = [paths] if isinstance(paths, (str, Path)) else paths
    added = [token for token in getattr(tokenizer, "added_tokens", ()) if not token.special]
    whole = any(token.lstrip or token.rstrip or regex.search(r"\s", token.content) for token in added)
    parts = ["".join(read_chunks(*paths))] if whole else cut_between_pieces(read_chunks(*paths))
    return write_token_file(out_path, chain.from_iterable(map(tokenizer.encode, parts)), tokenizer.vocab_size)


def cut_between_pieces(chunks: Iterable[str]) -> Iterator[str]:
    """Yield the same text as ``chunks``, cut elsewhere: where the parts give the same pieces as the whole text."""
    pending = ""
    for chunk in chunks:
        pending += chunk
        if cut := LAST_CUT.search(pending):
            yield pending[: cut.start()]
            pending = pending[cut.start() :]
    yield pending
