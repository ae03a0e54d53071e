"""The linear layer, y = x W^T + b, alone, with GELU on top, and two of them: a Transformer spends most time here.

Weights are stored (out_features, in_features), as torch stores them: each row holds one output's weights.
"""
import numpy as np

from . import memory
from .activation import gelu_chunk
from .memory import add_into, row_chunks, rows
from .threads import in_parallel

FEW = 8             # rows of x; with more, one product for all of them is faster
LARGE = 65_536      # weights; with fewer, one call takes less time than preparing several
PIECE = 196_608     # weights, that a core's cache holds


def linear_forward(x, weight, bias=None, *, needs=(True, True, True)):
    """out = x W^T + b, as one matrix product over all rows.

    x (..., I), weight (O, I), bias (O,) or None -> (..., O)
    """
    out = memory.empty(x.shape[:-1] + weight.shape[:1], x.dtype)    # (..., O)
    if len(rows(x)) <= FEW and weight.size >= LARGE and by_dot(weight):
        multiply_few(rows(x), weight, rows(out))
    else:
        np.matmul(rows(x), weight.T, out=rows(out))
    if bias is not None:
        out += bias
    return out, (x, weight, bias is not None, needs)


def multiply_few(x, weight, out):
    """out = x W^T for the few rows of x that a step of writing has, so that time is what it takes to read the weights.

    x (N, I), weight (O, I), out (N, O)

    One row: np.vecdot, BLAS's dot product for each row of the weights, reads GPT-2's head at 25 GB/s on one core of an
    AMD EPYC, BLAS's product of a matrix and a vector at 10. A second core helps with large matrices only: waking it
    takes as long as reading half a million weights. (On a newer EPYC, Zen 5, one core reads at 32 and 28, and BLAS with
    its own two threads, which need no waking, at 40.)

    More rows, as of several texts or beams: BLAS's product of two matrices first copies all weights into an order of
    its own, so that two rows take 2.5 times as long as one. In pieces that stay in the cache while one row of x after
    the other meets them, a token of GPT-2 takes 0.5 times as long for two texts, 0.7 for four and 0.95 for eight.

    BLAS likes it the other way round, rows of weights stored as columns, as in GPT-2's published files: with its own
    two threads, which are awake still from the last product, it reads a block's four matrices at 24 to 32 GB/s there,
    with one at 18 to 25. (A copy of the head, laid out like that, came to 22.)
    """
    if len(x) == 1:     # a weight takes about a third of an element operation (threads.py)
        in_parallel(lambda part: np.vecdot(weight[part], x[0], out=out[0, part]), len(weight), weight.size // 3)
        return

    def work(part):
        for piece in row_chunks(weight, part, PIECE):
            multiply_cached(x, weight[piece], out[:, piece])

    in_parallel(work, len(weight), weight.size * (2 + len(x)) // 6)


def multiply_cached(x, weight, out):
    """out = x W^T for weights that the cache holds: BLAS's product of a matrix and a vector is the fastest there.

    (np.vecdot takes 1.1 times as long, and keeps Python's lock where the weights have 500 rows or fewer.)
    """
    if len(x) > FEW:
        np.matmul(x, weight.T, out=out)
        return
    for row, result in zip(x, out):
        np.dot(weight, row, out=result)


def by_dot(weight):
    """Whether a row of weights, which makes one output, is stored as a row."""
    return weight.strides[1] == weight.itemsize


def linear_backward(dout, saved, into=(None, None, None)):
    """dx = dout W,  dW = dout^T x,  db = sum of dout's rows.

    From out_no = sum_i x_ni W_oi + b_o: x_ni meets every W_oi, so dx_ni = sum_o dout_no W_oi; W_oi meets every row, so
    dW_oi = sum_n dout_no x_ni; b_o is added to every row.

    into: for each argument an array to which its gradient shall be added, IN PLACE, or None; for x always None.
    """
    x, weight, has_bias, needs = saved
    dout, x_rows = rows(dout), rows(x)
    dx = dweight = dbias = None
    if needs[0]:
        dx = memory.empty(x.shape, x.dtype)
        np.matmul(dout, weight, out=rows(dx))           # (N, O) @ (O, I) -> (N, I)
    if needs[1]:
        dweight = add_into(into[1], np.matmul(dout.T, x_rows))      # (O, N) @ (N, I) -> (O, I)
    if has_bias and needs[2]:
        dbias = add_into(into[2], column_sums(dout))
    return dx, dweight, dbias


def column_sums(x):
    """(N, C) -> (C,), as a product with a row of ones: BLAS sums 3 to 5 times faster than x.sum(axis=0)."""
    return np.ones(len(x), x.dtype) @ x


def linear_gelu_forward(x, weight, bias=None, *, needs=(True, True, True)):
    """out = gelu(x W^T + b), the tanh form of GELU (activation.py); shapes as in linear_forward.

    The slope gelu'(u) is computed here, while each chunk of u = x W^T + b is in the cache and its tanh at hand; u
    itself is then not needed again, and the backward pass is one multiplication.
    """
    out, (*_, has_bias, _) = linear_forward(x, weight, bias)
    slope = memory.empty(out.shape, out.dtype) if any(needs) else None
    u = rows(out)

    def activate(part):
        for r in row_chunks(u, part):
            gelu_chunk(u[r], out=u[r], slope=None if slope is None else rows(slope)[r])

    in_parallel(activate, len(u), 14 * u.size)
    return out, (x, weight, has_bias, needs, slope)


def linear_gelu_backward(dout, saved, into=(None, None, None)):
    """du = dout * gelu'(u), and from there as in linear_backward."""
    *linear_saved, slope = saved
    du = memory.empty(dout.shape, dout.dtype)
    in_parallel(lambda r: np.multiply(rows(dout)[r], rows(slope)[r], out=rows(du)[r]), len(rows(du)), du.size)
    return linear_backward(du, linear_saved, into)


def mlp_forward(x, weight1, bias1, weight2, bias2, *, needs=(True,) * 5):
    """out = gelu(x W1^T + b1) W2^T + b2, the tanh form of GELU: a Transformer's second half.

    x (..., C), weight1 (H, C), bias1 (H,) or None, weight2 (O, H), bias2 (O,) or None -> (..., O)
    """
    hidden, saved1 = linear_gelu_forward(x, weight1, bias1, needs=needs[:3])
    out, saved2 = linear_forward(hidden, weight2, bias2, needs=(any(needs[:3]), *needs[3:]))
    return out, (saved1, saved2)


def mlp_backward(dout, saved, into=(None,) * 5):
    """Back through the second layer, then through the first; into: as in linear_backward."""
    saved1, saved2 = saved
    dhidden, dweight2, dbias2 = linear_backward(dout, saved2, (None, *into[3:]))
    first = (None, None, None) if dhidden is None else linear_gelu_backward(dhidden, saved1, into[:3])
    return *first, dweight2, dbias2
