"""NumPy = Triton: every operation, every gradient, in float32 and bfloat16, at sizes around the edges of blocks."""

import math

import numpy as np
import pytest

pytest.importorskip("torch", reason="the kernels' arrays are torch tensors: pip install tinyllm[triton]")
pytest.importorskip("triton", reason="Triton exists for Linux only: pip install tinyllm[triton]")

from agreement import check_kernels, run_kernels, small_tiles  # noqa: E402
from checks import FUNCTIONAL, run  # noqa: E402
from hypothesis import Phase, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from strategies import MAKERS, drawn, fixed, normal  # noqa: E402

from tinyllm.kernels import configs, loss, matmul_tma, norm, product, reduce, runtime  # noqa: E402

OPS = [op for op in MAKERS if op != "cast"]
DTYPES = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])


@DTYPES
@pytest.mark.parametrize("op, sizes", fixed(*OPS))
def test_kernels(op, sizes, dtype):
    check_kernels(op, MAKERS[op](**sizes), dtype)


@pytest.mark.parametrize("op", OPS)
@settings(max_examples=settings.default.max_examples // 3, phases=[Phase.generate])     # to shrink takes minutes here
@given(data=st.data(), layout=st.sampled_from(["plain", "transposed", "strided"]),
       dtype=st.sampled_from(["float32", "bfloat16"]))
def test_kernels_on_any_shape_and_layout(op, data, layout, dtype):
    check_kernels(op, data.draw(drawn(op, smallest=0)), dtype, layout)


@pytest.mark.parametrize("op, sizes", fixed("linear", "attention", "cross_entropy", "layer_norm", "swiglu"))
def test_kernels_in_float16(op, sizes):
    if max(sizes.get("size", 0), sizes.get("mean", 0)) > 100:
        pytest.skip("float16 ends at 65504: that nothing overflows is promised for numbers of usual sizes only")
    check_kernels(op, MAKERS[op](**sizes), "float16")


# One less, as many, one more than fits a tile (32 for products, 16 for attention, 1024 columns for rows), and longer.
EDGES = [
    ("linear", dict(rows=(31,), n_in=33, n_out=32)), ("linear", dict(rows=(33,), n_in=32, n_out=65, bias=False)),
    ("linear_gelu", dict(rows=(32,), n_in=31, n_out=33)), ("linear_gelu", dict(rows=(3, 22), n_in=5, n_out=31)),
    ("mlp", dict(rows=(33,), n_in=17, n_hidden=31, n_out=33)),
    ("matmul", dict(shapes=((2, 3, 33, 17), (3, 17, 34)))), ("matmul", dict(shapes=((2, 1, 2, 5, 7), (3, 1, 7, 4)))),
    ("matmul", dict(shapes=((130, 65), (65,)))),
    ("attention", dict(B=1, H=1, T=15, S=17, D=16)), ("attention", dict(B=1, H=1, T=16, S=32, D=20, causal=True)),
    ("attention", dict(B=1, H=1, T=17, S=33, D=48, causal=True, groups=2)),
    ("attention", dict(B=2, H=1, T=17, S=17, D=17, causal=True, keys="both", bias=(False, True))),
    ("attention", dict(B=1, H=1, T=18, S=35, D=4, dropout=0.3, bias=(True, True))),
    ("attention", dict(B=1, H=1, T=17, S=15, D=128, causal=True)),
    ("attention", dict(B=1, H=1, T=17, S=33, D=16, causal=True, scale=-0.3)),
    ("attention", dict(B=2, H=1, T=1, S=131, D=8, groups=2, causal=True)),                  # attention_decode.py
    ("attention", dict(B=2, H=2, T=3, S=200, D=20, groups=2, causal=True, keys="both")),
    ("self_attention", dict(B=2, H=1, T=33, D=8, dropout=0.2)),
    ("layer_norm", dict(rows=(9,), channels=1025)), ("layer_norm", dict(rows=(321,), channels=61)),
    ("add_layer_norm", dict(rows=(129,), channels=33)), ("rms_norm", dict(rows=(9,), channels=1025)),
    ("rms_norm", dict(rows=(321,), channels=61)),
    ("softmax", dict(rows=(5,), channels=1025)), ("log_softmax", dict(rows=(5,), channels=2049)),
    ("softmax", dict(rows=(3,), channels=4096)), ("softmax", dict(rows=(3,), channels=4097)),
    ("log_softmax", dict(rows=(3,), channels=4097)),
    ("cross_entropy", dict(rows=(5,), vocabulary=1025)), ("cross_entropy", dict(rows=(9,), vocabulary=1023, size=8.0)),
    ("linear_cross_entropy", dict(rows=(35,), vocabulary=65, channels=33)),
    ("linear_cross_entropy", dict(rows=(5,), vocabulary=1025, label_smoothing=0.1, reduction="none")),
    ("embedding", dict(rows=(33,), vocabulary=7, channels=129)), ("dropout", dict(shape=(3, 1027))),
    ("dropout", dict(shape=(70, 3))), ("rope", dict(B=2, T=3, H=65, half=24)),
    ("sum", dict(shape=(4100, 3), axis=0)), ("sum", dict(shape=(3, 2049), axis=1)),
    ("mean", dict(shape=(4096,), axis=0)),
    ("max", dict(shape=(2, 2048, 5), axis=(0, 1))), ("sum", dict(shape=(2, 3, 4, 5, 6), axis=(0, 2, 4))),
    ("add", dict(shapes=((1030,), (5, 1030)))), ("mul", dict(shapes=((4, 1, 3, 1, 2), (3, 1, 5, 1)))),
    ("exp", dict(shape=(4097,))),
]


@DTYPES
@pytest.mark.parametrize("op, sizes", EDGES, ids=[f"{op} {sizes}" for op, sizes in EDGES])
def test_kernels_at_the_edges_of_tiles(op, sizes, dtype):
    with small_tiles():
        check_kernels(op, MAKERS[op](**sizes), dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_many_axes_in_any_order(dtype):
    """More than four axes that do not run on: an operand is copied."""
    a = normal(2, 3, 2, 3, 2, 2)
    check_kernels("mul", ((a.transpose(4, 0, 2, 5, 1, 3), normal(2, 2, 1, 2, 1, 3, seed=1)), {}), dtype, "transposed")


# Ways through the host code that small sizes do not take

def test_a_row_of_logits_in_several_pieces(monkeypatch):
    monkeypatch.setattr(loss, "PIECE", 256)
    for sizes in (dict(vocabulary=1025), dict(vocabulary=1023, size=8.0), dict(vocabulary=512, label_smoothing=0.2),
                  dict(vocabulary=257, ignored="all")):
        case = MAKERS["linear_cross_entropy"](rows=(5,), channels=9, **sizes)
        check_kernels("linear_cross_entropy", case, "bfloat16")


@pytest.mark.parametrize("vocabulary", [1, 3, 7, 9, 15, 17, 250, 271, 272, 273, 527, 1023])
def test_rows_of_logits_that_begin_anywhere(vocabulary, monkeypatch):
    """Nine rows begin at each of the eight places; those of 250 at four of them. All targets at the ends occur."""
    monkeypatch.setattr(loss, "PIECE", 256)
    for smoothing, reduction in ((0.0, "mean"), (0.2, "none")):
        (logits, _), options = MAKERS["cross_entropy"](rows=(9,), vocabulary=vocabulary, label_smoothing=smoothing,
                                                       reduction=reduction)
        for targets in (np.arange(9) % vocabulary, (vocabulary - 1 - np.arange(9)) % vocabulary):
            check_kernels("cross_entropy", ((logits, targets), options), "bfloat16")


def test_rows_that_are_too_long_for_the_registers(monkeypatch):
    monkeypatch.setattr(loss, "IN_REGISTERS", 8)
    for sizes in (dict(vocabulary=1025), dict(vocabulary=65, label_smoothing=0.2)):
        check_kernels("cross_entropy", MAKERS["cross_entropy"](rows=(5,), **sizes), "bfloat16")


@DTYPES
def test_a_program_walks_over_several_blocks_of_rows(dtype, monkeypatch):
    monkeypatch.setattr(norm, "TILE_BACKWARD", 128)
    monkeypatch.setattr(norm, "PROGRAMS", 2)
    for op in ("layer_norm", "rms_norm"):
        check_kernels(op, MAKERS[op](rows=(61,), channels=33), dtype)


@DTYPES
@pytest.mark.parametrize("rows", [33, 1021, 1024])
def test_long_columns_are_cut(dtype, rows, monkeypatch):
    """Into parts of whole tiles, of which the last is shorter; whatever the number of rows."""
    monkeypatch.setattr(reduce, "TILE", 16)
    for op in ("sum", "mean", "max"):
        check_kernels(op, MAKERS[op](shape=(rows, 3), axis=0), dtype)
        check_kernels(op, MAKERS[op](shape=(2, rows, 3), axis=1), dtype)
        check_kernels(op, MAKERS[op](shape=(rows,), axis=0), dtype)


@DTYPES
def test_a_weight_gradient_is_split_along_its_rows(dtype, monkeypatch):
    monkeypatch.setattr(product, "SHORTEST", 64)
    with small_tiles():
        check_kernels("linear", MAKERS["linear"](rows=(256,), n_in=20, n_out=30), dtype)


@pytest.mark.parametrize("multiprocessors, same_order", [(1, False), (7, False), (8, True)])
@pytest.mark.parametrize("op, sizes", [
    ("linear", dict(rows=(257,), n_in=72, n_out=136)), ("linear", dict(rows=(256,), n_in=64, n_out=128, bias=False)),
    ("mlp", dict(rows=(130,), n_in=64, n_hidden=272, n_out=64)), ("linear_gelu", dict(rows=(128,), n_in=64, n_out=256)),
    ("linear", dict(rows=(130,), n_in=65, n_out=64)),                       # rows of 65 numbers: not for TMA
    ("linear_cross_entropy", dict(rows=(70,), vocabulary=197, channels=64))])
def test_the_kernels_for_hopper(op, sizes, multiprocessors, same_order, monkeypatch):
    """matmul_tma.py, with the tiles of sm_90; of a weight gradient's tile, seven programs add up parts."""
    monkeypatch.setattr(configs, "architecture", lambda: "sm_90")
    monkeypatch.setattr(runtime, "deterministic", same_order)
    monkeypatch.setattr(runtime, "n_multiprocessors", lambda: multiprocessors)
    check_kernels(op, MAKERS[op](**sizes), "bfloat16")


def test_a_weight_gradient_in_two_kinds_of_parts(monkeypatch):
    """Six tiles for two programs: the first four in two parts, the others in four."""
    monkeypatch.setattr(configs, "architecture", lambda: "sm_90")
    monkeypatch.setattr(matmul_tma, "shares_of", lambda steps, tiles, programs: (tiles - 2, steps // 2, 1))
    check_kernels("linear", MAKERS["linear"](rows=(256,), n_in=264, n_out=264), "bfloat16")


@pytest.mark.parametrize("steps, tiles, programs", [(512, 72, 132), (512, 54, 132), (512, 18, 132), (512, 1179, 132),
                                                    (3, 5, 2), (1, 1, 132), (40, 7, 108)])
def test_shares_leave_hardly_anybody_idle(steps, tiles, programs):
    first_tiles, first, other = matmul_tma.shares_of(steps, tiles, programs)
    parts = [math.ceil(steps / part) for part in (first, other)]
    assert 0 < first_tiles <= tiles and max(parts) <= 32
    jobs = [first] * (first_tiles * parts[0]) + [other] * ((tiles - first_tiles) * parts[1])
    busiest = max(sum(part + matmul_tma.EDGES for part in jobs[i::programs]) for i in range(programs))
    alone = min(math.ceil(tiles * n / programs) * (math.ceil(steps / n) + matmul_tma.EDGES) for n in range(1, 33))
    assert busiest <= alone                             # all tiles in parts of one kind


@pytest.mark.parametrize("op, sizes", [
    ("self_attention", dict(B=1, H=2, T=132, D=16)), ("self_attention", dict(B=2, H=1, T=72, D=64, keys="both")),
    ("attention", dict(B=1, H=1, T=64, S=130, D=8, causal=True, groups=2)),
    ("attention", dict(B=2, H=1, T=68, S=64, D=40, causal=True)),
    ("attention", dict(B=1, H=1, T=65, S=65, D=16, causal=True)),           # rows of 65 numbers: lse not for TMA
    ("attention", dict(B=1, H=1, T=65, S=65, D=20, causal=True)),           # nor those of 20, q, k and v
    ("attention", dict(B=1, H=1, T=20, S=65, D=16, dropout=0.3)), ("attention", dict(B=1, H=1, T=68, S=17, D=128)),
    ("attention", dict(B=1, H=1, T=68, S=40, D=16, bias=(True, True)))])
def test_attention_for_hopper(op, sizes, monkeypatch):
    """Tiles that the hardware fetches, or that are loaded by pointers where it cannot."""
    monkeypatch.setattr(configs, "architecture", lambda: "sm_90")
    check_kernels(op, MAKERS[op](**sizes), "bfloat16")


def test_deterministic_embedding_gradient(monkeypatch):
    monkeypatch.setattr(runtime, "deterministic", True)
    for sizes in (dict(rows=(70,), vocabulary=5, channels=129), dict(rows=(1,)), dict(rows=(0,)), dict(rows=(3, 4))):
        check_kernels("embedding", MAKERS["embedding"](**sizes), "float32")


def test_peaked_logits_keep_their_gradient(monkeypatch):
    """p = 0.9997: rounding p to bfloat16 before subtracting 1 would leave nothing of the target's gradient."""
    logits, targets = np.zeros((3, 8)), np.array([1, 2, 0])
    logits[np.arange(3), [1, 2, 3]] = 10.0
    _, (expected,) = run(FUNCTIONAL["cross_entropy"], ((logits, targets), {"reduction": "none"}))
    for longest in (loss.IN_REGISTERS, 4):          # both kernels
        monkeypatch.setattr(loss, "IN_REGISTERS", longest)
        _, (found,) = run_kernels("cross_entropy", ((logits, targets), {"reduction": "none"}), "bfloat16")
        np.testing.assert_allclose(found, expected, rtol=2.0**-6)
