"""Operations that move numbers and compute nothing: mostly another view of the same memory, for which no kernel runs.

Twin of tinyllm/ops/movement.py. Copies are torch's; picking elements by arrays of indices is a look-up in a table, and
its gradient the scatter-add of embedding.py.
"""

import math

import numpy as np

from . import runtime
from .embedding import embedding_backward, embedding_forward


def reshape_forward(x, *, shape):
    """The same elements in another shape (one entry may be -1)."""
    return runtime.contiguous(x).view(shape), (x.shape,)


def reshape_backward(dout, saved):
    """dx = dout in x's shape"""
    (shape,) = saved
    return (runtime.contiguous(dout).view(shape),)


def permute_forward(x, *, axes):
    """Axis i of the result is axis axes[i] of x: a view."""
    return x.permute(axes), (tuple(a % x.ndim for a in axes),)


def permute_backward(dout, saved):
    """The inverse permutation."""
    (axes,) = saved
    return (dout.permute([axes.index(i) for i in range(len(axes))]),)


def getitem_forward(x, *, index):
    """out = x[index]: integers, slices, None, ..., boolean and integer arrays, as in NumPy.

    Numbers and forward slices give a view. Anything else is resolved on the host: NumPy picks from the numbers of the
    positions along the axes that the index names, and the device looks up those positions, runs of the other axes at
    a time.
    """
    parts = index if isinstance(index, tuple) else (index,)
    if all(_is_basic(part) for part in parts):
        return x[index], (x.shape, index, None)
    depth = x.ndim if Ellipsis in [p for p in parts if not isinstance(p, np.ndarray)] else sum(map(_axes_named, parts))
    named, rest = x.shape[:depth], x.shape[depth:]
    picked = np.arange(math.prod(named)).reshape(named)[index]
    out, saved = embedding_forward(runtime.from_numpy(picked.reshape(-1)),
                                   runtime.contiguous(x).view(math.prod(named), math.prod(rest)))
    return out.view(*picked.shape, *rest), (x.shape, None, saved)


def getitem_backward(dout, saved):
    """dx is zero except at the positions read; a position read twice gets both gradients."""
    shape, index, places = saved
    if places is None:
        dx = runtime.empty(shape, dout.dtype).zero_()
        dx[index] = dout
        return (dx,)
    _, dx = embedding_backward(runtime.contiguous(dout).view(*places[0].shape, -1), places)
    return (dx.view(shape),)


def _is_basic(part):
    """Whether torch indexes it without a copy."""
    return part is None or part is Ellipsis or isinstance(part, (int, np.integer)) and not isinstance(part, bool) \
        or isinstance(part, slice) and (part.step is None or part.step > 0)


def _axes_named(part):
    """How many axes of the array one part of an index stands for."""
    if part is None:
        return 0
    return np.ndim(part) if np.asarray(part).dtype == bool else 1


def concatenate_forward(*arrays, axis=0):
    """Arrays one after another along `axis`; the other axes agree."""
    sizes, shape = tuple(a.shape[axis] for a in arrays), list(arrays[0].shape)
    shape[axis] = sum(sizes)
    out = runtime.empty(tuple(shape), arrays[0].dtype)
    for array, place in zip(arrays, out.split(sizes, dim=axis)):
        place.copy_(array)
    return out, (sizes, axis)


def concatenate_backward(dout, saved):
    """Cut the gradient where the arrays met."""
    sizes, axis = saved
    return tuple(dout.split(sizes, dim=axis))


def split_forward(x, *, sizes, axis=0):
    """Pieces of x of the given sizes along `axis`: views."""
    return tuple(x.split(tuple(sizes), dim=axis)), (x.shape, tuple(sizes), axis)


def split_backward(*douts, saved):
    """Put the pieces' gradients side by side again; a piece that nobody used brings zeros."""
    shape, sizes, axis = saved
    dx = runtime.empty(shape, next(d.dtype for d in douts if d is not None))
    for place, dout in zip(dx.split(sizes, dim=axis), douts):
        place.zero_() if dout is None else place.copy_(dout)
    return (dx,)


def cast_forward(x, *, dtype):
    """out = x in another floating-point type"""
    return runtime.empty(x.shape, dtype).copy_(x), (x.dtype,)


def cast_backward(dout, saved):
    """dx = dout in x's type"""
    (dtype,) = saved
    return (runtime.empty(dout.shape, dtype).copy_(dout),)
