"""Several programs, one result, one launch: whoever comes last does the rest.

Where programs share a result, each writes down its part, and somebody adds up the parts. Programs cannot wait for one
another, as nobody knows which of them run at the same time; so the plain way is a second launch, which begins when the
first has ended (norm.py does that). When a model writes a token, kernels are so short that a launch takes as long as
the work. There, each program counts itself when its part is written down, and the one whom that makes the last of all
goes on alone, with the parts of the others.

What makes this safe is the order in which memory changes hands:
- all threads of a program have written before one of them counts (the barrier);
- who counts publishes what its program wrote, and sees what those have published who counted before ("acq_rel");
- the other threads learn the count behind another barrier, which Triton puts there, and so see it, too.
The parts are added up in the order of their numbers, not of their arrival: the result is the same each time.

Triton's interpreter runs the programs one after another, in order, so it tests the arithmetic of this but not the
ordering; tests/compile_gate.py looks for the instruction that does that.
"""

import torch
import triton
import triton.language as tl

from . import runtime

_counters = {}


@triton.jit
def comes_last(counter_ptr, n):
    """Whether the n - 1 other programs that share this counter have been here; if so, what they wrote can be read."""
    tl.debug_barrier()
    before = tl.atomic_add(counter_ptr, 1, sem="acq_rel", scope="gpu")
    if before == n - 1:
        tl.store(counter_ptr, 0)        # for the next launch
    return before == n - 1


def counters(n):
    """At least n counters, int32 zeros: the same ones at each call, as each launch leaves zeros behind.

    They are not runtime.empty()'s, and are never given back: a recorded step remembers where they are. Kernels that use
    them follow one another (one stream); two at the same time would count each other's programs.
    """
    key = runtime.device(), triton.next_power_of_2(n)
    if key not in _counters:
        if key[0].type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise RuntimeError("counters: a CUDA graph must not make them, since they would be zero only when it runs; "
                               "run the step once before it is recorded")
        _counters[key] = torch.zeros(key[1], dtype=torch.int32, device=key[0])
    if runtime.INTERPRETED:
        _counters[key].zero_()          # whom an exception or Ctrl-C has stopped half-way has left something else
    return _counters[key]
