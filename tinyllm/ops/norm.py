"""Normalisation over the last axis: LayerNorm, RMSNorm, and LayerNorm of a sum (the residual connection)."""
import numpy as np

from . import memory
from .linear import column_sums
from .memory import add_into, row_chunks, rows
from .threads import in_parallel


def layer_norm_forward(x, weight, bias=None, *, eps=1e-5):
    """out = xhat * weight + bias,  xhat = (x - mean) * rstd,  rstd = 1 / sqrt(var + eps).

    x (..., C), weight (C,), bias (C,) or None -> (..., C). Mean and (biased) variance are those of each row.
    Source: Ba et al. 2016, "Layer normalization".
    """
    C = x.shape[-1]
    x_rows, out = rows(x), memory.empty(x.shape, x.dtype)
    xhat, rstd = memory.empty(x_rows.shape, x.dtype), memory.empty(x_rows.shape[:1], x.dtype)
    ones = np.ones(C, x.dtype)

    def normalise(part):
        for r in row_chunks(x_rows, part):
            centred = xhat[r]
            np.subtract(x_rows[r], (x_rows[r] @ ones / C)[:, None], out=centred)   # BLAS: a third of the time of mean()
            variance = np.vecdot(centred, centred) / C
            rstd[r] = 1 / np.sqrt(variance + eps)
            centred *= rstd[r, None]
            y = rows(out)[r]
            np.multiply(centred, weight, out=y)
            if bias is not None:
                y += bias

    in_parallel(normalise, len(x_rows), 5 * x.size)
    return out, (xhat, rstd, weight, bias is not None)


def layer_norm_backward(dout, saved, into=(None, None, None)):
    """dx = rstd * (g - mean(g) - xhat * mean(g * xhat)) with g = dout * weight; dweight, dbias are column sums.

    into: arrays to which dweight and dbias are added, IN PLACE, where there are any (as in linear_backward).

    xhat depends on x three ways: directly (rstd * g), through the mean (every x_i moves it by 1/C, and it enters every
    xhat_j with -rstd: the term mean(g)), and through rstd (d rstd / d x_i = -rstd^2 xhat_i / C, met by g_j (x_j - mean)
    = g_j xhat_j / rstd: the term xhat * mean(g * xhat)).
    """
    xhat, rstd, weight, has_bias = saved
    C = xhat.shape[-1]
    dout_rows, dx = rows(dout), memory.empty(dout.shape, dout.dtype)
    ones, dweights = np.ones(C, dout.dtype), {}

    def backward(part):
        for r in row_chunks(dout_rows, part):
            normed, d, g = xhat[r], dout_rows[r], rows(dx)[r]
            dweights[r.start] = column_sums(d * normed)
            np.multiply(d, weight, out=g)
            mean_g = (g @ ones / C)[:, None]
            mean_g_xhat = (np.vecdot(g, normed) / C)[:, None]
            g -= mean_g
            g -= normed * mean_g_xhat
            g *= rstd[r, None]

    in_parallel(backward, len(dout_rows), 8 * dout.size)
    dweight = np.zeros(C, dout.dtype)
    for start in sorted(dweights):      # in order, whichever thread was first: float sums depend on it
        dweight += dweights[start]
    return dx, add_into(into[1], dweight), add_into(into[2], column_sums(dout_rows)) if has_bias else None


def add_layer_norm_forward(x, branch, weight, bias=None, *, eps=1e-5):
    """total = x + branch, out = layer_norm(total): the residual connection and the norm that follows it.

    x, branch (..., C) of one shape, weight (C,), bias (C,) or None -> total, out (..., C)
    """
    total = memory.empty(x.shape, x.dtype)
    np.add(x, branch, out=total)
    out, saved = layer_norm_forward(total, weight, bias, eps=eps)
    return (total, out), saved


def add_layer_norm_backward(dtotal, dout, saved, into=(None, None, None, None)):
    """The sum's gradient is what came along the residual stream plus what came through the norm;
    both summands get it.
    """
    if dout is None:
        return dtotal, dtotal, None, None
    dx, dweight, dbias = layer_norm_backward(dout, saved, (None, *into[2:]))
    if dtotal is not None:
        dx += dtotal
    return dx, dx, dweight, dbias


def rms_norm_forward(x, weight, *, eps=1e-6):
    """out = x * rstd * weight,  rstd = 1 / sqrt(mean(x^2) + eps): LayerNorm without the mean.

    x (..., C), weight (C,) -> (..., C). Source: Zhang & Sennrich 2019, eq. 4.
    """
    x_rows = rows(x)
    rstd = (1 / np.sqrt(np.vecdot(x_rows, x_rows) / x.shape[-1] + eps))[:, None]
    xhat = x_rows * rstd
    return (xhat * weight).reshape(x.shape), (xhat, rstd, weight)


def rms_norm_backward(dout, saved, into=(None, None)):
    """dx = rstd * (g - xhat * mean(g * xhat)) with g = dout * weight: layer_norm_backward without the mean's term."""
    xhat, rstd, weight = saved
    dout_rows = rows(dout)
    g = dout_rows * weight
    dx = rstd * (g - xhat * (np.vecdot(g, xhat) / xhat.shape[-1])[:, None])
    return dx.reshape(dout.shape), add_into(into[1], column_sums(dout_rows * xhat))
