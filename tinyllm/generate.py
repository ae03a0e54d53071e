"""Generation: draw a token, append it, and ask the model again."""
import warnings

import numpy as np

from . import backend
from . import functional as F
from .modes import no_grad


def stream(model, ids, max_new_tokens=None, *, max_length=None, temperature=1.0, top_k=None, top_p=None, seed=0,
           stop_tokens=(), num_return_sequences=1, use_cache=True):
    """Yield the new tokens as they come: each time an int64 array (B * num_return_sequences,), one token per text.

    ids: the prompt, (T,) or (B, T) token ids, at least one. max_new_tokens, or max_length for prompt and answer
    together. temperature, top_k, top_p: see ops/sample.py; temperature 0 always takes the most likely token. The same
    seed gives the same text. A text that drew one of stop_tokens is over: it repeats that token until all texts are
    over. use_cache=False computes all positions again for each token: slower, same result.
    """
    text = _prompt(ids, num_return_sequences)                           # (B, T)
    steps = max_new_tokens if max_new_tokens is not None else (max_length or 0) - text.shape[1]
    if max_new_tokens is None and max_length is None:
        raise ValueError("generate: say how much to write, with max_new_tokens or max_length")
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield from _tokens(model, text, steps, use_cache, np.array(list(stop_tokens), np.int64),
                           lambda logits, step: F.sample(logits, temperature, top_k, top_p, np.array([seed, step])))
    finally:
        for module, training in modes:
            module.training = training


def generate(model, ids, max_new_tokens=None, **options):
    """The prompt and what follows it: (B * num_return_sequences, T + new) int64. The options are those of stream()."""
    text = _prompt(ids, options.get("num_return_sequences", 1))
    new = list(stream(model, ids, max_new_tokens, **options))
    return np.concatenate([text, *(tokens[:, None] for tokens in new)], axis=1)


def _prompt(ids, copies):
    """The prompt as (B * copies, T); the copies of one prompt stand together."""
    ids = np.atleast_2d(np.asarray(ids))
    if ids.ndim != 2 or ids.shape[1] == 0:
        raise ValueError(f"generate: the prompt must be (T,) or (B, T) token ids with T at least 1, not {ids.shape}; "
                         "a text can start with a newline's token")
    return np.repeat(ids.astype(np.int64), copies, axis=0)


def _tokens(model, text, steps, use_cache, stop_tokens, choose):
    """The loop. `start` is where the text that the model sees begins; the cache holds the positions from there on."""
    context, start, cache, seen = model.config.n_positions, 0, None, 0
    over = np.zeros(len(text), bool)
    for step in range(steps):
        if text.shape[1] - start > context:
            if start == 0:
                warnings.warn(f"the text has outgrown the model's context of {context} tokens: from here on the model "
                              f"sees only its last part, {context // 2} to {context} tokens", stacklevel=4)
            start, cache = text.shape[1] - max(1, context // 2), None       # half, so that a refill is rare
        with no_grad():
            if use_cache:
                if cache is None:
                    cache, seen = model.new_cache(len(text)), start
                logits = model.next_logits(text[:, seen:], cache)           # (B, V), from the positions not yet seen
                seen = text.shape[1]
            else:
                logits = model.next_logits(text[:, start:])
        new = choose(logits, step)                                          # (B,)
        new = backend.of(new).to_numpy(new)
        new = np.where(over, text[:, -1], new)
        text = np.concatenate([text, new[:, None]], axis=1)
        yield new
        over |= np.isin(new, stop_tokens)
        if over.all():
            return
