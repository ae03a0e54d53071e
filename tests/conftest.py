"""Settings for all tests."""

import os
import sys
from pathlib import Path

import pytest

for library in ("OMP", "MKL", "OPENBLAS"):      # pytest-xdist keeps every core busy already; set before NumPy and torch
    os.environ.setdefault(library + "_NUM_THREADS", "1")
if not Path("/dev/nvidia0").exists():           # no GPU: Triton decides for its interpreter when it is first imported
    os.environ.setdefault("TRITON_INTERPRET", "1")
sys.path.append(str(Path(__file__).parents[1] / "examples"))

from hypothesis import HealthCheck, settings  # noqa: E402

import tinyllm  # noqa: E402

pytest.register_assert_rewrite("checks")        # so that its bare asserts show their values

# Derandomized: the same inputs on every run and every machine, so that red means changed.
settings.register_profile("default", derandomize=True, database=None, deadline=None, max_examples=15,
                          suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", settings.get_profile("default"), derandomize=False, max_examples=400)


@pytest.fixture(autouse=True)
def same_random_numbers():
    """Every test starts from the same state, whichever ran before it on this worker."""
    tinyllm.manual_seed(0)


def pytest_addoption(parser):
    parser.addoption("--thorough", action="store_true", help="many more random inputs, ever new ones; takes minutes")


def pytest_configure(config):
    settings.load_profile("thorough" if config.getoption("--thorough") else "default")
