"""Dropout: switch elements off at random while training, so that no unit can rely on any other."""
import numpy as np

from .random import bits_of_rows


def keep_mask(rng, shape, p, site):
    """Booleans, each False with probability p; the same (seed, step), site and shape give the same mask."""
    return bits_of_rows(rng, shape, site) >= np.uint32(min(p * 2**32, 2**32 - 1))


def dropout_forward(x, rng, *, p, site=0):
    """out = x * keep / (1 - p): the survivors are scaled up, so the expected value stays x.

    x: any shape, rng: (seed, step), 0 <= p < 1. Source: Srivastava et al. 2014.
    """
    keep = keep_mask(rng, x.shape, p, site)
    return x * keep * (1 / (1 - p)), (keep, p)


def dropout_backward(dout, saved):
    """dx = dout * keep / (1 - p): what was switched off learns nothing."""
    keep, p = saved
    return dout * keep * (1 / (1 - p)), None
