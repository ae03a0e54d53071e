"""Small things in a published folder: JSON files, lines of text, and the tokens that are found before anything else.

Which tokens these are stands in up to three files, and a token can be in all of them:

    tokenizer_config.json       {"eos_token": "</s>", "added_tokens_decoder": {"1": {"content": "</s>", ...}}, ...}
    special_tokens_map.json     {"eos_token": "</s>", "additional_special_tokens": ["<sep>"], ...}
    added_tokens.json           {"<sep>": 50257, ...}: ids of tokens that the vocabulary has not
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path

from .added_tokens import AddedToken
from .tokenizer_file import tokens_by_id

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
LISTS = ("additional_special_tokens", "extra_special_tokens")
FIELDS = {field.name for field in fields(AddedToken)}


def read_text_file(path: Path) -> str:
    """Return the text in a file; ValueError if it is not UTF-8."""
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8, so the file is damaged; get it again.") from None


def read_json(path: Path) -> dict:
    """Return the JSON object in a file; {} if there is no such file; ValueError if there is something else in it."""
    if not path.exists():
        return {}
    try:
        contents = json.loads(read_text_file(path))
    except (json.JSONDecodeError, RecursionError):
        raise ValueError(f"{path}: the file is not JSON, so it is damaged; get it again.") from None
    if not isinstance(contents, dict):
        raise ValueError(f"{path}: this is not a JSON object, so the file is damaged; get it again.")
    return contents


def read_ids(path: Path) -> dict[str, int]:
    """Return the ids of all tokens in a vocab.json; ValueError if two have the same, or there are none."""
    ids = read_json(path)
    if not ids:
        raise ValueError(f"{path}: there is no token in it; get the file again.")
    try:
        tokens_by_id(ids)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return ids


def folder_tokens(
    folder: Path, ids: Mapping[str, int], defaults: Iterable[str] = (), new: bool = True
) -> list[AddedToken]:
    """Return the tokens that the three files name.

    Args:
        folder: where the files are; none of them has to be there.
        ids: the vocabulary.
        defaults: special tokens of that kind of model, if the vocabulary has them.
        new: whether a special token that has an id nowhere gets the next free one, or is left out.
    """
    config, more_ids = read_json(folder / "tokenizer_config.json"), read_json(folder / "added_tokens.json")
    special: dict[str, dict] = {token: {} for token in defaults if token in ids}
    for contents in (read_json(folder / "special_tokens_map.json"), config):
        for entry in _named(contents):  # a string, or an object with the fields of AddedToken
            special[entry["content"] if isinstance(entry, dict) else entry] = entry if isinstance(entry, dict) else {}

    described = [{"content": token, "id": i, "special": False, "normalized": True} for token, i in more_ids.items()]
    described += [{**entry, "id": int(i)} for i, entry in config.get("added_tokens_decoder", {}).items()]
    tokens = {entry["content"]: token_of(entry) for entry in described}
    free = 1 + max([*ids.values(), *(token.id for token in tokens.values())], default=-1)
    for content, entry in special.items():
        if not (new or content in tokens or content in ids):
            continue
        if content in tokens:
            i = tokens[content].id
        else:
            i = ids.get(content, free)
            free = max(free, i + 1)
        if content not in tokens or content in more_ids:
            tokens[content] = token_of({**entry, "content": content, "id": i, "special": True})
    return sorted(tokens.values(), key=lambda token: token.id)


def token_of(entry: Mapping) -> AddedToken:
    """Return the token that a JSON object describes, which may say other things as well."""
    token = AddedToken(**{key: value for key, value in entry.items() if key in FIELDS})
    if not (isinstance(token.content, str) and token.content and isinstance(token.id, int)):
        raise ValueError(f"added tokens: {token.content!r} with the id {token.id!r} makes no sense; get the file anew.")
    return token


def _named(contents: dict) -> list[str | dict]:
    named = [contents[role] for role in ROLES if contents.get(role)]
    for key in LISTS:
        more = contents.get(key) or []
        named += more.values() if isinstance(more, dict) else more
    return named
