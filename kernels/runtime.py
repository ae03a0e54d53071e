"""Where the kernels' arrays live: the device, the one allocator, and the way in and out.

torch is memory here and nothing more: it allocates, views and copies; every number is computed by a Triton kernel.
Twin of tinyllm/ops/memory.py.
"""

import math

import numpy as np
import torch
import triton
import triton.language as tl

from . import interpreter

# @triton.jit decides at once whether a function will be compiled or interpreted: ours now, when this package is
# imported, and those of Triton's own library earlier, when triton was.
INTERPRETED = bool(triton.knobs.runtime.interpret)
TRITON_INTERPRETED = not isinstance(tl.zeros, triton.JITFunction)

FLOATS = (torch.float32, torch.bfloat16, torch.float16)     # what the kernels store; all of them compute in float32

recording = None        # a Recording (graph.py) while its step runs
deterministic = False   # True: no atomic additions of floats, whose order differs from run to run


def device():
    """The torch device on which arrays are made: the CPU for Triton's interpreter, else the current NVIDIA GPU.

    Raises RuntimeError where there is neither, and where TRITON_INTERPRET changed half-way through the imports.
    """
    if INTERPRETED != TRITON_INTERPRETED:
        raise RuntimeError("TRITON_INTERPRET changed after something had imported triton: set it before Python starts")
    if INTERPRETED:
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    raise RuntimeError(
        "the triton backend needs an NVIDIA GPU, or the environment variable TRITON_INTERPRET=1 set before Python "
        "starts to run the kernels in Triton's interpreter"
    )


def capability():
    """(major, minor) of the GPU's architecture, such as (9, 0) for sm_90; None in the interpreter."""
    return None if INTERPRETED else torch.cuda.get_device_capability()


def n_multiprocessors():
    """How many programs run truly at the same time, at one a multiprocessor; in the interpreter 2, for the tests."""
    return 2 if INTERPRETED else torch.cuda.get_device_properties(device()).multi_processor_count


def empty(shape, dtype=torch.float32):
    """An uninitialised array: shape a tuple of ints, dtype a torch or NumPy dtype or its name.

    Every output and every workspace of every kernel comes from here, so that a test can poison and fence them all,
    and a captured step can find them. Kernels call it as `runtime.empty`, which leaves it replaceable.

    Raises NotImplementedError for a floating dtype that the kernels, or this GPU, do not know.
    """
    dtype = torch_dtype(dtype)
    if dtype.is_floating_point and dtype not in FLOATS:
        raise NotImplementedError(f"the kernels store float32, bfloat16 or float16, not {str(dtype)[6:]}: convert the "
                                  'arrays, or move the model with .to("triton", dtype="float32")')
    if dtype == torch.bfloat16 and (capability() or (8, 0)) < (8, 0):
        raise NotImplementedError("bfloat16 needs a GPU of compute capability 8.0 or newer, and this one has "
                                  f"{capability()[0]}.{capability()[1]}: use float16 or float32")
    return torch.empty(shape, dtype=dtype, device=device())


def torch_dtype(dtype):
    """float32, "float32", np.float32 or np.dtype("float32") -> torch.float32, and so on."""
    if isinstance(dtype, torch.dtype):
        return dtype
    return getattr(torch, dtype if isinstance(dtype, str) else np.dtype(dtype).name)


def from_numpy(array, dtype=None):
    """A copy of a NumPy array on the device, in its own dtype or in the one given; a constant in a recorded step."""
    array = np.array(array, order="C")  # a copy: torch would share the memory, and warns where it is read-only
    move = lambda: torch.from_numpy(array).to(device(), None if dtype is None else torch_dtype(dtype))
    return move() if recording is None else recording.constant(array, dtype, move)


def to_numpy(tensor):
    """A copy of a device array as a NumPy array, 16-bit floats as float32. The host waits until it is computed."""
    if recording is not None:
        raise RuntimeError("a recorded step cannot read numbers back (.item(), .numpy(), float(), print): they exist "
                           "only when the graph runs; read what the step returns, or switch recording off with "
                           "capture=False")
    tensor = tensor.to("cpu", copy=True)
    return (tensor.float() if tensor.dtype in FLOATS[1:] else tensor).numpy()


def copy(tensor):
    """A row-major copy that shares memory with nothing."""
    return empty(tensor.shape, tensor.dtype).copy_(tensor)


def contiguous(tensor):
    """The same values in row-major order: the tensor itself where they lie so already, else a copy; None stays None.

    Most kernels address row-major arrays alone. A strided view costs one copy here, not four more stride arguments
    in every kernel.
    """
    return tensor if tensor is None or tensor.is_contiguous() else copy(tensor)


def own(tensor):
    """The array itself if it is row-major and no view of another's memory, else a copy."""
    return copy(tensor) if tensor._is_view() or not tensor.is_contiguous() else tensor


def as_rows(tensor):
    """View (..., C) as (rows, C), row-major: what the kernels that treat every row alike work on."""
    return contiguous(tensor).view(math.prod(tensor.shape[:-1]), tensor.shape[-1])


if INTERPRETED:
    interpreter.mend()
