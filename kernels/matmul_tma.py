"""The matrix product on Hopper (sm_90: H100, H200), where the hardware moves tiles.

    out = a b with the epilogues of matmul.py, for two matrices without batch

The Tensor Memory Accelerator fetches a tile when it is given a *descriptor* (where the matrix lies, its sizes and
strides, the size of a tile) and two coordinates: no pointers, no masks, zeros where the tile hangs over, and no
register on the way from memory to the tensor cores. Two more things keep those busy:
- persistent programs: one or two for each multiprocessor, which take tile after tile. With FLATTEN the compiler makes
  one loop of both, so that the next tile's first loads run during this tile's epilogue;
- the epilogue in two halves of the columns, which need half the shared memory, and leave the rest to the pipeline. A
  long epilogue (GELU) keeps the tensor cores waiting all the same: there two programs with smaller tiles take turns.

    a_desc, b_desc    tiles as the matrix lies in memory; LAYOUT says which are transposed: "NN" a (M, K), b (K, N);
                      "NT" a (M, K), b (N, K); "TN" a (K, M), b (K, N)
    out_desc          (M, N)
    pre_desc          like out_desc, or None
    bias_ptr          (N,) or None
    grid              (programs,)

A matrix fits if its rows start at multiples of 16 bytes.

A weight gradient, dW = dout^T x, has few tiles and a very long inner axis, all tokens of the batch. For GPT-2's 3072 x
768 weights there are 72 tiles for 132 multiprocessors. So the inner axis is cut into parts (*split-K*), and each
program adds what it has found to zeros in memory, in whatever order: the last digits may differ from run to run
(runtime.deterministic: product.py). Few parts cost little to add, many come out even, so that no multiprocessor waits
for another. Both in one: the first tiles are cut into few parts, whole rounds of them for all programs, and those that
are left into many (shares_of): 66 of the 72 tiles into 2, the other 6 into 22.

All tiles of one part come first, then those of the next: what runs at the same time reads the same rows of dout and x,
and finds them in the L2 cache. Equal shares that begin and end anywhere (stream-K, Osama et al. 2023, arXiv:2301.03598)
keep all multiprocessors busy to the last step, but read at as many places as there are programs: at these sizes that
took twice as long on an H100.
"""

import functools

import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from . import configs, runtime
from .activation import gelu_tanh, gelu_tanh_slope
from .matmul import tile_of

EDGES = 16      # as many steps along K as it takes to begin and to end a part; three sizes on an H200 say 8 to 21


@triton.jit
def load_tiles(a_desc, b_desc, row, column, k, LAYOUT: tl.constexpr):
    """What meets in the tile of out at (row, column), from k on: a (BLOCK_M, BLOCK_K) and b (BLOCK_K, BLOCK_N)"""
    if LAYOUT == "TN":
        a = a_desc.load([k, row]).T
    else:
        a = a_desc.load([row, k])
    if LAYOUT == "NT":
        b = b_desc.load([column, k]).T
    else:
        b = b_desc.load([k, column])
    return a, b


