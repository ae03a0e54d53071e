"""Checkpoints: a folder per saved step that holds all of it, or does not exist.

    runs/gpt/checkpoint-000500/
        config.json             the model's configuration
        model.safetensors       its parameters, in float32
        tokenizer.json          the tokenizer (and vocabulary.txt, for people)
        optimizer.safetensors   the optimizer's moments
        state.json              step, settings, data; and the SHA-256 of every file above

Everything is written into a temporary folder, forced to the disk (fsync), and only then renamed. Renaming is atomic, so
whatever kills the process, a checkpoint is whole or absent. safetensors and JSON hold numbers and text; a pickle, the
usual format, can run any program when it is opened.
"""
import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from .models import MODELS
from .text import load_tokenizer

FORMAT = "tinyllm checkpoint 1"


def save(folder, model, optimizer, state, tokenizer=None):
    """Write a checkpoint as `folder`. state: what else resuming needs, as JSON values.

    FloatingPointError, and nothing is written, if a parameter is not finite.
    """
    folder, weights = Path(folder), model.state_dict()
    broken = [name for name, array in weights.items() if not np.isfinite(array).all()]
    if broken:
        raise FloatingPointError(f"{folder.name} was not saved, as {broken[0]} holds NaN or infinity: the step before "
                                 f"went wrong; the last good checkpoint is {latest(folder.parent)}")
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    (partial / "config.json").write_text(json.dumps(model.config_dict(), indent=2), encoding="utf-8")
    save_file(weights, partial / "model.safetensors")
    arrays, numbers = optimizer.state_dict()
    save_file(arrays, partial / "optimizer.safetensors")
    if tokenizer is not None:
        tokenizer.save(partial)
    digests = {path.name: _digest(path) for path in sorted(partial.iterdir())}
    state = {"format": FORMAT, **state, "optimizer": numbers, "sha256": digests}
    (partial / "state.json").write_text(json.dumps(state, indent=2), encoding="utf-8")
    for path in [*partial.iterdir(), partial]:
        _force_to_disk(path)
    if folder.exists():
        remove(folder)                  # the same step, saved again
    os.replace(partial, folder)
    _force_to_disk(folder.parent)


def load(folder, model, optimizer, state=None):
    """Put a checkpoint into a model and an optimizer of the same configuration; return its state.

    state: what read_state() has just returned, which spares reading all files a second time. ValueError if damaged.
    """
    state = state or read_state(folder)
    config = getattr(model, "config", None)
    fields = dataclasses.fields(config) if dataclasses.is_dataclass(config) else ()
    saved = {field.name: field.default for field in fields}         # for those that an older file does not have
    saved |= json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    now = json.loads(json.dumps(model.config_dict()))
    if changed := [name for name in {**saved, **now} if saved.get(name) != now.get(name)]:
        raise ValueError(f"{folder} holds a model of another configuration ({', '.join(changed)}); resume with the "
                         "settings it was trained with, or train into another folder")
    model.load_state_dict(_arrays(folder, "model.safetensors"))
    optimizer.load_state_dict(_arrays(folder, "optimizer.safetensors"), state["optimizer"])
    return state


def load_model(folder):
    """(model, tokenizer) of a checkpoint, or of the newest one in a run's folder;
    the tokenizer is None if none was saved.
    """
    folder = latest(folder) or Path(folder)
    read_state(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model_class, config_class = MODELS[config.pop("model_type")]
    model = model_class(config_class(**config))
    model.load_state_dict(_arrays(folder, "model.safetensors"))
    return model, load_tokenizer(folder) if (folder / "tokenizer.json").exists() else None


def checkpoints(run):
    """The checkpoints in a run's folder, oldest first."""
    found = (p for p in Path(run).glob("checkpoint-*") if p.is_dir() and p.name.removeprefix("checkpoint-").isdigit())
    return sorted(found, key=step_of)


def step_of(folder):
    """The step in a checkpoint's name: by number, as checkpoint-1000000 is newer than checkpoint-999999."""
    return int(Path(folder).name.removeprefix("checkpoint-"))


def latest(run):
    """The newest checkpoint in a run's folder, or None."""
    return next(reversed(checkpoints(run)), None)


def same_tokenizer(folder, tokenizer):
    """Whether a checkpoint was saved with this tokenizer, file by file (or with none, if it is None)."""
    if tokenizer is None:
        return not (Path(folder) / "tokenizer.json").exists()
    with tempfile.TemporaryDirectory() as other:
        tokenizer.save(other)
        pairs = [(Path(folder) / path.name, path) for path in Path(other).iterdir()]
        return all(saved.exists() and saved.read_bytes() == now.read_bytes() for saved, now in pairs)


def remove(folder):
    """Delete a checkpoint; it loses its name first, so that a half-deleted one is never found."""
    doomed = Path(folder).with_suffix(".old.partial")
    shutil.rmtree(doomed, ignore_errors=True)
    os.replace(folder, doomed)
    shutil.rmtree(doomed)


def read_state(folder):
    """The state of a checkpoint, after making sure that every file is as it was written.

    ValueError says what is wrong.
    """
    folder = Path(folder)
    siblings = checkpoints(folder.parent)
    older = siblings[:siblings.index(folder)] if folder in siblings else []
    advice = f"; the one before it is {older[-1]}" if older else "; there is none before it"
    if not (folder / "state.json").exists():
        raise ValueError(f"{folder} is not a tinyllm checkpoint: it has no state.json" + (advice if older else ""))
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        if state["format"] != FORMAT or not isinstance(state["sha256"], dict):
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{folder / 'state.json'} was not written by this version of tinyllm, or is "
                         f"damaged{advice}") from None
    for name, digest in state["sha256"].items():
        if not (folder / name).exists():
            raise ValueError(f"{folder} is damaged: {name} is missing{advice}")
        if _digest(folder / name) != digest:
            raise ValueError(f"{folder} is damaged: {name} is not what was saved (truncated or changed){advice}")
    return state


def _arrays(folder, name):
    try:
        return load_file(Path(folder) / name)
    except SafetensorError as error:
        raise ValueError(f"{Path(folder) / name} is not a safetensors file ({error})") from error


def _digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _force_to_disk(path):
    """fsync: the data is on the disk, not only on its way;
    for a folder (where the system has that), its list of names.
    """
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
