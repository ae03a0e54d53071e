"""The linear layer with weights of one byte each: for writing, not for training.

    out_no = scale_o (sum over i of x_ni w_oi) + b_o            (twin: tinyllm/ops/linear_int8.py)

Its kernels, for one row and for many, are those of fused_linear.py.
"""

from .fused_linear import fused_linear


def linear_int8(x, weight, scale, bias=None):
    """out = (x w^T) scale + b: x (..., I), weight (O, I) int8, scale (O,) float32, bias (O,) or None -> (..., O)."""
    return fused_linear(x, weight, scale, bias)
