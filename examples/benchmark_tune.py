"""Looking for better tiles on the card at hand: what `python examples/benchmark.py tune` runs.

For each kernel below, the search starts with its row of kernels/configs.py and changes one thing at a time: an edge of
the tile, the warps, the stages of the pipeline. What does not compile, or disagrees with torch on this card, drops out;
the fastest becomes the new start, until nothing is faster or the time is over. A row that is at least 2 % faster than
the old one, also when both are measured once more, is written into configs.py, in its place, or before it where that
one is for other cards as well. `git diff` shows what has changed, tests/compile_gate.py whether it compiles everywhere.

The time of a configuration is that of all calls in which the kernel has a part, at the sizes of GPT-2 124M.
"""
import ast
import concurrent.futures
import math
import multiprocessing
import os
import statistics
import time
from pathlib import Path

import benchmark_jobs       # noqa: F401  which fills JOBS
import torch
from benchmark_rows import JOBS, Contender, GpuClock, Sizes, agreement, one_line
from tinyllm.kernels import configs, runtime

TRIALS = {              # kernel: its size in the table, the job, and what the names of its rows have in them
    "weight_gradient": (0, "linear", "weight gradient"),
    "attention": (64, "attention", "T=1024 forward"),
    "attention_dkdv": (64, "attention", "T=1024 backward"),
    "attention_dq": (64, "attention", "T=1024 backward"),
    "matmul_tma+gelu_backward": (0, "mlp", "backward"),
    "matmul_tma+gelu": (0, "linear_gelu", "forward"),
    "matmul_tma": (0, "linear", ("forward", "input gradient")),
    "matmul": (0, "linear", ("forward", "input gradient")),
    "fused_linear_tiles": (64, "fused_linear", "64 texts"),
    "fused_linear_rows": (0, "fused_linear", ", 1 text"),
    "attention_decode": (64, "decode", "one token"),
}
CHOICES = {"BLOCK_M": (64, 128, 256), "BLOCK_N": (32, 64, 128, 256), "BLOCK_Q": (32, 64, 128), "BLOCK_K": (32, 64, 128),
           "GROUP_M": (4, 8, 16), "PROGRAMS": (1, 2), "FLATTEN": (False, True), "TMA": (False, True),
           "PARTS": (1, 2, 4, 8, 16), "WEIGHTS": (1024, 2048, 4096, 8192), "num_warps": (4, 8),
           "num_stages": (1, 2, 3, 4, 5)}
LARGE, SMALL = {}, dict(B=4)        # sizes to measure at, and to compile at: the same kernels
BETTER = 0.98                       # of the old time; what is nearer may be chance
ROUNDS = 5                          # samples of each configuration


class Row:
    """Inside, another row stands before all others in the table."""

    def __init__(self, row):
        self.row = row

    def __enter__(self):
        configs.TABLE.insert(0, self.row)

    def __exit__(self, *_):
        configs.TABLE.remove(self.row)


def sizes(**changes):
    return Sizes(torch.bfloat16, runtime.device(), cache=torch.cuda.get_device_properties().L2_cache_size, **changes)


def rows_of(kernel, s):
    """The benchmark's rows in which a kernel has a part."""
    _, job, parts = TRIALS[kernel]
    parts = (parts,) if isinstance(parts, str) else parts
    torch.manual_seed(0)
    return [row for row in JOBS[job](s) if any(part in row.name for part in parts)]


def neighbours(config):
    """All configurations that differ from this one in one thing; or in two, an edge of the tile being exchanged."""
    for key, values in CHOICES.items():
        for value in values if key in config else ():
            if value != config[key]:
                yield {**config, key: value}
    if config.get("BLOCK_M") != config.get("BLOCK_N"):
        yield {**config, "BLOCK_M": config["BLOCK_N"], "BLOCK_N": config["BLOCK_M"]}


def compilers():
    """Processes that compile kernels and leave them on the disk: one takes a second or more."""
    context, n = multiprocessing.get_context("spawn"), max(1, (os.cpu_count() or 2) - 2)
    return concurrent.futures.ProcessPoolExecutor(n, context)


def compile_one(row):
    """In such a process."""
    try:
        with Row(row):
            for call in rows_of(row[0], sizes(**SMALL)):
                call.ours(0)
        torch.cuda.synchronize()
    except Exception:                                           # whoever measures it will meet it again
        pass


def time_of(row, calls, clock):
    """Microseconds of all calls together with this row in the table; raises if one fails or disagrees with torch."""
    total = 0.0
    with Row(row):
        for call in calls:
            error, allowed = agreement(call)
            if not error <= allowed:
                raise ArithmeticError(f"{call.name} is off by {error:.1e}, allowed is {allowed:.1e}")
            contender = Contender(call.ours, call, clock)
            for _ in range(ROUNDS):
                contender.sample()
            total += statistics.median(contender.times)
            del contender               # and its graph: to lose one while the next is recorded makes torch warn
    return total


