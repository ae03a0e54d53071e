"""Operations that move numbers and compute nothing: the gradient moves back the same way."""
import numpy as np

from . import memory


def reshape_forward(x, *, shape):
    """The same elements in another shape (one entry may be -1)."""
    return x.reshape(shape), (x.shape,)


def reshape_backward(dout, saved):
    """dx = dout in x's shape"""
    (shape,) = saved
    return (dout.reshape(shape),)


def permute_forward(x, *, axes):
    """Axis i of the result is axis axes[i] of x: (2, 3, 5) permuted by (2, 0, 1) is (5, 2, 3)."""
    return x.transpose(axes), (tuple(a % x.ndim for a in axes),)


def permute_backward(dout, saved):
    """The inverse permutation."""
    (axes,) = saved
    return (dout.transpose(np.argsort(axes)),)


def getitem_forward(x, *, index):
    """out = x[index]: integers, slices, None, ..., boolean and integer arrays, as in NumPy."""
    return x[index], (x.shape, index)


def getitem_backward(dout, saved):
    """dx is zero except at the positions read; a position read twice gets both gradients."""
    shape, index = saved
    dx = memory.empty(shape, dout.dtype)
    dx[...] = 0
    parts = index if isinstance(index, tuple) else (index,)
    if any(isinstance(part, (np.ndarray, list, tuple)) for part in parts):
        np.add.at(dx, index, dout)      # dx[index] += dout would keep only one of several equal indices
    else:
        dx[index] = dout
    return (dx,)


def concatenate_forward(*arrays, axis=0):
    """Arrays one after another along `axis`; the other axes agree."""
    return np.concatenate(arrays, axis=axis), (tuple(a.shape[axis] for a in arrays), axis)


def concatenate_backward(dout, saved):
    """Cut the gradient where the arrays met."""
    sizes, axis = saved
    return tuple(np.split(dout, np.cumsum(sizes)[:-1], axis=axis))


def split_forward(x, *, sizes, axis=0):
    """Pieces of x of the given sizes along `axis`: one output each."""
    return tuple(np.split(x, np.cumsum(sizes)[:-1], axis=axis)), (x.shape, sizes, axis)


def split_backward(*douts, saved):
    """Put the pieces' gradients side by side again; a piece that nobody used brings zeros."""
    shape, sizes, axis = saved
    dx = memory.empty(shape, next(d.dtype for d in douts if d is not None))
    for piece, dout in zip(np.split(dx, np.cumsum(sizes)[:-1], axis=axis), douts):
        piece[...] = 0 if dout is None else dout
    return (dx,)


def cast_forward(x, *, dtype):
    """out = x in another floating-point type"""
    return x.astype(dtype), (x.dtype,)


def cast_backward(dout, saved):
    """dx = dout in x's type"""
    (dtype,) = saved
    return (dout.astype(dtype),)
