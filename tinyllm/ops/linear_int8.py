"""The linear layer with weights of one byte each: for writing, not for training, so there is no backward pass.

A row of 8-bit integers and one scale stand for a row of weights, W_oi = scale_o w_oi (int8.py makes them), and

    out_no = sum_i x_ni W_oi + b_o = scale_o (sum_i x_ni w_oi) + b_o

so the scales wait until the sums are there. No BLAS multiplies bytes: NumPy widens them first. Done in pieces that are
still in the cache when they are multiplied, main memory is read at a byte per weight, and no large matrix of floats
comes into being. On one core that saves memory, not time: to widen a weight takes about as long as to read it as a
float. But two cores widen twice as fast, while they share the memory. examples/benchmark_cpu.py has the figures, and
what was tried.
"""
from . import memory
from .linear import multiply
from .memory import rows
from .threads import in_parallel

PIECE = 524_288     # weights, 2 MB once widened; in smaller pieces, the calls take up to a third of the time


def linear_int8(x, weight, scale, bias=None):
    """out = (x w^T) scale + b

    x (..., I), weight (O, I) int8, scale (O,) float32, bias (O,) or None -> (..., O)
    """
    out = memory.empty(x.shape[:-1] + weight.shape[:1], x.dtype)        # (..., O)
    step = max(1, PIECE // max(1, weight.shape[1]))

    def work(part):
        for first in range(part.start, part.stop, step):
            r = slice(first, min(first + step, part.stop))
            multiply(rows(x), weight[r], rows(out)[:, r])

    in_parallel(work, len(weight), weight.size * len(rows(x)) // 2)
    out *= scale
    if bias is not None:
        out += bias
    return out
