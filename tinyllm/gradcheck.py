"""Check a gradient against finite differences: whoever writes a backward pass needs this.

For a function f and a small step h along a direction d, (f(x + h d) - f(x - h d)) / 2h approaches the slope of f along
d, which is the dot product of the gradient with d. One random direction meets every entry of the gradient at once: a
wrong entry would have to be cancelled by chance. In float64 both sides agree to about 1e-9; in float32 they would not,
because f(x + h d) - f(x - h d) loses most of its digits.
"""
import numpy as np

from . import random
from .tensor import Tensor


def gradcheck(fn, inputs, tolerance=1e-6, directions=2, step=1e-5, seed=0):
    """Compare the gradients of `fn` with finite differences; return True or raise AssertionError.

    fn: takes the inputs, returns a Tensor or a tuple of them. inputs: a list of Tensors, float64 where they require a
    gradient. tolerance: largest error, relative to the gradient's norm. Inputs of at most 64 elements are checked
    entry by entry as well, so the error can name the worst input and its worst entry. Dropout is repeatable: every
    call of fn sees the same masks.
    """
    inputs = list(inputs)
    checked = [i for i, t in enumerate(inputs) if isinstance(t, Tensor) and t.requires_grad]
    if not checked:
        raise ValueError("gradcheck: none of the inputs requires a gradient; pass Tensor(array, requires_grad=True)")
    for i in checked:
        if inputs[i].dtype != np.float64:
            raise ValueError(f"gradcheck: input {i} is {inputs[i].dtype}; finite differences need float64, for example "
                             "Tensor(array.astype(np.float64), requires_grad=True)")
    rng, state = np.random.default_rng(seed), random.get_state()

    def outputs(arrays):
        random.set_state(state)
        tensors = [Tensor(a, requires_grad=i in checked) if isinstance(inputs[i], Tensor) else a
                   for i, a in enumerate(arrays)]
        out = fn(*tensors)
        return tensors, out if isinstance(out, tuple) else (out,)

    base = [np.array(t.data) if isinstance(t, Tensor) else t for t in inputs]
    tensors, outs = outputs(base)
    weights = [rng.standard_normal(o.shape) for o in outs]      # an upstream gradient that is nowhere uniform
    total = sum(((o * w).sum() for o, w in zip(outs, weights)), start=Tensor(np.float64(0)))
    total.backward()
    grads = {i: np.zeros_like(base[i]) if tensors[i].grad is None else tensors[i].grad for i in checked}

    def slope(i, direction):
        """The finite difference along `direction` of input i."""
        ends = []
        for sign in (1, -1):
            arrays = list(base)
            arrays[i] = base[i] + sign * step * direction
            ends.append([o.numpy() for o in outputs(arrays)[1]])
        return sum((w * (up - down)).sum() for w, up, down in zip(weights, *ends)) / (2 * step)

    for i in checked:
        entries = list(np.eye(base[i].size).reshape(base[i].size, *base[i].shape)) if base[i].size <= 64 else []
        randoms = [rng.standard_normal(base[i].shape) for _ in range(directions)]
        size = max(np.linalg.norm(grads[i]), 1e-3)
        worst, where = 0.0, ""
        for n, direction in enumerate(entries + [d / max(1e-9, np.linalg.norm(d)) for d in randoms]):
            expected, found = slope(i, direction), (grads[i] * direction).sum()
            error = abs(found - expected) / max(size, abs(expected))
            if not error <= worst:          # NaN is worst of all
                place = tuple(int(k) for k in np.unravel_index(n, base[i].shape)) if n < len(entries) else "random"
                worst, where = error, (f"{'direction' if place == 'random' else 'entry'} {place}: backward() gives "
                                       f"{found:.9g}, finite differences {expected:.9g}")
        if not worst <= tolerance:
            raise AssertionError(f"gradcheck of {getattr(fn, '__name__', 'fn')}: input {i} of shape {base[i].shape} "
                                 f"is off by {worst:.2g} (allowed {tolerance:g}) at {where}")
    return True
