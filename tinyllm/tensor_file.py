"""Reading safetensors files, the format in which models are published: numbers under names, and nothing that runs.

    bytes 0 to 7        n, the length of the header, as a little-endian integer
    n bytes             the header, JSON: {"wte.weight": {"dtype": "F32", "shape": [50257, 768],
                                                          "data_offsets": [0, 154389504]}, ...}
    the rest            the numbers of all tensors, row by row; data_offsets count from here

Nothing in a file is believed before it is checked: a header that promises more than the file holds is refused before
any memory is asked for. Then the file is mapped: its bytes get addresses, and the system fetches a page of them when it
is first looked at. A float32 tensor is a view of that map, so that "loading" costs nothing, and only what is used is
read. The map is copy-on-write (mode "c"): who writes into such an array gets a private copy of the page, and the file
stays as it is. (The file must stay, too: replace it by another one, but do not write into it while a model uses it.)
Tensors of 16 bits have to be widened; they are read one by one instead, as a map would keep both versions in memory.
NumPy has no bfloat16, but needs none: it is the upper half of a float32.

Source: the format's description at https://huggingface.co/docs/safetensors.
"""
import json
import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

MAX_HEADER = 20_000_000         # bytes, enough for 100,000 tensors; as Python objects they are 20 times as many
SIZES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
         "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8}                    # bytes per number
FLOATS = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8"}                      # those that weights come in


@dataclass(eq=False)
class StoredTensor:
    """A tensor in a file: what the header says of it, and where its numbers are."""

    path: Path
    name: str
    dtype: str                  # as the format calls it, such as "F32"
    shape: tuple
    offset: int                 # of its first byte, in the file
    size: int                   # bytes
    map: np.ndarray             # the whole file, as bytes

    def read(self):
        """The numbers as float32, of this shape: for F32 a view of the map, for other floats a widened copy.

        Old files, such as that of GPT-2, do not pad the header, so that numbers lie across word borders, where BLAS
        cannot use them: these are read into memory of their own, past the map, which would stay in memory besides.

        ValueError if the tensor holds no floating-point numbers.
        """
        if self.dtype not in FLOATS:
            raise ValueError(f"{self.path}: {self.name} is stored as {self.dtype}; weights can be read from "
                             f"{', '.join(FLOATS)}, so convert the model to one of them first")
        stored = np.dtype(FLOATS[self.dtype])
        if self.dtype == "F32" and self.offset % stored.itemsize == 0:
            array = self.map[self.offset:self.offset + self.size].view(stored)
        else:
            array = np.fromfile(self.path, stored, self.size // stored.itemsize, offset=self.offset)
        if self.dtype == "BF16":
            array = array.astype("<u4")
            array <<= 16                                                    # the lower half of each number is zero
            array = array.view("<f4")
        return array.astype(np.float32, copy=False).reshape(self.shape)


def open_tensors(path):
    """All tensors of a safetensors file: name -> StoredTensor. ValueError says what is wrong with a damaged one."""
    path = Path(path)
    header, start, data_size = _read_header(path)
    entries = {name: _checked_entry(path, name, entry) for name, entry in header.items() if name != "__metadata__"}
    _check_offsets(path, entries, data_size)
    whole = np.asarray(np.memmap(path, np.uint8, mode="c"))
    return {name: StoredTensor(path, name, dtype, shape, start + begin, end - begin, whole)
            for name, (dtype, shape, begin, end) in entries.items()}


def _read_header(path):
    """(header as a dictionary, where the data begins, how many bytes of data there are)"""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        first = file.read(8)
        if first == b"version ":
            raise ValueError(f"{path} is a pointer of git-lfs and not the file itself; fetch that with `git lfs pull`")
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else size
        if length > size - 8 or length > MAX_HEADER:
            raise ValueError(f"{path} is damaged or no safetensors file: its header should be {length} bytes long, and "
                             f"the file has {size} (a header has at most {MAX_HEADER}); download it again")
        text = file.read(length)
    return json_object(text, f"{path} is damaged or no safetensors file: its header"), 8 + length, size - 8 - length


def json_object(text, what):
    """Bytes of JSON as a dictionary; ValueError, which begins with `what`, if they are none."""
    try:
        found = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
        if isinstance(found, dict):
            return found
        problem = "it is a list or a single value"
    except (ValueError, RecursionError) as error:
        problem = str(error)
    raise ValueError(f"{what} is no JSON object ({problem}); download it again")


def _unique(pairs):
    """A JSON object as a dictionary; ValueError if a name occurs twice, as only one of the two would be seen."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _checked_entry(path, name, entry):
    """(dtype, shape, begin, end) of a tensor, if its entry in the header agrees with itself."""
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        sound = len(shape) <= 64 and all(type(n) is int and 0 <= n < 2**63 for n in (*shape, begin, end))
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise ValueError(f"{path} is damaged: of {name}, its header should give dtype, shape and data_offsets, and "
                         f"gives {str(entry)[:200]}; download it again")
    if not isinstance(dtype, str) or dtype not in SIZES:
        raise ValueError(f"{path}: {name} has the dtype {str(dtype)[:50]!r}, which is none of {', '.join(SIZES)}; "
                         "convert the model to float32 or bfloat16 first")
    if math.prod(shape) * SIZES[dtype] != end - begin:
        raise ValueError(f"{path} is damaged: {name}, {dtype} of shape {shape}, takes {math.prod(shape) * SIZES[dtype]}"
                         f" bytes, and its data_offsets {begin} to {end} leave it {end - begin}; download it again")
    return dtype, shape, begin, end


def _check_offsets(path, entries, data_size):
    """The tensors must lie one behind the other, and fill the file: no gap, no overlap, nothing beyond the end."""
    position = 0
    for name, (_, _, begin, end) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if begin != position:
            raise ValueError(f"{path} is damaged: {name} begins at byte {begin} of the data, and the tensor before it "
                             f"ends at {position}; download it again")
        position = end
    if position != data_size:
        raise ValueError(f"{path} is damaged: its tensors take {position} bytes, and {data_size} are there; it was "
                         "probably cut off, so download it again")
