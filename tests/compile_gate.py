"""Compile every kernel, with every row of its table, for a GPU that need not be there, and print what it costs.

    TRITON_INTERPRET=0 python tests/compile_gate.py CARD TYPE PART      exits with 1 if a kernel breaks a rule

CARD is 80, 86, 89, 90 or 120, TYPE bfloat16 or float32. PART is "all"; "tiles", the kernels that configs.py has rows
for; "plain", without those that differ only in what attention adds; or "batches", which compares what is compiled for
batches of several sizes.

The host code of the kernels runs as ever, on tensors without memory; where it launches a kernel, the kernel is compiled
as the launch would compile it. The compiler says how many registers, how much stack and shared memory it takes, and
which instructions it has chosen.
"""

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget

from tinyllm import kernels
from tinyllm.kernels import configs, runtime

SHARED_KB = {80: 163, 86: 99, 89: 99, 90: 227, 120: 99}
MULTIPROCESSORS = {80: 108, 86: 84, 89: 128, 90: 132, 120: 170}
# Kernels that do little but read and write: they must read 16 bytes at a time.
STREAMING = {"map", "reduce_rows", "reduce_columns", "layer_norm_forward", "layer_norm_backward",
             "rms_norm_forward", "rms_norm_backward",
             "softmax", "softmax_backward", "long_softmax_backward", "cross_entropy", "naive_cross_entropy", "adamw",
             "sgd", "square_sum",
             "dropout", "embedding_forward", "linear_int8"}
# 16 or 32 rows, where wgmma needs 64
SMALL_TILES = {"attention_decode", "fused_linear_tiles", "rnn_step", "rnn_step_backward", "lstm_step",
               "lstm_step_backward"}
FLOAT32_STACK = 2048        # IEEE float32 products have no tensor cores and spill; bounded, and printed


class PretendDriver:
    """What Triton asks about the GPU before it compiles."""

    def __init__(self, capability):
        self.target = GPUTarget("cuda", capability, 32)

    get_current_device = get_current_stream = lambda self, *device: 0

    def get_current_target(self):
        return self.target


class Gate:
    """Collects the kernels that host code would launch on a GPU of this compute capability."""

    def __init__(self, capability, part):
        self.only = {row[0].partition("+")[0] for row in configs.TABLE} if part == "tiles" else None
        self.compiled = {}
        triton.runtime.driver.set_active(PretendDriver(capability))
        runtime.device = lambda: torch.device("meta")
        runtime.capability = lambda: divmod(capability, 10)
        runtime.n_multiprocessors = lambda: MULTIPROCESSORS[capability]
        triton.JITFunction.run = self.compile_only(triton.JITFunction.run)

    def compile_only(self, launch):
        def run(function, *args, grid, warmup, **kwargs):
            start, name = time.perf_counter(), function.__name__.removesuffix("_kernel")
            if self.only and name not in self.only:
                return
            compiled = launch(function, *args, grid=grid, warmup=True, **kwargs)
            if compiled.hash not in self.compiled:
                self.compiled[compiled.hash] = name, compiled, time.perf_counter() - start
        return run


