"""Softmax and its logarithm, over the last axis."""
import numpy as np


def softmax_forward(x):
    """out_i = e^(x_i) / sum_j e^(x_j) over the last axis; a row of -inf only (nothing allowed) gives zeros, never NaN.

    x (..., C) -> (..., C). Subtracting the row's maximum changes nothing in the quotient and keeps e^x finite.
    """
    top = x.max(axis=-1, keepdims=True, initial=-np.inf)
    out = np.exp(x - np.where(np.isneginf(top), 0, top))
    total = out.sum(axis=-1, keepdims=True)
    out /= np.where(total == 0, 1, total)
    return out, (out,)


def softmax_backward(dout, saved):
    """dx = out * (dout - sum(dout * out)).

    d out_i / d x_j = out_i (1[i = j] - out_j): raising one logit raises its own share and takes from all others.
    """
    (out,) = saved
    return (out * (dout - np.vecdot(dout, out)[..., None]),)


def log_softmax_forward(x):
    """out = x - log(sum_j e^(x_j)) over the last axis, without ever forming a probability that could round to 0.

    x (..., C) -> (..., C); a row of -inf only stays -inf.
    """
    top = x.max(axis=-1, keepdims=True, initial=-np.inf)
    shifted = x - np.where(np.isneginf(top), 0, top)
    total = np.exp(shifted).sum(axis=-1, keepdims=True)
    out = shifted - np.log(np.where(total == 0, 1, total))
    return out, (out,)


def log_softmax_backward(dout, saved):
    """dx = dout - softmax(x) * sum(dout)"""
    (out,) = saved
    return (dout - np.exp(out) * dout.sum(axis=-1, keepdims=True),)
