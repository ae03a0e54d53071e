"""From text to batches of token ids. In reading order:

    read.py            text files, and a text that every Python has
    clean.py           tidying text, in any language
    char.py            the simplest tokenizer: a token per character
    added_tokens.py    tokens that are found in a text before anything else
    subword.py         what the next three kinds share: those tokens, offsets into the text, decoding
    pretokenize.py     cutting text into pieces, before byte-pair encoding
    bpe_train.py       learning byte-pair merges
    bpe_merge.py       applying them
    bpe.py             the byte-level BPE tokenizer
    show_work.py       watching it encode, step by step
    wordpiece_train.py learning pieces of words
    wordpiece.py       BERT's tokenizer: the longest known piece first
    unigram.py         SentencePiece's and T5's: the likeliest of all ways to cut
    rewrite.py         rewriting a text by rules, and knowing where each character came from
    charsmap.py        SentencePiece's table of spellings
    normalizer.py      which rules a unigram tokenizer has
    streaming.py       showing a text while a model writes it
    tokenizer_file.py  how tokenizers are stored, checked and shown
    data.py            batches of inputs and targets
    token_file.py      tokens on disk, for a corpus larger than memory
    masking.py         batches with hidden tokens, for BERT
    pairs.py           batches of sources and targets, for models that write one text after reading another
    folder.py          published folders: JSON, and the tokens named in it
    byte_characters.py bytes written as printable characters
    spiece.py          SentencePiece's file, taken apart by hand
    huggingface.py     tokenizers of GPT-2, BERT and T5 from their published files
    tokenizer_json.py  and from Hugging Face's tokenizer.json
    load.py            loading a tokenizer of any kind
"""

from .bpe import BPETokenizer
from .char import CharTokenizer
from .clean import (
    clean,
    fold_blank_lines,
    fold_spaces,
    keep_lines,
    normalize,
    remove_controls,
    remove_duplicate_lines,
)
from .data import TokenDataset, split
from .load import load_tokenizer
from .masking import MaskedDataset, mask_tokens
from .pairs import PairDataset
from .read import default_corpus, describe, read_chunks, read_text
from .streaming import StreamingDecoder
from .token_file import open_token_file, tokenize_file, write_token_file
from .unigram import UnigramTokenizer
from .wordpiece import WordPieceTokenizer

__all__ = [
    "BPETokenizer",
    "CharTokenizer",
    "MaskedDataset",
    "PairDataset",
    "StreamingDecoder",
    "TokenDataset",
    "UnigramTokenizer",
    "WordPieceTokenizer",
    "clean",
    "default_corpus",
    "describe",
    "fold_blank_lines",
    "fold_spaces",
    "keep_lines",
    "load_tokenizer",
    "mask_tokens",
    "normalize",
    "open_token_file",
    "read_chunks",
    "read_text",
    "remove_controls",
    "remove_duplicate_lines",
    "split",
    "tokenize_file",
    "write_token_file",
]
