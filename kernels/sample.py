"""Choosing the next token: temperature, top-k, top-p and the draw, one program for each text.

    token = argmax over the kept v of  (z_v - max z) / temperature + gumbel_v,   gumbel = -log(-log u)

Twin: tinyllm/ops/sample.py, which draws the same u for the same (seed, step, row, token), and so the same token.

Sorting 50,000 logits to keep the best k is a lot of work; what is needed is only the score of the k-th. That is found
by bisection on its bits: floats, once the bits of negative ones are flipped, order like integers, so 32 questions "how
many tokens are better than this?" pin it down exactly. Top-p asks for the probability of the better tokens instead of
their number. Of the tokens that have exactly this score, the first ones are kept, as many as still fit.

Nor are 50,000 tokens asked 32 times. A *shortlist* leaves out most of those that cannot be kept:

    top-k      The row is dealt into 2,048 groups, and the maximum of each is found. At least k tokens reach the k-th
               best of the maxima, so those below it are out. For k = 50 hardly more than 50 tokens stay.
    top-p      Tokens less likely than (1 - p) / V have less than 1 - p together, so the others have more than p.

The questions then go to the shortlist, which keeps the order of the tokens; so it changes no result, only the time.

    logits_ptr     (B, V) with rows `stride` apart; a row is read twice, and once more for top-p
    short_z_ptr, short_tokens_ptr     (B, V) float32 and int32: the shortlists, of unknown length
    rng_ptr        (2,) seed and step
    out_ptr        (B,) int64
    top_k          V: all.  top_p: 1 or more: all.  lowest: log(min_p), the least score that is kept
    CUT            whether top_k or top_p leaves anything out
    grid           (B,)
"""

import math

import torch
import triton
import triton.language as tl

from . import runtime
from .random import random_bits, random_words

BLOCK = 4096        # logits read at once: 512 threads with 8 each, which leaves registers for the draw
GREEDY = 8192       # the same, without one
GROUPS = 2048       # groups, and places of a shortlist at once: few, so that a question is soon answered


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
def scores_and_keys(z_ptr, places, n, top, temperature):
    no_overhang = places < n
    z = tl.load(z_ptr + places, mask=no_overhang, other=float("-inf")).to(tl.float32)
    scores = tl.where(no_overhang, score(z, top, temperature), float("-inf"))
    return scores, key_of(scores)


@triton.jit
def weigh_above(z_ptr, n, top, temperature, key, MASS: tl.constexpr, BLOCK: tl.constexpr):
    """How many tokens have larger keys; MASS: how much e^score they have together."""
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for first in range(0, n, BLOCK):
        scores, keys = scores_and_keys(z_ptr, first + tl.arange(0, BLOCK), n, top, temperature)
        weights = tl.exp(scores) if MASS else 1.0
        total += tl.where(keys > key, weights, 0.0)
    return tl.sum(total, axis=0)


@triton.jit
def threshold(z_ptr, n, top, temperature, low, high, budget, MASS: tl.constexpr, BLOCK: tl.constexpr):
    """The smallest key, from low to high, of which the tokens above weigh less than the budget; and what they weigh."""
    while low < high:
        middle = middle_of(low, high)
        enough = weigh_above(z_ptr, n, top, temperature, middle, MASS, BLOCK) < budget
        high = tl.where(enough, middle, high)
        low = tl.where(enough, low, middle + 1)
    return high, weigh_above(z_ptr, n, top, temperature, high, MASS, BLOCK)


