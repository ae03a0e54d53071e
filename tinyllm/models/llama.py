"""What changed between GPT-2 and Llama (Touvron et al. 2023, arXiv:2302.13971): the parts that gpt.py takes instead.

Each is an option of GPTConfig by itself; all of them together are Llama (the preset "llama-tiny", but for its head):

    norm="rms_norm"             RMSNorm, which leaves out the mean (nn.py)
    position="rotary"           no table of positions: attention turns queries and keys by an angle that grows with the
                                position, so that their product depends on the distance alone (ops/rope.py)
    n_kv_head < n_head          several query heads share the keys and values of one head, and the cache is that much
                                smaller (Ainslie et al. 2023, "GQA", arXiv:2305.13245)
    mlp="swiglu"                an MLP in which one half of the hidden features switches the other (Shazeer 2020,
                                arXiv:2002.05202)
    bias=False                  no biases
    tie_word_embeddings=False   a head of its own (the small models of the Llama 3.2 family tie it again)

The parts keep GPT-2's names; what Llama's files call q_proj, k_proj and v_proj lies in c_attn, one below the other,
o_proj is attn.c_proj, gate_proj, up_proj and down_proj are mlp.c_gate, mlp.c_fc and mlp.c_proj.
"""
import functools

import numpy as np

from .. import backend
from .. import functional as F
from ..nn import Linear, Module


class GroupedAttention(Module):
    """Causal self-attention in which each of n_kv_head heads of keys and values serves n_head / n_kv_head queries.

    rope_theta: the base of the rotary angles, for positions below n_positions; None: no rotation. rope_scaling: see
    F.rope_tables.
    """

    def __init__(self, n_embd, n_head, n_kv_head, bias=False, dropout=0.0, rope_theta=None, n_positions=None,
                 rope_scaling=None):
        self.n_head, self.n_kv_head, self.head_size, self.dropout = n_head, n_kv_head, n_embd // n_head, dropout
        self.rope_theta, self.n_positions = rope_theta, n_positions
        self.rope_scaling = rope_scaling and tuple(sorted(rope_scaling.items()))
        self.c_attn = Linear(n_embd, (n_head + 2 * n_kv_head) * self.head_size, bias)      # q, k and v in one product
        self.c_proj = Linear(n_embd, n_embd, bias)

    def forward(self, x, cache=None, key_start=None):
        """(B, T, C) -> (B, T, C); with a cache, x continues the positions that the cache holds.

        Positions before key_start (B,) are padding. The angles count them: only the distance of two positions matters.
        """
        return self.c_proj(self._attend(self.c_attn(x), cache, key_start))

    def step(self, x, norm, cache, key_start):
        """x + forward(norm(x)), for a step of writing (nn.py)"""
        return self.c_proj.step(self._attend(self.c_attn.step(x, norm), cache, key_start), residual=x)

    def _attend(self, qkv, cache, key_start):
        """Queries, keys and values side by side, (B, T, (H + 2 K) D) -> (B, T, C)"""
        (B, T, _), H, K = qkv.shape, self.n_head, self.n_kv_head
        heads = qkv.reshape(B, T, H + 2 * K, self.head_size)
        qk, v = F.split(heads, [H + K, K], axis=2)                          # (B, T, H + K, D), (B, T, K, D)
        if self.rope_theta:
            qk = self._rotate(qk, cache.used if cache else 0)
        q, k = F.split(qk, [H, K], axis=2)
        if cache is not None:                   # which keeps keys turned: their positions do not change any more
            y = cache.attend(q, k, v, key_start)
        else:
            y = F.attention(q, k, v, None, key_start, causal=True, dropout=self.dropout if self.training else 0.0)
        return y.reshape(B, T, H * self.head_size)

    def _rotate(self, x, start):
        """Turn each head (B, T, H, D) by the angles of the positions from `start` on: a number, or an array (1,)."""
        dtype = np.float64 if x.dtype == np.float64 else np.float32
        cos, sin = _tables(backend.of(x.data), dtype, self.n_positions, self.head_size, self.rope_theta,
                           self.rope_scaling)
        if backend.is_array(start):
            return F.rope(x, cos, sin, position=start)
        end = start + x.shape[1]
        return F.rope(x, cos[start:end], sin[start:end])


@functools.cache
def _tables(ops, dtype, length, size, theta, scaling):
    """cos and sin of all positions, computed once for all layers and steps: two arrays (length, size/2) of a backend"""
    tables = F.rope_tables(np.arange(length), size, theta, dtype, scaling and dict(scaling))
    return tuple(map(ops.from_numpy, tables))


class GatedMLP(Module):
    """(silu(x W_gate^T) * x W_fc^T) W_proj^T: C -> hidden -> C, at every position by itself.

    hidden: two thirds of 4 C unless given, so that three matrices weigh what GPT-2's two do.
    """

    def __init__(self, n_embd, hidden=None, bias=False):
        hidden = hidden or 8 * n_embd // 3
        self.c_gate = Linear(n_embd, hidden, bias)
        self.c_fc = Linear(n_embd, hidden, bias)
        self.c_proj = Linear(hidden, n_embd, bias)

    def forward(self, x):
        return self.c_proj(F.swiglu(self.c_gate(x), self.c_fc(x)))

    def step(self, x, norm):
        """x + forward(norm(x)), for a step of writing (nn.py)"""
        hidden = F.swiglu(self.c_gate.step(x, norm), self.c_fc.step(x, norm))
        return self.c_proj.step(hidden, residual=x)
