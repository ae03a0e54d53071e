"""T5 (Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer",
arXiv:1910.10683): an encoder and a decoder as in seq2seq.py, with the parts chosen anew.

    source (B, S)        -> shared -> encoder --------------.  memory (B, S, C)
    decoder input (B, T) -> shared -> decoder: looks at itself and at the memory -> (B, T, C) -> logits (B, T, V)

No position is added to the tokens. Instead, attention within a text adds to each score a number that depends on how far
the key stands from the query: one learned number per head and bucket of distances, the same in all layers (section 2.1;
`relative_buckets`). Norms stand before each branch, divide by the root mean square and subtract no mean (RMSNorm). No
layer has a bias. Scores are not divided by sqrt(D): the initial weights of the queries are that much smaller instead.

Version 1.1 (feed_forward_proj="gated-gelu", tie_word_embeddings=False) has a gated MLP (Shazeer 2020, arXiv:2002.05202)
and a head of its own. Where the head is the embedding, whose numbers are of size 1, the stream is multiplied by
d_model^-0.5 before it. The names of parameters and fields are those of Hugging Face's T5ForConditionalGeneration.
"""
import dataclasses
import math
from dataclasses import dataclass

import numpy as np

from .. import backend
from .. import functional as F
from ..config import Config
from ..nn import Dropout, Embedding, Linear, Module, RMSNorm, normal
from ..pretrained import Pretrained
from .inputs import token_ids
from .seq2seq import EncoderDecoder
from .transformer import text_lengths


@dataclass
class T5Config(Config):
    """The shape of a T5; the fields carry the names of Hugging Face's T5Config. The defaults are T5 small."""

    vocab_size: int = 32128
    d_model: int = 512                          # width of the stream
    d_kv: int = 64                              # size of a head; num_heads * d_kv need not be d_model
    d_ff: int = 2048
    num_layers: int = 6                         # of the encoder
    num_decoder_layers: int | None = None       # None: as many
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128  # from here on, all distances share a bucket
    dropout_rate: float = 0.1
    layer_norm_epsilon: float = 1e-6
    initializer_factor: float = 1.0
    feed_forward_proj: str = "relu"             # or "gated-gelu"
    tie_word_embeddings: bool = True            # whether the head is the token embedding
    pad_token_id: int = 0                       # what fills short texts up, on the right
    eos_token_id: int = 1
    decoder_start_token_id: int = 0             # what the decoder reads first: T5 has no token of its own for that

    FROM_ZERO = ("pad_token_id", "eos_token_id", "decoder_start_token_id")
    PROBABILITIES = ("dropout_rate",)

    def check(self):
        self.need_one_of("feed_forward_proj", ("relu", "gated-gelu"))
        buckets = self.relative_attention_num_buckets
        self.need("relative_attention_num_buckets", buckets % 4 == 0,
                  "a multiple of 4: half for each side, half of that exact")
        self.need("relative_attention_max_distance", self.relative_attention_max_distance > buckets // 2,
                  f"more than {buckets // 2}, up to which each distance has a bucket")
        for name in self.FROM_ZERO:
            self.need(name, getattr(self, name) < self.vocab_size, f"a token, less than vocab_size={self.vocab_size}")


