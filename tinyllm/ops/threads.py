"""More than one core for what BLAS does not do: element-wise chains, and the many small products of attention.

NumPy's matrix product uses all cores, everything else only one. But NumPy lets go of Python's lock while it computes,
so ordinary threads can work on different rows at the same time. Three conditions make it pay:
- large jobs: waking a sleeping thread and waiting for it takes about 100 microseconds; and in large pieces, as handing
  over the lock takes some 10, as long as 30,000 additions;
- one thread for BLAS meanwhile: it would try to use all cores from each of our threads, and wait for itself;
- sleeping BLAS threads: between two products they wait in a busy loop, by default for some 30 milliseconds, and keep
  the core from us. OPENBLAS_THREAD_TIMEOUT shortens that to half a millisecond; it is read when NumPy is imported, so
  `import tinyllm` sets it first (import tinyllm before numpy).

What it buys, on two cores of an Intel Xeon, in the ratio to torch eager (examples/benchmark.py): C2 1.44 -> 1.22 to
1.32, C1 1.48 -> 1.36 to 1.46, over several runs. The time-out alone: C2 14 percent, C1 nothing; on an AMD EPYC C1 12
percent. Below half a millisecond, runs on a busy Xeon became erratic, as a thread that sleeps has to be woken for every
product; on the EPYC a tenth of a millisecond made C1 another 4 percent faster, and nothing else.

Tried and left out: products cut up by hand among our threads (12 to 15 percent slower than OpenBLAS's own threads, as
both halves pack the same matrix); more than one thread for jobs of less than a third of a millisecond.
"""
import contextvars
import ctypes
import os
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np

SMALLEST = 500_000      # element operations per thread, some 150 microseconds, below which it does not pay


def _openblas():
    """Functions that read and set the number of threads of NumPy's own OpenBLAS; None where it has another BLAS."""
    try:
        library = ctypes.CDLL(np._core._multiarray_umath.__file__)
        return library.scipy_openblas_get_num_threads64_, library.scipy_openblas_set_num_threads64_
    except (AttributeError, OSError):
        return None


_blas = _openblas()
_pool = None


def in_parallel(work, n, operations):
    """Call work(slice) so that the slices cover range(n): all in one, or one per core if the job is large enough.

    operations: about how many element operations the whole job takes. The calls must not depend on each other, nor call
    in_parallel. BLAS works on one core meanwhile; there are as many threads as it has otherwise (OPENBLAS_NUM_THREADS).
    """
    global _pool
    cores = _blas[0]() if _blas else 1
    if cores < 2:
        work(slice(0, n))
        return
    if _pool is None:
        _pool = ThreadPoolExecutor(cores - 1)
    threads = max(1, min(n, cores, operations // SMALLEST))
    cuts = [n * i // threads for i in range(threads + 1)]
    _blas[1](1)             # for one thread, too: waking BLAS's threads takes longer than a small product
    others = [_pool.submit(contextvars.copy_context().run, work, slice(a, b))   # np.errstate lives in the context
              for a, b in zip(cuts[1:], cuts[2:])]
    try:
        work(slice(0, cuts[1]))
    finally:
        if others:          # to wait for nothing takes 10 microseconds, a hundred times for each token that is written
            wait(others)
        _blas[1](cores)
    for other in others:
        other.result()                  # raises what was raised there


def _forget_the_pool():
    """A forked process has none of its parent's threads."""
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_the_pool)
