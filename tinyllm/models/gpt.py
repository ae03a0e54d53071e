"""GPT-2 (Radford et al. 2019, "Language models are unsupervised multitask learners"), operation by operation.

    ids (B, T) -> token vectors + position vectors -> n_layer blocks -> layer norm -> logits (B, T, V)

Each block adds to the stream x what attention gathered from earlier positions, then what the MLP made of it. The stream
is normalised before each branch, not after (pre-norm), so that x runs straight from the embedding to the head and
gradients run straight back. The head is the token embedding again, transposed: a token's vector is both how it is read
and how it is predicted (tied weights). One difference lies in the files: Linear stores its weight as (out, in), while
GPT-2's own layers (Conv1D) store theirs transposed, as (in, out).

Later models changed the parts and kept the plan. The last options of GPTConfig exchange them one by one, up to Llama:
llama.py says how and why.
"""
import dataclasses
import math
from dataclasses import dataclass
from numbers import Real

from .. import functional as F
from ..config import Config
from ..nn import (
    MLP, Dropout, Embedding, KVCache, LayerNorm, Linear, Module, MultiHeadAttention, RMSNorm, few_rows, full, normal,
)
from ..pretrained import Pretrained
from .inputs import fits, positions, prepare, token_ids
from .llama import GatedMLP, GroupedAttention


@dataclass
class GPTConfig(Config):
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
    n_inner: int | None = None          # width of the MLP; None: 4 n_embd, or 8/3 n_embd with mlp="swiglu"
    norm: str = "layer_norm"            # or "rms_norm"
    position: str = "learned"           # or "rotary", ...
    rope_theta: float = 10000.0         # ... the larger, the slower its angles grow; and some slower still:
    rope_scaling: dict | None = None    # Llama 3.1's four numbers, F.ROPE_SCALING
    mlp: str = "gelu"                   # or "swiglu"
    n_kv_head: int | None = None        # heads of keys and values, a divisor of n_head; None: n_head
    tie_word_embeddings: bool = True    # whether the head is the token embedding

    PROBABILITIES = ("embd_pdrop", "attn_pdrop", "resid_pdrop")

    def check(self):
        self.need_multiple("n_embd", "n_head", "every head gets an equal part of it")
        if self.n_kv_head:
            self.need_multiple("n_head", "n_kv_head", "each head of keys and values serves equally many queries")
        if self.position == "rotary":
            self.need("n_embd", self.n_embd // self.n_head % 2 == 0,
                      f"a multiple of 2 n_head={2 * self.n_head}: rotary positions turn pairs of a head's features")
        for name, known in OPTIONS.items():
            self.need_one_of(name, known)
        self.need("rope_theta", self.rope_theta > 0, "a positive number")
        scaling = self.rope_scaling
        if scaling is not None:
            numbers = isinstance(scaling, dict) and set(scaling) == set(F.ROPE_SCALING) and all(
                isinstance(n, Real) and n > 0 for n in scaling.values())
            self.need("rope_scaling", numbers and scaling["low_freq_factor"] < scaling["high_freq_factor"],
                      f"four positive numbers, {', '.join(F.ROPE_SCALING)}, the second below the third; or None")


OPTIONS = {"norm": ("layer_norm", "rms_norm"), "position": ("learned", "rotary"), "mlp": ("gelu", "swiglu")}
NO_DROPOUT = dict(embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)      # small models see each text once or twice
GPTConfig.PRESETS = PRESETS = {
    "nano": dict(n_positions=16, n_embd=32, n_layer=2, n_head=2, **NO_DROPOUT),             # for Triton's interpreter
    "tiny": dict(n_positions=64, n_embd=128, n_layer=4, n_head=4, **NO_DROPOUT),            # minutes on a laptop
    "llama-tiny": dict(n_positions=64, n_embd=128, n_layer=4, n_head=4, n_kv_head=2, n_inner=384, norm="rms_norm",
                       position="rotary", mlp="swiglu", bias=False, **NO_DROPOUT),          # as many parameters
    "small": dict(n_positions=256, n_embd=384, n_layer=6, n_head=6, **NO_DROPOUT),          # a night, or a GPU
    "gpt2": dict(),                                                                         # 124 million
    "gpt2-medium": dict(n_embd=1024, n_layer=24, n_head=16),                                # 355 million
    "gpt2-large": dict(n_embd=1280, n_layer=36, n_head=20),                                 # 774 million
    "gpt2-xl": dict(n_embd=1600, n_layer=48, n_head=25),                                    # 1558 million
}


def norm(c):
    """The norm that a configuration asks for."""
    if c.norm == "rms_norm":
        return RMSNorm(c.n_embd, c.layer_norm_epsilon)
    return LayerNorm(c.n_embd, c.layer_norm_epsilon, c.bias)


def attention(c):
    """The attention that a configuration asks for."""
    if c.position == "rotary" or c.n_kv_head not in (None, c.n_head):
        return GroupedAttention(c.n_embd, c.n_head, c.n_kv_head or c.n_head, c.bias, c.attn_pdrop,
                                c.rope_theta if c.position == "rotary" else None, c.n_positions, c.rope_scaling)
    return MultiHeadAttention(c.n_embd, c.n_head, c.bias, c.attn_pdrop, causal=True)


