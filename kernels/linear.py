"""Linear layers: y = x W^T + b, alone, with GELU, and two of them with GELU between.

    out = x W^T + b                  (twin: tinyllm/ops/linear.py)
    dx  = dout W
    dW  = dout^T x
    db  = column sums of dout

    linear_gelu:  pre = x W^T + b,  out = gelu(pre),  dpre = dout gelu'(pre), then as above with dpre for dout
    mlp:          out = gelu(x W1^T + b1) W2^T + b2

The three products of a layer differ only in which matrices are transposed; product.py has the kernel for each GPU.
Fused: bias and GELU are the first product's epilogue, and in mlp the slope of GELU is that of dout W2, so that neither
makes a pass over memory of its own. Gradients of weights and biases are float32, whatever the weights are.
"""

from . import runtime
from .activation import gelu_tanh_backward
from .fused_linear import BATCH, WIDE, fused_linear
from .map import map_
from .product import product, weight_gradient
from .reduce import sum_rows


def linear_forward(x, weight, bias=None, *, needs=(True, True, True)):
    """out = x W^T + b: x (..., I), weight (O, I), bias (O,) or None -> (out (..., O), saved).

    `needs` says which gradients backward will compute. Without any, a few rows go to where they are at home.
    """
    rows = runtime.as_rows(x)
    if not any(needs) and (len(rows) == 1 or len(rows) <= BATCH and len(weight) <= WIDE):
        return fused_linear(x, weight, None, bias), None
    out = runtime.empty((*x.shape[:-1], weight.shape[0]), x.dtype)
    _multiply(rows, weight.T, out, bias)
    return out, (rows, weight, bias is not None, needs, x.shape)


def linear_backward(dout, saved, into=(None, None, None)):
    """dout (..., O) -> (dx (..., I), dweight (O, I), dbias (O,)), None for what is not needed.

    into: for each argument an array to which its gradient shall be added, IN PLACE, or None; for x always None.
    """
    x, weight, has_bias, needs, shape = saved
    dout = runtime.as_rows(dout)
    dx = dweight = dbias = None
    if needs[0]:
        dx = _multiply(dout, weight, runtime.empty(shape, x.dtype))
    if needs[1]:
        dweight = weight_gradient(dout, x, into=into[1])
    if has_bias and needs[2]:
        dbias = sum_rows(dout, into[2])
    return dx, dweight, dbias


def linear_gelu_forward(x, weight, bias=None, *, needs=(True, True, True)):
    """out = gelu(x W^T + b), the tanh form: shapes as in linear_forward.

    The product's epilogue writes down x W^T + b as well, for the backward pass.
    """
    rows, out = runtime.as_rows(x), runtime.empty((*x.shape[:-1], weight.shape[0]), x.dtype)
    pre = runtime.empty(out.shape, x.dtype)
    _multiply(rows, weight.T, out, bias, pre, "gelu")
    return out, (pre, (rows, weight, bias is not None, needs, x.shape))


def linear_gelu_backward(dout, saved, into=(None, None, None)):
    """dout (..., O) -> (dx (..., I), dweight (O, I), dbias (O,)), None for what is not needed."""
    pre, saved_linear = saved
    return linear_backward(map_(gelu_tanh_backward, dout, pre), saved_linear, into)


def mlp_forward(x, weight1, bias1, weight2, bias2, *, needs=(True,) * 5):
    """out = gelu(x W1^T + b1) W2^T + b2: x (..., C), weight1 (H, C), weight2 (O, H), biases may be None -> (..., O)."""
    hidden, (pre, saved1) = linear_gelu_forward(x, weight1, bias1, needs=needs[:3])
    out, saved2 = linear_forward(hidden, weight2, bias2, needs=(any(needs[:3]), *needs[3:]))
    return out, (pre, saved1, saved2)


def mlp_backward(dout, saved, into=(None,) * 5):
    """The two layers' backward passes; the slope of GELU is applied to dout W2 while that is in registers."""
    pre, saved1, (hidden, weight2, has_bias2, (needs_hidden, *needs2), shape) = saved
    saved2 = hidden, weight2, has_bias2, (False, *needs2), shape
    _, dweight2, dbias2 = linear_backward(dout, saved2, (None, *into[3:]))
    if not needs_hidden:
        return None, None, None, dweight2, dbias2
    dpre = _multiply(runtime.as_rows(dout), weight2, runtime.empty(pre.shape, pre.dtype), None, pre, "gelu backward")
    return *linear_backward(dpre, saved1, into[:3]), dweight2, dbias2


def _multiply(rows, matrix, out, bias=None, pre=None, epilogue="none"):
    """out = epilogue(rows @ matrix + bias), out (and pre) with any number of leading axes. Returns out."""
    flat = lambda x: None if x is None else x.view(-1, x.shape[-1]) if x.numel() else x
    if out.numel():
        product(rows, matrix, flat(out), runtime.contiguous(bias), flat(pre), epilogue)
    return out
