"""Linear layers, and the one matrix product that all of them are made of.

    out = x W^T + b                  (twin: tinyllm/ops/linear.py)
    dx  = dout W
    dW  = dout^T x
    db  = column sums of dout

    linear_gelu:  pre = x W^T + b,  out = gelu(pre),  dpre = dout gelu'(pre), then as above with dpre for dout

    gelu(u) = u/2 (1 + tanh(s)),  s = sqrt(2/pi) (u + 0.044715 u^3)          Hendrycks & Gimpel 2016, arXiv:1606.08415
            = u sigmoid(2 s),     because (1 + tanh s)/2 = sigmoid(2 s)
    gelu'(u) = p + u p (1 - p) 2 s',  p = sigmoid(2 s)

The three products differ only in which matrices are transposed. A transpose is the same memory walked with swapped
strides, so a single kernel serves them all: it takes two strides for each operand.

    a_ptr             (M, K), any strides
    b_ptr             (K, N), any strides
    bias_ptr          (N,) or None
    pre_ptr           (M, N) or None; given, it keeps a b + bias and out becomes gelu of it
    out_ptr           (M, N), row-major, rows stride_om apart
    grid              (ceil(M / BLOCK_M), ceil(N / BLOCK_N)): each program computes one tile of out, walking along K

gelu_backward_kernel works on flat arrays, as elementwise.py does.
"""

import triton
import triton.language as tl

from . import runtime
from .reduce import sum_rows

# IEEE float32 products have no tensor cores, so a tile must leave room in the registers for plain multiply-adds.
BLOCK_M, BLOCK_N, BLOCK_K = 64, 64, 32
BLOCK = 2048


@triton.jit
def gelu_gate(u):
    """p = sigmoid(2 s) and 2 s'. exp sees no positive number, so it cannot overflow."""
    z = 1.5957691216057308 * (u + 0.044715 * u * u * u)  # 2 s, as 2 sqrt(2/pi) = 1.59577
    slope = 1.5957691216057308 * (1.0 + 0.134145 * u * u)
    e = tl.exp(-tl.abs(z))
    return tl.where(z < 0, e, 1.0) / (1.0 + e), slope


@triton.jit
def matmul_kernel(a_ptr, b_ptr, bias_ptr, pre_ptr, out_ptr, M, N, K,
                  stride_am, stride_ak, stride_bk, stride_bn, stride_om,
                  BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    no_row_overhang = (rows < M)[:, None]
    no_column_overhang = (columns < N)[None, :]
    # 64 bits, because row times stride passes 2^31: 42,690 tokens of 50,304 logits do
    a_rows = a_ptr + rows[:, None].to(tl.int64) * stride_am
    b_columns = b_ptr + columns[None, :].to(tl.int64) * stride_bn

    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for first in range(0, K, BLOCK_K):
        inner = first + tl.arange(0, BLOCK_K)
        no_inner_overhang = inner < K
        inner = inner.to(tl.int64)
        a = tl.load(a_rows + inner[None, :] * stride_ak, mask=no_row_overhang & no_inner_overhang[None, :], other=0.0)
        b = tl.load(b_columns + inner[:, None] * stride_bk, mask=no_inner_overhang[:, None] & no_column_overhang,
                    other=0.0)
        # "ieee": by default Triton rounds float32 to TF32, whose 10 bits of mantissa lose three digits
        total = tl.dot(a, b, total, input_precision="ieee")

    if bias_ptr is not None:
        total += tl.load(bias_ptr + columns, mask=columns < N, other=0.0)[None, :]
    no_overhang = no_row_overhang & no_column_overhang
    offsets = rows[:, None].to(tl.int64) * stride_om + columns[None, :]
    if pre_ptr is not None:
        tl.store(pre_ptr + offsets, total, mask=no_overhang)
        p, _ = gelu_gate(total)
        total = total * p
    tl.store(out_ptr + offsets, total, mask=no_overhang)


@triton.jit
def gelu_backward_kernel(dout_ptr, pre_ptr, dpre_ptr, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    no_overhang = offsets < n
    u = tl.load(pre_ptr + offsets, mask=no_overhang, other=0.0)
    dout = tl.load(dout_ptr + offsets, mask=no_overhang, other=0.0)
    p, slope = gelu_gate(u)
    tl.store(dpre_ptr + offsets, dout * (p + u * p * (1.0 - p) * slope), mask=no_overhang)


def matmul(a, b, out, bias=None, pre=None):
    """out = a @ b + bias: a (M, K) and b (K, N) with any strides, bias (N,), out and pre (M, N) with rows of stride 1.

    Given `pre`, it receives a @ b + bias, and out the gelu of that. Returns out.
    """
    (m, k), n = a.shape, b.shape[1]
    grid = (triton.cdiv(m, BLOCK_M), triton.cdiv(n, BLOCK_N))
    matmul_kernel[grid](a, b, bias, pre, out, m, n, k, *a.stride(), *b.stride(), out.stride(0),
                        BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N, BLOCK_K=BLOCK_K)
    return out


def linear_forward(x, weight, bias=None, *, needs=(True, True, True)):
    """out = x W^T + b: x (..., in), weight (out, in), bias (out,) or None -> (out (..., out), saved).

    `needs` says which gradients backward will compute.
    """
    out, rows = _product(x, weight, bias, pre=None)
    return out, (rows, weight, bias is not None, needs, x.shape)


def linear_backward(dout, saved):
    """dout (..., out) -> (dx (..., in), dweight (out, in), dbias (out,)), None for what is not needed."""
    x, weight, has_bias, needs, shape = saved
    dout = runtime.as_rows(dout)
    dx = dweight = dbias = None
    if needs[0]:
        dx = matmul(dout, weight, runtime.empty(x.shape, x.dtype)).view(shape)
    if needs[1]:
        dweight = matmul(dout.T, x, runtime.empty(weight.shape, weight.dtype))
    if has_bias and needs[2]:
        dbias = sum_rows(dout)
    return dx, dweight, dbias


def linear_gelu_forward(x, weight, bias=None, *, needs=(True, True, True)):
    """out = gelu(x W^T + b), the tanh form: shapes as in linear_forward.

    The product, the bias and the gelu are one kernel, which also writes down x W^T + b for the backward pass.
    """
    pre = runtime.empty((*x.shape[:-1], weight.shape[0]), x.dtype)
    out, rows = _product(x, weight, bias, pre)
    return out, (pre, (rows, weight, bias is not None, needs, x.shape))


def linear_gelu_backward(dout, saved):
    """dout (..., out) -> (dx (..., in), dweight (out, in), dbias (out,)), None for what is not needed."""
    pre, saved_linear = saved
    dpre = runtime.empty(pre.shape, pre.dtype)
    grid = (triton.cdiv(pre.numel(), BLOCK),)
    gelu_backward_kernel[grid](runtime.contiguous(dout), pre, dpre, pre.numel(), BLOCK=BLOCK)
    return linear_backward(dpre, saved_linear)


def _product(x, weight, bias, pre):
    """x W^T + b (or gelu of it, see matmul) for x of any number of axes -> (out, x as rows)."""
    rows = runtime.as_rows(x)
    out = runtime.empty((*x.shape[:-1], weight.shape[0]), x.dtype)
    bias = None if bias is None else runtime.contiguous(bias)
    flat = (rows.shape[0], weight.shape[0])
    matmul(rows, weight.T, out.view(flat), bias, None if pre is None else pre.view(flat))
    return out, rows
