"""The layers of the first Transformer, as torch.nn has them.

    encoder layer   self-attention, feed-forward                                        (B, S, C) -> (B, S, C)
    decoder layer   self-attention, attention to what was encoded, feed-forward         (B, T, C) -> (B, T, C)

transformer_lm.py makes a language model of encoder layers, seq2seq.py puts both kinds together. Names and shapes of all
parameters are those of torch.nn.Transformer, so that weights move over with load_state_dict. Masks differ: torch adds a
T x T array to the scores, and hides padding with one boolean per token. Here `causal` and the lengths of the rows,
`key_end` (B,), say the same in a few numbers.

Source: Vaswani et al. 2017, "Attention Is All You Need", arXiv:1706.03762.
"""
import functools
import math
from dataclasses import dataclass

import numpy as np

from .. import backend, random
from .. import functional as F
from ..config import Config
from ..nn import Dropout, LayerNorm, Linear, Module, full, normal
from ..tensor import Tensor
from .inputs import fits, lengths, positions

ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu}


@dataclass
class LayerConfig(Config):
    """The shape of a layer, and of what goes in; the fields carry the names of torch.nn.Transformer where it has them.

    The defaults are the paper's base model.
    """

    vocab_size: int = 37000
    d_model: int = 512                  # width of the stream
    nhead: int = 8
    dim_feedforward: int = 2048
    dropout: float = 0.1                # of the embeddings, the attention probabilities, and what each branch adds
    activation: str = "relu"            # or "gelu", in its exact form
    layer_norm_eps: float = 1e-5
    norm_first: bool = False            # x + branch(norm(x)), as in GPT-2, and not norm(x + branch(x)), as in the paper
    final_norm: bool = True             # a norm behind each stack; torch.nn.Transformer has it, the paper's has not
    bias: bool = True
    n_positions: int = 1024             # how many tokens it sees at most
    pad_token_id: int | None = 0        # what fills short texts up, on the right; None: nothing does
    tie_word_embeddings: bool = True    # whether the head is the token embedding

    FROM_ZERO = ("pad_token_id",)
    PROBABILITIES = ("dropout",)

    def check(self):
        self.need_multiple("d_model", "nhead", "every head gets an equal part of it")
        self.need("d_model", self.d_model % 2 == 0, "even: positions are pairs of a sine and a cosine")
        self.need_one_of("activation", ACTIVATIONS)


class MultiheadAttention(Module):
    """torch.nn.MultiheadAttention: in_proj_weight (3 C, C) holds the weights of q, k and v, one below the other."""

    def __init__(self, config):
        c, C = config, config.d_model
        self.nhead, self.dropout = c.nhead, c.dropout
        self.in_proj_weight = normal(3 * C, C, std=C**-0.5)     # a whole model draws it again: initialise()
        self.in_proj_bias = full(3 * C, 0) if c.bias else None
        self.out_proj = Linear(C, C, c.bias)

    def forward(self, x, key_end=None, causal=False, cache=None, key_start=None):
        """Self-attention: (B, T, C) -> (B, T, C); with a cache, x continues the positions that the cache holds."""
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)                           # (B, T, 3 C)
        if cache is None:
            y = F.self_attention(qkv, key_start, key_end, n_head=self.nhead, causal=causal, dropout=self._rate())
        else:
            q, k, v = self._heads(qkv, 3)
            y = cache.attend(q, k, v, key_start).reshape(*x.shape)
        return self.out_proj(y)

    def keys_and_values(self, memory):
        """What x can look at in cross(): memory (B, S, C) -> k and v (B, S, H, D)"""
        C = memory.shape[2]
        return self._heads(F.linear(memory, self.in_proj_weight[C:], self._bias(C, None)), 2)

    def cross(self, x, k, v, key_end=None):
        """Cross-attention, to keys and values from elsewhere: (B, T, C) -> (B, T, C)"""
        C = x.shape[2]
        (q,) = self._heads(F.linear(x, self.in_proj_weight[:C], self._bias(0, C)), 1)
        y = F.attention(q, k, v, None, None, key_end, dropout=self._rate())                 # (B, T, H, D)
        return self.out_proj(y.reshape(*x.shape))

    def _heads(self, x, parts):
        """(B, T, parts * C) -> one (B, T, H, D) for each part"""
        B, T, _ = x.shape
        return F.split(x.reshape(B, T, parts * self.nhead, -1), self.nhead, axis=2)

    def _bias(self, start, end):
        return None if self.in_proj_bias is None else self.in_proj_bias[start:end]

    def _rate(self):
        return self.dropout if self.training else 0.0


def layer_norm(config):
    """The norm of a layer."""
    return LayerNorm(config.d_model, config.layer_norm_eps, config.bias)


