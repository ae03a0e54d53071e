"""One table: how large the tiles of each kernel are, and how many warps and pipeline stages work on them.

Nothing is tuned while a user waits; `python examples/benchmark.py tune` looks for better rows on the card that it runs
on, and writes them here. A row holds for one kernel, one kind of GPU, one kind of numbers and one bucket of
sizes; the tests compile the rows of 16-bit numbers for the GPUs that they are for, all others with --thorough.

    kernel     the function's name without "_kernel", perhaps with what it does besides: "attention_dq+bias"; without a
               row for that, the plain kernel's holds
    GPU        "sm_80" (A100, 163 KB of shared memory a block), "sm_86" (consumer cards, also sm_89: 99 KB), "sm_120"
               (later ones; where it has no row, sm_86's), "sm_90" (H100, H200, and capability 10: 227 KB),
               "interpreter" (large blocks: it pays by the operation, not by the number), or "any"
    numbers    "half" (bfloat16 and float16: tensor cores) or "float32" (IEEE, hence no tensor cores), or "any"
    up to      the bucket: the row holds for sizes up to this one; what size it is, the kernel's own file says
"""

import torch

from . import runtime

ANY = float("inf")

TABLE = [
    # kernel, GPU, numbers, up to: configuration
    ("matmul", "sm_80", "half", ANY, dict(BLOCK_M=128, BLOCK_N=128, BLOCK_K=32, GROUP_M=8, num_warps=8, num_stages=4)),
    ("matmul", "sm_86", "half", ANY, dict(BLOCK_M=128, BLOCK_N=128, BLOCK_K=32, GROUP_M=8, num_warps=8, num_stages=3)),
    ("matmul", "sm_120", "half", ANY, dict(BLOCK_M=128, BLOCK_N=128, BLOCK_K=32, GROUP_M=8, num_warps=8, num_stages=2)),
    ("matmul", "sm_90", "half", ANY, dict(BLOCK_M=128, BLOCK_N=128, BLOCK_K=64, GROUP_M=8, num_warps=8,
                                                 num_stages=3)),
    ("matmul", "any", "float32", ANY, dict(BLOCK_M=64, BLOCK_N=64, BLOCK_K=32, GROUP_M=8, num_warps=4, num_stages=2)),
    ("matmul", "interpreter", "any", ANY, dict(BLOCK_M=128, BLOCK_N=128, BLOCK_K=128, GROUP_M=2)),
    # PROGRAMS: on each multiprocessor
    ("matmul_tma", "sm_90", "half", ANY, dict(BLOCK_M=128, BLOCK_N=256, BLOCK_K=64, GROUP_M=8, PROGRAMS=1, FLATTEN=True,
                                              num_warps=8, num_stages=4)),
    ("matmul_tma+gelu", "sm_90", "half", ANY, dict(BLOCK_M=128, BLOCK_N=128, BLOCK_K=64, GROUP_M=8, PROGRAMS=2,
                                                   FLATTEN=True, num_warps=8, num_stages=3)),
    ("matmul_tma+gelu_backward", "sm_90", "half", ANY, dict(BLOCK_M=128, BLOCK_N=128, BLOCK_K=64, GROUP_M=8, PROGRAMS=2,
                                                            FLATTEN=False, num_warps=8, num_stages=3)),
    ("weight_gradient", "sm_90", "half", ANY, dict(BLOCK_M=128, BLOCK_N=256, BLOCK_K=64, GROUP_M=8, FLATTEN=True,
                                                   num_warps=8, num_stages=3)),
    # by the size of a head
    ("attention", "sm_90", "half", 64, dict(BLOCK_Q=64, BLOCK_K=64, TMA=True, num_warps=4, num_stages=3)),
    ("attention", "sm_90", "half", 128, dict(BLOCK_Q=128, BLOCK_K=64, TMA=True, num_warps=8, num_stages=2)),
    ("attention", "sm_80", "half", 64, dict(BLOCK_Q=128, BLOCK_K=64, num_warps=8, num_stages=3)),
    ("attention", "sm_80", "half", 128, dict(BLOCK_Q=64, BLOCK_K=32, num_warps=4, num_stages=2)),
    ("attention", "sm_86", "half", 64, dict(BLOCK_Q=128, BLOCK_K=64, num_warps=8, num_stages=3)),
    ("attention", "sm_86", "half", 128, dict(BLOCK_Q=128, BLOCK_K=64, num_warps=8, num_stages=2)),
    ("attention+dropout", "sm_80", "half", 128, dict(BLOCK_Q=64, BLOCK_K=64, num_warps=4, num_stages=3)),
    ("attention+dropout", "sm_86", "half", 64, dict(BLOCK_Q=128, BLOCK_K=32, num_warps=8, num_stages=2)),
    ("attention+dropout", "sm_86", "half", 128, dict(BLOCK_Q=64, BLOCK_K=64, num_warps=4, num_stages=3)),
    ("attention+bias", "sm_80", "half", 128, dict(BLOCK_Q=128, BLOCK_K=64, num_warps=8, num_stages=3)),
    ("attention+bias", "sm_86", "half", 64, dict(BLOCK_Q=128, BLOCK_K=64, num_warps=8, num_stages=3)),
    ("attention+bias", "sm_86", "half", 128, dict(BLOCK_Q=64, BLOCK_K=32, num_warps=4, num_stages=2)),
    ("attention", "any", "float32", 64, dict(BLOCK_Q=32, BLOCK_K=32, num_warps=4, num_stages=1)),
    ("attention", "any", "float32", 128, dict(BLOCK_Q=16, BLOCK_K=16, num_warps=4, num_stages=1)),
    ("attention", "interpreter", "any", 128, dict(BLOCK_Q=64, BLOCK_K=64)),

    ("attention_dq", "sm_90", "half", 64, dict(BLOCK_Q=64, BLOCK_K=64, TMA=True, num_warps=4, num_stages=3)),
    ("attention_dq", "sm_90", "half", 128, dict(BLOCK_Q=128, BLOCK_K=64, TMA=True, num_warps=8, num_stages=2)),
    ("attention_dq+dropout", "sm_90", "half", 64, dict(BLOCK_Q=128, BLOCK_K=64, TMA=True, num_warps=8, num_stages=2)),
    ("attention_dq+dropout", "sm_90", "half", 128, dict(BLOCK_Q=64, BLOCK_K=64, TMA=True, num_warps=8, num_stages=2)),
    ("attention_dq+bias", "sm_90", "half", 128, dict(BLOCK_Q=64, BLOCK_K=64, TMA=True, num_warps=8, num_stages=2)),
    ("attention_dq", "sm_120", "half", 64, dict(BLOCK_Q=128, BLOCK_K=32, num_warps=8, num_stages=2)),
    ("attention_dq", "any", "half", 64, dict(BLOCK_Q=128, BLOCK_K=64, num_warps=8, num_stages=2)),
    ("attention_dq+dropout", "any", "half", 64, dict(BLOCK_Q=128, BLOCK_K=32, num_warps=8, num_stages=2)),
    ("attention_dq+bias", "any", "half", 64, dict(BLOCK_Q=32, BLOCK_K=32, num_warps=4, num_stages=2)),
    ("attention_dq", "any", "half", 128, dict(BLOCK_Q=64, BLOCK_K=64, num_warps=8, num_stages=2)),
    ("attention_dq", "any", "float32", 64, dict(BLOCK_Q=32, BLOCK_K=32, num_warps=4, num_stages=1)),
    ("attention_dq", "any", "float32", 128, dict(BLOCK_Q=16, BLOCK_K=16, num_warps=4, num_stages=1)),
    ("attention_dq", "interpreter", "any", 128, dict(BLOCK_Q=64, BLOCK_K=64)),

    ("attention_dkdv", "sm_90", "half", 64, dict(BLOCK_Q=64, BLOCK_K=64, TMA=True, num_warps=4, num_stages=2)),
    ("attention_dkdv", "sm_90", "half", 128, dict(BLOCK_Q=32, BLOCK_K=128, TMA=True, num_warps=8, num_stages=2)),
    ("attention_dkdv+dropout", "sm_90", "half", 64, dict(BLOCK_Q=32, BLOCK_K=128, TMA=True, num_warps=8, num_stages=2)),
    ("attention_dkdv+dropout", "sm_90", "half", 128, dict(BLOCK_Q=32, BLOCK_K=128, num_warps=8, num_stages=2)),
    ("attention_dkdv+bias", "sm_90", "half", 64, dict(BLOCK_Q=32, BLOCK_K=64, TMA=True, num_warps=8, num_stages=2)),
    ("attention_dkdv+bias", "sm_90", "half", 128, dict(BLOCK_Q=16, BLOCK_K=64, num_warps=8, num_stages=2)),
    ("attention_dkdv", "any", "half", 64, dict(BLOCK_Q=32, BLOCK_K=128, num_warps=8, num_stages=1)),
    ("attention_dkdv", "any", "half", 128, dict(BLOCK_Q=32, BLOCK_K=64, num_warps=8, num_stages=2)),
    ("attention_dkdv+dropout", "any", "half", 64, dict(BLOCK_Q=16, BLOCK_K=64, num_warps=4, num_stages=2)),
    ("attention_dkdv+dropout", "any", "half", 128, dict(BLOCK_Q=16, BLOCK_K=64, num_warps=8, num_stages=2)),
    ("attention_dkdv+bias", "sm_80", "half", 64, dict(BLOCK_Q=16, BLOCK_K=64, num_warps=4, num_stages=1)),
    ("attention_dkdv+bias", "sm_120", "half", 64, dict(BLOCK_Q=16, BLOCK_K=32, num_warps=4, num_stages=2)),
    ("attention_dkdv+bias", "any", "half", 64, dict(BLOCK_Q=16, BLOCK_K=64, num_warps=8, num_stages=2)),
    ("attention_dkdv+bias", "any", "half", 128, dict(BLOCK_Q=32, BLOCK_K=32, num_warps=4, num_stages=1)),
    ("attention_dkdv", "any", "float32", 64, dict(BLOCK_Q=32, BLOCK_K=32, num_warps=4, num_stages=1)),
    ("attention_dkdv", "any", "float32", 128, dict(BLOCK_Q=16, BLOCK_K=16, num_warps=4, num_stages=1)),
    ("attention_dkdv", "interpreter", "any", 128, dict(BLOCK_Q=64, BLOCK_K=64)),

    ("attention_dbias", "sm_90", "half", 128, dict(BLOCK_Q=64, BLOCK_K=64, num_warps=8, num_stages=1)),
    ("attention_dbias", "any", "half", 128, dict(BLOCK_Q=32, BLOCK_K=64, num_warps=8, num_stages=1)),
    ("attention_dbias", "any", "float32", 64, dict(BLOCK_Q=32, BLOCK_K=32, num_warps=4, num_stages=1)),
    ("attention_dbias", "any", "float32", 128, dict(BLOCK_Q=16, BLOCK_K=16, num_warps=4, num_stages=1)),
    ("attention_dbias", "interpreter", "any", 128, dict(BLOCK_Q=64, BLOCK_K=64)),
    ("attention_decode", "any", "half", 128, dict(BLOCK_K=64, num_warps=4, num_stages=2)),
    ("attention_decode", "any", "float32", 128, dict(BLOCK_K=32, num_warps=4, num_stages=1)),
    ("attention_decode", "interpreter", "any", 128, dict(BLOCK_K=64)),
    # by the outputs
    ("fused_linear_rows", "sm_80", "any", ANY, dict(WEIGHTS=2048, num_warps=4)),
    ("fused_linear_rows", "any", "any", ANY, dict(WEIGHTS=4096, num_warps=4)),
    ("fused_linear_rows", "interpreter", "any", ANY, dict(WEIGHTS=131_072)),
    # by the rows of x. PARTS: of the sum, at most
    ("fused_linear_tiles", "sm_120", "half", 16, dict(BLOCK_M=16, BLOCK_N=32, BLOCK_K=64, GROUP_M=8, PARTS=8,
                                                      num_warps=4, num_stages=3)),
    ("fused_linear_tiles", "any", "half", 16, dict(BLOCK_M=16, BLOCK_N=32, BLOCK_K=128, GROUP_M=8, PARTS=8,
                                                   num_warps=4, num_stages=3)),
    ("fused_linear_tiles", "any", "half", 64, dict(BLOCK_M=64, BLOCK_N=32, BLOCK_K=64, GROUP_M=8, PARTS=8,
                                                   num_warps=4, num_stages=4)),
    ("fused_linear_tiles", "any", "half", ANY, dict(BLOCK_M=128, BLOCK_N=128, BLOCK_K=32, GROUP_M=8, PARTS=1,
                                                    num_warps=8, num_stages=3)),
    ("fused_linear_tiles", "any", "float32", ANY, dict(BLOCK_M=32, BLOCK_N=32, BLOCK_K=32, GROUP_M=8, PARTS=8,
                                                       num_warps=4, num_stages=2)),
    ("fused_linear_tiles", "interpreter", "any", ANY, dict(BLOCK_M=128, BLOCK_N=128, BLOCK_K=128, GROUP_M=2, PARTS=8)),
    # by the features of the state
    ("rnn_step", "any", "any", ANY, dict(BLOCK_B=32, BLOCK_H=16, BLOCK_K=64, num_warps=4, num_stages=4)),
    ("rnn_step", "interpreter", "any", ANY, dict(BLOCK_B=32, BLOCK_H=64, BLOCK_K=64)),
    ("rnn_step_backward", "any", "any", ANY, dict(BLOCK_B=32, BLOCK_H=16, BLOCK_K=64, num_warps=4, num_stages=4)),
    ("rnn_step_backward", "interpreter", "any", ANY, dict(BLOCK_B=32, BLOCK_H=64, BLOCK_K=64)),
    ("lstm_step", "any", "any", ANY, dict(BLOCK_B=32, BLOCK_H=16, BLOCK_K=64, num_warps=4, num_stages=4)),
    ("lstm_step", "interpreter", "any", ANY, dict(BLOCK_B=32, BLOCK_H=64, BLOCK_K=64)),
    ("lstm_step_backward", "any", "any", ANY, dict(BLOCK_B=32, BLOCK_H=16, BLOCK_K=64, num_warps=4, num_stages=4)),
    ("lstm_step_backward", "interpreter", "any", ANY, dict(BLOCK_B=32, BLOCK_H=64, BLOCK_K=64)),
    # all kernels of optim.py
    ("optim", "any", "float32", ANY, dict(BLOCK=2048, num_warps=4)),
    ("optim", "interpreter", "any", ANY, dict(BLOCK=65_536)),
]


