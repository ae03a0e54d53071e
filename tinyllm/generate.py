"""Generation: draw a token, append it, and ask the model again."""
import warnings

import numpy as np

from . import backend, random
from . import functional as F
from .modes import no_grad
from .tensor import Tensor


def stream(model, ids, max_new_tokens=None, *, max_length=None, temperature=1.0, top_k=None, top_p=None, seed=None,
           stop_tokens=(), num_return_sequences=1, use_cache=True):
    """Yield the new tokens as they come: each time an int64 array (B * num_return_sequences,), one token per text.

    ids: the prompt, (T,) or (B, T) token ids, at least one. max_new_tokens, or max_length for prompt and answer
    together. temperature, top_k, top_p: see ops/sample.py; temperature 0 always takes the most likely token. The same
    seed gives the same text; without one, every call draws another, which tinyllm.manual_seed() decides. A text that
    drew one of stop_tokens (one id, or several) is over: it repeats that token until all texts are over.
    use_cache=False computes all positions again for each token: slower, same result.
    """
    text = _prompt(ids, num_return_sequences)                           # (B, T)
    if max_new_tokens is None and max_length is None:
        raise ValueError("generate: say how much to write, with max_new_tokens or max_length")
    steps = max_length - text.shape[1] if max_new_tokens is None else max_new_tokens
    if (max_new_tokens or 0) < 0 or (max_length or 0) < 0:
        raise ValueError(f"generate: max_new_tokens={max_new_tokens} and max_length={max_length} must not be negative")
    seed = random.new_seed() if seed is None else random.check_seed(seed)
    stop_tokens = [stop_tokens] if isinstance(stop_tokens, (int, np.integer)) else list(stop_tokens)
    with model.evaluating():
        yield from _tokens(model, text, steps, use_cache, stop_tokens,
                           lambda logits, step: F.sample(logits, temperature, top_k, top_p, np.array([seed, step])))


def generate(model, ids, max_new_tokens=None, **options):
    """The prompt and what follows it: (B * num_return_sequences, T + new) int64. The options are those of stream()."""
    text = _prompt(ids, options.get("num_return_sequences", 1))
    new = list(stream(model, ids, max_new_tokens, **options))
    return np.concatenate([text, *(tokens[:, None] for tokens in new)], axis=1)


def _prompt(ids, copies):
    """The prompt as (B * copies, T); the copies of one prompt stand together."""
    ids = np.atleast_2d(ids.numpy() if isinstance(ids, Tensor) else np.asarray(ids))
    if ids.ndim != 2 or ids.size == 0:
        raise ValueError(f"generate: the prompt must be (T,) or (B, T) token ids with T at least 1, not {ids.shape}; "
                         "a text can start with a newline's token")
    if ids.dtype.kind not in "iu":
        raise ValueError(f"generate: the prompt must be token ids, not {ids.dtype}; a text becomes ids with "
                         "tokenizer.encode(text)")
    if copies < 1:
        raise ValueError(f"generate: num_return_sequences must be at least 1, not {copies}")
    return np.repeat(ids.astype(np.int64), copies, axis=0)


def _tokens(model, text, steps, use_cache, stop_tokens, choose):
    """The loop. `start` is where the text that the model sees begins; the cache holds the positions from there on."""
    context, start, cache, seen = model.config.n_positions, 0, None, 0
    over = np.zeros(len(text), bool)
    for step in range(steps):
        if text.shape[1] - start > context:
            if start == 0:
                warnings.warn_explicit(     # one line, without a line of our source under it
                    f"the text has outgrown the context of {context} tokens; the model now sees only its last "
                    f"{context // 2} to {context}", UserWarning, "tinyllm.generate", 0)
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
