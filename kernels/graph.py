"""CUDA graphs: a step that is always the same, recorded once and then played back.

A launch from Python takes longer than many kernels run: the step of a small GPT spends three quarters of its time in
Python. A graph holds all its launches, with their arguments; the GPU then goes through them by itself. So whatever may
change from step to step must stand in device memory. A step that can be recorded

- is a function of arrays, and looks at none of them: no .item(), no to_numpy, no `if` on what the device computed;
- gets what changes (the batch, the seed) as an argument. Every call copies its arguments into the same buffers, because
  the graph remembers where it read, not what;
- makes no array from the host's numbers but constants, like positions: those that its first run made are kept.

Whatever else it looks at stays as it was: a Python number (an optimizer's betas), a switch (model.train()), where the
parameters lie. Whoever changes such a thing must record anew (recorded.py does, when parameters move).

The first call with arrays of certain shapes just runs, and so compiles the kernels; the second is recorded. In Triton's
interpreter there are no graphs: there the step runs again each time, on the same buffers, and what breaks the rules
about arrays is found without a GPU. Frozen numbers are not.
"""

import numpy as np
import torch

from . import runtime

records = True      # capture() makes something new of a step
KEPT = 16           # recordings of a step


def capture(step):
    """`step`, a function of arrays that is called many times with the same shapes, as one CUDA graph: see Captured."""
    return Captured(step)


class Captured:
    """A step, ready to be called with arrays, or tuples, lists and dictionaries of arrays; NumPy's or the device's.

    Its results are the same device arrays each time: the next call overwrites them. There is a recording for each
    combination of shapes; of those, the KEPT last used ones stay, and they share their memory, as one runs at a time.
    """

    def __init__(self, step):
        self.step, self.recordings, self.pool = step, {}, None

    def __call__(self, *arguments):
        if self.pool is None and runtime.device().type == "cuda":
            self.pool = torch.cuda.graph_pool_handle()
        _leaves(arguments)                                      # refuses what is no array
        key = runtime.deterministic, _form(arguments)
        recording = self.recordings.pop(key, None) or Recording(self.step, arguments, self.pool)
        self.recordings[key] = recording                        # the last one used comes last
        if len(self.recordings) > KEPT:
            del self.recordings[next(iter(self.recordings))]
        return recording(arguments)


class Recording:
    """The step for one combination of shapes: its input buffers, its constants, its graph, its results."""

    def __init__(self, step, arguments, pool):
        self.step, self.pool, self.results, self.graph = step, pool, None, None
        self.constants, self.complete = {}, False
        self.inputs = _copied(arguments, lambda a: runtime.empty(a.shape, a.dtype))
        self.on_gpu = runtime.device().type == "cuda"
        self.staging, self.sent = {}, torch.cuda.Event() if self.on_gpu else None

    def __call__(self, arguments):
        self._fill(arguments)
        if self.graph is None and self.complete and self.on_gpu:
            self.results = None                                 # its memory is free for the recording
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.pool):       # nothing runs in here
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
                                   "it; or switch recording off with capture=False")
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


def _form(tree):
    """What two calls must have in common to share a recording: the nesting, the keys, each array's shape and type."""
    if isinstance(tree, dict):
        return tuple((key, _form(branch)) for key, branch in tree.items())
    if isinstance(tree, (tuple, list)):
        return tuple(map(_form, tree))
    return tree if tree is None else (tuple(tree.shape), str(tree.dtype).removeprefix("torch."))


def _copied(tree, function):
    """The same nesting with function(array) for each array."""
    if isinstance(tree, dict):
        return {key: _copied(branch, function) for key, branch in tree.items()}
    if isinstance(tree, (tuple, list)):
        return type(tree)(_copied(branch, function) for branch in tree)
    return None if tree is None else function(tree)
