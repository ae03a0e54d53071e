"""A matrix of weights in one byte per number, which is what counts when a model writes.

For each token that it writes, a model reads all of its weights once and uses each for one multiplication: how fast they
can be read decides everything. Rounded to 8 bits they are a quarter as much to read, and to keep:

    scale_o = max over i of |W_oi| / 127,      w_oi = round(W_oi / scale_o),      W_oi ~ scale_o w_oi

Each row, which makes one output, has a scale of its own, so that a row of small weights is not measured by the largest
weight of another. No weight moves by more than scale_o / 2, 1/254 of the largest in its row. Activations stay as they
are. Source: Dettmers et al. 2022, "LLM.int8()", arXiv:2208.07339, section 3.1 (there, for activations as well).
"""
import numpy as np

from . import backend

ROWS = 64           # are rounded at a time: no second matrix of floats


class Int8:
    """A matrix (O, I): values (O, I) int8 and scale (O,) float32, arrays of one backend. It stands for scale * values.

    F.linear() and its like take one in the place of a weight. It is no Tensor: there is nothing to learn in it.
    """

    def __init__(self, values, scale):
        self.values, self.scale = values, scale

    @classmethod
    def of(cls, weight):
        """A Tensor (O, I), rounded; the Tensor itself stays as it is. ValueError if it holds NaN or infinity."""
        ops, weight = backend.of(weight.data), weight.numpy()
        largest = np.maximum(weight.max(axis=1, initial=0), -weight.min(axis=1, initial=0))
        if not np.isfinite(largest).all():
            raise ValueError(f"Int8: the matrix {weight.shape} holds NaN or infinity, which no integer stands for; did "
                             "the model's training go wrong?")
        scale = (largest / 127).astype(np.float32)
        scale[scale == 0] = 1                                   # a row of zeros stays one
        values = np.empty(weight.shape, np.int8)
        for first in range(0, len(values), ROWS):
            rows = slice(first, first + ROWS)
            values[rows] = np.clip(np.rint(weight[rows] / scale[rows, None]), -127, 127)
        return cls(ops.from_numpy(values), ops.from_numpy(scale))

    @property
    def shape(self):
        return tuple(self.values.shape)

    def __getitem__(self, rows):
        """Some of the rows: a slice"""
        return Int8(self.values[rows], self.scale[rows])

    def numpy(self):
        """The matrix that it stands for: (O, I) float32"""
        ops = backend.of(self.values)
        return ops.to_numpy(self.values) * ops.to_numpy(self.scale)[:, None]
