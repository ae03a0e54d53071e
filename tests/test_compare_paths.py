"""examples/6_compare_paths.py says that the paths agree where they do, and else which number is the first to differ."""
import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import tinyllm
from tinyllm import Tensor, checkpoint, nn, optim
from tinyllm import functional as F

SCRIPT = Path(__file__).parents[1] / "examples/6_compare_paths.py"
compare = importlib.import_module("6_compare_paths")        # an import statement cannot spell this name
GPU = Path("/dev/nvidia0").exists()
QUICK = ["--batch-size", "2", "--length", "3", "--steps", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run's folder with the smallest GPT that uses all of its operations, dropout included."""
    tinyllm.manual_seed(0)
    model = tinyllm.GPT(tinyllm.GPTConfig(vocab_size=11, n_positions=6, n_embd=8, n_layer=1, n_head=2))
    folder = tmp_path_factory.mktemp("run")
    checkpoint.save(folder / "checkpoint-000001", model, optim.AdamW(model.parameters(), 1e-3), {"step": 1})
    return str(folder)


@pytest.fixture
def kernels():
    pytest.importorskip("torch", reason="the Triton path needs torch")
    pytest.importorskip("triton", reason="the Triton path needs triton, which exists for Linux only")
    return importlib.import_module("tinyllm.kernels")


def operations_on_the_tape(loss):
    """The names of all nodes that a loss came from."""
    names, waiting = set(), [loss.node]
    while waiting:
        node = waiting.pop()
        names.add(node.name)
        waiting += [x.node for x in node.inputs if isinstance(x, Tensor) and x.node]
    return names


def rows(out):
    """{result: (uses, Triton's error, NumPy's)} of the printed table of operations."""
    lines = out.partition("NumPy\n")[2].partition("\n\n")[0].splitlines()
    return {line[:34].strip(): tuple(map(float, line[34:].split()[:3])) for line in lines}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_table_lists_every_operation_on_the_tape_and_the_paths_agree(dtype, folder, kernels, tmp_path, capsys):
    given = ["--checkpoint", folder, *QUICK, "--dtype", dtype, "--out", str(tmp_path / "new")]
    assert compare.main(given) == 0
    out = capsys.readouterr().out
    table, args = rows(out), compare.arguments(given)
    model = compare.make_model(args)
    assert {name.split()[0] for name in table} == operations_on_the_tape(model.loss(*compare.batch(model, args, 0)))
    assert {"mlp out", "mlp dweight2", "add_layer_norm out[1]", "self_attention dqkv", "dropout dx"} < set(table)
    assert "embedding dweight" in table and "embedding dids" not in table       # integers have no gradient
    assert table["linear out"][0] == 2 and table["mlp dx"][0] == 1              # how often
    half_a_unit = {"float32": 2**-24, "bfloat16": 2**-8}[dtype]
    for result in ("mlp out", "mlp dx", "layer_norm dx", "self_attention dqkv"):
        assert half_a_unit / 8 < table[result][1] < 4 * half_a_unit
        assert 2**-27 < table[result][2] < 2**-22
    assert "The paths agree" in out and (tmp_path / "new/compare_paths.png").stat().st_size > 10_000


def test_a_broken_gradient_is_named_and_the_exit_code_is_1(folder, kernels, monkeypatch, tmp_path, capsys):
    real = kernels.mlp_backward

    def broken(dout, saved):
        dx, dweight1, *rest = real(dout, saved=saved)
        return dx, dweight1 * 1.01, *rest

    monkeypatch.setattr(kernels, "mlp_backward", broken)
    assert compare.main(["--checkpoint", folder, *QUICK, "--out", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    flagged = [line[:34].strip() for line in out.splitlines() if "<- rounding explains no more than" in line]
    assert flagged == ["mlp dweight1"] and 0.0099 < rows(out)["mlp dweight1"][1] < 0.0101
    assert "Operations that disagree: mlp dweight1." in out
    assert "First disagreement in training: step 0, h.0.mlp.c_fc.weight: off by " in out
    assert out.endswith("The paths disagree.\n")


@pytest.mark.parametrize("use", [0, 1])
def test_the_table_shows_the_worst_of_all_uses(use, folder, kernels, monkeypatch):
    real, factors = kernels.linear_forward, iter([1.01, 1.0] if use == 0 else [1.0, 1.01])

    def broken(*arrays, **options):
        out, saved = real(*arrays, **options)
        return out * next(factors), saved

    monkeypatch.setattr(kernels, "linear_forward", broken)
    table = compare.compare_operations(compare.arguments(["--checkpoint", folder, *QUICK]))
    assert [name for name, e in table.items() if e.wrong] == ["linear out"]
    assert 0.0099 < table["linear out"].triton < 0.0101


def test_a_broken_optimizer_shows_in_the_step_after(folder, kernels, monkeypatch):
    """The gradients of step 0 agree, those of step 1 belong to other weights; and only once is enough."""
    real = kernels.adamw_step
    monkeypatch.setattr(kernels, "adamw_step", lambda p, grad, *rest, **options: real(p, grad * 0, *rest, **options))
    args = compare.arguments(["--checkpoint", folder, *QUICK, "--steps", "2"])
    first, second = compare.compare_training(args)
    assert not any(e.wrong for e in first) and any(e.wrong for e in second)
    names = list(tinyllm.GPT(tinyllm.GPTConfig(11, 6, 8, 1, 2)).state_dict())
    assert [e.name for e in first] == ["loss", *reversed(names)]


class Strange(nn.Module):
    """Operations that a GPT does not use: several outputs, any number of inputs, -inf, a cast, an unused output."""

    config = SimpleNamespace(vocab_size=5)

    def __init__(self):
        self.table, self.key_bias = nn.normal(5, 4, std=1.0), nn.full(4, 0.1)

    def loss(self, ids, targets):
        x = F.embedding(ids, self.table)                                            # (B, T, 4)
        a, b, _ = F.split(x, [1, 2, 1], axis=2)
        x = F.concatenate([b, a, a.tanh()], axis=2) @ self.table.T                  # (B, T, 5)
        x = F.where(np.arange(5) > 3, -np.inf, x * np.arange(5))                    # integers are cast
        y = F.softmax(x) @ self.table + F.embedding(ids, self.table)                # (B, T, 4)
        z = F.attention(*(a.reshape(*a.shape[:2], 1, 4) for a in (y, y + self.key_bias, y)), causal=True)
        return F.cross_entropy(z.reshape(*y.shape) @ self.table.T, targets)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_operations_of_a_new_model_appear_by_themselves(dtype, kernels, monkeypatch, capsys):
    def make_model(args):
        tinyllm.manual_seed(args.seed)
        return Strange()

    monkeypatch.setattr(compare, "make_model", make_model)
    args = compare.arguments([*QUICK, "--dtype", dtype])
    table = compare.compare_operations(args)
    loss = make_model(args).loss(*compare.batch(Strange, args, 0))
    assert {name.split()[0] for name in table} >= operations_on_the_tape(loss) | {"cast"}
    assert {"split out", "split out[2]", "concatenate darrays", "concatenate darrays[2]", "where da"} <= set(table)
    assert not any(e.wrong for e in table.values())
    assert compare.backend.operation.__module__ == "tinyllm.backend"            # as it was


def test_dropout_reaches_every_part_of_a_model(folder):
    for given in (["--checkpoint", folder], ["--preset", "nano", "--length", "9"]):
        model = compare.make_model(compare.arguments([*QUICK, *given, "--dropout", "0.25"]))
        assert (model.drop.p, model.h[0].attn.dropout, model.h[0].drop.p) == (0.25, 0.25, 0.25)
    assert compare.make_model(compare.arguments(["--preset", "nano"])).h[0].drop.p == 0     # the preset's own


def judged(triton, exact, plain, **options):
    return compare.judge(2**-19, *({"x": np.array(a)} for a in (triton, exact, plain)), **options)[0]


def test_the_rule():
    """3 x NumPy's error + the slack x the largest entry; everything is relative to that entry."""
    assert judged([8.0, 4.0], [8.0, 4.0], [8.0, 4.0]) == (False, 0, 0, 2**-19, "x")
    assert judged([8.0, 4.0 + 2**-6], [8.0, 4.0], [8.0, 4.0]).wrong
    assert judged([8.0, 4.0 + 2**-6], [8.0, 4.0], [8.0, 4.0 + 2**-7])[:3] == (False, 2**-9, 2**-10)
    assert judged([8.0, np.nan], [8.0, 4.0], [8.0, 4.0]).wrong
    assert judged([-np.inf, 4.0], [-np.inf, 4.0], [-np.inf, 4.0]) == (False, 0, 0, 2**-19, "x")
    assert judged([1e-30], [0.0], [0.0]).wrong and not judged([0.0], [0.0], [0.0]).wrong


def test_a_missing_gradient_is_a_zero_one():
    for found in ({}, {"x": np.zeros(2)}):
        (error,) = compare.judge(2**-19, found, {"x": np.ones(2)}, {"x": np.ones(2)})
        assert error.wrong and error.triton == 1
    (error,) = compare.judge(2**-19, {"x": np.ones(2)}, {}, {})
    assert error.wrong


def test_gradients_are_judged_together():
    """Beside large ones a small one may be off as they may: by their largest error and entry."""
    exact, off = {"a": np.array([64.0]), "b": np.array([1.0])}, {"a": np.array([64.0 + 2**-10]), "b": np.array([1.0])}
    near = {"a": np.array([64.0]), "b": np.array([1 + 2**-9])}
    assert [e.wrong for e in compare.judge(2**-19, near, exact, off)] == [False, True]
    assert [e.wrong for e in compare.judge(2**-19, near, exact, off, together=True)] == [False, False]
    near["b"] += 2**-9
    assert [e.wrong for e in compare.judge(2**-19, near, exact, off, together=True)] == [False, True]


@pytest.mark.parametrize("given, message", [
    (["--batch-size", "0"], "--batch-size is 0; it should be at least 1"),
    (["--length", "-3"], "--length is -3; it should be at least 1"),
    (["--steps", "0"], "--steps is 0; it should be at least 1"),
    (["--seed", "-1"], "--seed is -1; it should be at least 0"),
    (["--dropout", "1"], "--dropout is 1.0; it should be a probability, from 0 to below 1"),
    (["--dropout", "nan"], "--dropout is nan; it should be a probability, from 0 to below 1"),
    (["--preset", "nano", "--length", "17"], "--length is 17, but the model sees at most 16 tokens; give fewer"),
    (["--checkpoint", "nowhere"], "nowhere is not a tinyllm checkpoint: it has no state.json"),
])
def test_wrong_arguments_are_refused_in_one_sentence(given, message, kernels):
    with pytest.raises(ValueError) as error:
        compare.main(given)
    assert str(error.value) == message


@pytest.mark.parametrize("table, history, code, first", [
    (0, [[0, 0], [0, 0]], 0, "none"), (1, [[0, 0], [0, 0]], 1, "none"), (0, [[1, 0], [0, 1]], 1, "step 0, loss: off"),
    (0, [[0, 0], [0, 1]], 1, "step 1, x: off"), (1, [[0, 1], [1, 1]], 1, "step 0, x: off")])
def test_the_conclusion_and_no_picture_without_matplotlib(table, history, code, first, kernels, monkeypatch, capsys,
                                                          tmp_path):
    error = lambda wrong, name: compare.Error(bool(wrong), 1e-7, 1e-7, 2e-6, name)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(compare, "compare_operations", lambda args: {"mlp out": error(table, "mlp out")})
    history = [[error(loss, "loss"), error(x, "x")] for loss, x in history]
    monkeypatch.setattr(compare, "compare_training", lambda args: history)
    assert compare.main(["--preset", "nano", "--out", str(tmp_path)]) == code
    out = capsys.readouterr().out
    assert out.startswith("The kernels run " + ("on the GPU, cuda" if GPU else "in Triton's interpreter, on the CPU"))
    assert "For the picture, install matplotlib" in out and not list(tmp_path.iterdir())
    assert f"Operations that disagree: {'mlp out' if table else 'none'}." in out
    assert f"First disagreement in training: {first}" in out and ("The paths agree" in out) == (code == 0)


def run(code, *given):
    """A process of its own in which nobody has set TRITON_INTERPRET."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run([sys.executable, "-c", code, *given], capture_output=True, encoding="utf-8", env=environment,
                          check=False)


START = (f"import runpy, sys; sys.argv[0] = {str(SCRIPT)!r}; sys.path.insert(0, {str(SCRIPT.parent)!r}); "
         "runpy.run_path(sys.argv[0], run_name='__main__')")      # as `python SCRIPT` does it


def test_the_script_sets_the_interpreter_itself(kernels):
    """The kernels are asked for a first array, which needs a GPU or the interpreter, before the checkpoint is read."""
    done = run(START, "--checkpoint", "nowhere")
    assert done.returncode == 1
    assert done.stderr == "error: nowhere is not a tinyllm checkpoint: it has no state.json\n"


@pytest.mark.parametrize("module", ["torch", "triton"])
def test_what_is_missing_is_said_in_one_sentence(module):
    done = run(f"import sys; sys.modules[{module!r}] = None\n{START}")
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: the triton backend needs torch and triton, which this Python lacks")
