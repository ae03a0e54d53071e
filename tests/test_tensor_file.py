"""Safetensors files: read as their writers meant it, and refused before they cost anything where they are damaged."""

import json
import struct
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from tinyllm.tensor_file import open_tensors


def join(header, data=b"", length=None):
    """A file of this header, which may claim another length."""
    text = header if isinstance(header, bytes) else (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape=(2,), offsets=(0, 8), dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_floats_of_all_widths_are_read(tmp_path):
    """As torch wrote them and widens them, extremes included; what holds no floats has a shape, and cannot be read."""
    tensors = {"a": torch.tensor([1.5, -2.0]), "b": torch.tensor([[3.0, 0.1]], dtype=torch.bfloat16),
               "c": torch.tensor([6e-8, 65504.0, torch.inf], dtype=torch.float16), "d": torch.tensor(True)}
    save_file(tensors, tmp_path / "mixed.safetensors")
    found = open_tensors(tmp_path / "mixed.safetensors")
    for name in "abc":
        np.testing.assert_array_equal(found[name].read(), tensors[name].float().numpy())
    assert found["d"].dtype == "BOOL" and found["d"].shape == ()
    with pytest.raises(ValueError, match="d is stored as BOOL; weights can be read from F32, F16, BF16, F64"):
        found["d"].read()


@pytest.mark.parametrize("pad", range(4))
def test_numbers_across_word_borders_can_be_used(pad, tmp_path):
    """Old writers did not pad the header, and BLAS wants numbers at addresses that are multiples of their size."""
    expected = np.arange(6, dtype=np.float32).reshape(2, 3)
    header = json.dumps({"a": entry((2, 3), (0, 24))}) + " " * pad
    (tmp_path / "a.safetensors").write_bytes(join(header, expected.tobytes()))
    array = open_tensors(tmp_path / "a.safetensors")["a"].read()
    np.testing.assert_array_equal(array, expected)
    assert array.flags.aligned


DAMAGED = {
    "empty": (b"", "its header should be 0 bytes long, and the file has 0"),
    "five bytes": (b"12345", "its header should be 5 bytes long"),
    "a length beyond the file": (join("{}", length=3), r"should be 3 bytes long, and the file has 10"),
    "an absurd length": (join("{}", length=2**63), "should be 9223372036854775808 bytes long"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a pointer of git-lfs.*git lfs pull"),
    "no JSON": (join("{"), "its header is no JSON object"),
    "no UTF-8": (join(b"\xff\xff"), "its header is no JSON object"),
    "a list": (join("[]"), "its header is no JSON object"),
    "deep": (join("[" * 200_000), "its header is no JSON object"),
    "a name twice": (join('{"a": 1, "a": 2}'), "a name occurs twice"),
    "no entry": (join({"a": 1}), "of a, its header should give dtype, shape and data_offsets, and gives 1"),
    "a negative size": (join({"a": entry((-2,))}, b"12345678"), "of a, its header should"),
    "a size that is true": (join({"a": entry((True,), (0, 4))}, b"1234"), "of a, its header should"),
    "a broken size": (join({"a": entry((2.0,))}, b"12345678"), "of a, its header should"),
    "sizes beyond all bounds": (join({"a": entry((2**62,) * 60)}, b"12345678"), "a, F32 of shape"),
    "too many sizes": (join({"a": entry((1,) * 5000, (0, 4))}, b"1234"), "of a, its header should"),
    "three offsets": (join({"a": entry(offsets=(0, 4, 8))}, b"12345678"), "of a, its header should"),
    "unknown dtype": (join({"a": entry(dtype="F31")}, b"12345678"), "a has the dtype 'F31', which is none of BOOL"),
    "too few bytes": (join({"a": entry((3,))}, b"12345678"), r"a, F32 of shape \(3,\), takes 12 bytes, .* 0 to 8"),
    "backwards": (join({"a": entry(offsets=(8, 0))}, b"12345678"), "a, F32 of shape"),
    "an overlap": (join({"a": entry(), "b": entry(offsets=(4, 12))}, b"123456781234"), "b begins at byte 4 .* at 8"),
    "a gap": (join({"a": entry(), "b": entry(offsets=(9, 17))}, b"1" * 17), "b begins at byte 9 .* ends at 8"),
    "cut off": (join({"a": entry()}, b"1234567"), "its tensors take 8 bytes, and 7 are there; .*cut off"),
    "too long": (join({"a": entry()}, b"123456789"), "its tensors take 8 bytes, and 9 are there"),
}


@pytest.mark.parametrize("content, message", DAMAGED.values(), ids=DAMAGED)
def test_damaged_files_are_refused_before_they_cost_anything(content, message, tmp_path):
    (tmp_path / "spoilt.safetensors").write_bytes(content)
    tracemalloc.start()
    with pytest.raises(ValueError, match=message) as error:
        open_tensors(tmp_path / "spoilt.safetensors")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(tmp_path / "spoilt.safetensors") in str(error.value) and peak < 10_000_000


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory):
    return tmp_path_factory.mktemp("spoilt") / "spoilt.safetensors"


@given(data=st.data())
def test_whatever_happens_to_a_header_it_is_read_or_refused(spoilt, data):
    """Bytes changed anywhere in a sound header, or the file cut: a ValueError, or the tensors it then describes."""
    content = bytearray(join({"a": entry(), "b": entry((1, 3), (8, 14), "BF16")}, bytes(14)))
    for position in data.draw(st.lists(st.integers(0, len(content) - 15), max_size=3)):
        content[position] = data.draw(st.integers(0, 255))
    spoilt.unlink(missing_ok=True)
    spoilt.write_bytes(content[:data.draw(st.integers(0, len(content)) | st.just(len(content)))])
    try:
        for tensor in open_tensors(spoilt).values():
            assert tensor.dtype not in ("F32", "F16", "BF16", "F64") or tensor.read().dtype == np.float32
    except ValueError as error:
        assert str(spoilt) in str(error)
