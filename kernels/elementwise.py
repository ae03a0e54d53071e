"""Element-wise operations, one number at a time.

    out = a + b                                   (twin: tinyllm/ops/elementwise.py)

The first kernel to read. A *program* is one run of a kernel's body; the *grid* says how many run. Here program i
adds BLOCK neighbouring numbers, the last program fewer, and a mask keeps its overhang out of foreign memory.

    a_ptr, b_ptr    flat arrays; one of them may be shorter and then starts over as often as needed
    out_ptr         (n,)
    grid            (ceil(n / BLOCK),)
"""

import torch
import triton
import triton.language as tl

from . import runtime

BLOCK = 4096  # 8 warps of 32 threads with 16 numbers each


@triton.jit
def add_kernel(a_ptr, b_ptr, out_ptr, n, a_period, b_period, BLOCK: tl.constexpr):
    # 64 bits, because an array may hold more than 2^31 numbers
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    no_overhang = offsets < n
    a_offsets = offsets
    b_offsets = offsets
    if a_period is not None:  # None is known at compile time: arrays of equal shape pay for no division
        a_offsets = offsets % a_period
    if b_period is not None:
        b_offsets = offsets % b_period
    a = tl.load(a_ptr + a_offsets, mask=no_overhang)
    b = tl.load(b_ptr + b_offsets, mask=no_overhang)
    tl.store(out_ptr + offsets, a + b, mask=no_overhang)


def add_forward(a, b):
    """out = a + b, broadcast as NumPy does: a and b of any shapes that fit -> (out, saved).

    Raises RuntimeError where the shapes do not fit.
    """
    shape = torch.broadcast_shapes(a.shape, b.shape)
    out = runtime.empty(shape, a.dtype)
    a, a_period = _repeating(a, shape)
    b, b_period = _repeating(b, shape)
    grid = (triton.cdiv(out.numel(), BLOCK),)
    add_kernel[grid](a, b, out, out.numel(), a_period, b_period, BLOCK=BLOCK, num_warps=8)
    return out, ()


def add_backward(dout, saved):
    """da = db = dout, in the shape of out: `unbroadcast` sums them to the shapes of a and b where those differ."""
    return dout, dout


def _repeating(tensor, shape):
    """How `tensor`, broadcast to `shape`, is read off flat memory: the array, and the length after which it repeats.

    A bias (C,) or a position embedding (T, C) lacks leading axes only, so it simply starts over. Any other
    broadcast, as of (B, 1, C), is spelled out in a copy first.
    """
    own = tuple(tensor.shape)
    while own and own[0] == 1:
        own = own[1:]
    if own != tuple(shape[len(shape) - len(own):]):
        return runtime.contiguous(tensor.expand(shape)), None
    tensor = runtime.contiguous(tensor)
    return tensor, (None if tensor.shape == shape else tensor.numel())
