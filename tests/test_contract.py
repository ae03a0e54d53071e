"""The contract of an operation: pairs, purity, who allocates, which dtype; and what the engine imports."""

import inspect
import subprocess
import sys

import numpy as np
import pytest
from checks import FUNCTIONAL, check_same, run
from strategies import LAYOUTS, MAKERS, fixed

from tinyllm import composed, ops
from tinyllm import functional as F

ALL_FIXED = pytest.mark.parametrize("op, sizes", fixed(*MAKERS))


def names(suffix):
    return {name.removesuffix(suffix) for name in dir(ops) if name.endswith(suffix)}


def test_every_forward_has_a_backward_and_cases():
    assert names("_forward") == names("_backward") == set(MAKERS)


@pytest.mark.parametrize("op", MAKERS)
def test_arrays_are_positional_and_options_are_keywords(op):
    of = lambda suffix: inspect.signature(getattr(ops, op + suffix)).parameters
    forward, backward = of("_forward"), of("_backward")
    arrays = [p for p in forward.values() if p.kind != p.KEYWORD_ONLY]
    assert all(p.default in (p.empty, None) for p in arrays)        # None: left out; a number would be an option
    assert [name for name in backward if name != "into"][-1] == "saved"
    if "into" in backward:
        assert list(backward)[-1] == "into" and len(backward["into"].default) == len(arrays)


def own(module):
    """The public functions that a module defines itself."""
    return {name: f for name, f in vars(module).items()
            if inspect.isfunction(f) and f.__module__ == module.__name__ and not name.startswith("_")}


@pytest.mark.parametrize("name", own(composed))
def test_composed_takes_the_arguments_of_functional(name):
    assert inspect.signature(getattr(composed, name)) == inspect.signature(getattr(F, name))


def test_every_functional_has_a_composed_view():
    assert {name for name in own(F) if not hasattr(composed, name)} == set()


# Purity

def arrays_in(value):
    """The arrays in a nest of tuples."""
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from arrays_in(item)


def untouched(name, function, arrays, **options):
    """function(*arrays, **options), after making sure that nothing it was given changes."""
    given = list(arrays_in((*arrays, options.get("saved"))))
    before = [array.copy() for array in given]
    for array in given:
        array.setflags(write=False)
    try:
        result = function(*arrays, **options)
    except ValueError as error:
        raise AssertionError(f"{name} writes into what it was given: {error}") from error
    for array, copy in zip(given, before):
        np.testing.assert_array_equal(array, copy, err_msg=f"{name} changed an array")
    return result


def twice(name, backward):
    def call(*douts, saved):
        first = [None if g is None else np.array(g) for g in untouched(name, backward, douts, saved=saved)]
        again = untouched(name, backward, douts, saved=saved)
        for a, b in zip(first, again, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=f"{name} gives something else the second time")
        return again
    return call


def check_pure(op, case, layout="plain"):
    """Neither pass writes its inputs, incoming gradients or `saved`; so backward can run again, and gives the same."""
    with pytest.MonkeyPatch.context() as patch:
        for name in MAKERS:
            forward_pass, backward_pass = getattr(ops, name + "_forward"), getattr(ops, name + "_backward")
            patch.setattr(ops, name + "_forward", lambda *arrays, _name=name, _pass=forward_pass, **options:
                          untouched(_name + "_forward", _pass, arrays, **options))
            patch.setattr(ops, name + "_backward", twice(name + "_backward", backward_pass))
        run(FUNCTIONAL[op], case, layout=layout)


@pytest.mark.parametrize("layout", LAYOUTS[:2])
@ALL_FIXED
def test_operations_are_pure(op, sizes, layout):
    check_pure(op, MAKERS[op](**sizes), layout)


def poisoned(shape, dtype=np.float32):
    return np.full(shape, np.nan if np.issubdtype(dtype, np.floating) else -2**30, dtype)


def check_filled(op, case):
    """Everything an operation allocates it fills: NaN in fresh memory changes nothing."""
    clean = run(FUNCTIONAL[op], case)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tinyllm.ops.memory.empty", poisoned)
        check_same(run(FUNCTIONAL[op], case), clean, tolerance=1e-14)


@ALL_FIXED
def test_fresh_memory_is_filled(op, sizes):
    check_filled(op, MAKERS[op](**sizes))


def check_stays_float32(op, case):
    """Nothing becomes float64 on the way: not an output, not a gradient, not what is kept for the backward pass."""
    with pytest.MonkeyPatch.context() as patch:
        def watched(*arrays, _forward=getattr(ops, op + "_forward"), **options):
            out, saved = _forward(*arrays, **options)
            assert np.dtype(np.float64) not in {array.dtype for array in arrays_in(saved)}, f"{op} keeps float64"
            return out, saved
        patch.setattr(ops, op + "_forward", watched)
        outs, grads = run(FUNCTIONAL[op], case, np.float32)
    assert {array.dtype for array in outs + grads} == {np.dtype(np.float32)}


@pytest.mark.parametrize("op, sizes", fixed(*(op for op in MAKERS if op != "cast")))
def test_float32_stays_float32(op, sizes):
    check_stays_float32(op, MAKERS[op](**sizes))


@pytest.mark.parametrize("op", ["pow", "matmul", "embedding", "linear", "linear_gelu", "linear_cross_entropy"])
def test_only_the_gradients_that_are_needed_are_computed(op):
    arrays, options = MAKERS[op]() if op in ("pow", "matmul") else MAKERS[op](rows=(5,))
    for wanted in (i for i, array in enumerate(arrays) if array.dtype.kind == "f"):
        needs = tuple(i == wanted for i in range(len(arrays)))
        out, saved = getattr(ops, op + "_forward")(*arrays, **options, needs=needs)
        grads = getattr(ops, op + "_backward")(np.ones_like(out), saved=saved)
        assert tuple(grad is not None for grad in grads) == needs


# Imports

LONELY = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "triton"):
            raise ImportError(name + " is not there")

sys.meta_path.insert(0, Blocker())
import numpy as np
import tinyllm

model = tinyllm.GPT(tinyllm.GPTConfig(vocab_size=5, n_positions=4, n_embd=8, n_layer=1, n_head=2))
optimizer = tinyllm.optim.AdamW(model.parameters(), lr=1e-2)
ids = np.array([[0, 1, 2, 3]])
losses = []
for _ in range(20):
    loss = model.eval().loss(ids, ids)
    loss.backward()
    optimizer.step(max_norm=1.0)
    optimizer.zero_grad()
    losses.append(loss.item())
assert losses[-1] < losses[0] - 0.1, losses
try:
    model.to("triton")
except ImportError as error:
    assert "tinyllm[triton]" in str(error)
else:
    raise AssertionError("the triton backend without torch")
print(*sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "triton", "kernels", "matplotlib"}))
"""


def test_the_engine_trains_without_torch_and_triton(tmp_path):
    """In a process of its own, where neither can be imported."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", LONELY], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []                # nor is there a top-level module called kernels


def test_no_top_level_module_is_called_kernels(tmp_path):
    """Other libraries look for a package of that name; ours is tinyllm.kernels, wherever Python starts but here."""
    code = "import importlib.util, tinyllm.kernels; print(importlib.util.find_spec('kernels'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "None\n", done.stderr
