"""Everything that a GPU can tell, in one command and under eight minutes: `python examples/benchmark.py gpu --all`.

Each part is a process of its own, with a time limit: whatever goes wrong in one, up to a kernel that ruins the GPU's
state, the others start afresh. The most valuable come first. The one JSON file is written after each part.
"""
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import benchmark_report

HERE = Path(__file__).parent
GRACE = 10                      # seconds that a part which was stopped has to write down what it knows
LEAST = 15                      # seconds without which no part is worth starting
TESTS = ["gpu", "two_paths", "kernels", "agreement", "graph", "into", "fused_linear", "recorded_decoding",
         "quantize_kernels", "recurrent", "generate"]


@dataclass
class Part:
    """A part of the run: its time limit in seconds, and what stands behind `python examples/benchmark.py`."""

    limit: int
    command: tuple = ()         # empty: the tests
    smoke: bool = True          # whether it runs without a GPU


PARTS = {
    "GPT training step": Part(180, ("gpu", "--jobs", "training_step")),
    "next token": Part(100, ("gpu", "--jobs", "next_token")),
    # torch.compile would take two more minutes here, and matters to none of the goals
    "kernels": Part(120, ("gpu", "--no-compile", "--jobs", "adamw", "grad_norm", "linear", "attention",
                          "linear_cross_entropy", "cross_entropy", "embedding", "layer_norm", "add_layer_norm",
                          "decode", "fused_linear", "sample", "linear_gelu", "mlp", "rms_norm", "softmax", "gelu",
                          "dropout", "rope", "add", "column_sum")),
    "other training steps": Part(140, ("gpu", "--jobs", "bert_step", "lstm_step", "seq2seq_step")),
    "loss curves": Part(90, ("curves",)),
    "tests": Part(110, smoke=False),
}


def run(args, save):
    """All parts; save(report) after each. Returns the report and the exit code."""
    end, report = time.perf_counter() + args.seconds, {"headline": {}, "parts": {}, "results": []}
    for name, part in PARTS.items():
        if args.smoke and not part.smoke or args.parts and name not in args.parts:
            continue
        seconds, start = min(part.limit, int(end - time.perf_counter())), time.perf_counter()
        print(f"\n{'=' * 20} {name}, {max(seconds, 0)} s at most {'=' * 20}", flush=True)
        folder = Path(args.out) / "parts" / name.replace(" ", "_")
        clear(folder)
        fate = {"exit_code": None, "reason": "no time was left"}
        if seconds >= LEAST:
            fate = work(command_of(part, args, seconds, folder), seconds, folder, None if part.command else TESTS)
        report["parts"][name] = {"seconds": time.perf_counter() - start, **fate}
        if fate["reason"]:
            print(f"{name}: {fate['reason']}", flush=True)
        gather(report, folder)
        save(report)
    failed = [name for name, fate in report["parts"].items() if fate["exit_code"] != 0]
    print(f"\nNot everything is well with: {', '.join(failed)}." if failed else "\nAll parts ran, and all is well.")
    return report, 1 if failed else 0


def clear(folder):
    """An empty folder: what an earlier run left there is not of this one."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        path.unlink()


def command_of(part, args, seconds, folder):
    """The command line of a part. It gets to know its limit, to leave out what does not fit, and write what does."""
    if not part.command:
        files = [HERE.parent / "tests" / f"test_{name}.py" for name in TESTS]
        # pytest-benchmark, where it is installed, warns of xdist; and a warning is an error here
        return [sys.executable, "-m", "pytest", "-vv", "-p", "no:benchmark", "-p", "no:cacheprovider", "--tb=short",
                "-n", str(max(1, (os.cpu_count() or 2) - 1)), *map(str, filter(Path.exists, files))]
    flags = ["--out", str(folder)] + ["--smoke"] * args.smoke
    if part.command[0] == "gpu":
        flags += ["--dtype", args.dtype, "--seconds", str(seconds - 5)]
        flags += ["--no-compile"] * (args.no_compile and "--no-compile" not in part.command)
    return [sys.executable, str(HERE / "benchmark.py"), *part.command, *flags]


def work(command, seconds, folder, to_file):
    """Run a command in a process group of its own: {"exit_code", "reason"}. to_file: its words go into a file."""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": os.environ.get("OPENBLAS_NUM_THREADS", "2")}
    with open(folder / "output.log", "w") if to_file else contextlib.nullcontext() as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log and subprocess.STDOUT,
                                   cwd=HERE.parent if to_file else None, start_new_session=True)
        try:
            code, reason = process.wait(seconds), None
        except subprocess.TimeoutExpired:
            code, reason = None, f"stopped after {seconds} s"
            process.send_signal(signal.SIGINT)                  # it writes down what it has
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
        finally:
            with contextlib.suppress(ProcessLookupError):       # and what it has started: compilers, workers
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return {"exit_code": code, "reason": reason or (f"ended with exit code {code}" if code else None)}


def gather(report, folder):
    """Take what a part has written into the report."""
    if found := read_json(folder / "benchmark_gpu.json"):
        report["results"] += found.pop("results")
        report.update({key: facts for key, facts in found.items() if key not in report})        # of the machine
    if found := read_json(folder / "benchmark_curves.json"):
        report["curves"] = found
    if (folder / "output.log").exists():
        report["tests"] = tests_in((folder / "output.log").read_text(encoding="utf-8", errors="replace"))
        print(f"tests: {report['tests']['passed']} passed, {len(report['tests']['failed'])} failed")
        print("".join(f"    {name}\n" for name in report["tests"]["failed"]), end="")
    extra = {}
    if "curves" in report:
        extra["loss_curves_largest_distance"] = report["curves"]["largest_distance"]
    if "tests" in report:
        extra |= {"tests_passed": report["tests"]["passed"], "tests_failed": len(report["tests"]["failed"])}
    report["headline"] = benchmark_report.headline(report["results"], extra)


def read_json(path):
    """What a file holds; None if there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def tests_in(output):
    """{"passed": how many, "failed": [names]} of pytest's lines, one for each test, as far as it came.

    A line is like "[gw3] [ 12%] PASSED tests/test_x.py::test_y"; those of the summary, without a worker, repeat them.
    """
    passed, failed = 0, []
    for line in output.splitlines():
        found = re.match(r"\[gw\d+\] \[ *\d+%\] (PASSED|FAILED|ERROR) (.+)", line)
        if found and found[1] == "PASSED":
            passed += 1
        elif found:
            failed.append(found[2].strip())
    return {"passed": passed, "failed": failed}
