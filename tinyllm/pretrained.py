"""Models from Hugging Face folders, and back: GPT.from_pretrained(folder), model.save_pretrained(folder).

    gpt2/
        config.json                     what kind of model, and its sizes
        model.safetensors               its tensors (tensor_file.py)
    or  model.safetensors.index.json    which of several files each tensor is in:
        model-00001-of-00002.safetensors ...

A published model is a formula and a long list of numbers, and the formulas are those of models/. So what is left is to
find, for each parameter, the tensor that holds it, under whatever name and in whatever shape (pretrained_names.py).
Nothing is downloaded, and nothing in a folder is executed.
"""
import json
import os
import re
from pathlib import Path
from typing import ClassVar

import numpy as np
from safetensors.numpy import save_file

from . import random, shapes
from .pretrained_names import FAMILIES
from .tensor_file import json_object, open_tensors

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
OUTDATED = ("torch_dtype", "transformers_version")      # settings that are not true of what is saved
LAYERS = ("n_layer", "num_hidden_layers", "num_layers", "num_decoder_layers")


class Pretrained:
    """What models have that can come from such a folder. A subclass is a Module and names its config_class.

    settings: all that config.json said, such as the names of labels and the ids of special tokens. What the
    configuration has no field for is kept there, and saved again.
    """

    settings: ClassVar[dict] = {}

    @classmethod
    def from_pretrained(cls, folder):
        """The model in a folder, in float32 and ready for use: eval() has been called.

        Weights that are float32 in the file are views of it: they are fetched when they are first used, and writing to
        them changes the model, not the file. An optimizer moves them into its own memory. Weights of 16 bits are
        widened at once. ValueError says in one sentence what is damaged, missing, mis-shaped, or not implemented here.
        """
        folder = Path(folder)
        settings = _read_settings(folder)
        family = _family(cls, folder, settings)
        tensors = _named(folder, family, _open_folder(folder))
        try:
            model = _unfilled(cls, cls.config_class(**family.config_fields(settings)), len(tensors))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{folder / 'config.json'}: {error}") from None
        _fill(model, folder, family, tensors)
        model.settings = settings
        return model.eval()

    def save_pretrained(self, folder):
        """Write config.json and model.safetensors (float32) into a folder, for Hugging Face's library and others.

        ValueError for a configuration that no model there has; tinyllm.checkpoint keeps any. Each file appears whole or
        not at all, so a model may be saved into the folder that it was loaded from. (Windows replaces no file that is
        in use: there, say model.to("numpy") first, which copies the weights.)
        """
        family = _family_of(self)
        kept = {name: value for name, value in self.settings.items() if name not in OUTDATED}
        own = {"architectures": [family.architectures[type(self).__name__]], "model_type": family.model_type,
               "dtype": "float32"}
        text = json.dumps(kept | own | family.settings(self), indent=2) + "\n"
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        _replace(folder / "config.json", lambda path: path.write_text(text, encoding="utf-8"))
        arrays = _arrays(self, family)
        _replace(folder / WEIGHTS, lambda path: save_file(arrays, path, metadata={"format": "pt"}))


# Reading

def _read_settings(folder):
    """config.json"""
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; download a model first, with `hf download NAME --local-dir {folder}`")
    if not (folder / "config.json").exists():
        raise ValueError(f"{folder} has no config.json, which says what kind of model it is; download the whole folder")
    path = folder / "config.json"
    return json_object(path.read_bytes(), path)


def _family(cls, folder, settings):
    """The Family of a folder; ValueError if class `cls` is none of its models."""
    kind = settings.get("model_type")
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    if family is not None and cls.__name__ in family.architectures:
        return family
    if (folder / "state.json").exists():
        advice = "it is a checkpoint of tinyllm, so use tinyllm.load"
    elif family is not None:
        advice = f"use {next(iter(family.architectures))}.from_pretrained"
    else:
        advice = f"there are {', '.join(FAMILIES)} here"
    raise ValueError(f"{folder / 'config.json'}: {cls.__name__} cannot be a model of the type {kind!r}; {advice}")


def _open_folder(folder):
    """All tensors of a folder, from one file or several: name in the file -> StoredTensor"""
    if (folder / WEIGHTS).exists():
        return open_tensors(folder / WEIGHTS)
    if (folder / INDEX).exists():
        return _open_shards(folder)
    for name in PICKLES:
        if (folder / name).exists():
            raise ValueError(f"{folder} has its weights as a pickle ({name}), which can run any program when it is "
                             f"opened; if you trust it, convert it with transformers: AutoModel.from_pretrained(folder)"
                             f".save_pretrained(folder), with the class that config.json names for AutoModel")
    raise ValueError(f"{folder} has neither {WEIGHTS} nor {INDEX}; download the whole folder")


