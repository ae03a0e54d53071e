"""Choosing the next token: temperature, top-k, top-p and the draw, one program for each text.

    token = argmax over the kept v of  (z_v - max z) / temperature + gumbel_v,   gumbel = -log(-log u)

Twin: tinyllm/ops/sample.py, which draws the same u for the same (seed, step, row, token), and so the same token.

Sorting 50,000 logits to keep the best k is a lot of work; what is needed is only the score of the k-th. That is found
by bisection on its bits: floats, once the bits of negative ones are flipped, order like integers, so 32 questions "how
many tokens are better than this?" pin it down exactly. Top-p asks for the probability of the better tokens instead of
their number. Of the tokens that have exactly this score, the first ones are kept, as many as still fit.

    logits_ptr     (B, V) with rows `stride` apart; a row is read once for each question, from the L2 cache
    rng_ptr        (2,) seed and step, or None: the largest logit wins
    out_ptr        (B,) int64
    top_k          0: all.  top_p: 1 or more: all.  lowest: log(min_p), the least score that is kept
    grid           (B,)
"""

import math

import torch
import triton
import triton.language as tl

from . import runtime
from .random import random_bits

BLOCK = 4096


@triton.jit
def score(z, top, temperature):
    """(z - top) / temperature, which is 0 for the best token; at least -1000, from where no noise brings one back."""
    return tl.where(z == top, 0.0, tl.maximum(z - top, -1000.0 * temperature) / temperature)


@triton.jit
def key_of(scores):
    """An integer for each score, in the same order: for negative floats more bits mean smaller, so they are flipped."""
    bits = scores.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)


@triton.jit
def score_of(key):
    """The score that has this key."""
    bits = tl.where(key < 0, key ^ 0x7FFFFFFF, key).to(tl.int32)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def scores_and_keys(logits_ptr, tokens, n_vocabulary, top, temperature):
    no_overhang = tokens < n_vocabulary
    z = tl.load(logits_ptr + tokens, mask=no_overhang, other=float("-inf")).to(tl.float32)
    scores = tl.where(no_overhang, score(z, top, temperature), float("-inf"))
    return scores, key_of(scores)


@triton.jit
def weigh_above(logits_ptr, n_vocabulary, top, temperature, key, MASS: tl.constexpr, BLOCK: tl.constexpr):
    """How many tokens have larger keys; MASS: how much e^score they have together."""
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for first in range(0, n_vocabulary, BLOCK):
        scores, keys = scores_and_keys(logits_ptr, first + tl.arange(0, BLOCK), n_vocabulary, top, temperature)
        weights = tl.exp(scores) if MASS else 1.0
        total += tl.where(keys > key, weights, 0.0)
    return tl.sum(total, axis=0)


@triton.jit
def threshold(logits_ptr, n_vocabulary, top, temperature, low, high, budget, MASS: tl.constexpr, BLOCK: tl.constexpr):
    """The smallest key, from low to high, of which the tokens above weigh less than the budget; and what they weigh."""
    while low < high:
        middle = (low + high) >> 1
        enough = weigh_above(logits_ptr, n_vocabulary, top, temperature, middle, MASS, BLOCK) < budget
        high = tl.where(enough, middle, high)
        low = tl.where(enough, low, middle + 1)
    return high, weigh_above(logits_ptr, n_vocabulary, top, temperature, high, MASS, BLOCK)


@triton.jit
def sample_kernel(logits_ptr, stride, rng_ptr, out_ptr, n_vocabulary, site, temperature, top_k, top_p,
                  lowest, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * stride
    tops = tl.zeros((BLOCK,), dtype=tl.float32) + float("-inf")
    bottoms = tl.zeros((BLOCK,), dtype=tl.float32) + float("inf")
    for first in range(0, n_vocabulary, BLOCK):
        tokens = first + tl.arange(0, BLOCK)
        no_overhang = tokens < n_vocabulary
        z = tl.load(logits_ptr + tokens, mask=no_overhang, other=float("-inf")).to(tl.float32)
        tops, bottoms = tl.maximum(tops, z), tl.where(no_overhang, tl.minimum(bottoms, z), bottoms)
    top = tl.max(tops, axis=0)
    high, low = key_of(score(top, top, temperature)), key_of(score(tl.min(bottoms, axis=0), top, temperature))

    key, equals = low - 1, 0.0              # what is kept: keys above `key`, and the first `equals` tokens of this key
    if rng_ptr is not None:
        if top_k < n_vocabulary:
            key, above = threshold(logits_ptr, n_vocabulary, top, temperature, low, high, top_k, False, BLOCK)
            equals = top_k - above
        if top_p < 1.0:
            kept_mass = weigh_above(logits_ptr, n_vocabulary, top, temperature, key, True, BLOCK)
            kept_mass += equals * tl.exp(score_of(tl.maximum(key, low)))            # 0 equals if nothing was cut
            budget = top_p * kept_mass
            nucleus, above = threshold(logits_ptr, n_vocabulary, top, temperature, tl.maximum(key, low), high, budget,
                                       True, BLOCK)
            fitting = tl.ceil((budget - above) / tl.exp(score_of(nucleus)))
            equals = tl.where(nucleus == key, tl.minimum(equals, fitting), fitting)
            key = nucleus

    best, token, seen = float("-inf"), 0, 0.0
    for first in range(0, n_vocabulary, BLOCK):
        tokens = first + tl.arange(0, BLOCK)
        scores, keys = scores_and_keys(logits_ptr, tokens, n_vocabulary, top, temperature)
        if rng_ptr is not None:
            is_equal = tl.where(keys == key, 1.0, 0.0)
            rank = seen + tl.cumsum(is_equal, axis=0) - is_equal
            kept = (keys > key) | ((keys == key) & (rank < equals))
            kept = kept & (scores >= lowest)
            seen += tl.sum(is_equal, axis=0)
            # token v of row b is element b V' + v, V' being V rounded up to a multiple of 4
            quads = row * tl.cdiv(n_vocabulary, 4) + first // 4 + tl.arange(0, BLOCK // 4)
            bits = random_bits(rng_ptr, site, quads) >> 9
            u = (bits.to(tl.float32) + 0.5) * 1.1920928955078125e-07        # 2^-23: exact, and inside (0, 1)
            scores = tl.where(kept, scores - tl.log(-tl.log(u)), float("-inf"))
        value, place = tl.max(scores, axis=0, return_indices=True)
        token = tl.where(value > best, first + place, token)                # the first one of equals
        best = tl.maximum(best, value)
    tl.store(out_ptr + row, token.to(tl.int64))


def sample(logits, rng, *, temperature=1.0, top_k=None, top_p=None, min_p=None, site=0):
    """One token for each row, drawn from softmax(logits / temperature) among those that top_k, top_p and min_p keep.

    logits (B, V), rng (2,) int64 on the device or a NumPy array -> (B,) int64. temperature 0: the most likely token.
    """
    logits = logits if logits.stride(-1) == 1 else runtime.contiguous(logits)
    (B, V), out = logits.shape, runtime.empty((logits.shape[0],), torch.int64)
    rng = rng if torch.is_tensor(rng) else runtime.from_numpy(rng, "int64")
    sample_kernel[(B,)](logits, logits.stride(0), None if temperature == 0 else rng, out, V, site,
                        max(temperature or 1.0, 1e-30),     # colder changes no draw, and float32 would take it for 0
                        float(min(top_k or V, V)), float(top_p or 1.0), math.log(min_p) if min_p else -2000.0,
                        BLOCK=min(BLOCK, max(16, triton.next_power_of_2(V))), num_warps=8)
    return out
