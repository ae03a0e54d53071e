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

import compile_gate  # noqa: E402

HERE = Path(__file__).parent
RIGHT = """
.L_x_1:
        /*0010*/                   HGMMA.64x64x16.F32.BF16 R24, R88, gdesc[UR16], RZ, !UPT, gsb0 ;
        /*0020*/                   F2FP.BF16.F32.PACK_AB R96, R13, R24 ;
        /*0030*/                   HGMMA.64x64x16.F32.BF16 R56, R96, gdesc[UR16].tnspB, R56, gsb0 ;
        /*0040*/              @!P0 BRA `(.L_x_1) ;
"""
PARTS = [("80", "bfloat16", "all"), ("90", "bfloat16", "all"), ("86", "bfloat16", "tiles"), ("89", "bfloat16", "tiles"),
         ("120", "bfloat16", "tiles"), ("80", "float32", "plain")]


def gate(*arguments):
    return subprocess.run([sys.executable, HERE / "compile_gate.py", *arguments], text=True, capture_output=True,
                          cwd=HERE, env={**os.environ, "TRITON_INTERPRET": "0"})


@pytest.mark.parametrize("card, dtype, part", PARTS)
def test_kernels_compile(card, dtype, part, request):
    result = gate(card, dtype, "all" if request.config.getoption("--thorough") else part)
    print(result.stdout)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-3000:]
    lines = [line for line in result.stdout.splitlines() if f"sm_{card}" in line]
    assert len(lines) > 15 and any("attention_dkdv" in line for line in lines)


def test_an_operand_that_is_overwritten_is_seen():
    """Here R88 holds what is the same in each turn of the loop, and R96 what each turn computes."""
    assert not compile_gate.overwrites_an_operand(RIGHT)
    assert compile_gate.overwrites_an_operand(RIGHT.replace("R96", "R88"))
    assert compile_gate.overwrites_an_operand(RIGHT.replace("R88", "R26"))      # the first product's 32 sums lie there


def test_a_counter_that_orders_nothing_is_seen():
    right = "st.global.b32 ;\nbar.sync 0;\n@%p1 atom.global.gpu.acq_rel.add.u32 %r1, [ %rd1 + 0 ], %r2;\nbar.sync 0;"
    assert compile_gate.counts_out_of_order(right) == 0
    for wrong in (right.replace("acq_rel", "relaxed"), right.removeprefix("st.global.b32 ;\nbar.sync 0;"),
                  right.removesuffix("bar.sync 0;")):
        assert compile_gate.counts_out_of_order(wrong) == 1


def test_one_variant_serves_all_batch_sizes():
    """Batches of 1 to 24 texts compile each kernel once for each place in the model where it is used."""
    result = gate("90", "bfloat16", "batches")
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert re.search(r"\d\d kernels, the same for each of 6 batch sizes", result.stdout)
