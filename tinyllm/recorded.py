"""What has to be known of a model before a GPU may record what it does, and play it back (kernels/graph.py).

A recording remembers where the parameters were. model.to(...) and a new optimizer put them elsewhere.
"""
import weakref

from . import backend
from .module import Module


class Places:
    """Where a model's parameters are; their arrays are not kept alive by it."""

    def __init__(self, model):
        self.arrays = [weakref.ref(array) for array in arrays_of(model)]

    def hold(self, model):
        """Whether they are still there."""
        now = arrays_of(model)
        return len(now) == len(self.arrays) and all(known() is array for known, array in zip(self.arrays, now))


def arrays_of(model):
    """The arrays of a model's parameters. (A quantized model keeps its own to itself, and still has some; its int8
    matrices never move.)
    """
    if not isinstance(model, Module):
        model = getattr(model, "model", None)       # that of a Reading (seq2seq.py)
    return [p.data for _, p in Module.named_parameters(model)] if isinstance(model, Module) else []


def is_recordable(model):
    """Whether a GPU can record this model's loss: it is on one, and whoever wrote its loss() has written prepare()."""
    written_in = [next((i for i, c in enumerate(type(model).__mro__) if name in vars(c)), None)
                  for name in ("prepare", "loss")]
    if None in written_in or written_in[0] > written_in[1]:
        return False
    return any(backend.of(array).records for array in arrays_of(model))


class Recorded:
    """A function of arrays that looks at a model, recorded; anew when the model's parameters have moved, or when it has
    changed between train() and eval().
    """

    def __init__(self, model, function):
        self.model, self.function, self.places, self.training = model, function, None, None

    def __call__(self, *arguments):
        if self.places is None or not self.places.hold(self.model) or self.training is not self.model.training:
            self.places, self.training = Places(self.model), self.model.training
            self.captured = backend.of(arrays_of(self.model)[0]).capture(self.function)
        return self.captured(*arguments)
