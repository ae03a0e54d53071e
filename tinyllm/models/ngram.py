"""The n-gram model: count what followed the last few tokens. The oldest language model, and every other one's baseline.

It looks back n - 1 tokens, and most runs of n tokens in a new text never occurred in the old one. So each order keeps a
part of its probability back and lets the next lower order, which looks back one token less, deal it out. Every
smoothing here is an instance of one recursion, with h the last n - 1 tokens, h' the last n - 2 and V the vocabulary:

    p_n(w | h) = mass_n(hw) + rest_n(h) p_{n-1}(w | h'),        p_0(w) = 1 / V

An n-gram hw that never occurred has mass 0, a context h that never occurred has rest 1. For the others, with c(hw) the
number of times that hw occurred, c(h) the sum of c(hw) over w, and N(.hw) the number of *different* tokens before hw:

    smoothing       mass_n(hw)                      rest_n(h)
    add-k           c(hw) / (c(h) + k V)            k V / (c(h) + k V), dealt out by p_0 at once
    interpolation   lambda_n c(hw) / c(h)           1 - lambda_n
    kneser-ney      (c(hw) - D(c(hw))) / c(h)       sum over w of D(c(hw)) / c(h), and in p_{n-1} N(.hw) serves as c(hw)

Add-k is thus the familiar (c(hw) + k) / (c(h) + k V); k = 1 is Laplace's rule. Interpolation is Jelinek and Mercer's
(1980, "Interpolated estimation of Markov source parameters from sparse data"); here with one weight per order. Kneser
and Ney (1995, "Improved backing-off for m-gram language modeling") take a constant D off every count, and saw that the
lower orders speak only where the higher ones do not know: "Francisco" is frequent, but it always follows "San", so
after an unknown word it is unlikely. N(.hw) counts that. Chen and Goodman (1999, "An empirical study of smoothing
techniques for language modeling") interpolate it as above and let D depend on the count.
"""
import dataclasses
import sys
from dataclasses import dataclass

import numpy as np

from .. import metrics
from ..module import Module
from ..tensor import Tensor
from .ngram_counts import PARTS, Level, count, discounts, fit_weights

SMOOTHINGS = ("add-k", "interpolation", "kneser-ney")


@dataclass
class NGramConfig:
    """What to count and how to smooth. A field that belongs to another smoothing than the chosen one is not used."""

    vocab_size: int = 50257
    order: int = 5                          # n: it predicts from the last n - 1 tokens
    smoothing: str = "kneser-ney"           # or "interpolation", "add-k"
    k: float = 1.0                          # add-k: what is added to every count
    weights: tuple = None                   # interpolation: lambda_1 .. lambda_n; None: fit() finds the best
    discount: str = "modified"              # kneser-ney: D by count 1, 2, 3+; "single": one D; or a number, D itself

    def __post_init__(self):
        if problem := _problem(self):
            raise ValueError(f"NGramConfig: {problem}")

    @property
    def n_positions(self):
        """The length of text that it takes: any, as what lies more than n - 1 tokens back changes nothing."""
        return sys.maxsize


def _problem(c):
    """What is wrong with a configuration, or None."""
    if c.vocab_size < 1 or c.order < 1:
        return f"vocab_size and order must be 1 or more, not {c.vocab_size} and {c.order}"
    if c.smoothing not in SMOOTHINGS:
        return f'there is no smoothing "{c.smoothing}"; choose one of {", ".join(SMOOTHINGS)}'
    if not c.k > 0:
        return f"k must be above 0, not {c.k}; a small k trusts the counts more"
    if c.weights is not None and (len(c.weights) != c.order or not all(0 <= weight < 1 for weight in c.weights)):
        return f"weights must be {c.order} numbers, one per order, each at least 0 and below 1, not {c.weights}"
    if c.discount not in ("modified", "single") and (isinstance(c.discount, str) or not 0 < c.discount <= 1):
        return f'discount must be "modified", "single" or a number above 0 and at most 1, not {c.discount!r}'


