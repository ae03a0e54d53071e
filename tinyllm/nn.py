"""The modules that models are made of, and the key/value cache."""
import math

import numpy as np

from . import backend, functional as F, modes
from .module import Module, full, normal, uniform
from .tensor import Tensor, wants


def few_rows(x):
    """Whether step() pays for x (B, T, C): a few rows, on a GPU, where launches cost more than what they multiply."""
    few = not isinstance(x.data, np.ndarray) and x.shape[0] * x.shape[1] <= 64
    return few and not modes.here.recording and not modes.looking()


class Linear(Module):
    """x W^T + b: (..., in_features) -> (..., out_features)

    W starts uniform in +-1/sqrt(in_features), as in torch, and so does b.
    """

    def __init__(self, in_features, out_features, bias=True):
        bound = 1 / math.sqrt(in_features)
        self.weight = uniform(out_features, in_features, bound=bound)
        self.bias = uniform(out_features, bound=bound) if bias else None

    def forward(self, x):
        return F.linear(x, self.weight, self.bias)

    def step(self, x, norm=None, residual=None, activation=None):
        """residual + activation(W norm(x) + b) for a step of writing: see F.fused_linear()"""
        norm = norm and (norm.name, norm.weight, norm.bias, norm.eps)
        return F.fused_linear(x, self.weight, self.bias, norm, residual, activation)


class Embedding(Module):
    """A table of `num_embeddings` vectors: ids (...) -> (..., embedding_dim).

    It starts normal with standard deviation 1.
    """

    def __init__(self, num_embeddings, embedding_dim):
        self.weight = normal(num_embeddings, embedding_dim, std=1.0)

    def forward(self, ids):
        return F.embedding(ids, self.weight)


class LayerNorm(Module):
    """(x - mean) / sqrt(var + eps) * weight + bias over the last axis of size `size`."""

    name = "layer_norm"

    def __init__(self, size, eps=1e-5, bias=True):
        self.eps = eps
        self.weight = full(size, 1)
        self.bias = full(size, 0) if bias else None

    def forward(self, x):
        return F.layer_norm(x, self.weight, self.bias, self.eps)

    def add(self, x, branch):
        """The sum x + branch, and the sum normalised: the residual connection and the norm behind it, in one step.

        branch: None where there is nothing to add.
        """
        if branch is None:
            return x, self(x)
        return F.add_layer_norm(x, branch, self.weight, self.bias, self.eps)


