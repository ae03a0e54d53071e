"""The matrix product, on which all speed rests: a kernel for every GPU, and one for those that can do more.

    out = a b,   out_mn = sum over k of a_mk b_kn            (twin: tinyllm/ops/matmul.py)

naive_matmul_kernel shows the idea: a program computes one tile of out, walking along K. matmul_kernel is the same with
- groups: programs run in the order of their numbers, and neighbours should need the same parts of a and b, which are
  then still in the L2 cache. So tiles are counted down GROUP_M rows before the next column;
- strides: a transpose is the same memory walked with swapped strides, so one kernel serves a b, a b^T and a^T b;
- an epilogue: what follows the product (bias, GELU) is done while the tile is in registers;
- a batch of products.
matmul_tma.py has the same product for GPUs whose memory unit fetches whole tiles by itself (Hopper: H100, H200), and
product.py chooses between the two.

    a_ptr             (..., M, K), any strides
    b_ptr             (..., K, N), any strides
    bias_ptr          (N,) or None
    pre_ptr           (M, N), laid out as out: what GELU is applied to (see EPILOGUE)
    out_ptr           (..., M, N)
    grid              (ceil(M / BLOCK_M) ceil(N / BLOCK_N), batch)
    EPILOGUE          "none"; "gelu": pre = a b + bias, out = gelu(pre); "gelu backward": out = a b gelu'(pre)

Padding. a may be longer than b along K, if its surplus columns are zeros; out may be wider than b along N, and holds
anything there; a may have more rows than out. So a matrix whose rows are padded to a multiple of 64 (loss.py) can be
read and written in whole, aligned vectors.
"""

import math

import torch
import triton
import triton.language as tl

from . import configs, runtime
from .activation import gelu_tanh, gelu_tanh_slope


@triton.jit
def naive_matmul_kernel(a_ptr, b_ptr, out_ptr, M, N, K, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
                        BLOCK_K: tl.constexpr):
    """Row-major a (M, K) and b (K, N); grid (ceil(M / BLOCK_M), ceil(N / BLOCK_N))"""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for first in range(0, K, BLOCK_K):
        inner = first + tl.arange(0, BLOCK_K)
        a = tl.load(a_ptr + rows * K + inner[None, :], mask=(rows < M) & (inner < K)[None, :], other=0.0)
        b = tl.load(b_ptr + inner[:, None] * N + columns, mask=(inner < K)[:, None] & (columns < N), other=0.0)
        # "ieee": by default Triton rounds float32 to TF32, whose 10 bits of mantissa lose three digits
        total = tl.dot(a, b, total, input_precision="ieee")
    tl.store(out_ptr + rows * N + columns, total, mask=(rows < M) & (columns < N))


@triton.jit
def tile_of(tile, M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr):
    """The row and column of tiles of the `tile`-th program: down GROUP_M rows, then to the next column."""
    n_rows, n_columns = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    first_row = tile // (GROUP_M * n_columns) * GROUP_M
    height = tl.minimum(n_rows - first_row, GROUP_M)       # the last group may be lower
    place = tile % (GROUP_M * n_columns)
    return first_row + place % height, place // height


