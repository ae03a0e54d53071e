"""Triton's interpreter after kernels/interpreter.py has mended it: bfloat16, undefined loads, loops, conditions.

On a GPU the same kernels are compiled, and the same results are what a GPU gives (but for what a mask leaves out, which
is undefined there).
"""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the kernels' arrays are torch tensors: pip install tinyllm[triton]")
triton = pytest.importorskip("triton", reason="Triton exists for Linux only: pip install tinyllm[triton]")

import triton.language as tl  # noqa: E402

from tinyllm.kernels import interpreter, runtime  # noqa: E402


@triton.jit
def arithmetic_kernel(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    """Seven rows of results, all of it in the type of x and y."""
    offsets = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets)
    y = tl.load(y_ptr + offsets)
    tl.store(out_ptr + offsets, x + y)
    tl.store(out_ptr + n + offsets, x * y)
    tl.store(out_ptr + 2 * n + offsets, x - y)
    tl.store(out_ptr + 3 * n + offsets, -x)
    tl.store(out_ptr + 4 * n + offsets, tl.where(x > y, x, y))
    tl.store(out_ptr + 5 * n + offsets, tl.where((x <= y) & (x < 0.5), x + 1.0, tl.abs(y)))
    tl.store(out_ptr + 6 * n + offsets, tl.maximum(x, y))


def numbers(n, dtype, seed=0):
    values = np.random.default_rng(seed).standard_normal(n).astype(np.float32)
    return torch.from_numpy(values).to(runtime.device(), dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_arithmetic(dtype):
    x, y = numbers(64, dtype), numbers(64, dtype, 1)
    out = torch.empty(7, 64, dtype=dtype, device=x.device)
    arithmetic_kernel[(1,)](x, y, out, 64, BLOCK=64)
    expected = torch.stack([x + y, x * y, x - y, -x, torch.where(x > y, x, y),
                            torch.where((x <= y) & (x < 0.5), x + 1.0, y.abs()), torch.maximum(x, y)])
    assert torch.equal(out, expected)


@triton.jit
def dot_kernel(a_ptr, b_ptr, out_ptr, sum_ptr, SIZE: tl.constexpr):
    i, j = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    a = tl.load(a_ptr + i * SIZE + j)
    b = tl.load(b_ptr + i * SIZE + j)
    tl.store(out_ptr + i * SIZE + j, tl.dot(a, tl.trans(b), input_precision="ieee"))
    tl.store(sum_ptr + tl.arange(0, SIZE), tl.sum(a.to(tl.float32), axis=1))
    tl.store(sum_ptr + SIZE + tl.arange(0, SIZE), tl.max(a, axis=0).to(tl.float32))


def test_products_and_reductions_of_bfloat16():
    a, b = numbers(256, torch.bfloat16).view(16, 16), numbers(256, torch.bfloat16, 1).view(16, 16)
    out, sums = torch.empty(16, 16, device=a.device), torch.empty(2, 16, device=a.device)
    dot_kernel[(1,)](a, b, out, sums, SIZE=16)
    torch.testing.assert_close(out, a.float() @ b.float().T, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sums, torch.stack([a.float().sum(1), a.float().amax(0)]), rtol=1e-5, atol=1e-5)


def test_rounding_to_bfloat16():
    """To the nearest, ties to even; infinities and NaN stay; the largest numbers become infinite."""
    values = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-9, -1 - 2**-8 - 2**-20, np.inf, -np.inf, np.nan, 3.4e38,
                       1e-40, 0.0, -0.0], np.float32)
    expected = torch.from_numpy(values).bfloat16()
    np.testing.assert_array_equal(interpreter.widen(interpreter.narrow(values)), expected.float().numpy())


def test_rounding_any_number_to_bfloat16():
    bits = np.random.default_rng(0).integers(0, 2**32, 20_000, dtype=np.uint32)
    values = bits.view(np.float32)
    expected = torch.from_numpy(values).bfloat16()
    same = interpreter.narrow(values) == expected.view(torch.uint16).numpy()
    assert (same | np.isnan(values)).all()


@triton.jit
def loop_kernel(x_ptr, out_ptr, first, last, limit_ptr, BLOCK: tl.constexpr):
    """Bounds that are known at run time only, one of them from memory; a condition on scalars and blocks."""
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    limit = tl.load(limit_ptr)
    for start in range(first, tl.minimum(last, limit), BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        positive = tl.load(x_ptr) > 0.0
        total += tl.load(x_ptr + offsets, mask=(offsets < last) & positive, other=0.0)
    tl.store(out_ptr + tl.arange(0, BLOCK), total)


def test_loops_and_conditions_at_run_time():
    x = torch.arange(1.0, 41.0, device=runtime.device())
    out = torch.empty(8, device=x.device)
    loop_kernel[(1,)](x, out, 8, 35, torch.tensor([30], dtype=torch.int32, device=x.device), BLOCK=8)
    expected = torch.zeros(8, device=x.device)
    for start in range(8, 30, 8):
        piece = x[start:min(start + 8, 35)]
        expected[:len(piece)] += piece
    assert torch.equal(out, expected)


@triton.jit
def masked_kernel(x_ptr, out_ptr, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    tl.store(out_ptr + offsets, tl.load(x_ptr + offsets, mask=offsets < 3))


@pytest.mark.skipif(not runtime.INTERPRETED, reason="on a GPU what the mask leaves out is undefined")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int64])
def test_what_a_mask_leaves_out_is_no_zero(dtype):
    x, out = torch.ones(8, dtype=dtype), torch.empty(8, dtype=dtype)
    masked_kernel[(1,)](x, out, BLOCK=8)
    assert (out[:3] == 1).all() and (out[3:].isnan() if dtype.is_floating_point else out[3:] < -2**30).all()
