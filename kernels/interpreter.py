"""Triton's interpreter, made to tell the truth.

With TRITON_INTERPRET=1 Triton runs a kernel as ordinary Python on NumPy arrays: `print` shows a block, a debugger stops
inside. What it computes differs from a GPU in some ways that would mislead a reader; importing this package mends them:

1. bfloat16. NumPy has no such type, so the interpreter keeps the 16 bits as integers, and multiplies, compares and adds
   up integers. Here such blocks become float32, are computed with, and are rounded back to the nearest (ties to even).
2. Loads under a mask and without `other=`. What the mask leaves out is undefined on a GPU; the interpreter makes it 0,
   so a kernel that relies on it works here alone. Here it is NaN (for integers a large negative number).
3. Adding a tile to memory by its descriptor (desc.atomic_add) is missing.
4. `for k in range(0, K, BLOCK)` with K known at run time fails in Triton 3.6 with NumPy 2.4 or newer; and a comparison
   of two floats that are no blocks counts as a float afterwards, which `&` refuses.

What it still hides: programs run one after another, so a race between two of them never shows; registers and shared
memory have no end; exp and division are exact; float32 products ignore `input_precision`. And atomic additions in
bfloat16 do not exist: the kernels add up in float32.

It reaches into Triton's private classes. tests/test_interpreter.py says whether it still holds for the one installed.
"""

import inspect

import numpy as np
import triton
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, ReduceOps, ScanOps, TensorHandle


def widen(bits):
    """bfloat16 as uint16 -> float32: a bfloat16 is the upper half of a float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrow(values):
    """float32 -> bfloat16 as uint16, to the nearest, ties to even; NaN stays NaN.

    Adding 0x7FFF to the lower half carries into the upper one where the lower is above its middle; at the middle
    exactly, the last bit of the upper half (odd?) decides.
    """
    values = np.ascontiguousarray(values, dtype=np.float32)
    bits = values.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def is_bfloat16(handle):
    """Whether this is a block, or a scalar, of bfloat16."""
    return isinstance(handle, TensorHandle) and handle.dtype.scalar == tl.bfloat16


def _wide(handle):
    return TensorHandle(widen(handle.data), tl.float32) if is_bfloat16(handle) else handle


def _in_float32(method, decides):
    """A method of the interpreter that computes; its argument number `decides` tells the result's type."""
    def computed(self, *args):
        out = method(self, *map(_wide, args))
        if out.data.dtype == bool:
            return TensorHandle(out.data, tl.int1)
        return TensorHandle(narrow(out.data), tl.bfloat16) if is_bfloat16(args[decides]) else out
    return computed


def _cast(method):
    """A conversion from or to bfloat16, by way of float32."""
    def cast(self, source, target, *rounding_mode):
        if target.scalar == tl.bfloat16 and source.dtype.scalar != tl.bfloat16:
            return TensorHandle(narrow(source.data), tl.bfloat16)
        if is_bfloat16(source) and target.scalar not in (tl.bfloat16, tl.float32):
            return method(self, _wide(source), target, *rounding_mode)
        return _wide(source) if target.scalar == tl.float32 and is_bfloat16(source) else \
            method(self, source, target, *rounding_mode)
    return cast


def _retyped(block, data, dtype):
    """A block, or a scalar, of the same shape with other contents."""
    return tl.tensor(TensorHandle(data, dtype), tl.block_type(dtype, block.shape) if block.type.is_block() else dtype)


def _reduce_in_float32(method):
    """A reduction or scan: over bfloat16 blocks it runs in float32, and its results are rounded once."""
    def reduced(self, blocks):
        if not any(is_bfloat16(block.handle) for block in blocks):
            return method(self, blocks)
        results = method(self, tuple(_retyped(b, widen(b.handle.data), tl.float32) if is_bfloat16(b.handle) else b
                                     for b in blocks))
        results = results if isinstance(results, (tuple, list)) else (results,)
        return [_retyped(r, narrow(r.handle.data), tl.bfloat16) if r.dtype == tl.float32 else r for r in results]
    return reduced


