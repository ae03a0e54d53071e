"""Choosing the next token: temperature, top-k, top-p and the draw, many programs for each text.

    token = argmax over the kept v of  (z_v - max z) / temperature + gumbel_v,   gumbel = -log(-log u)

Twin: tinyllm/ops/sample.py, which draws the same u for the same (seed, step, row, token), and so the same token.

A first launch, the survey, looks at all logits once, each program at BLOCK of them, and finds how far behind the best a
token may be:

    top-k      Neighbours are put into groups of GROUP, and the maximum of each is found. At least k tokens reach the
               k-th best of the maxima, so those below it are out. For k = 50 hardly more than 50 tokens stay.
    top-p      Tokens less likely than (1 - p) / V have less than 1 - p together, so the others have more than p.

In the second launch, each program writes down what is left of as many tokens, and whoever comes last (last.py) chooses
among these shortlists alone (shortlist.py). So the survey changes no result, only the time. Where nothing is left out,
each program draws, and the last one compares. Tokens are dealt out in groups here: those with small numbers are the
frequent ones in most vocabularies, and one long shortlist would keep the last program waiting.

    logits_ptr     (B, V) with rows `stride` apart
    maxima_ptr     (B, parts, BLOCK / GROUP) float32
    peaks_ptr      (B, parts, 2) float32: the maximum of a part, and the sum of its e^score, measured from there
    survey_ptr     (B, 3) float32: the best logit; what has to be added to it for the least that may be kept, which is
                   negative, or minus infinity; the sum of all e^score
    short_z_ptr, short_tokens_ptr     (B, parts, LIST) float32 and int32; LIST is BLOCK, or 1 where nothing is left out
    lengths_ptr    (B, parts) int32
    counter_ptr    (B,) zeros
    rng_ptr        (2,) seed and step
    out_ptr        (B,) int64
    top_k          V: all.  top_p: 1 or more: all.  lowest: log(min_p), the least score that is kept
    CUT            whether top_k or top_p leaves anything out.  PARTS: the parts, rounded up
    grid           (B, parts)
"""

import math

import torch
import triton
import triton.language as tl

from . import runtime
from .last import comes_last, counters
from .random import random_bits, random_words
from .shortlist import entries, key_of, kth_largest, last_equal, last_kept, score, shortlist

BLOCK = 4096        # logits of a program: 256 threads with 16 each; 512 with 8 would lack registers for the draw
GREEDY = 8192       # the same, without one
GROUP = 32          # neighbours of which the maximum is kept
PLACES = 2048       # of all shortlists together, looked at at once: few, so that a question is soon answered


