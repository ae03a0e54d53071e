"""The benchmark runs every job, refuses what does not agree, and claims nothing without a GPU. No time is asserted."""
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the benchmark compares with torch")
pytest.importorskip("triton", reason="the Triton path needs triton, which exists for Linux only")

import benchmark  # noqa: E402
import benchmark_all  # noqa: E402
import benchmark_cpu  # noqa: E402
import benchmark_gpu  # noqa: E402
import benchmark_report  # noqa: E402
import benchmark_rows  # noqa: E402

EXAMPLES = Path(__file__).parents[1] / "examples"
CPU_RESULTS = json.loads((EXAMPLES / "benchmark_cpu.json").read_text(encoding="utf-8"))["results"]
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")


def start(*args, **how):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.Popen([sys.executable, EXAMPLES / "benchmark.py", *args], env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **how)


def smoke(tmp_path, *args):
    """(exit code, report) of a run in this process."""
    code = benchmark.main(["gpu", "--smoke", "--no-compile", "--out", str(tmp_path), *args])
    return code, json.loads((tmp_path / "benchmark_gpu.json").read_text(encoding="utf-8"))


def sizes(dtype=torch.float32, **changes):
    return benchmark_rows.Sizes(dtype, benchmark_gpu.runtime.device(), **{**benchmark_gpu.TINY, **changes})


# The whole run

