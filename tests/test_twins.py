"""tinyllm/ops and kernels/ mirror each other: a twin for every operation, with its arguments, in a file of one name."""

import inspect
import re
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the kernels' arrays are torch tensors: pip install tinyllm[triton]")
pytest.importorskip("triton", reason="Triton exists for Linux only: pip install tinyllm[triton]")

import tinyllm  # noqa: E402
from tinyllm import kernels, ops  # noqa: E402

OPS, KERNELS = Path(ops.__file__).parent, Path(kernels.__file__).parent
BESIDES = ["sample", "grad_norm", "kv_append", "kv_reorder", "cached_attention", "text_positions", "linear_int8",
           "fused_linear", "unbroadcast", "first_bits", "empty", "from_numpy", "to_numpy", "copy", "own", "capture"]
PAIRS = re.compile("_(forward|backward|step)$")
OPERATIONS = sorted(filter(PAIRS.search, dir(ops))) + BESIDES


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_has_a_twin_with_the_same_arguments(name):
    shapes = [[(p.name, p.kind, p.default) for p in inspect.signature(getattr(side, name)).parameters.values()]
              for side in (ops, kernels)]
    if name in ("empty", "to_numpy", "copy", "own"):        # one says array, the other tensor; and each has its dtypes
        shapes = [len(shape) for shape in shapes]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", sorted(filter(PAIRS.search, dir(kernels))))
def test_no_kernel_is_without_a_twin(name):
    assert hasattr(ops, name)


@pytest.mark.parametrize("file", sorted(path.name for path in OPS.glob("*.py")))
def test_twins_stand_in_files_of_one_name(file):
    """memory.py is runtime.py, where torch allocates; threads.py is what a GPU has by itself."""
    assert (KERNELS / {"memory.py": "runtime.py"}.get(file, file)).exists() or file == "threads.py"


def test_kernels_know_nothing_of_the_engine():
    for path in KERNELS.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"^\s*(from|import) (tinyllm|\.\.)", text, re.M), path
        assert not re.search(r"torch\.(nn|autograd|matmul|softmax|exp|sum|mean)\b", text), path


def test_every_file_of_kernels_names_what_it_is():
    for path in KERNELS.glob("*.py"):
        assert path.read_text(encoding="utf-8").startswith('"""'), path
    listed = set(re.findall(r"\w+\.py", kernels.__doc__))
    assert listed == {path.name for path in KERNELS.glob("*.py")} - {"__init__.py"}
    assert kernels.__name__ == "tinyllm.kernels" and tinyllm.kernels is kernels
