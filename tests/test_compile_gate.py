"""Every kernel compiles for real GPUs, as GPT-2 would launch it, and fits them.

No GPU is needed: the compiler is enough.

It runs in a process of its own, because in this one Triton may be in its interpreter's mode.
"""

import os
import re
import subprocess
import sys
import tempfile

import pytest

torch = pytest.importorskip("torch", reason="the kernels' arrays are torch tensors: pip install tinyllm[triton]")
triton = pytest.importorskip("triton", reason="Triton exists for Linux only: pip install tinyllm[triton]")

from tinyllm import kernels  # noqa: E402
from tinyllm.kernels import runtime  # noqa: E402

SHARED_BYTES = 99 * 1024  # what a block may use on sm_86 and sm_89, the least of the cards we name
STACK_BYTES = 64  # a spilled address or two; a tile that does not fit its registers spills hundreds


@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile(capability):
    result = subprocess.run(
        [sys.executable, "-c", f"import test_compile_gate; test_compile_gate.compile_all({capability})"], text=True,
        cwd=os.path.dirname(__file__), env={**os.environ, "TRITON_INTERPRET": "0"}, capture_output=True)
    print(result.stdout)
    assert result.returncode == 0, result.stdout + result.stderr


def compile_all(capability):
    """Compile each kernel once, as GPT-2 124M's training step would launch it, and read what it uses of the GPU."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    wrong = []
    target = GPUTarget("cuda", capability, 32)
    for function, source, options in gpt2_launches():
        kernel = triton.compile(ASTSource(function, **source), target=target, options=options)
        registers, stack = resources(kernel)
        line = (f"{function.__name__:26s} sm_{capability} {registers:3d} registers {stack:4d} B stack "
                f"{kernel.metadata.shared:6d} B shared")
        print(line)
        if stack > STACK_BYTES or kernel.metadata.shared > SHARED_BYTES:
            wrong.append(line)
    assert not wrong, "too much:\n" + "\n".join(wrong)


def resources(kernel):
    """Registers a thread, bytes of stack a thread: ptxas spills there what the registers do not hold."""
    tool = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin", "cuobjdump")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        text = subprocess.run([tool, "--dump-resource-usage", file.name], text=True, capture_output=True).stdout
    return [int(re.search(rf"{name}:(\d+)", text)[1]) for name in ("REG", "STACK")]


def gpt2_launches():
    """Run the host code on tensors without memory; each kernel's first launch -> (function, source, options)."""
    launches = {}

    def note(function, *args, grid, warmup, **kwargs):
        own = {name: kwargs.pop(name) for name in function.arg_names if name in kwargs}
        arguments = {**dict(zip(function.arg_names, args)), **own}
        launches.setdefault(function.__name__, (function, as_compiled(function, arguments), kwargs))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton.JITFunction, "run", note)
        patch.setattr(runtime, "device", lambda: torch.device("meta"))
        gpt2_step()
    return launches.values()


def as_compiled(function, arguments):
    """Types and constants as a launch derives them: None and 1 become constants, divisibility by 16 a hint."""
    signature, constexprs, attrs = {}, {}, {}
    for i, (name, value) in enumerate(arguments.items()):
        if function.params[i].is_constexpr or value is None or (type(value) is int and value == 1):
            signature[name], constexprs[name] = "constexpr", value
        elif torch.is_tensor(value):
            signature[name] = {torch.float32: "*fp32", torch.int64: "*i64"}[value.dtype]
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
        if signature[name][0] == "*" or (signature[name] == "i32" and value % 16 == 0):
            attrs[i,] = [["tt.divisibility", 16]]
    return {"signature": signature, "constexprs": constexprs, "attrs": attrs}


def gpt2_step(B=32, T=1024, C=768, V=50257):
    """Every op once, forward and backward, at the sizes of GPT-2 124M, with every optional argument."""
    def new(*shape, dtype=torch.float32):
        return runtime.empty(shape, dtype)

    x, bias, ids, limits = new(B, T, C), new(C), new(B * T, dtype=torch.int64), new(B, dtype=torch.int64)
    calls = [
        ("add", x, new(T, C), {}), ("embedding", ids, new(V, C), {}), ("linear_gelu", x, new(4 * C, C), new(4 * C), {}),
        ("layer_norm", x, bias, bias, {}), ("add_layer_norm", x, x, bias, bias, {}),
        ("self_attention", new(B, T, 3 * C), limits, limits, None, {"n_head": 12}),
        ("linear_cross_entropy", x.view(B * T, C), new(V, C), ids, {}),
    ]
    for op, *arrays, options in calls:
        outs, saved = getattr(kernels, op + "_forward")(*arrays, **options)
        getattr(kernels, op + "_backward")(*(outs if isinstance(outs, tuple) else (outs,)), saved)
    kernels.unbroadcast(x, (T, C))
    flat = new(124_439_808)
    kernels.adamw_step(flat, flat, flat, flat, new(2), kernels.grad_norm(flat), beta1=0.9, beta2=0.95, eps=1e-8,
                       weight_decay=0.1, max_norm=1.0)
