"""The scripts in examples/, run as a user runs them: what they print at the end, what they leave, how they refuse."""
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
SHORT = ["--preset", "nano", "--steps", "6", "--log-every", "2", "--eval-windows", "20", "--sample-tokens", "0"]


def run(script, *arguments, where, code=0):
    """Standard output of a script that ends with `code`; its last line on standard error if it fails."""
    done = subprocess.run([sys.executable, EXAMPLES / script, *map(str, arguments)], cwd=where, capture_output=True,
                          encoding="utf-8", env=os.environ | {"PYTHONIOENCODING": "utf-8"})
    assert done.returncode == code, done.stderr
    return done.stderr.splitlines()[-1] if code else done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which the main script has trained, for 4 of 6 steps at first, and then resumed."""
    where = tmp_path_factory.mktemp("examples")
    (where / "text.txt").write_text("How many cookies could a good cook cook?\n" * 50, encoding="utf-8")
    run("3_train_gpt.py", "--text", "text.txt", *SHORT, "--save-every", 4, "--out", "run", where=where)
    return where


def test_autograd(tmp_path):
    numbers = [line.split()[-1] for line in run("1_autograd.py", where=tmp_path).splitlines() if "by" in line]
    assert numbers[0] == numbers[1] and numbers[2] == numbers[3]       # by the tape, by hand
    assert (tmp_path / "runs/autograd.dot").exists() and (tmp_path / "runs/autograd.png").stat().st_size > 1000


def test_resume(tmp_path):
    assert "none, all bits are equal" in run("4_resume.py", where=tmp_path)
    assert not list(tmp_path.iterdir())


def test_training_leaves_a_run_that_can_be_resumed_with_one_word(folder):
    out = run("3_train_gpt.py", "--resume", "run/checkpoint-000004", "--out", "run", where=folder)
    assert "bits per character" in out and "The curve is run/loss.png." in out
    rows = [json.loads(line) for line in (folder / "run/log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [2, 4, 6]
    result = next(line for line in out.splitlines() if "bits per character" in line)
    assert result in run("3_train_gpt.py", "--resume", "run", "--out", "run", where=folder)


def test_a_run_goes_on_in_its_own_folder(folder, tmp_path):
    """Whatever lies in the folder that --out means without being said."""
    for name in ("runs/gpt", "elsewhere"):
        shutil.copytree(folder / "run", tmp_path / name)
    shutil.copy(folder / "text.txt", tmp_path)
    shutil.rmtree(tmp_path / "elsewhere/checkpoint-000006")
    before = {path: path.read_bytes() for path in sorted((tmp_path / "runs").rglob("*")) if path.is_file()}
    out = run("3_train_gpt.py", "--resume", "elsewhere", where=tmp_path)
    assert "The curve is elsewhere/loss.png." in out and (tmp_path / "elsewhere/checkpoint-000006").is_dir()
    error = run("3_train_gpt.py", "--resume", "elsewhere", "--out", "runs/gpt", where=tmp_path, code=1)
    assert error.startswith("error: runs/gpt holds an earlier run")
    assert before == {path: path.read_bytes() for path in sorted((tmp_path / "runs").rglob("*")) if path.is_file()}
    run("3_train_gpt.py", "--resume", "elsewhere/checkpoint-000004", "--out", "third", where=tmp_path)
    assert "bits per character" in run("3_train_gpt.py", "--resume", "third", where=tmp_path)


def test_writing(folder):
    out = run("5_sample.py", "run", "--prompt", "How", "--tokens", 20, "--copies", 2, where=folder)
    assert out.startswith("--- text 1\nHow") and "--- text 2\nHow" in out
    once, again = (run("5_sample.py", "run", "--tokens", 20, "--seed", 4, where=folder) for _ in range(2))
    assert once == again


@pytest.mark.parametrize("script, arguments, message", [
    ("3_train_gpt.py", ["--steps", 0], "error: TrainConfig: steps is 0; it should be a whole number"),
    ("3_train_gpt.py", ["--text", "none.txt"], "error: none.txt: there is no such file"),
    ("3_train_gpt.py", ["--text", "text.txt", "--context", 10**5], "error: the text has .* tokens, too few"),
    ("3_train_gpt.py", ["--context", -4], "error: .*n_positions"),
    ("3_train_gpt.py", ["--dtype", "bfloat16"], "error: --dtype bfloat16: NumPy trains in float32"),
    ("3_train_gpt.py", ["--out", "run"], "error: run holds an earlier run"),
    ("3_train_gpt.py", ["--out", "run", "--resume", "--lr", 3], r"error: .*lr was 0.001, is 3.0"),
    ("3_train_gpt.py", ["--resume"], "error: there is no checkpoint in runs/gpt"),
    ("3_train_gpt.py", ["--resume", "text.txt"], "error: there is no checkpoint in text.txt to resume from"),
    ("3_train_gpt.py", ["--out", "text.txt"], "error: --out text.txt: there is a file of this name; name a folder"),
    ("3_train_gpt.py", ["--out", "text.txt/run"], "error: --out text.txt/run: there is a file of this name"),
    ("3_train_gpt.py", ["--text", "run"], "error: run: Is a directory"),
    ("9_history.py", ["--out", "text.txt"], "error: --out text.txt: there is a file of this name; name a folder"),
    ("13_look_at_a_prompt.py", ["run", "--out", "maps"], "error: --out maps: the name of a picture ends with .png"),
    ("5_sample.py", ["text.txt"], "error: text.txt is a file; give the folder"),
    ("5_sample.py", ["nowhere"], "error: there is no folder nowhere; train a model"),
    ("5_sample.py", ["run", "--seed", -1], "error: .*seed"),
    ("5_sample.py", ["run", "--temperature", "nan"], "error: .*temperature"),
    ("5_sample.py", ["run", "--copies", 0], "error: .*num_return_sequences"),
    ("5_sample.py", ["run", "--tokens", -3], "error: .*max_new_tokens"),
])
def test_misuse_is_refused_in_one_sentence(folder, script, arguments, message):
    assert re.match(message, run(script, *arguments, where=folder, code=1))


def test_the_main_script_reaches_the_same_loss_on_both_paths(tmp_path):
    """In Triton's interpreter where there is no GPU. What the paths may differ by is far less than one step learns."""
    pytest.importorskip("triton", reason="the Triton path needs triton, which exists for Linux only")
    logs = []
    for where in ("numpy", "triton"):
        run("3_train_gpt.py", "--backend", where, *SHORT, "--lr", "0.01", "--batch-size", 2, "--eval-windows", 4,
            "--out", where, where=tmp_path)
        rows = [json.loads(line) for line in (tmp_path / where / "log.jsonl").read_text().splitlines()]
        logs.append([row.get("loss", row.get("val_loss")) for row in rows])
    ours, theirs = map(np.array, logs)
    assert len(ours) == 4 and np.ptp(ours) > 0.01           # the text is Python's own, so it depends on the version
    assert np.abs(ours - theirs).max() < 1e-3 * np.ptp(ours)
