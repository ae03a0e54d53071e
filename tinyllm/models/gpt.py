"""GPT-2 (Radford et al. 2019, "Language models are unsupervised multitask learners"), to the letter.

    ids (B, T) -> token vectors + position vectors -> n_layer blocks -> layer norm -> logits (B, T, V)

Each block adds to the stream x what attention gathered from earlier positions, then what the MLP made of it. The stream
is normalised before each branch, not after (pre-norm), so that x runs straight from the embedding to the head and
gradients run straight back. The head is the token embedding again, transposed: a token's vector is both how it is read
and how it is predicted (tied weights).
"""
import dataclasses
import math
from dataclasses import dataclass

import numpy as np

from .. import functional as F
from ..nn import MLP, Dropout, Embedding, KVCache, LayerNorm, Module, MultiHeadAttention, normal


@dataclass
class GPTConfig:
    """The shape of a GPT; the fields carry the names of Hugging Face's GPT-2 configuration.

    The defaults are GPT-2 small.
    """

    vocab_size: int = 50257
    n_positions: int = 1024             # the context: how many tokens it sees at most
    n_embd: int = 768                   # width of the stream
    n_layer: int = 12
    n_head: int = 12
    embd_pdrop: float = 0.1             # dropout: of the embeddings, ...
    attn_pdrop: float = 0.1             # ... of the attention probabilities, ...
    resid_pdrop: float = 0.1            # ... of what each branch adds to the stream
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02     # standard deviation of the initial weights
    bias: bool = True                   # biases in linear layers and norms; GPT-2 has them, nanoGPT trains without

    @classmethod
    def preset(cls, name, **changes):
        """A configuration by name (see PRESETS), with some fields changed: GPTConfig.preset("tiny", vocab_size=65)."""
        if name not in PRESETS:
            raise ValueError(f'GPTConfig: there is no preset "{name}"; choose one of {", ".join(PRESETS)}')
        return cls(**{**PRESETS[name], **changes})


NO_DROPOUT = dict(embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)      # small models see each text once or twice
PRESETS = {
    "tiny": dict(n_positions=64, n_embd=128, n_layer=4, n_head=4, **NO_DROPOUT),            # minutes on a laptop
    "small": dict(n_positions=256, n_embd=384, n_layer=6, n_head=6, **NO_DROPOUT),          # a night, or a GPU
    "gpt2": dict(),                                                                         # 124 million
    "gpt2-medium": dict(n_embd=1024, n_layer=24, n_head=16),                                # 355 million
    "gpt2-large": dict(n_embd=1280, n_layer=36, n_head=20),                                 # 774 million
    "gpt2-xl": dict(n_embd=1600, n_layer=48, n_head=25),                                    # 1558 million
}


class Block(Module):
    """x + attention(norm(x)), then x + mlp(norm(x))"""

    def __init__(self, config):
        c = config
        self.ln_1 = LayerNorm(c.n_embd, c.layer_norm_epsilon, c.bias)
        self.attn = MultiHeadAttention(c.n_embd, c.n_head, c.bias, c.attn_pdrop, causal=True)
        self.ln_2 = LayerNorm(c.n_embd, c.layer_norm_epsilon, c.bias)
        self.mlp = MLP(c.n_embd, bias=c.bias)
        self.drop = Dropout(c.resid_pdrop)

    def forward(self, x, cache=None):
        a = self.drop(self.attn(self.ln_1(x), cache))       # (B, T, C)
        x, normed = self.ln_2.add(x, a)                     # x = x + a, and its norm
        return x + self.drop(self.mlp(normed))


class GPT(Module):
    """A causal language model: model(ids) gives, at every position, the logits of the token that comes next."""

    def __init__(self, config):
        self.config = c = config
        self.wte = Embedding(c.vocab_size, c.n_embd)        # the parameter names are GPT-2's own
        self.wpe = Embedding(c.n_positions, c.n_embd)
        self.drop = Dropout(c.embd_pdrop)
        self.h = [Block(c) for _ in range(c.n_layer)]
        self.ln_f = LayerNorm(c.n_embd, c.layer_norm_epsilon, c.bias)
        self._initialise()

    def _initialise(self):
        """Normal weights, zero biases; what writes into the stream starts smaller,
        as 2 n_layer branches add up in it.
        """
        for name, p in self.named_parameters():
            if name.endswith("c_proj.weight"):
                p.data = normal(*p.shape, std=self.config.initializer_range / math.sqrt(2 * self.config.n_layer)).data
            elif p.ndim == 2:
                p.data = normal(*p.shape, std=self.config.initializer_range).data
            elif name.endswith("bias"):
                p.data = np.zeros(p.shape, np.float32)

    def hidden(self, ids, cache=None):
        """The stream after the last norm: ids (B, T) -> (B, T, C)"""
        B, T = ids.shape
        start = cache[0].used if cache else 0
        if start + T > self.config.n_positions:
            raise ValueError(f"GPT: {start + T} tokens are more than its n_positions={self.config.n_positions}; "
                             "give it the last part of the text")
        x = self.wte(ids) + self.wpe(np.arange(start, start + T))           # (B, T, C) + (T, C)
        x = self.drop(x)
        for i, block in enumerate(self.h):
            x = block(x, cache[i] if cache else None)
        return self.ln_f(x)

    def forward(self, ids, cache=None):
        """Logits of the next token at every position: ids (B, T) integers -> (B, T, V)"""
        return F.linear(self.hidden(_batch(ids), cache), self.wte.weight)

    def loss(self, ids, targets, reduction="mean", ignore_index=-100):
        """Cross-entropy in nats per token: ids and targets (B, T) -> scalar.

        targets[b, t] is what follows ids[b, t].
        """
        return F.linear_cross_entropy(self.hidden(_batch(ids)), self.wte.weight, _batch(targets), ignore_index,
                                      reduction)

    def next_logits(self, ids, cache=None):
        """The logits after the last position only: ids (B, T) -> (B, V); for generation."""
        return F.linear(self.hidden(_batch(ids), cache)[:, -1], self.wte.weight)

    def new_cache(self, batch, length=None):
        """An empty KV cache for `batch` texts of up to `length` tokens (default: n_positions)."""
        c = self.config
        return [KVCache(batch, length or c.n_positions, c.n_head, c.n_embd // c.n_head, self.wte.weight.data)
                for _ in self.h]

    def flops_per_token(self, context=None):
        """Floating-point operations of one training step per token (forward and backward), estimated.

        6 N + 12 L C T: each weight of a matrix takes part in a multiplication and an addition, once forward and twice
        backward; attention multiplies T keys and T values per layer. Source: Chowdhery et al. 2022 (PaLM), appendix B.
        """
        c, T = self.config, context or self.config.n_positions
        weights = self.num_parameters() - math.prod(self.wpe.weight.shape)      # looking up a position costs nothing
        return 6 * weights + 12 * c.n_layer * c.n_embd * T

    def config_dict(self):
        """The configuration as a dictionary, for a checkpoint."""
        return {"model_type": "gpt", **dataclasses.asdict(self.config)}


def _batch(ids):
    """Token ids as an array (B, T)."""
    ids = np.asarray(ids) if isinstance(ids, (list, tuple)) else ids
    if ids.ndim != 2:
        raise ValueError(f"GPT: ids must be (batch, time), not {tuple(ids.shape)}; "
                         "one text is a batch of one: ids[None]")
    return ids