@triton.jit
def group_maxima(logits_ptr, n_vocabulary, BLOCK: tl.constexpr, GROUPS: tl.constexpr):
    """The largest logit of each group, (GROUPS,): token v is in group v % GROUPS."""
    maxima = tl.zeros((GROUPS,), dtype=tl.float32) + float("-inf")
    for first in range(0, n_vocabulary, BLOCK):
        tokens = first + tl.arange(0, BLOCK // GROUPS)[:, None] * GROUPS + tl.arange(0, GROUPS)[None, :]
        z = tl.load(logits_ptr + tokens, mask=tokens < n_vocabulary, other=float("-inf")).to(tl.float32)
        maxima = tl.maximum(maxima, tl.max(z, axis=0))
    return maxima


@triton.jit
def kth_largest(values, k):
    """Of a block that stays in registers, by the same bisection."""
    keys = key_of(values)
    low, high = tl.min(keys, axis=0), tl.max(keys, axis=0)
    while low < high:
        middle = middle_of(low, high)
        enough = tl.sum(tl.where(keys > middle, 1.0, 0.0), axis=0) < k
        high = tl.where(enough, middle, high)
        low = tl.where(enough, low, middle + 1)
    return float_of(high)


@triton.jit
def shortlist(logits_ptr, n_vocabulary, top, reach, short_z_ptr, short_tokens_ptr, BLOCK: tl.constexpr):
    """Write down the tokens whose logit is at least top + reach, in their order, with their logits -> how many."""
    n = 0
    for first in range(0, n_vocabulary, BLOCK):
        tokens = first + tl.arange(0, BLOCK)
        z = tl.load(logits_ptr + tokens, mask=tokens < n_vocabulary, other=float("-inf")).to(tl.float32)
        stays = (tokens < n_vocabulary) & ((z == top) | (z - top >= reach))
        one = stays.to(tl.int32)
        places = n + tl.cumsum(one, axis=0) - one
        tl.store(short_z_ptr + places, z, mask=stays)
        tl.store(short_tokens_ptr + places, tokens, mask=stays)
        n += tl.sum(one, axis=0)
    tl.debug_barrier()      # each thread will read what others have written
    return n


@triton.jit
def last_kept(z_ptr, n, top, temperature, low, mass, n_vocabulary, top_k, top_p, BLOCK: tl.constexpr):
    """(key, equals): top-k and top-p keep the keys above `key`, and the first `equals` tokens of this key.

    low: a key that none of the n tokens is below.  mass: the e^score of all tokens, which top-p needs without top-k.
    """
    high = key_of(score(top, top, temperature))
    key, equals = low - 1, 0.0
    if top_k < n_vocabulary:
        key, above = threshold(z_ptr, n, top, temperature, low, high, top_k, False, BLOCK)
        equals = top_k - above
    if top_p < 1.0:
        if top_k < n_vocabulary:
            mass = weigh_above(z_ptr, n, top, temperature, key, True, BLOCK) + equals * tl.exp(float_of(key))
        budget = top_p * mass
        nucleus, above = threshold(z_ptr, n, top, temperature, tl.maximum(key, low), high, budget, True, BLOCK)
        fitting = tl.ceil((budget - above) / tl.exp(float_of(nucleus)))
        equals = tl.where(nucleus == key, tl.minimum(equals, fitting), fitting)
        key = nucleus
    return key, equals


@triton.jit
def gumbel(bits):
    """The noise made of random bits."""
    u = ((bits >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07         # 2^-23: exact, and inside (0, 1)
    return -tl.log(-tl.log(u))


@triton.jit
def bits_of_tokens(rng_ptr, site, first_quad, tokens):
    """The random bits of tokens that are no neighbours: of each one's four words, its own."""
    a, b, c, d = random_words(rng_ptr, site, first_quad + tokens // 4)
    word = tokens % 4
    return tl.where(word < 2, tl.where(word == 0, a, b), tl.where(word == 2, c, d))


@triton.jit
def first_of_the_best(best, tokens):
    """The token of the largest number; of equal ones the smallest token."""
    return tl.min(tl.where(best == tl.max(best, axis=0), tokens, 0x7FFFFFFF), axis=0).to(tl.int64)


@triton.jit
def greedy_kernel(logits_ptr, stride, out_ptr, n_vocabulary, BLOCK: tl.constexpr):
    """The largest logit wins."""
    row = tl.program_id(0).to(tl.int64)
    best, winners = tl.zeros((BLOCK,), dtype=tl.float32) + float("-inf"), tl.arange(0, BLOCK)
    for first in range(0, n_vocabulary, BLOCK):
        tokens = first + tl.arange(0, BLOCK)
        z = tl.load(logits_ptr + row * stride + tokens, mask=tokens < n_vocabulary, other=float("-inf")).to(tl.float32)
        winners = tl.where(z > best, tokens, winners)
        best = tl.maximum(best, z)
    tl.store(out_ptr + row, first_of_the_best(best, winners))


@triton.jit
def sample_kernel(logits_ptr, stride, short_z_ptr, short_tokens_ptr, rng_ptr, out_ptr, n_vocabulary, site, temperature,
                  top_k, top_p, lowest, CUT: tl.constexpr, BLOCK: tl.constexpr, GROUPS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    first_quad = row * tl.cdiv(n_vocabulary, 4)     # token v of row b is element b V' + v, V' a multiple of 4
    logits_ptr += row * stride
    maxima = group_maxima(logits_ptr, n_vocabulary, BLOCK, GROUPS)
    top = tl.max(maxima, axis=0)
    if CUT:
        LENGTH: tl.constexpr = GROUPS
        z_ptr, tokens_ptr = short_z_ptr + row * n_vocabulary, short_tokens_ptr + row * n_vocabulary
        reach, mass = top * 0.0 - float("inf"), top * 0.0
        if top_k >= n_vocabulary:
            mass = weigh_above(logits_ptr, n_vocabulary, top, temperature, -0x7FFFFFFF, True, BLOCK)
            # a half of what the argument above allows, for the rounding
            reach = tl.log((1.0 - top_p) * mass / n_vocabulary * 0.5) * temperature
        elif top_k <= GROUPS:
            kth = kth_largest(maxima, top_k)
            reach = tl.where(kth == top, 0.0, kth - top)
        n = shortlist(logits_ptr, n_vocabulary, top, reach, z_ptr, tokens_ptr, BLOCK)
        low = key_of(tl.maximum(reach, -1000.0 * temperature) / temperature) - 16       # a GPU's division is not exact
        key, equals = last_kept(z_ptr, n, top, temperature, low, mass, n_vocabulary, top_k, top_p, LENGTH)
    else:
        LENGTH: tl.constexpr = BLOCK
        z_ptr, n = logits_ptr, n_vocabulary

    best, winners = tl.zeros((LENGTH,), dtype=tl.float32) + float("-inf"), tl.zeros((LENGTH,), dtype=tl.int32)
    seen = 0.0
    for first in range(0, n, LENGTH):
        places = first + tl.arange(0, LENGTH)
        scores, keys = scores_and_keys(z_ptr, places, n, top, temperature)
        kept = (scores >= lowest) & (places < n)
        if CUT:
            tokens = tl.load(tokens_ptr + places, mask=places < n, other=0)
            is_equal = tl.where(keys == key, 1.0, 0.0)
            rank = seen + tl.cumsum(is_equal, axis=0) - is_equal
            kept = kept & ((keys > key) | ((keys == key) & (rank < equals)))
            seen += tl.sum(is_equal, axis=0)
            bits = bits_of_tokens(rng_ptr, site, first_quad, tokens)
        else:
            tokens = places
            bits = random_bits(rng_ptr, site, first_quad + first // 4 + tl.arange(0, LENGTH // 4))
        scores = tl.where(kept, scores + gumbel(bits), float("-inf"))
        winners = tl.where(scores > best, tokens, winners)
        best = tl.maximum(best, scores)
    tl.store(out_ptr + row, first_of_the_best(best, winners))


def sample(logits, rng, *, temperature=1.0, top_k=None, top_p=None, min_p=None, site=0):
    """One token for each row, drawn from softmax(logits / temperature) among those that top_k, top_p and min_p keep.

    logits (B, V), rng (2,) int64 on the device or a NumPy array -> (B,) int64. temperature 0: the most likely token.
    """
    logits = logits if logits.stride(-1) == 1 else runtime.contiguous(logits)
    (B, V), out = logits.shape, runtime.empty((logits.shape[0],), torch.int64)
    block, greedy = (min(longest, max(16, triton.next_power_of_2(V))) for longest in (BLOCK, GREEDY))
    if temperature == 0:
        greedy_kernel[(B,)](logits, logits.stride(0), out, V, BLOCK=greedy, num_warps=16)
        return out
    rng = rng if torch.is_tensor(rng) else runtime.from_numpy(rng, "int64")
    top_k, top_p, cut = min(top_k or V, V), float(top_p or 1.0), (top_k or V) < V or (top_p or 1.0) < 1.0
    short_z, short_tokens = (runtime.empty((B, V), dtype) if cut else None for dtype in (torch.float32, torch.int32))
    sample_kernel[(B,)](logits, logits.stride(0), short_z, short_tokens, rng, out, V, site,
                        max(temperature, 1e-30),        # colder changes no draw, and float32 would take it for 0
                        float(top_k), top_p, math.log(min_p) if min_p else -2000.0, CUT=cut, BLOCK=block,
                        GROUPS=min(GROUPS, block), num_warps=16)
    return out