class Block(Module):
    """x = x + attention(norm(x)), then x = x + mlp(norm(x)); this last sum is left to whoever comes next (forward())"""

    def __init__(self, config):
        c = config
        self.ln_1 = norm(c)
        self.attn = attention(c)
        self.ln_2 = norm(c)
        self.mlp = (MLP if c.mlp == "gelu" else GatedMLP)(c.n_embd, c.n_inner, c.bias)
        self.drop = Dropout(c.resid_pdrop)

    def forward(self, x, branch=None, cache=None, key_start=None):
        """The stream x (B, T, C), and what is still to be added to it, or None -> the same two, this block further on.

        A sum goes with the norm behind it, in one pass over memory: so the next block does this one's last.
        """
        if cache is not None and not self.training and few_rows(x):
            return self.mlp.step(self.attn.step(x, self.ln_1, cache, key_start), self.ln_2), None   # the same, sooner
        x, normed = self.ln_1.add(x, branch)
        x, normed = self.ln_2.add(x, self.drop(self.attn(normed, cache, key_start)))
        return x, self.drop(self.mlp(normed))


class GPT(Module, Pretrained):
    """A causal language model: model(ids) gives, at every position, the logits of the token that comes next."""

    config_class = GPTConfig
    prepare = prepare           # a batch, for a recorded loss(): inputs.py
    steps_alike = True          # a step of generate() differs from the next in arrays alone: a GPU can record it

    def __init__(self, config):
        self.config = c = config
        self.wte = Embedding(c.vocab_size, c.n_embd)        # the parameter names are GPT-2's own
        self.wpe = Embedding(c.n_positions, c.n_embd) if c.position == "learned" else None
        self.drop = Dropout(c.embd_pdrop)
        self.h = [Block(c) for _ in range(c.n_layer)]
        self.ln_f = norm(c)
        self.lm_head = self.wte if c.tie_word_embeddings else Linear(c.n_embd, c.vocab_size, bias=False)
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
                p.data = full(p.shape, 0).data

    def hidden(self, ids, cache=None, key_start=None):
        """The stream after the last norm: ids (B, T) -> (B, T, C)

        cache: from new_cache(); the ids continue what it holds. key_start (B,): where each row's text begins, counted
        from the first position of the cache, or of ids; before it stands padding, which nobody looks at.
        """
        T, start = ids.shape[1], cache[0].used if cache else 0
        fits("GPT", start, T, self.config.n_positions, "give it the last part of the text")
        x = self.wte(ids)                                                   # (B, T, C)
        if self.wpe is not None:
            x = x + self.wpe(positions(start, T, key_start))                # + (T, C) or (B, T, C)
        x, branch = self.drop(x), None
        for i, block in enumerate(self.h):
            x, branch = block(x, branch, cache[i] if cache else None, key_start)
        return self.ln_f.add(x, branch)[1]

    def forward(self, ids, cache=None):
        """Logits of the next token at every position: ids (B, T) integers -> (B, T, V)"""
        return F.linear(self.hidden(token_ids("GPT", ids), cache), self.lm_head.weight)

    def loss(self, ids, targets, reduction="mean", ignore_index=-100):
        """Cross-entropy in nats per token: ids and targets (B, T) -> scalar.

        targets[b, t] is what follows ids[b, t].
        """
        x, targets = self.hidden(token_ids("GPT", ids)), token_ids("GPT", targets)
        return F.linear_cross_entropy(x, self.lm_head.weight, targets, ignore_index, reduction)

    def next_logits(self, ids, cache=None, key_start=None):
        """The logits after the last position only: ids (B, T) -> (B, V); for generation. See hidden()."""
        return F.linear(self.hidden(token_ids("GPT", ids), cache, key_start)[:, -1], self.lm_head.weight)

    def new_cache(self, batch, length=None):
        """An empty KV cache for `batch` texts of up to `length` tokens (default: n_positions)."""
        c = self.config
        shape = (batch, length or c.n_positions, c.n_kv_head or c.n_head, c.n_embd // c.n_head)     # (B, S, K, D)
        return [KVCache(*shape, self.wte.weight.data) for _ in self.h]

    def reorder_cache(self, cache, rows):
        """Let text i go on from what the cache holds of text rows[i]: rows (B,); for beam search."""
        for layer in cache:
            layer.reorder(rows)

    def flops_per_token(self, context=None):
        """Floating-point operations of one training step per token (forward and backward), estimated.

        6 N + 12 L C T: each weight of a matrix takes part in a multiplication and an addition, once forward and twice
        backward; attention multiplies T keys and T values per layer. Source: Chowdhery et al. 2022 (PaLM), appendix B.
        """
        c, T = self.config, context or self.config.n_positions
        tables = [table for table in (self.wpe, self.wte) if table not in (None, self.lm_head)]
        weights = self.num_parameters() - sum(table.num_parameters() for table in tables)   # looking up costs nothing
        return 6 * weights + 12 * c.n_layer * c.n_embd * T

    def config_dict(self):
        """The configuration as a dictionary, for a checkpoint."""
        return {"model_type": "gpt", **dataclasses.asdict(self.config)}
