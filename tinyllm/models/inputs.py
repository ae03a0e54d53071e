"""What the models do with token ids before anything else."""
import numpy as np

from .. import backend
from .. import functional as F


def token_ids(model, ids):
    """Token ids as an array (B, T); a ValueError names the model."""
    ids = np.asarray(ids) if isinstance(ids, (list, tuple)) else ids
    if ids.ndim != 2:
        raise ValueError(f"{model}: ids must be (batch, time), not {tuple(ids.shape)}; one text is a batch of one: "
                         "ids[None]")
    return ids


def positions(start, n, key_start=None):
    """The positions of n tokens behind `start` others: (n,), or (B, n) where each text begins at key_start (B,) only.

    start: a number, or, in a recorded step (generate.py), an array (1,) that holds it; then n is 1.
    """
    if backend.is_array(start):
        return start if key_start is None else backend.of(start).text_positions(start, key_start)[:, None]
    numbers = np.arange(start, start + n)
    return numbers if key_start is None else np.maximum(numbers - key_start[:, None], 0)


def fits(name, start, n, n_positions, hint):
    """ValueError if n tokens behind `start` others are more than a model sees; in a recorded step, nobody can tell."""
    if not backend.is_array(start) and start + n > n_positions:
        raise ValueError(f"{name}: {start + n} tokens are more than its n_positions={n_positions}; {hint}")


def lengths(is_text):
    """How many tokens of each row come before its padding: is_text (B, T) booleans -> (B,), or None if none is padded.

    Padding stands on the right: what is no text in front of text counts as text.
    """
    ends = text_ends(is_text)
    return None if (ends == is_text.shape[1]).all() else ends


def text_ends(is_text):
    """lengths(), also where no row is padded."""
    return np.where(is_text, np.arange(1, is_text.shape[1] + 1), 0).max(axis=1, initial=0)


def prepare(model, ids, targets):
    """A language model's prepare(): ids and targets (B, T), once all of them are known to be tokens.

    model.prepare() does for model.loss(**arrays) what has to see the numbers: on the host, before a batch goes to a GPU
    that plays back a recorded step (train.training_step).
    """
    name, V = type(model).__name__, model.config.vocab_size
    ids, targets = (token_ids(name, np.asarray(array)) for array in (ids, targets))
    return {"ids": F._ids(name, ids, V), "targets": F._ids(name, targets, V, -100)}
