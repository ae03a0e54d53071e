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

from .. import backend
from .. import functional as F
from ..config import Config
from ..nn import GRU, LSTM, RNN, Dropout, Embedding, Linear, Module, normal
from ..tensor import Tensor, wants
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


class StateCache:
    """The state of some texts. used: how many tokens it has seen, as in KVCache (nn.py).

    Its arrays stay where they are, so that a step that reads and writes them can be recorded (generate.py).
    """

    def __init__(self):
        self.arrays, self.used = None, 0            # (n_layer, B, H) each

    def state(self):
        """What the layers continue from; None before the first token"""
        if not backend.is_array(self.used) and self.used == 0:
            return None
        state = tuple(map(Tensor._of, self.arrays))
        return state if len(state) > 1 else state[0]

    def keep(self, state, x):
        """Store the state after the tokens for which the layers gave x (B, T, H)."""
        if any(wants(x)):
            raise RuntimeError("StateCache: gradients do not pass through a cache; use it inside `with no_grad():`")
        arrays = [s.data for s in (state if isinstance(state, tuple) else (state,))]
        if self.arrays is None:
            self.arrays = [backend.of(array).copy(array) for array in arrays]
        for ours, new in zip(self.arrays, arrays):
            ours[:] = new
        if not backend.is_array(self.used):
            self.used += x.shape[1]

    def reorder(self, rows):
        """Let text i go on from the state of text rows[i]: rows (B,) integers."""
        for array in self.arrays:
            array[:] = array[:, backend.of(array).from_numpy(rows)]


class RecurrentLM(Module):
    """Everything but the layers: model(ids) gives, at every position, the logits of the token that comes next."""

    layers = model_type = None
    prepare = prepare                   # a batch, for a recorded loss(): inputs.py
    steps_alike = True                  # as in gpt.py

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
        (A recorded step reads a token of each text, and all have begun.)
        """
        state, used = (cache[0].state(), cache[0].used) if cache else (None, 0)
        begun = key_start is None or backend.is_array(used)
        starts = np.zeros(len(ids), int) if begun else key_start - used                     # in ids
        cuts = sorted({0, ids.shape[1], *starts[(0 < starts) & (starts < ids.shape[1])].tolist()})
        for begin, end in zip(cuts, cuts[1:]):
            if begin > 0:
                kept = (starts < begin)[:, None]                                            # (B, 1)
                state = tuple(s * kept for s in state) if isinstance(state, tuple) else state * kept
            x, state = self.hidden(ids[:, begin:end], state)
        if cache:
            cache[0].keep(state, x)
        return F.linear(x[:, -1], self.lm_head.weight)

    def new_cache(self, batch, length=None):
        """A cache for new texts: it holds their state, whatever the arguments are."""
        return [StateCache()]

    def reorder_cache(self, cache, rows):
        """Let text i go on from what the cache holds of text rows[i]: rows (B,); for beam search."""
        for layer in cache:
            layer.reorder(rows)

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
