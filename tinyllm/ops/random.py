"""Philox: random numbers as a pure function of a counter.

An ordinary generator is a state that every draw changes, so the tenth number depends on who drew the first nine. Philox
(Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") instead scrambles a counter: four 32-bit words in,
four random words out, no state. So a thousand GPU threads can draw without talking to each other, a dropout mask can be
drawn again instead of being stored, and NumPy and Triton get the same bits from the same counter.
"""
import math

import numpy as np

M0, M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)       # the multipliers and key increments of Philox 4x32
W0, W1 = 0x9E3779B9, 0xBB67AE85
LOW, SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)


def philox(key, counter, rounds=10):
    """Scramble: key (two Python integers below 2^32), counter (four uint64 arrays of words below 2^32) -> four more."""
    k0, k1 = key
    c0, c1, c2, c3 = counter
    for _ in range(rounds):
        product0, product1 = M0 * c0, M1 * c2           # 32 x 32 -> 64 bits: the high half is the scrambled one
        c0, c1, c2, c3 = (product1 >> SHIFT) ^ c1 ^ np.uint64(k0), product1 & LOW, \
                         (product0 >> SHIFT) ^ c3 ^ np.uint64(k1), product0 & LOW
        k0, k1 = (k0 + W0) & 0xFFFFFFFF, (k1 + W1) & 0xFFFFFFFF
    return c0, c1, c2, c3


def first_bits(rng, n, site):
    """One random uint32 for each of the elements 0 .. n-1. rng: (seed, step), site: which call in the step.

    Element e is word e % 4 of the counter (e // 4, site, step, e // 2^34), whose words are 32 bits long, under the key
    made of the seed's low and high half.
    The work is done piece by piece, so that it stays in the cache.
    """
    seed, step = int(rng[0]), int(rng[1])
    bits = np.empty(-(-n // 4) * 4, np.uint32)
    for start in range(0, len(bits), 16_384):
        piece = bits[start:start + 16_384].reshape(-1, 4)
        quads = np.arange(start // 4, start // 4 + len(piece), dtype=np.uint64)
        zero = np.zeros_like(quads)
        counter = (quads & LOW, zero + np.uint64(site), zero + np.uint64(step), quads >> SHIFT)
        for word, column in zip(philox((seed & 0xFFFFFFFF, seed >> 32), counter), piece.T):
            column[:] = word
    return bits[:n]


def bits_of_rows(rng, shape, site):
    """One random uint32 for each element of an array (..., n), whose rows count as rounded up to a multiple of 4.

    So every row begins with a new counter, which suits a GPU's program that works on a part of some rows.
    """
    *rows, n = shape or (1,)
    padded = -(-n // 4) * 4
    return first_bits(rng, math.prod(rows) * padded, site).reshape(*rows, padded)[..., :n].reshape(shape)
