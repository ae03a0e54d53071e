"""What the tokenizers share: how one is stored, how text and ids are checked, how a token is shown.

A tokenizer is a folder. ``tokenizer.json`` is for programs: one JSON object, whose "type" says which class reads it.
``vocabulary.txt`` is for people, and no program reads it: each line is an id and its token. (WordPiece adds
``vocab.txt``, which other libraries read.)

    {"type": "char", "characters": "\\n Fabc"}
"""

import json
from collections.abc import Iterable, Mapping
from operator import index
from pathlib import Path
from typing import TypeVar

MOST_IDS = 1 << 24  # far more than any vocabulary has, and little enough for a list
Token = TypeVar("Token", str, bytes)


def write_tokenizer(folder: str | Path, contents: dict, vocabulary: Iterable[str]) -> None:
    """Write ``tokenizer.json`` and ``vocabulary.txt`` into ``folder``, which is made if it does not exist.

    Args:
        folder: where to write.
        contents: what JSON can hold, with the tokenizer's type under "type".
        vocabulary: a line of text for each id, in order.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(f"{i}\t{token}\n" for i, token in enumerate(vocabulary))
    (folder / "vocabulary.txt").write_text(lines, encoding="utf-8")
    (folder / "tokenizer.json").write_text(json.dumps(contents) + "\n", encoding="utf-8")


def read_tokenizer(folder: str | Path) -> dict:
    """Return what ``write_tokenizer`` stored in ``tokenizer.json``.

    Raises:
        FileNotFoundError: the folder holds no ``tokenizer.json``.
        ValueError: the file is not JSON, or is some other program's.
    """
    path = Path(folder) / "tokenizer.json"
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file; give the folder that a tokenizer was saved in.")
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # what bad JSON and bad UTF-8 both raise
        raise ValueError(f"{path}: the file is not JSON, so it is damaged; save the tokenizer again.") from None
    if not isinstance(contents, dict) or "type" not in contents:
        raise ValueError(f'{path}: there is neither a "type" in it, as in what tinyllm writes, nor a "model", as in '
                         "what Hugging Face publishes; the file is damaged, or another program's.")
    return contents


def checked_text(text: str) -> str:
    """Return ``text``; ValueError if there is a lone surrogate in it, half a character, which UTF-8 cannot hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text: {text[error.start]!r} at position {error.start} is half a character, a lone surrogate; remove it, "
            "as clean() does."
        ) from None
    return text


def checked_ids(ids: Iterable[int], vocab_size: int) -> list[int]:
    """Return ``ids`` as a list of Python integers; ValueError unless all are from 0 to ``vocab_size - 1``."""
    checked = [index(i) for i in ids]
    for position, i in enumerate(checked):
        if not 0 <= i < vocab_size:
            raise ValueError(
                f"ids: {i} at position {position} is outside the vocabulary, 0 to {vocab_size - 1}; "
                "decode with the tokenizer that encoded."
            )
    return checked


def tokens_by_id(ids: Mapping[Token, int]) -> list[Token | None]:
    """Return the token of each id, None where there is none; ValueError if two tokens have one id, or it is no id."""
    wrong = [token for token, i in ids.items() if not isinstance(i, int) or not 0 <= i < MOST_IDS]
    if wrong:
        raise ValueError(f"vocabulary: {wrong[0]!r} has the id {ids[wrong[0]]!r}; ids are integers from 0 up.")
    tokens: list[Token | None] = [None] * (1 + max(ids.values(), default=-1))
    for token, i in ids.items():
        if tokens[i] is not None:
            raise ValueError(f"vocabulary: {tokens[i]!r} and {token!r} have the same id, {i}; give each its own.")
        tokens[i] = token
    return tokens


def readable(token: bytes) -> str:
    """Show a token in quotes: as text where its bytes are UTF-8, else as bytes, such as ``b'\\xe4\\xbd'``."""
    try:
        return repr(token.decode("utf-8"))
    except UnicodeDecodeError:
        return repr(token)
