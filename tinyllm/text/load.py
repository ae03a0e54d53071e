"""Loading a tokenizer of any kind from the folder it was saved or published in."""

from pathlib import Path

from .bpe import BPETokenizer
from .char import CharTokenizer
from .folder import read_json
from .huggingface import read_bpe, read_t5, read_wordpiece
from .tokenizer_file import read_tokenizer
from .tokenizer_json import from_tokenizer_json
from .unigram import UnigramTokenizer
from .wordpiece import WordPieceTokenizer

Tokenizer = CharTokenizer | BPETokenizer | WordPieceTokenizer | UnigramTokenizer
TYPES = {"char": CharTokenizer, "bpe": BPETokenizer, "wordpiece": WordPieceTokenizer, "unigram": UnigramTokenizer}
PUBLISHED = {  # what a folder without a tokenizer.json can hold, and who reads it
    ("vocab.json", "merges.txt"): read_bpe,
    ("encoder.json", "vocab.bpe"): read_bpe,
    ("vocab.txt",): read_wordpiece,
    ("spiece.model",): read_t5,
}


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Return the tokenizer in ``folder``, whichever class it is of: one that was saved, or a published model's.

    Of published ones there are GPT-2's, Llama 3's, BERT's and T5's; see huggingface.py for their files.

    Raises:
        FileNotFoundError: the folder holds no tokenizer.
        ValueError: a file is damaged, or describes a tokenizer that is not supported.
    """
    folder = Path(folder)
    if (folder / "tokenizer.json").exists():
        contents = read_json(folder / "tokenizer.json")
        if "model" in contents and "type" not in contents:
            return from_tokenizer_json(contents, folder / "tokenizer.json")
        kind = read_tokenizer(folder)["type"]
        if kind not in TYPES:
            raise ValueError(f"{folder}: tokenizer.json is of type {kind!r}; this version reads {', '.join(TYPES)}.")
        return TYPES[kind].load(folder)
    for names, read in PUBLISHED.items():
        paths = [folder / name for name in names]
        if all(path.exists() for path in paths):
            try:
                return read(*paths)
            except (KeyError, TypeError, AttributeError) as error:  # one of the small files beside it
                raise ValueError(f"{folder}: a .json file in it is damaged ({error!r}); get it again.") from None
    expected = ", ".join(" + ".join(names) for names in PUBLISHED)
    raise FileNotFoundError(f"{folder}: there is no tokenizer.json in this folder, nor any of {expected}.")
