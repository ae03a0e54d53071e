"""Where arrays come from: one allocator for every output and workspace, and the few words each backend knows.

A backend is a module. `tinyllm.ops` is the NumPy one, `tinyllm.kernels` the Triton one, and both offer what stands here
from empty() to capture() under the same names, next to the operations. Everything above them asks for a name.
"""
import ctypes
import sys

import numpy as np

CHUNK = 32_768      # elements: three or four such float32 arrays stay in a core's L2 cache (see row_chunks)


def empty(shape, dtype=np.float32):
    """An uninitialised array.

    Ops allocate only here, so a test can hand out NaN instead and see what was not filled.
    """
    return np.empty(shape, dtype)


def from_numpy(array, dtype=None):
    """The backend's own kind of array, holding a copy of a NumPy array (here: a NumPy array again)."""
    return np.array(array, dtype=dtype)


def to_numpy(array):
    """A NumPy array that shares memory with the backend's array where it can."""
    return array


def copy(array):
    """A contiguous copy that shares memory with nothing."""
    return np.array(array, order="C")


def own(array):
    """The array itself if it shares its memory with no other, else a copy."""
    return array if isinstance(array, np.ndarray) and array.base is None else copy(array)


records = False     # whether capture() makes something new of a step


def capture(step):
    """`step`, a function of arrays that is called many times with the same shapes, made ready: here it stays as it is.

    A GPU records it once and plays it back (kernels/graph.py, with the rules that such a step has to keep).
    """
    return step


def add_into(buffer, grad):
    """A gradient; where there is a buffer for it, the buffer, to which it has been added, IN PLACE.

    A GPU's kernels add to a buffer as they compute; here that would save nothing, so no optimizer asks for it, and this
    stands for the operations' arguments to be the same on both backends.
    """
    if buffer is None or grad is None:
        return grad
    buffer += grad
    return buffer


def rows(x):
    """View x as a matrix of rows: (..., C) -> (N, C)."""
    return x.reshape(-1, x.shape[-1]) if x.size else x.reshape(int(np.prod(x.shape[:-1])), x.shape[-1])


def row_chunks(x, part=slice(None), size=None):
    """Slices that cut the rows of a matrix into pieces of about `size` elements (or CHUNK), each to stay in the cache.

    A chain of element-wise operations over a large array reads and writes main memory once per operation; done
    piece by piece, it does so once in all: 0.3 ns per element and operation instead of 1 to 2. part: the slice
    of the rows that one of several threads works on (threads.py); then the pieces are larger, as each call has
    to wait for Python's lock.
    """
    start, stop, _ = part.indices(len(x))
    size = size or (CHUNK if stop - start == len(x) else 4 * CHUNK)
    step = max(1, size // max(1, x.shape[-1]))
    return [slice(i, min(i + step, stop)) for i in range(start, stop, step)]


def keep_freed_memory():
    """Tell the C library to keep freed memory for the next array instead of giving it back to the system.

    By default glibc returns every large block at once, and the system then clears each page again for the next array,
    dozens of times per training step. Keeping the pages makes a small GPT's step about a fifth faster. It is done once,
    at import; elsewhere than on glibc nothing happens. The price: the process keeps its peak memory until it ends.
    """
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):       # a C library without mallopt, such as musl
        return
    M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4   # the names and numbers of <malloc.h>
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, -1)


keep_freed_memory()
