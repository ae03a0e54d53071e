"""Learning a WordPiece vocabulary: start from characters, join the best pair of neighbours, repeat.

A word is spelled with its first character and then continuations, "low" as l ##o ##w; joining gives lo ##w, or l ##ow.
Byte-pair encoding does the same with the commonest pair. WordPiece asks how much likelier the text becomes, if pieces
are drawn independently, c(x) being how often x stands in the text and N the number of all pieces: an occurrence of a b
has probability c(a)/N * c(b)/N, and c(ab)/N once it is one piece. With c(ab) occurrences, the logarithm gains about

    c(ab) ln(c(ab) N / (c(a) c(b)))                                                                 "likelihood"

which is the criterion of Schuster and Nakajima (2012, "Japanese and Korean Voice Search"). BERT's vocabulary came from
such a program, which was never published. Two other scores go by the same name, and can be tried:

    c(ab) / (c(a) c(b))                                                                             "ratio"
    c(ab)                                                                                           "count"

The first is the one that most explanations give. It is what *one* occurrence gains, and highest for two characters that
stand in the text once, side by side; so it spends the vocabulary on what is rarest. The second is byte-pair encoding's,
and what the trainer of Hugging Face's tokenizers uses. With 1,000 tokens learned from the first nine tenths of
default_corpus(), a word of the last tenth takes 1.19 tokens by likelihood, 2.12 by ratio and 1.17 by count.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping

import numpy as np

from .bpe_train import GAP

SCORES = {
    "likelihood": lambda pair, left, right, total: pair * np.log(pair * total / (left * right)),
    "ratio": lambda pair, left, right, total: pair / (left * right),
    "count": lambda pair, left, right, total: pair,
}


def spell(word: str) -> list[str]:
    """Return the pieces that a word starts as: its first character, and a continuation for each other."""
    return [word[:1], *("##" + character for character in word[1:])]


def alphabet(word_counts: Mapping[str, int]) -> list[str]:
    """Return the pieces that the words start as, each once: first characters, then continuations, sorted."""
    return sorted({piece for word in word_counts for piece in spell(word)}, key=lambda p: (p.startswith("##"), p))


def learn_pieces(word_counts: Mapping[str, int], num_pieces: int, score: str = "likelihood") -> list[str]:
    """Return the pieces to add to the alphabet, in the order of learning.

    Of pairs with the same score, the one of the oldest left piece, then of the oldest right piece, is joined first; the
    alphabet counts as old in its order. So the result depends on the counts only, not on the order of the words.

    Args:
        word_counts: how often each word of the text occurs.
        num_pieces: how many pieces to learn. The list is shorter if all words have become single pieces before.
        score: one of SCORES; the pair with the highest is joined.
    """
    pieces = alphabet(word_counts)
    ids = {piece: i for i, piece in enumerate(pieces)}
    letters, size = len(pieces), len(pieces) + num_pieces
    text = _Text([([ids[piece] for piece in spell(word)], count) for word, count in word_counts.items()], size)
    while len(pieces) < size and (pair := text.best_pair(SCORES[score])):
        text.join(pair, len(pieces))
        pieces.append(pieces[pair[0]] + pieces[pair[1]].removeprefix("##"))
    return pieces[letters:]


class _Text:
    """All words in one row of ids, as in bpe_train.py, with the counts of pieces and pairs kept up to date.

    There, a heap finds the commonest pair, since a count can only fall. Here a score can rise when its pieces become
    rarer; so the counts lie in arrays, and all scores are computed again for each join.
    """

    def __init__(self, words: list[tuple[list[int], int]], num_pieces: int):
        self.ids, self.weights = [GAP], [0]
        for word, count in words:
            self.ids += [*word, GAP]
            self.weights += [count] * (len(word) + 1)
        self.left, self.right = list(range(-1, len(self.ids) - 1)), list(range(1, len(self.ids) + 1))
        self.rows: dict[tuple[int, int], int] = {}  # pair -> where its count stands in `pairs`
        self.places: dict[tuple[int, int], list[int]] = defaultdict(list)  # where a pair may stand; checked when used
        self.counts = np.zeros(num_pieces, np.int64)
        self.pairs = np.zeros((3, 16), np.int64)  # left id, right id, count; grows
        for i, pair in enumerate(zip(self.ids, self.ids[1:])):
            if pair[0] != GAP:
                self.counts[pair[0]] += self.weights[i]
            self._count_pair(pair, self.weights[i], i)

    def best_pair(self, score: Callable) -> tuple[int, int] | None:
        """Return the pair with the highest score, or None if there is none left."""
        left, right, count = self.pairs[:, : len(self.rows)]
        there = np.flatnonzero(count)
        if not len(there):
            return None
        left, right = left[there], right[there]
        scores = score(count[there], self.counts[left], self.counts[right], self.counts.sum())
        best = np.flatnonzero(scores == scores.max())
        return min(zip(left[best].tolist(), right[best].tolist()))

    def join(self, pair: tuple[int, int], new: int) -> None:
        """Replace every ``pair`` by the piece ``new``."""
        ids, left, right = self.ids, self.left, self.right
        for i in self.places.pop(pair):  # from left to right, as they were added
            j = right[i]
            if (ids[i], ids[j]) != pair:
                continue
            before, after, weight = left[i], right[j], self.weights[i]
            self._count_pair((ids[before], pair[0]), -weight)
            self._count_pair(pair, -weight)
            self._count_pair((pair[1], ids[after]), -weight)
            for piece, change in ((pair[0], -weight), (pair[1], -weight), (new, weight)):
                self.counts[piece] += change
            ids[i], ids[j] = new, GAP
            right[i], left[after] = after, i
            self._count_pair((ids[before], new), weight, before)
            self._count_pair((new, ids[after]), weight, i)

    def _count_pair(self, pair: tuple[int, int], change: int, place: int | None = None) -> None:
        if GAP in pair:
            return
        if pair not in self.rows:
            self.rows[pair] = row = len(self.rows)
            if row == self.pairs.shape[1]:  # twice as long, so that it happens rarely
                self.pairs = np.append(self.pairs, np.zeros_like(self.pairs), axis=1)
            self.pairs[:2, row] = pair
        self.pairs[2, self.rows[pair]] += change
        if place is not None:
            self.places[pair].append(place)
