"""How fast is it? The engine against torch, in one run on one machine.

    python examples/benchmark.py cpu            training steps and writing in NumPy; eleven minutes
    python examples/benchmark.py gpu            training steps and every kernel, in Triton; five minutes (--seconds)
    python examples/benchmark.py gpu --smoke    the same at tiny sizes, also without a GPU: do all jobs run and agree?
    python examples/benchmark.py cpu --jobs C1 --threads 1          some of it; also gpu --jobs linear attention
    python examples/benchmark.py curves         do the losses of NumPy and Triton stay together? Two minutes
    python examples/benchmark.py gpu --all      steps, kernels, writing, curves, and the tests that a GPU runs: eight
    python examples/benchmark.py tune           look for faster tiles on this card, and write them into its table

A time says little: it belongs to one machine and one moment. What travels is the ratio to what a user would pick
instead, both sides taking turns in the same run; and for a kernel the share of what the machine can do at all. How each
side measures stands in benchmark_cpu.py and benchmark_gpu.py, what the GPU's jobs are in benchmark_step.py (training
steps), benchmark_models.py, benchmark_decode.py (writing), benchmark_optimizer.py and benchmark_jobs.py (kernels).

Leaves behind, in the folder --out (default: runs): benchmark_cpu.json and .png, benchmark_gpu.json and .png,
benchmark_curves.json and .png, or benchmark_tune.json; gpu writes its figures after every row, so that a run that was
killed keeps what it has. gpu --all writes those of curves, too, and what people ask for first stands at the top of
benchmark_gpu.json, "headline". The exit code of gpu is 1 if a kernel failed, or could not be shown to agree with torch,
and with --all if any part failed.
"""
import argparse
import json
import os
import sys
from pathlib import Path

import benchmark_all
import benchmark_cpu
import benchmark_report


def whole(text):
    """An argument that counts something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"it should be a whole number, at least 1, not {text}")
    return int(text)


def arguments(argv):
    parser = argparse.ArgumentParser(description="Compare the engine's speed with torch's.")
    sides = parser.add_subparsers(dest="what", required=True)
    cpu = sides.add_parser("cpu", help="training steps and decoding in NumPy, against torch eager")
    cpu.add_argument("--jobs", nargs="+", choices=list(benchmark_cpu.JOBS), default=list(benchmark_cpu.JOBS))
    cpu.add_argument("--threads", type=whole, default=os.cpu_count(), help="of each side (default: %(default)s)")
    cpu.add_argument("--turns", type=whole, default=15, help="of each side (default: %(default)s)")
    gpu = sides.add_parser("gpu", help="every Triton kernel, against torch eager, torch.compile and their like")
    gpu.add_argument("--jobs", nargs="+", metavar="JOB", help="some of them; a wrong name prints the list")
    gpu.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="(default: %(default)s)")
    gpu.add_argument("--all", action="store_true", help="everything, in parts that cannot harm each other")
    gpu.add_argument("--parts", nargs="+", choices=list(benchmark_all.PARTS), help="of --all, if time is short")
    gpu.add_argument("--seconds", type=whole, help="for all jobs together (default: 300; with --all 470)")
    gpu.add_argument("--no-compile", action="store_true", help="leave torch.compile out: it takes most of the time")
    gpu.add_argument("--smoke", action="store_true", help="tiny sizes; needs no GPU; the times mean nothing")
    curves = sides.add_parser("curves", help="the losses of a training run in NumPy and in Triton, one over the other")
    curves.add_argument("--steps", type=whole, help="of each run (default: 500; with --smoke 2)")
    curves.add_argument("--smoke", action="store_true", help="a tiny model; needs no GPU")
    tune = sides.add_parser("tune", help="look for faster tiles on this card, and write them into kernels/configs.py")
    tune.add_argument("--kernels", nargs="+", metavar="KERNEL", help="some of them; a wrong name prints the list")
    tune.add_argument("--seconds", type=whole, default=300, help="for all of them (default: %(default)s)")
    for side in (cpu, gpu, curves, tune):
        side.add_argument("--out", default="runs", help="folder for the figures and the picture (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.what == "gpu":
        if args.all and args.jobs:
            gpu.error("--all and --jobs exclude each other")
        args.seconds = args.seconds or (470 if args.all else 300)
    return args


def write_json(path, report):
    """Write a file in one piece: whoever reads it, and whenever the run is killed, it is whole."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(report, indent=2), encoding="utf-8")
    part.replace(path)


