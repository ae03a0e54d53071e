"""The search for better tiles, with invented times: which row it finds, and what it does to the table."""
import ast
import inspect

import pytest

pytest.importorskip("torch", reason="the kernels' arrays are torch tensors: pip install tinyllm[triton]")
pytest.importorskip("triton", reason="Triton exists for Linux only: pip install tinyllm[triton]")

import benchmark_tune  # noqa: E402
import torch  # noqa: E402

from tinyllm.kernels import configs  # noqa: E402

SOURCE = inspect.getsource(configs)


@pytest.fixture
def on_hopper(monkeypatch):
    """A card whose times are invented: microseconds(config), which may raise."""
    monkeypatch.setattr(configs, "architecture", lambda: "sm_90")
    monkeypatch.setattr(configs, "TABLE", list(configs.TABLE))
    monkeypatch.setattr(benchmark_tune, "rows_of", lambda kernel, s: ["a call"])
    monkeypatch.setattr(benchmark_tune, "sizes", lambda **changes: None)

    class Clock:
        def wait(self, row):
            pass

    class Pool:
        def map(self, function, rows):
            return rows

    def search(kernel, microseconds):
        monkeypatch.setattr(benchmark_tune, "time_of", lambda row, calls, clock: microseconds(row[-1]))
        return benchmark_tune.search(kernel, Clock(), float("inf"), Pool())
    return search


def test_the_search_walks_to_the_fastest_configuration_that_is_right(on_hopper, capsys):
    def microseconds(config):
        if config["num_warps"] == 4:
            raise ArithmeticError("linear is off by 1, allowed is 0.1")
        return 100 + abs(config["BLOCK_M"] - 256) + abs(config["num_stages"] - 2)

    old, new, before, after = on_hopper("matmul_tma", microseconds)
    assert old[-1] == configs.lookup("matmul_tma", torch.bfloat16) and before == microseconds(old[-1])
    assert (new[-1]["BLOCK_M"], new[-1]["num_stages"], new[-1]["num_warps"]) == (256, 2, 8) and after == 100
    assert new[:2] == ("matmul_tma", "sm_90")
    assert "num_warps=4: ArithmeticError: linear is off" in capsys.readouterr().out


def test_a_row_that_is_wrong_on_this_card_is_replaced_by_any_that_is_right(on_hopper):
    def microseconds(config):
        if config["FLATTEN"]:
            raise ArithmeticError("off")
        return 10

    _, new, before, after = on_hopper("matmul_tma", microseconds)
    assert new[-1] == {**configs.lookup("matmul_tma", torch.bfloat16), "FLATTEN": False}
    assert (before, after) == (float("inf"), 10)


def test_what_is_hardly_faster_changes_nothing(on_hopper):
    old, new, *_ = on_hopper("matmul_tma", lambda config: 100 - config["num_stages"] / 10)
    assert new is old


def test_neighbours_differ_in_one_thing_or_exchange_the_edges():
    config = dict(BLOCK_M=128, BLOCK_N=256, num_warps=8)
    found = list(benchmark_tune.neighbours(config))
    assert {**config, "BLOCK_M": 256, "BLOCK_N": 128} in found and {**config, "num_warps": 4} in found
    assert config not in found and len(found) == 7


def table_in(source):
    table = next(node.value for node in ast.parse(source).body if isinstance(node, ast.Assign)
                 and node.targets[0].id == "TABLE")
    return [benchmark_tune.value_of(node) for node in table.elts]


def test_a_row_of_this_card_is_replaced_and_one_for_many_stays_behind_the_new_one():
    table = table_in(SOURCE)
    assert table == configs.TABLE
    for kernel, gpu in (("matmul_tma", "sm_90"), ("attention_dq", "any")):
        old = next(row for row in table if row[:2] == (kernel, gpu))
        new = (kernel, "sm_90", *old[2:4], {**old[-1], "num_stages": 5, "A_LONG_NAME_THAT_NEEDS_A_SECOND_LINE": True})
        place, changed = table.index(old), benchmark_tune.replaced(SOURCE, old, new)
        assert table_in(changed) == table[:place] + [new] + table[place + (gpu == "sm_90"):]
        assert all(len(line) <= 120 for line in changed.splitlines())


def test_a_row_for_this_card_does_not_hide_those_for_smaller_sizes():
    old = next(row for row in configs.TABLE if row[:4] == ("fused_linear_tiles", "any", "half", 64))
    (row,) = benchmark_tune.smaller(old, "sm_90")
    assert row[:4] == ("fused_linear_tiles", "sm_90", "half", 16) and row[4]["BLOCK_M"] == 16
    changed = table_in(benchmark_tune.replaced(SOURCE, old, row, ("fused_linear_tiles", "sm_90", *old[2:])))
    assert changed.index(row) + 1 == changed.index(("fused_linear_tiles", "sm_90", *old[2:])) < changed.index(old)


def test_every_kernel_to_tune_is_in_the_table_and_its_rows_are_in_the_benchmark():
    for kernel, (_, job, _) in benchmark_tune.TRIALS.items():
        assert any(row[0] == kernel for row in configs.TABLE) and job in benchmark_tune.JOBS
