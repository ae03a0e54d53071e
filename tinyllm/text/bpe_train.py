"""Learning byte-pair encoding: find the commonest pair of neighbours, make it one token, repeat.

With "aaabdaaabac" and bytes as the first tokens, three rounds give (each line shows the text after the merge):

    a + a -> X     X a b d X a b a c      "aa" occurs 4 times, overlaps counted
    a + b -> Y     X Y d X Y a c          twice; (X, a) does too, but a and b are older tokens
    X + Y -> Z     Z d Z a c

The idea is Gage's (1994, "A New Algorithm for Data Compression"); Sennrich et al. 2016 ("Neural Machine Translation of
Rare Words with Subword Units") brought it to words, and GPT-2 (Radford et al. 2019) to bytes.

Counting all pairs again in each round would take as many passes over the text as there are merges. Instead, all pairs
are counted once, and a merge corrects only the counts around the places where it happens.
"""

from collections import defaultdict
from collections.abc import Mapping
from heapq import heapify, heappop, heappush

GAP = -1  # stands between two words, and where a merged token's right half was


def learn_merges(word_counts: Mapping[bytes, int], num_merges: int) -> list[tuple[int, int]]:
    """Return the pairs of ids to merge, in order; merge number r makes the new id 256 + r.

    Of pairs that occur equally often, the one with the smallest left id, then the smallest right id, is merged first.
    So the result depends on the counts only, not on the order of the words.

    Args:
        word_counts: how often each piece of the text occurs; no pair reaches over the ends of a piece.
        num_merges: how many merges to learn. The list is shorter if all pieces have become single tokens before.
    """
    ids, weights = _lay_out(word_counts)
    left, right = list(range(-1, len(ids) - 1)), list(range(1, len(ids) + 1))  # a doubly linked list: unlinking is O(1)
    counts: dict[tuple[int, int], int] = defaultdict(int)
    places: dict[tuple[int, int], list[int]] = defaultdict(list)  # where a pair may stand; checked when used
    for i, pair in enumerate(zip(ids, ids[1:])):
        if GAP not in pair:
            counts[pair] += weights[i]
            places[pair].append(i)

    heap = [(-count, pair) for pair, count in counts.items()]
    heapify(heap)
    merges: list[tuple[int, int]] = []
    while heap and len(merges) < num_merges:
        count, pair = heappop(heap)
        if -count != counts[pair]:  # other merges took some of its places since it was pushed: back, with today's count
            if counts[pair]:
                heappush(heap, (-counts[pair], pair))
            continue
        new = 256 + len(merges)
        merges.append(pair)
        created = set()
        for i in places.pop(pair):  # from left to right, as they were added
            j = right[i]
            if (ids[i], ids[j]) != pair:
                continue
            before, after, weight = left[i], right[j], weights[i]
            ids[i], ids[j] = new, GAP
            right[i], left[after] = after, i
            if ids[before] != GAP:
                counts[ids[before], pair[0]] -= weight
                counts[ids[before], new] += weight
                places[ids[before], new].append(before)
                created.add((ids[before], new))
            if ids[after] != GAP:
                counts[pair[1], ids[after]] -= weight
                counts[new, ids[after]] += weight
                places[new, ids[after]].append(i)
                created.add((new, ids[after]))
        del counts[pair]
        # Only pairs with the new id can have grown, and only now: so each pair is in the heap once.
        for fresh in created:
            if counts[fresh]:
                heappush(heap, (-counts[fresh], fresh))
    return merges


def _lay_out(word_counts: Mapping[bytes, int]) -> tuple[list[int], list[int]]:
    """Return all words in one list of ids, with a GAP before, between and after them, and each place's word count."""
    ids, weights = [GAP], [0]
    for word, count in word_counts.items():
        ids += [*word, GAP]
        weights += [count] * (len(word) + 1)
    return ids, weights