class RMSNorm(Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis of size `size`."""

    name, bias = "rms_norm", None

    def __init__(self, size, eps=1e-6):
        self.eps = eps
        self.weight = full(size, 1)

    def forward(self, x):
        return F.rms_norm(x, self.weight, self.eps)

    def add(self, x, branch):
        """The sum x + branch, and the sum normalised; branch: None where there is nothing to add."""
        total = x if branch is None else x + branch
        return total, self(total)


class Dropout(Module):
    """While training, zero each element with probability p and scale the rest by 1/(1-p); nothing after eval()."""

    def __init__(self, p=0.5):
        self.p = p

    def forward(self, x):
        return F.dropout(x, self.p) if self.training and self.p else x


class MultiHeadAttention(Module):
    """Self-attention with n_head heads: each sees its own n_embd / n_head features of every position it may look at."""

    def __init__(self, n_embd, n_head, bias=True, dropout=0.0, causal=True):
        if n_embd % n_head:
            raise ValueError(f"MultiHeadAttention: n_embd={n_embd} must be a multiple of n_head={n_head}")
        self.n_head, self.dropout, self.causal = n_head, dropout, causal
        self.c_attn = Linear(n_embd, 3 * n_embd, bias)          # q, k and v in one product
        self.c_proj = Linear(n_embd, n_embd, bias)

    def forward(self, x, cache=None, key_start=None, key_end=None):
        """(B, T, C) -> (B, T, C); with a cache, x continues the positions that the cache holds."""
        qkv = self.c_attn(x)                                    # (B, T, 3 C)
        if cache is not None:
            y = self._with_cache(qkv, cache, key_start, key_end)
        else:
            y = F.self_attention(qkv, key_start, key_end, n_head=self.n_head, causal=self.causal,
                                 dropout=self.dropout if self.training else 0.0)
        return self.c_proj(y)

    def step(self, x, norm, cache, key_start):
        """x + forward(norm(x)), for a step of writing: few rows, nothing else than they need, few launches"""
        return self.c_proj.step(self._with_cache(self.c_attn.step(x, norm), cache, key_start), residual=x)

    def _with_cache(self, qkv, cache, key_start, key_end=None):
        B, T, C3 = qkv.shape
        heads = qkv.reshape(B, T, 3, self.n_head, -1)           # (B, T, 3, H, D)
        q, k, v = heads[:, :, 0], heads[:, :, 1], heads[:, :, 2]
        return cache.attend(q, k, v, key_start, key_end, self.causal).reshape(B, T, C3 // 3)


class KVCache:
    """The keys and values of the positions seen so far:
    without them, each new token would compute all of them again.

    used: how many positions it holds: a number, or, in a recorded step (generate.py), an array (1,) of the device.
    """

    def __init__(self, batch, length, n_head, head_size, like):
        empty = backend.of(like).empty
        self.k = empty((batch, length, n_head, head_size), like.dtype)      # (B, S, H, D)
        self.v = empty((batch, length, n_head, head_size), like.dtype)
        self.length, self.used = length, 0

    def append(self, k, v):
        """Store the new positions' k and v (B, T, H, D); return those of all positions so far, as tensors."""
        if any(wants(k, v)):
            raise RuntimeError("KVCache: gradients do not pass through a cache; use it inside `with no_grad():`")
        end = self.used + k.shape[1]
        if end > self.k.shape[1]:
            raise ValueError(f"KVCache: {end} positions do not fit into a cache of {self.k.shape[1]}; "
                             "make a longer one, or start again with the last part of the text")
        backend.of(self.k).kv_append(self.k, self.v, k.data, v.data, position=self.used)
        self.used = end
        return Tensor._of(self.k[:, :end]), Tensor._of(self.v[:, :end])

    def attend(self, q, k, v, key_start=None, key_end=None, causal=True, bias=None, scale=None):
        """Store the new positions' k and v (B, T, K, D); their q (B, T, H, D) looks at all positions so far.

        bias: as in attention(); in a recorded step, as in cached_attention().
        """
        if backend.is_array(self.used):
            return F.cached_attention(q, k, v, self.k, self.v, self.used, key_start, bias, scale=scale)
        k, v = self.append(k, v)
        return F.attention(q, k, v, bias, key_start, key_end, causal=causal, scale=scale)

    def reorder(self, rows):
        """Let row i go on from what row rows[i] holds: rows (B,) integers."""
        ops = backend.of(self.k)
        ops.kv_reorder(self.k, self.v, ops.from_numpy(rows), length=self.used)


class MLP(Module):
    """Two linear layers with GELU (tanh form) between them: C -> hidden -> C, at every position by itself."""

    def __init__(self, n_embd, hidden=None, bias=True):
        hidden = hidden or 4 * n_embd
        self.c_fc = Linear(n_embd, hidden, bias)
        self.c_proj = Linear(hidden, n_embd, bias)

    def forward(self, x):
        return F.mlp(x, self.c_fc.weight, self.c_fc.bias, self.c_proj.weight, self.c_proj.bias)

    def step(self, x, norm):
        """x + forward(norm(x)), for a step of writing"""
        return self.c_proj.step(self.c_fc.step(x, norm, activation="gelu"), residual=x)


class Recurrent(Module):
    """What RNN, LSTM and GRU share: num_layers layers, each of which reads what the one below it wrote.

    x (B, T, input_size) -> out (B, T, hidden_size), and the state after the last step: (num_layers, B, hidden_size).
    In x and out the batch always comes first, as with batch_first=True in torch. Parameters have torch's names and, as
    there, start uniform in +-1/sqrt(hidden_size). dropout: of what one layer hands to the next.
    """

    cell, gates, states = None, 1, ("h",)       # the operation, how many gates its weights hold, and its states

    def __init__(self, input_size, hidden_size, num_layers=1, dropout=0.0):
        self.hidden_size, self.num_layers, self.drop = hidden_size, num_layers, Dropout(dropout)
        rows, bound = self.gates * hidden_size, 1 / math.sqrt(hidden_size)
        for layer in range(num_layers):
            sizes = {"weight_ih": (rows, hidden_size if layer else input_size), "weight_hh": (rows, hidden_size),
                     "bias_ih": (rows,), "bias_hh": (rows,)}
            for name, shape in sizes.items():
                setattr(self, f"{name}_l{layer}", uniform(*shape, bound=bound))

    def forward(self, x, state=None):
        """(out, state after the last step); state: what an earlier call returned, to continue from; None: zeros."""
        before, after = self._unpack(x, state), []
        for layer in range(self.num_layers):
            weights = [getattr(self, f"{name}_l{layer}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
            x = self.drop(x) if layer else x
            x, *last = self.cell(x, *(s if s is None else s[layer] for s in before), *weights)
            after.append([s.reshape(1, *s.shape) for s in last])                    # (1, B, H)
        after = tuple(F.concatenate(layers) for layers in zip(*after))              # (num_layers, B, H)
        return x, after if len(after) > 1 else after[0]

    def _unpack(self, x, state):
        """The states of all layers, one for each of self.states; ValueError if they are not."""
        if state is None:
            return (None,) * len(self.states)
        state = tuple(state) if isinstance(state, (tuple, list)) else (state,)
        wanted = (self.num_layers, x.shape[0], self.hidden_size)
        if [s.shape for s in state] != [wanted] * len(self.states):
            raise ValueError(f"{type(self).__name__}: the state must be {' and '.join(self.states)} of shape {wanted}, "
                             f"(num_layers, batch, hidden_size), not {', '.join(str(s.shape) for s in state)}; give "
                             "None, or what an earlier call for as many texts returned")
        return state


class RNN(Recurrent):
    """h_t = tanh(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh); the state is h."""
    cell = staticmethod(F.rnn)


class LSTM(Recurrent):
    """An RNN whose memory c is written and read through gates (ops/recurrent.py); the state is (h, c)."""
    cell, gates, states = staticmethod(F.lstm), 4, ("h", "c")


class GRU(Recurrent):
    """An RNN with two gates (composed.py); the state is h."""
    cell, gates = staticmethod(F.gru), 3
