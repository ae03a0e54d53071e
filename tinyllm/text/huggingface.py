"""Tokenizers of published models, from the files of a Hugging Face folder or those that OpenAI released with GPT-2.

    GPT-2       vocab.json (token -> id) and merges.txt; at OpenAI, encoder.json and vocab.bpe
    BERT        vocab.txt, a token a line; whether it lowers letters stands in tokenizer_config.json
    T5          spiece.model (spiece.py)
    all three   tokenizer.json (tokenizer_json.py), which is taken first

Nothing in them is executed, and what this package would do otherwise than Hugging Face's is refused.
"""

import base64
from collections.abc import Mapping
from pathlib import Path

from .added_tokens import AddedToken
from .bpe import BPETokenizer
from .byte_characters import from_characters
from .folder import folder_tokens, read_ids, read_json, read_text_file
from .spiece import CONTROL, UNIGRAM, UNKNOWN, USER_DEFINED, read_spiece
from .unigram import UnigramTokenizer
from .wordpiece import SPECIAL_TOKENS, WordPieceTokenizer

T5_GAPS = 100  # T5's marks for gaps, <extra_id_0> and so on, stand behind the pieces, the last one first
MOST_GAPS = 1 << 16


def read_bpe(vocabulary: Path, merges: Path) -> BPETokenizer:
    """Return GPT-2's tokenizer; ValueError names the line of the merges that makes no sense."""
    ids = read_ids(vocabulary)
    pairs = []
    for number, line in enumerate(read_text_file(merges).split("\n"), start=1):
        line = line.removesuffix("\r")
        if line and not (number == 1 and line.startswith("#version")):
            pairs.append(checked_merge(line, ids, f"{merges}, line {number}"))
    need_no_prefix_space(vocabulary.parent)
    return make_bpe(ids, pairs, folder_tokens(vocabulary.parent, ids, ["<|endoftext|>"]), vocabulary)


def need_no_prefix_space(folder: Path) -> None:
    """ValueError if the text shall begin with a space that nobody wrote."""
    if read_json(folder / "tokenizer_config.json").get("add_prefix_space"):
        raise ValueError(f"{folder}: tokenizer_config.json sets add_prefix_space otherwise than GPT-2; that is not "
                         "supported.")


def checked_merge(merge: str | list[str], ids: Mapping[str, int], where: str) -> tuple[str, str]:
    """Return the two tokens of a merge, which is written "left right" or, in newer files, ["left", "right"]."""
    pair = merge.split(" ") if isinstance(merge, str) else merge
    if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(token, str) and token for token in pair)):
        raise ValueError(f"{where}: {merge!r} is not a merge, which is two tokens with one space between them.")
    for token in (*pair, "".join(pair)):
        if token not in ids:
            raise ValueError(f"{where}: the merge {merge!r} needs {token!r}, which is not in the vocabulary.")
    return pair[0], pair[1]


def make_bpe(
    ids: Mapping[str, int], merges: list[tuple[str, str]], added: list[AddedToken], where: Path, **options
) -> BPETokenizer:
    """Return the tokenizer of tokens that are written in characters for bytes (see byte_characters.py).

    "<|endoftext|>" and the like stand in the vocabulary too, but in characters for characters.
    """
    textless = {token.content for token in added} - {left + right for left, right in merges}
    try:
        vocabulary = {from_characters(token): i for token, i in ids.items() if len(token) == 1 or token not in textless}
        pairs = [(from_characters(left), from_characters(right)) for left, right in merges]
        return BPETokenizer.from_vocabulary(vocabulary, pairs, added, **options)
    except ValueError as error:
        raise ValueError(f"{where}: this is no vocabulary of byte-level BPE ({error})") from None


def read_wordpiece(path: Path) -> WordPieceTokenizer:
    """Return BERT's tokenizer, which lowers letters unless tokenizer_config.json says otherwise."""
    lowercase = lowers_letters(path.parent)
    tokens = [line.removesuffix("\r") for line in read_text_file(path).removesuffix("\n").split("\n")]
    added = folder_tokens(path.parent, {token: i for i, token in enumerate(tokens)}, SPECIAL_TOKENS)
    return make_wordpiece(tokens, lowercase, added, path)


def lowers_letters(folder: Path, default: bool = True) -> bool:
    """Return what tokenizer_config.json says; ValueError if it says something else that BERT does not do."""
    config = read_json(folder / "tokenizer_config.json")
    lowercase = config.get("do_lower_case", default)
    if not config.get("tokenize_chinese_chars", True) or config.get("strip_accents") not in (None, lowercase):
        raise ValueError(
            f"{folder}: tokenizer_config.json sets tokenize_chinese_chars or strip_accents otherwise than BERT; "
            "that is not supported."
        )
    return lowercase


def make_wordpiece(tokens: list[str], lowercase: bool, added: list[AddedToken], where: Path) -> WordPieceTokenizer:
    """Return the tokenizer; a vocabulary that is none is an error that names the file."""
    try:
        return WordPieceTokenizer(tokens, lowercase, added)
    except ValueError as error:
        raise ValueError(f"{where}: this is not a vocabulary of BERT's ({error})") from None


def read_t5(path: Path) -> UnigramTokenizer:
    """Return T5's tokenizer from its ``spiece.model``; it cuts at white space, as Hugging Face's does.

    Raises:
        ValueError: the file is damaged, or is of another kind of model, or its settings are not T5's.
    """
    model = read_spiece(path)
    if model.model_type != UNIGRAM:
        raise ValueError(f"{path}: its model type is {model.model_type}; only unigram models, type 1, are supported.")
    for name in ("add_dummy_prefix", "remove_extra_whitespaces", "escape_whitespaces"):
        if not getattr(model, name):
            raise ValueError(f"{path}: it was made without {name}; that is not supported.")
    unknown = [text for text, _, kind in model.pieces if kind == UNKNOWN]
    if len(unknown) != 1:
        raise ValueError(f"{path}: {len(unknown)} of its pieces are of type 2, unknown; there must be one.")
    gaps = read_json(path.parent / "tokenizer_config.json").get("extra_ids", T5_GAPS)
    if not (isinstance(gaps, int) and 0 <= gaps <= MOST_GAPS):
        raise ValueError(f"{path.parent}: tokenizer_config.json has extra_ids {gaps!r}; it must be 0 to {MOST_GAPS}.")
    pieces = [(text, score) for text, score, _ in model.pieces]
    pieces += [(f"<extra_id_{i}>", 0.0) for i in reversed(range(gaps))]
    ids = {text: i for i, (text, _) in enumerate(pieces)}
    types = {text: kind for text, _, kind in model.pieces}
    added = [AddedToken(text, i) for text, i in ids.items() if types.get(text, CONTROL) in (UNKNOWN, CONTROL)]
    added += [AddedToken(text, i, special=False) for text, i in ids.items() if types.get(text) == USER_DEFINED]
    added += folder_tokens(path.parent, ids)  # of two with the same content the later one, which says more, counts
    charsmap = base64.b64encode(model.charsmap).decode("ascii")
    normalization = {"type": "Precompiled", "precompiled_charsmap": charsmap} if charsmap else "identity"
    return make_unigram(pieces, unknown[0], added, path, model.byte_fallback, normalization, "word")


def make_unigram(
    pieces: list[tuple[str, float]], unknown: str, added: list[AddedToken], where: Path, *options
) -> UnigramTokenizer:
    """Return the tokenizer; pieces that make no sense are an error that names the file."""
    try:
        return UnigramTokenizer(pieces, unknown, (), *options, added)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{where}: this is not a unigram tokenizer that can be read here ({error})") from None