V1_1 = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
T5Config.PRESETS = {
    "tiny": {"d_model": 128, "d_kv": 32, "d_ff": 512, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0},
    "small": {},                                                                                    # 61 million
    "base": {"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12},                      # 223 million
    "large": {"d_model": 1024, "d_ff": 4096, "num_layers": 24, "num_heads": 16},                    # 738 million
    "v1_1-small": {"d_ff": 1024, "num_layers": 8, "num_heads": 6, **V1_1},                          # 77 million
    "v1_1-base": {"d_model": 768, "num_layers": 12, "num_heads": 12, **V1_1},                       # 248 million
    "v1_1-large": {"d_model": 1024, "d_ff": 2816, "num_layers": 24, "num_heads": 16, **V1_1},       # 783 million
}


def relative_buckets(distance, bidirectional, num_buckets=32, max_distance=128):
    """The bucket of each distance, key position minus query position: integers -> integers from 0 to num_buckets - 1

    With n = |distance|, m buckets and e = m/2: n if n < e, else e + floor((m - e) log(n / e) / log(max_distance / e)),
    at most m - 1. Small distances are told apart exactly, large ones ever more coarsely. bidirectional (the encoder):
    m = num_buckets / 2, and the second half of the buckets is for keys to the right of the query. Otherwise, in the
    decoder, m = num_buckets, and those, which the causal mask hides, share bucket 0. Computed in float32, as in the
    published models: some n lie on a border.
    """
    distance = np.asarray(distance)
    m = num_buckets // 2 if bidirectional else num_buckets
    n = np.abs(distance) if bidirectional else np.maximum(-distance, 0)
    e = m // 2
    logarithm = np.log(np.maximum(n, e).astype(np.float32) / np.float32(e)) / np.float32(math.log(max_distance / e))
    coarse = np.minimum(e + (logarithm * np.float32(m - e)).astype(np.int64), m - 1)
    return np.where(n < e, n, coarse) + m * (distance > 0) * bidirectional


class Attention(Module):
    """softmax(q k^T + bias) v for num_heads heads of size d_kv."""

    def __init__(self, config, relative_bias=False):
        c, inner = config, config.num_heads * config.d_kv
        self.config = c
        self.q, self.k, self.v = (Linear(c.d_model, inner, bias=False) for _ in range(3))
        self.o = Linear(inner, c.d_model, bias=False)
        if relative_bias:
            self.relative_attention_bias = Embedding(c.relative_attention_num_buckets, c.num_heads)

    def keys_and_values(self, x):
        """(B, S, C) -> k and v (B, S, H, D)"""
        return self._heads(self.k(x)), self._heads(self.v(x))

    def forward(self, x, k, v, bias=None, key_end=None, causal=False, cache=None):
        """Each position of x (B, T, C) looks at the keys that it may see: -> (B, T, C)

        With a cache, k and v continue what it holds, and x looks at all of that.
        """
        q = self._heads(self.q(x))
        if cache is not None:
            y = cache.attend(q, k, v, None, key_end, causal, bias, scale=1.0)
        else:
            y = F.attention(q, k, v, bias, None, key_end, causal=causal, scale=1.0,
                            dropout=self.config.dropout_rate if self.training else 0.0)
        return self.o(y.reshape(*x.shape[:2], -1))

    def position_bias(self, n_queries, n_keys, bidirectional):
        """What is added to the scores of the last n_queries positions of a text of n_keys: (1, H, T, S)"""
        c = self.config
        distance = np.arange(n_keys) - np.arange(n_keys - n_queries, n_keys)[:, None]       # (T, S)
        buckets = relative_buckets(distance, bidirectional, c.relative_attention_num_buckets,
                                   c.relative_attention_max_distance)
        return self.relative_attention_bias(buckets).permute(2, 0, 1).reshape(1, c.num_heads, n_queries, n_keys)

    def _heads(self, x):
        return x.reshape(*x.shape[:2], self.config.num_heads, self.config.d_kv)


class FeedForward(Module):
    """relu(x Wi^T) Wo^T, or gated: (gelu(x Wi_0^T) * x Wi_1^T) Wo^T"""

    def __init__(self, config):
        c = config
        names = ("wi_0", "wi_1") if c.feed_forward_proj == "gated-gelu" else ("wi",)
        for name in names:
            setattr(self, name, Linear(c.d_model, c.d_ff, bias=False))
        self.wo = Linear(c.d_ff, c.d_model, bias=False)
        self.gated, self.drop = len(names) == 2, Dropout(c.dropout_rate)

    def forward(self, x):
        hidden = F.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x) if self.gated else F.relu(self.wi(x))
        return self.wo(self.drop(hidden))


class Block(Module):
    """x + branch(norm(x)) for each branch: self-attention, in the decoder attention to the memory, feed-forward."""

    def __init__(self, config, decoder, first):
        norm = lambda: RMSNorm(config.d_model, config.layer_norm_epsilon)
        self.layer = [{"SelfAttention": Attention(config, relative_bias=first), "layer_norm": norm()}]
        if decoder:
            self.layer.append({"EncDecAttention": Attention(config), "layer_norm": norm()})
        self.layer.append({"DenseReluDense": FeedForward(config), "layer_norm": norm()})
        self.drop, self.decoder = Dropout(config.dropout_rate), decoder

    def forward(self, x, bias, key_end=None, memory_keys=None, cache=None):
        """(B, T, C) -> (B, T, C). memory_keys, in the decoder: (k, v), of which key_end limits the keys."""
        attention, normed = self.layer[0]["SelfAttention"], self.layer[0]["layer_norm"](x)
        k, v = attention.keys_and_values(normed)
        x = x + self.drop(attention(normed, k, v, bias, None if self.decoder else key_end, self.decoder, cache))
        if self.decoder:
            attention, norm = self.layer[1]["EncDecAttention"], self.layer[1]["layer_norm"]
            x = x + self.drop(attention(norm(x), *memory_keys, None, key_end))
        return x + self.drop(self.layer[-1]["DenseReluDense"](self.layer[-1]["layer_norm"](x)))


