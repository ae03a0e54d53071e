"""How fast is it? The engine against the same model in torch, in one run on one machine.

    python examples/benchmark.py cpu                    both training sizes and decoding, about five minutes
    python examples/benchmark.py cpu --jobs C1 --threads 1

A time says little: it belongs to one machine and one moment. What travels is the ratio, taken fairly:
- each side runs in a process of its own, and only one of them works at a time, taking turns A B A B ... In one process
  the thread pools of NumPy's BLAS and of torch would both wait in a busy loop and steal each other's cores;
- both get the same number of threads, the same weights, and the same batches;
- per turn the median step counts; per pair of turns their ratio; the table gives the median of
  the ratios and their spread.

Writes runs/benchmark_cpu.json and runs/benchmark_cpu.png.
"""
import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

JOBS = {    # name: what it measures, model settings, batch, seconds per turn
    "C1": ("training step, 4 layers, width 128, 12 x 64 tokens",
           dict(preset="tiny", vocab_size=65, bias=False), 12, 2.0),
    "C2": ("training step, 6 layers, width 384, 16 x 256 tokens",
           dict(preset="small", vocab_size=65, bias=False), 16, 6.0),
    "decode": ("one token, GPT-2 124M, positions 128 to 192", dict(preset="gpt2"), 1, 3.0),
}


# ------------------------------------------------------------------ the workers: one process per side

def model_of(job):
    import tinyllm
    name, changes = JOBS[job][1]["preset"], {k: v for k, v in JOBS[job][1].items() if k != "preset"}
    tinyllm.manual_seed(1)
    return tinyllm.GPT(tinyllm.GPTConfig.preset(name, **changes, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0))


def batches(model, size):
    """The same endless row of random batches for both sides."""
    import numpy as np
    rng = np.random.default_rng(0)
    while True:
        text = rng.integers(0, model.config.vocab_size, (size, model.config.n_positions + 1))
        yield text[:, :-1], text[:, 1:]


def training_tinyllm(job):
    from tinyllm import optim
    model, data = (m := model_of(job)), batches(m, JOBS[job][2])
    optimizer = optim.AdamW(model.parameters(), 1e-3, (0.9, 0.99), weight_decay=0.1)

    def step():
        loss = model.loss(*next(data))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(max_norm=1.0)
        return loss.item()
    return step


def training_torch(job):
    import torch
    from torch_twin import TorchGPT, adamw, train_step
    model, data = (m := model_of(job)), batches(m, JOBS[job][2])
    twin = TorchGPT(model.config)
    twin.load_state_dict({k: torch.from_numpy(v) for k, v in model.state_dict().items()})
    optimizer = adamw(twin, 1e-3, (0.9, 0.99), 0.1)
    return lambda: train_step(twin, optimizer, *map(torch.from_numpy, next(data)), 1e-3, 1.0)


def decoding_tinyllm(job):
    import numpy as np
    from tinyllm import no_grad
    model = model_of(job).eval()
    prompt, state = np.arange(128)[None], {}

    def step():
        with no_grad():
            if state.get("used", 192) >= 192:
                state.update(cache=model.new_cache(1, 192), used=128)
                state["logits"] = model.next_logits(prompt, state["cache"]).numpy()
                return None                                     # the prompt: not counted
            ids = state["logits"].argmax(-1)[:, None]
            state["logits"] = model.next_logits(ids, state["cache"]).numpy()
            state["used"] += 1
            return int(ids[0, 0])
    return step


def decoding_torch(job):
    import torch
    from torch_twin import TorchGPT
    model = model_of(job)
    twin, state = TorchGPT(model.config).eval(), {}
    twin.load_state_dict({k: torch.from_numpy(v) for k, v in model.state_dict().items()})

    @torch.inference_mode()
    def step():
        if state.get("used", 192) >= 192:
            state.update(cache=twin.new_cache(1, 192), used=128)
            state["logits"] = twin.last_logits(torch.arange(128)[None], state["cache"])
            return None
        ids = state["logits"].argmax(-1)[:, None]
        state["logits"] = twin.last_logits(ids, state["cache"])
        state["used"] += 1
        return int(ids[0, 0])
    return step


