"""Embedding: a token id picks a row of the table.

    out[n, :] = weight[ids[n], :]                 (twin: tinyllm/ops/embedding.py)
    dweight[v, :] = sum of dout[n, :] over all n with ids[n] = v

    ids_ptr                 (N,) int32 or int64
    weight_ptr, dweight_ptr (V, C)
    out_ptr, dout_ptr       (N, C)
    grid                    (ceil(N / BLOCK_ROWS), ceil(C / BLOCK_COLUMNS))
"""

import triton
import triton.language as tl

from . import runtime

BLOCK_ROWS = 32


@triton.jit
def embedding_forward_kernel(ids_ptr, weight_ptr, out_ptr, n_rows, n_columns, n_vocabulary,
                             BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr):
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    ids = tl.load(ids_ptr + rows, mask=rows < n_rows, other=0).to(tl.int64)
    no_overhang = (rows < n_rows)[:, None] & (columns < n_columns)[None, :]
    no_foreign_id = ((ids >= 0) & (ids < n_vocabulary))[:, None]
    # A GPU cannot raise IndexError. An id outside the table becomes a row of NaN, which nobody overlooks.
    embedded = tl.load(weight_ptr + ids[:, None] * n_columns + columns[None, :],
                       mask=no_overhang & no_foreign_id, other=float("nan"))
    tl.store(out_ptr + rows[:, None].to(tl.int64) * n_columns + columns[None, :], embedded, mask=no_overhang)


@triton.jit
def embedding_backward_kernel(ids_ptr, dout_ptr, dweight_ptr, n_rows, n_columns, n_vocabulary,
                              BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr):
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    ids = tl.load(ids_ptr + rows, mask=rows < n_rows, other=0).to(tl.int64)
    no_overhang = (rows < n_rows)[:, None] & (columns < n_columns)[None, :]
    no_foreign_id = ((ids >= 0) & (ids < n_vocabulary))[:, None]
    dout = tl.load(dout_ptr + rows[:, None].to(tl.int64) * n_columns + columns[None, :], mask=no_overhang)
    # The same id may stand in many rows, also in other programs' rows: only an atomic addition loses none of them.
    tl.atomic_add(dweight_ptr + ids[:, None] * n_columns + columns[None, :], dout, mask=no_overhang & no_foreign_id)


def embedding_forward(ids, weight, *, needs=(False, True)):
    """Look up rows: ids (...) of integers in [0, V), weight (V, C) -> (out (..., C), saved).

    `needs` says which gradients backward will compute. An id outside the table gives a row of NaN.
    """
    ids = runtime.contiguous(ids)
    weight = runtime.contiguous(weight)
    vocabulary, channels = weight.shape
    out = runtime.empty((*ids.shape, channels), weight.dtype)
    grid, block_columns = _tiles(ids, channels)
    embedding_forward_kernel[grid](ids, weight, out, ids.numel(), channels, vocabulary,
                                   BLOCK_ROWS=BLOCK_ROWS, BLOCK_COLUMNS=block_columns)
    return out, (ids, vocabulary, needs)


def embedding_backward(dout, saved):
    """Scatter-add: dout (..., C) -> (None, dweight (V, C)).

    On a GPU the additions come in any order and float32 rounds each, so two runs may differ in the last digits.
    """
    ids, vocabulary, needs = saved
    if not needs[1]:
        return None, None
    channels = dout.shape[-1]
    dweight = runtime.empty((vocabulary, channels), dout.dtype).zero_()
    grid, block_columns = _tiles(ids, channels)
    embedding_backward_kernel[grid](ids, runtime.contiguous(dout), dweight, ids.numel(), channels, vocabulary,
                                    BLOCK_ROWS=BLOCK_ROWS, BLOCK_COLUMNS=block_columns)
    return None, dweight


def _tiles(ids, channels):
    """Cover (N, C) with tiles -> (grid, columns of a tile)."""
    block_columns = min(128, triton.next_power_of_2(channels))
    return (triton.cdiv(ids.numel(), BLOCK_ROWS), triton.cdiv(channels, block_columns)), block_columns
