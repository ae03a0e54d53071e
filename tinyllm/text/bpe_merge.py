"""Applying byte-pair merges to one piece of text: the plain way, and the same result fast.

With the merges 256 = a + b, 257 = 256 + c and 258 = b + c, "abc" becomes

    97 98 99  ->  256 99  ->  257

and not 97 258: the merge learned first goes first, wherever it stands, just as it went first in training.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from heapq import heappop, heappush

from .bpe_train import GAP

Merges = Mapping[tuple[int, int], int]  # (left id, right id) -> the id of the two together


def merge_steps(piece: Iterable[int], merges: Merges) -> Iterator[tuple[tuple[int, int], list[int]]]:
    """Yield each merge as (pair, ids after it). To be read and watched: the time grows with the square of the length.

    Args:
        piece: ids; a ``bytes`` will do, as its items are the ids of single bytes.
        merges: the pairs and their ids, which are in the order of learning.
    """
    ids = list(piece)
    while pairs := [pair for pair in zip(ids, ids[1:]) if pair in merges]:
        pair = min(pairs, key=merges.__getitem__)
        i = 0
        while i < len(ids) - 1:
            if (ids[i], ids[i + 1]) == pair:
                ids[i : i + 2] = [merges[pair]]
            i += 1
        yield pair, list(ids)


def apply_merges(piece: Iterable[int], merges: Merges) -> list[int]:
    """Return the ids that ``merge_steps`` ends with, in time proportional to the length (times log of the merges).

    The merge that makes id m can bring about only pairs with m in them, and what those make is newer than m. So one
    pass over the ids of merges in rising order is enough, with a list of places for each.
    """
    ids = [GAP, *piece, GAP]
    left, right = list(range(-1, len(ids) - 1)), list(range(1, len(ids) + 1))  # a doubly linked list: unlinking is O(1)
    places: dict[int, list[int]] = defaultdict(list)  # new id -> where its pair may stand; checked when used
    for i, pair in enumerate(zip(ids, ids[1:])):
        if pair in merges:
            places[merges[pair]].append(i)
    heap = sorted(places)
    while heap:
        new = heappop(heap)
        for i in places.pop(new):  # from left to right, as they were added
            j = right[i]
            if merges.get((ids[i], ids[j])) != new:  # one of the two has been merged with its other neighbour
                continue
            ids[i], ids[j] = new, GAP
            right[i] = right[j]
            left[right[j]] = i
            for k in (left[i], i):
                newer = merges.get((ids[k], ids[right[k]]))
                if newer is not None:
                    if newer not in places:
                        heappush(heap, newer)
                    places[newer].append(k)
    return [i for i in ids if i != GAP]
