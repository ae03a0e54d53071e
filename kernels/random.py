"""Philox in a kernel: the random numbers of tinyllm/ops/random.py, bit for bit, without a state.

Element e of an array gets word e % 4 of the counter (e // 4 low half, site, step, e // 4 high half), under the key made
of the seed's two halves (Salmon et al. 2011). Four neighbours share one scrambling; a program draws for a quarter as
many counters as it has elements, and interleaves the four words. So a mask needs no memory: the backward pass draws it
again.

    rng_ptr    (2,) int64 on the device: seed and step, so that a recorded training step can be replayed with new ones
    site       which random operation of the step it is
"""

import torch
import triton
import triton.language as tl

from . import runtime


@triton.jit
def random_words(rng_ptr, site, quads):
    """The four words of each counter: quads (any shape) int64 -> four blocks of uint32."""
    seed, step = tl.load(rng_ptr), tl.load(rng_ptr + 1)
    low = (quads & 0xFFFFFFFF).to(tl.uint32)
    return tl.philox(seed, low, low * 0 + site, low * 0 + step.to(tl.uint32), (quads >> 32).to(tl.uint32))


@triton.jit
def random_bits(rng_ptr, site, quads):
    """The bits of the elements 4 q, 4 q + 1, 4 q + 2, 4 q + 3 for each q: quads (..., n) -> (..., 4 n) uint32."""
    a, b, c, d = random_words(rng_ptr, site, quads)
    return tl.interleave(tl.interleave(a, c), tl.interleave(b, d))


@triton.jit
def first_bits_kernel(rng_ptr, out_ptr, n, site, BLOCK: tl.constexpr):
    quads = tl.program_id(0).to(tl.int64) * (BLOCK // 4) + tl.arange(0, BLOCK // 4)
    elements = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + elements, random_bits(rng_ptr, site, quads).to(tl.int64), mask=elements < n)


def first_bits(rng, n, site):
    """One random uint32 (as int64) for each of the elements 0 .. n-1. rng: (seed, step) int64, on the device."""
    out = runtime.empty((n,), torch.int64)
    if n:
        first_bits_kernel[(triton.cdiv(n, 1024),)](rng, out, n, site, BLOCK=1024)
    return out
