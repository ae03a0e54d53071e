"""Activation functions: GELU (both forms), SiLU, SwiGLU. relu, tanh and sigmoid are primitives (elementwise.py)."""
import numpy as np
from math import pi, sqrt

from . import memory
from .elementwise import erf, sigmoid
from .memory import row_chunks, rows

A = sqrt(2 / pi)        # of the tanh form; Hendrycks & Gimpel 2016, section 2
B = 0.044715


def gelu_chunk(x, out, slope=None):
    """out = gelu(x), tanh form, and its slope gelu'(x); `out` may be x itself.

    With z = A (x + B x^3) and s = (1 + tanh(z)) / 2 = 1 / (1 + e^(-2z)):

        gelu(x)  = x s
        gelu'(x) = s + x s (1 - s) 2 z',    z' = A (1 + 3 B x^2)

    as s' = 2 s (1 - s) z'. It is a chain of in-place steps, because NumPy makes one pass over memory per operation. Two
    choices matter: x * x * x and not x ** 3, which NumPy computes through pow: 80 ns an element instead of 1, three
    times the time of a step; and e^(-2z) instead of tanh, which takes twice as long on processors without AVX-512
    (the whole chain 3.4 instead of 4.6 ns an element). Where e^(-2z) overflows, s is rightly 0.
    """
    square = x * x
    s = square * (-2 * A * B)
    s -= 2 * A
    s *= x                              # -2z
    with np.errstate(over="ignore"):
        np.exp(s, out=s)
    s += 1
    np.divide(1, s, out=s)
    np.multiply(x, s, out=out)
    if slope is not None:
        square *= 6 * A * B
        square += 2 * A                 # 2 z'
        np.subtract(1, s, out=slope)
        slope *= out
        slope *= square
        slope += s


def gelu_exact_chunk(x, out, slope=None):
    """out = x P(x), P the normal distribution function; slope = P(x) + x p(x), p its density. `out` may be x itself."""
    cdf = 0.5 * (1 + erf(x * sqrt(0.5)))
    if slope is not None:
        np.multiply(x, np.exp(-0.5 * x * x), out=slope)
        slope *= 1 / sqrt(2 * pi)
        slope += cdf
    np.multiply(x, cdf, out=out)


def silu_chunk(x, out, slope=None):
    """out = x s(x), s the sigmoid; slope = s + x s (1 - s) = s + out (1 - s)."""
    s = sigmoid(x)
    np.multiply(x, s, out=out)
    if slope is not None:
        np.subtract(1, s, out=slope)
        slope *= out
        slope += s


def _forward(chunk, x, needs):
    """Apply a chunk function over x, taking the slope on the way while the chunk is in the cache."""
    flat = np.ascontiguousarray(x).reshape(1, -1) if x.ndim == 0 else rows(np.ascontiguousarray(x))
    out = memory.empty(x.shape, x.dtype)
    slope = memory.empty(x.shape, x.dtype) if needs[0] else None
    for r in row_chunks(flat):
        chunk(flat[r], out.reshape(flat.shape)[r], None if slope is None else slope.reshape(flat.shape)[r])
    return out, (slope,)


def gelu_forward(x, *, approximate="none", needs=(True,)):
    """out = gelu(x), any shape: exact (approximate="none", through erf) or the tanh form ("tanh").

    Source: Hendrycks & Gimpel 2016, "Gaussian error linear units". GPT-2 uses the tanh form, BERT the exact one.
    """
    return _forward(gelu_chunk if approximate == "tanh" else gelu_exact_chunk, x, needs)


def gelu_backward(dout, saved):
    """dx = dout * gelu'(x)"""
    (slope,) = saved
    return (dout * slope,)


def silu_forward(x, *, needs=(True,)):
    """out = x * sigmoid(x), any shape (Elfwing et al. 2017; "swish")."""
    return _forward(silu_chunk, x, needs)


def silu_backward(dout, saved):
    """dx = dout * silu'(x)"""
    (slope,) = saved
    return (dout * slope,)


def swiglu_forward(gate, x, *, needs=(True, True)):
    """out = silu(gate) * x, two arrays of one shape (Shazeer 2020, "GLU variants improve transformer", eq. 5)."""
    activated, (slope,) = silu_forward(gate, needs=(any(needs),))
    return activated * x, (activated, slope, x)


def swiglu_backward(dout, saved):
    """dgate = dout * x * silu'(gate), dx = dout * silu(gate)"""
    activated, slope, x = saved
    return dout * x * slope, dout * activated
