"""Check a gradient against finite differences: whoever writes a backward pass needs this.

For a function f and a small step h along a direction d, (f(x + h d) - f(x - h d)) / 2h approaches the slope of f along
d, which is the dot product of the gradient with d. One random direction meets every entry of the gradient at once: a
wrong entry would have to be cancelled by chance, or be small beside the others. In float64 both sides agree to about
1e-9; in float32 they would not, because f(x + h d) - f(x - h d) loses most of its digits.
"""
import numpy as np

from . import random
from .tensor import Tensor

FEW, MANY = 64, 1024    # up to FEW entries are always checked one by one; up to MANY once a random direction went wrong


def gradcheck(fn, inputs, tolerance=1e-6, directions=2, step=1e-5, seed=0):
    """Compare the gradients of `fn` with finite differences; True, or an AssertionError that names the worst entry.

    fn: takes the inputs, returns a Tensor or a tuple of them. inputs: a list of Tensors, float64 where they require a
    gradient, and of whatever else fn takes. A slope along a random direction may be off by tolerance * (the slope + the
    norm of the gradient), an entry by tolerance * (the entry + a thousandth of that norm), so that a small one beside
    large ones is looked at, too; both by what rounding the outputs amounts to. Dropout is repeatable: every call of fn
    sees the same masks.
    """
    inputs = list(inputs)
    checked = _checked(inputs)
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
    if all(tensors[i].grad is None for i in checked):
        raise ValueError("gradcheck: no gradient reached the inputs; fn must compute with the tensors that it is "
                         "given, not with those it knows from elsewhere")
    rounding = np.finfo(np.float64).eps / step * sum(np.abs(w * o.numpy()).sum() for w, o in zip(weights, outs))
    grads = {i: np.zeros_like(base[i]) if tensors[i].grad is None else tensors[i].grad for i in checked}

    def slope(i, direction):
        """The finite difference along `direction` of input i."""
        ends = []
        for sign in (1, -1):
            arrays = list(base)
            arrays[i] = base[i] + sign * step * direction
            ends.append([o.numpy() for o in outputs(arrays)[1]])
        return sum((w * (up - down)).sum() for w, up, down in zip(weights, *ends)) / (2 * step)

    def compare(i, direction, share, place):
        """(how many times the allowed error, what was found where)"""
        expected, found = slope(i, direction), (grads[i] * direction).sum()
        allowed = tolerance * (abs(expected) + share * max(np.linalg.norm(grads[i]), 1e-3)) + rounding
        times = abs(found - expected) / allowed
        found = f"input {i} of shape {base[i].shape}, {place}: backward() gives {found:.9g}, finite differences "
        return np.inf if np.isnan(times) else times, f"{found}{expected:.9g}"       # NaN is worst of all

    worst = []
    for i in checked:
        randoms = [rng.standard_normal(base[i].shape) for _ in range(directions)]
        results = [compare(i, d / max(np.linalg.norm(d), 1e-9), 1.0, "a random direction") for d in randoms]
        if base[i].size <= (FEW if max(results, default=(0, ""))[0] <= 1 else MANY):
            entries = [compare(i, unit.reshape(base[i].shape), 1e-3, f"entry {index}")
                       for index, unit in zip(np.ndindex(base[i].shape), np.eye(base[i].size))]
            results = entries if max(entries, default=(0, ""))[0] > 1 else results
        worst.append(max(results, default=(0, "")))
    if max(worst)[0] > 1:
        raise AssertionError(f"gradcheck of {getattr(fn, '__name__', 'fn')}: {sum(times > 1 for times, _ in worst)} of "
                             f"{len(checked)} gradients are wrong, most of all {max(worst)[1]}, "
                             f"{max(worst)[0]:.2g} times the allowed error")
    return True


def _checked(inputs):
    """The numbers of the inputs that require a gradient; ValueError if there is none, or one is not float64."""
    checked = [i for i, t in enumerate(inputs) if isinstance(t, Tensor) and t.requires_grad]
    if not checked:
        raise ValueError("gradcheck: none of the inputs requires a gradient; pass Tensor(array, requires_grad=True)")
    for i in checked:
        if inputs[i].dtype != np.float64:
            raise ValueError(f"gradcheck: input {i} is {inputs[i].dtype}; finite differences need float64, for example "
                             "Tensor(array.astype(np.float64), requires_grad=True)")
    return checked