@triton.jit
def survey_kernel(logits_ptr, stride, maxima_ptr, peaks_ptr, counter_ptr, survey_ptr, n_vocabulary, temperature, top_k,
                  top_p, GROUP: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr):
    row, part, n_parts = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    GROUPS: tl.constexpr = BLOCK // GROUP
    tokens = part * BLOCK + tl.arange(0, GROUPS)[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    z = tl.load(logits_ptr + row * stride + tokens, mask=tokens < n_vocabulary, other=float("-inf")).to(tl.float32)
    maxima = tl.max(z, axis=1)
    peak = tl.max(maxima, axis=0)
    maxima_ptr += row * n_parts * GROUPS
    peaks_ptr += row * n_parts * 2
    tl.store(maxima_ptr + part * GROUPS + tl.arange(0, GROUPS), maxima)
    tl.store(peaks_ptr + part * 2, peak)
    tl.store(peaks_ptr + part * 2 + 1, tl.sum(tl.exp(score(z, peak, temperature))))
    if comes_last(counter_ptr + row, n_parts):
        parts, groups = tl.arange(0, PARTS), tl.arange(0, PARTS * GROUPS)
        peaks = tl.load(peaks_ptr + parts * 2, mask=parts < n_parts, other=float("-inf"))
        masses = tl.load(peaks_ptr + parts * 2 + 1, mask=parts < n_parts, other=0.0)
        top = tl.max(peaks, axis=0)
        mass = tl.sum(masses * tl.exp(score(peaks, top, temperature)))
        reach = top * 0.0 - float("inf")
        if (top_k >= n_vocabulary) & (top_p < 1.0):
            # a half of what the argument above allows, for the rounding
            reach = tl.log((1.0 - top_p) * mass / n_vocabulary * 0.5) * temperature
        if top_k * GROUP <= n_vocabulary:
            all_maxima = tl.load(maxima_ptr + groups, mask=groups < n_parts * GROUPS, other=float("-inf"))
            kth = kth_largest(all_maxima, top_k)
            reach = tl.where(kth == top, 0.0, kth - top)
        survey_ptr += row * 3
        tl.store(survey_ptr, top)
        tl.store(survey_ptr + 1, reach)
        tl.store(survey_ptr + 2, mass)


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
    return tl.min(tl.where(best == tl.max(best), tokens, 0x7FFFFFFF))


@triton.jit
def greedy_kernel(logits_ptr, stride, out_ptr, n_vocabulary, BLOCK: tl.constexpr):
    """The largest logit wins; grid (B,)"""
    row = tl.program_id(0).to(tl.int64)
    best, winners = tl.zeros((BLOCK,), dtype=tl.float32) + float("-inf"), tl.arange(0, BLOCK)
    for first in range(0, n_vocabulary, BLOCK):
        tokens = first + tl.arange(0, BLOCK)
        z = tl.load(logits_ptr + row * stride + tokens, mask=tokens < n_vocabulary, other=float("-inf")).to(tl.float32)
        winners = tl.where(z > best, tokens, winners)
        best = tl.maximum(best, z)
    tl.store(out_ptr + row, first_of_the_best(best, winners).to(tl.int64))


@triton.jit
def dealt(places, part, n_parts, GROUP: tl.constexpr):
    """The tokens at these places of a part, if all tokens are dealt out to the parts in groups, like cards."""
    return (places // GROUP * n_parts + part) * GROUP + places % GROUP


@triton.jit
def draw(lists, top, temperature, low, mass, rng_ptr, site, first_quad, n_vocabulary, top_k, top_p, lowest,
         PLACES: tl.constexpr):
    """The token that wins among those of the shortlists that are kept."""
    key, equals = last_kept(lists, top, temperature, low, mass, n_vocabulary, top_k, top_p, PLACES)
    last = last_equal(lists, top, temperature, key, equals, n_vocabulary, PLACES)
    PARTS: tl.constexpr = lists[2].shape[0]
    best = tl.zeros((PARTS, PLACES // PARTS), dtype=tl.float32) + float("-inf")
    winners = tl.zeros((PARTS, PLACES // PARTS), dtype=tl.int32)
    for first in range(0, lists[4], PLACES // PARTS):
        scores, keys, tokens, exist = entries(lists, first, top, temperature, PLACES)
        kept = exist & (scores >= lowest) & ((keys > key) | ((keys == key) & (tokens <= last)))
        scores = tl.where(kept, scores + gumbel(bits_of_tokens(rng_ptr, site, first_quad, tokens)), float("-inf"))
        winners = tl.where(scores > best, tokens, winners)
        best = tl.maximum(best, scores)
    return first_of_the_best(best, winners)


@triton.jit
def sample_kernel(logits_ptr, stride, survey_ptr, short_z_ptr, short_tokens_ptr, lengths_ptr, counter_ptr, rng_ptr,
                  out_ptr, n_vocabulary, site, temperature, top_k, top_p, lowest, CUT: tl.constexpr,
                  LIST: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr,
                  PLACES: tl.constexpr):
    row, part, n_parts = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    first_quad = row * tl.cdiv(n_vocabulary, 4)     # token v of row b is element b V' + v, V' a multiple of 4
    short_z_ptr += row * n_parts * LIST
    short_tokens_ptr += row * n_parts * LIST
    lengths_ptr += row * n_parts
    top, reach = tl.load(survey_ptr + row * 3), tl.load(survey_ptr + row * 3 + 1)
    tokens, parts = dealt(tl.arange(0, BLOCK), part, n_parts, GROUP), tl.arange(0, PARTS)
    z = tl.load(logits_ptr + row * stride + tokens, mask=tokens < n_vocabulary, other=float("-inf")).to(tl.float32)
    if CUT:
        stays = (tokens < n_vocabulary) & ((z == top) | (z - top >= reach))
        n = shortlist(z, tokens, stays, short_z_ptr + part * LIST, short_tokens_ptr + part * LIST)
        tl.store(lengths_ptr + part, n)
    else:
        scores = score(z, top, temperature)
        bits = random_bits(rng_ptr, site, first_quad + dealt(tl.arange(0, BLOCK // 4), part, n_parts, GROUP // 4))
        noisy = tl.where((scores >= lowest) & (tokens < n_vocabulary), scores + gumbel(bits), float("-inf"))
        tl.store(short_z_ptr + part, tl.max(noisy, axis=0))
        tl.store(short_tokens_ptr + part, first_of_the_best(noisy, tokens))
    if comes_last(counter_ptr + row, n_parts):
        if CUT:
            lengths = tl.load(lengths_ptr + parts, mask=parts < n_parts, other=0)
            lists = short_z_ptr, short_tokens_ptr, lengths, LIST, tl.max(lengths, axis=0)
            low = key_of(tl.maximum(reach, -1000.0 * temperature) / temperature) - 16   # a GPU's division is not exact
            mass = tl.load(survey_ptr + row * 3 + 2)
            token = draw(lists, top, temperature, low, mass, rng_ptr, site, first_quad, n_vocabulary, top_k, top_p,
                         lowest, PLACES)
        else:
            best = tl.load(short_z_ptr + parts, mask=parts < n_parts, other=float("-inf"))
            token = first_of_the_best(best, tl.load(short_tokens_ptr + parts, mask=parts < n_parts, other=0))
        tl.store(out_ptr + row, token.to(tl.int64))


def sample(logits, rng, *, temperature=1.0, top_k=None, top_p=None, min_p=None, site=0):
    """One token for each row, drawn from softmax(logits / temperature) among those that top_k, top_p and min_p keep.

    logits (B, V), rng (2,) int64 on the device or a NumPy array -> (B,) int64. temperature 0: the most likely token.
    """
    logits = logits if logits.stride(-1) == 1 else runtime.contiguous(logits)
    (B, V), out = logits.shape, runtime.empty((logits.shape[0],), torch.int64)
    block, greedy = (min(longest, max(GROUP, triton.next_power_of_2(V))) for longest in (BLOCK, GREEDY))
    if temperature == 0:
        greedy_kernel[(B,)](logits, logits.stride(0), out, V, BLOCK=greedy, num_warps=16)
        return out
    rng = rng if torch.is_tensor(rng) else runtime.from_numpy(rng, "int64")
    top_k, top_p, cut = float(min(top_k or V, V)), float(top_p or 1.0), (top_k or V) < V or (top_p or 1.0) < 1.0
    temperature = max(float(temperature), 1e-30)       # colder changes no draw, and float32 would take it for 0
    parts = triton.cdiv(V, block)
    tiles = {"GROUP": GROUP, "BLOCK": block, "PARTS": triton.next_power_of_2(parts), "num_warps": 8}
    survey, counted = runtime.empty((B, 3)), counters(B)
    survey_kernel[(B, parts)](logits, logits.stride(0), runtime.empty((B, parts, block // GROUP)),
                              runtime.empty((B, parts, 2)), counted, survey, V, temperature, top_k, top_p,
                              **tiles)
    shortlists = (runtime.empty((B, parts, block if cut else 1), dtype) for dtype in (torch.float32, torch.int32))
    sample_kernel[(B, parts)](logits, logits.stride(0), survey, *shortlists, runtime.empty((B, parts), torch.int32),
                              counted, rng, out, V, site, temperature, top_k, top_p,
                              math.log(min_p) if min_p else -2000.0, CUT=cut, LIST=block if cut else 1,
                              PLACES=max(PLACES, tiles["PARTS"]), **tiles)
    return out
