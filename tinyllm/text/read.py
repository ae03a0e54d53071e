"""From files to one string: reading text, with errors that say what is wrong with which file.

    >>> describe("To be, or not to be")
    '19 characters, 19 bytes, sha256 80ed7fc26bc0'

There is always something to train on: ``default_corpus()`` is a text that comes with Python itself.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path


def read_chunks(*paths: str | Path, size: int = 1 << 20) -> Iterator[str]:
    """Yield the text of UTF-8 files, in strings of at most ``size`` characters, with a newline between two files.

    Line ends become "\\n", whichever way a file writes them. A byte-order mark at the start of a file is no text.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: no path is given, or a file is empty or is not UTF-8.
    """
    if not paths:
        raise ValueError("paths: none given; name at least one text file.")
    for number, path in enumerate(paths):
        if not Path(path).exists():
            raise FileNotFoundError(f"{path}: there is no such file; check the path.")
        if number:
            yield "\n"
        try:
            with open(path, encoding="utf-8-sig") as file:  # UTF-8, with or without a byte-order mark
                chunk = file.read(size)
                if not chunk:
                    raise ValueError(f"{path}: the file is empty; give a file with text in it.")
                while chunk:
                    yield chunk
                    chunk = file.read(size)
        except UnicodeDecodeError:
            raise ValueError(
                f"{path}: the bytes from offset {_first_bad_byte(path)} on are not UTF-8; save the file as UTF-8."
            ) from None


def read_text(*paths: str | Path) -> str:
    """Return the text of one or more UTF-8 files, with a newline between two files; errors as in ``read_chunks``."""
    return "".join(read_chunks(*paths))


def _first_bad_byte(path: str | Path) -> int:
    # The decoder that failed counts from the start of its own buffer; count again, from the start of the file.
    offset = 0
    with open(path, "rb") as file:
        for line in file:  # the byte of "\n" is never a part of a longer UTF-8 sequence
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return offset + error.start
            offset += len(line)
    raise AssertionError("every line is UTF-8")


def default_corpus() -> str:
    """Return a text that comes with Python: the reference pages behind ``help()``, about 465,000 characters of English.

    It changes with each release of Python: print ``describe`` of it beside every result.
    """
    from pydoc_data.topics import topics  # here, as half a megabyte is not for everyone who imports this file

    return "\n".join(topics[name] for name in sorted(topics))


def describe(text: str) -> str:
    """Return the size of a text and the start of its SHA-256, enough to tell whether two runs read the same text."""
    data = text.encode("utf-8")
    return f"{len(text):,} characters, {len(data):,} bytes, sha256 {hashlib.sha256(data).hexdigest()[:12]}"
