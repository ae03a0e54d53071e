"""A row of the GPU benchmark: a call of ours, the calls that would replace it in torch, and what it costs at the least.

Below the row: how its calls are timed, and how their results are compared.
"""
import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from tinyllm import backend

kernels = backend.get("triton")
JOBS = {}                               # name: the function that yields its rows
SAMPLE, ROUNDS, FEWEST = 2000, 40, 5    # microseconds that a sample should take; at most and at least so many samples


@dataclass
class Sizes:
    """The shapes, and how arrays of them are made. B texts of T tokens, C channels in H heads, V tokens known."""

    dtype: torch.dtype
    device: torch.device
    compiler: str = ""      # backend of torch.compile; "": leave it out
    cache: int = 0          # bytes of the GPU's L2 cache
    B: int = 32
    T: int = 1024
    C: int = 768
    H: int = 12
    V: int = 50257
    long: int = 4096        # a longer text, for attention
    keys: int = 1024        # that a new token finds in the key/value cache
    rows: int = 8192        # of logits at a time: of all 32,768, each of torch's float32 copies would take 6.6 GB
    parameters: int = 124_439_808
    models: tuple = (("gpt2", {}, 32), ("small", {"vocab_size": 65}, 64))       # preset, changes, texts a step
    warm: int = 3           # steps of each before the clock starts: their losses are compared, their peak memory counts
    bert: tuple = ("base", {}, 128, 512)                                        # and tokens a text
    lstm: tuple = ("tiny", {"vocab_size": 10000, "n_positions": 256, "n_embd": 512, "n_hidden": 512, "n_layer": 2}, 64,
                   256)
    seq2seq: tuple = ("base", {}, 64, 128)
    writing: tuple = ("gpt2", {}, (1, 64), 512)                                 # texts at a time; tokens they have

    def __post_init__(self):
        self.n, self.e = self.B * self.T, self.dtype.itemsize

    def new(self, *shape, scale=1.0, dtype=None):
        """Normally distributed random numbers."""
        return (torch.randn(shape, device=self.device) * scale).to(dtype or self.dtype)

    def ids(self, *shape):
        """Random tokens."""
        return torch.randint(self.V, shape, device=self.device)

    def copies(self, n_bytes):
        """How many sets of arrays a row needs, so that a set has left the cache when its turn comes again."""
        return max(1, min(64, math.ceil(3 * self.cache / n_bytes))) if self.cache else 2


@dataclass
class Row:
    """One line of the table. A call takes the number of the set of arrays that it shall work on."""

    name: str
    ours: Callable
    torch: dict                         # name: call
    bytes: int
    operations: int
    copies: int = 1                     # sets of arrays
    terms: int = 1                      # of its longest sum, or steps of its formula: rounding errors grow with them
    pairs: Callable | None = None       # () -> [(ours, torch's, allowed or None)]; None: compare results, see below
    capture: bool = True                # as a CUDA graph
    extra: Callable = lambda times: {}  # {name: microseconds} -> more figures
    also: dict = field(default_factory=dict)                    # name: call, other ways of ours; they win no ratio

    def compared(self):
        """[(ours, torch's, how far they may be apart or None for the rule)]"""
        if self.pairs is not None:
            return self.pairs()
        ours, theirs = ([x for x in as_tuple(call(0)) if x is not None] for call in (self.ours, self.torch["eager"]))
        return [(a, b, None) for a, b in zip(ours, theirs, strict=True)]


def job(function):
    """Decorator: `--jobs NAME` runs this function."""
    JOBS[function.__name__] = function
    return function


def as_tuple(x):
    return tuple(x) if isinstance(x, (tuple, list)) else (x,)


def alternatives(s, function, others):
    """{name: function} of all that torch offers."""
    @functools.cache
    def compiler():                                         # not before it is called: a failure is then its own alone
        import torch._functorch.config
        torch._functorch.config.donated_buffer = False      # a backward pass is to run more than once
        return torch.compile(function, backend=s.compiler, dynamic=False)
    compiled = {"compiled": lambda *arrays: compiler()(*arrays)} if s.compiler else {}
    return {"eager": function, **compiled, **dict(others)}


def plain(s, name, new, ours, function, n_bytes, operations, others=(), **how):
    """A row without gradients. new() makes a set of arrays, on which ours and function are called."""
    sets = [new() for _ in range(s.copies(n_bytes))]
    torches = alternatives(s, function, others)
    return Row(name, lambda i: ours(*sets[i]), {key: lambda i, f=f: f(*sets[i]) for key, f in torches.items()},
               n_bytes, operations, len(sets), **how)


