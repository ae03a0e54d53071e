"""The training loop and its checkpoints: nothing is lost, nothing bad is saved, and a resumed run is the same run."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import tinyllm
from tinyllm import checkpoint, optim, text, train

CONFIG = train.TrainConfig(steps=8, batch_size=3, warmup=2, log_every=2, eval_every=4, save_every=4, sample_tokens=5)
TEXT = "the quick brown fox jumps over the lazy dog\n" * 20
TOKENIZER = text.CharTokenizer.train(TEXT)
TRAIN, VAL = (text.TokenDataset(part, 8) for part in text.split(np.array(TOKENIZER.encode(TEXT)), 0.2))


def model(**changes):
    tinyllm.manual_seed(3)
    settings = dict(n_positions=8, n_embd=8, n_layer=2, n_head=2, resid_pdrop=0.1) | changes
    return tinyllm.GPT(tinyllm.GPTConfig(vocab_size=TOKENIZER.vocab_size, **settings))


def run(out, config=CONFIG, resume=None, **options):
    m = model()
    train.train(m, TRAIN, VAL, config, out, TOKENIZER, resume, **options)
    return m.state_dict()


def same_bits(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(tmp_path):
    straight = run(tmp_path / "a")
    run(tmp_path / "b", stop_at=4)
    resumed = run(tmp_path / "b", resume=checkpoint.latest(tmp_path / "b"))
    assert same_bits(straight, resumed)
    logs = [[json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()] for name in "ab"]
    for a, b in zip(*logs, strict=True):
        assert ({k: v for k, v in a.items() if k != "tokens_per_s"}
                == {k: v for k, v in b.items() if k != "tokens_per_s"})


def test_the_random_state_and_the_optimizer_matter_for_resuming(tmp_path):
    """A control for the test above: without the optimizer's state, the resumed run would differ."""
    straight = run(tmp_path / "a")
    run(tmp_path / "b", stop_at=4)
    m = model()
    m.load_state_dict(checkpoint.load_model(tmp_path / "b")[0].state_dict())
    train.train(m, TRAIN, VAL, replace(CONFIG, steps=4), tmp_path / "c")
    assert not same_bits(straight, m.state_dict())


def test_a_run_writes_its_log_its_picture_and_two_checkpoints(tmp_path):
    run(tmp_path, replace(CONFIG, steps=12))
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows if "loss" in r] == [2, 4, 6, 8, 10, 12]
    assert [r["step"] for r in rows if "val_loss" in r] == [4, 8, 12]
    assert (tmp_path / "loss.png").stat().st_size > 1000
    assert [p.name for p in checkpoint.checkpoints(tmp_path)] == ["checkpoint-000008", "checkpoint-000012"]


def test_accumulated_gradients_equal_those_of_the_large_batch():
    ids = np.random.default_rng(0).integers(0, TOKENIZER.vocab_size, (2, 6, 8))
    results = []
    for parts in ([tuple(ids)], [(ids[0][i:i + 2], ids[1][i:i + 2]) for i in (0, 2, 4)]):
        # in float64 only the order of sums differs
        m = model(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0).to("numpy", np.float64)
        train.training_step(m, optim.SGD(m.parameters(), 1.0), CONFIG)(parts, 1.0)
        results.append(m.state_dict())
    for name in results[0]:
        np.testing.assert_allclose(results[0][name], results[1][name], rtol=1e-12, atol=1e-14)


def test_evaluation_covers_every_token_once_and_restores_the_mode():
    m = model().eval()
    ids, targets = VAL.tokens[:-1], VAL.tokens[1:]
    losses = [m.loss(ids[i:i + 8][None], targets[i:i + 8][None], reduction="sum").item() for i in range(0, len(ids), 8)]
    m.train()
    assert train.evaluate(m, VAL, batch_size=3) == pytest.approx(sum(losses) / len(ids), rel=1e-5)
    assert m.training
    exact = [losses[0] / 8, sum(losses[:2]) / 16, sum(losses[:4]) / 32]
    assert [train.evaluate(m, VAL, 3, windows=n) for n in (1, 2, 4)] == pytest.approx(exact, rel=1e-5)


