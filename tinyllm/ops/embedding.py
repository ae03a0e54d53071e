"""Embedding: a table of vectors, one per token; looking one up is all there is to it."""
import numpy as np

from . import memory
from .memory import add_into, rows

ONE_HOT_LIMIT = 8_000_000       # elements of the one-hot matrix up to which the product below is the faster way


def embedding_forward(ids, weight, *, needs=(False, True)):
    """out[..., :] = weight[ids]: ids (...) integers in [0, V), weight (V, C) -> (..., C)"""
    return weight[ids], (ids, weight.shape, needs)


def embedding_backward(dout, saved, into=(None, None)):
    """dweight[v] = sum of dout over the places where token v stood; into[1]: an array to which it is added, IN PLACE.

    NumPy's own scatter-add (np.add.at) is 3 to 5 times slower than either way here. Small tables: a product with the
    one-hot matrix of the ids. Large ones: sort the places by token and sum each run of equal tokens.
    """
    ids, shape, needs = saved
    if not needs[1]:
        return None, None
    ids, dout = ids.reshape(-1), rows(dout)         # (N,), (N, C)
    if ids.size * shape[0] <= ONE_HOT_LIMIT:
        one_hot = (ids == np.arange(shape[0])[:, None]).astype(dout.dtype)     # (V, N)
        return None, add_into(into[1], one_hot @ dout)                          # (V, C)
    dweight = into[1]
    if dweight is None:
        dweight = memory.empty(shape, dout.dtype)
        dweight[...] = 0
    order = np.argsort(ids, kind="stable")
    tokens, starts = np.unique(ids[order], return_index=True)
    dweight[tokens] += np.add.reduceat(dout[order], starts, axis=0)
    return None, dweight
