"""Sums over axes.

    out[i, k] = sum over j of x[i, j, k]          (twin: tinyllm/ops/reduce.py)

Any sum over neighbouring axes of a row-major array has this form: `outer` counts what lies before those axes,
`inner` what lies after. With outer = 1 it is the column sum by which a bias gets its gradient.

    x_ptr      (outer, n_summed, n_inner)
    out_ptr    (outer, n_inner)
    grid       (outer, ceil(n_inner / BLOCK_INNER)): each program sums some columns from top to bottom, in an order
               that never changes, so the result is the same each time
"""

import math

import triton
import triton.language as tl

from . import runtime


@triton.jit
def sum_kernel(x_ptr, out_ptr, n_summed, n_inner, BLOCK_SUMMED: tl.constexpr, BLOCK_INNER: tl.constexpr):
    outer = tl.program_id(0).to(tl.int64)
    inner = tl.program_id(1) * BLOCK_INNER + tl.arange(0, BLOCK_INNER)
    x_ptr += outer * n_summed * n_inner
    no_overhang_inner = inner < n_inner
    total = tl.zeros((BLOCK_SUMMED, BLOCK_INNER), dtype=tl.float32)
    for first in range(0, n_summed, BLOCK_SUMMED):
        summed = first + tl.arange(0, BLOCK_SUMMED)
        no_overhang = (summed < n_summed)[:, None] & no_overhang_inner[None, :]
        offsets = summed[:, None].to(tl.int64) * n_inner + inner[None, :]
        total += tl.load(x_ptr + offsets, mask=no_overhang, other=0.0)
    tl.store(out_ptr + outer * n_inner + inner, tl.sum(total, axis=0), mask=no_overhang_inner)


def unbroadcast(grad, shape):
    """Undo broadcasting: sum `grad` over the axes that were repeated -> an array of shape `shape`.

    If out[i, j] = a[j] for every i, then a[j] moves a whole column of out, and its gradient is the column's sum.
    """
    wanted = (1,) * (grad.ndim - len(shape)) + tuple(shape)
    grad = runtime.contiguous(grad)
    axis = 0
    while axis < grad.ndim:
        end = axis
        while end < grad.ndim and wanted[end] == 1:  # a run of neighbouring axes takes one launch
            end += 1
        if math.prod(grad.shape[axis:end]) != 1:
            grad = _sum_axes(grad, axis, end)
        axis = end + 1
    return grad.view(shape)


def sum_rows(x):
    """Column sums of a row-major array: (rows, ...) -> (...)."""
    return _sum_axes(x, 0, 1).view(x.shape[1:])


def _sum_axes(x, axis, end):
    """Sum a row-major array over its axes axis, ..., end - 1 and keep them with size 1."""
    outer, summed, inner = (math.prod(sizes) for sizes in (x.shape[:axis], x.shape[axis:end], x.shape[end:]))
    out = runtime.empty(x.shape[:axis] + (1,) * (end - axis) + x.shape[end:], x.dtype)
    block_inner = min(64, triton.next_power_of_2(max(inner, 1)))
    grid = (outer, triton.cdiv(inner, block_inner))
    sum_kernel[grid](x, out, summed, inner, BLOCK_SUMMED=2048 // block_inner, BLOCK_INNER=block_inner)
    return out