def dump(compiled, tool, option):
    """What a tool of NVIDIA's says about the machine code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / tool
        return subprocess.run([tool, option, file.name], text=True, capture_output=True, check=True).stdout


def resources(compiled):
    """Registers a thread, bytes of stack a thread: what the registers do not hold is spilled there."""
    text = dump(compiled, "cuobjdump", "--dump-resource-usage")
    return [int(re.search(rf"{name}:(\d+)", text)[1]) for name in ("REG", "STACK")]


def overwrites_an_operand(machine_code):
    """Whether a loop reads the left side of a wgmma from registers before it writes them: from the second turn on, it
    reads what the turn before has left there. ptxas makes this mistake (attention_tiles.py, load_tile)."""
    lines, labels = machine_code.splitlines(), {}
    for end, line in enumerate(lines):
        labels.update({name: end for name in re.findall(r"^(\.L_x_\d+):", line)})
        target = re.search(r"@.* BRA .*`\((\.L_x_\d+)\)", line)      # a loop ends with a branch on a condition
        if not target or target[1] not in labels:
            continue
        written, read_first = set(), set()
        for instruction in lines[labels[target[1]]:end]:
            if left := re.search(r"HGMMA\S* R\d+, (R\d+), gdesc", instruction):
                read_first |= {left[1]} - written
            if out := re.search(r"^\s*/\*\w+\*/\s+(?:@!?\w+ )?(\S+) R(\d+),", instruction):
                n = re.search(r"HGMMA\.64x(\d+)x", out[1])
                n = int(n[1]) // 2 if n else 4 if re.search(r"M88\.4|\.128", out[1]) else 2 if ".64" in out[1] else 1
                written |= {f"R{int(out[2]) + i}" for i in range(n)}
        if read_first & written:
            return True
    return False


def counts_out_of_order(ptx):
    """How many counters (kernels/last.py) there are without a barrier before and behind them, or that publish nothing.
    """
    ordered = r"bar\.sync[^{}]*?atom\.global\.gpu\.acq_rel\.add\.[us]32[^{}]*?bar\.sync"
    return len(re.findall(r"atom\.\S*add\.[us]32", ptx)) - len(re.findall(ordered, ptx))


def instructions(ptx):
    """Which of the instructions that matter there are: tensor cores, the tile fetcher, 16-byte loads."""
    found = {"wgmma": r"wgmma\.mma_async", "mma": r"\bmma\.sync", "tma": r"cp\.async\.bulk\.tensor",
             "16B": r"ld\.global\S*\.v4\.b32|ld\.global\S*\.v2\.b64|cp\.async\.c[ag]\.shared\.global .*?, 0x10, "}
    return {name: len(re.findall(pattern, ptx)) for name, pattern in found.items()}


def calls(dtype, B=32, T=1024, C=768, V=50257):
    """(op, arrays, options) of every op at the sizes of GPT-2 124M, with every optional argument."""
    def new(*shape, dtype=dtype):
        return torch.empty(shape, dtype=dtype, device="meta")

    def ints(*shape):
        return new(*shape, dtype=torch.int64)

    x, rows, angles = new(B, T, C), new(B * T, C), new(T, 32, dtype=torch.float32)
    heads = lambda size: (new(2, T, 4, size), new(2, T, 2, size), new(2, T, 2, size))
    limits, rng, dropout = ints(2), ints(2), dict(dropout=0.1)
    for op in ("add", "sub", "mul", "div", "pow", "maximum"):
        yield op, (x, new(C)), {}
    yield "where", (new(B, 1, C, dtype=torch.bool), x, x), {}
    for op in ("neg", "exp", "log", "sqrt", "tanh", "sigmoid", "relu", "erf", "silu", "softmax", "log_softmax"):
        yield op, (x,), {}
    for op in ("softmax", "log_softmax"):       # rows that are too long for a tile
        yield op, (new(64, 8192),), {}
    for op in ("sum", "mean", "max"):
        yield op, (x,), dict(axis=0)
        yield op, (x,), dict(axis=-1)
    yield "matmul", (new(B, 12, T, 64), new(B, 12, 64, T)), {}
    yield "gelu", (x,), {}
    yield "gelu", (x,), dict(approximate="tanh")
    yield "swiglu", (x, x), {}
    yield "embedding", (ints(B, T), new(V, C)), {}
    yield "linear", (x, new(3 * C, C), new(3 * C)), {}
    yield "linear_gelu", (x, new(4 * C, C), new(4 * C)), {}
    yield "mlp", (x, new(4 * C, C), new(4 * C), new(C, 4 * C), new(C)), {}
    yield "layer_norm", (x, new(C), new(C)), {}
    yield "add_layer_norm", (x, x, new(C), new(C)), {}
    yield "rms_norm", (x, new(C)), {}
    for size in (64, 128):
        yield "attention", (*heads(size), None, limits, limits, None), dict(causal=True)
        yield "attention", (*heads(size), new(1, 4, T, T), None, None, rng), dropout
    yield "self_attention", (new(B, T, 3 * C), None, None, rng), dict(n_head=12, **dropout)
    yield "rope", (new(B, T, 12, 64), angles, angles), {}
    steps, state = new(B, 3, C), new(B, C)      # three steps: all but the last are the same
    # one bias only: the sum of two vectors of 768 is no streaming kernel
    yield "rnn", (steps, state, new(C, C), new(C, C), new(C), None), {}
    yield "lstm", (steps, state, state, new(4 * C, C), new(4 * C, C), new(4 * C), new(4 * C)), \
        dict(needs=(True, False, False, *(True,) * 4))      # in training, the initial states are given
    yield "dropout", (x, rng), dict(p=0.1)
    for vocabulary in (V + 47, V):
        yield "cross_entropy", (new(B * T, vocabulary), ints(B * T)), {}
    yield "linear_cross_entropy", (rows, new(V, C), ints(B * T)), {}
    yield "linear_cross_entropy", (rows, new(128_000, C), ints(B * T)), dict(label_smoothing=0.1)


def odd_calls(dtype, B=32, T=1024, C=768):
    """The same at sizes that nothing divides: memory cannot be read in wide pieces here."""
    def new(*shape, dtype=dtype):
        return torch.empty(shape, dtype=dtype, device="meta")

    yield "linear", (new(B, T, C), new(65, C), None), {}
    for size in (80, 36):
        yield "attention", (new(2, T, 3, size), new(2, T, 3, size), new(2, T, 3, size)), dict(causal=True)
    yield "lstm", (new(B, 3, C), None, None, new(4 * 65, C), new(4 * 65, 65), None, None), {}
    yield "linear_cross_entropy", (new(B * T, C), new(65, C), new(B * T, dtype=torch.int64)), dict(reduction="none")
    yield "cross_entropy", (new(B * T, 16_001), new(B * T, dtype=torch.int64)), dict(label_smoothing=0.1)


def differentiate(op, arrays, options):
    """Run the host code of an op, forward and backward."""
    outs, saved = getattr(kernels, op + "_forward")(*arrays, **options)
    getattr(kernels, op + "_backward")(*(outs if isinstance(outs, tuple) else (outs,)), saved=saved)


def other_calls(dtype):
    """Run the host code of what has no gradient, and of what differentiate() does not reach."""
    def new(*shape, dtype=dtype):
        return torch.empty(shape, dtype=dtype, device="meta")

    rng, flat, working = new(2, dtype=torch.int64), new(124_439_808, dtype=torch.float32), None
    if dtype != torch.float32:
        working = new(124_439_808)
    runtime.deterministic = True
    kernels.embedding_backward(new(32, 768), (new(32, dtype=torch.int64), 50257, (False, True)))
    runtime.deterministic = False
    for size in (64, 128):          # one new token at the end of a long text
        kernels.attention_forward(new(2, 1, 4, size), *(new(2, 1024, 2, size) for _ in "kv"), causal=True)
    norm = kernels.grad_norm(flat)
    kernels.adamw_step(flat, flat, flat, flat, new(2), norm, working, weight_decay=0.1, max_norm=1.0)
    kernels.sgd_step(flat, flat, flat, new(2), norm, working, momentum=0.9, nesterov=True)
    kernels.sample(new(4, 50257), rng, top_k=50, top_p=0.95)
    kernels.sample(new(4, 50257), rng)
    kernels.sample(new(4, 50257), rng, temperature=0)
    kernels.first_bits(rng, 1000, 0)
    decoding_calls(new)


def decoding_calls(new, C=768):
    """Run the host code of a step of writing: of one text, of a few, of a batch; with weights of both kinds."""
    scale, vector, integers = new(4 * C, dtype=torch.float32), new(C), lambda *shape: new(*shape, dtype=torch.int64)
    for rows in (1, 2, 16, 64):
        for n_out, n_in, options in ((3 * C, C, dict(norm="layer_norm")), (4 * C, C, dict(norm="rms_norm")),
                                     (4 * C, C, dict(norm="layer_norm", activation="gelu")), (C, 4 * C, {})):
            norm = (vector if options else None, vector if options.get("norm") == "layer_norm" else None)
            residual = None if options else new(rows, n_out)
            for weight, scales in ((new(n_out, n_in), None), (new(n_out, n_in, dtype=torch.int8), scale[:n_out])):
                kernels.fused_linear(new(rows, n_in), weight, scales, new(n_out), *norm, residual, **options)
    for rows in (1, 1024):          # the head, and a prompt
        kernels.linear_int8(new(rows, C), new(50257, C, dtype=torch.int8), new(50257, dtype=torch.float32))
    for size in (64, 128):
        q, kv, cache = new(2, 1, 4, size), new(2, 1, 2, size), new(2, 1024, 2, size)
        for bias in (None, new(1, 4, 1, 1024)):
            kernels.cached_attention(q, kv, kv, cache, cache, integers(1), integers(2), bias)
    kernels.text_positions(integers(1), integers(2))
    kernels.rope_forward(new(2, 1, 4, 64), *(new(1024, 32, dtype=torch.float32) for _ in "cs"), integers(1))


def verdict(name, compiled, dtype, capability, aligned=True):
    """One line of the table, and what is wrong with it."""
    registers, stack = resources(compiled)
    shared, has = compiled.metadata.shared, instructions(compiled.asm["ptx"])
    half, is_dot = dtype != torch.float32, "tt.dot" in compiled.asm["ttir"]
    rules = {
        "too much shared memory": shared > SHARED_KB[capability] * 1024,
        "spills": stack > (0 if half else FLOAT32_STACK),
        "a product without tensor cores": half and is_dot and not has["wgmma"] + has["mma"],
        "an operand that is overwritten": has["wgmma"] and overwrites_an_operand(dump(compiled, "nvdisasm", "-c")),
        "no wgmma": half and is_dot and capability == 90 and not has["wgmma"] and name not in SMALL_TILES,
        "a count that orders nothing": counts_out_of_order(compiled.asm["ptx"]),
        "no 16-byte loads": aligned and (name in STREAMING or half and is_dot) and not has["16B"] + has["tma"],
    }
    line = (f"{name:28s} {str(dtype)[6:]:9s} sm_{capability:<4d}{registers:4d} registers{stack:6d} B stack"
            f"{shared:8d} B shared  " + ", ".join(f"{count} {key}" for key, count in has.items() if count))
    return line, [rule for rule, broken in rules.items() if broken]


def main(capability, dtype, part):
    """Compile and print; the number of broken rules."""
    failures, gate = 0, Gate(capability, part)
    for aligned in (True, False):
        gate.compiled.clear()
        for op, arrays, options in (calls if aligned else odd_calls)(dtype):
            if part != "plain" or not (options.get("dropout") or aligned and arrays[0].shape[-1] == 128):
                differentiate(op, arrays, options)
        if aligned:
            other_calls(dtype)
        for name, compiled, seconds in gate.compiled.values():
            line, wrong = verdict(name, compiled, dtype, capability, aligned)
            print(f"{line}  {seconds:.1f} s" + ("   <- " + ", ".join(wrong) if wrong else ""), flush=True)
            failures += len(wrong)
    return failures


def compare_batches(capability, dtype):
    """Whether a training step's kernels are the same for batches of different sizes: 0 if they are."""
    gate, sets = Gate(capability, "all"), []
    for batch in (1, 2, 3, 5, 8, 24):
        gate.compiled.clear()
        for op, arrays, options in calls(dtype, B=batch, T=256):
            if op in ("add", "embedding", "linear", "mlp", "add_layer_norm", "self_attention", "lstm",
                      "linear_cross_entropy"):
                differentiate(op, arrays, options)
        sets.append({(name, compiled.hash) for name, compiled, _ in gate.compiled.values()})
        print(f"batch {batch}: {len(sets[-1])} kernels")
    differing = sorted({name for name, _ in set.union(*sets) - set.intersection(*sets)})
    print(f"{len(sets[0])} kernels, the same for each of {len(sets)} batch sizes" if not differing else
          f"compiled anew for another batch size: {', '.join(differing)}")
    return len(differing)


if __name__ == "__main__":
    card, numbers, part = int(sys.argv[1]), getattr(torch, sys.argv[2]), sys.argv[3]
    sys.exit(min(1, compare_batches(card, numbers) if part == "batches" else main(card, numbers, part)))
