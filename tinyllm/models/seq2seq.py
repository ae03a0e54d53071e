"""From one text to another: the first Transformer (Vaswani et al. 2017, "Attention Is All You Need", arXiv:1706.03762).

    source (B, S)        -> embed -> encoder ----------------.  memory (B, S, C)
    decoder input (B, T) -> embed -> decoder: looks at itself and at the memory -> (B, T, C) -> logits (B, T, V)

The encoder reads the whole source, every position seeing every other. The decoder writes the target like a language
model, each token from those before it, and in each of its layers looks back at the source: where exactly is one of the
things it learns. While training, all positions of the target are computed at once: position t reads token t - 1 and
has to tell token t, so the decoder's input is the target shifted by one.

EncoderDecoder is what every such model shares; T5 (t5.py) is another one.
"""
import dataclasses
import math
from dataclasses import dataclass

import numpy as np

from .. import functional as F
from ..nn import Dropout, Embedding, KVCache, Linear, Module
from .inputs import text_ends, token_ids
from .transformer import Decoder, Encoder, LayerConfig, embed, initialise, text_lengths


class EncoderDecoder(Module):
    """The ways to use a model of two stacks. A subclass has a `config`, an `lm_head`, and

        encode(source, key_end=None)                            ids (B, S) -> memory (B, S, C)
        keys_and_values(memory)                                 what each decoder layer looks at: (k, v), (B, S, H, D)
        hidden(decoder_input, keys_values, key_end, cache)      ids (B, T) -> (B, T, C), to be multiplied by lm_head

    Source and target are token ids, padded on the right. `key_end` (B,): how many tokens of each source row are text;
    None: all are, and in encode() those before the padding.
    """

    def forward(self, source, decoder_input):
        """Logits of what follows each token of the decoder's input: source (B, S), decoder_input (B, T) -> (B, T, V)"""
        return F.linear(self._decode(source, decoder_input), self.lm_head.weight)

    def loss(self, source, targets, reduction="mean", decoder_input=None, key_end=None):
        """Cross-entropy in nats per token: source (B, S), targets (B, T) -> scalar, or (B, T) with reduction="none"

        targets: the tokens to write, up to and with the end token, and -100 behind it. What the decoder reads is made
        from them. Labels are smoothed while training only; after eval() the loss is that of the plain targets.
        decoder_input, key_end: what prepare() has made from both already.
        """
        targets = token_ids(type(self).__name__, targets)
        if decoder_input is None:
            decoder_input = shift_right(targets, self.config)
        x = self._decode(source, decoder_input, key_end)
        smoothing = getattr(self.config, "label_smoothing", 0.0) if self.training else 0.0
        return F.linear_cross_entropy(x, self.lm_head.weight, targets, -100, reduction, smoothing)

    def prepare(self, source, targets):
        """A batch, for a recorded loss(): see models/inputs.py."""
        name, c = type(self).__name__, self.config
        source, targets = (token_ids(name, np.asarray(ids)) for ids in (source, targets))
        arrays = {"source": F._ids(name, source, c.vocab_size),
                  "targets": F._ids(name, targets, self.lm_head.weight.shape[0], -100),
                  "decoder_input": shift_right(targets, c)}
        if c.pad_token_id is not None:
            arrays["key_end"] = text_ends(source != c.pad_token_id)
        return arrays

    def read_source(self, source, copies=1):
        """Read the source (B, S): a Reading, which can write `copies` targets for each row."""
        return Reading(self, token_ids(type(self).__name__, source), copies)

    def _decode(self, source, decoder_input, key_end=None):
        name = type(self).__name__
        source, decoder_input = token_ids(name, source), token_ids(name, decoder_input)
        if len(source) != len(decoder_input):
            raise ValueError(f"{name}: there are {len(source)} sources and {len(decoder_input)} targets; give one "
                             "target for each source")
        if key_end is None:
            key_end = text_lengths(source, self.config.pad_token_id)
        return self.hidden(decoder_input, self.keys_and_values(self.encode(source, key_end)), key_end)


class Reading:
    """An encoder-decoder that has read its source: from here on it is a language model of the target.

    It has GPT's methods for generation (gpt.py). The source's keys and values are computed once; the cache holds the
    target's. The copies of one source stand together.
    """

    steps_alike = True          # as in gpt.py

    def __init__(self, model, source, copies):
        rows = np.repeat(np.arange(len(source)), copies)
        key_end = text_lengths(source, model.config.pad_token_id)
        self.model, self.config, self.key_end = model, model.config, None if key_end is None else key_end[rows]        # (B * copies,)
        memory = model.encode(source)
        self.keys_values = model.keys_and_values(memory if copies == 1 else memory[rows])   # (B * copies, S, H, D)

    def next_logits(self, ids, cache=None, key_start=None):
        """The logits of the token after ids (B * copies, T), which follow what the cache holds: (B * copies, V)

        key_start is None: all targets begin with the start token, so nothing stands before them.
        """
        x = self.model.hidden(ids, self.keys_values, self.key_end, cache)
        return F.linear(x[:, -1], self.model.lm_head.weight)

    def new_cache(self, batch, length):
        """An empty KV cache for `batch` targets of up to `length` tokens, the start token among them."""
        return [KVCache(batch, length, *k.shape[2:], k.data) for k, _ in self.keys_values]

    def reorder_cache(self, cache, rows):
        """Let target i go on from what the cache holds of target rows[i], which has the same source."""
        for layer in cache:
            layer.reorder(rows)