class EncoderLayer(Module):
    """torch.nn.TransformerEncoderLayer; with causal=True a layer of a language model."""

    def __init__(self, config):
        c = config
        self.self_attn = MultiheadAttention(c)
        self.linear1 = Linear(c.d_model, c.dim_feedforward, c.bias)
        self.linear2 = Linear(c.dim_feedforward, c.d_model, c.bias)
        self.norm1, self.norm2 = layer_norm(c), layer_norm(c)
        self.activation, self.norm_first, self.drop = ACTIVATIONS[c.activation], c.norm_first, Dropout(c.dropout)

    def forward(self, x, key_end=None, causal=False, cache=None, key_start=None):
        x = self.residual(x, self.norm1, lambda x: self.self_attn(x, key_end, causal, cache, key_start))
        return self.residual(x, self.norm2, self.feed_forward)

    def residual(self, x, norm, branch):
        """norm(x + branch(x)), or x + branch(norm(x)) with norm_first"""
        if self.norm_first:
            return x + self.drop(branch(norm(x)))
        return norm.add(x, self.drop(branch(x)))[1]

    def feed_forward(self, x):
        return self.linear2(self.drop(self.activation(self.linear1(x))))


class DecoderLayer(EncoderLayer):
    """torch.nn.TransformerDecoderLayer: an encoder layer with a third branch, which looks at keys and values k, v."""

    def __init__(self, config):
        super().__init__(config)
        self.multihead_attn = MultiheadAttention(config)
        self.norm3 = layer_norm(config)

    def forward(self, x, k, v, key_end=None, cache=None):
        x = self.residual(x, self.norm1, lambda x: self.self_attn(x, None, True, cache))
        x = self.residual(x, self.norm2, lambda x: self.multihead_attn.cross(x, k, v, key_end))
        return self.residual(x, self.norm3, self.feed_forward)


class Encoder(Module):
    """torch.nn.TransformerEncoder"""

    def __init__(self, config, n_layers):
        self.layers = [EncoderLayer(config) for _ in range(n_layers)]
        self.norm = layer_norm(config) if config.final_norm else None

    def forward(self, x, key_end=None, causal=False, cache=None, key_start=None):
        """(B, S, C) -> (B, S, C); what is computed at padding, before key_start and behind key_end (B,), means nothing.
        """
        for i, layer in enumerate(self.layers):
            x = layer(x, key_end, causal, cache[i] if cache else None, key_start)
        return x if self.norm is None else self.norm(x)


class Decoder(Module):
    """torch.nn.TransformerDecoder"""

    def __init__(self, config, n_layers):
        self.layers = [DecoderLayer(config) for _ in range(n_layers)]
        self.norm = layer_norm(config) if config.final_norm else None

    def keys_and_values(self, memory):
        """What each layer looks at in the encoder's output, memory (B, S, C): a list of (k, v), each (B, S, H, D)

        It does not depend on the target, so whoever writes token by token computes it once.
        """
        return [layer.multihead_attn.keys_and_values(memory) for layer in self.layers]

    def forward(self, x, keys_values, key_end=None, cache=None):
        """(B, T, C) -> (B, T, C); key_end (B,): how many keys of each row are text."""
        for i, layer in enumerate(self.layers):
            x = layer(x, *keys_values[i], key_end, cache[i] if cache else None)
        return x if self.norm is None else self.norm(x)


def initialise(model):
    """Matrices uniform in +-sqrt(6 / (rows + columns)), as in torch.nn.Transformer (Glorot & Bengio 2010, eq. 16); zero
    biases; embeddings normal with standard deviation 1/sqrt(C), since embed() multiplies them by sqrt(C).
    """
    for name, p in model.named_parameters():
        if name.endswith("embedding.weight"):
            p.data = normal(*p.shape, std=p.shape[1] ** -0.5).data
        elif p.ndim == 2:
            bound = math.sqrt(6 / sum(p.shape))
            p.data = random.weights().uniform(-bound, bound, p.shape).astype(np.float32)
        elif name.endswith("bias"):
            p.data = np.zeros(p.shape, np.float32)


def embed(table, ids, start, n_positions, key_start=None):
    """sqrt(C) * the tokens' vectors + their positions': ids (B, T) -> (B, T, C); the first token is number `start`.

    key_start (B,): which token of each row is the first of its text, and has position 0. start: see positions().
    """
    weight, T, C = table.weight, ids.shape[1], table.weight.shape[1]
    fits("Transformer", start, T, n_positions, "give it less text, or a larger n_positions: the table of positions is "
         "computed, not learned")
    vectors = Tensor._of(_position_table(backend.of(weight.data), weight.dtype, n_positions, C))
    if key_start is None and not backend.is_array(start):
        vectors = vectors[start:start + T]                                                  # (T, C)
    else:
        vectors = F.embedding(positions(start, T, key_start), vectors)                      # (T, C) or (B, T, C)
    return table(ids) * math.sqrt(C) + vectors


def sinusoids(length, size):
    """The paper's positions (section 3.5): (length, size), with angle = t / 10000^(2i / size) for position t,

        p[t, 2i] = sin(angle),  p[t, 2i + 1] = cos(angle)

    Each pair is a clock hand; the first goes round in 6 tokens, the last in 60,000. p[t + n] is p[t] turned by angles
    that depend on n alone, so "n tokens back" can be learned as a matrix.
    """
    angles = np.outer(np.arange(length), 10000.0 ** (-np.arange(0, size, 2) / size))
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(length, size)


@functools.cache
def _position_table(ops, dtype, length, size):
    """sinusoids(), computed once per backend and dtype"""
    return ops.from_numpy(sinusoids(length, size), dtype=dtype)


def text_lengths(ids, pad_token_id):
    """How many tokens of each row of ids (B, T) are text: (B,), or None if all are."""
    return None if pad_token_id is None else lengths(ids != pad_token_id)
