"""A language model of torch.nn.TransformerEncoder's layers: what becomes of the first Transformer without its encoder.

    ids (B, T) -> sqrt(C) * token vectors + sinusoids -> num_layers encoder layers -> logits (B, T, V)

With a causal mask it predicts the next token, like GPT (gpt.py), which learns its positions and normalises before each
branch; without one, a position sees the whole text, as in BERT (bert.py). For those who know torch:

    nn.TransformerEncoder(x, mask=..., is_causal=True)          TransformerLMConfig(causal=True)
    nn.TransformerEncoder(x, src_key_padding_mask=...)          TransformerLMConfig(causal=False, pad_token_id=0)
"""
import dataclasses
import math
from dataclasses import dataclass

from .. import functional as F
from ..nn import Dropout, Embedding, KVCache, Linear, Module
from .inputs import prepare, text_ends, token_ids
from .transformer import Encoder, LayerConfig, embed, initialise, text_lengths


@dataclass
class TransformerLMConfig(LayerConfig):
    """The fields of LayerConfig, and these."""

    num_layers: int = 6
    causal: bool = True                 # whether a position sees only what stands before it


class TransformerLM(Module):
    """model(ids) gives logits at every position: of the token that comes next, or (causal=False) of the one there."""

    steps_alike = True                  # as in gpt.py

    def __init__(self, config):
        self.config = c = config
        self.embedding = Embedding(c.vocab_size, c.d_model)
        self.encoder = Encoder(c, c.num_layers)
        self.lm_head = self.embedding if c.tie_word_embeddings else Linear(c.d_model, c.vocab_size, bias=False)
        self.drop = Dropout(c.dropout)
        initialise(self)

    def hidden(self, ids, cache=None, key_start=None, key_end=None):
        """The stream after the last layer: ids (B, T) -> (B, T, C)

        What ends a row in pad_token_id is padding, unless key_end (B,) says where a row ends. A causal mask hides it
        from all that stands before it anyway. cache, key_start: as in gpt.py.
        """
        c, ids = self.config, token_ids("TransformerLM", ids)
        if key_end is None and not c.causal:
            key_end = text_lengths(ids, c.pad_token_id)
        x = self.drop(embed(self.embedding, ids, cache[0].used if cache else 0, c.n_positions, key_start))
        return self.encoder(x, key_end, c.causal, cache, key_start)

    def forward(self, ids, cache=None):
        """ids (B, T) integers -> (B, T, V)"""
        return F.linear(self.hidden(ids, cache), self.lm_head.weight)

    def loss(self, ids, targets, reduction="mean", ignore_index=-100, key_end=None):
        """Cross-entropy in nats per token: ids and targets (B, T) -> scalar. key_end: as in hidden()."""
        x, targets = self.hidden(ids, key_end=key_end), token_ids("TransformerLM", targets)
        return F.linear_cross_entropy(x, self.lm_head.weight, targets, ignore_index, reduction)

    def prepare(self, ids, targets):
        """A batch, for a recorded loss(): inputs.py."""
        arrays, c = prepare(self, ids, targets), self.config
        if not c.causal and c.pad_token_id is not None:
            arrays["key_end"] = text_ends(arrays["ids"] != c.pad_token_id)
        return arrays

    def next_logits(self, ids, cache=None, key_start=None):
        """The logits after the last position only: ids (B, T) -> (B, V); for generation. See hidden()."""
        if not self.config.causal:
            raise ValueError("TransformerLM: with causal=False it has seen the whole text and predicts no next token; "
                             "train one with causal=True to write")
        return F.linear(self.hidden(ids, cache, key_start)[:, -1], self.lm_head.weight)

    def new_cache(self, batch, length=None):
        """An empty KV cache for `batch` texts of up to `length` tokens (default: n_positions)."""
        c = self.config
        return [KVCache(batch, length or c.n_positions, c.nhead, c.d_model // c.nhead, self.embedding.weight.data)
                for _ in self.encoder.layers]

    def reorder_cache(self, cache, rows):
        """Let text i go on from what the cache holds of text rows[i]: rows (B,); for beam search."""
        for layer in cache:
            layer.reorder(rows)

    def flops_per_token(self, context=None):
        """Floating-point operations of one training step per token (forward and backward), estimated as in gpt.py:
        6 N + 12 L C T.
        """
        c, T = self.config, context or self.config.n_positions
        table = 0 if c.tie_word_embeddings else math.prod(self.embedding.weight.shape)      # looking up costs nothing
        return 6 * (self.num_parameters() - table) + 12 * c.num_layers * c.d_model * T

    def config_dict(self):
        """The configuration as a dictionary, for a checkpoint."""
        return {"model_type": "transformer-lm", **dataclasses.asdict(self.config)}
