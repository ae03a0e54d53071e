"""How a text is normalized before a unigram tokenizer cuts it, from its name or from a published tokenizer.json.

    {"type": "Sequence", "normalizers": [
        {"type": "Precompiled", "precompiled_charsmap": "uAcAAAAI..."},             base64
        {"type": "Strip", "strip_left": false, "strip_right": true},
        {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}]}
"""

import base64
import binascii

import regex

from .charsmap import CharsMap
from .rewrite import NMT_NFKC, Rule, replacing, stripping

NAMED: dict[str, list[Rule]] = {"nmt_nfkc": NMT_NFKC, "identity": []}
REGEXES = (" {2,}",)  # those found in published files; any other could mean something else here than there


def normalizer_rules(normalization: str | dict) -> list[Rule]:
    """Return the rules for ``rewrite``.

    Args:
        normalization: one of NAMED, or the JSON object "normalizer" of a tokenizer.json.

    Raises:
        ValueError: there is no such name, or something in the object is not supported, which is named.
    """
    if isinstance(normalization, str):
        if normalization not in NAMED:
            raise ValueError(f"normalization: there is no {normalization!r}; choose one of {', '.join(NAMED)}.")
        return NAMED[normalization]
    kind = normalization["type"]
    if kind == "Sequence":
        return [rule for part in normalization["normalizers"] for rule in normalizer_rules(part)]
    if kind == "Precompiled":
        return [CharsMap(decode_base64(normalization["precompiled_charsmap"]))]
    if kind == "Strip":
        return [stripping(normalization["strip_left"], normalization["strip_right"])]
    if kind == "Replace":
        ((how, pattern),) = normalization["pattern"].items()
        if how == "String" and pattern:
            return [replacing(regex.compile(regex.escape(pattern)), normalization["content"])]
        if pattern in REGEXES:
            return [replacing(regex.compile(pattern), normalization["content"])]
        raise ValueError(f"the normalizer replaces the pattern {pattern!r}, which is not supported.")
    raise ValueError(f"the normalizer {kind} is not supported; those of T5 are: Precompiled, Strip, Replace.")


def decode_base64(text: str | None) -> bytes:
    """Return the bytes of a charsmap; ValueError if the text is not base64."""
    try:
        return base64.b64decode(text or "", validate=True)
    except binascii.Error:
        raise ValueError("precompiled_charsmap: it is not base64, so the file is damaged.") from None
