"""The benchmark's whole models: what they are compared with computes the same, and what does not agree is found."""
import json

import pytest

torch = pytest.importorskip("torch", reason="the benchmark compares with torch")
pytest.importorskip("triton", reason="the Triton path needs triton, which exists for Linux only")

import benchmark_curves  # noqa: E402
import benchmark_decode  # noqa: E402
import benchmark_gpu  # noqa: E402
import benchmark_jobs  # noqa: E402
import benchmark_report  # noqa: E402
import benchmark_rows  # noqa: E402
import benchmark_step  # noqa: E402
import benchmark_twins  # noqa: E402
import numpy as np  # noqa: E402
from torch.nn.attention import SDPBackend  # noqa: E402

import tinyllm  # noqa: E402


def sizes(dtype=torch.bfloat16, **changes):
    return benchmark_rows.Sizes(dtype, benchmark_gpu.runtime.device(), **{**benchmark_gpu.TINY, **changes})


def small_gpt():
    return tinyllm.GPT(tinyllm.GPTConfig.preset("tiny", **benchmark_gpu.SMALL))


# What a model is compared with

def test_an_even_vocabulary_changes_no_loss_and_no_gradient():
    """67 tokens, 128 rows: against torch_twin.py's GPT, which has 67."""
    model = small_gpt()
    odd = benchmark_twins.load(benchmark_twins.TorchGPT(model.config), model.state_dict())
    even = benchmark_twins.load(benchmark_twins.GPT(model.config), model.state_dict())
    assert even.wte.weight.shape == (128, 32) and odd.wte.weight.shape == (67, 32)
    ids, targets = torch.randint(67, (2, 3, 8))
    losses = [twin.loss(ids, targets) for twin in (odd, even)]
    torch.testing.assert_close(*losses)
    odd_gradient, even_gradient = (torch.autograd.grad(loss, twin.wte.weight)[0]
                                   for loss, twin in zip(losses, (odd, even)))
    torch.testing.assert_close(even_gradient[:67], odd_gradient)
    assert not even_gradient[67:].any()


def test_each_twin_is_compiled_with_its_own_kernel_for_attention():
    """torch.compile takes a graph again for another model of the same class, unless something tells them apart."""
    graphs, kernels = [], (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH)

    def keep(graph, inputs):
        graphs.append({str(node.target).split(".")[1] for node in graph.graph.nodes if "aten" in str(node.target)})
        return functorch.make_boxed_func(graph.forward)

    from torch._dynamo.backends.common import aot_autograd
    import functorch.compile as functorch
    for kernel in kernels:
        twin = benchmark_twins.GPT(small_gpt().config, sdpa=kernel)
        with torch.no_grad():
            loss = torch.compile(twin.loss, backend=aot_autograd(fw_compiler=keep), dynamic=False)
            loss(*torch.randint(67, (2, 3, 8)))
    benchmark_gpu.forget()
    assert len(graphs) == 2
    flash, plain = (any("flash" in name for name in graph) for graph in graphs)
    assert flash and not plain, graphs


def test_gpt_2_meets_both_kernels_for_attention():
    s = sizes(compiler="inductor")
    kernels = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
    assert list(benchmark_step.rivals(s, benchmark_twins.GPT, kernels=kernels)) == ["flash", "cudnn"]
    assert list(benchmark_step.rivals(s, benchmark_twins.GPT)) == ["compiled"]
    s = sizes(torch.float32, compiler="inductor")
    assert list(benchmark_step.rivals(s, benchmark_twins.GPT, kernels=kernels)) == ["compiled"]
    assert list(benchmark_step.rivals(sizes(), benchmark_twins.GPT, kernels=kernels)) == ["eager"]


# What does not agree

def test_a_step_that_learns_something_else_is_found(monkeypatch):
    """The loss before the first step agrees, that after it does not."""
    right = benchmark_step.train_ours
    monkeypatch.setattr(benchmark_step, "train_ours", lambda *args, **how: backwards(right(*args, **how)))

    def backwards(step):
        monkeypatch.setattr(benchmark_step, "LR", -benchmark_step.LR * 10)
        return step

    row = next(benchmark_rows.JOBS["training_step"](sizes(torch.float32)))
    error, allowed = benchmark_rows.agreement(row)
    assert error > allowed


def test_a_side_that_fails_does_not_hide_the_others(monkeypatch):
    def fails(s, model, **how):
        raise ValueError("no such side")
    model = small_gpt()
    batch = tuple(np.random.default_rng(0).integers(0, 67, (2, 2, 8)))
    s = sizes(warm=1)
    eager = benchmark_step.rivals(s, benchmark_twins.GPT)
    row = benchmark_step.step_row(s, "a step", model, [batch], 16, 1, {"flash": fails, **eager}, {"other": fails})
    figures = benchmark_gpu.measure(row, s, benchmark_rows.WallClock(), FLOORS, 1, True)
    assert figures["agrees"] and figures["torch"]["flash"] is None and figures["also"] == {"other": None}
    assert figures["reasons"] == {"flash": "ValueError: no such side", "other": "ValueError: no such side"}
    assert figures["ratio"] == figures["torch"]["eager"] / figures["microseconds"]
    row = benchmark_step.step_row(s, "a step", model, [batch], 16, 1, {"flash": fails})
    with pytest.raises(ValueError, match="no such side"):
        row.pairs()


FLOORS = {"copy_bytes_per_second": 1, "matrix_operations_per_second": {"bfloat16": 1, "float32": 1}}