def damage(path, how):
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:-10])
    elif how == "one byte changed":
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    else:
        path.unlink()


@pytest.mark.parametrize("name, how", [
    (name, how) for name in ["model.safetensors", "optimizer.safetensors", "config.json"]
    for how in ["truncated", "one byte changed", "missing"]] + [("state.json", "truncated"), ("state.json", "missing")])
def test_a_damaged_checkpoint_is_refused_and_the_one_before_still_loads(tmp_path, name, how):
    run(tmp_path)
    older, newer = checkpoint.checkpoints(tmp_path)
    damage(newer / name, how)
    with pytest.raises(ValueError, match="the one before it is .*checkpoint-000004"):
        run(tmp_path, resume=newer)
    assert same_bits(run(tmp_path / "straight"), run(tmp_path, resume=older))


def test_foreign_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a tinyllm checkpoint"):
        checkpoint.load_model(tmp_path)
    for content in ('{"format": "something else"}', "[1]", '{"format": "tinyllm checkpoint 1"}'):
        (tmp_path / "state.json").write_text(content)
        with pytest.raises(ValueError, match="was not written by this version"):
            checkpoint.load_model(tmp_path)


def test_a_folder_that_holds_a_run_is_not_trained_into_again(tmp_path):
    run(tmp_path, stop_at=4)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match="holds an earlier run .checkpoint-000004.; resume it"):
        run(tmp_path)
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}


def test_checkpoints_are_ordered_by_number_and_foreign_folders_are_left_alone(tmp_path):
    for name in ["checkpoint-999999", "checkpoint-1000000", "checkpoint-000004.partial", "checkpoint-best"]:
        (tmp_path / name).mkdir()
    assert [p.name for p in checkpoint.checkpoints(tmp_path)] == ["checkpoint-999999", "checkpoint-1000000"]
    with pytest.raises(ValueError, match="the one before it is .*checkpoint-999999"):
        checkpoint.read_state(tmp_path / "checkpoint-1000000")


def test_resuming_from_an_older_checkpoint_keeps_what_it_saves(tmp_path):
    config = replace(CONFIG, save_every=2)
    run(tmp_path, config)
    older, newer = checkpoint.checkpoints(tmp_path)
    assert (older.name, newer.name) == ("checkpoint-000006", "checkpoint-000008")
    run(tmp_path, config, resume=older, stop_at=7)
    assert [p.name for p in checkpoint.checkpoints(tmp_path)] == [f"checkpoint-00000{n}" for n in (6, 7, 8)]


def test_resuming_with_another_text_or_tokenizer_is_refused(tmp_path):
    run(tmp_path, stop_at=4)
    last = checkpoint.latest(tmp_path)
    turned = text.TokenDataset(TRAIN.tokens[::-1], 8)
    with pytest.raises(ValueError, match="the text was 8 of .* tokens, .*, is 8 of"):
        train.train(model(), turned, VAL, CONFIG, tmp_path, TOKENIZER, last)
    other = text.CharTokenizer.train(TEXT.upper())
    for tokenizer in (other, None):
        with pytest.raises(ValueError, match="was trained with another tokenizer"):
            train.train(model(), TRAIN, VAL, CONFIG, tmp_path, tokenizer, last)


def test_a_failing_evaluation_costs_no_step(tmp_path, monkeypatch):
    """A checkpoint is written before the evaluation, the picture and the sample of the same step."""
    def fail(*_):
        raise RuntimeError("no space left for the picture")

    monkeypatch.setattr(train.Log, "plot", fail)
    with pytest.raises(RuntimeError, match="no space"):
        run(tmp_path)
    assert checkpoint.latest(tmp_path).name == "checkpoint-000004"