def worker(side, job):
    """Answer each line of input with the median time of one step, measured for the job's seconds."""
    step = globals()[("decoding_" if job == "decode" else "training_") + side](job)
    results = [step() for _ in range(20 if job == "C1" else 4)]     # warm up; the referee compares them
    print(json.dumps(results), flush=True)
    for _ in sys.stdin:
        times, end = [], time.perf_counter() + JOBS[job][3]
        while time.perf_counter() < end or len(times) < 3:
            start = time.perf_counter()
            if step() is not None:
                times.append(time.perf_counter() - start)
        times.sort()
        print(times[len(times) // 2], flush=True)


# ------------------------------------------------------------------ the referee

def start_worker(side, job, threads):
    environment = os.environ | {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "MKL", "OPENBLAS")}
    return subprocess.Popen([sys.executable, __file__, "worker", side, job], env=environment, text=True,
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def turn(process):
    process.stdin.write("go\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def measure(job, threads, turns):
    """Alternate turns of both sides; a dictionary with the medians and the ratios tinyllm / torch."""
    sides = {side: start_worker(side, job, threads) for side in ("tinyllm", "torch")}
    try:
        first = {side: json.loads(process.stdout.readline()) for side, process in sides.items()}
        check_equal(job, first)
        times = {"tinyllm": [], "torch": []}
        for i in range(turns):
            for side, process in sides.items():
                time.sleep(0.25)                                # let the other side's threads go to sleep
                times[side].append(turn(process))
                print(f"\r  {job}: turn {i + 1} of {turns}, {side} {times[side][-1] * 1e3:.1f} ms   ",
                      end="", flush=True)
    finally:
        for process in sides.values():
            process.kill()
    ratios = [a / b for a, b in zip(times["tinyllm"], times["torch"])]
    middle = lambda values: sorted(values)[len(values) // 2]
    return {"job": job, "what": JOBS[job][0], "threads": threads, "turns": turns,
            "tinyllm_ms": middle(times["tinyllm"]) * 1e3, "torch_ms": middle(times["torch"]) * 1e3,
            "ratio": middle(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios)}


def check_equal(job, first):
    """Both sides must compute the same thing: the first losses, or the first tokens."""
    pairs = [(a, b) for a, b in zip(first["tinyllm"], first["torch"]) if a is not None]
    worst = max(abs(a - b) for a, b in pairs)
    if worst > 1e-5:
        raise SystemExit(f"{job}: both sides do not compute the same: {first}")
    print(f"  {job}: the first {len(pairs)} results agree to {worst:.1e}")


def machine():
    """What the figures belong to."""
    import numpy, torch
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        name = next((line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines()
                     if "model name" in line), name)
    return {"processor": name, "cores": os.cpu_count(), "python": platform.python_version(), "numpy": numpy.__version__,
            "torch": torch.__version__}


def picture(results, path):
    from matplotlib.figure import Figure
    figure = Figure(figsize=(8, 1.2 + 0.7 * len(results)), layout="constrained")
    axes = figure.subplots()
    for i, r in enumerate(results):
        axes.barh(i, r["ratio"], color="#4c72b0", height=0.5)
        axes.plot([r["ratio_min"], r["ratio_max"]], [i, i], color="black", linewidth=2)
        axes.text(r["ratio_max"], i, f"  {r['ratio']:.2f}", va="center")
    axes.axvline(1, color="gray", linestyle="--")
    axes.set(yticks=range(len(results)), yticklabels=[f"{r['job']}: {r['what']}" for r in results],
             xlabel="time, tinyllm / torch eager (below 1: faster); black: smallest to largest ratio")
    axes.set_xlim(0, max(r["ratio_max"] for r in results) * 1.15)
    axes.invert_yaxis()
    figure.savefig(path, dpi=110)


def cpu(args):
    turns = {"C1": args.turns, "C2": max(3, args.turns * 2 // 3), "decode": args.turns}
    print(f"Comparing with torch eager, {args.threads} threads each; the machine should do nothing else meanwhile.")
    results = []
    for job in args.jobs:
        results.append(measure(job, args.threads, turns[job]))
        print("\r" + " " * 60, end="\r")
    print(f"{'':8}{'tinyllm':>12}{'torch':>12}{'ratio':>9}   smallest to largest")
    for r in results:
        print(f"{r['job']:8}{r['tinyllm_ms']:9.1f} ms{r['torch_ms']:9.1f} ms{r['ratio']:9.2f}   "
              f"{r['ratio_min']:.2f} to {r['ratio_max']:.2f}    {r['what']}")
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "benchmark_cpu.json").write_text(json.dumps({"machine": machine(), "results": results}, indent=2),
                                           encoding="utf-8")
    picture(results, out / "benchmark_cpu.png")
    print(f"Written to {out}/benchmark_cpu.json and {out}/benchmark_cpu.png")


def main():
    if sys.argv[1:2] == ["worker"]:
        worker(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description="Compare the engine's speed with torch's.")
    parser.add_argument("what", choices=["cpu"])
    parser.add_argument("--jobs", nargs="+", choices=list(JOBS), default=list(JOBS))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--turns", type=int, default=15, help="of each side (default: %(default)s)")
    parser.add_argument("--out", default="runs")
    cpu(parser.parse_args())


if __name__ == "__main__":
    main()
