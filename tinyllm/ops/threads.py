"""More than one core for what BLAS does not do: element-wise chains, and the many small products of attention.

NumPy's matrix product uses all cores, everything else only one. But NumPy lets go of Python's lock while it computes,
so ordinary threads can work on different rows at the same time. Three conditions make it pay:
- large jobs: a sleeping thread takes some 50 microseconds to wake up; and in large pieces, as handing over the lock
  takes some 10, as long as 30,000 additions;
- one thread for BLAS meanwhile: it would try to use all cores from each of our threads, and wait for itself;
- sleeping BLAS threads: between two products they wait in a busy loop, by default for some 30 milliseconds, and keep
  the core from us. OPENBLAS_THREAD_TIMEOUT shortens that to half a millisecond; it is read when NumPy is imported, so
  `import tinyllm` sets it first (import tinyllm before numpy).

What it buys, on two cores of an Intel Xeon, in the ratio to torch eager (examples/benchmark.py): C2 1.44 -> 1.22 to
1.32, C1 1.48 -> 1.36 to 1.46, over several runs. The time-out alone: C2 14 percent, C1 nothing; on an AMD EPYC C1 12
percent. Below half a millisecond, runs on a busy Xeon became erratic, as a thread that sleeps has to be woken for every
product; on the EPYC a tenth of a millisecond made C1 another 4 percent faster, and nothing else.

concurrent.futures.ThreadPoolExecutor does the same with twice as much Python around each job: some 100 microseconds
from start to end where a queue and a lock take 60. Without it, and with a longer part for the thread that is awake, a
token of GPT-2 in int8 takes 0.85 times as long, C1 0.95 times, and C2 and an LSTM as long as before (EPYC).

Tried and left out: products cut up by hand among our threads (12 to 15 percent slower than OpenBLAS's own threads, as
both halves pack the same matrix); more than one thread for jobs of less than a quarter of a millisecond.
"""
import contextvars
import ctypes
import os
import threading
from queue import SimpleQueue

import numpy as np

SMALLEST = 400_000      # element operations per thread, some 120 microseconds, below which it does not pay
LATE = 200_000          # that the first thread has done before the others are awake


def _openblas():
    """Functions that read and set the number of threads of NumPy's own OpenBLAS; None where it has another BLAS."""
    try:
        library = ctypes.CDLL(np._core._multiarray_umath.__file__)
        return library.scipy_openblas_get_num_threads64_, library.scipy_openblas_set_num_threads64_
    except (AttributeError, OSError):
        return None


_blas = _openblas()
_jobs, _helpers = SimpleQueue(), []


def in_parallel(work, n, operations):
    """Call work(slice) so that the slices cover range(n): all in one, or one per core if the job is large enough.

    operations: about how many element operations the whole job takes. The calls must not depend on each other, nor call
    in_parallel. BLAS works on one core meanwhile; there are as many threads as it has otherwise (OPENBLAS_NUM_THREADS).
    """
    cores = _blas[0]() if _blas else 1
    if cores < 2:
        work(slice(0, n))
        return
    threads = max(1, min(n, cores, operations // SMALLEST))
    cuts, signals, errors = _cuts(n, threads, operations), [], []
    while len(_helpers) < threads - 1:
        _helpers.append(threading.Thread(target=_help, args=(_jobs,), daemon=True))
        _helpers[-1].start()
    _blas[1](1)             # for one thread, too: waking BLAS's threads takes longer than a small product
    try:
        for first, end in zip(cuts[1:], cuts[2:]):
            signals.append(threading.Lock())
            signals[-1].acquire()
            # np.errstate lives in the context
            _jobs.put((contextvars.copy_context(), work, slice(first, end), signals[-1], errors))
        work(slice(0, cuts[1]))
    finally:
        try:
            for signal in signals:
                signal.acquire()        # waits until the helper releases it
        finally:
            _blas[1](cores)
    if errors:
        raise errors[0]


def _cuts(n, threads, operations):
    """Where to cut range(n): the first part is longer, as its thread is awake."""
    late = (threads - 1) * LATE * n // max(1, operations)
    first = max(0, min((n + late) // threads, n - threads + 1))
    return [0, *(first + (n - first) * i // max(1, threads - 1) for i in range(threads))]


def _help(jobs):
    """What a helper does all its life."""
    while True:
        context, work, part, signal, errors = jobs.get()
        try:
            context.run(work, part)
        except BaseException as error:
            errors.append(error)
        finally:
            signal.release()
        del context, work, part, signal, errors     # they keep arrays alive


def _forget_the_helpers():
    """A forked process has none of its parent's threads."""
    global _jobs
    _jobs = SimpleQueue()
    _helpers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_the_helpers)