@triton.jit
def halves(total, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """The left and the right half of a tile's columns."""
    return tl.split(tl.permute(tl.reshape(total, (BLOCK_M, 2, BLOCK_N // 2)), (0, 2, 1)))


@triton.jit
def matmul_tma_kernel(a_desc, b_desc, bias_ptr, pre_desc, out_desc, M, N, K, LAYOUT: tl.constexpr,
                      EPILOGUE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
                      GROUP_M: tl.constexpr, FLATTEN: tl.constexpr):
    n_tiles = tl.cdiv(M, BLOCK_M) * tl.cdiv(N, BLOCK_N)
    for tile in tl.range(tl.program_id(0), n_tiles, tl.num_programs(0), flatten=FLATTEN):
        tile_row, tile_column = tile_of(tile, M, N, BLOCK_M, BLOCK_N, GROUP_M)
        row, column = tile_row * BLOCK_M, tile_column * BLOCK_N
        total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for k in range(0, K, BLOCK_K):
            a, b = load_tiles(a_desc, b_desc, row, column, k, LAYOUT)
            total = tl.dot(a, b, total)
        left, right = halves(total, BLOCK_M, BLOCK_N)
        finish(left, bias_ptr, pre_desc, out_desc, row, column, N, EPILOGUE)
        finish(right, bias_ptr, pre_desc, out_desc, row, column + BLOCK_N // 2, N, EPILOGUE)


@triton.jit(do_not_specialize=["K", "first_tiles", "first_part", "other_part"])
def weight_gradient_kernel(a_desc, b_desc, out_desc, M, N, K, first_tiles, first_part, other_part,
                           LAYOUT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
                           GROUP_M: tl.constexpr, FLATTEN: tl.constexpr):
    """out += a b, in float32. A job is a part of a tile: first_part long along K for the first tiles, other_part for
    the others.
    """
    n_first = first_tiles * tl.cdiv(K, first_part)
    other_tiles = tl.cdiv(M, BLOCK_M) * tl.cdiv(N, BLOCK_N) - first_tiles
    n_jobs = n_first + other_tiles * tl.cdiv(K, other_part)
    for job in tl.range(tl.program_id(0), n_jobs, tl.num_programs(0), flatten=FLATTEN):
        is_first = job < n_first
        place, tiles = tl.where(is_first, job, job - n_first), tl.where(is_first, first_tiles, other_tiles)
        tile, part = place % tiles + tl.where(is_first, 0, first_tiles), tl.where(is_first, first_part, other_part)
        tile_row, tile_column = tile_of(tile, M, N, BLOCK_M, BLOCK_N, GROUP_M)
        row, column, start = tile_row * BLOCK_M, tile_column * BLOCK_N, place // tiles * part
        total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for k in range(start, tl.minimum(start + part, K), BLOCK_K):
            a, b = load_tiles(a_desc, b_desc, row, column, k, LAYOUT)
            total = tl.dot(a, b, total)
        left, right = halves(total, BLOCK_M, BLOCK_N)
        out_desc.atomic_add([row, column], left)
        out_desc.atomic_add([row, column + BLOCK_N // 2], right)


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


def launch(a, b, out, bias=None, pre=None, epilogue="none"):
    """out = a @ b with its epilogue. Returns out."""
    name = {"none": "matmul_tma", "gelu": "matmul_tma+gelu", "gelu backward": "matmul_tma+gelu_backward"}[epilogue]
    config = configs.lookup(name, a.dtype)
    programs = config.pop("PROGRAMS")
    names, a_desc, b_desc = _described(a, b, config)
    (M, K), N, m, n = a.shape, out.shape[1], config["BLOCK_M"], config["BLOCK_N"]
    out_desc, pre_desc = (None if x is None else TensorDescriptor.from_tensor(x, [m, n // 2]) for x in (out, pre))
    grid = (min(programs * runtime.n_multiprocessors(), triton.cdiv(M, m) * triton.cdiv(N, n)),)
    matmul_tma_kernel[grid](a_desc, b_desc, bias, pre_desc, out_desc, M, N, K, LAYOUT=names, EPILOGUE=epilogue,
                            **config)
    return out


def add_product(a, b, out):
    """out += a @ b in float32, IN PLACE: out (M, N) may have fewer rows than a."""
    config = configs.lookup("weight_gradient", a.dtype)
    names, a_desc, b_desc = _described(a, b, config)
    (M, N), K, m, n, k = out.shape, a.shape[1], *(config[f"BLOCK_{axis}"] for axis in "MNK")
    tiles, programs = triton.cdiv(M, m) * triton.cdiv(N, n), runtime.n_multiprocessors()
    first_tiles, first_steps, other_steps = shares_of(triton.cdiv(K, k), tiles, programs)
    weight_gradient_kernel[(programs,)](
        a_desc, b_desc, TensorDescriptor.from_tensor(out, [m, n // 2]), M, N, K, first_tiles, first_steps * k,
        other_steps * k, LAYOUT=names, **config)
    return out


@functools.cache
def shares_of(steps, tiles, programs):
    """How to deal out `steps` steps of each tile, so that the busiest program has the fewest: (how many tiles come
    first, the steps of a part of theirs, the steps of a part of the others).
    """
    def rounds(jobs, part):
        return triton.cdiv(jobs, programs) * (part + EDGES)

    def longest(plan):
        first_tiles, first, other = plan
        return (rounds(first_tiles * triton.cdiv(steps, first), first)
                + rounds((tiles - first_tiles) * triton.cdiv(steps, other), other))

    parts = sorted({triton.cdiv(steps, n) for n in range(1, 33)}, reverse=True)         # into 32 parts at most
    plans = [(tiles, part, steps) for part in parts]
    for first in parts:
        n = triton.cdiv(steps, first)
        whole_rounds = n * tiles // programs * programs // n
        plans += [(whole_rounds, first, other) for other in parts if 0 < whole_rounds < tiles]
    return min(plans, key=longest)


def _described(a, b, config):
    """(how a and b lie in memory, their descriptors)"""
    names, (m, n, k) = layout(a, b), (config[f"BLOCK_{axis}"] for axis in "MNK")
    describe = lambda x, *block: TensorDescriptor.from_tensor(x, list(block))
    return (names, describe(a.T, k, m) if names[0] == "T" else describe(a, m, k),
            describe(b.T, n, k) if names[1] == "T" else describe(b, k, n))
