"""What the attention kernels share: loading rows of a head, the scores of a tile, and which keys need no mask.

Their arguments come in groups. sizes = (T, S, offset). strides: of each array those of (batch, token, head), of the
bias those of (batch, head, query). numbers = (scale log2(e), site of the dropout, its threshold, 1 / (1 - dropout)).
"""

import functools
import math

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from . import runtime
from .dropout import survivors

LOG2E = tl.constexpr(math.log2(math.e))     # e^x = 2^(x log2 e)


@triton.jit
def load_rows(ptr, rows, strides, n_rows, HEAD_SIZE: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr):
    """Some rows of a head, (len(rows), BLOCK_D); zero where they, or the features, hang over."""
    features = tl.arange(0, BLOCK_D)
    places = ptr + rows.to(tl.int64)[:, None] * strides[1] + features[None, :]
    if MASKED or HEAD_SIZE < BLOCK_D:
        tile = tl.load(places, mask=(rows < n_rows)[:, None] & (features < HEAD_SIZE)[None, :], other=0.0)
    else:
        tile = tl.load(places)
    return tile


@triton.jit
def head_of(ptr, strides, batch, head):
    """Where a head of one row of the batch starts; in 64 bits, as a batch may be longer than 2^31 numbers."""
    return ptr + batch.to(tl.int64) * strides[0] + head.to(tl.int64) * strides[2]


@triton.jit
def load_tile(source, strides, batch, head, first, n_rows, BLOCK: tl.constexpr, HEAD_SIZE: tl.constexpr,
              BLOCK_D: tl.constexpr, TMA: tl.constexpr):
    """BLOCK rows of a head from `first` on, (BLOCK, BLOCK_D); zero where they, or the features, hang over.

    source: a pointer to the whole (B, T, H, D) array; with TMA a descriptor of it, by which the hardware fetches the
    tile alone, without an address or a mask for each number (matmul_tma.py).

    Only for tiles that a loop loads. What stays the same from turn to turn must come by pointers: fetched by TMA, it
    would lie in registers as the left side of a product, and the assembler (ptxas 12.8 to 13.0) gives the same ones to
    the left side of the loop's last product. From the second turn on, the first would read that instead.
    """
    if TMA:
        tile = source.load([batch, first, head, 0]).reshape(BLOCK, BLOCK_D)
    else:
        tile = load_rows(head_of(source, strides, batch, head), first + tl.arange(0, BLOCK), strides, n_rows,
                         HEAD_SIZE, BLOCK_D, True)
    return tile


@triton.jit
def load_numbers(source, batch, head, H, first, n, BLOCK: tl.constexpr, TMA: tl.constexpr):
    """BLOCK numbers of a head from `first` on, (BLOCK,), out of (B, H, n); zero where they hang over."""
    if TMA:
        numbers = source.load([batch, head, first]).reshape(BLOCK)
    else:
        places = first + tl.arange(0, BLOCK)
        numbers = tl.load(source + (batch.to(tl.int64) * H + head) * n + places, mask=places < n, other=0.0)
    return numbers


@triton.jit
def store_rows(ptr, rows, strides, n_rows, HEAD_SIZE: tl.constexpr, BLOCK_D: tl.constexpr, tile):
    features = tl.arange(0, BLOCK_D)
    places = ptr + rows.to(tl.int64)[:, None] * strides[1] + features[None, :]
    tl.store(places, tile, mask=(rows < n_rows)[:, None] & (features < HEAD_SIZE)[None, :])


@triton.jit
def scores_of(a, b, queries, keys, start, end, bias_ptr, sizes, bias_strides, scale, MASKED: tl.constexpr):
    """The scores of a tile times log2(e), -inf where a query may not look.

    a = q, b = k, queries (Q, 1), keys (1, K); or, transposed, a = k, b = q, queries (1, Q), keys (K, 1).
    """
    T, S, offset = sizes
    s = tl.dot(a, tl.trans(b), input_precision="ieee")
    if a.dtype == tl.float32:
        s = tl.fma(s, scale, 0.0)       # rounded here, always: the compiler would round s scale - lse only once in one
    else:                               # kernel and twice in another, and then the largest p would not be 1
        s *= scale
    if bias_ptr is not None:
        places = bias_ptr + queries.to(tl.int64) * bias_strides[2] + keys
        s += tl.load(places, mask=(queries < T) & (keys < S), other=0.0).to(tl.float32) * LOG2E
    if MASKED:
        s = hide(s, queries, keys, start, end, offset, float("-inf"))
    return s


