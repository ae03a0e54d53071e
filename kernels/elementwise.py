"""Element-wise primitives: the functions that map.py's kernel applies, each above its chain rule.

Twin of tinyllm/ops/elementwise.py, which derives the formulas: a forward function, its slope times the gradient that
arrives, and the pair that the tape calls. Operands broadcast; the tape sums the gradients back (reduce.py).
"""

import triton
import triton.language as tl

from .map import map_


@triton.jit
def add(a, b):
    return a + b


def add_forward(a, b):
    """out = a + b"""
    return map_(add, a, b), None


def add_backward(dout, saved):
    """da = dout, db = dout"""
    return dout, dout


@triton.jit
def sub(a, b):
    return a - b


def sub_forward(a, b):
    """out = a - b"""
    return map_(sub, a, b), None


def sub_backward(dout, saved):
    """da = dout, db = -dout"""
    return dout, map_(neg, dout)


@triton.jit
def mul(a, b):
    return a * b


@triton.jit
def mul_slopes(dout, a, b):
    return dout * b, dout * a


def mul_forward(a, b):
    """out = a * b"""
    return map_(mul, a, b), (a, b)


def mul_backward(dout, saved):
    """da = dout * b, db = dout * a"""
    return map_(mul_slopes, dout, *saved, n_outputs=2)


@triton.jit
def div(a, b):
    return a / b


@triton.jit
def div_slopes(dout, b, out):
    da = dout / b
    return da, -da * out


def div_forward(a, b):
    """out = a / b"""
    out = map_(div, a, b)
    return out, (b, out)


def div_backward(dout, saved):
    """da = dout / b, db = -da * out"""
    return map_(div_slopes, dout, *saved, n_outputs=2)


@triton.jit
def power(a, b):
    """|a|^b = e^(b ln |a|), with the sign of an odd power of a negative number, and NaN for its fractional powers."""
    size = tl.where(b == 2.0, a * a, tl.exp(b * tl.log(tl.where(a == 0.0, 1.0, tl.abs(a)))))
    size = tl.where(a == 0.0, tl.where(b > 0.0, 0.0, float("inf")), size)
    size = tl.where(b == 0.0, 1.0, size)
    odd = tl.floor(b * 0.5) * 2.0 != b
    signed = tl.where(tl.floor(b) != b, float("nan"), tl.where(odd, -size, size))
    return tl.where(a < 0.0, signed, size)


@triton.jit
def power_slope(dout, a, b):
    return tl.where(b == 0.0, 0.0, dout * b * power(a, b - 1.0))


@triton.jit
def power_slope_of_exponent(dout, a, out):
    return tl.where(a > 0.0, dout * out * tl.log(tl.where(a > 0.0, a, 1.0)), 0.0)


def pow_forward(a, b, *, needs=(True, True)):
    """out = a ** b"""
    out = map_(power, a, b)
    return out, (a, b, out, needs)


def pow_backward(dout, saved):
    """da = dout * b * a^(b-1), db = dout * out * ln(a), 0 where a <= 0"""
    a, b, out, needs = saved
    return (map_(power_slope, dout, a, b) if needs[0] else None,
            map_(power_slope_of_exponent, dout, a, out) if needs[1] else None)


@triton.jit
def neg(x):
    return -x


def neg_forward(x):
    """out = -x"""
    return map_(neg, x), None


def neg_backward(dout, saved):
    """dx = -dout"""
    return (map_(neg, dout),)


@triton.jit
def exp(x):
    return tl.exp(x)


def exp_forward(x):
    """out = e^x"""
    out = map_(exp, x)
    return out, (out,)


def exp_backward(dout, saved):
    """dx = dout * e^x"""
    return (map_(mul, dout, *saved),)


@triton.jit
def log(x):
    return tl.log(x)


def log_forward(x):
    """out = ln(x)"""
    return map_(log, x), (x,)


def log_backward(dout, saved):
    """dx = dout / x"""
    return (map_(div, dout, *saved),)