def write_picture(path, draw, *args):
    """draw(*args) gives a figure; without matplotlib there is none. Returns the sentence that says what was written."""
    try:
        figure = draw(*args)
    except ImportError:
        return f'Written to {path.with_suffix(".json")} (a picture needs matplotlib: pip install matplotlib)'
    figure.savefig(path, dpi=110)
    return f"Written to {path.with_suffix('.json')} and {path}"


def file_in(folder, name):
    """The path of a file that is to be written; the folder is made now, not when all has been measured."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    return Path(folder) / name


def cpu(args):
    path = file_in(args.out, "benchmark_cpu.json")
    report = benchmark_cpu.run(args.jobs, args.threads, args.turns)
    write_json(path, report)
    print(write_picture(path.with_suffix(".png"), benchmark_cpu.picture, report["results"]))


def need_gpu(smoke, hint="; add --smoke to run all jobs at tiny sizes without one"):
    """Leave if there is none, unless tiny sizes in Triton's interpreter will do."""
    import torch
    if not torch.cuda.is_available():
        if not smoke:
            sys.exit(f"error: there is no NVIDIA GPU here{hint}")
        os.environ["TRITON_INTERPRET"] = "1"        # before anything imports triton, which decides once


def gpu(args):
    need_gpu(args.smoke)
    if args.all:
        return everything(args)
    import benchmark_gpu
    path = file_in(args.out, "benchmark_gpu.json")
    report = benchmark_gpu.Report(lambda report: write_json(path, report))
    try:
        return benchmark_gpu.run(args, report)
    finally:
        if report.results:
            print(write_picture(path.with_suffix(".png"), benchmark_report.picture, report.facts, report.results))


def everything(args):
    """The parts of benchmark_all.py; their figures together in one file."""
    path = file_in(args.out, "benchmark_gpu.json")
    report, code = benchmark_all.run(args, lambda report: write_json(path, report))
    if "curves" in report:
        write_json(file_in(args.out, "benchmark_curves.json"), report["curves"])
        picture_of_curves(file_in(args.out, "benchmark_curves.png"), report["curves"])
    if report["results"]:
        print(write_picture(path.with_suffix(".png"), benchmark_report.picture, report, report["results"]))
    return code


def curves(args):
    need_gpu(args.smoke)
    import benchmark_curves
    path = file_in(args.out, "benchmark_curves.json")
    report = benchmark_curves.run(args.steps or (2 if args.smoke else 500), args.smoke,
                                  lambda report: write_json(path, report))
    picture_of_curves(path.with_suffix(".png"), report)
    return 1 if report["reasons"] else 0


def tune(args):
    need_gpu(smoke=False, hint=", and what is fast on one card is not on another; run this on the card in question")
    import benchmark_tune
    if unknown := [name for name in args.kernels or () if name not in benchmark_tune.TRIALS]:
        raise ValueError(f"there is no kernel {', '.join(unknown)} to tune; choose from "
                         + ", ".join(benchmark_tune.TRIALS))
    report = benchmark_tune.run(args.kernels, args.seconds)
    path = file_in(args.out, "benchmark_tune.json")
    write_json(path, report)
    print(f"{len(report['changes'])} rows changed; written to {path}")


def picture_of_curves(path, report):
    import benchmark_curves
    if report["losses"]:
        print(write_picture(path, benchmark_curves.picture, report))


def main(argv=None):
    args = arguments(argv)
    try:
        return {"cpu": cpu, "gpu": gpu, "curves": curves, "tune": tune}[args.what](args)
    except ModuleNotFoundError as error:
        sys.exit(f'error: the comparison needs {error.name}, which this Python lacks: pip install "tinyllm[test]"')
    except (ImportError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130                                  # what a shell expects of a program that Ctrl-C has ended


if __name__ == "__main__":
    sys.exit(main())