def architecture():
    """Which rows of the table are for this GPU."""
    capability = runtime.capability()
    if capability is None:
        return "interpreter"
    if capability[0] == 12:
        return "sm_120"
    return "sm_90" if capability[0] in (9, 10) else "sm_80" if capability == (8, 0) else "sm_86"


def _kinds():
    """Which rows hold for this GPU, the most particular ones first."""
    gpu = architecture()
    return (gpu, "sm_86", "any") if gpu == "sm_120" else (gpu, "any")


def has(kernel, dtype):
    """Whether the kernel exists for this GPU and these numbers."""
    return any(row[0] == kernel and row[1] in _kinds() and row[2] in (_numbers(dtype), "any")
               for row in TABLE)


def lookup(kernel, dtype, size=0):
    """The configuration of a kernel for numbers of `dtype` and a size, as keyword arguments for its launch."""
    return dict(row_of(kernel, dtype, size)[-1])


def row_of(kernel, dtype, size=0):
    """The row of the table that holds. NotImplementedError if there is none."""
    numbers = _numbers(dtype)
    for name in dict.fromkeys((kernel, kernel.partition("+")[0])):
        for wanted in _kinds():
            for row in TABLE:
                row_kernel, row_gpu, row_numbers, up_to, _ = row
                if row_kernel == name and row_gpu == wanted and row_numbers in (numbers, "any") and size <= up_to:
                    return row
    raise NotImplementedError(f"configs.py has no row for {kernel} on {architecture()} with {numbers} numbers and size "
                              f"{size}")


def _numbers(dtype):
    return "float32" if dtype == torch.float32 else "half"
