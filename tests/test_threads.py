"""Several threads compute what one computes. Here even the smallest jobs are cut into three."""

import importlib
import os
import subprocess
import sys

import numpy as np
import pytest
import test_optim
from checks import check_composed
from strategies import MAKERS, fixed
from test_contract import check_filled

threads = importlib.import_module("tinyllm.ops.threads")


@pytest.fixture
def three(monkeypatch):
    """Pretend that BLAS has three cores; the test runner itself gives it one."""
    told = []
    monkeypatch.setattr(threads, "_blas", (lambda: told[-1] if told else 3, told.append))
    monkeypatch.setattr(threads, "SMALLEST", 1)
    yield told


THREADED = ["linear", "linear_gelu", "layer_norm", "add_layer_norm", "attention", "self_attention"]


@pytest.mark.parametrize("op, sizes", fixed(*THREADED))
def test_three_threads_compute_what_one_does(op, sizes, three):
    check_composed(op, MAKERS[op](**sizes))


@pytest.mark.parametrize("op", THREADED)
def test_three_threads_fill_fresh_memory(op, three):
    check_filled(op, MAKERS[op]())


def test_three_threads_take_the_same_step(three):
    test_optim.test_adam(options={}, name="AdamW", weight_decay=0.3)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 7, 100])
def test_every_row_is_worked_on_once(n, three):
    counts = np.zeros(n, int)

    def work(part):
        counts[part] += 1

    threads.in_parallel(work, n, 1000)
    assert (counts == 1).all()


@pytest.mark.parametrize("n, threads_, operations", [(1, 1, 10), (2, 2, 10**5), (10, 3, 10**6), (1000, 2, 10**9)])
def test_the_first_part_is_longer_but_leaves_something_for_all(n, threads_, operations):
    cuts = threads._cuts(n, threads_, operations)
    parts = np.diff(cuts)
    assert cuts[0] == 0 and cuts[-1] == n and len(parts) == threads_ and parts.min() >= 1
    rest = parts[1:]
    assert parts[0] >= n // threads_ and rest.max(initial=0) - rest.min(initial=n) <= 1
    lead = (parts[0] - rest.mean()) * operations / n if len(rest) else threads.LATE
    assert n < 1000 or abs(lead - threads.LATE) < 2 * operations / n


def test_a_small_job_stays_in_one_piece(three, monkeypatch):
    monkeypatch.setattr(threads, "SMALLEST", 1000)
    parts = []
    threads.in_parallel(parts.append, 7, 1999)
    assert parts == [slice(0, 7)]


@pytest.mark.parametrize("broken", [0, 1, 2])
def test_an_error_in_any_thread_is_raised_and_blas_gets_its_cores_back(broken, three):
    def work(part):
        if part.start == broken:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        threads.in_parallel(work, 3, 3)
    assert three == [1, 3]


def test_settings_of_numpy_hold_in_every_thread(three):
    """A user's np.errstate must reach the rows that another thread works on."""
    with np.errstate(divide="ignore"):
        threads.in_parallel(lambda part: np.log(np.zeros(3)), 3, 3)


FORK = """
import os, time
from tinyllm.ops import threads
threads._blas, threads.SMALLEST, work = (lambda: 2, lambda n: None), 1, lambda part: None
threads.in_parallel(work, 3, 3)
time.sleep(0.1)     # until its threads are idle: to a child that copied them they would seem ready
child = os.fork()
threads.in_parallel(work, 3, 3)
if child:
    raise SystemExit(os.waitpid(child, 0)[1])
os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_makes_its_own_threads():
    """It has none of its parent's, and would wait for them forever."""
    subprocess.run([sys.executable, "-c", FORK], check=True, timeout=60)