def _open_shards(folder):
    """The tensors of several files, as the index tells which is where."""
    places = json_object((folder / INDEX).read_bytes(), folder / INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise ValueError(f"{folder / INDEX} has no weight_map, from the name of each tensor to its file; download it "
                         "again")
    files = {}
    for file in sorted(set(places.values())):
        if Path(file).name != file or not (folder / file).is_file():        # a path could lead out of the folder
            raise ValueError(f"{folder / INDEX} speaks of {file!r}, and there is no such file in the folder; download "
                             "it, too")
        files[file] = open_tensors(folder / file)
    absent = [f"{name} (in {file})" for name, file in places.items() if name not in files[file]]
    if absent:
        raise ValueError(f"{folder / INDEX} speaks of tensors that are not in its files: {', '.join(absent)}; download "
                         "all of them again")
    return {name: files[file][name] for name, file in places.items()}


def _named(folder, family, tensors):
    """The same tensors by their plain names, whichever spelling the file has."""
    plain = {}
    for name, tensor in tensors.items():
        if (other := plain.setdefault(family.plain(name), tensor)) is not tensor:
            raise ValueError(f"{folder}: {other.name} and {name} are two names of one tensor; keep the right one")
    return plain


def _unfilled(cls, config, n_tensors):
    """A model without numbers. It costs next to nothing, whatever sizes a config.json makes up."""
    if max(getattr(config, name, None) or 0 for name in LAYERS) > n_tensors:
        raise ValueError(f"it asks for more layers than there are tensors, {n_tensors}; do the files belong together?")
    with random.no_initial_weights():
        return cls(config)


def _fill(model, folder, family, tensors):
    """Give each parameter its numbers."""
    pieces = {name: [(family.plain(piece), shape) for piece, shape in family.pieces(name, p.shape, model.config)]
              for name, p in model.named_parameters()}
    wanted = {piece: shape for parts in pieces.values() for piece, shape in parts}
    tensors = _without_copies(folder, family, tensors, wanted)
    problem = shapes.mismatch(wanted, {name: tensor for name, tensor in tensors.items()
                                       if name in wanted or not re.search(family.spare, name)})
    if problem:
        raise ValueError(f"{folder}: these are not the tensors of the {type(model).__name__} in config.json; {problem}")
    used = set()
    for name, p in model.named_parameters():
        found = [tensors[piece] for piece, _ in pieces[name]]
        arrays = [tensor.read().copy() if tensor in used else tensor.read() for tensor in found]
        used.update(found)                          # one tensor in two roles: each parameter can be changed by itself
        array = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        p.data = array.T if family.is_turned(name) else array       # a view: BLAS takes a matrix either way round


def _without_copies(folder, family, tensors, wanted):
    """The tensors, each once: a second one in a role that is tied here must be equal to the first."""
    tensors = dict(tensors)
    for copy, original in family.copies.items():
        if copy in tensors and copy not in wanted:
            if original not in tensors:
                tensors[original] = tensors[copy]
            elif not _equal(tensors[copy], tensors[original]):
                raise ValueError(f"{folder}: {copy} and {original} should be one tensor, going by config.json, and "
                                 "they differ; if the model has both, set tie_word_embeddings to false there")
            del tensors[copy]
        elif copy in wanted and copy not in tensors and family.model_type == "t5" and original in tensors:
            tensors[copy] = tensors[original]       # the library ties a head that it does not find, whatever it is told
    return tensors


def _equal(a, b):
    return a.shape == b.shape and np.array_equal(a.read(), b.read())


# Writing

def _family_of(model):
    """The Family that a model belongs to; ValueError if there is none."""
    families = [family for family in FAMILIES.values() if type(model).__name__ in family.architectures]
    differences = {family.model_type: family.differences(model.config) for family in families}
    for family in families:
        if not differences[family.model_type]:
            return family
    told = "; ".join(f"no {kind}, with {', '.join(found)}" for kind, found in differences.items())
    raise ValueError(f"save_pretrained: no model of the reference library has this {type(model).__name__}'s "
                     f"configuration ({told}); tinyllm.checkpoint saves any")


def _arrays(model, family):
    """What goes into the file: name there -> float32 array, row by row"""
    arrays = {}
    for name, p in model.named_parameters():
        array, start = p.numpy(), 0
        array = array.T if family.is_turned(name) else array
        for piece, shape in family.pieces(name, p.shape, model.config):
            arrays[piece] = np.ascontiguousarray(array[start:start + shape[0]], np.float32)
            start += shape[0]
    return arrays


def _replace(path, write):
    """Write a file under another name, then rename it: one that is being read, or mapped, stays whole."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        write(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
