"""What the benchmark does on a GPU, told to a pretended one: events, graphs, nvidia-smi."""
import inspect
import subprocess
import types

import pytest

torch = pytest.importorskip("torch", reason="the benchmark compares with torch")
pytest.importorskip("triton", reason="the Triton path needs triton, which exists for Linux only")

import benchmark_gpu  # noqa: E402
import benchmark_rows  # noqa: E402


class PretendGpu:
    """torch.cuda's streams, events and graphs, which write down what they are told. A call takes 100 microseconds."""

    def __init__(self, patch, broken=False):
        self.told, self.now, self.broken, self.recording, gpu = [], 0.0, broken, False, self

        class Event:
            def __init__(self, enable_timing=False):
                assert enable_timing

            def record(self):
                self.time = gpu.now
                gpu.told.append("event")

            def synchronize(self):
                gpu.told.append("wait")

            def elapsed_time(self, end):
                return (end.time - self.time) / 1000            # milliseconds

        class CUDAGraph:
            def replay(self):
                gpu.now += 10 * len(self.calls)
                gpu.told.append("replay")

        class graph:
            def __init__(self, cuda_graph, stream=None):
                assert stream is gpu.stream, "another stream than the one on which autograd's graphs were made"
                self.graph = cuda_graph

            def __enter__(self):
                self.start, self.before, gpu.recording = len(gpu.told), gpu.now, True

            def __exit__(self, *exception):
                self.graph.calls, gpu.told[self.start:] = gpu.told[self.start:], []
                gpu.now, gpu.recording = self.before, False
                if gpu.broken:
                    raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

        self.stream = object()
        for name, value in {"Stream": lambda: self.stream, "set_stream": lambda stream: None, "Event": Event,
                            "CUDAGraph": CUDAGraph, "graph": graph, "synchronize": lambda: None}.items():
            patch.setattr(torch.cuda, name, value)

    def call(self, i):
        if self.broken and self.recording:
            raise NotImplementedError("operation not permitted when stream is capturing")
        self.now += 100
        self.told.append(i)


def test_the_pretended_gpu_is_told_what_a_real_one_understands():
    inspect.signature(torch.cuda.graph).bind(None, stream=None)
    inspect.signature(torch.cuda.Event.__new__).bind(torch.cuda.Event, enable_timing=True)
    inspect.signature(torch.cuda.get_device_properties).bind()
    for name in ("Stream", "set_stream", "CUDAGraph", "synchronize", "memory_allocated", "max_memory_allocated",
                 "reset_peak_memory_stats", "empty_cache"):
        assert callable(getattr(torch.cuda, name))


def test_a_recorded_call_is_timed_as_recorded_and_as_launched(monkeypatch):
    gpu = PretendGpu(monkeypatch)
    clock, row = benchmark_rows.GpuClock(), benchmark_rows.Row("row", None, {}, 1, 1, copies=3)
    contender = benchmark_rows.Contender(gpu.call, row, clock)
    assert contender.n == 21 and gpu.told[:3] == [0, 1, 2], "all sets of arrays, again and again"
    gpu.told.clear()
    contender.sample()
    launched, recorded = gpu.told[:gpu.told.index("replay")], gpu.told[gpu.told.index("replay"):]
    assert launched == [*[0, 1, 2] * 7, "event", *[0, 1, 2] * 7, "event", "wait"]
    assert recorded == ["replay", "event", *["replay"] * 10, "event", "wait"], "2 ms: ten times 21 x 10 us"
    assert contender.times == [pytest.approx(10)] and contender.runs["launched"][2] == [pytest.approx(100)]
    assert len(contender.hosts) == 1 and 0 < contender.hosts[0] < 100, "Python's own time, for one call of 21"
    assert contender.reason is None and contender.spread() == contender.times * 2


def test_a_call_that_cannot_be_recorded_is_timed_as_launched(monkeypatch):
    gpu = PretendGpu(monkeypatch, broken=True)
    row = benchmark_rows.Row("row", None, {}, 1, 1, copies=1)
    contender = benchmark_rows.Contender(gpu.call, row, benchmark_rows.GpuClock())
    contender.sample()
    assert contender.times == [pytest.approx(100)]
    assert contender.reason == "not recorded: NotImplementedError: operation not permitted when stream is capturing"


def test_a_lost_gpu_ends_the_run_with_one_sentence(monkeypatch):
    PretendGpu(monkeypatch)

    def lost():
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be ...")
    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    with pytest.raises(SystemExit, match="error: the GPU gave up during row: RuntimeError: .* illegal .*encountered$"):
        benchmark_rows.GpuClock().wait(benchmark_rows.Row("row", None, {}, 1, 1))


def test_the_clocks_are_those_of_the_card_that_is_measured(monkeypatch):
    card = types.SimpleNamespace(name="card", multi_processor_count=132, total_memory=1, L2_cache_size=2, uuid="b-2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: card)
    lines = "GPU-a-1, 570.1, 345 MHz, 1980 MHz, 2619 MHz, 70.00 W, 700.00 W, 30\n" \
            "GPU-b-2, 570.1, 1755 MHz, 1980 MHz, 2619 MHz, 650.00 W, 700.00 W, 60\n"
    monkeypatch.setattr(subprocess, "run", lambda *args, **how: types.SimpleNamespace(stdout=lines))
    facts = benchmark_gpu.machine()
    assert facts["clocks.sm"] == "1755 MHz" and facts["temperature.gpu"] == "60" and facts["driver_version"] == "570.1"

    def missing(*args, **how):
        raise FileNotFoundError("nvidia-smi")
    monkeypatch.setattr(subprocess, "run", missing)
    assert benchmark_gpu.machine()["card"] == "card"