def both_ways(s, name, new, function, forward, backward, op=None, learned=math.inf, terms=(1, 1), others=(), pairs=None,
              **options):
    """The rows "NAME forward" and "NAME backward"; forward, backward: their (bytes, operations); terms: of each.

    new() makes a set of arrays, on which kernels.OP_forward and function, torch's, are called; floats among the first
    `learned` arrays get gradients. pairs(way, arrays, (out, saved), douts): as in Row, for what draws at random.
    """
    kernel_forward, kernel_backward = (getattr(kernels, f"{op or name}_{way}") for way in ("forward", "backward"))
    sets = [new() for _ in range(s.copies(forward[0]))]
    leaves = [[x.detach().requires_grad_(k < learned and x.is_floating_point()) for k, x in enumerate(arrays)]
              for arrays in sets]
    torches = alternatives(s, function, others)
    saved = functools.cache(lambda i: kernel_forward(*sets[i], **options))
    douts = functools.cache(lambda i: [s.new(*out.shape, dtype=out.dtype) for out in as_tuple(saved(i)[0])])

    def gradients_by(f):
        outs = functools.cache(lambda i: as_tuple(f(*leaves[i])))
        wanted = lambda i: [x for x in leaves[i] if x.requires_grad]
        return lambda i: torch.autograd.grad(outs(i), wanted(i), douts(i), retain_graph=True)

    rows = {"forward": (lambda i: kernel_forward(*sets[i], **options)[0], forward,
                        {key: lambda i, f=f: f(*leaves[i]) for key, f in torches.items()}),
            "backward": (lambda i: kernel_backward(*douts(i), saved=saved(i)[1]), backward,
                         {key: gradients_by(f) for key, f in torches.items()})}
    for (way, (ours, cost, calls)), n in zip(rows.items(), terms):
        check = None if pairs is None else lambda way=way: pairs(way, sets[0], saved(0), douts(0))
        yield Row(f"{name} {way}", ours, calls, *cost, len(sets), n, check)


# ------------------------------------------------------------------ what its calls take, and whether they agree

class GpuClock:
    """Times with CUDA events. Everything runs on one stream of its own, since the default one cannot be recorded.

    host: microseconds that Python was busy with a run of the last sample; it waits where the GPU's queue is full.
    """

    host = 0.0

    def __init__(self):
        self.stream, self.rounds, self.records = torch.cuda.Stream(), ROUNDS, True
        torch.cuda.set_stream(self.stream)

    def wait(self, row):
        """Until the GPU has done all it was told. A kernel that touched foreign memory ends the run here."""
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            raise SystemExit(f"error: the GPU gave up during {row.name}: {one_line(error)}") from error

    def sample(self, run, loops=1):
        """Microseconds of one run. A run before the first event fills the queue, so that no gap is measured."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        run()
        start.record()
        self.host = seconds_of(run, loops) * 1e6 / loops
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1000 / loops

    def repeats(self, run):
        """How often a run must be repeated to fill a sample."""
        return max(1, round(SAMPLE / max(1, self.sample(run))))

    def record(self, run):
        """The run as a CUDA graph: the function that replays it."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            run()
        return graph.replay


def seconds_of(run, loops):
    """How long Python takes for so many runs."""
    start = time.perf_counter()
    for _ in range(loops):
        run()
    return time.perf_counter() - start


class WallClock:
    """Without a GPU: one sample of each, for the sake of running everything once."""

    rounds, records, host = 1, False, 0.0

    def wait(self, row):
        pass

    def sample(self, run, loops=1):
        self.host = seconds_of(run, loops) * 1e6 / loops
        return self.host

    def repeats(self, run):
        return 1


class Contender:
    """A call, warmed up on every set of arrays: `n` calls in a row, launched from Python and recorded."""

    def __init__(self, call, row, clock):
        self.call, self.copies, self.clock, self.n, self.reason = call, row.copies, clock, row.copies, None
        self.all()                                              # compiles
        clock.wait(row)
        self.n *= min(clock.repeats(self.all), math.ceil(20 / row.copies))
        runs = {"launched": self.all}
        if row.capture and clock.records:
            try:
                runs["recorded"] = clock.record(self.all)
            except Exception as error:
                self.reason = "not recorded: " + one_line(error)
                clock.wait(row)
        self.runs = {how: (run, clock.repeats(run), []) for how, run in runs.items()}
        self.times, self.hosts = self.runs.get("recorded", self.runs["launched"])[2], []

    def all(self):
        """Results are kept for a round, so that neighbouring calls write to different places in memory."""
        kept = [None] * self.copies
        for i in range(self.n):
            kept[i % self.copies] = self.call(i % self.copies)

    def sample(self):
        for how, (run, loops, times) in self.runs.items():
            times.append(self.clock.sample(run, loops) / self.n)
            if how == "launched":
                self.hosts.append(self.clock.host / self.n)

    def spread(self):
        times = sorted(self.times)
        return [times[round(share * (len(times) - 1))] for share in (0.1, 0.9)]


def one_line(error):
    """What went wrong. A recording that fails ends in a second error, which hides the first."""
    while isinstance(error.__context__, Exception):
        error = error.__context__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:120] if lines else ''}"


def agreement(row):
    """(largest error, largest allowed one) of the worst of the results, relative to its largest entry in torch.

    The rule stands at the top of benchmark_gpu.py.
    """
    found, rounding = [], torch.finfo(torch.float32).eps * math.sqrt(row.terms)
    for ours, theirs, allowed in row.compared():
        if ours.shape != theirs.shape:
            raise ValueError(f"ours has the shape {tuple(ours.shape)}, torch's {tuple(theirs.shape)}")
        largest = theirs.abs().max().item() or 1.0
        error = (ours.float() - theirs.float()).abs().max().item() / largest
        rule = 4 * (torch.finfo(theirs.dtype).eps + rounding)
        found.append((error, rule if allowed is None else allowed / largest))
    return max(found, key=lambda pair: pair[0] / max(pair[1], 1e-30) if pair[0] == pair[0] else math.inf)   # NaN: worst
