"""Modules: named parameters, and how they are put together."""
import contextlib
import math

import numpy as np

from . import backend, functional as F, modes, random, shapes
from .tensor import Tensor, wants


class Module:
    """A piece of a model: its Tensors are parameters, its Modules are parts.

    Both are found by looking at the attributes, and into lists, tuples and dicts among them, in the order in which
    __init__ set them; a parameter's name is the path to it, such as "h.0.attn.c_attn.weight". A subclass sets
    attributes and defines forward().
    """

    training = True

    def __call__(self, *args, **kwargs):
        return self.forward(*args, **kwargs)

    def named_parameters(self, prefix=""):
        """(name, Tensor) for every parameter; one that is used in two places has its first name only."""
        return ((name, value) for name, value in _parts(vars(self), prefix, {id(self)}) if isinstance(value, Tensor))

    def parameters(self):
        """All parameters, in the order of named_parameters()."""
        return [p for _, p in self.named_parameters()]

    def modules(self):
        """This module and all its parts, parts of parts included."""
        yield self
        yield from (value for _, value in _parts(vars(self), "", {id(self)}) if isinstance(value, Module))

    def state_dict(self):
        """name -> NumPy array, a copy of every parameter, row by row: what writes it to a file reads its memory."""
        return {name: np.array(p.numpy(), order="C") for name, p in self.named_parameters()}

    def load_state_dict(self, state):
        """Copy arrays into the parameters of the same names;
        all must fit, or none is touched and ValueError says which.
        """
        own = dict(self.named_parameters())
        problem = shapes.mismatch({name: p.shape for name, p in own.items()}, state)
        if problem:
            turned = any(np.shape(state[name])[::-1] == p.shape != np.shape(state[name])
                         for name, p in own.items() if name in state)
            raise ValueError(f"load_state_dict of {type(self).__name__}: {problem}; nothing was loaded"
                             + ("; a mis-shaped weight is transposed (Linear stores (out_features, in_features))"
                                if turned else "; does the file belong to a model of this configuration?"))
        for name, p in own.items():
            p.data[...] = backend.of(p.data).from_numpy(np.asarray(state[name]), dtype=p.dtype)
            p.data = p.data                 # tells the tape that the values changed

    def train(self, mode=True):
        """Switch dropout on (training) or off (evaluation) in all parts; returns self."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self):
        """train(False)"""
        return self.train(False)

    @contextlib.contextmanager
    def evaluating(self):
        """Inside, all parts are in evaluation mode; afterwards each has the mode that it had before."""
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training

    def to(self, name, dtype=None):
        """Move all parameters to backend "numpy" or "triton" (as `dtype` if given); make the optimizer afterwards."""
        for p in self.parameters():
            p.data, p.grad, p.grad_buffer = p.to(name, dtype).data, None, None
        return self

    def zero_grad(self):
        """Forget all gradients."""
        for p in self.parameters():
            p.grad = p.grad_buffer = None

    def num_parameters(self):
        """How many numbers are learned; shared parameters count once."""
        return sum(math.prod(p.shape) for p in self.parameters())


def _parts(container, prefix, seen):
    """(path, value) for the Tensors and Modules in a dict, list or tuple, and in what is in it; each one once."""
    for key, value in container.items() if isinstance(container, dict) else enumerate(container):
        if isinstance(value, (Tensor, Module)) and id(value) not in seen:
            seen.add(id(value))
            yield f"{prefix}{key}", value
            if isinstance(value, Module):
                yield from _parts(vars(value), f"{prefix}{key}.", seen)
        elif isinstance(value, (dict, list, tuple)):
            yield from _parts(value, f"{prefix}{key}.", seen)


def parameter(shape, start):
    """A parameter of this shape that begins with the array start(), or, in random.no_initial_weights(), without.

    Then it is a single zero, repeated with a stride of 0 bytes: it takes no memory, and cannot be written to.
    """
    if random.initialising():
        return Tensor(start(), requires_grad=True)
    placeholder = Tensor._of(np.broadcast_to(np.float32(0), shape))
    placeholder.requires_grad = True
    return placeholder


def normal(*shape, std=0.02):
    """A parameter of normally distributed numbers with mean 0."""
    return parameter(shape, lambda: random.weights().standard_normal(shape, dtype=np.float32) * np.float32(std))


def full(shape, value):
    """A parameter of equal numbers; shape: that of a vector may be its size."""
    return parameter(shape, lambda: np.full(shape, value, np.float32))


def few_rows(x):
    """Whether step() pays for x (B, T, C): a few rows, on a GPU, where launches cost more than what they multiply."""
    few = not isinstance(x.data, np.ndarray) and x.shape[0] * x.shape[1] <= 64
    return few and not modes.recording and not modes.looking()


class Linear(Module):
    """x W^T + b: (..., in_features) -> (..., out_features)

    W starts uniform in +-1/sqrt(in_features), as in torch, and so does b.
    """

    def __init__(self, in_features, out_features, bias=True):
        bound = 1 / math.sqrt(in_features)
        uniform = lambda *shape: parameter(
            shape, lambda: random.weights().uniform(-bound, bound, shape).astype(np.float32))
        self.weight = uniform(out_features, in_features)
        self.bias = uniform(out_features) if bias else None

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
        self.used = 0

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

    def attend(self, q, k, v, key_start=None, key_end=None, causal=True):
        """Store the new positions' k and v (B, T, K, D); their q (B, T, H, D) looks at all positions so far."""
        if backend.is_array(self.used):
            return F.cached_attention(q, k, v, self.k, self.v, self.used, key_start)
        k, v = self.append(k, v)
        return F.attention(q, k, v, None, key_start, key_end, causal=causal)

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
                values = random.weights().uniform(-bound, bound, shape).astype(np.float32)
                setattr(self, f"{name}_l{layer}", Tensor(values, requires_grad=True))

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
