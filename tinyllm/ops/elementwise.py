"""Element-wise primitives: the arithmetic that everything else can be composed of.

Each pair reads as calculus: X_forward computes y = f(x) and keeps what the derivative needs; X_backward multiplies the
gradient that arrives, dout = dL/dy, by dy/dx (the chain rule). Two operands broadcast as in NumPy; the gradient comes
back at the broadcast shape and the tape sums it down to the operand's own (`unbroadcast` in reduce.py).
"""
import numpy as np
from numpy.polynomial import chebyshev
from math import erf as exact_erf, erfc as exact_erfc, exp as exact_exp, pi, sqrt


def add_forward(a, b):
    """out = a + b"""
    return a + b, None


def add_backward(dout, saved):
    """da = dout, db = dout"""
    return dout, dout


def sub_forward(a, b):
    """out = a - b"""
    return a - b, None


def sub_backward(dout, saved):
    """da = dout, db = -dout"""
    return dout, -dout


def mul_forward(a, b):
    """out = a * b"""
    return a * b, (a, b)


def mul_backward(dout, saved):
    """da = dout * b, db = dout * a: each factor's gradient is scaled by the other factor."""
    a, b = saved
    return dout * b, dout * a


def div_forward(a, b):
    """out = a / b"""
    out = a / b
    return out, (b, out)


def div_backward(dout, saved):
    """da = dout / b, db = -dout * a / b^2 = -da * out"""
    b, out = saved
    da = dout / b
    return da, -da * out


def pow_forward(a, b, *, needs=(True, True)):
    """out = a ** b"""
    out = a ** b
    return out, (a, b, out, needs)


def pow_backward(dout, saved):
    """da = dout * b * a^(b-1), db = dout * out * log(a) (0 where a <= 0, as b is then a whole number or out is 0)."""
    a, b, out, needs = saved
    da = db = None
    with np.errstate(divide="ignore", invalid="ignore"):
        if needs[0]:
            da = dout * np.where(b == 0, 0, b * a ** (b - 1))
        if needs[1]:
            db = dout * np.where(a > 0, out * np.log(a), 0)
    return da, db


def neg_forward(x):
    """out = -x"""
    return -x, None


def neg_backward(dout, saved):
    """dx = -dout"""
    return (-dout,)


def exp_forward(x):
    """out = e^x"""
    out = np.exp(x)
    return out, (out,)


def exp_backward(dout, saved):
    """dx = dout * e^x: the function is its own derivative."""
    (out,) = saved
    return (dout * out,)


def log_forward(x):
    """out = ln(x)"""
    return np.log(x), (x,)


def log_backward(dout, saved):
    """dx = dout / x"""
    (x,) = saved
    return (dout / x,)


def sqrt_forward(x):
    """out = sqrt(x)"""
    out = np.sqrt(x)
    return out, (out,)


def sqrt_backward(dout, saved):
    """dx = dout / (2 sqrt(x))"""
    (out,) = saved
    return (dout * 0.5 / out,)


def tanh_forward(x):
    """out = tanh(x)"""
    out = np.tanh(x)
    return out, (out,)


def tanh_backward(dout, saved):
    """dx = dout * (1 - tanh(x)^2)"""
    (out,) = saved
    return (dout * (1 - out * out),)


def sigmoid(x):
    """1 / (1 + e^-x), to full relative precision: where e^-x overflows, the result is rightly 0."""
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


def sigmoid_forward(x):
    """out = 1 / (1 + e^-x)"""
    out = sigmoid(x)
    return out, (out,)


def sigmoid_backward(dout, saved):
    """dx = dout * out * (1 - out)"""
    (out,) = saved
    return (dout * out * (1 - out),)


def relu_forward(x):
    """out = max(x, 0)"""
    return np.maximum(x, 0), (x,)


def relu_backward(dout, saved):
    """dx = dout where x > 0, else 0 (at 0 too, as everybody does)."""
    (x,) = saved
    return (dout * (x > 0),)


def maximum_forward(a, b):
    """out = max(a, b), element by element"""
    return np.maximum(a, b), (a, b)


def maximum_backward(dout, saved):
    """The larger operand gets the gradient; where both are equal, each gets half (the subgradient that torch uses)."""
    a, b = saved
    share = ((a > b) + 0.5 * (a == b)).astype(dout.dtype)
    return dout * share, dout * (1 - share)


def where_forward(condition, a, b):
    """out = a where condition holds, else b"""
    return np.where(condition, a, b), (condition,)


def where_backward(dout, saved):
    """Each side gets the gradient where it was chosen."""
    (condition,) = saved
    return None, np.where(condition, dout, 0), np.where(condition, 0, dout)


# erf: NumPy has none, and calling Python's math.erf element by element is a hundred times too slow.
#
# We fit polynomials to math.erf once, at import. Near zero erf is x times a smooth function of x^2. Further out
# erf(x) = 1 - e^(-x^2) erfcx(x), where erfcx decays so calmly (like 1/x) that a polynomial in t = 4/(4 + x) follows it.
# Chebyshev interpolation is within a whisker of the best polynomial of its degree (Trefethen 2019, theorem 16.1).

ERF_SPLIT, ERF_ONE = 1.0, 6.0       # series below 1; above 6 erf is 1 to within 2e-17, beyond float64


def _fit(function, low, high, degree):
    """Chebyshev coefficients of a scalar function on [low, high]."""
    middle, half = (low + high) / 2, (high - low) / 2
    return chebyshev.chebinterpolate(np.vectorize(lambda u: function(middle + half * u)), degree), middle, half


def _evaluate(fit, x):
    """The fitted polynomial at x, by Clenshaw's recurrence, in x's own precision."""
    coefficients, middle, half = fit
    u2 = (x - middle) * (2 / half)
    ahead = beyond = 0.0
    for c in coefficients[:0:-1].tolist():      # Python floats: a NumPy float64 would promote a float32 array
        ahead, beyond = c + u2 * ahead - beyond, ahead
    return float(coefficients[0]) + 0.5 * u2 * ahead - beyond


def _fit_erf(near_degree, far_degree):
    near = _fit(lambda s: exact_erf(sqrt(s)) / sqrt(s) if s > 0 else 2 / sqrt(pi), 0, ERF_SPLIT, near_degree)
    erfcx = lambda t: exact_exp((4 / t - 4) ** 2) * exact_erfc(4 / t - 4)
    return near, _fit(erfcx, 4 / (4 + ERF_ONE), 4 / (4 + ERF_SPLIT), far_degree)


ERF_FITS = {np.dtype(np.float32): _fit_erf(6, 8), np.dtype(np.float64): _fit_erf(12, 18)}


def erf(x):
    """erf(x) = 2/sqrt(pi) * integral of e^(-t^2) from 0 to x, to about 1e-7 in float32 and 2e-15 in float64."""
    if x.dtype == np.float16:           # in its own precision every step would round
        return erf(x.astype(np.float32)).astype(np.float16)
    near, far = ERF_FITS[x.dtype]
    size = np.minimum(np.abs(x), ERF_ONE)
    tail = 1 - np.exp(-size * size) * _evaluate(far, 4 / (4 + size))
    small = np.minimum(size, ERF_SPLIT)
    return np.where(size < ERF_SPLIT, x * _evaluate(near, small * small), np.copysign(tail, x))


def erf_forward(x):
    """out = erf(x)"""
    return erf(x), (x,)


def erf_backward(dout, saved):
    """dx = dout * 2/sqrt(pi) * e^(-x^2)"""
    (x,) = saved
    return (dout * (2 / sqrt(pi)) * np.exp(-x * x),)
