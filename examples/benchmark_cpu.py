"""The NumPy path against torch on a CPU: what `python examples/benchmark.py cpu` runs.

- Each side runs in a process of its own, and only one of them works at a time, taking turns A B A B ... In one process
  the thread pools of NumPy's BLAS and of torch would both wait in a busy loop and steal each other's cores;
- both get the same number of threads, the same weights, and the same batches, and must come to the same results;
- per turn the median step counts; per pair of turns their ratio; the table gives the median of the ratios and their
  spread.

Weights in int8 are a quarter of the bytes, but nothing in NumPy multiplies bytes: to widen a weight (0.10 ns on an AMD
EPYC) and multiply it in the cache (0.05) takes a core as long as to read it as a float (0.16). One core needs 1.16
times as long as with float32. Two cores share the memory, but not the work on it: 0.8 times as long. Slower, as a whole
token: np.vecdot on bytes (1.05 to 1.13; it widens by itself, but keeps Python's lock where the weights have 500 rows or
fewer, so of one matrix in four the second core waited for the first), pieces of 262,144 or 131,072 weights (1.1 and
1.4) instead of 524,288. Slower, in times per weight: np.einsum on bytes (2.4), all of GPT-2's head in one piece (3.4).
No faster: pieces of 700,000, other sizes of the two cores' parts.
"""
import contextlib
import ctypes
import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

JOBS = {    # name: what it measures, model settings, batch, seconds per turn; perhaps its two sides
    "C1": ("training step, 4 layers, width 128, 12 x 64 tokens",
           dict(preset="tiny", vocab_size=65, bias=False), 12, 2.0),
    "C2": ("training step, 6 layers, width 384, 16 x 256 tokens",
           dict(preset="small", vocab_size=65, bias=False), 16, 6.0),
    "LSTM": ("training step of an LSTM, 2 layers, width 256, 32 x 128 tokens",
             dict(preset="tiny", vocab_size=65, n_positions=128, n_embd=256, n_hidden=256, n_layer=2), 32, 4.0),
    "decode": ("one token, GPT-2 124M, positions 128 to 192", dict(preset="gpt2"), 1, 3.0),
    "decode_transformers": ("the same, against Hugging Face's GPT2LMHeadModel with its cache",
                            dict(preset="gpt2"), 1, 3.0, "tinyllm", "transformers"),
    "decode_floor": ("the same, against reading as many bytes as it has weights",
                     dict(preset="gpt2"), 1, 2.0, "tinyllm", "reading"),
    "decode_int8": ("the same with weights in int8, against float32",
                    dict(preset="gpt2"), 1, 3.0, "int8", "tinyllm"),
}


# ------------------------------------------------------------------ the workers: one process per side

def model_of(job):
    import tinyllm
    name, changes = JOBS[job][1]["preset"], {k: v for k, v in JOBS[job][1].items() if k != "preset"}
    tinyllm.manual_seed(1)
    if job == "LSTM":
        return tinyllm.LSTMLM(tinyllm.RNNConfig.preset(name, **changes))
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
    from torch_twin import TorchGPT, TorchLSTM, adamw, train_step
    model, data = (m := model_of(job)), batches(m, JOBS[job][2])
    twin = (TorchLSTM if job == "LSTM" else TorchGPT)(model.config)
    twin.load_state_dict({k: torch.from_numpy(v) for k, v in model.state_dict().items()})
    optimizer = adamw(twin, 1e-3, (0.9, 0.99), 0.1)
    return lambda: train_step(twin, optimizer, *map(torch.from_numpy, next(data)), 1e-3, 1.0)


def writing(new_cache, likeliest, prompt):
    """A step is the next token after the prompt (1, 128); the 64th is followed by the prompt again.

    likeliest: a function of tokens (1, T) and the cache of those before them, which gives the next token (1, 1).
    """
    state = {"length": 192}

    def step():
        begin = state["length"] == 192
        if begin:
            state.update(cache=new_cache(), token=prompt, length=127)
        token = state["token"]
        state.update(token=likeliest(token, state["cache"]), length=state["length"] + 1)
        return None if begin else int(token[0, 0])              # the prompt is not counted
    return step


