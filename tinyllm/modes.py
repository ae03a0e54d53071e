"""Three switches: whether the tape records, whether it looks for NaN, and whether attention can be watched.

Each thread has its own: one may write with a model while another trains its own.
"""
import contextlib
import threading

import numpy as np

from . import backend, shapes


class Switches(threading.local):
    """What `here` holds; a thread begins with these."""
    recording = True
    anomaly = False
    attention_maps = None           # a list while somebody watches


here = Switches()


@contextlib.contextmanager
def no_grad():
    """Inside `with no_grad():` nothing is put on the tape and nothing is kept for a backward pass."""
    before, here.recording = here.recording, False
    try:
        yield
    finally:
        here.recording = before


@contextlib.contextmanager
def detect_anomaly():
    """Inside `with detect_anomaly():` the operation that makes the first NaN, forward or backward,
    raises and is named.
    """
    before, here.anomaly = here.anomaly, True
    try:
        yield
    finally:
        here.anomaly = before


@contextlib.contextmanager
def watch_attention():
    """Inside `with watch_attention() as maps:` each attention that is computed appends its weights to the list `maps`.

    They are NumPy arrays (B, H, T, S): for each head, how much each of T queries looks at each of S keys. Layers come
    in the order in which they run. The weights are computed once more for it, without dropout: to look at, not to
    train.
    """
    before, here.attention_maps = here.attention_maps, []
    try:
        yield here.attention_maps
    finally:
        here.attention_maps = before


def looking():
    """Whether somebody looks at numbers on their way, which a recorded step (kernels/graph.py) cannot let them do."""
    return here.anomaly or here.attention_maps is not None


def refuse_nan(name, what, arrays, input_shapes):
    """FloatingPointError if one of the arrays that operation `name` has just made contains NaN."""
    for i, array in enumerate(arrays):
        if array is not None and shapes.is_float(array):
            values = array if isinstance(array, np.generic) else backend.of(array).to_numpy(array)
            if np.isnan(values).any():
                raise FloatingPointError(f"anomaly mode: {what} {i} of {name} is the first to contain NaN; its tensor "
                                         f"inputs have shapes {', '.join(map(str, input_shapes))}")
