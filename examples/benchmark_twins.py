"""What the GPU benchmark compares whole models with: the same models in torch, as a user who wants speed writes them.

All attention is F.scaled_dot_product_attention, recurrence is torch.nn.LSTM (cuDNN), and whatever has a row for each
token of the vocabulary gets more rows, to a multiple of 64: tensor cores like even shapes. The rows that were added are
zero and never looked at, so the loss is the same. Parameter names are tinyllm's: weights move over with load().
"""
import contextlib
import dataclasses
import math

import torch
import torch.nn.functional as F
from tinyllm.models.transformer import sinusoids
from torch import nn
from torch.nn.attention import sdpa_kernel
from torch_twin import TorchGPT, TorchLSTM


def padded(size):
    """The next multiple of 64."""
    return -(-size // 64) * 64


def load(twin, weights):
    """Give the twin our weights, {name: array}; below the last row of an array that is too short come zeros."""
    own = twin.state_dict()
    for name, array in weights.items():
        own[name].zero_()[:len(array)] = torch.from_numpy(array)
    twin.load_state_dict(own)
    return twin


def only(sdpa):
    """The context in which attention may use one of torch's kernels alone; None: torch chooses."""
    return contextlib.nullcontext() if sdpa is None else sdpa_kernel(sdpa)


class GPT(TorchGPT):
    """torch_twin.py's GPT with an even vocabulary, and attention by the kernel that it is told.

    The kernel is named inside what is compiled: torch.compile would take the first twin's graph for the second, too.
    """

    def __init__(self, c, sdpa=None):
        super().__init__(dataclasses.replace(c, vocab_size=padded(c.vocab_size)))
        self.known, self.sdpa = c.vocab_size, sdpa

    def loss(self, ids, targets):
        with only(self.sdpa):
            logits = self(ids)[..., :self.known]
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


class LSTM(TorchLSTM):
    """torch_twin.py's LSTM. torch.compile leaves a function alone that has an nn.LSTM in it; so it gets the rest."""

    def __init__(self, c):
        super().__init__(c)
        self.recur = torch.compiler.disable(lambda x: self.rnn(x)[0])

    def loss(self, ids, targets):
        logits = self.lm_head(self.recur(self.wte(ids)))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


class BERTLayer(nn.Module):
    """tinyllm's BERT layer. A ModuleDict makes names: attention.self.query, ..."""

    def __init__(self, c):
        super().__init__()
        self.n_head, C, wide = c.num_attention_heads, c.hidden_size, c.intermediate_size
        norm = lambda: nn.LayerNorm(C, eps=c.layer_norm_eps)
        self.attention = nn.ModuleDict({
            "self": nn.ModuleDict({name: nn.Linear(C, C) for name in ("query", "key", "value")}),
            "output": nn.ModuleDict({"dense": nn.Linear(C, C), "LayerNorm": norm()})})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(C, wide)})
        self.output = nn.ModuleDict({"dense": nn.Linear(wide, C), "LayerNorm": norm()})

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (self.attention["self"][name](x).view(B, T, self.n_head, -1).transpose(1, 2)
                   for name in ("query", "key", "value"))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, T, C)
        x = self.attention["output"]["LayerNorm"](x + self.attention["output"]["dense"](y))
        y = self.output["dense"](F.gelu(self.intermediate["dense"](x)))
        return self.output["LayerNorm"](x + y)


class BERT(nn.Module):
    """BERT with the head that says which tokens were hidden, without dropout; c is a tinyllm BERTConfig."""

    def __init__(self, c):
        super().__init__()
        C, V, self.known = c.hidden_size, padded(c.vocab_size), c.vocab_size
        norm = lambda: nn.LayerNorm(C, eps=c.layer_norm_eps)
        self.bert, self.cls = nn.Module(), nn.ModuleDict({"predictions": nn.Module()})
        self.bert.embeddings = nn.ModuleDict({
            "word_embeddings": nn.Embedding(V, C), "position_embeddings": nn.Embedding(c.max_position_embeddings, C),
            "token_type_embeddings": nn.Embedding(c.type_vocab_size, C), "LayerNorm": norm()})
        self.bert.encoder = nn.ModuleDict({"layer": nn.ModuleList(BERTLayer(c) for _ in range(c.num_hidden_layers))})
        head = self.cls["predictions"]
        head.bias = nn.Parameter(torch.zeros(V))
        head.transform = nn.ModuleDict({"dense": nn.Linear(C, C), "LayerNorm": norm()})

    def loss(self, ids, places, hidden):
        """ids (B, T); places (N,): which of the B T tokens are hidden, and `hidden` (N,): what they are.

        The head looks at these alone. Their number is the same in every batch, or it would be compiled anew.
        """
        e, head = self.bert.embeddings, self.cls["predictions"]
        x = e["word_embeddings"](ids) + (e["position_embeddings"].weight[:ids.shape[1]]
                                         + e["token_type_embeddings"].weight[0])
        x = e["LayerNorm"](x)
        for layer in self.bert.encoder["layer"]:
            x = layer(x)
        x = F.gelu(head.transform["dense"](x.flatten(0, 1)[places]))                        # (N, C)
        logits = F.linear(head.transform["LayerNorm"](x), e["word_embeddings"].weight, head.bias)
        return F.cross_entropy(logits[:, :self.known], hidden)


