"""Which tokens top-k and top-p keep: bisection, and lists of those that can be kept at all.

Sorting 50,000 logits to keep the best k is a lot of work; what is needed is only the score of the k-th. That is found
by bisection on its bits: floats, once the bits of negative ones are flipped, order like integers, so 32 questions "how
many tokens are better than this?" pin it down exactly. Top-p asks for the probability of the better tokens instead of
their number. Of the tokens that have exactly this score, the first ones are kept, as many as still fit.

The questions do not go to 50,000 tokens, but to shortlists (sample.py says who is left out of them): a tuple

    z_ptr, tokens_ptr      where they are: logits in float32, tokens in int32
    lengths, apart         (PARTS,) how long each is; how far one begins behind the one before
    longest                the largest of the lengths

PLACES of them are looked at at once, which has to be as many as PARTS, or more.
"""

import triton
import triton.language as tl


@triton.jit
def score(z, top, temperature):
    """(z - top) / temperature, which is 0 for the best token; at least -1000, from where no noise brings one back."""
    return tl.where(z == top, 0.0, tl.maximum(z - top, -1000.0 * temperature) / temperature)


@triton.jit
def key_of(scores):
    """An integer for each float, in the same order: for negative floats more bits mean smaller, so they are flipped."""
    bits = scores.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def float_of(key):
    """The float that has this key."""
    return tl.where(key < 0, key ^ 0x7FFFFFFF, key).to(tl.float32, bitcast=True)


@triton.jit
def middle_of(low, high):
    """(low + high) / 2, rounded down, where the sum would not fit 32 bits: what both have, and half of what one has."""
    return (low & high) + ((low ^ high) >> 1)


@triton.jit
def kth_largest(values, k):
    """Of a block in registers, by bisection: the smallest float that fewer than k are above."""
    keys = key_of(values)
    low, high = tl.min(keys, axis=0), tl.max(keys, axis=0)
    while low < high:
        middle = middle_of(low, high)
        enough = tl.sum(tl.where(keys > middle, 1.0, 0.0), axis=0) < k
        high = tl.where(enough, middle, high)
        low = tl.where(enough, low, middle + 1)
    return float_of(high)


@triton.jit
def shortlist(z, tokens, stays, z_ptr, tokens_ptr):
    """Write down the logits and tokens that stay, in their order -> how many."""
    one = stays.to(tl.int32)
    places = tl.cumsum(one, axis=0) - one
    tl.store(z_ptr + places, z, mask=stays)
    tl.store(tokens_ptr + places, tokens, mask=stays)
    return tl.sum(one, axis=0)


@triton.jit
def entries(lists, first, top, temperature, PLACES: tl.constexpr):
    """Of all shortlists the entries from place `first` on: scores, keys, tokens, and which of them there are; each
    (PARTS, PLACES / PARTS).
    """
    z_ptr, tokens_ptr, lengths, apart, _ = lists
    columns = first + tl.arange(0, PLACES // lengths.shape[0])[None, :]
    places, exist = tl.arange(0, lengths.shape[0])[:, None] * apart + columns, columns < lengths[:, None]
    z = tl.load(z_ptr + places, mask=exist, other=float("-inf"))
    scores = tl.where(exist, score(z, top, temperature), float("-inf"))
    return scores, key_of(scores), tl.load(tokens_ptr + places, mask=exist, other=0x7FFFFFFF), exist


@triton.jit
def weigh(lists, top, temperature, key, token, MASS: tl.constexpr, PLACES: tl.constexpr):
    """How many entries have larger keys, or this key and no later token; MASS: how much e^score they have together."""
    total = tl.zeros((lists[2].shape[0], PLACES // lists[2].shape[0]), dtype=tl.float32)
    for first in range(0, lists[4], PLACES // lists[2].shape[0]):
        scores, keys, tokens, _ = entries(lists, first, top, temperature, PLACES)
        weights = tl.exp(scores) if MASS else 1.0
        total += tl.where((keys > key) | ((keys == key) & (tokens <= token)), weights, 0.0)
    return tl.sum(total)


@triton.jit
def threshold(lists, top, temperature, low, high, budget, MASS: tl.constexpr, PLACES: tl.constexpr):
    """The smallest key, from low to high, above which the entries weigh less than the budget; and what they weigh."""
    while low < high:
        middle = middle_of(low, high)
        enough = weigh(lists, top, temperature, middle, -1, MASS, PLACES) < budget
        high = tl.where(enough, middle, high)
        low = tl.where(enough, low, middle + 1)
    return high, weigh(lists, top, temperature, high, -1, MASS, PLACES)


@triton.jit
def last_kept(lists, top, temperature, low, mass, n_vocabulary, top_k, top_p, PLACES: tl.constexpr):
    """(key, equals): top-k and top-p keep the keys above `key`, and the first `equals` tokens of this key.

    low: a key that no entry is below.  mass: the e^score of all tokens, which top-p needs without top-k.
    """
    high = key_of(score(top, top, temperature))
    key, equals = low - 1, 0.0
    if top_k < n_vocabulary:
        key, above = threshold(lists, top, temperature, low, high, top_k, False, PLACES)
        equals = top_k - above
    if top_p < 1.0:
        if top_k < n_vocabulary:
            mass = weigh(lists, top, temperature, key, -1, True, PLACES) + equals * tl.exp(float_of(key))
        budget = top_p * mass
        nucleus, above = threshold(lists, top, temperature, tl.maximum(key, low), high, budget, True, PLACES)
        fitting = tl.ceil((budget - above) / tl.exp(float_of(nucleus)))
        equals = tl.where(nucleus == key, tl.minimum(equals, fitting), fitting)
        key = nucleus
    return key, equals


@triton.jit
def last_equal(lists, top, temperature, key, equals, n_vocabulary, PLACES: tl.constexpr):
    """The token up to which `equals` entries have this key, by bisection; n_vocabulary if no more have it."""
    wanted = weigh(lists, top, temperature, key, -1, False, PLACES) + equals
    all_fit = weigh(lists, top, temperature, key, n_vocabulary, False, PLACES) <= wanted
    low, high = tl.where(all_fit, n_vocabulary, 0), n_vocabulary
    while low < high:
        middle = (low + high) // 2
        enough = weigh(lists, top, temperature, key, middle, False, PLACES) >= wanted
        high = tl.where(enough, middle, high)
        low = tl.where(enough, low, middle + 1)
    return high
