"""What the models do with token ids before anything else."""
import numpy as np


def token_ids(model, ids):
    """Token ids as an array (B, T); a ValueError names the model."""
    ids = np.asarray(ids) if isinstance(ids, (list, tuple)) else ids
    if ids.ndim != 2:
        raise ValueError(f"{model}: ids must be (batch, time), not {tuple(ids.shape)}; one text is a batch of one: "
                         "ids[None]")
    return ids


def lengths(is_text):
    """How many tokens of each row come before its padding: is_text (B, T) booleans -> (B,), or None if none is padded.

    Padding stands on the right: what is no text in front of text counts as text.
    """
    ends = np.where(is_text, np.arange(1, is_text.shape[1] + 1), 0).max(axis=1, initial=0)
    return None if (ends == is_text.shape[1]).all() else ends
