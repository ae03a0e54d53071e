"""Where randomness starts: one seed for initial weights, dropout and sampling."""
import contextlib

import numpy as np

from . import ops

_state = {"seed": 0, "step": 0, "site": 0}
_weights = np.random.default_rng(0)
_initialising = True
_given = None               # the array that random operations read instead of the state, inside drawn_from()


def manual_seed(seed):
    """Start again from `seed` (0 <= seed < 2^63): the same seed gives the same weights, dropout masks and samples."""
    global _weights
    set_state({"seed": check_seed(seed), "step": 0, "site": 0})
    _weights = np.random.default_rng(seed)


def check_seed(seed):
    """A seed as a Python integer; ValueError if it is none."""
    if not 0 <= seed < 2**63 or seed != int(seed):
        raise ValueError(f"a seed is a whole number from 0 to below 2^63, not {seed}")
    return int(seed)


def weights():
    """The NumPy generator that initial weights are drawn from."""
    return _weights


@contextlib.contextmanager
def no_initial_weights():
    """Inside, new parameters have a shape and no numbers, and nothing is drawn: a file will bring them (pretrained.py).

    For GPT-2 small, drawing takes seconds, and half as much memory again as the model.
    """
    global _initialising
    before, _initialising = _initialising, False
    try:
        yield
    finally:
        _initialising = before


def initialising():
    """Whether new parameters begin with numbers: True outside of no_initial_weights()."""
    return _initialising


def draw():
    """(rng, site) for one random operation: rng = array (seed, step),
    site = how many random operations came before it in this step.

    The seed is the key of ops/random.py; step and site go into its counter, next to the number of the element. So no
    two operations of a run see the same numbers, and who goes back to a step, or a state, sees the same ones again.
    """
    site = _state["site"]
    _state["site"] += 1
    return counter() if _given is None else _given, site


def counter():
    """The array (seed, step) of this moment."""
    return np.array([_state["seed"], _state["step"]], np.int64)


@contextlib.contextmanager
def drawn_from(rng):
    """Inside, random operations read (seed, step) from this array, which may be a device's, and their sites count from
    0: for a step that is recorded once, and played back as other steps.
    """
    global _given
    before, _given, _state["site"] = _given, rng, 0
    try:
        yield
    finally:
        _given = before


def new_seed():
    """A seed for a stream of its own, such as one generated text: drawn like all else, so manual_seed() decides it."""
    rng, site = draw()
    high, low = ops.first_bits(rng, 2, site).tolist()
    return (high >> 1) << 32 | low                      # 63 bits


def next_step(step=None):
    """Begin training step `step` (default: the next one): the sites count from 0 again."""
    _state["step"] = _state["step"] + 1 if step is None else step
    _state["site"] = 0


def get_state():
    """The state of dropout and sampling, as a small dictionary; set_state() continues from it."""
    return dict(_state)


def set_state(state):
    """Continue from a state that get_state() returned."""
    _state.update(state)
