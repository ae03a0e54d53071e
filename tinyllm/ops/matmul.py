"""Matrix product, over any leading batch dimensions."""
import numpy as np


def matmul_forward(a, b, *, needs=(True, True)):
    """out = a @ b: (..., M, K) @ (..., K, N) -> (..., M, N); batch dimensions broadcast; a vector works as in NumPy."""
    return np.matmul(a, b), (a, b, needs)


def matmul_backward(dout, saved):
    """da = dout @ b^T, db = a^T @ dout.

    out_mn = sum_k a_mk b_kn, so dL/da_mk = sum_n dout_mn b_kn: the product whose shapes fit is the right one. A vector
    is treated as the matrix that NumPy makes of it (a row on the left, a column on the right).
    """
    a, b, needs = saved
    a2, b2 = (a[None] if a.ndim == 1 else a), (b[:, None] if b.ndim == 1 else b)
    if a.ndim == 1:
        dout = np.expand_dims(dout, -2 if b.ndim > 1 else -1)
    if b.ndim == 1:
        dout = np.expand_dims(dout, -1)
    da = db = None
    if needs[0]:
        da = np.matmul(dout, b2.swapaxes(-1, -2))
        da = da.squeeze(-2) if a.ndim == 1 else da
    if needs[1]:
        db = np.matmul(a2.swapaxes(-1, -2), dout)
        db = db.squeeze(-1) if b.ndim == 1 else db
    return da, db