def shift_right(targets, config):
    """The decoder's input for targets (B, T): the start token, then all targets but the last, and padding for -100."""
    start = np.full((len(targets), 1), config.decoder_start_token_id)
    shifted = np.concatenate([start, targets[:, :-1]], axis=1)
    return np.where(shifted == -100, config.pad_token_id, shifted)


@dataclass
class Seq2SeqConfig(LayerConfig):
    """The fields of LayerConfig (transformer.py), and these. The defaults are the paper's base model."""

    target_vocab_size: int | None = None    # None: source and target share a vocabulary, and one table of vectors
    num_encoder_layers: int = 6
    num_decoder_layers: int = 6
    label_smoothing: float = 0.1            # the target distribution is (1 - e) one-hot + e/V uniform, while training
    pad_token_id: int = 0
    decoder_start_token_id: int = 1         # what the decoder reads first
    eos_token_id: int = 2                   # what it writes last

    FROM_ZERO = ("pad_token_id", "decoder_start_token_id", "eos_token_id")
    PROBABILITIES = ("dropout", "label_smoothing")


Seq2SeqConfig.PRESETS = {
    "tiny": {"d_model": 128, "nhead": 4, "num_encoder_layers": 2, "num_decoder_layers": 2, "dim_feedforward": 512,
             "norm_first": True, "dropout": 0.0, "label_smoothing": 0.0, "n_positions": 128},   # minutes on a laptop
    "base": {"final_norm": False},                                                              # the paper's
    "big": {"final_norm": False, "d_model": 1024, "nhead": 16, "dim_feedforward": 4096, "dropout": 0.3},
}


class Seq2Seq(EncoderDecoder):
    """The first Transformer: model(source, decoder_input) -> logits; model.loss(source, targets) to train it."""

    def __init__(self, config):
        self.config = c = config
        shared = c.target_vocab_size is None
        self.source_embedding = Embedding(c.vocab_size, c.d_model)
        self.target_embedding = self.source_embedding if shared else Embedding(c.target_vocab_size, c.d_model)
        self.encoder = Encoder(c, c.num_encoder_layers)
        self.decoder = Decoder(c, c.num_decoder_layers)
        self.lm_head = (self.target_embedding if c.tie_word_embeddings
                        else Linear(c.d_model, c.target_vocab_size or c.vocab_size, bias=False))
        self.drop = Dropout(c.dropout)
        initialise(self)

    def encode(self, source, key_end=None):
        """What the encoder makes of the source: ids (B, S) -> (B, S, C)"""
        source = token_ids("Seq2Seq", source)
        x = self.drop(embed(self.source_embedding, source, 0, self.config.n_positions))
        return self.encoder(x, text_lengths(source, self.config.pad_token_id) if key_end is None else key_end)

    def keys_and_values(self, memory):
        return self.decoder.keys_and_values(memory)

    def hidden(self, decoder_input, keys_values, key_end=None, cache=None):
        """The decoder's stream: ids (B, T) -> (B, T, C). Padding needs no mask here: it stands behind what counts."""
        start = cache[0].used if cache else 0
        x = self.drop(embed(self.target_embedding, decoder_input, start, self.config.n_positions))
        return self.decoder(x, keys_values, key_end, cache)

    def flops_per_token(self, context=None, source_context=None):
        """Floating-point operations of one training step per target token (forward and backward), estimated.

        As in gpt.py, 6 for each weight that a token meets and 12 C for each key, layer by layer; for targets of
        `context` tokens and sources of `source_context` (default: both n_positions). The target's tokens share what the
        source costs.
        """
        c, T = self.config, context or self.config.n_positions
        S, C = source_context or T, c.d_model
        cross = c.num_decoder_layers * 2 * C * C                                    # keys and values of the memory
        per_source = 6 * (self.encoder.num_parameters() + cross) + 12 * c.num_encoder_layers * C * S
        per_target = 6 * (self.decoder.num_parameters() - cross + math.prod(self.lm_head.weight.shape))
        return per_target + 12 * c.num_decoder_layers * C * (T + S) + per_source * S / T

    def config_dict(self):
        """The configuration as a dictionary, for a checkpoint."""
        return {"model_type": "seq2seq", **dataclasses.asdict(self.config)}