@NO_GPU
def test_smoke_runs_every_job_and_claims_nothing(tmp_path):
    process = start("gpu", "--smoke", "--all", "--out", str(tmp_path))
    out, err = process.communicate()
    assert process.returncode == 0 and not err, out + err
    report = json.loads((tmp_path / "benchmark_gpu.json").read_text(encoding="utf-8"))
    rows = {row["name"]: row for row in report["results"]}
    note = "interpreter: no GPU, times mean nothing"
    assert report["note"] == note and note in out and "All 55 agree" in out and "All parts ran" in out
    assert len(rows) == len(report["results"]) == 63
    assert {row["job"] for row in rows.values()} == set(benchmark_rows.JOBS)
    assert list(report["parts"]) == [name for name in benchmark_all.PARTS if name != "tests"]
    assert all(part["exit_code"] == 0 and part["reason"] is None for part in report["parts"].values())
    for name, row in rows.items():
        assert row["agrees"] is True and row["error"] <= row["allowed_error"], row
        assert row["microseconds"] > 0 and row["bytes"] > 0 and row["operations"] >= 0, row
        assert row["ratio"] is None and row["percent_of_floor"] is None, f"{name} claims something without a GPU"
        assert row["torch"]["eager"] > 0 and name in out
    assert rows["attention T=16 backward"]["torch"]["cudnn"] is None, "this needs a GPU"
    assert "RuntimeError" in rows["attention T=16 backward"]["reasons"]["cudnn"]
    assert rows["adamw"]["torch"]["fused"] > 0
    head = report["headline"]
    assert head["step"] == "training step, tiny, 2 x 8" and len(head["other_steps"]) == 3 and len(head["kernels"]) == 55
    assert head["step_ratio_vs_torch_compile"] is head["decode_ratio_vs_compiled"] is None
    for losses in report["curves"]["losses"].values():
        assert len(losses) == 2
    assert 0 < head["loss_curves_largest_distance"]["Triton bfloat16"] < 0.01
    for name in ("benchmark_gpu.png", "benchmark_curves.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "benchmark_curves.json").read_text(encoding="utf-8")) == report["curves"]
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names a kind of x86 processor")
def test_figures_name_the_kernels_of_blas():
    code = "import benchmark_cpu; print(benchmark_cpu.machine()['blas'])"
    out = subprocess.run([sys.executable, "-c", code], cwd=EXAMPLES, env={**os.environ, "OPENBLAS_CORETYPE": "Haswell"},
                         capture_output=True, text=True).stdout
    assert out in ("OpenBLAS for Haswell\n", "unknown\n")       # NumPy may come with another BLAS


def test_a_wrong_gradient_is_printed_recorded_and_ends_in_exit_code_1(tmp_path, monkeypatch, capsys):
    """Wrong by a tenth, where bfloat16 may be off by a thirtieth of the largest entry."""
    right = benchmark_rows.kernels.gelu_backward
    monkeypatch.setattr(benchmark_rows.kernels, "gelu_backward", lambda dout, saved: (right(dout, saved)[0] * 1.1,))
    code, report = smoke(tmp_path, "--jobs", "gelu")
    assert code == 1 and [row["agrees"] for row in report["results"]] == [True, False]
    out = capsys.readouterr().out
    assert re.search(r"DISAGREES with torch eager: off by (9\..e-02|1\..e-01) of the largest entry, allowed is 3", out)
    assert "does not agree with torch: gelu backward." in out


def test_a_kernel_that_raises_does_not_stop_the_run(tmp_path, monkeypatch, capsys):
    def broken(*args, **options):
        raise ValueError("no such tile\nand much more")
    monkeypatch.setattr(benchmark_rows.kernels, "softmax_forward", broken)
    code, report = smoke(tmp_path, "--jobs", "softmax", "add")
    forward, backward, add = report["results"]
    assert code == 1 and add["agrees"] and add["microseconds"]
    for row in (forward, backward):
        assert row["microseconds"] is None and row["agrees"] is None
        assert row["reasons"]["ours"] == "ValueError: no such tile"
    assert forward["torch"]["eager"] > 0, "torch can do it"
    assert "    ours: ValueError: no such tile\n" in capsys.readouterr().out


def test_the_time_ends_the_run(tmp_path):
    report = benchmark_gpu.Report(lambda report: None)
    assert not benchmark_gpu.measure_job("add", sizes(), benchmark_gpu.WallClock(), 1, report, lambda: True)
    assert report.results == []


# What stands in a row

def weight(x, seen):
    """Bytes of all tensors in nested tuples, each memory once."""
    if torch.is_tensor(x) and x.data_ptr() not in seen:
        seen.add(x.data_ptr())
        return x.numel() * x.element_size()
    return sum(weight(item, seen) for item in x) if isinstance(x, (tuple, list)) else 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("job, rows", [
    ("linear", "forward"), ("softmax", ""), ("gelu", ""), ("layer_norm", ""), ("add_layer_norm", ""), ("rms_norm", ""),
    ("rope", ""), ("embedding", "backward"), ("add", ""), ("column_sum", "")])
def test_bytes_are_those_of_the_arrays_in_and_out(job, rows, dtype, monkeypatch):
    """Weigh what goes into the kernel's function and what comes out; not for rows that need less than they get."""
    kernels, weighed = benchmark_rows.kernels, []

    def scales(function):
        def call(*args, **options):
            results, seen = function(*args, **options), set()
            weighed.append(sum(weight(x, seen) for x in (args, *options.values(), results)))
            return results
        return call

    for name in dir(kernels):
        if name.endswith(("_forward", "_backward")):
            monkeypatch.setattr(kernels, name, scales(getattr(kernels, name)))
    for row in benchmark_rows.JOBS[job](sizes(dtype=dtype)):
        if rows in row.name:
            row.ours(0)             # a backward pass finds its forward pass done the second time
            row.ours(0)
            assert row.bytes == weighed[-1], row.name


def test_floor_percent_and_ratio():
    """A second for the bytes, two for the operations; ours takes four, the best of torch six."""
    class Clock(benchmark_rows.WallClock):
        def sample(self, run, loops=1):
            return run() or 1.0

    seconds = {"ours": 4e6, "eager": 9e6, "compiled": 6e6}
    calls = {name: lambda i, name=name: torch.tensor(seconds[name]) for name in seconds}
    row = benchmark_rows.Row("row", calls["ours"], {"eager": calls["eager"], "compiled": calls["compiled"]}, 100, 600,
                             pairs=lambda: [(torch.ones(1), torch.ones(1), None)])
    floors = {"copy_bytes_per_second": 100, "matrix_operations_per_second": {"float32": 300}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark_rows.Contender, "all", lambda contender: float(contender.call(0)))
        figures = benchmark_gpu.measure(row, sizes(), Clock(), floors, 1, True)
    assert figures["percent_of_floor"] == 50 and figures["ratio"] == 1.5 and figures["microseconds"] == 4e6
    assert figures["torch"] == {"eager": 9e6, "compiled": 6e6} and figures["agrees"] is True


@pytest.mark.parametrize("error, agrees", [(0.0, True), (0.9, True), (1.1, False), (float("nan"), False)])
def test_the_rule_of_agreement(error, agrees):
    """Errors as shares of 4 (eps + eps of float32 x sqrt(terms)) largest, terms being 9 and the largest 8."""
    for eps, dtype in ((2**-23, torch.float32), (2**-7, torch.bfloat16)):
        theirs = torch.tensor([8.0, 1.0], dtype=dtype)
        ours = theirs.float() + torch.tensor([0.0, error * 4 * (eps + 3 * 2**-23) * 8])
        row = benchmark_rows.Row("row", lambda i: (torch.ones(1), ours), {"eager": lambda i: [torch.ones(1), theirs]},
                                 1, 1, terms=9)
        found, allowed = benchmark_rows.agreement(row)
        assert (found <= allowed) is agrees, f"{found} of {allowed}"


def test_results_must_have_one_shape():
    row = benchmark_rows.Row("row", lambda i: torch.ones(2, 1), {"eager": lambda i: torch.ones(2)}, 1, 1)
    with pytest.raises(ValueError, match=r"ours has the shape \(2, 1\), torch's \(2,\)"):
        benchmark_rows.agreement(row)


def test_compiled_gradients_can_be_taken_again_and_again():
    """With the compiler that only traces, which needs no C++."""
    rows = list(benchmark_rows.JOBS["add_layer_norm"](sizes(compiler="aot_eager")))
    for row in rows:
        for expected, found in zip(row.torch["eager"](0), [row.torch["compiled"](0) for _ in range(2)][1]):
            torch.testing.assert_close(found, expected)
    benchmark_gpu.forget()


def test_arrays_together_are_three_times_the_cache():
    s = sizes(cache=50)
    assert [s.copies(n) for n in (1000, 150, 149, 50, 1)] == [1, 1, 2, 3, 64]


# The command

@pytest.mark.parametrize("args, message", [
    (["cpu", "--turns", "0"], "argument --turns: it should be a whole number, at least 1, not 0"),
    (["cpu", "--threads", "0"], "argument --threads: it should be a whole number, at least 1, not 0"),
    (["gpu", "--seconds", "-1"], "argument --seconds"),
    (["gpu", "--all", "--jobs", "add"], "--all and --jobs exclude each other"),
    (["cpu", "--jobs", "C3"], "invalid choice: 'C3'"),
])
def test_bad_arguments_are_refused_in_one_sentence(args, message, capsys):
    with pytest.raises(SystemExit) as stop:
        benchmark.main(args)
    assert stop.value.code == 2 and message in capsys.readouterr().err


@NO_GPU
def test_errors_say_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="no NVIDIA GPU here; add --smoke"):
        benchmark.main(["gpu"])
    with pytest.raises(SystemExit, match="no job softmin; choose from training_step, adamw, grad_norm, linear, "):
        benchmark.main(["gpu", "--smoke", "--jobs", "add", "softmin"])
    monkeypatch.setattr(benchmark_cpu.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r'needs torch, which this Python lacks: pip install "tinyllm\[test\]"'):
        benchmark.main(["cpu", "--out", str(tmp_path)])


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
@pytest.mark.parametrize("to, seconds", [(os.kill, 0), (os.killpg, 1)], ids=["at the start", "as a terminal does"])
def test_ctrl_c_ends_without_a_traceback(to, seconds):
    """To the referee while it starts its workers; to it and its workers while they start."""
    process = start("cpu", "--jobs", "C1", "--turns", "1", start_new_session=True)
    assert process.stdout.readline().startswith("Comparing with torch eager")
    time.sleep(seconds)
    to(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err == "\nStopped.\n", err


# The pictures

def test_no_label_of_the_pictures_is_cut_off():
    figures = {"percent_of_floor": 83.0, "ratio": 1.21}
    facts = {"machine": {"card": "a card", "torch": "2", "triton": "3"}, "dtype": "bfloat16", "note": None}
    rows = [{"name": f"linear mlp c_proj weight gradient {i}", **figures} for i in range(9)]
    rows[3] = {"name": "failed", "ratio": None}
    for figure in (benchmark_cpu.picture(CPU_RESULTS), benchmark_report.picture(facts, rows)):
        figure.draw_without_rendering()
        for axes in figure.axes:
            for label in (axes.xaxis.label, *axes.get_yticklabels()):
                box = label.get_window_extent()
                assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0, f"cut off: {label.get_text()}"


def test_without_matplotlib_the_figures_are_kept(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    message = benchmark.write_picture(tmp_path / "x.png", benchmark_cpu.picture, CPU_RESULTS)
    assert "pip install matplotlib" in message and "x.json" in message