def search(kernel, clock, end, pool):
    """(old row, new row, old time, new time) for one kernel; the new row is the old one where nothing is faster."""
    old = configs.row_of(kernel, torch.bfloat16, TRIALS[kernel][0])
    named = lambda config: (kernel, configs.architecture(), *old[2:4], config)
    calls, tried = rows_of(kernel, sizes(**LARGE)), []
    best = named(old[-1])
    first = fastest = attempt(best, calls, clock, f"{kernel} with {best[-1]}")
    while time.perf_counter() < end:
        new = [named(config) for config in neighbours(best[-1]) if config not in tried]
        tried += [row[-1] for row in new]
        list(pool.map(compile_one, new))
        before = best
        for row in new:
            if time.perf_counter() > end:
                break
            microseconds = attempt(row, calls, clock, "    " + difference(before[-1], row[-1]))
            if microseconds < fastest:
                fastest, best = microseconds, row
        if best is before:
            break
    if best[-1] != old[-1]:                                     # once more, one after the other: was it chance?
        first, fastest = (attempt(row, calls, clock, f"{kernel} with {row[-1]}") for row in (named(old[-1]), best))
    return old, best if best[-1] != old[-1] and fastest < BETTER * first else old, first, fastest


def attempt(row, calls, clock, name):
    """time_of(), printed; infinite if it fails."""
    try:
        microseconds = time_of(row, calls, clock)
    except Exception as error:
        print(f"{name}: {one_line(error)}", flush=True)
        clock.wait(calls[0])
        return math.inf
    print(f"{name}: {microseconds:.0f} us", flush=True)
    return microseconds


def difference(old, new):
    return ", ".join(f"{key}={value}" for key, value in new.items() if value != old[key])


def run(kernels, seconds):
    """Search for all kernels that this card uses; rewrite the table; return what has changed."""
    with compilers() as pool:
        return search_all(kernels, seconds, pool)


def search_all(kernels, seconds, pool):
    end, clock, found = time.perf_counter() + seconds, GpuClock(), []
    kernels = [kernel for kernel in kernels or TRIALS if configs.has(kernel, torch.bfloat16)]
    if configs.has("matmul_tma", torch.bfloat16) and "matmul" in kernels:
        kernels.remove("matmul")                                # which this card uses for odd sizes only
    for i, kernel in enumerate(kernels):
        left = end - time.perf_counter()
        if left <= 0:
            print(f"Not searched, since {seconds} s were over: {', '.join(kernels[i:])}. Give more --seconds.")
            break
        old, new, before, after = search(kernel, clock, time.perf_counter() + left / (len(kernels) - i), pool)
        if new is not old:
            path = Path(configs.__file__)
            place, rows = configs.TABLE.index(old), [*smaller(old, new[1]), new]
            path.write_text(replaced(path.read_text(encoding="utf-8"), old, *rows), encoding="utf-8")
            configs.TABLE[place:place] = rows
            found.append({"kernel": kernel, "old": old[-1], "new": new[-1],
                          "microseconds": [before if before < math.inf else None, after]})
            print(f"{kernel}: {before:.0f} -> {after:.0f} us, written into configs.py: {new[-1]}", flush=True)
        else:
            print(f"{kernel}: nothing is faster by 2 %", flush=True)
        torch.cuda.empty_cache()
    return {"card": torch.cuda.get_device_name(), "changes": found}


def smaller(old, gpu):
    """If `old` is for other cards, too: such rows for smaller sizes, as rows of this one, which would hide them."""
    return [] if old[1] == gpu else [(row[0], gpu, *row[2:]) for row in configs.TABLE
                                     if row[:3] == old[:3] and row[3] < old[3]]


def replaced(source, old, *new):
    """The source of configs.py with new rows in place of `old`, or before it if `old` is for other cards too."""
    table = next(node.value for node in ast.parse(source).body if isinstance(node, ast.Assign)
                 and node.targets[0].id == "TABLE")
    place = next(node for node in table.elts if value_of(node) == old)
    lines = source.split("\n")
    if old[:2] == new[-1][:2]:
        del lines[place.lineno - 1:place.end_lineno]
    text = [line for row in new for line in text_of(row)]
    return "\n".join([*lines[:place.lineno - 1], *text, *lines[place.lineno - 1:]])


def value_of(node):
    """A row of the table, from its source."""
    *names, config = node.elts
    return (*(configs.ANY if isinstance(name, ast.Name) else ast.literal_eval(name) for name in names),
            {pair.arg: ast.literal_eval(pair.value) for pair in config.keywords})


def text_of(row):
    """The lines of a row, of at most 120 characters."""
    kernel, gpu, numbers, up_to, config = row
    start = f'    ("{kernel}", "{gpu}", "{numbers}", {"ANY" if up_to == configs.ANY else up_to}, dict('
    lines, words = [start], [f"{key}={value}" for key, value in config.items()]
    for i, word in enumerate(words):
        word += "))," if i == len(words) - 1 else ", "
        if len(lines[-1] + word.rstrip()) > 120:
            lines[-1] = lines[-1].rstrip()
            lines.append(" " * len(start))
        lines[-1] += word
    return lines
