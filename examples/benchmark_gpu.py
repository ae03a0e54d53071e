"""The Triton path against torch on a GPU: what `python examples/benchmark.py gpu` runs.

- The card's own floors come first, measured here and now: how fast it copies, multiplies and launches. A kernel's floor
  is max(bytes / bandwidth, operations / rate).
- Before it is timed, each call must agree with torch eager. For every result, eps being that of its type in torch,
      largest |ours - eager|  <=  4 (eps + eps of float32 x sqrt(terms of its longest sum)) x largest |eager|
- Ours and all that torch offers take turns in one run, on the same random arrays, of which there are so many that none
  is in the L2 cache when it is used again. A time is the median of many; spread: the 10th and the 90th percentile.
- A time is that of many calls between two CUDA events, recorded as a CUDA graph, as a training step would be; a call
  that cannot be recorded is timed as launched from Python. How long all take when launched from Python stands beside.
- What raises, on this card or with this torch, is recorded with its reason and does not stop the run.
"""
import contextlib
import datetime
import functools
import gc
import math
import platform
import statistics
import subprocess
import sys
import time
import warnings

import numpy as np
import torch
import triton
import benchmark_step       # noqa: F401  they fill JOBS: first the whole step, then its parts, then other models
import benchmark_optimizer  # noqa: F401
import benchmark_jobs       # noqa: F401
import benchmark_decode     # noqa: F401
import benchmark_models     # noqa: F401
from benchmark_rows import FEWEST, JOBS, Contender, GpuClock, Sizes, WallClock, agreement, kernels, one_line
from benchmark_report import conclude, print_head, print_row
from tinyllm.kernels import runtime

ROWS = 60               # a row may take this part of the time that there is, its compilation aside
SMALL = dict(vocab_size=67, n_positions=8, n_embd=32, n_layer=1, n_head=2)
TINY = dict(B=2, T=8, C=32, H=2, V=67, long=16, keys=128, rows=16, parameters=5000, warm=2,
            models=(("tiny", SMALL, 2),), writing=("tiny", SMALL, (1, 2), 4),
            bert=("tiny", dict(vocab_size=67, hidden_size=32, num_hidden_layers=1, intermediate_size=64,
                               max_position_embeddings=8), 2, 8),
            lstm=("nano", dict(vocab_size=67, n_layer=1), 2, 4),
            seq2seq=("base", dict(vocab_size=67, d_model=32, nhead=2, dim_feedforward=64, n_positions=8,
                                  num_encoder_layers=1, num_decoder_layers=1), 2, 4))
INTERPRETER_NOTE, TINY_NOTE = "interpreter: no GPU, times mean nothing", "smoke: tiny sizes, times mean nothing"


def measure(row, s, clock, floors, seconds, meaningful):
    """The figures of a row, as they go into the JSON file."""
    end, contenders, reasons, agreed = time.perf_counter() + seconds, {}, {}, {"agrees": None}
    try:
        error, allowed = agreement(row)
        agreed = {"agrees": error <= allowed, "error": error if math.isfinite(error) else None,
                  "allowed_error": allowed}
    except Exception as error:
        reasons["agreement"] = one_line(error)
        clock.wait(row)
    calls = {"ours": row.ours, **row.also, **row.torch}
    for name, call in calls.items():
        try:
            contenders[name] = Contender(call, row, clock)
            if contenders[name].reason:
                reasons[name] = contenders[name].reason
        except Exception as error:
            reasons[name] = one_line(error)
            clock.wait(row)
    for i in range(clock.rounds):
        for contender in contenders.values():
            contender.sample()
        if i + 1 >= FEWEST and time.perf_counter() > end:
            break
    times = {name: statistics.median(contenders[name].times) if name in contenders else None for name in calls}
    ours, theirs = times["ours"], [times[name] for name in row.torch if times[name]]
    floor = 1e6 * max(row.bytes / floors["copy_bytes_per_second"],
                      row.operations / floors["matrix_operations_per_second"][str(s.dtype)[6:]])
    return {"name": row.name, "microseconds": ours, "spread": contenders["ours"].spread() if ours else None,
            "percent_of_floor": 100 * floor / ours if ours and meaningful else None,
            "ratio": min(theirs) / ours if ours and theirs and meaningful else None,
            "torch": {name: times[name] for name in row.torch}, "also": {name: times[name] for name in row.also},
            "launched_microseconds": {name: statistics.median(c.runs["launched"][2]) for name, c in contenders.items()},
            "host_microseconds": {name: statistics.median(c.hosts) for name, c in contenders.items()},
            "bytes": row.bytes, "operations": row.operations, **agreed, "reasons": reasons,
            **row.extra({name: us for name, us in times.items() if us})}


# ------------------------------------------------------------------ the machine