@triton.jit
def hide(tile, queries, keys, start, end, offset, instead):
    """The tile, with `instead` where a query may not look."""
    no_padding = (keys >= start) & (keys < end)
    no_future = keys <= queries + offset
    return tl.where(no_padding & no_future, tile, instead)


@triton.jit
def survivors_of(rng_ptr, row, queries, first_key, S, numbers, BLOCK_K: tl.constexpr):
    """Dropout's factors for a tile: queries (Q,), the keys from first_key on -> (Q, BLOCK_K); 1 without dropout.

    Element (b, h, i, j) of the probabilities has the number (row + i) S' + j, S' being S rounded up to a multiple of 4.
    """
    factors = 1.0
    if rng_ptr is not None:
        quads = (row + queries)[:, None] * tl.cdiv(S, 4) + first_key // 4 + tl.arange(0, BLOCK_K // 4)[None, :]
        factors = survivors(rng_ptr, numbers[1], quads, numbers[2], numbers[3])
    return factors


@triton.jit
def visible_keys(limits_ptr, batch, first_query, n_queries, S, offset):
    """(start, middle, end): a block of queries may see keys from `start` up to `end`; up to `middle` all see all."""
    start = tl.maximum(tl.load(limits_ptr + batch * 2), 0)
    end = tl.minimum(tl.load(limits_ptr + batch * 2 + 1), S)
    middle = tl.minimum(end, first_query + offset + 1)
    return start, middle, tl.minimum(end, first_query + n_queries + offset)


def limits(key_start, key_end, batch, n_keys):
    """(B, 2) int32: the first key that each row sees, and the first that it no longer sees."""
    if key_start is None and key_end is None:
        return _all_keys(batch, n_keys, runtime.device())
    both = runtime.empty((batch, 2), torch.int32)
    both[:, 0] = 0 if key_start is None else key_start
    both[:, 1] = n_keys if key_end is None else key_end
    return both


@functools.cache        # for ever: a recorded step (graph.py) remembers where they are, not what
def _all_keys(batch, n_keys, device):
    """The limits of most calls: made once, so that a training step launches nothing for them."""
    return torch.tensor([[0, n_keys]] * batch, dtype=torch.int32, device=device)


def strides_of(*arrays, bias=None):
    """The strides of (batch, token, head) of each array, and those of (batch, head, query) of the bias."""
    of_bias = (0, 0, 0) if bias is None else tuple(0 if n == 1 else s for n, s in zip(bias.shape, bias.stride()))[:3]
    return (*(a.stride()[:3] for a in arrays), of_bias)


def block_d(head_size):
    """Columns of a tile: a power of two, and a dot wants 16 or more."""
    return max(16, triton.next_power_of_2(head_size))


def extras(bias, rng):
    """What takes registers of its own, as configs.py names it: a bias, with or without dropout, comes first."""
    return "+bias" if bias is not None else "+dropout" if rng is not None else ""


def sources(config, rows, *arrays):
    """What load_tile() and load_numbers() read from, and the configuration with TMA on or off.

    arrays: (B, T, H, D) or (B, H, T), in tiles of config[rows] rows. They become descriptors where config says TMA and
    the hardware can: all must start at multiples of 16 bytes.
    """
    steps = [s * x.element_size() for x in arrays for s in x.stride()[:-1]]         # 0 where an array is repeated
    if not config.get("TMA") or any(x.data_ptr() % 16 for x in arrays) or any(s == 0 or s % 16 for s in steps):
        return arrays, {**config, "TMA": False}
    block = lambda x: [1, config[rows], 1, block_d(x.shape[3])] if x.ndim == 4 else [1, 1, config[rows]]
    return [TensorDescriptor.from_tensor(x, block(x)) for x in arrays], config
