"""Weights in int8 on the Triton path: the kernels of the layer, and models that write as they do on NumPy."""
import numpy as np
import pytest

pytest.importorskip("torch", reason="the kernels' arrays are torch tensors: pip install tinyllm[triton]")
pytest.importorskip("triton", reason="Triton exists for Linux only: pip install tinyllm[triton]")

from agreement import UNIT, fenced, nearest, small_tiles  # noqa: E402
from checks import assert_near  # noqa: E402
from test_beams import make  # noqa: E402
from test_quantize import allowed, layer  # noqa: E402

from tinyllm import Tensor, generate, quantized  # noqa: E402
from tinyllm import functional as F  # noqa: E402
from tinyllm.kernels import linear_int8, runtime  # noqa: E402

SHAPES = [((1,), 768, 33), ((4,), 65, 130), ((), 1, 1), ((5,), 65, 130), ((2, 33), 40, 31), ((130,), 129, 129),
          ((0,), 3, 4), ((3,), 0, 4), ((7,), 0, 4)]


def check_kernel(arrays, dtype, layout="plain"):
    """Within what rounding explains; no input is written, and nothing beside the output."""
    x, weight, scale, bias = arrays
    x, bias = nearest(x, dtype), None if bias is None else nearest(bias, dtype)
    with fenced() as fences:
        weights = runtime.from_numpy(weight) if layout == "plain" else runtime.from_numpy(weight.T).T
        given = (fences.put(x, dtype, layout), weights, fences.put(scale),
                 None if bias is None else fences.put(bias, dtype))
        before = [None if a is None else a.clone() for a in given]
        out = runtime.to_numpy(linear_int8(*given))
        assert all(a is None or (a == b).all() for a, b in zip(given, before))
    assert_near(f"{dtype} {layout}", out, *allowed((x, weight, scale, bias), UNIT[dtype]))


@pytest.mark.parametrize("dtype", list(UNIT))
@pytest.mark.parametrize("rows, n_in, n_out", SHAPES)
def test_kernels_at_the_edges_of_tiles(rows, n_in, n_out, dtype):
    with small_tiles():
        for bias, layout in ((True, "plain"), (False, "transposed"), (True, "strided")):
            check_kernel(layer(rows, n_in, n_out, bias), dtype, layout)


@pytest.mark.parametrize("rows", [(1,), (20,)])
def test_kernels_with_the_tiles_of_the_table(rows):
    check_kernel(layer(rows, 1300, 200), "bfloat16")


@pytest.mark.parametrize("kind", ["gpt", "llama", "transformer-lm", "lstm", "seq2seq", "t5"])
def test_both_paths_write_the_same(kind):
    texts = [generate(make(kind, where, None), [[5, 6, 7], [8]], 4, temperature=0.7, seed=2, pad_token_id=0,
                      quantize="int8") for where in ("numpy", "triton")]
    np.testing.assert_array_equal(*texts)


def test_a_bfloat16_model_keeps_its_type():
    small = quantized(make("llama", "triton", "bfloat16"))
    logits = small(np.array([[5, 6, 7]]))
    assert logits.dtype == runtime.torch_dtype("bfloat16") and np.isfinite(logits.numpy()).all()


def test_a_weight_on_another_backend_is_refused():
    weight, scale = runtime.from_numpy(np.ones((3, 4), np.int8)), runtime.empty((3,))
    with pytest.raises(ValueError, match="linear_int8: x is on the numpy backend and its weight is not; quantize a"):
        F.linear_int8(Tensor(np.ones((2, 4))), weight, scale)
