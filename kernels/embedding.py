"""Embedding: a token id picks a row of the table.

    out[n, :] = weight[ids[n], :]                 (twin: tinyllm/ops/embedding.py)
    dweight[v, :] = sum of dout[n, :] over all n with ids[n] = v

    ids_ptr                 (N,) int32 or int64
    weight_ptr, dweight_ptr (V, C); dweight in float32
    out_ptr, dout_ptr       (N, C)
    grid                    (ceil(N / BLOCK_ROWS), ceil(C / BLOCK_COLUMNS)); sorted: (N, ceil(C / BLOCK_COLUMNS))

The gradient has two kernels. Adding rows up with atomic additions is fast, and ends in other last digits each time,
as float32 rounds and the order is whatever it is. With runtime.deterministic, equal ids are first sorted together, and
one program adds up all rows of an id, one after another.
"""

import torch
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
    known = no_overhang & ((ids >= 0) & (ids < n_vocabulary))[:, None]
    dout = tl.load(dout_ptr + rows[:, None].to(tl.int64) * n_columns + columns[None, :], mask=no_overhang, other=0.0)
    places = ids[:, None] * n_columns + columns[None, :]
    # The same id may stand in many rows, also in other programs' rows: only an atomic addition loses none of them.
    tl.atomic_add(dweight_ptr + places, dout.to(tl.float32), mask=known, sem="relaxed")


@triton.jit
def embedding_backward_sorted_kernel(sorted_ptr, order_ptr, dout_ptr, dweight_ptr, n_rows, n_columns,
                                     BLOCK_COLUMNS: tl.constexpr):
    """Program p looks at place p of the sorted ids (N,); if a run of equal ids starts there, it adds up their rows.

    order_ptr (N,): in which row the id at each sorted place stood.
    """
    place = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    id = tl.load(sorted_ptr + place)
    if place > 0:
        if tl.load(sorted_ptr + place - 1) == id:
            return
    places = dweight_ptr + id.to(tl.int64) * n_columns + columns
    total = tl.load(places, mask=columns < n_columns, other=0.0)
    last = id
    while last == id:
        row = tl.load(order_ptr + place).to(tl.int64)
        total += tl.load(dout_ptr + row * n_columns + columns, mask=columns < n_columns, other=0.0).to(tl.float32)
        place += 1
        last = tl.load(sorted_ptr + place, mask=place < n_rows, other=-1)
    tl.store(places, total, mask=columns < n_columns)


def embedding_forward(ids, weight, *, needs=(False, True)):
    """Look up rows: ids (...) of integers in [0, V), weight (V, C) -> (out (..., C), saved).

    `needs` says which gradients backward will compute. An id outside the table gives a row of NaN.
    """
    ids = runtime.contiguous(ids)
    weight = runtime.contiguous(weight)
    vocabulary, channels = weight.shape
    out = runtime.empty((*ids.shape, channels), weight.dtype)
    if out.numel():
        grid, block_columns = _tiles(ids, channels)
        embedding_forward_kernel[grid](ids, weight, out, ids.numel(), channels, vocabulary,
                                       BLOCK_ROWS=BLOCK_ROWS, BLOCK_COLUMNS=block_columns)
    return out, (ids, vocabulary, needs)


def embedding_backward(dout, saved, into=(None, None)):
    """Scatter-add: dout (..., C) -> (None, dweight (V, C) in float32).

    into[1]: an array to which dweight is added, IN PLACE, or None.
    """
    ids, vocabulary, needs = saved
    if not needs[1]:
        return None, None
    channels = dout.shape[-1]
    dout = runtime.contiguous(dout)
    dweight = runtime.empty((vocabulary, channels), torch.float32).zero_() if into[1] is None else into[1]
    if dout.numel():
        grid, block_columns = _tiles(ids, channels)
        if runtime.deterministic:
            ordered, order = torch.sort(ids.view(-1), stable=True)
            embedding_backward_sorted_kernel[(ids.numel(), grid[1])](ordered, order, dout, dweight, ids.numel(),
                                                                     channels, BLOCK_COLUMNS=block_columns)
        else:
            embedding_backward_kernel[grid](ids, dout, dweight, ids.numel(), channels, vocabulary,
                                            BLOCK_ROWS=BLOCK_ROWS, BLOCK_COLUMNS=block_columns)
    return None, dweight


def _tiles(ids, channels):
    """Cover (N, C) with tiles -> (grid, columns of a tile)."""
    block_columns = min(128, triton.next_power_of_2(channels))
    return (triton.cdiv(ids.numel(), BLOCK_ROWS), triton.cdiv(channels, block_columns)), block_columns
