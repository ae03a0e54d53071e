"""Recurrent language models: RNN, LSTM and GRU, what people wrote text with before there were Transformers.

    ids (B, T) -> token vectors -> n_layer recurrent layers -> logits (B, T, V)

All that such a model knows of the text so far is a state of fixed size. So a new token always costs the same, and no
text is too long; but the state has to hold whatever may matter later, and a sequence must be worked off one step after
another, where attention sees all positions at once. Mikolov et al. 2010, "Recurrent neural network based language
model"; with an LSTM, and dropout everywhere but from step to step, Zaremba et al. 2014, arXiv:1409.2329.

Training looks at windows of the text, and gradients end where a window begins (truncated back-propagation through
time). The state need not start from zeros there: windows that follow each other can hand it on,

    loss, state = model.loss(ids, targets, state=state, return_state=True)      # state: None at first
"""
import dataclasses
from dataclasses import dataclass

import numpy as np

from .. import functional as F
from ..config import Config
from ..nn import GRU, LSTM, RNN, Dropout, Embedding, Linear, Module, normal
from .inputs import prepare, token_ids


@dataclass
class RNNConfig(Config):
    """The shape of an RNNLM, LSTMLM or GRULM. The defaults are the medium model of Zaremba et al. 2014."""

    vocab_size: int = 10000
    n_positions: int = 35               # length of a training window, and of the text that generate() keeps in view
    n_embd: int = 650                   # size of a token's vector
    n_hidden: int = 650                 # size of the state
    n_layer: int = 2
    dropout: float = 0.5                # of token vectors, between layers, and before the head; never from step to step
    tie_word_embeddings: bool = False   # whether the head is the token embedding (Press & Wolf 2017)

    PROBABILITIES = ("dropout",)

    def check(self):
        if self.tie_word_embeddings:
            self.need("n_embd", self.n_embd == self.n_hidden, f"n_hidden={self.n_hidden} with tie_word_embeddings: the "
                      "head multiplies states with token vectors")


RNNConfig.PRESETS = {
    "nano": dict(n_positions=8, n_embd=16, n_hidden=32, n_layer=2, dropout=0.0),            # for Triton's interpreter
    "tiny": dict(n_positions=64, n_embd=64, n_hidden=256, n_layer=1, dropout=0.0),          # minutes on a laptop
    "medium": dict(),                                                                       # Zaremba et al. 2014
    "large": dict(n_embd=1500, n_hidden=1500, dropout=0.65),                                # theirs, too
}


class RecurrentLM(Module):
    """Everything but the layers: model(ids) gives, at every position, the logits of the token that comes next."""

    layers = model_type = None
    prepare = prepare                   # a batch, for a recorded loss(): inputs.py

    def __init__(self, config):
        self.config = c = config
        self.wte = Embedding(c.vocab_size, c.n_embd)
        self.drop = Dropout(c.dropout)
        self.rnn = self.layers(c.n_embd, c.n_hidden, c.n_layer, c.dropout)
        self.lm_head = self.wte if c.tie_word_embeddings else Linear(c.n_hidden, c.vocab_size, bias=False)
        if c.tie_word_embeddings:       # vectors of standard deviation 1 would make a head that starts out quite sure
            self.wte.weight = normal(c.vocab_size, c.n_embd, std=0.1)

    def hidden(self, ids, state=None):
        """What the head reads, and the state after the last token: ids (B, T) -> (B, T, H), state

        The state comes back detached from the tape: whoever continues from it does not go back beyond it.
        """
        x, state = self.rnn(self.drop(self.wte(token_ids(type(self).__name__, ids))), state)
        state = tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()
        return self.drop(x), state

    def forward(self, ids, state=None, return_state=False):
        """Logits of the next token at every position: ids (B, T) integers -> (B, T, V)

        state: continue the texts after which return_state=True returned it; then the result is (logits, state).
        """
        x, state = self.hidden(ids, state)
        logits = F.linear(x, self.lm_head.weight)
        return (logits, state) if return_state else logits

    def loss(self, ids, targets, reduction="mean", ignore_index=-100, state=None, return_state=False):
        """Cross-entropy in nats per token: ids and targets (B, T) -> scalar, or (scalar, state) with return_state=True.

        targets[b, t] is what follows ids[b, t]. state: as in forward().
        """
        x, state = self.hidden(ids, state)
        targets = token_ids(type(self).__name__, targets)
        loss = F.linear_cross_entropy(x, self.lm_head.weight, targets, ignore_index, reduction)
        return (loss, state) if return_state else loss

    def next_logits(self, ids, cache=None, key_start=None):
        """The logits after the last position only: ids (B, T) -> (B, V); for generation.

        cache: from new_cache(); the ids continue the texts that it has seen. key_start (B,): where each row's text
        begins, counted from the first position of the cache, or of ids; before it stands padding. No mask can hide
        that from a state. So the ids are read in pieces, and where a text begins, its state is put back to zeros.
        """
        state, seen = cache or (None, 0)
        starts = np.zeros(len(ids), int) if key_start is None else key_start - seen         # in ids
        cuts = sorted({0, ids.shape[1], *starts[(0 < starts) & (starts < ids.shape[1])].tolist()})
        for begin, end in zip(cuts, cuts[1:]):
            if begin > 0:
                begun = (starts < begin)[:, None]                                           # (B, 1)
                state = tuple(s * begun for s in state) if isinstance(state, tuple) else state * begun
            x, state = self.hidden(ids[:, begin:end], state)
        if cache is not None:
            cache[0] = state
            cache[1] += ids.shape[1]
        return F.linear(x[:, -1], self.lm_head.weight)

    def new_cache(self, batch, length=None):
        """A cache for new texts: their state, None so far, and how many tokens they have. The arguments change nothing.
        """
        return [None, 0]

    def reorder_cache(self, cache, rows):
        """Let text i go on from what the cache holds of text rows[i]: rows (B,); for beam search."""
        state = cache[0]
        cache[0] = tuple(s[:, rows] for s in state) if isinstance(state, tuple) else state[:, rows]

    def flops_per_token(self, context=None):
        """Floating-point operations of one training step per token (forward and backward), estimated; any context.

        6 N: each weight takes part in a multiplication and an addition, once forward and twice backward, except those
        of a token table that is not the head, too: looking up costs nothing.
        """
        table = 0 if self.lm_head is self.wte else self.wte.num_parameters()
        return 6 * (self.num_parameters() - table)

    def config_dict(self):
        """The configuration as a dictionary, for a checkpoint."""
        return {"model_type": self.model_type, **dataclasses.asdict(self.config)}


class RNNLM(RecurrentLM):
    """A language model of plain recurrent layers (Elman 1990): the simplest, and soon forgetful."""
    layers, model_type = RNN, "rnn"


class LSTMLM(RecurrentLM):
    """A language model of LSTM layers (Hochreiter & Schmidhuber 1997), whose gates keep what matters."""
    layers, model_type = LSTM, "lstm"


class GRULM(RecurrentLM):
    """A language model of gated recurrent units (Cho et al. 2014): three quarters of an LSTM's weights, one state."""
    layers, model_type = GRU, "gru"
