"""Applying byte-pair merges to one piece of text: the plain way, and the same result fast.

With the merges 256 = a + b, 257 = 256 + c and 258 = b + c, "abc" becomes

    97 98 99  ->  256 99  ->  257

and not 97 258: the merge learned first goes first, wherever it stands, just as it went first in training. Of its
places, the leftmost goes first.
"""

from collections.abc import Iterable, Iterator, Mapping
from heapq import heapify, heappop, heappush
from itertools import pairwise

from .bpe_train import GAP

Pairs = Mapping[tuple[int, int], int]  # of (left id, right id): the id of the two together, or when it was learned


def merge_steps(piece: Iterable[int], merges: Pairs, ranks: Pairs) -> Iterator[tuple[tuple[int, int], list[int]]]:
    """Yield each merge as (pair, ids after it). To be read and watched: the time grows with the square of the length.

    Args:
        piece: ids of single bytes.
        merges: the pairs and the ids of the two together.
        ranks: the same pairs and their places in the order of learning.
    """
    ids = list(piece)
    while any(pair in ranks for pair in pairwise(ids)):
        _, i = min((ranks[pair], i) for i, pair in enumerate(pairwise(ids)) if pair in ranks)
        pair = ids[i], ids[i + 1]
        ids[i : i + 2] = [merges[pair]]
        yield pair, list(ids)


def apply_merges(piece: Iterable[int], merges: Pairs, ranks: Pairs) -> list[int]:
    """Return the ids that ``merge_steps`` ends with, in time proportional to the length (times its logarithm).

    A heap holds every place where two neighbours may be merged, by rank, then by position, both in one number. A merge
    changes only the pairs on its two sides: these are pushed, and a place that is out of date is noticed at its turn.
    """
    ids = [GAP, *piece, GAP]
    left, right = list(range(-1, len(ids) - 1)), list(range(1, len(ids) + 1))  # a doubly linked list: unlinking is O(1)
    size = len(ids)
    heap = [ranks[pair] * size + i for i, pair in enumerate(pairwise(ids)) if pair in ranks]
    heapify(heap)
    while heap:
        rank, i = divmod(heappop(heap), size)
        j = right[i]
        pair = ids[i], ids[j]
        if ranks.get(pair) != rank:  # one of the two has been merged with its other neighbour
            continue
        ids[i], ids[j] = merges[pair], GAP
        right[i] = right[j]
        left[right[j]] = i
        for k in (left[i], i):
            rank = ranks.get((ids[k], ids[right[k]]))
            if rank is not None:
                heappush(heap, rank * size + k)
    return [i for i in ids if i != GAP]