def measure_floors(s, clock, tiny):
    """What the card can do: bytes copied a second (read and written), operations of a product, times of a launch."""
    n, size = (2**16, 64) if tiny else (2**30, 8192)
    middle = lambda run: statistics.median(clock.sample(run, clock.repeats(run)) for _ in range(clock.rounds)) / 1e6
    a, b = (torch.zeros(n, dtype=torch.uint8, device=s.device) for _ in range(2))
    floors = {"copy_bytes_per_second": 2 * n / middle(lambda: b.copy_(a)), "matrix_operations_per_second": {}}
    for dtype in (torch.bfloat16, torch.float32):
        a, b = (s.new(size, size, dtype=dtype) for _ in range(2))
        rate = 2 * size**3 / middle(functools.partial(torch.matmul, a, b))
        floors["matrix_operations_per_second"][str(dtype)[6:]] = rate
    one = s.new(1)
    launches = {"triton": lambda: [kernels.add_forward(one, one) for _ in range(20)],
                "torch": lambda: [one + one for _ in range(20)]}
    middle(launches["triton"])
    if clock.records:
        launches["graph"] = clock.record(launches["triton"])
    return floors | {"launch_microseconds": {name: middle(run) / 20 * 1e6 for name, run in launches.items()}}


def machine():
    """What the figures belong to; the clocks are those of a busy card, if it is asked after measure_floors()."""
    facts = {"date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"), "card": None,
             "python": platform.python_version(), "torch": torch.__version__, "triton": triton.__version__,
             "numpy": np.__version__, "cuda": torch.version.cuda}
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties()
        facts |= {"card": card.name, "multiprocessors": card.multi_processor_count, "memory_bytes": card.total_memory,
                  "l2_cache_bytes": card.L2_cache_size}
        wanted = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.draw,power.limit,temperature.gpu"
        with contextlib.suppress(OSError, subprocess.SubprocessError, IndexError):
            lines = subprocess.run(["nvidia-smi", f"--query-gpu=uuid,{wanted}", "--format=csv,noheader"], text=True,
                                   capture_output=True, timeout=20, check=True).stdout.splitlines()
            line = next((line for line in lines if str(card.uuid) in line), lines[0])
            facts |= dict(zip(wanted.split(","), map(str.strip, line.split(",")[1:])))
    return facts


# ------------------------------------------------------------------ the run

class Report:
    """What goes into the JSON file; `save` writes it."""

    def __init__(self, save):
        self.save, self.facts, self.results = save, {}, []

    def add(self, figures):
        self.results.append(figures)
        self.save({**self.facts, "results": self.results})


def run(args, report):
    """Measure; print the table; the exit code."""
    names = args.jobs or list(JOBS)
    if unknown := [name for name in names if name not in JOBS]:
        raise ValueError(f"there is no job {', '.join(unknown)}; choose from {', '.join(JOBS)}")
    gpu, end, skipped = not runtime.INTERPRETED, time.perf_counter() + args.seconds, []
    if not gpu and not args.smoke:
        raise ValueError("TRITON_INTERPRET is set, and times of the interpreter mean nothing: unset it, or add --smoke")
    warnings.simplefilter("ignore")                             # torch's, about its own settings
    clock, note = (GpuClock(), TINY_NOTE) if gpu else (WallClock(), INTERPRETER_NOTE)
    s = Sizes(getattr(torch, args.dtype), runtime.device(), "inductor" if gpu and not args.no_compile else "",
              torch.cuda.get_device_properties().L2_cache_size if gpu else 0, **(TINY if args.smoke else {}))
    floors = measure_floors(s, clock, args.smoke)
    report.facts = {"note": note if args.smoke else None, "machine": machine(), "dtype": args.dtype, "floors": floors}
    print_head(report.facts)
    is_over = lambda: not args.smoke and time.perf_counter() > end
    for name in names:
        if is_over() or not measure_job(name, s, clock, args.seconds / ROWS, report, is_over):
            skipped.append(name)
        forget()
    if skipped:
        print(f"Not measured to the end, since {args.seconds} s were over: {', '.join(skipped)}. Give more --seconds.")
    return conclude(report.results)


def measure_job(name, s, clock, seconds, report, is_over):
    """Measure the rows of a job, until the time is over; whether all of them were measured."""
    torch.manual_seed(0)
    try:
        for row in JOBS[name](s):
            if is_over():
                return False
            figures = measure(row, s, clock, report.facts["floors"], seconds, report.facts["note"] is None)
            report.add({"job": name, **figures})
            print_row(report.results[-1])
    except Exception as error:                                  # its arrays did not fit, or worse
        report.add({"job": name, "name": name, "microseconds": None, "agrees": None,
                    "reasons": {"ours": one_line(error)}})
        print_row(report.results[-1])
    return True


def forget():
    """Free what a job leaves behind, so that the next one starts as if it were the first."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