@pytest.mark.parametrize("where", ["evaluate", "_sample"])
def test_ctrl_c_during_an_evaluation_saves(tmp_path, monkeypatch, where):
    honest = getattr(train, where)

    def interrupted(*args):
        signal.raise_signal(signal.SIGINT)
        return honest(*args)

    monkeypatch.setattr(train, where, interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, replace(CONFIG, save_every=100))
    assert checkpoint.latest(tmp_path).name == "checkpoint-000005"      # one more step, and it is saved


def test_ctrl_c_in_the_last_step_ends_the_program_too(tmp_path, monkeypatch):
    read = train._read
    monkeypatch.setattr(train, "_read", lambda unread, out: (
        signal.raise_signal(signal.SIGINT) if unread[-1][0] == CONFIG.steps - 1 else None, read(unread, out))[1])
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, replace(CONFIG, log_every=1))
    assert checkpoint.latest(tmp_path).name == f"checkpoint-{CONFIG.steps:06d}"


def test_weights_that_are_not_numbers_are_not_saved(tmp_path):
    """The loss is read before the last step's change of the weights: a step that ruins them must not be saved."""
    run(tmp_path, stop_at=4)
    m = model()
    m.wte.weight.data[0, 0] = np.inf
    with pytest.raises(FloatingPointError, match="wte.weight holds NaN.*last good checkpoint is .*checkpoint-000004"):
        checkpoint.save(tmp_path / "checkpoint-000005", m, optim.AdamW(m.parameters()), {})
    assert [p.name for p in tmp_path.glob("checkpoint-*")] == ["checkpoint-000004"]


@pytest.mark.parametrize("change, message", [
    (dict(steps=0), "steps is 0; it should be a whole number, at least 1"),
    (dict(batch_size=2.5), "batch_size is 2.5; it should be a whole number"),
    (dict(lr=0.0), "lr is 0.0; it should be a positive number"),
    (dict(lr=float("nan")), "lr is nan; it should be a positive number"),
    (dict(clip=-1.0), "clip is -1.0; it should be a number, at least 0"),
    (dict(betas=(0.9, 1.0)), "betas is .0.9, 1.0.; it should be two numbers"),
    (dict(schedule="triangle"), "schedule is 'triangle'; it should be one of cosine, linear"),
])
def test_settings_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **change)


def test_a_finished_run_resumed_trains_no_more_and_returns_its_loss(tmp_path):
    m = model()
    loss = train.train(m, TRAIN, VAL, CONFIG, tmp_path, TOKENIZER)
    fresh = model()
    assert train.train(fresh, TRAIN, VAL, CONFIG, tmp_path, TOKENIZER, checkpoint.latest(tmp_path)) == loss
    assert same_bits(m.state_dict(), fresh.state_dict())


def test_a_log_with_damaged_lines_still_resumes(tmp_path):
    run(tmp_path, stop_at=4)
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('[]\n{"no": "step"}\n{"step": "x"}\n{"step": 4, "lo')
    run(tmp_path, resume=checkpoint.latest(tmp_path))
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 4, 6, 8, 8]


def test_resuming_with_other_settings_is_refused(tmp_path):
    run(tmp_path, stop_at=4)
    last = checkpoint.latest(tmp_path)
    with pytest.raises(ValueError, match="lr was 0.001, is 0.5"):
        run(tmp_path, replace(CONFIG, lr=0.5), resume=last)
    with pytest.raises(ValueError, match="another configuration .n_layer."):
        checkpoint.load(last, m := model(n_layer=1), optim.AdamW(m.parameters()))
    m = model()
    checkpoint.save(tmp_path / "mine", m, optim.AdamW(m.parameters()), {"step": 1})
    with pytest.raises(ValueError, match="mine was not written by train"):
        run(tmp_path / "new", resume=tmp_path / "mine")