class NGram(Module):
    """A causal language model made of counts: model.fit(tokens), then model(ids), model.loss and generate as ever.

    It has no parameters and no gradients: train it with fit(), not with the training loop. Before fit() every token is
    equally likely. The first tokens of a window have fewer than n - 1 tokens before them; they are predicted as a model
    of that lower order would, from its own counts. So a text comes out worse window by window than in one piece;
    perplexity(tokens) gives each token its full context.
    """

    def __init__(self, config):
        self.config = config
        self.levels = []                    # Level number n - 1 holds the n-grams

    def fit(self, tokens, heldout=None):
        """Count the n-grams of a text, in place of what was counted before; returns self.

        tokens: (N,) integers. heldout: (M,) other tokens, on which the interpolation weights are fitted; without it,
        they are fitted on the last tenth of `tokens` with the counts of the rest, before all of it is counted.
        """
        c, tokens = self.config, self._checked("tokens", tokens, 1)
        weights = c.weights
        if c.smoothing == "interpolation" and weights is None:
            cut = len(tokens) if heldout is not None else len(tokens) * 9 // 10
            heldout = tokens[cut:] if heldout is None else self._checked("heldout", heldout, 1)
            if cut < 1 or len(heldout) <= c.order:
                raise ValueError(f"NGram: {len(heldout)} tokens are too few to fit weights on; give more than the "
                                 "order as heldout=, a longer text, or the weights in the configuration")
            self.levels = self._weigh(tokens[:cut], np.ones(c.order))           # weight 1: plain relative frequencies
            shares = list(self._shares(heldout[None, :-1], heldout[None, 1:]))
            late = shares[-1][0].shape[1]                       # as many tokens have n - 1 others before them
            mass, rest = (np.stack([share[i][0, -late:] for share in shares]) for i in (0, 1))
            weights = fit_weights(mass, rest, c.vocab_size)
        self.levels = self._weigh(tokens, weights)
        return self

    def _weigh(self, tokens, weights):
        """The levels of a text."""
        c, contexts, levels = self.config, 1, []                # one context of no tokens
        for n, (keys, counts) in enumerate(count(tokens, c.order, c.vocab_size, c.smoothing == "kneser-ney"), 1):
            weight = weights[n - 1] if c.smoothing == "interpolation" else None
            parts = [self._smooth(keys // c.vocab_size, row, contexts, weight) for row in counts]
            mass = np.stack([np.append(mass, 0.0) for mass, _ in parts])
            rest = np.stack([np.append(rest, 1.0) for _, rest in parts])
            levels.append(Level(c.vocab_size, np.append(keys, np.iinfo(np.int64).max), mass, rest))
            contexts = len(keys)
        return levels

    def _smooth(self, context, counts, contexts, weight):
        """(mass (N,), rest (contexts,)) of N n-grams: the number of its context, and the count, of each."""
        total = np.bincount(context, counts, contexts)          # c(h)
        some = np.maximum(total, 1)                             # where c(h) = 0 there is nothing to divide
        if self.config.smoothing == "add-k":
            added = self.config.k * self.config.vocab_size
            return counts / (total + added)[context], added / (total + added)
        if self.config.smoothing == "interpolation":
            return weight * counts / total[context], np.where(total > 0, 1 - weight, 1)
        discount = discounts(counts, self.config.discount)[np.minimum(counts, 3)]
        kept_back = np.bincount(context, discount, contexts)
        return (counts - discount) / some[context], np.where(total > 0, kept_back / some, 1)

    def _contexts(self, ids):
        """For each level, the number of the context that ends at each position: ids (B, T) -> (B, W), W at most T.

        Longer contexts exist at later positions only, so the arrays grow shorter, on the left. With each comes the row
        (W,) of the level's tables for each position: 0 where this context is the longest in use, else the last.
        """
        contexts = np.zeros_like(ids)                           # number 0: no tokens
        for n, level in enumerate(self.levels, 1):
            place = np.arange(contexts.shape[1]) + (n == 1)     # from n = 2 on, the first position has nothing longer
            yield level, contexts, np.minimum(place, len(level.mass) - 1)
            before = contexts if n == 1 else contexts[:, :-1]   # no tokens also stand before the first position
            contexts = level.find(before, ids[:, n - 1:])       # (B, T - n + 1)

    def _shares(self, ids, targets):
        """For each level, (mass of context and target, rest of the context) at the positions of _contexts()."""
        for level, contexts, row in self._contexts(ids):
            late = targets[:, ids.shape[1] - contexts.shape[1]:]
            yield level.mass[row, level.find(contexts, late)], level.rest[row, contexts]

    def logprob(self, ids, targets):
        """ln p(target | tokens up to it): ids and targets (B, T) -> (B, T), where targets[b, t] follows ids[b, t]."""
        ids, targets = self._checked("ids", ids, 2), self._checked("targets", targets, 2)
        if ids.shape != targets.shape:
            raise ValueError(f"NGram: there must be one target per token (ids {ids.shape}, targets {targets.shape})")
        p = np.full(ids.shape, 1 / self.config.vocab_size)      # (B, T)
        for mass, rest in self._shares(ids, targets):
            late = p[:, ids.shape[1] - mass.shape[1]:]          # a view
            late[...] = mass + rest * self._lower(late)
        return np.log(p)

    def _lower(self, p):
        """What deals out the rest: the order below, or p_0."""
        return 1 / self.config.vocab_size if self.config.smoothing == "add-k" else p

    def _distributions(self, ids, last):
        """The probabilities of all tokens after each of the last positions: ids (B, T) -> (B, last, V)."""
        V, places = self.config.vocab_size, np.arange(len(ids) * last).reshape(len(ids), last)
        p = np.full((places.size, V), 1 / V)                    # (B * last, V)
        for level, contexts, row in self._contexts(ids):
            W = min(last, contexts.shape[1])
            at, context, row = (array[:, array.shape[1] - W:].ravel()
                                for array in (places, contexts, np.broadcast_to(row, contexts.shape)))
            p[at] = level.rest[row, context][:, None] * self._lower(p[at])
            which, ngram = level.followers(context)
            p[at[which], level.keys[ngram] % V] += level.mass[row[which], ngram]
        return p.reshape(len(ids), last, V)

    def forward(self, ids):
        """ln p of the next token at every position, which are logits: ids (B, T) -> (B, T, V) float32"""
        ids = self._checked("ids", ids, 2)
        return Tensor(np.log(self._distributions(ids, ids.shape[1])).astype(np.float32))

    def next_logits(self, ids, cache=None, key_start=None):
        """The logits after the last position only: ids (B, T) -> (B, V) float32; for generation.

        cache: from new_cache(); it keeps the last n - 1 tokens, behind which the next call's ids are put, and the
        number of all. key_start (B,): where each row's text begins, counted from the first position of the cache, or
        of ids; before it stands padding.
        """
        ids = self._checked("ids", ids, 2)
        before, seen = cache or (ids[:, :0], 0)
        ids, seen = np.concatenate([before, ids], axis=1), seen + ids.shape[1]
        if cache is not None:
            cache[:] = ids[:, -max(1, self.config.order - 1):], seen
        B, T = ids.shape
        begins = np.zeros(B, int) if key_start is None else np.maximum(key_start - (seen - T), 0)   # in ids
        p = np.empty((B, self.config.vocab_size))
        for begin in np.unique(begins):                         # rows with as much text look it up together
            p[begins == begin] = self._distributions(ids[begins == begin, begin:], 1)[:, 0]
        return Tensor(np.log(p).astype(np.float32))

    def new_cache(self, batch, length=None):
        """An empty cache for `batch` texts: a list with the last tokens seen, (B, 0) so far, and the number of all."""
        return [np.zeros((batch, 0), np.int64), 0]

    def reorder_cache(self, cache, rows):
        """Let text i go on from what the cache holds of text rows[i]: rows (B,); for beam search."""
        cache[0] = cache[0][rows]

    def loss(self, ids, targets, reduction="mean", ignore_index=-100):
        """Cross-entropy in nats per token: ids and targets (B, T) -> scalar, or (B, T) with reduction="none".

        float64, without a gradient.
        """
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f'NGram: reduction must be "mean", "sum" or "none", not {reduction!r}')
        counts = np.asarray(targets) != ignore_index
        losses = -np.where(counts, self.logprob(ids, np.where(counts, targets, 0)), 0.0)
        if reduction == "none":
            return Tensor(losses)
        return Tensor(np.asarray(losses.sum() / (max(1, counts.sum()) if reduction == "mean" else 1)))

    def perplexity(self, tokens):
        """e^(mean loss) of a running text (N,), N at least 2: each token but the first, given all n - 1 before it."""
        tokens = np.asarray(tokens)
        return metrics.perplexity(self.loss(tokens[None, :-1], tokens[None, 1:]).item())

    def num_parameters(self):
        """How many counts it stores: all different n-grams, from single tokens to the order."""
        return sum(len(level.keys) - 1 for level in self.levels)

    def state_dict(self):
        """name -> array: for each n "n.keys", "n.mass" and "n.rest"."""
        return {f"{n}.{part}": getattr(level, part).copy() for n, level in enumerate(self.levels, 1) for part in PARTS}

    def load_state_dict(self, state):
        """Take the arrays of a state_dict(); ValueError unless they are those of a model of this order."""
        c = self.config
        if set(state) != {f"{n}.{part}" for n in range(1, c.order + 1) for part in PARTS}:
            raise ValueError(f"load_state_dict of NGram: {', '.join(state) or 'nothing'} is not keys, mass and rest of "
                             f"every order up to {c.order}; take them from a model of this order, after fit()")
        self.levels = [Level(c.vocab_size, *(np.array(state[f"{n}.{part}"]) for part in PARTS))
                       for n in range(1, c.order + 1)]

    def config_dict(self):
        """The configuration as a dictionary, for a file."""
        return {"model_type": "ngram", **dataclasses.asdict(self.config)}

    def _checked(self, name, ids, ndim):
        """Token ids as int64 of `ndim` axes, all in the vocabulary."""
        ids = np.asarray(ids)
        if ids.ndim != ndim or ids.dtype.kind not in "iu" or not ids.size:
            needed = "one row (N,)" if ndim == 1 else "(batch, time), where one text is a batch of one, ids[None],"
            raise ValueError(f"NGram: {name} must be {needed} of at least one token id, not {ids.dtype} {ids.shape}")
        if not 0 <= ids.min() <= ids.max() < self.config.vocab_size:
            raise IndexError(f"NGram: {name} go from {ids.min()} to {ids.max()}, outside the vocabulary of "
                             f"{self.config.vocab_size}; was the text encoded with this model's tokenizer?")
        return ids.astype(np.int64)
