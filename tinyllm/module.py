"""Module: a piece of a model, and the parameters in it."""
import math

import numpy as np

from . import backend, random, shapes
from .tensor import Tensor


class Module:
    """A piece of a model: its Tensors are parameters, its Modules are parts.

    Both are found by looking at the attributes, and into lists, tuples and dicts among them, in the order in which
    __init__ set them; a parameter's name is the path to it, such as "h.0.attn.c_attn.weight". A subclass sets
    attributes and defines forward().
    """

    training = True

    def __call__(self, *args, **kwargs):
        return self.forward(*args, **kwargs)

    def named_parameters(self, prefix=""):
        """(name, Tensor) for every parameter; one that is used in two places has its first name only."""
        return ((name, value) for name, value in _parts(vars(self), prefix, {id(self)}) if isinstance(value, Tensor))

    def parameters(self):
        """All parameters, in the order of named_parameters()."""
        return [p for _, p in self.named_parameters()]

    def modules(self):
        """This module and all its parts, parts of parts included."""
        yield self
        yield from (value for _, value in _parts(vars(self), "", {id(self)}) if isinstance(value, Module))

    def state_dict(self):
        """name -> NumPy array, a copy of every parameter, row by row: what writes it to a file reads its memory."""
        return {name: np.array(p.numpy(), order="C") for name, p in self.named_parameters()}

    def load_state_dict(self, state):
        """Copy arrays into the parameters of the same names;
        all must fit, or none is touched and ValueError says which.
        """
        own = dict(self.named_parameters())
        problem = shapes.mismatch({name: p.shape for name, p in own.items()}, state)
        if problem:
            turned = any(np.shape(state[name])[::-1] == p.shape != np.shape(state[name])
                         for name, p in own.items() if name in state)
            raise ValueError(f"load_state_dict of {type(self).__name__}: {problem}; nothing was loaded"
                             + ("; a mis-shaped weight is transposed (Linear stores (out_features, in_features))"
                                if turned else "; does the file belong to a model of this configuration?"))
        if texts := [name for name in own if np.asarray(state[name]).dtype.kind in "OSU"]:
            raise ValueError(f"load_state_dict of {type(self).__name__}: {texts[0]} holds no numbers; nothing was "
                             "loaded")
        for name, p in own.items():
            p.data[...] = backend.of(p.data).from_numpy(np.asarray(state[name]), dtype=p.dtype)
            p.data = p.data                 # tells the tape that the values changed

    def train(self, mode=True):
        """Switch dropout on (training) or off (evaluation) in all parts; returns self."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self):
        """train(False)"""
        return self.train(False)

    def evaluating(self):
        """`with model.evaluating():` inside, all parts are in evaluation mode; afterwards each has the mode that it had
        before. What this returns can be entered many times, and quickly.
        """
        return _Evaluating(list(self.modules()))

    def to(self, name, dtype=None):
        """Move all parameters to backend "numpy" or "triton" (as `dtype` if given); make the optimizer afterwards."""
        for p in self.parameters():
            p.data, p.grad, p.grad_buffer = p.to(name, dtype).data, None, None
        return self

    def zero_grad(self):
        """Forget all gradients."""
        for p in self.parameters():
            p.grad = p.grad_buffer = None

    def num_parameters(self):
        """How many numbers are learned; shared parameters count once."""
        return sum(math.prod(p.shape) for p in self.parameters())


class _Evaluating:
    """See Module.evaluating()."""

    def __init__(self, parts):
        self.parts, self.before = parts, []

    def __enter__(self):
        self.before.append([part.training for part in self.parts])
        for part in self.parts:
            part.training = False

    def __exit__(self, *error):
        for part, training in zip(self.parts, self.before.pop()):
            part.training = training


def _parts(container, prefix, seen):
    """(path, value) for the Tensors and Modules in a dict, list or tuple, and in what is in it; each one once."""
    for key, value in container.items() if isinstance(container, dict) else enumerate(container):
        if isinstance(value, (Tensor, Module)) and id(value) not in seen:
            seen.add(id(value))
            yield f"{prefix}{key}", value
            if isinstance(value, Module):
                yield from _parts(vars(value), f"{prefix}{key}.", seen)
        elif isinstance(value, (dict, list, tuple)):
            yield from _parts(value, f"{prefix}{key}.", seen)


def parameter(shape, start):
    """A parameter of this shape that begins with the array start(), or, in random.no_initial_weights(), without.

    Then it is a single zero, repeated with a stride of 0 bytes: it takes no memory, and cannot be written to.
    """
    if random.initialising():
        return Tensor(start(), requires_grad=True)
    placeholder = Tensor._of(np.broadcast_to(np.float32(0), shape))
    placeholder.requires_grad = True
    return placeholder


def normal(*shape, std=0.02):
    """A parameter of normally distributed numbers with mean 0."""
    return parameter(shape, lambda: random.weights().standard_normal(shape, dtype=np.float32) * np.float32(std))


def uniform(*shape, bound):
    """A parameter of numbers between -bound and bound, all as likely."""
    return parameter(shape, lambda: random.weights().uniform(-bound, bound, shape).astype(np.float32))


def full(shape, value):
    """A parameter of equal numbers; shape: that of a vector may be its size."""
    return parameter(shape, lambda: np.full(shape, value, np.float32))
