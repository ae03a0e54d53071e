"""The benchmark in parts: one that fails or hangs is recorded, and the others run all the same."""
import json
import os
import sys
import time
import types

import pytest

pytest.importorskip("torch", reason="the benchmark compares with torch")
pytest.importorskip("triton", reason="the Triton path needs triton, which exists for Linux only")

import benchmark_all  # noqa: E402
import benchmark_gpu  # noqa: E402
import benchmark_rows  # noqa: E402

pytestmark = pytest.mark.skipif(os.name != "posix", reason="ends process groups")
ROWS = [{"job": "add", "name": "add", "agrees": True, "microseconds": 1.0, "ratio": 1.0, "percent_of_floor": 9.0}]
WRITES = f"""
import json, sys
json.dump({{"machine": "this", "results": {ROWS!r}}}, open(sys.argv[1] + "/benchmark_gpu.json", "w"))
"""
HANGS = WRITES + """
import subprocess, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open(sys.argv[1] + "/../child", "w").write(str(child.pid))
try:
    time.sleep(60)
except KeyboardInterrupt:
    open(sys.argv[1] + "/../told", "w").close()
"""


def args(tmp_path, **changes):
    return types.SimpleNamespace(**{"seconds": 60, "smoke": False, "out": str(tmp_path), "dtype": "bfloat16",
                                    "no_compile": False, "parts": None, **changes})


def run(tmp_path, monkeypatch, programs, limit=30, **changes):
    """The report of parts which are these Python programs, the exit code, and what was saved after each."""
    saved = []
    monkeypatch.setattr(benchmark_all, "PARTS", {name: benchmark_all.Part(limit, (name,)) for name in programs})
    monkeypatch.setattr(benchmark_all, "command_of", lambda part, args, seconds, folder: [
        sys.executable, "-c", programs[part.command[0]], str(folder)])
    report, code = benchmark_all.run(args(tmp_path, **changes), lambda report: saved.append(json.dumps(report)))
    return report, code, saved


def is_alive(pid):
    """Whether a process runs; one that has ended and that nobody has waited for yet does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_part_that_fails_is_recorded_and_the_next_one_runs(tmp_path, monkeypatch, capfd):
    report, code, saved = run(tmp_path, monkeypatch, {"bad": WRITES + "sys.exit(3)", "good": WRITES})
    assert code == 1 and report["machine"] == "this" and report["results"] == ROWS * 2
    assert report["parts"]["bad"]["exit_code"] == 3 and report["parts"]["bad"]["reason"] == "ended with exit code 3"
    assert report["parts"]["good"]["exit_code"] == 0 and report["parts"]["good"]["reason"] is None
    assert report["headline"]["kernels"] == {"add": {"ratio": 1.0, "percent_of_floor": 9.0}}
    assert [len(json.loads(text)["parts"]) for text in saved] == [1, 2]
    assert "Not everything is well with: bad." in capfd.readouterr().out


@pytest.mark.skipif(not os.path.exists("/proc"), reason="asks Linux whether a process is alive")
def test_a_part_that_hangs_is_told_to_write_down_what_it_has_and_ends_with_all_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark_all, "LEAST", 0)
    report, code, _ = run(tmp_path, monkeypatch, {"hangs": HANGS}, limit=5)
    assert code == 1 and report["parts"]["hangs"]["reason"] == "stopped after 5 s" and report["results"] == ROWS
    assert report["parts"]["hangs"]["seconds"] < 20
    assert (tmp_path / "parts" / "told").exists()
    child, end = int((tmp_path / "parts" / "child").read_text()), time.time() + 10
    while is_alive(child) and time.time() < end:
        time.sleep(0.1)
    assert not is_alive(child)


def test_no_part_starts_without_time(tmp_path, monkeypatch):
    report, code, _ = run(tmp_path, monkeypatch, {"late": WRITES}, seconds=1)
    assert code == 1 and report["parts"]["late"]["reason"] == "no time was left" and report["results"] == []


def test_what_an_earlier_run_left_behind_is_not_taken_for_new(tmp_path, monkeypatch):
    run(tmp_path, monkeypatch, {"part": WRITES})
    report, _, _ = run(tmp_path, monkeypatch, {"part": "import sys; sys.exit(1)"})
    assert report["results"] == []


def test_each_job_is_in_one_part():
    jobs = [job for part in benchmark_all.PARTS.values() if "--jobs" in part.command
            for job in part.command[part.command.index("--jobs") + 1:]]
    assert sorted(jobs) == sorted(benchmark_rows.JOBS) and benchmark_gpu.JOBS is benchmark_rows.JOBS


def test_the_commands(tmp_path):
    kernels, curves = benchmark_all.PARTS["kernels"], benchmark_all.PARTS["loss curves"]
    command = benchmark_all.command_of(kernels, args(tmp_path, no_compile=True), 60, tmp_path)
    assert command.count("--no-compile") == 1 and command[-2:] == ["--seconds", "55"] and "--smoke" not in command
    assert benchmark_all.command_of(curves, args(tmp_path, smoke=True), 60, tmp_path)[2:] == [
        "curves", "--out", str(tmp_path), "--smoke"]
    command = benchmark_all.command_of(benchmark_all.PARTS["tests"], args(tmp_path), 60, tmp_path)
    assert command[1:3] == ["-m", "pytest"] and "no:benchmark" in command
    assert all(os.path.exists(path) for path in command if path.endswith(".py"))


def test_pytest_is_understood_however_far_it_came(tmp_path):
    output = """\
bringing up nodes...
[gw1] [  0%] PASSED tests/test_gpu.py::test_one
[gw0] [ 50%] FAILED tests/test_kernels.py::test_two[a b-float32]
[gw0] [100%] ERROR tests/test_kernels.py::test_three
[gw0] [100%] SKIPPED tests/test_kernels.py::test_four
FAILED tests/test_kernels.py::test_two[a b-float32] - AssertionError
INTERNALERROR> RuntimeError
[gw0] [10"""
    assert benchmark_all.tests_in(output) == {
        "passed": 1, "failed": ["tests/test_kernels.py::test_two[a b-float32]", "tests/test_kernels.py::test_three"]}
