"""One kernel for everything that is computed element by element.

    out = f(a, b, ...), operands broadcast as in NumPy

The first kernel to read is add_kernel. A *program* is one run of a kernel's body; the *grid* says how many run. Program
i adds BLOCK neighbouring numbers, the last program fewer, and a mask keeps its overhang out of foreign memory.

map_kernel is the same, grown up: any number of operands and results, any strides, and the function itself an argument,
which the compiler sees through. Axes along which all operands run on are merged first, so that hardly an array has
more than four; the last axis runs along the columns of a tile, the others along its rows.

    inputs         pointers; strides[i] are the four strides of inputs[i], 0 where it is repeated
    outputs        pointers to row-major arrays
    sizes          the four merged sizes
    grid           (row blocks x column blocks,)

Everything is loaded as float32 and computed as float32; the store rounds to the type of the output.
"""

import math

import torch
import triton
import triton.language as tl

from . import runtime

TILE = 4096         # numbers a program works on: 8 warps of 32 threads with 16 numbers each
COLUMNS = 1024      # the widest tile: 4 rows


@triton.jit
def add_kernel(a_ptr, b_ptr, out_ptr, n, BLOCK: tl.constexpr):
    """out = a + b for three row-major arrays of n numbers; grid (ceil(n / BLOCK),)"""
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    no_overhang = offsets < n
    a = tl.load(a_ptr + offsets, mask=no_overhang)
    b = tl.load(b_ptr + offsets, mask=no_overhang)
    tl.store(out_ptr + offsets, a + b, mask=no_overhang)


@triton.jit
def map_kernel(inputs, strides, outputs, sizes, FUNCTION: tl.constexpr, BLOCK_ROWS: tl.constexpr,
               BLOCK_COLUMNS: tl.constexpr):
    column_blocks = tl.cdiv(sizes[3], BLOCK_COLUMNS)
    # 64 bits, because an array may hold more than 2^31 numbers
    rows = (tl.program_id(0) // column_blocks).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = (tl.program_id(0) % column_blocks).to(tl.int64) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    first = rows // sizes[2] // sizes[1]
    second = rows // sizes[2] % sizes[1]
    third = rows % sizes[2]
    no_overhang = (first < sizes[0])[:, None] & (columns < sizes[3])[None, :]
    values = ()
    for i in tl.static_range(len(inputs)):
        row_offsets = first * strides[i][0] + second * strides[i][1] + third * strides[i][2]
        offsets = row_offsets[:, None] + columns[None, :] * strides[i][3]
        # 1 in the overhang: every function here is defined there
        values = values + (tl.load(inputs[i] + offsets, mask=no_overhang, other=1).to(tl.float32),)
    offsets = rows[:, None] * sizes[3] + columns[None, :]
    results = FUNCTION(*values)
    if len(outputs) == 1:
        tl.store(outputs[0] + offsets, results, mask=no_overhang)
    else:
        for i in tl.static_range(len(outputs)):
            tl.store(outputs[i] + offsets, results[i], mask=no_overhang)


def map_(function, *inputs, n_outputs=1, dtype=None):
    """function(*inputs) element by element, function being jitted: one new array, or a tuple of n_outputs.

    dtype: of the outputs; by default float32 if an input is, else the 16-bit type that they share.
    """
    shape = torch.broadcast_shapes(*(x.shape for x in inputs))
    dtype = dtype or promoted(*inputs)
    outputs = tuple(runtime.empty(shape, dtype) for _ in range(n_outputs))
    if math.prod(shape):
        sizes, inputs, strides = merge_axes(shape, inputs)
        block_columns = min(COLUMNS if sizes[2] > 1 else TILE, power_of_2(sizes[3]))
        block_rows = min(TILE // block_columns, power_of_2(math.prod(sizes[:3])))
        grid = (triton.cdiv(math.prod(sizes[:3]), block_rows) * triton.cdiv(sizes[3], block_columns),)
        map_kernel[grid](inputs, strides, outputs, sizes, FUNCTION=function, BLOCK_ROWS=block_rows,
                         BLOCK_COLUMNS=block_columns, num_warps=8)
    return outputs if n_outputs > 1 else outputs[0]


def promoted(*inputs):
    """The dtype of a result of these arrays: the widest floating one among them."""
    floats = [x.dtype for x in inputs if x.dtype.is_floating_point]
    return floats[0] if len(set(floats)) == 1 else torch.float32


def merge_axes(shape, inputs):
    """(sizes, inputs, strides) with four axes: neighbours along which every input runs on become one.

    An input that still has more axes then, such as a permuted one, is copied into row-major order.
    """
    inputs = tuple(x.expand(shape) for x in inputs)
    strides = [x.stride() for x in inputs]
    merged = [(1, (0,) * len(inputs))]                      # (size, its stride in each input), from the last axis on
    for axis in reversed([i for i, n in enumerate(shape) if n > 1]):
        size, steps = merged[-1]
        own = tuple(s[axis] for s in strides)
        if size == 1:
            merged[-1] = shape[axis], own
        elif all(step * size == stride for step, stride in zip(steps, own)):
            merged[-1] = size * shape[axis], steps
        else:
            merged.append((shape[axis], own))
    if len(merged) > 4:
        return merge_axes(shape, tuple(runtime.contiguous(x) for x in inputs))
    merged = merged[::-1]
    merged = [(1, (0,) * len(inputs))] * (4 - len(merged)) + merged
    return tuple(size for size, _ in merged), inputs, tuple(zip(*(steps for _, steps in merged)))


def row_blocks(n_rows, n_columns):
    """Long pieces of a row, and as many rows as fill the tile: (grid, blocks) for kernels that work on rows."""
    block_columns = min(COLUMNS, power_of_2(n_columns))
    block_rows = TILE // block_columns
    return (triton.cdiv(n_rows, block_rows),), {"BLOCK_ROWS": block_rows, "BLOCK_COLUMNS": block_columns}


def power_of_2(n):
    """The smallest power of two that is at least n, and at least 1: the sizes that a block may have."""
    return triton.next_power_of_2(max(1, n))