class Stack(Module):
    """The encoder, or the decoder."""

    def __init__(self, config, n_layers, decoder):
        self.block = [Block(config, decoder, first=i == 0) for i in range(n_layers)]
        self.final_layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)
        self.drop, self.decoder = Dropout(config.dropout_rate), decoder

    def forward(self, x, key_end=None, memory_keys=None, cache=None):
        """(B, T, C) -> (B, T, C)"""
        T, used = x.shape[1], cache[0].used if cache else 0
        # in a recorded step, where `used` is an array, the bias is that of the cache's last place (KVCache.attend)
        places = (1, cache[0].length) if backend.is_array(used) else (T, T + used)
        bias = self.block[0].layer[0]["SelfAttention"].position_bias(*places, bidirectional=not self.decoder)
        x = self.drop(x)
        for i, block in enumerate(self.block):
            x = block(x, bias, key_end, memory_keys and memory_keys[i], cache and cache[i])
        return self.drop(self.final_layer_norm(x))


class T5(EncoderDecoder, Pretrained):
    """model(source, decoder_input) -> logits; model.loss(source, targets) to train it; see EncoderDecoder."""

    config_class = T5Config

    def __init__(self, config):
        self.config = c = config
        self.shared = Embedding(c.vocab_size, c.d_model)
        self.encoder = Stack(c, c.num_layers, decoder=False)
        self.decoder = Stack(c, c.num_decoder_layers or c.num_layers, decoder=True)
        self.lm_head = self.shared if c.tie_word_embeddings else Linear(c.d_model, c.vocab_size, bias=False)
        self._initialise()

    def _initialise(self):
        """As published: normal with a standard deviation of (inputs of the matrix)^-0.5, except for the embeddings, 1,
        and the queries, where it takes in the 1 / sqrt(D) of other models. (The head starts like any matrix.)
        """
        c = self.config
        for name, p in self.named_parameters():
            if p.ndim == 2:
                std = p.shape[1] ** -0.5
                if name == "shared.weight":
                    std = 1.0
                elif name.endswith(".q.weight"):
                    std = (c.d_model * c.d_kv) ** -0.5
                elif name.endswith("relative_attention_bias.weight"):
                    std = c.d_model ** -0.5
                p.data = normal(*p.shape, std=std * c.initializer_factor).data

    def encode(self, source, key_end=None):
        """What the encoder makes of the source: ids (B, S) -> (B, S, C)"""
        source = token_ids("T5", source)
        key_end = text_lengths(source, self.config.pad_token_id) if key_end is None else key_end
        return self.encoder(self.shared(source), key_end)

    def keys_and_values(self, memory):
        return [block.layer[1]["EncDecAttention"].keys_and_values(memory) for block in self.decoder.block]

    def hidden(self, decoder_input, keys_values, key_end=None, cache=None):
        """What the head multiplies: ids (B, T) -> (B, T, C)"""
        x = self.decoder(self.shared(decoder_input), key_end, keys_values, cache)
        return x * self.config.d_model ** -0.5 if self.config.tie_word_embeddings else x

    def flops_per_token(self, context=512, source_context=None):
        """Floating-point operations of one training step per target token (forward and backward), as in seq2seq.py."""
        c, T = self.config, context
        S, inner, layers = source_context or T, c.num_heads * c.d_kv, len(self.decoder.block)
        cross = layers * 2 * inner * c.d_model                                      # keys and values of the memory
        per_source = 6 * (self.encoder.num_parameters() + cross) + 12 * c.num_layers * inner * S
        per_target = 6 * (self.decoder.num_parameters() - cross + math.prod(self.lm_head.weight.shape))
        return per_target + 12 * layers * inner * (T + S) + per_source * S / T

    def config_dict(self):
        """The configuration as a dictionary, for a checkpoint."""
        return {"model_type": "t5", **dataclasses.asdict(self.config)}
