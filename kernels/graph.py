"""CUDA graphs: a step that is always the same, recorded once and then played back.

A launch from Python takes longer than many kernels run: the step of a small GPT spends three quarters of its time in
Python. A graph holds all its launches, with their arguments; the GPU then goes through them by itself. So whatever may
change from step to step must stand in device memory. A step that can be recorded

- is a function of arrays, and looks at none of them: no .item(), no to_numpy, no `if` on what the device computed;
- gets what changes (the batch, the seed) as an argument. Every call copies its arguments into the same buffers, because
  the graph remembers where it read, not what;
- makes no array from the host's numbers but constants, like positions: those that its first run made are kept.

The first call with arrays of certain shapes just runs, and so compiles the kernels; the second is recorded. In Triton's
interpreter there are no graphs: there the step runs again each time, on the same buffers and under the same rules, so
that a step that breaks one is found without a GPU.
"""

import numpy as np
import torch

from . import runtime

records = True      # capture() makes something new of a step


def capture(step):
    """`step`, a function of arrays that is called many times with the same shapes, as one CUDA graph: see Captured."""
    return Captured(step)


class Captured:
    """A step, ready to be called with arrays, or tuples, lists and dictionaries of arrays; NumPy's or the device's.

    Its results are the same device arrays each time: the next call overwrites them.
    """

    def __init__(self, step):
        self.step, self.recordings = step, {}

    def __call__(self, *arguments):
        key = tuple((a.shape, str(a.dtype).removeprefix("torch.")) for a in _leaves(arguments))
        if key not in self.recordings:
            self.recordings[key] = Recording(self.step, arguments)
        return self.recordings[key](arguments)


class Recording:
    """The step for one combination of shapes: its input buffers, its constants, its graph, its results."""

    def __init__(self, step, arguments):
        self.step, self.results, self.graph = step, None, None
        self.constants, self.complete = {}, False
        self.inputs = _copied(arguments, lambda a: runtime.empty(a.shape, a.dtype))
        self.on_gpu = runtime.device().type == "cuda"
        self.staging, self.sent = {}, torch.cuda.Event() if self.on_gpu else None

    def __call__(self, arguments):
        self._fill(arguments)
        if self.graph is None and self.complete and self.on_gpu:
            self.results = None                                 # its memory is free for the recording
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):                       # nothing runs in here
                self._run()
            self.graph = graph
        if self.graph is None:
            self._run()
        else:
            self.graph.replay()
        return self.results

    def _run(self):
        outer, runtime.recording = runtime.recording, self
        try:
            self.results = self.step(*self.inputs)
        finally:
            runtime.recording = outer
        self.complete = True

    def _fill(self, arguments):
        """Copy the arguments into the buffers; NumPy's by way of pinned memory, so that the host need not wait."""
        if self.sent is not None:
            self.sent.synchronize()                             # what was sent before has left that memory
        for i, (argument, buffer) in enumerate(zip(_leaves(arguments), _leaves(self.inputs))):
            if isinstance(argument, np.ndarray):
                if i not in self.staging:
                    self.staging[i] = torch.empty(buffer.shape, dtype=buffer.dtype, pin_memory=self.on_gpu)
                np.copyto(self.staging[i].numpy(), argument)
                argument = self.staging[i]
            if argument is not buffer:
                buffer.copy_(argument, non_blocking=True)
        if self.sent is not None:
            self.sent.record()

    def constant(self, array, dtype, make):
        """The device's copy of an array that the first run had already. RuntimeError if it had none with its values."""
        key = array.dtype.str, array.shape, array.tobytes(), str(dtype)
        if key not in self.constants:
            if self.complete:
                raise RuntimeError(f"a recorded step makes an array {array.shape} of {array.dtype} from numbers that "
                                   "its first run did not have: what changes from step to step must be an argument of "
                                   "it")
            self.constants[key] = make()
        return self.constants[key]


def _leaves(tree):
    """The arrays of nested tuples, lists and dictionaries, in order; None is no array. TypeError for anything else."""
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, (tuple, list)):
        return [leaf for branch in tree for leaf in _leaves(branch)]
    if not isinstance(tree, (np.ndarray, torch.Tensor, type(None))):
        raise TypeError(f"capture: a recorded step takes arrays, not a {type(tree).__name__}: a number would stay what "
                        "it was while the step was recorded")
    return [] if tree is None else [tree]


def _copied(tree, function):
    """The same nesting with function(array) for each array."""
    if isinstance(tree, dict):
        return {key: _copied(branch, function) for key, branch in tree.items()}
    if isinstance(tree, (tuple, list)):
        return type(tree)(_copied(branch, function) for branch in tree)
    return None if tree is None else function(tree)
