"""Where the kernels' arrays live: the device, the one allocator, the way in and out, and the door to CUDA graphs.

torch is memory here and nothing more: it allocates, views and copies; every number is computed by a Triton kernel.
Twin of tinyllm/ops/memory.py.
"""

import numpy as np
import torch
import triton
import triton.language as tl

# @triton.jit decides at once whether a function will be compiled or interpreted: ours now, when this package is
# imported, and those of Triton's own library earlier, when triton was.
INTERPRETED = bool(triton.knobs.runtime.interpret)
TRITON_INTERPRETED = not isinstance(tl.zeros, triton.JITFunction)


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


def empty(shape, dtype=torch.float32):
    """An uninitialised array: shape a tuple of ints, dtype a torch or NumPy dtype or its name.

    Every output and every workspace of every kernel comes from here, so that a test can poison and fence them all,
    and a captured step can find them. Kernels call it as `runtime.empty`, which leaves it replaceable.

    Raises NotImplementedError for a floating dtype other than float32: the kernels would run, and be wrong.
    """
    dtype = torch_dtype(dtype)
    if dtype.is_floating_point and dtype != torch.float32:
        raise NotImplementedError(f"the kernels compute in float32 only so far, not in {dtype}: convert the arrays")
    return torch.empty(shape, dtype=dtype, device=device())


def torch_dtype(dtype):
    """float32, "float32", np.float32 or np.dtype("float32") -> torch.float32, and so on."""
    if isinstance(dtype, torch.dtype):
        return dtype
    return getattr(torch, dtype if isinstance(dtype, str) else np.dtype(dtype).name)


def from_numpy(array, dtype=None):
    """A copy of a NumPy array on the device, in its own dtype or in the one given."""
    array = np.array(array, order="C")  # a copy: torch would share the memory, and warns where it is read-only
    return torch.from_numpy(array).to(device(), None if dtype is None else torch_dtype(dtype))


def to_numpy(tensor):
    """A copy of a device array as a NumPy array. The host waits here until the device has computed it."""
    return tensor.to("cpu", copy=True).numpy()


def copy(tensor):
    """A row-major copy that shares memory with nothing."""
    return empty(tensor.shape, tensor.dtype).copy_(tensor)


def contiguous(tensor):
    """The same values in row-major order: the tensor itself where they lie so already, else a copy.

    Most kernels address row-major arrays alone. A strided view costs one copy here, not four more stride arguments
    in every kernel.
    """
    return tensor if tensor.is_contiguous() else copy(tensor)


def own(tensor):
    """A copy: torch does not tell whether a tensor shares its memory with another."""
    return copy(tensor)


def as_rows(tensor):
    """View (..., C) as (rows, C), row-major: what the kernels that treat every row alike work on."""
    channels = tensor.shape[-1]
    rows = 1
    for size in tensor.shape[:-1]:
        rows *= size
    return contiguous(tensor).view(rows, channels)


def capture(step):
    """Return `step`, a function without arguments that runs one training step, ready to be called many times.

    This is the door through which a later version will record the step once as a CUDA graph and replay it, so that
    neither Python nor a launch costs time. Today it returns the step unchanged. A step that will survive the change

    - reads nothing back: no .item(), no to_numpy, no `if` on a value that the device computed;
    - finds its inputs in, and leaves its results in, the same buffers every time: copy a new batch into the old one;
    - keeps what changes between steps (learning rate, step number, seed) in device arrays: a Python number would be
      frozen at the value it had while the graph was recorded.
    """
    return step


def _let_the_interpreter_loop():
    """Let `for k in range(0, K, BLOCK)` with a run-time K work in the interpreter of Triton 3.6 with NumPy >= 2.4.

    The interpreter keeps a scalar as an array of one element. Triton 3.6 turns it into a Python integer with int(),
    which NumPy 2.4 refuses for an array with an axis; Triton 3.7 asks for the element itself. As the interpreter
    renews the methods of tl.tensor at each launch, the cure must follow it there.
    """
    from triton.runtime import interpreter

    renew = interpreter._patch_lang_tensor

    def renew_and_cure(tensor, scope):
        renew(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda scalar: scalar.handle.data.item())

    interpreter._patch_lang_tensor = renew_and_cure


if INTERPRETED and triton.__version__.startswith("3.6."):
    _let_the_interpreter_loop()
