"""Where randomness starts: one seed for initial weights, dropout and sampling."""
import numpy as np

_state = {"seed": 0, "step": 0, "site": 0}
_weights = np.random.default_rng(0)


def manual_seed(seed):
    """Start again from `seed` (0 <= seed < 2^63): the same seed gives the same weights, dropout masks and samples."""
    global _weights
    set_state({"seed": int(seed), "step": 0, "site": 0})
    _weights = np.random.default_rng(seed)


def weights():
    """The NumPy generator that initial weights are drawn from."""
    return _weights


def draw():
    """(rng, site) for one random operation: rng = array (seed, step),
    site = how many were drawn before it in this step.

    Together they are the counter of ops/random.py, so no two operations ever see the same numbers.
    """
    site = _state["site"]
    _state["site"] += 1
    return np.array([_state["seed"], _state["step"]], np.int64), site


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
