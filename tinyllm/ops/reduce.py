"""Reductions, and the reverse of broadcasting."""
import numpy as np


def unbroadcast(grad, shape):
    """Sum a gradient down to the shape that its operand had before broadcasting.

    Broadcasting copies a value along new or length-1 axes; a value used many times gets the sum of the gradients of its
    uses. So we sum over exactly the axes that broadcasting stretched: (B, T, C) -> (C,), or (B, T) -> (B, 1).
    """
    extra = grad.ndim - len(shape)
    grad = grad.sum(axis=tuple(range(extra)))
    stretched = tuple(i for i, n in enumerate(shape) if n == 1 and grad.shape[i] != 1)
    return np.asarray(grad.sum(axis=stretched, keepdims=True))


def _spread(grad, shape, axis, keepdims):
    """Put reduced axes back with length 1, then repeat along them: the gradient of a sum."""
    if axis is not None and not keepdims:
        grad = np.expand_dims(grad, axis)
    return np.broadcast_to(grad, shape)


def sum_forward(x, *, axis=None, keepdims=False):
    """out = sum of x over `axis` (an integer, a tuple, or None for all)."""
    return x.sum(axis=axis, keepdims=keepdims), (x.shape, axis, keepdims)


def sum_backward(dout, saved):
    """Every summand has derivative 1: dx = dout, repeated."""
    shape, axis, keepdims = saved
    return (_spread(dout, shape, axis, keepdims),)


def mean_forward(x, *, axis=None, keepdims=False):
    """out = mean of x over `axis`; the mean of nothing is NaN, with NumPy's warning."""
    out = x.mean(axis=axis, keepdims=keepdims)
    return out, (x.shape, axis, keepdims, x.size // max(1, out.size))


def mean_backward(dout, saved):
    """dx = dout / n, repeated, for a mean over n elements."""
    shape, axis, keepdims, n = saved
    return (_spread(dout, shape, axis, keepdims) / max(1, n),)


def max_forward(x, *, axis=None, keepdims=False):
    """out = maximum of x over `axis`"""
    out = x.max(axis=axis, keepdims=keepdims)
    return out, (x, out, axis, keepdims)


def max_backward(dout, saved):
    """The largest element gets the gradient; equal ones share it evenly (as torch's amax does)."""
    x, out, axis, keepdims = saved
    winners = x == _spread(out, x.shape, axis, keepdims)
    shares = winners / winners.sum(axis=axis, keepdims=True)
    return (_spread(dout, x.shape, axis, keepdims) * shares.astype(x.dtype),)
