"""The matrix product on Hopper (sm_90: H100, H200), where the hardware moves tiles.

    out = a b with the epilogues of matmul.py, for two matrices without batch

The Tensor Memory Accelerator fetches a tile when it is given a *descriptor* (where the matrix lies, its sizes and
strides, the size of a tile) and two coordinates: no pointers, no masks, zeros where the tile hangs over, and no
register on the way from memory to the tensor cores. Two more things keep those busy:
- persistent programs: one for each multiprocessor, which takes tile after tile. With flatten=True the compiler makes
  one loop of both, so that the next tile's first loads run during this tile's epilogue;
- the epilogue in two halves of the columns, which need half the shared memory, and leave the rest to the pipeline.

    a_desc, b_desc    tiles as the matrix lies in memory; LAYOUT says which are transposed: "NN" a (M, K), b (K, N);
                      "NT" a (M, K), b (N, K); "TN" a (K, M), b (K, N)
    out_desc          (M, N), or (parts M, N): with the inner axis cut into parts (split-K, see product.py) part p of
                      the sum goes into the rows from p M on
    pre_desc          like out_desc, or None
    bias_ptr          (N,) or None
    grid              (multiprocessors,)

A matrix fits if its rows start at multiples of 16 bytes.
"""

import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from . import configs, runtime
from .activation import gelu_tanh, gelu_tanh_slope
from .matmul import tile_of


@triton.jit(do_not_specialize=["n_parts"])
def matmul_tma_kernel(a_desc, b_desc, bias_ptr, pre_desc, out_desc, M, N, K, n_parts,
                      LAYOUT: tl.constexpr, EPILOGUE: tl.constexpr,
                      BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr):
    n_tiles = tl.cdiv(M, BLOCK_M) * tl.cdiv(N, BLOCK_N)
    part_length = K // n_parts
    for job in tl.range(tl.program_id(0), n_tiles * n_parts, tl.num_programs(0), flatten=True):
        part = job // n_tiles
        tile_row, tile_column = tile_of(job % n_tiles, M, N, BLOCK_M, BLOCK_N, GROUP_M)
        row, column = tile_row * BLOCK_M, tile_column * BLOCK_N
        total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for k in range(part * part_length, (part + 1) * part_length, BLOCK_K):
            if LAYOUT == "TN":
                a = a_desc.load([k, row]).T
            else:
                a = a_desc.load([row, k])
            if LAYOUT == "NT":
                b = b_desc.load([column, k]).T
            else:
                b = b_desc.load([k, column])
            total = tl.dot(a, b, total)

        halves = tl.permute(tl.reshape(total, (BLOCK_M, 2, BLOCK_N // 2)), (0, 2, 1))
        left, right = tl.split(halves)
        finish(left, bias_ptr, pre_desc, out_desc, part * M + row, column, N, EPILOGUE)
        finish(right, bias_ptr, pre_desc, out_desc, part * M + row, column + BLOCK_N // 2, N, EPILOGUE)


@triton.jit
def finish(total, bias_ptr, pre_desc, out_desc, row, column, N, EPILOGUE: tl.constexpr):
    """The epilogue on a half tile whose corner is (row, column) of out."""
    if bias_ptr is not None:
        columns = column + tl.arange(0, total.shape[1])
        total += tl.load(bias_ptr + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
    if EPILOGUE == "gelu":
        pre_desc.store([row, column], total.to(pre_desc.dtype))
        total = gelu_tanh(total)
    if EPILOGUE == "gelu backward":
        total *= gelu_tanh_slope(pre_desc.load([row, column]).to(tl.float32))
    out_desc.store([row, column], total.to(out_desc.dtype))


def layout(a, b, *others):
    """Which of a and b lie transposed in memory, as "NN", "NT" or "TN"; None if TMA cannot fetch one of all."""
    if not a.numel():
        return None
    fits = lambda x: x.stride(1) == 1 and x.stride(0) * x.element_size() % 16 == 0 and x.data_ptr() % 16 == 0
    names = "".join("N" if fits(x) else "T" if fits(x.T) else "?" for x in (a, b))
    return names if names in ("NN", "NT", "TN") and all(fits(x) for x in others if x is not None) else None


def launch(a, b, out, bias=None, pre=None, epilogue="none", parts=1, kernel="matmul_tma"):
    """out = a @ b with its epilogue; kernel: whose rows of configs.py, by the columns of out. Returns out.

    parts > 1: out is (parts, M, N), M a multiple of BLOCK_M, and K of parts * BLOCK_K.
    """
    config = configs.lookup(kernel, a.dtype, out.shape[-1])
    names = layout(a, b)
    (M, K), N = a.shape, out.shape[-1]
    m, n, k = (config[f"BLOCK_{axis}"] for axis in "MNK")
    describe = lambda x, *block: None if x is None else TensorDescriptor.from_tensor(x, list(block))
    a_desc = describe(a.T, k, m) if names[0] == "T" else describe(a, m, k)
    b_desc = describe(b.T, n, k) if names[1] == "T" else describe(b, k, n)
    out_desc, pre_desc = describe(out.view(-1, N), m, n // 2), describe(pre, m, n // 2)
    n_programs = min(runtime.n_multiprocessors(), parts * triton.cdiv(M, m) * triton.cdiv(N, n))
    matmul_tma_kernel[(n_programs,)](a_desc, b_desc, bias, pre_desc, out_desc, M, N, K, parts, LAYOUT=names,
                                     EPILOGUE=epilogue, **config)
    return out
