"""A linear layer with all that stands around it in a Transformer's block: for writing, so there is no backward pass.

    out = residual + activation(scale (norm(x) w^T) + b)

A step of writing multiplies a row or two of x with each matrix, and a GPU has read the matrix before it has launched
the next kernel. So what comes before and after the product is done by the kernel that reads the matrix: its twin,
kernels/fused_linear.py. NumPy gains nothing by that: here the operation spells out what it means.
"""
import numpy as np

from . import memory
from .activation import gelu_forward
from .linear import linear_forward
from .linear_int8 import linear_int8
from .norm import layer_norm_forward, rms_norm_forward


def fused_linear(x, weight, scale=None, bias=None, norm_weight=None, norm_bias=None, residual=None, *,
                 norm=None, eps=1e-5, activation=None):
    """out = residual + activation(scale (norm(x) w^T) + b): x (..., I) -> (..., O)

    weight (O, I), floating point, or int8 with scale (O,); bias (O,) or None; residual (..., O) or None; norm: None,
    "layer_norm" or "rms_norm", with norm_weight (I,) and norm_bias (I,) or None; activation: None or "gelu", the tanh
    form.
    """
    if norm == "layer_norm":
        x, _ = layer_norm_forward(x, norm_weight, norm_bias, eps=eps)
    if norm == "rms_norm":
        x, _ = rms_norm_forward(x, norm_weight, eps=eps)
    out = linear_forward(x, weight, bias)[0] if scale is None else linear_int8(x, weight, scale, bias)
    if activation == "gelu":
        out, _ = gelu_forward(out, approximate="tanh", needs=(False,))
    return out if residual is None else np.add(residual, out, out=memory.empty(out.shape, out.dtype))
