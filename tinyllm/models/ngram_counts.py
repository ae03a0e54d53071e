"""What the n-gram model (ngram.py) is made of: tables of n-grams, and the numbers that smoothing needs.

    text 0 1 0 1 1, V = 2       n-gram      key = number of the (n-1)-gram before * V + last token      count
    n = 1                       0           0 * 2 + 0 = 0                                               2
                                1           0 * 2 + 1 = 1                                               3
    n = 2                       0 1         0 * 2 + 1 = 1                                               2
                                1 0         1 * 2 + 0 = 2                                               1
                                1 1         1 * 2 + 1 = 3                                               1

The number of an n-gram is its line here, from 0 on. So a key stays below (length of the text) * V for every n, and an
order is one sort of integers, whatever the vocabulary.
"""
from dataclasses import dataclass

import numpy as np

PARTS = ("keys", "mass", "rest")        # the arrays of a Level


@dataclass
class Level:
    """All n-grams of one n, sorted, and what they are worth.

    An n-gram's number is its place here. What is not there has the number -1, and array[-1] is the extra last entry of
    each array: a key above all others, mass 0, rest 1. R is 1, or 2 where an order is smoothed in two ways: row 0 is
    for the longest context in use, row 1 for below a longer one.
    """

    vocab_size: int
    keys: np.ndarray        # (N + 1,) int64, rising
    mass: np.ndarray        # (R, N + 1) float64, of each n-gram
    rest: np.ndarray        # (R, M + 1) float64, of each context: the n-grams of the level below

    def find(self, contexts, tokens):
        """The numbers of the n-grams `context, token`, or -1; two integer arrays of one shape -> the same shape."""
        keys = contexts * self.vocab_size + tokens              # below 0, so not found, where the context is -1
        places = np.searchsorted(self.keys, keys)
        return np.where(self.keys[places] == keys, places, -1)

    def followers(self, contexts):
        """Every n-gram that starts with one of the contexts (C,): (place of the context, number), two flat arrays."""
        first, end = (np.searchsorted(self.keys, (contexts + i) * self.vocab_size) for i in (0, 1))
        place = np.repeat(np.arange(len(contexts)), end - first)
        start = np.cumsum(end - first) - (end - first)          # where each context's n-grams begin in the result
        return place, np.arange(len(place)) + (first - start)[place]


def count(tokens, order, vocab_size, continuation=False):
    """[(keys, counts) for n = 1 .. order]: the key of each different n-gram, and (1, N) how often it occurs.

    tokens: (N,) int64. continuation: below the highest order counts are (2, N), the second row being N(.hw), the number
    of different tokens in front.
    """
    levels, numbers = [], np.zeros(len(tokens) + 1, np.int64)           # of the (n-1)-gram that ends at each place
    for n in range(1, order + 1):
        keys, places, counts = np.unique(numbers[:-1] * vocab_size + tokens[n - 1:], return_inverse=True,
                                         return_counts=True)
        if continuation and n > 1:
            one_place = np.empty(len(keys), np.int64)
            one_place[places] = np.arange(len(places))                  # where each n-gram occurs; the last such place
            suffix = numbers[1:][one_place]                             # its last n - 1 tokens, once per n-gram
            shorter, counted = levels[-1]
            levels[-1] = shorter, np.stack([counted[0], np.bincount(suffix, minlength=len(shorter))])
        levels.append((keys, counts[None]))
        numbers = places
    return levels


def discounts(counts, kind):
    """What Kneser-Ney takes off a count of 0, 1, 2, and 3 or more: (4,). Source: Chen & Goodman 1999, section 3.

    With n_r the number of n-grams that occur r times: Y = n_1 / (n_1 + 2 n_2), and D_r = r - (r + 1) Y n_{r+1} / n_r.
    D_1 is Y again. Where the data does not give three usable ones (n_r = 0, or D_r not above 0) Y is taken for all; and
    where nothing occurs just once, so that even Y would be 0 and leave nothing for what is new, 0.75.
    """
    n1, n2, n3, n4 = n = np.bincount(np.minimum(counts, 5), minlength=5)[1:5].tolist()
    single = n1 / (n1 + 2 * n2) if n1 else 0.75
    if kind == "modified" and all(n):
        each = [r - (r + 1) * single * after / now for r, now, after in ((1, n1, n2), (2, n2, n3), (3, n3, n4))]
        if min(each) > 0:
            return np.array([0.0, *each])
    return np.array([0.0] + 3 * [single if kind in ("modified", "single") else kind])


def fit_weights(mass, rest, vocab_size, rounds=100):
    """The interpolation weights lambda_1 .. lambda_n under which held-out text is most likely: EM.

    mass, rest: (n, N) relative frequencies c(hw) / c(h) of the N tokens, and 1 where the context is unknown, else 0.
    Think of each token as drawn so: from the top down, order n speaks with probability lambda_n, else the next lower
    order is asked; who spoke is not seen. E-step: the probability that order n was asked, and that it spoke, given the
    token that came. M-step: lambda_n = how often it spoke / how often it was asked. No round lowers the likelihood
    (Dempster, Laird & Rubin 1977); once one raises it by less than 1e-7 nats per token, that is the end.
    """
    weights, last = np.full(len(mass), 0.5), -np.inf
    for _ in range(rounds):
        spoken, p = np.where(rest == 1, 0, weights[:, None]), [np.full(mass.shape[1], 1 / vocab_size)]
        for weight, m in zip(spoken, mass):
            p.append(weight * m + (1 - weight) * p[-1])         # p_n, (N,)
        asked = np.ones(mass.shape[1])
        for n in range(len(mass) - 1, -1, -1):
            spoke = asked * spoken[n] * mass[n] / p[n + 1]
            chances = asked @ (rest[n] == 0)
            weights[n] = spoke.sum() / chances if chances else weights[n]
            asked = asked - spoke
        likelihood = np.log(p[-1]).mean()
        if likelihood - last < 1e-7:
            break
        last = likelihood
    return weights
