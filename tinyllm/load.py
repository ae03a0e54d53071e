"""A model and its tokenizer from any folder, trained here or published elsewhere; and how the two read a text.

    model, tokenizer = tinyllm.load("runs/gpt")             the newest checkpoint of a run, or one checkpoint
    model, tokenizer = tinyllm.load("gpt2")                 a downloaded model (pretrained.py)
    ids = tinyllm.model_input(model, tokenizer, "Hello")    -> list of ids

Who knows which class is in a folder has no need of this: checkpoint.load_model and GPT.from_pretrained do the work.
"""
from pathlib import Path

from . import checkpoint, models
from .pretrained_names import FAMILIES
from .tensor_file import json_object
from .text import CharTokenizer, UnigramTokenizer, WordPieceTokenizer, load_tokenizer


def load(folder):
    """(model, tokenizer) of a folder, ready for use: eval() has been called.

    Which class a published folder holds stands in its config.json ("architectures"). If that class does not exist here,
    the model is read as the first of its family in pretrained_names.py.
    ValueError or FileNotFoundError says in one sentence what is missing or damaged.
    """
    folder = Path(folder)
    if folder.is_file():
        raise ValueError(f"{folder} is a file; give the folder that it is in, which holds the tokenizer, too")
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; train a model (python examples/3_train_gpt.py makes runs/gpt, "
                         f"7_masked_language_model.py makes runs/bert), or download one: hf download NAME --local-dir "
                         f"{folder}")
    if (folder / "state.json").exists() or checkpoint.latest(folder):
        model, tokenizer = checkpoint.load_model(folder)
        if tokenizer is None:
            raise ValueError(f"{folder} was saved without a tokenizer, so nobody knows what its tokens mean; pass the "
                             "tokenizer to train()")
    else:
        model, tokenizer = _published_class(folder).from_pretrained(folder), load_tokenizer(folder)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(f"{folder}: its tokenizer has {tokenizer.vocab_size} tokens and its model knows only "
                         f"{model.config.vocab_size}; the files do not belong together")
    return model.eval(), tokenizer


def model_input(model, tokenizer, text, allowed_special="all"):
    """The ids of a text, with what the model has learned to see around it:

        BERT    [CLS] text [SEP]            T5      text </s>
        Llama   <|begin_of_text|> text      GPT-2, and what was trained here: nothing

    allowed_special: the special tokens that are found in the text itself, such as "[MASK]"; see the tokenizers. For
    Llama, the token in front is config.json's bos_token_id; Hugging Face's library finds it in tokenizer.json.
    """
    if isinstance(tokenizer, CharTokenizer):            # knows no special tokens
        return tokenizer.encode(text)
    if isinstance(tokenizer, (WordPieceTokenizer, UnigramTokenizer)):       # BERT's and T5's
        return tokenizer.encode(text, add_special_tokens=True, allowed_special=allowed_special)
    settings = getattr(model, "settings", {})
    begins_with = settings.get("bos_token_id") if settings.get("model_type") == "llama" else None
    return [*([] if begins_with is None else [begins_with]), *tokenizer.encode(text, allowed_special=allowed_special)]


def _published_class(folder):
    """The class here of the model in a Hugging Face folder."""
    path = folder / "config.json"
    if not path.exists():
        raise ValueError(f"{folder} holds no model: there is neither a checkpoint of tinyllm in it nor a config.json, "
                         "as every published model has")
    settings = json_object(path.read_bytes(), path)
    kind, names = settings.get("model_type"), settings.get("architectures")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise ValueError(f"{path}: models of the type {kind!r} are not implemented here; there are "
                         f"{', '.join(FAMILIES)}")
    ours = {theirs: name for name, theirs in FAMILIES[kind].architectures.items()}
    known = [ours[name] for name in names if name in ours] if isinstance(names, list) else []
    return getattr(models, [*known, *ours.values()][0])
