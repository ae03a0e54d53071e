"""The same GPT and LSTM in torch: the yardstick of benchmark.py, and an oracle for the tests. The engine needs neither.

It is what a torch user would write: nn modules, F.scaled_dot_product_attention, the library's AdamW and clipping. The
parameter names are tinyllm's, so weights move over with load_state_dict.
"""

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        norm = lambda: nn.LayerNorm(c.n_embd, eps=c.layer_norm_epsilon, bias=c.bias)
        self.ln_1, self.ln_2, self.n_head = norm(), norm(), c.n_head
        self.attn, self.mlp = nn.Module(), nn.Module()
        self.attn.c_attn = nn.Linear(c.n_embd, 3 * c.n_embd, bias=c.bias)
        self.attn.c_proj = nn.Linear(c.n_embd, c.n_embd, bias=c.bias)
        self.mlp.c_fc = nn.Linear(c.n_embd, 4 * c.n_embd, bias=c.bias)
        self.mlp.c_proj = nn.Linear(4 * c.n_embd, c.n_embd, bias=c.bias)

    def attention(self, x, cache=None):
        B, T, C = x.shape
        q, k, v = (part.view(B, T, self.n_head, -1).transpose(1, 2) for part in self.attn.c_attn(x).split(C, dim=2))
        if cache is not None:
            (ks, vs), n = cache, cache.used
            ks[:, :, n:n + T], vs[:, :, n:n + T] = k, v
            k, v = ks[:, :, :n + T], vs[:, :, :n + T]
        y = F.scaled_dot_product_attention(q, k, v, is_causal=T > 1)
        return self.attn.c_proj(y.transpose(1, 2).reshape(B, T, C))

    def forward(self, x, cache=None):
        x = x + self.attention(self.ln_1(x), cache)
        return x + self.mlp.c_proj(F.gelu(self.mlp.c_fc(self.ln_2(x)), approximate="tanh"))


class Cache(tuple):
    """(keys, values), each (B, H, S, D), and how many positions they hold."""
    used = 0


class TorchGPT(nn.Module):
    """GPT-2 without dropout; c is a tinyllm GPTConfig."""

    def __init__(self, c):
        super().__init__()
        self.config = c
        self.wte, self.wpe = nn.Embedding(c.vocab_size, c.n_embd), nn.Embedding(c.n_positions, c.n_embd)
        self.h = nn.ModuleList(Block(c) for _ in range(c.n_layer))
        self.ln_f = nn.LayerNorm(c.n_embd, eps=c.layer_norm_epsilon, bias=c.bias)

    def hidden(self, ids, caches=None):
        start = caches[0].used if caches else 0
        x = self.wte(ids) + self.wpe(torch.arange(start, start + ids.shape[1], device=ids.device))
        for i, block in enumerate(self.h):
            x = block(x, caches[i] if caches else None)
        for cache in caches or ():
            cache.used += ids.shape[1]
        return self.ln_f(x)

    def forward(self, ids):
        return F.linear(self.hidden(ids), self.wte.weight)

    def last_logits(self, ids, caches):
        return F.linear(self.hidden(ids, caches)[:, -1], self.wte.weight)

    def loss(self, ids, targets):
        return F.cross_entropy(self(ids).flatten(0, 1), targets.flatten())

    def new_cache(self, batch, length):
        c = self.config
        shape = (batch, c.n_head, length, c.n_embd // c.n_head)
        return [Cache((torch.zeros(shape), torch.zeros(shape))) for _ in self.h]


class TorchLSTM(nn.Module):
    """A language model around nn.LSTM, without dropout; c is a tinyllm RNNConfig."""

    def __init__(self, c):
        super().__init__()
        self.wte, self.lm_head = nn.Embedding(c.vocab_size, c.n_embd), nn.Linear(c.n_hidden, c.vocab_size, bias=False)
        self.rnn = nn.LSTM(c.n_embd, c.n_hidden, c.n_layer, batch_first=True)

    def loss(self, ids, targets):
        return F.cross_entropy(self.lm_head(self.rnn(self.wte(ids))[0]).flatten(0, 1), targets.flatten())


def adamw(model, lr, betas, weight_decay):
    """torch's AdamW, with decay on matrices only."""
    params = list(model.parameters())
    groups = [{"params": [p for p in params if p.ndim >= 2], "weight_decay": weight_decay},
              {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=betas)


def train_step(model, optimizer, ids, targets, lr, max_norm):
    """One step as in nanoGPT; returns the loss."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    loss = model.loss(ids, targets)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()
    return loss.item()
