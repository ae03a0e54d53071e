"""Every kernel compiles for real GPUs, with the tiles of its table, and keeps the rules of compile_gate.py.

No GPU is needed: the compiler is enough. It runs in processes of their own, because in this one Triton may be in its
interpreter's mode. The whole product of cards, types and kernels takes ten minutes and runs with --thorough; without,
each card gets the kernels that have rows in the table, and one of each kind all of them.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the kernels' arrays are torch tensors: pip install tinyllm[triton]")
pytest.importorskip("triton", reason="Triton exists for Linux only: pip install tinyllm[triton]")

HERE = Path(__file__).parent
PARTS = [("80", "bfloat16", "all"), ("90", "bfloat16", "all"), ("86", "bfloat16", "tiles"), ("89", "bfloat16", "tiles"),
         ("120", "bfloat16", "tiles"), ("80", "float32", "plain")]


def gate(*arguments):
    return subprocess.run([sys.executable, HERE / "compile_gate.py", *arguments], text=True, capture_output=True, cwd=HERE,
                          env={**os.environ, "TRITON_INTERPRET": "0"})


@pytest.mark.parametrize("card, dtype, part", PARTS)
def test_kernels_compile(card, dtype, part, request):
    result = gate(card, dtype, "all" if request.config.getoption("--thorough") else part)
    print(result.stdout)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-3000:]
    lines = [line for line in result.stdout.splitlines() if f"sm_{card}" in line]
    assert len(lines) > 15 and any("attention_dkdv" in line for line in lines)


def test_one_variant_serves_all_batch_sizes():
    """Batches of 1 to 24 texts compile each kernel once for each place in the model where it is used."""
    result = gate("90", "bfloat16", "batches")
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert re.search(r"\d\d kernels, the same for each of 6 batch sizes", result.stdout)