@triton.jit
def sqrt(x):
    return tl.sqrt(x)


@triton.jit
def sqrt_slope(dout, out):
    return dout * 0.5 / out


def sqrt_forward(x):
    """out = sqrt(x)"""
    out = map_(sqrt, x)
    return out, (out,)


def sqrt_backward(dout, saved):
    """dx = dout / (2 sqrt(x))"""
    return (map_(sqrt_slope, dout, *saved),)


@triton.jit
def tanh(x):
    """(1 - e^-2x) / (1 + e^-2x); near 0, where the difference would cancel, the series."""
    e = tl.exp(-2.0 * tl.abs(x))
    size = (1.0 - e) / (1.0 + e)
    square = x * x
    series = x * (1.0 - square * (1.0 / 3.0 - square * (2.0 / 15.0 - square * (17.0 / 315.0))))
    return tl.where(tl.abs(x) < 0.2, series, tl.where(x < 0.0, -size, size))


@triton.jit
def tanh_slope(dout, out):
    return dout * (1.0 - out * out)


def tanh_forward(x):
    """out = tanh(x)"""
    out = map_(tanh, x)
    return out, (out,)


def tanh_backward(dout, saved):
    """dx = dout * (1 - tanh(x)^2)"""
    return (map_(tanh_slope, dout, *saved),)


@triton.jit
def sigmoid(x):
    """1 / (1 + e^-x); exp sees no positive number, so it cannot overflow."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x < 0.0, e, 1.0) / (1.0 + e)


@triton.jit
def sigmoid_slope(dout, out):
    return dout * out * (1.0 - out)


def sigmoid_forward(x):
    """out = 1 / (1 + e^-x)"""
    out = map_(sigmoid, x)
    return out, (out,)


def sigmoid_backward(dout, saved):
    """dx = dout * out * (1 - out)"""
    return (map_(sigmoid_slope, dout, *saved),)


@triton.jit
def relu(x):
    return tl.maximum(x, 0.0)


@triton.jit
def relu_slope(dout, x):
    return tl.where(x > 0.0, dout, 0.0)


def relu_forward(x):
    """out = max(x, 0)"""
    return map_(relu, x), (x,)


def relu_backward(dout, saved):
    """dx = dout where x > 0, else 0"""
    return (map_(relu_slope, dout, *saved),)


@triton.jit
def maximum(a, b):
    return tl.maximum(a, b)


@triton.jit
def maximum_slopes(dout, a, b):
    share = tl.where(a > b, 1.0, tl.where(a == b, 0.5, 0.0))
    return dout * share, dout * (1.0 - share)


def maximum_forward(a, b):
    """out = max(a, b)"""
    return map_(maximum, a, b), (a, b)


def maximum_backward(dout, saved):
    """The larger operand gets the gradient; equal ones get half each."""
    return map_(maximum_slopes, dout, *saved, n_outputs=2)


@triton.jit
def where(condition, a, b):
    return tl.where(condition != 0.0, a, b)


@triton.jit
def where_slopes(dout, condition):
    return tl.where(condition != 0.0, dout, 0.0), tl.where(condition != 0.0, 0.0, dout)


def where_forward(condition, a, b):
    """out = a where condition holds, else b"""
    return map_(where, condition, a, b), (condition,)


def where_backward(dout, saved):
    """Each side gets the gradient where it was chosen."""
    return None, *map_(where_slopes, dout, *saved, n_outputs=2)


@triton.jit
def erf(x):
    return tl.erf(x)


@triton.jit
def erf_slope(dout, x):
    return dout * 1.1283791670955126 * tl.exp(-x * x)       # 2 / sqrt(pi)


def erf_forward(x):
    """out = erf(x)"""
    return map_(erf, x), (x,)


def erf_backward(dout, saved):
    """dx = dout * 2/sqrt(pi) * e^(-x^2)"""
    return (map_(erf_slope, dout, *saved),)