def decoding_tinyllm(job, prepare=lambda model: model.eval()):
    import numpy as np
    from tinyllm import no_grad
    model = prepare(model_of(job))

    @no_grad()
    def likeliest(ids, cache):
        return model.next_logits(ids, cache).numpy().argmax(-1)[:, None]
    return writing(lambda: model.new_cache(1, 192), likeliest, np.arange(128)[None])


def decoding_int8(job):
    from tinyllm import quantized
    return decoding_tinyllm(job, quantized)


def decoding_torch(job):
    import torch
    from torch_twin import TorchGPT
    model = model_of(job)
    twin = TorchGPT(model.config).eval()
    twin.load_state_dict({k: torch.from_numpy(v) for k, v in model.state_dict().items()})

    @torch.inference_mode()
    def likeliest(ids, cache):
        return twin.last_logits(ids, cache).argmax(-1)[:, None]
    return writing(lambda: twin.new_cache(1, 192), likeliest, torch.arange(128)[None])


def decoding_transformers(job):
    import torch
    from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel
    twin = GPT2LMHeadModel(GPT2Config()).eval()
    turned = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # the library stores them as (in, out)
    twin.transformer.load_state_dict({k: torch.tensor(v.T if k.endswith(turned) else v)
                                      for k, v in model_of(job).state_dict().items()})

    @torch.inference_mode()
    def likeliest(ids, cache):
        return twin(ids, cache, use_cache=True, logits_to_keep=1).logits[:, -1].argmax(-1)[:, None]
    return writing(DynamicCache, likeliest, torch.arange(128)[None])


def decoding_reading(job):
    """What nobody can beat who computes in float32: every weight comes once from memory to the processor."""
    import numpy as np
    from tinyllm.ops.threads import in_parallel
    weights = np.ones(model_of(job).num_parameters(), np.float32)

    def step():
        in_parallel(lambda part: np.vecdot(weights[part], weights[part]), len(weights), len(weights))
        return 0
    return step


def worker(side, job):
    """Answer each line of input with the median time of one step, measured for the job's seconds."""
    step = globals()[("decoding_" if job.startswith("decode") else "training_") + side](job)
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
    return subprocess.Popen([sys.executable, __file__, side, job], env=environment, text=True, stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE)


@contextlib.contextmanager
def ctrl_c_waits():
    """Inside, workers are started and noted down, or ended: in between, Ctrl-C would leave one that nobody ends.

    They inherit the deafness, so that Ctrl-C reaches the referee alone, which ends them.
    """
    if not hasattr(signal, "pthread_sigmask"):      # Windows
        yield
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def answer(side, process):
    """The next line that a worker writes."""
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"error: the {side} side ended before its time; what it said stands above")
    return json.loads(line)


def turn(side, process):
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write("go\n")
        process.stdin.flush()
    return answer(side, process)


def sides_of(job):
    """Whose times are compared: the ratio is that of the first to the second."""
    return JOBS[job][4:] or ("tinyllm", "torch")


