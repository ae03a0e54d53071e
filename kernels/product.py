"""Which kernel multiplies two matrices: the choice between matmul.py and matmul_tma.py, and split-K.

linear.py and loss.py call these two functions. A weight gradient, dW = dout^T x, is a small matrix with a very long
inner axis (all tokens of the batch): for GPT-2's 768 x 768 weights that is 36 tiles of 128 x 128, a quarter of an
H100's multiprocessors. *Split-K* cuts the inner axis, multiplies the parts side by side, and adds them up in a second
launch, always in the same order. On Hopper the parts are added in memory at once (matmul_tma.py), unless the order
matters.
"""

import torch
import triton

from . import configs, matmul, matmul_tma, runtime
from .reduce import sum_rows

SHORTEST = 512      # rows of a part, below which adding the parts up costs more than it wins


def product(a, b, out, bias=None, pre=None, epilogue="none"):
    """out = a @ b, with the epilogues of matmul.py: a (M, K), b (K, N) of any strides, out and pre (M, N). Returns out.

    Sizes may be padded as matmul.py says.
    """
    if configs.has("matmul_tma", a.dtype) and matmul_tma.layout(a, b, out, pre):
        return matmul_tma.launch(a, b, out, bias, pre, epilogue)
    views = (None if x is None else x[None, None] for x in (a, b, out))
    matmul.launch(*views, bias, None if pre is None else pre[None, None], epilogue)
    return out


def weight_gradient(dout, x, n_outputs=None, into=None):
    """dW = dout^T x in float32: dout (rows, O), x (rows, I) -> (O, I), or its first n_outputs rows.

    into: an array (O, I) to which dW is added, IN PLACE, or None.
    """
    a, b, rows, n_outputs = dout.T, x, len(x), n_outputs or dout.shape[1]
    tma = configs.has("weight_gradient", x.dtype) and matmul_tma.layout(a, b, into) and x.shape[1] % 4 == 0
    if tma and not runtime.deterministic:
        out = runtime.empty((n_outputs, x.shape[1]), torch.float32).zero_() if into is None else into
        return matmul_tma.add_product(a, b, out)
    config = configs.lookup("matmul", x.dtype)
    tiles = triton.cdiv(a.shape[0], config["BLOCK_M"]) * triton.cdiv(b.shape[1], config["BLOCK_N"])
    parts = 1
    while (rows % (2 * parts * config["BLOCK_K"]) == 0 and rows // (2 * parts) >= SHORTEST
           and 2 * parts * tiles <= 2 * runtime.n_multiprocessors()):
        parts *= 2
    partial = runtime.empty((parts, n_outputs, b.shape[1]), torch.float32)
    matmul.launch(a.unflatten(1, (parts, -1)).transpose(0, 1)[None], b.unflatten(0, (parts, -1))[None], partial[None])
    return partial[0] if parts == 1 and into is None else sum_rows(partial, into)