def test_a_token_at_the_wrong_position_is_found(monkeypatch):
    right = benchmark_twins.StaticGPT.logits
    monkeypatch.setattr(benchmark_twins.StaticGPT, "logits",
                        lambda twin, ids, position: right(twin, ids, (position - 1).clamp_min(0)))
    row = next(benchmark_rows.JOBS["next_token"](sizes()))
    error, allowed = benchmark_rows.agreement(row)
    assert error > allowed


def test_a_number_that_is_zero_before_dropout_is_not_taken_for_dropped():
    s = sizes()
    new = s.new

    def with_zeros(*shape, **how):
        array = new(*shape, **how)
        array.view(-1)[::3] = 0
        return array
    s.new = with_zeros
    for row in benchmark_jobs.dropout(s):
        error, allowed = benchmark_rows.agreement(row)
        assert error <= allowed, row.name


# What is said of it

def row(job, name, agrees=True, **figures):
    return {"job": job, "name": name, "agrees": agrees, "microseconds": 1.0, "percent_of_floor": 50.0, "ratio": 1.5,
            "torch": {"compiled": 1.5}, **figures}


def test_the_headline_names_each_figure_once():
    step = row("training_step", "training step, gpt2", torch={"flash": 2.0, "cudnn": 1.5},
               tokens_per_second={"ours": 600e3, "flash": 1.0}, peak_memory_bytes={"ours": 8, "flash": 10, "cudnn": 16})
    tokens = [row("next_token", f"next token {B} {weights}", batch=B, weights=weights, ratio=B + 1.0,
                  tokens_per_second={"ours": 7.0 * B}) for B in (1, 64) for weights in ("bfloat16", "int8")]
    head = benchmark_report.headline([
        step, row("training_step", "small", tokens_per_second={"ours": 5}), *tokens, row("gelu", "gelu forward"),
        row("add", "add", agrees=False),
        row("bert_step", "BERT", agrees=False, tokens_per_second={"ours": 5})], {"tests_passed": 3})
    assert json.loads(json.dumps(head)) == {
        "step": "training step, gpt2", "step_ratio_vs_torch_compile": 1.5, "step_tokens_per_second": 600e3,
        "step_percent_of_floor": 50.0, "step_peak_memory_vs_torch_compile": 0.8,
        "decode_ratio_vs_compiled": 2.0, "decode_tokens_per_second": 7.0, "decode_percent_of_floor": 50.0,
        "decode_ratio_vs_compiled_int8": 2.0, "decode_tokens_per_second_int8": 7.0,
        "decode_percent_of_floor_int8": 50.0,
        "decode_ratio_vs_compiled_batch_64": 65.0, "decode_tokens_per_second_batch_64": 448.0,
        "decode_percent_of_floor_batch_64": 50.0, "decode_ratio_vs_compiled_int8_batch_64": 65.0,
        "decode_tokens_per_second_int8_batch_64": 448.0, "decode_percent_of_floor_int8_batch_64": 50.0,
        "other_steps": {"small": {"ratio_vs_torch_compile": 1.5, "tokens_per_second": 5},
                        "BERT": {"ratio_vs_torch_compile": None, "tokens_per_second": None}},
        "tests_passed": 3, "kernels": {"gelu forward": {"ratio": 1.5, "percent_of_floor": 50.0}}}


def test_the_headline_knows_of_no_ratio_to_what_was_not_compiled():
    head = benchmark_report.headline([row("training_step", "step", torch={"eager": 1.5},
                                          tokens_per_second={"ours": 1.0})])
    assert head["step_ratio_vs_torch_compile"] is None and head["step_tokens_per_second"] == 1.0
    assert benchmark_report.headline([])["step"] is None
    failed = {"job": "training_step", "name": "training_step", "microseconds": None, "agrees": None, "reasons": {}}
    assert benchmark_report.headline([failed])["step_ratio_vs_torch_compile"] is None


# The loss curves

def test_the_distance_of_curves_is_that_of_their_means():
    """Of 100 steps four are averaged: a single step that is 1 off moves the mean by a quarter."""
    numpy = np.linspace(4, 2, 100).tolist()
    off = [loss + (i == 50) for i, loss in enumerate(numpy)]
    losses = {"NumPy float32": numpy, "Triton float32": off, "Triton bfloat16": [*numpy[:-1], float("nan")]}
    far = benchmark_curves.distances(losses)
    assert far == {"Triton float32": pytest.approx(0.25), "Triton bfloat16": None}
    assert benchmark_curves.distances({"Triton float32": off}) == {}
    assert len(benchmark_curves.smoothed(numpy)) == 97 and len(benchmark_curves.smoothed([1.0])) == 1


def test_a_curve_that_fails_leaves_the_others(monkeypatch, capsys):
    saved = []

    def curve(config, data, steps, batch_size, path, dtype):
        if dtype == "bfloat16":
            raise RuntimeError("no bfloat16 here")
        return [4.0, 3.0]
    monkeypatch.setattr(benchmark_curves, "curve", curve)
    report = benchmark_curves.run(2, True, lambda report: saved.append(list(report["losses"])))
    assert saved == [["NumPy float32"], ["NumPy float32", "Triton float32"], ["NumPy float32", "Triton float32"]]
    assert report["reasons"] == {"Triton bfloat16": "RuntimeError: no bfloat16 here"}
    assert report["largest_distance"] == {"Triton float32": 0.0}
    assert "Triton bfloat16  failed: RuntimeError: no bfloat16 here" in capsys.readouterr().out
    benchmark_curves.picture(report).draw_without_rendering()
