"""Activation functions: GELU (both forms), SiLU, SwiGLU, element by element (map.py).

Twin of tinyllm/ops/activation.py. The NumPy path keeps the slope of the forward pass for the backward one; here the
input is kept and the slope computed again, as arithmetic is cheap beside a memory access.

    gelu(u)  = u P(u), P the normal distribution function; tanh form: u s,  s = (1 + tanh z) / 2 = 1 / (1 + e^-2z),
               z = sqrt(2/pi) (u + 0.044715 u^3)                          Hendrycks & Gimpel 2016, arXiv:1606.08415
    gelu'(u) = P(u) + u p(u);                tanh form: s + u s (1 - s) 2 z'

The tanh form is also the epilogue of a matrix product, whose tensor cores wait for it. So s is what costs least: a
power of 2, with -2 sqrt(2/pi) log2(e) = -2.3022 in its exponent, and a division.
"""

import triton
import triton.language as tl

from .elementwise import sigmoid
from .map import map_


@triton.jit
def one_plus_power(u):
    """1 + e^-2z; the power stops short of infinity."""
    return 1.0 + tl.exp2(tl.minimum(u * (-2.302208198 - 0.1029432397 * u * u), 126.0))


@triton.jit
def gelu_tanh(u):
    return u / one_plus_power(u)


@triton.jit
def gelu_tanh_slope(u):
    s = 1.0 / one_plus_power(u)
    return s + u * s * (1.0 - s) * (1.5957691216 + 0.2140644488 * u * u)       # 2 z' = 2 sqrt(2/pi) (1 + 0.134145 u^2)


@triton.jit
def gelu_exact(u):
    return u * 0.5 * (1.0 + tl.erf(u * 0.7071067811865476))


@triton.jit
def gelu_exact_slope(u):
    return 0.5 * (1.0 + tl.erf(u * 0.7071067811865476)) + u * 0.3989422804014327 * tl.exp(-0.5 * u * u)


@triton.jit
def gelu_tanh_backward(dout, u):
    return dout * gelu_tanh_slope(u)


@triton.jit
def gelu_exact_backward(dout, u):
    return dout * gelu_exact_slope(u)


def gelu_forward(x, *, approximate="none", needs=(True,)):
    """out = gelu(x), any shape: exact (approximate="none") or the tanh form ("tanh")."""
    return map_(gelu_tanh if approximate == "tanh" else gelu_exact, x), (x, approximate)


def gelu_backward(dout, saved):
    """dx = dout * gelu'(x)"""
    x, approximate = saved
    return (map_(gelu_tanh_backward if approximate == "tanh" else gelu_exact_backward, dout, x),)


@triton.jit
def silu(x):
    return x * sigmoid(x)


@triton.jit
def silu_slope(dout, x):
    s = sigmoid(x)
    return dout * (s + x * s * (1.0 - s))


def silu_forward(x, *, needs=(True,)):
    """out = x * sigmoid(x), any shape (Elfwing et al. 2017; "swish")."""
    return map_(silu, x), (x,)


def silu_backward(dout, saved):
    """dx = dout * silu'(x)"""
    return (map_(silu_slope, dout, *saved),)


@triton.jit
def swiglu(gate, x):
    return silu(gate) * x


@triton.jit
def swiglu_slopes(dout, gate, x):
    return silu_slope(dout * x, gate), dout * silu(gate)


def swiglu_forward(gate, x, *, needs=(True, True)):
    """out = silu(gate) * x, two arrays of one shape (Shazeer 2020, eq. 5)."""
    return map_(swiglu, gate, x), (gate, x)


def swiglu_backward(dout, saved):
    """dgate = dout * x * silu'(gate), dx = dout * silu(gate)"""
    return map_(swiglu_slopes, dout, *saved, n_outputs=2)
