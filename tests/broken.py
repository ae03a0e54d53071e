"""Negative controls: mistakes that people make, each of which must turn a check of this suite red.

A test that has never failed proves little. Here the engine is broken on purpose, one line at a time, and the very
functions that the other files call must notice. The mistakes stand in test_broken_ops.py and test_broken.py.
"""

import importlib
from functools import partial

import pytest
from checks import check_composed, check_float32, check_gradient, check_torch
from strategies import FIXED, MAKERS
from test_contract import check_filled, check_pure, check_stays_float32


class Mistakes(list):
    """A list of parameters (target, broken function, check) for assert_red()."""

    def __call__(self, target, check):
        """Register a function as a broken version of tinyllm.<target>; it gets the real one as its first argument."""
        def register(function):
            self.append(pytest.param("tinyllm." + target, function, check, id=function.__name__))
            return function
        return register


def assert_red(target, broken, check, monkeypatch):
    """The check passes, and fails as soon as `target` is replaced by its broken version."""
    check()
    module, _, name = target.rpartition(".")
    module = importlib.import_module(module)
    monkeypatch.setattr(module, name, partial(broken, getattr(module, name)))
    with pytest.raises((AssertionError, pytest.fail.Exception)):    # the second is what pytest.raises() raises
        check()


def all_cases(check, op):
    """check(op, case) on every fixed case of `op`; torch would draw another dropout mask."""
    cases = [sizes for sizes in FIXED[op] if check is not check_torch or "dropout" not in sizes]
    return lambda: [check(op, MAKERS[op](**sizes)) for sizes in cases]


composed, witness, float32 = (partial(all_cases, check) for check in (check_composed, check_torch, check_float32))
pure, filled, stays_float32 = (partial(all_cases, check) for check in (check_pure, check_filled, check_stays_float32))


def slopes(op, **sizes):
    return lambda: check_gradient(op, MAKERS[op](**sizes))


def each(test, arguments):
    """A parametrized test on all of its arguments."""
    return lambda: [test(*args) for args in arguments]
