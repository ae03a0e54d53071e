"""Hugging Face's ``tokenizer.json``, which holds a whole tokenizer: what is found first, how text is tidied and cut.

    {"added_tokens": [{"id": 0, "content": "<pad>", "special": true, ...}],
     "normalizer": {"type": "Precompiled", ...},                 how text is tidied
     "pre_tokenizer": {"type": "Metaspace", ...},                how it is cut into words
     "model": {"type": "Unigram", "vocab": [["<pad>", 0.0], ["▁the", -3.2], ...], ...},
     "post_processor": ..., "decoder": ...}                      what is put around a text, and the way back

The file can describe far more tokenizers than there are here. So each part is compared with what GPT-2, Llama 3, BERT
and T5 have in that place, and anything else is refused by its name: a tokenizer that is nearly right would give a model
ids it was not trained on. The last two parts are not read: what stands around a text is up to ``add_special_tokens``.
Where tokenizer_config.json beside it says more, or otherwise, that counts, as in Hugging Face's library.
"""

from pathlib import Path

from .added_tokens import AddedToken
from .bpe import BPETokenizer
from .folder import folder_tokens, token_of
from .huggingface import (
    checked_merge,
    lowers_letters,
    make_bpe,
    make_unigram,
    make_wordpiece,
    need_no_prefix_space,
)
from .normalizer import normalizer_rules
from .pretokenize import GPT2, LLAMA3
from .tokenizer_file import tokens_by_id
from .unigram import SPACE, UnigramTokenizer
from .wordpiece import MAX_WORD_LENGTH, WordPieceTokenizer


def from_tokenizer_json(contents: dict, path: Path) -> BPETokenizer | WordPieceTokenizer | UnigramTokenizer:
    """Return the tokenizer that a ``tokenizer.json`` describes.

    Args:
        contents: what is in the file.
        path: the file, for messages.

    Raises:
        ValueError: the file is damaged, or something in it is not supported, which is named.
    """
    try:
        model = contents["model"]
        kind = model.get("type", "BPE" if "merges" in model else None)
        if kind not in MAKERS:
            raise ValueError(f"{path}: its model is {kind!r}; supported are {', '.join(MAKERS)}.")
        added = [token_of(entry) for entry in contents.get("added_tokens") or []]
        known = {token.content: token.id for token in added}
        named = folder_tokens(path.parent, {**_ids(model["vocab"], path), **known}, new=False)
        added += [token for token in named if token.content not in known]
        return MAKERS[kind](contents, model, added, path)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path}: this is not a tokenizer.json, or it is damaged ({problem}).") from None


def _ids(vocabulary: dict | list, path: Path) -> dict[str, int]:
    """The ids of a vocabulary, which is {token: id} or, with scores, [[token, score], ...]."""
    if isinstance(vocabulary, dict):
        return vocabulary
    try:
        return {piece: i for i, (piece, _) in enumerate(vocabulary)}
    except (TypeError, ValueError):
        raise ValueError(f"{path}: it is damaged: its vocabulary is no list of pieces and their scores.") from None


def _bpe(contents: dict, model: dict, added: list[AddedToken], path: Path) -> BPETokenizer:
    _need(path, "normalizer", contents.get("normalizer"), None)
    need_no_prefix_space(path.parent)
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        _need(path, key, model.get(key) or None, None)
    ids, merges = model["vocab"], model["merges"]
    pairs = [checked_merge(merge, ids, f"{path}, merge number {number}") for number, merge in enumerate(merges)]
    pattern, whole = _pattern(contents["pre_tokenizer"], path), bool(model.get("ignore_merges"))
    return make_bpe(ids, pairs, added, path, pattern=pattern, whole_pieces=whole)


def _pattern(cut: dict, path: Path) -> str:
    """The name of the pattern by which a text is cut before BPE."""
    steps = cut["pretokenizers"] if cut["type"] == "Sequence" else [cut]
    byte_level = steps[-1]
    _need(path, "pre_tokenizer", byte_level["type"], "ByteLevel")
    _need(path, "add_prefix_space", byte_level.get("add_prefix_space", False), False)
    if len(steps) == 1:
        _need(path, "use_regex", byte_level.get("use_regex", True), True)
        return "gpt2"
    if len(steps) > 2:
        raise ValueError(f"{path}: the pre_tokenizer {' + '.join(step['type'] for step in steps)} is not supported.")
    split = steps[0]
    _need(path, "pre_tokenizer", split["type"], "Split")
    _need(path, "behavior", (split["behavior"], split["invert"]), ("Isolated", False))
    _need(path, "use_regex", byte_level.get("use_regex", True), False)
    names = {GPT2: "gpt2", LLAMA3: "llama3"}
    pattern = split["pattern"].get("Regex")
    if pattern not in names:
        raise ValueError(f"{path}: it cuts text by the pattern {pattern!r}; only GPT-2's and Llama 3's are supported.")
    return names[pattern]


def _wordpiece(contents: dict, model: dict, added: list[AddedToken], path: Path) -> WordPieceTokenizer:
    bert = contents["normalizer"]
    lowercase = bert["lowercase"]
    strip_accents = lowercase if bert["strip_accents"] is None else bert["strip_accents"]
    _need(path, "normalizer", bert["type"], "BertNormalizer")
    _need(path, "clean_text", bert["clean_text"], True)
    _need(path, "handle_chinese_chars", bert["handle_chinese_chars"], True)
    _need(path, "strip_accents", strip_accents, lowercase)
    _need(path, "pre_tokenizer", contents["pre_tokenizer"]["type"], "BertPreTokenizer")
    _need(path, "unk_token", model["unk_token"], "[UNK]")
    _need(path, "continuing_subword_prefix", model["continuing_subword_prefix"], "##")
    _need(path, "max_input_chars_per_word", model["max_input_chars_per_word"], MAX_WORD_LENGTH)
    tokens = tokens_by_id(model["vocab"])
    if None in tokens:
        raise ValueError(f"{path}: no token has the id {tokens.index(None)}; get the file again.")
    return make_wordpiece(tokens, lowers_letters(path.parent, lowercase), added, path)


def _unigram(contents: dict, model: dict, added: list[AddedToken], path: Path) -> UnigramTokenizer:
    cut = contents["pre_tokenizer"]
    steps = cut["pretokenizers"] if cut["type"] == "Sequence" else [cut]
    kinds = [step["type"] for step in steps]
    if kinds not in (["Metaspace"], ["WhitespaceSplit", "Metaspace"]):
        raise ValueError(f"{path}: the pre_tokenizer {' + '.join(kinds)} is not supported; T5's ends in Metaspace.")
    space = steps[-1]
    _need(path, "replacement", space["replacement"], SPACE)
    _need(path, "add_prefix_space", space.get("add_prefix_space", True), True)
    _need(path, "prepend_scheme", space.get("prepend_scheme", "always"), "always")
    _need(path, "split", space.get("split", True), True)
    normalization = contents.get("normalizer") or "identity"
    try:
        normalizer_rules(normalization)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    pieces = [(piece, score) for piece, score in model["vocab"]]
    unknown = pieces[model["unk_id"]][0]
    options = (bool(model.get("byte_fallback")), normalization, "space" if len(steps) == 1 else "word")
    return make_unigram(pieces, unknown, added, path, *options)


def _need(path: Path, name: str, value, expected) -> None:
    if value != expected:
        shown = value["type"] if isinstance(value, dict) else repr(value)
        raise ValueError(f"{path}: {name} is {shown}, which is not supported; it has to be {expected!r}.")


MAKERS = {"BPE": _bpe, "WordPiece": _wordpiece, "Unigram": _unigram}