def test_a_checkpoint_from_before_a_field_existed_is_resumed(tmp_path):
    run(tmp_path, stop_at=4)
    last = checkpoint.latest(tmp_path)
    config = json.loads((last / "config.json").read_text())
    assert config.pop("n_kv_head") is None
    (last / "config.json").write_text(json.dumps(config))
    state = json.loads((last / "state.json").read_text())
    state["sha256"]["config.json"] = checkpoint._digest(last / "config.json")
    (last / "state.json").write_text(json.dumps(state))
    run(tmp_path, resume=last)
    assert checkpoint.latest(tmp_path).name == "checkpoint-000008"


def test_data_without_targets_are_refused():
    hidden = [(ids, np.full_like(targets, -100)) for ids, targets in VAL.windows(4)]
    with pytest.raises(ValueError, match="evaluate: there is no target in these"):
        train.evaluate(model(), SimpleNamespace(windows=lambda size: hidden), 4)


@pytest.mark.parametrize("where", ["save_file", "_force_to_disk", "replace"])
def test_a_crash_in_the_middle_of_a_save_leaves_the_last_checkpoint(tmp_path, monkeypatch, where):
    run(tmp_path, stop_at=4)

    def crash(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os if where == "replace" else checkpoint, where, crash)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, resume=checkpoint.latest(tmp_path))
    assert checkpoint.latest(tmp_path).name == "checkpoint-000004"
    assert same_bits(run(tmp_path / "straight"), run(tmp_path, resume=checkpoint.latest(tmp_path)))
    assert not list(tmp_path.glob("*.partial"))


def test_a_loss_that_is_not_a_number_stops_the_run_and_saves_nothing_bad(tmp_path):
    m, seen = model(), []
    honest = m.loss

    def loss(ids, targets, **options):
        seen.append(None)
        return honest(ids, targets, **options) * (np.nan if len(seen) == 8 else 1)      # 6 steps and 2 evaluations

    m.loss = loss
    with np.errstate(all="ignore"), pytest.raises(FloatingPointError, match=r"step \d is nan"):
        train.train(m, TRAIN, VAL, replace(CONFIG, eval_windows=1, save_every=2), tmp_path)
    saved, _ = checkpoint.load_model(tmp_path)
    assert all(np.isfinite(p).all() for p in saved.state_dict().values())


def test_a_gradient_that_is_not_a_number_stops_the_run_too(tmp_path, monkeypatch):
    """AdamW skips such a step and the loss stays finite, so without a look at the norm nobody would notice."""
    monkeypatch.setattr(tinyllm.ops, "grad_norm", lambda grad: np.array(np.inf, np.float32))
    with pytest.raises(FloatingPointError, match="the gradient norm of step 1 is inf"):
        run(tmp_path)
    assert checkpoint.latest(tmp_path) is None


def start(out, steps=2000):
    code = ("import sys; sys.path.insert(0, sys.argv[2]); import test_train as t; from dataclasses import replace\n"
            f"t.run(sys.argv[1], replace(t.CONFIG, steps={steps}, eval_every=10**6))")
    return subprocess.Popen([sys.executable, "-c", code, str(out), os.path.dirname(__file__)], stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True)


def wait_for_a_checkpoint(out):
    deadline = time.monotonic() + 60
    while checkpoint.latest(out) is None:
        assert time.monotonic() < deadline, "no checkpoint appeared"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_process_loses_at_most_the_steps_since_the_last_checkpoint(tmp_path, number):
    process = start(tmp_path)
    wait_for_a_checkpoint(tmp_path)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    last = checkpoint.latest(tmp_path)
    done = json.loads((last / "state.json").read_text())["step"]
    if number == signal.SIGINT:         # finishes the step, saves, says so, and ends as interrupted programs do
        assert "KeyboardInterrupt" in output and f"Stopped at step {done}" in output
    steps = done + 3
    config = replace(CONFIG, steps=2000, eval_every=10**6)
    resumed = run(tmp_path, config, resume=last, stop_at=steps)
    assert same_bits(resumed, run(tmp_path / "straight", config, stop_at=steps))
    shutil.rmtree(tmp_path)