@triton.jit
def matmul_kernel(a_ptr, b_ptr, bias_ptr, pre_ptr, out_ptr, M, N, K, out_rows, b_rows, b_columns, n_inner_batch,
                  a_strides, b_strides, out_strides, EPILOGUE: tl.constexpr,
                  BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr):
    """The strides are (outer batch, inner batch, row, column); the batch has two axes, as attention's heads do."""
    tile_row, tile_column = tile_of(tl.program_id(0), M, N, BLOCK_M, BLOCK_N, GROUP_M)
    outer = (tl.program_id(1) // n_inner_batch).to(tl.int64)
    inner = (tl.program_id(1) % n_inner_batch).to(tl.int64)
    rows = tile_row * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tile_column * BLOCK_N + tl.arange(0, BLOCK_N)
    ks = tl.arange(0, BLOCK_K)
    # Rows and columns that hang over start again from the first: what they give is not stored, and loads need no mask
    # for them. 64 bits, because row times stride passes 2^31: 42,691 tokens of 50,304 logits do.
    a_ptrs = (a_ptr + outer * a_strides[0] + inner * a_strides[1]
              + (rows % M).to(tl.int64)[:, None] * a_strides[2] + ks.to(tl.int64)[None, :] * a_strides[3])
    b_ptrs = (b_ptr + outer * b_strides[0] + inner * b_strides[1]
              + ks.to(tl.int64)[:, None] * b_strides[2] + (columns % b_columns).to(tl.int64)[None, :] * b_strides[3])
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for first in range(0, K, BLOCK_K):
        a = tl.load(a_ptrs, mask=(ks < K - first)[None, :], other=0.0)
        b = tl.load(b_ptrs, mask=(ks < b_rows - first)[:, None], other=0.0)
        total = tl.dot(a, b, total, input_precision="ieee")
        a_ptrs += BLOCK_K * a_strides[3]
        b_ptrs += BLOCK_K * b_strides[2]

    if bias_ptr is not None:
        total += tl.load(bias_ptr + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
    no_overhang = (rows < out_rows)[:, None] & (columns < N)[None, :]
    offsets = (outer * out_strides[0] + inner * out_strides[1]
               + rows.to(tl.int64)[:, None] * out_strides[2] + columns[None, :] * out_strides[3])
    if EPILOGUE == "gelu":
        tl.store(pre_ptr + offsets, total, mask=no_overhang)
        total = gelu_tanh(total)
    if EPILOGUE == "gelu backward":
        total *= gelu_tanh_slope(tl.load(pre_ptr + offsets, mask=no_overhang, other=0.0).to(tl.float32))
    tl.store(out_ptr + offsets, total, mask=no_overhang)


def launch(a, b, out, bias=None, pre=None, epilogue="none"):
    """out = a @ b with two axes of batch: a (B1, B2, M, K), b (B1, B2, K, N), out and pre (B1, B2, M, N), strided."""
    config = configs.lookup("matmul", a.dtype)
    (outer, inner, M, K), N = a.shape, out.shape[3]
    grid = (triton.cdiv(M, config["BLOCK_M"]) * triton.cdiv(N, config["BLOCK_N"]), outer * inner)
    if out.numel():
        matmul_kernel[grid](a, b, bias, pre, out, M, N, K, out.shape[2], b.shape[2], b.shape[3], inner,
                            a.stride(), b.stride(), out.stride(), EPILOGUE=epilogue, **config)
    return out


def matmul_forward(a, b, *, needs=(True, True)):
    """out = a @ b: (..., M, K) @ (..., K, N) -> (..., M, N); batch dimensions broadcast; a vector works as in NumPy."""
    out = _batched(a[None] if a.ndim == 1 else a, b[:, None] if b.ndim == 1 else b)
    if a.ndim == 1:
        out = out.squeeze(-2)
    if b.ndim == 1:
        out = out.squeeze(-1)
    return out, (a, b, needs)


def matmul_backward(dout, saved):
    """da = dout @ b^T, db = a^T @ dout"""
    a, b, needs = saved
    a2, b2 = (a[None] if a.ndim == 1 else a), (b[:, None] if b.ndim == 1 else b)
    if a.ndim == 1:
        dout = dout.unsqueeze(-2 if b.ndim > 1 else -1)
    if b.ndim == 1:
        dout = dout.unsqueeze(-1)
    da = db = None
    if needs[0]:
        da = _batched(dout, b2.mT)
        da = da.squeeze(-2) if a.ndim == 1 else da
    if needs[1]:
        db = _batched(a2.mT, dout)
        db = db.squeeze(-1) if b.ndim == 1 else db
    return da, db


def _batched(a, b):
    """a @ b for any axes of batch: broadcast as views; more than two are put into one."""
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    out = runtime.empty((*batch, a.shape[-2], b.shape[-1]), a.dtype)
    views = [x.expand(*batch, *x.shape[-2:]) for x in (a, b, out)]
    if len(batch) > 2:
        views = [runtime.contiguous(x).view(math.prod(batch), *x.shape[-2:]) for x in views]
    launch(*(x[(None,) * (4 - x.ndim)] for x in views))
    return out