class Seq2Seq(nn.Module):
    """The first Transformer, of torch.nn's layers, without dropout; c is a tinyllm Seq2SeqConfig of shared tables."""

    def __init__(self, c):
        super().__init__()
        self.c, self.source_embedding = c, nn.Embedding(padded(c.vocab_size), c.d_model)
        self.target_embedding = self.lm_head = self.source_embedding
        layer = dict(d_model=c.d_model, nhead=c.nhead, dim_feedforward=c.dim_feedforward, dropout=0.0,
                     layer_norm_eps=c.layer_norm_eps, batch_first=True, norm_first=c.norm_first)
        norm = lambda: nn.LayerNorm(c.d_model, eps=c.layer_norm_eps) if c.final_norm else None
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(**layer), c.num_encoder_layers, norm(),
                                             enable_nested_tensor=False)
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(**layer), c.num_decoder_layers, norm())
        self.register_buffer("positions", torch.tensor(sinusoids(c.n_positions, c.d_model)).float(), persistent=False)

    def embed(self, ids):
        return self.source_embedding(ids) * math.sqrt(self.c.d_model) + self.positions[:ids.shape[1]]

    def loss(self, source, targets):
        """source (B, S), targets (B, T), neither with padding; the decoder reads the targets shifted by one."""
        shifted = F.pad(targets[:, :-1], (1, 0), value=self.c.decoder_start_token_id)
        mask = nn.Transformer.generate_square_subsequent_mask(targets.shape[1], device=targets.device)
        x = self.decoder(self.embed(shifted), self.encoder(self.embed(source)), tgt_mask=mask, tgt_is_causal=True)
        logits = F.linear(x, self.lm_head.weight)[..., :self.c.vocab_size]
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), label_smoothing=self.c.label_smoothing)


class StaticGPT(GPT):
    """The GPT for writing, in the manner of gpt-fast: the keys and values of all positions lie in buffers of a fixed
    size, of which a mask hides what is not written yet; so a step is always the same, and fits into one CUDA graph.
    """

    def __init__(self, c, batch, length):
        super().__init__(c)
        shape = (batch, c.n_head, length, c.n_embd // c.n_head)                             # (B, H, S, D)
        for block in self.h:
            block.attn.register_buffer("k", torch.zeros(shape), persistent=False)
            block.attn.register_buffer("v", torch.zeros(shape), persistent=False)
        self.register_buffer("seen", torch.ones(length, length, dtype=torch.bool).tril(), persistent=False)

    def logits(self, ids, position):
        """Of the token after the last one: ids (B, T), which stand at position (T,) -> (B, V)"""
        x, mask = self.wte(ids) + self.wpe(position), self.seen[position]                   # (T, S)
        for block in self.h:
            x = x + self.look_back(block, block.ln_1(x), position, mask)
            x = x + block.mlp.c_proj(F.gelu(block.mlp.c_fc(block.ln_2(x)), approximate="tanh"))
        return F.linear(self.ln_f(x[:, -1]), self.wte.weight)[:, :self.known]

    def look_back(self, block, x, position, mask):
        (B, T, C), attn = x.shape, block.attn
        q, k, v = (part.view(B, T, block.n_head, -1).transpose(1, 2) for part in attn.c_attn(x).split(C, dim=2))
        attn.k.index_copy_(2, position, k)
        attn.v.index_copy_(2, position, v)
        y = F.scaled_dot_product_attention(q, attn.k, attn.v, attn_mask=mask)
        return attn.c_proj(y.transpose(1, 2).reshape(B, T, C))

    def next_token(self, ids, position, temperature, top_k):
        """Drawn from the top_k likeliest: (B, 1). argmax(p / exponential noise) draws from p and asks no host."""
        z = self.logits(ids, position).float() / temperature
        z = torch.where(z < torch.topk(z, top_k).values[:, -1:], -math.inf, z)
        p = F.softmax(z, -1)
        return (p / torch.empty_like(p).exponential_(1)).argmax(-1, keepdim=True)
