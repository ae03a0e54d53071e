"""The linear layer with weights of one byte each: for writing, not for training, so there is no backward pass.

A row of 8-bit integers and one scale stand for a row of weights, W_oi = scale_o w_oi (int8.py makes them), and

    out_no = sum_i x_ni W_oi + b_o = scale_o (sum_i x_ni w_oi) + b_o

so the scales wait until the sums are there. No BLAS multiplies bytes: NumPy widens them first. Done in pieces that are
still in the cache when they are multiplied, main memory is read at a byte per weight, and no large matrix of floats
comes into being. On one core that saves memory, not time: to widen a weight and multiply it takes about as long as to
read it as a float. But two cores widen twice as fast, while they share the memory. examples/benchmark_cpu.py has the
figures, and what was tried.
"""
import numpy as np

from . import memory
from .linear import multiply_cached
from .memory import row_chunks, rows
from .threads import in_parallel

PIECE = 524_288     # weights, 2 MB once widened; with smaller pieces a token takes up to 1.4 times as long


def linear_int8(x, weight, scale, bias=None):
    """out = (x w^T) scale + b

    x (..., I), weight (O, I) int8, scale (O,) float32, bias (O,) or None -> (..., O)
    """
    if x.dtype == np.float16:       # the sums wait for a scale, and would pass its largest number
        return linear_int8(x.astype(np.float32), weight, scale, bias).astype(x.dtype)
    out = memory.empty(x.shape[:-1] + weight.shape[:1], x.dtype)        # (..., O)

    def work(part):
        pieces = row_chunks(weight, part, PIECE)
        wide = memory.empty(weight[pieces[0]].shape if pieces else (0,), x.dtype)
        for piece in pieces:
            floats = wide[:piece.stop - piece.start]
            np.copyto(floats, weight[piece])
            multiply_cached(rows(x), floats, rows(out)[:, piece])

    in_parallel(work, len(weight), weight.size * (3 + len(rows(x))) // 8)
    out *= scale
    if bias is not None:
        out += bias
    return out
