"""Rotary position embedding: turn each pair of features by an angle that grows with the position.

    (a, b) -> (a cos - b sin, a sin + b cos)          (twin: tinyllm/ops/rope.py; Su et al. 2021, arXiv:2104.09864)

A rotation's gradient turns back by the same angle, so the backward pass is the same kernel with -sin.

    x_ptr, out_ptr      (B, T, H, D); out row-major, x with any strides of B, T and H
    cos_ptr, sin_ptr    (T, D/2) float32, or longer
    position_ptr        (1,) or None: the row of cos and sin that is the first token's
    grid                (B T,): a program turns all heads of one token
    INTERLEAVED         pair i is features (2i, 2i + 1) instead of (i, i + D/2)
"""

import triton
import triton.language as tl

from . import runtime


@triton.jit
def rope_kernel(x_ptr, cos_ptr, sin_ptr, position_ptr, out_ptr, T, H, half, x_strides, direction,
                INTERLEAVED: tl.constexpr, BLOCK_HEADS: tl.constexpr, BLOCK_HALF: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    position = token % T
    angles = position
    if position_ptr is not None:
        angles += tl.load(position_ptr)
    pairs = tl.arange(0, BLOCK_HALF)
    cos = tl.load(cos_ptr + angles * half + pairs, mask=pairs < half, other=0.0).to(tl.float32)[None, :]
    sin = tl.load(sin_ptr + angles * half + pairs, mask=pairs < half, other=0.0).to(tl.float32)[None, :] * direction
    first = pairs * 2 if INTERLEAVED else pairs
    apart = 1 if INTERLEAVED else half
    x_ptr += token // T * x_strides[0] + position * x_strides[1]
    for head in range(0, H, BLOCK_HEADS):
        heads = (head + tl.arange(0, BLOCK_HEADS)).to(tl.int64)
        no_overhang = (heads < H)[:, None] & (pairs < half)[None, :]
        places = heads[:, None] * x_strides[2] + first[None, :]
        a = tl.load(x_ptr + places, mask=no_overhang, other=0.0).to(tl.float32)
        b = tl.load(x_ptr + places + apart, mask=no_overhang, other=0.0).to(tl.float32)
        places = (token * H + heads)[:, None] * 2 * half + first[None, :]
        tl.store(out_ptr + places, a * cos - b * sin, mask=no_overhang)
        tl.store(out_ptr + places + apart, a * sin + b * cos, mask=no_overhang)


def rope_forward(x, cos, sin, position=None, *, interleaved=False):
    """Rotate the feature pairs of each head: x (B, T, H, D), cos and sin (T, D/2) -> (B, T, H, D).

    position (1,) integer, or None: then cos and sin are longer, and hold the first token's angles in this row.
    """
    cos, sin = runtime.contiguous(cos), runtime.contiguous(sin)
    return _turn(x, cos, sin, position, interleaved, 1.0), (cos, sin, position, interleaved)


def rope_backward(dout, saved):
    """Turn back by the same angle."""
    return _turn(dout, *saved, -1.0), None, None, None


def _turn(x, cos, sin, position, interleaved, direction):
    x = x if x.stride(-1) == 1 else runtime.contiguous(x)
    (B, T, H, D), out = x.shape, runtime.empty(x.shape, x.dtype)
    if x.numel():
        block_half = triton.next_power_of_2(D // 2)
        rope_kernel[(B * T,)](x, cos, sin, position, out, T, H, D // 2, x.stride()[:3], direction,
                              INTERLEAVED=interleaved,
                              BLOCK_HEADS=min(triton.next_power_of_2(H), max(1, 2048 // block_half)),
                              BLOCK_HALF=block_half)
    return out