def _undefined(handle, dtype):
    """What a masked load without `other` returns where the mask is off."""
    if dtype == tl.bfloat16:
        return TensorHandle(np.full_like(handle.data, 0x7FC0, dtype=np.uint16), dtype)
    numpy_dtype = interpreter._get_np_dtype(dtype)
    lowest = np.nan if numpy_dtype.kind == "f" else np.iinfo(numpy_dtype).min // 2 if numpy_dtype.kind == "i" else 0
    return TensorHandle(np.full_like(handle.data, lowest, dtype=numpy_dtype), dtype)


def _masked_load(method):
    def load(self, pointers, mask, other, *hints, **more_hints):
        other = _undefined(pointers, pointers.get_element_ty()) if other is None else other
        return method(self, pointers, mask, other, *hints, **more_hints)
    return load


def _descriptor_reduce(self, kind, descriptor, value, offsets):
    """descriptor.atomic_add: the tile's part that does not hang over, added to what is there."""
    if "ADD" not in str(kind).upper():
        raise NotImplementedError(f"the interpreter's descriptors can add to memory only, not {kind}")
    pointers, inside = descriptor.materialize_pointers(offsets)
    zeros = TensorHandle(np.zeros_like(value.data), value.dtype)
    before = self.create_masked_load(pointers, inside, zeros, None, None, False)
    return self.create_masked_store(pointers, TensorHandle(before.data + value.data, value.dtype), inside, None, None)


def mend():
    """Change Triton's interpreter, for the whole process."""
    for name, decides in dict(binary_op=0, unary_op=0, ternary_op=2, create_fma=2, create_dot=2, create_erf=0,
                              create_rsqrt=0).items():
        setattr(InterpreterBuilder, name, _in_float32(getattr(InterpreterBuilder, name), decides))
    for name in ("cast_impl", "create_fp_to_fp"):
        setattr(InterpreterBuilder, name, _cast(getattr(InterpreterBuilder, name)))
    InterpreterBuilder.get_bf16 = lambda self, value: TensorHandle(narrow(np.array([value], np.float32)), tl.bfloat16)
    InterpreterBuilder.create_masked_load = _masked_load(InterpreterBuilder.create_masked_load)
    InterpreterBuilder.create_descriptor_reduce = _descriptor_reduce
    for operations in (ReduceOps, ScanOps):
        operations.apply_impl = _reduce_in_float32(operations.apply_impl)
    if triton.__version__.startswith("3.6."):
        _loop_over_run_time_bounds()
    _prepare_once()


def _loop_over_run_time_bounds():
    """A scalar is an array of one element here, which int() of NumPy >= 2.4 refuses; .item() does not.

    The interpreter renews the methods of tl.tensor at each launch, so the cure must follow it there.
    """
    renew = interpreter._patch_lang_tensor

    def renew_and_cure(tensor, scope):
        renew(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda scalar: scalar.handle.data.item())

    interpreter._patch_lang_tensor = renew_and_cure


def _prepare_once():
    """Before a kernel runs, and before each helper that it calls, the interpreter replaces the functions of the modules
    tl and tl.core by its own. The second time there is nothing left to replace, and looking for it takes a fifth of the
    time.
    """
    prepare, prepared = interpreter._patch_lang, set()

    def prepare_what_is_not(function):
        modules = filter(inspect.ismodule, function.__globals__.values())
        seen = frozenset(module for module in modules if module in (tl, tl.core))
        if seen in prepared:
            return None                     # a helper; only the kernel's own scope is asked to restore anything
        scope, is_kernel = prepare(function), not prepared
        prepared.add(seen)
        if is_kernel:
            restore = scope.restore
            scope.restore = lambda: (prepared.clear(), restore())
        return scope

    interpreter._patch_lang = prepare_what_is_not
