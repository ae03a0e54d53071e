"""The training loop and its checkpoints: nothing is lost, nothing bad is saved, and a resumed run is the same run."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

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
    assert train.evaluate(m, VAL, 3, windows=3) != train.evaluate(m, VAL, 3)


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
    (tmp_path / "state.json").write_text('{"format": "something else"}')
    with pytest.raises(ValueError, match="was not written by this version"):
        checkpoint.load_model(tmp_path)


def test_resuming_with_other_settings_is_refused(tmp_path):
    run(tmp_path, stop_at=4)
    last = checkpoint.latest(tmp_path)
    with pytest.raises(ValueError, match="lr was 0.001, is 0.5"):
        run(tmp_path, replace(CONFIG, lr=0.5), resume=last)
    with pytest.raises(ValueError, match="another configuration .n_layer."):
        checkpoint.load(last, m := model(n_layer=1), optim.AdamW(m.parameters()))


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
    if number == signal.SIGINT:         # finishes the step, saves, says so, and ends without an error
        assert process.returncode == 0 and f"Stopped at step {done}" in output
    steps = done + 3
    config = replace(CONFIG, steps=2000, eval_every=10**6)
    resumed = run(tmp_path, config, resume=last, stop_at=steps)
    assert same_bits(resumed, run(tmp_path / "straight", config, stop_at=steps))
    shutil.rmtree(tmp_path)
