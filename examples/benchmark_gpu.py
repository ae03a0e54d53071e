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
import benchmark_step   # noqa: F401  both fill JOBS, first the whole step, then its parts
import benchmark_jobs   # noqa: F401
from benchmark_rows import FEWEST, JOBS, Contender, GpuClock, Sizes, WallClock, agreement, kernels, one_line
from tinyllm.kernels import runtime

ROWS = 60               # a row may take this part of the time that there is, its compilation aside
TINY = dict(B=2, T=8, C=32, H=2, V=67, long=16, keys=128, rows=16, parameters=5000,
            models=(("tiny", dict(vocab_size=67, n_positions=8, n_embd=32, n_layer=1, n_head=2), 2),))
INTERPRETER_NOTE, TINY_NOTE = "interpreter: no GPU, times mean nothing", "smoke: tiny sizes, times mean nothing"
HEADER = """\
us: a call's median time in microseconds, in a CUDA graph where that works; spread: 10th to 90th percentile; launched:
the same from Python. floor: what the card needs at the least, max(bytes / bandwidth, operations / rate), in percent of
us: 100 is perfect. ratio: the time of torch's best alternative / ours: above 1, ours is faster."""


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
    calls = {"ours": row.ours, **row.torch}
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
    ours, theirs = times["ours"], [us for name, us in times.items() if name != "ours" and us]
    floor = 1e6 * max(row.bytes / floors["copy_bytes_per_second"],
                      row.operations / floors["matrix_operations_per_second"][str(s.dtype)[6:]])
    return {"name": row.name, "microseconds": ours, "spread": contenders["ours"].spread() if ours else None,
            "percent_of_floor": 100 * floor / ours if ours and meaningful else None,
            "ratio": min(theirs) / ours if ours and theirs and meaningful else None,
            "torch": {name: times[name] for name in row.torch},
            "launched_microseconds": {name: statistics.median(c.runs["launched"][2]) for name, c in contenders.items()},
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
            report.add(measure(row, s, clock, report.facts["floors"], seconds, report.facts["note"] is None))
            print_row(report.results[-1])
    except Exception as error:                                  # its arrays did not fit, or worse
        report.add({"name": name, "microseconds": None, "agrees": None, "reasons": {"ours": one_line(error)}})
        print_row(report.results[-1])
    return True


def forget():
    """Free what a job leaves behind, so that the next one starts as if it were the first."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def conclude(results):
    """Say which rows are not to be trusted; the exit code."""
    wrong = [r["name"] for r in results if not r["agrees"] or r["microseconds"] is None]
    print(f"Ours failed, or does not agree with torch: {', '.join(wrong)}." if wrong else
          f"All {len(results)} agree with torch, within the rule at the top of benchmark_gpu.py.")
    return 1 if wrong else 0


def print_head(facts):
    """What the machine is and can do, and the columns."""
    machine, floors, launch = facts["machine"], facts["floors"], facts["floors"]["launch_microseconds"]
    print(f"{machine['card'] or 'No GPU'}, {facts['dtype']}, torch {machine['torch']}, triton {machine['triton']}")
    if facts["note"]:
        print(f"*** {facts['note']} ***")
    else:
        rates = ", ".join(f"{rate / 1e12:.1f} TFLOP/s in {dtype}"
                          for dtype, rate in floors["matrix_operations_per_second"].items())
        print(f"It copies {floors['copy_bytes_per_second'] / 1e12:.2f} TB/s and multiplies {rates}.\n"
              f"A launch takes {', '.join(f'{us:.1f} us ({name})' for name, us in launch.items())}.")
    print(f"{HEADER}\n\n{'':34}{'us':>9}{'spread':>19}{'launched':>10}{'floor':>7}{'ratio':>7}   torch, us", flush=True)


def print_row(r):
    """A line of the table, and below it what is not as it should be."""
    us = lambda value: "-" if value is None else f"{value:.{0 if value >= 10_000 else 1}f}"
    share, ratio, launched = r.get("percent_of_floor"), r.get("ratio"), r.get("launched_microseconds", {}).get("ours")
    spread = " to ".join(map(us, r.get("spread") or [None]))
    print(f"{r['name']:34}{us(r['microseconds']):>9}{spread:>19}{us(launched):>10}"
          f"{'-' if share is None else f'{share:.0f}%':>7}{'-' if ratio is None else f'{ratio:.2f}':>7}   "
          + "  ".join(f"{name} {us(value)}" for name, value in r.get("torch", {}).items()), flush=True)
    if r["agrees"] is False:
        off = "not finite" if r["error"] is None else f"off by {r['error']:.1e} of the largest entry"
        print(f"    DISAGREES with torch eager: {off}, allowed is {r['allowed_error']:.1e}")
    for what in ("tokens_per_second", "peak_memory_bytes"):
        for name, value in r.get(what, {}).items():
            print(f"    {what.replace('_', ' ')}, {name}: {value:,.0f}")
    for name, reason in r["reasons"].items():
        print(f"    {name}: {reason}")


def picture(report):
    """Bars: how near each row comes to its floor, and how much faster than torch's best it is."""
    from matplotlib.figure import Figure
    rows = report.results
    figure = Figure(figsize=(12, 1.6 + 0.24 * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, key, form, label in (
            (left, "percent_of_floor", "{:.0f}", "percent of what the card can do (floor / time)"),
            (right, "ratio", "{:.2f}", "time of torch's best / ours (above 1: ours is faster)")):
        values = [r.get(key) or 0 for r in rows]
        bars = axes.barh(range(len(rows)), values, height=0.7, color="#4c72b0" if axes is left else "#55a868")
        axes.bar_label(bars, [form.format(v) if v else "-" for v in values], padding=3, fontsize=8)
        axes.set(xlabel=label, xlim=(0, 1.12 * max(values + [100 if axes is left else 1])))
        axes.axvline(100 if axes is left else 1, color="gray", linestyle="--", linewidth=1)
    left.set(yticks=range(len(rows)), yticklabels=[r["name"] for r in rows], ylim=(len(rows) - 0.4, -0.6))
    machine = report.facts["machine"]
    figure.suptitle(f"{machine['card'] or 'no GPU'}, {report.facts['dtype']}, torch {machine['torch']}, triton "
                    f"{machine['triton']}" + (f"\n{report.facts['note']}" if report.facts["note"] else ""))
    return figure
