"""The switch between the two paths: which module computes with an array.

A backend is a module that offers every operation by name (linear_forward, linear_backward, ...) and the functions of
ops/memory.py from empty() to capture(). `tinyllm.ops` is the NumPy one. `tinyllm.kernels`, the Triton one, is imported
when somebody first asks for it; without it the engine needs neither torch nor triton.
"""
import importlib

import numpy as np

from . import ops


def get(name):
    """The backend module called "numpy" or "triton"."""
    if name == "numpy":
        return ops
    if name == "triton":
        return _kernels()
    raise ValueError(f'unknown backend "{name}": choose "numpy" or "triton"')


def of(array):
    """The backend that an array belongs to."""
    return ops if isinstance(array, (np.ndarray, np.generic)) else _kernels()


def operation(ops, name):
    """Function `name` of a backend; NotImplementedError where the Triton path does not have it yet."""
    function = getattr(ops, name, None)
    if function is None:
        raise NotImplementedError(f'{name} does not exist on the {ops.name} backend; move the model or tensor '
                                  'with .to("numpy")')
    return function


def use_deterministic_algorithms(mode=True):
    """Whether two runs on a GPU shall end in the same bits, for slower gradients of weights and embeddings; NumPy's
    always do.
    """
    _kernels().runtime.deterministic = mode


def is_array(value):
    """Whether value is an array of either backend."""
    return isinstance(value, np.ndarray) or type(value).__module__ == "torch"


def _kernels():
    try:
        kernels = importlib.import_module("tinyllm.kernels")
    except ImportError as error:
        raise ImportError('the triton backend needs torch and triton, which this Python lacks '
                          f'({error}); on Linux, pip install "tinyllm[triton]" brings both') from error
    return kernels