def measure(job, threads, turns):
    """Alternate turns of both sides; a dictionary with the medians and the ratios, first side / second side."""
    workers = {}
    try:
        with ctrl_c_waits():
            for side in sides_of(job):
                workers[side] = start_worker(side, job, threads)
        first = {side: answer(side, process) for side, process in workers.items()}
        if not {"reading", "int8"} & set(workers):              # what one does not write, and the other writes roughly
            check_equal(job, first)
        times = {side: [] for side in workers}
        for i in range(turns):
            for side, process in workers.items():
                time.sleep(0.25)                                # let the other side's threads go to sleep
                times[side].append(turn(side, process))
                print(f"\r  {job}: turn {i + 1} of {turns}, {side} {times[side][-1] * 1e3:.1f} ms   ",
                      end="", flush=True)
    finally:
        with ctrl_c_waits():                                    # for somebody who presses it twice
            for process in workers.values():
                process.kill()
                process.wait()
    ratios = [a / b for a, b in zip(*times.values())]
    middle = lambda values: sorted(values)[len(values) // 2]
    return {"job": job, "what": JOBS[job][0], "threads": threads, "turns": turns,
            **{f"{side}_ms": middle(values) * 1e3 for side, values in times.items()},
            "ratio": middle(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios)}


def check_equal(job, first):
    """Both sides must compute the same thing: the first losses, or the first tokens."""
    pairs = [(a, b) for a, b in zip(*first.values()) if a is not None]
    worst = max(abs(a - b) for a, b in pairs)
    if worst > 1e-5:
        raise SystemExit(f"error: {job}: both sides do not compute the same: {first}")
    print(f"  {job}: the first {len(pairs)} results agree to {worst:.1e}")


def machine():
    """What the figures belong to."""
    import numpy
    import torch
    cpuinfo, facts = Path("/proc/cpuinfo"), {}
    if cpuinfo.exists():
        facts = dict(map(str.strip, line.split(":", 1)) for line in cpuinfo.read_text().splitlines() if ":" in line)
    name = facts.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in facts:           # a rented machine says "AMD EPYC", whichever it is
        name += f", family {facts['cpu family']}, model {facts['model']}"
    return {"processor": name, "blas": blas_kernels(), "cores": os.cpu_count(), "python": platform.python_version(),
            "numpy": numpy.__version__, "torch": torch.__version__}


def blas_kernels():
    """The processor for which NumPy's OpenBLAS multiplies: by its own choice, or by OPENBLAS_CORETYPE."""
    from numpy._core import _multiarray_umath
    try:
        name = ctypes.CDLL(_multiarray_umath.__file__).scipy_openblas_get_corename64_
    except (AttributeError, OSError):
        return "unknown"
    name.restype = ctypes.c_char_p
    return f"OpenBLAS for {name().decode()}"


def run(jobs, threads, turns):
    """Measure the jobs and print the table; the report: {"machine": ..., "results": [...]}"""
    if importlib.util.find_spec("torch") is None:
        raise ModuleNotFoundError(name="torch")
    print(f"Comparing with torch eager, {threads} threads each; the machine should do nothing else meanwhile.",
          flush=True)
    results = []
    for job in jobs:
        if "transformers" in sides_of(job) and importlib.util.find_spec("transformers") is None:
            print(f"  {job}: left out, as it needs transformers: pip install transformers")
            continue
        results.append(measure(job, threads, max(1, turns * 2 // 3) if job in ("C2", "LSTM") else turns))
        print("\r" + " " * 60, end="\r")
    print(f"{'':20}{'ours':>12}{'theirs':>12}{'ratio':>9}   smallest to largest")
    for r in results:
        ours, theirs = (r[f"{side}_ms"] for side in sides_of(r["job"]))
        print(f"{r['job']:20}{ours:9.1f} ms{theirs:9.1f} ms{r['ratio']:9.2f}   "
              f"{r['ratio_min']:.2f} to {r['ratio_max']:.2f}    {r['what']}")
    return {"machine": machine(), "results": results}


def picture(results):
    """A bar for each job's ratio."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(11, 1.4 + 0.7 * len(results)), layout="constrained")
    axes = figure.subplots()
    for i, r in enumerate(results):
        axes.barh(i, r["ratio"], color="#4c72b0", height=0.5)
        axes.plot([r["ratio_min"], r["ratio_max"]], [i, i], color="black", linewidth=2)
        axes.text(r["ratio_max"], i, f"  {r['ratio']:.2f}", va="center")
    axes.axvline(1, color="gray", linestyle="--")
    axes.set(yticks=range(len(results)), yticklabels=[f"{r['job']}:\n{r['what']}" for r in results],
             xlabel="time, ours / torch's, or what the label says\nblack: smallest to largest ratio")
    axes.set_xlim(0, max(r["ratio_max"] for r in results) * 1.15)
    axes.invert_yaxis()
    return figure


if __name__ == "__main__":
    worker(*sys.argv[1:])
