"""Batches for training and for evaluation: a model reads tokens and has to tell, at each, the one that follows.

    tokens          10 11 12 13 14 15 16         context 3
    batch()         inputs 12 13 14, targets 13 14 15             a window that starts at random
    windows()       inputs 10 11 12, targets 11 12 13             every target once, in order
                    inputs 13 14 15, targets 14 15 16

Tokens may lie in memory or in a file (token_file.py): only what a batch needs is read.
"""

import hashlib
from collections.abc import Iterator

import numpy as np


def split(tokens: np.ndarray, val_fraction: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Return (training tokens, validation tokens): the first part of ``tokens`` and the rest, without copying.

    The cut is nanoGPT's: int((1 - val_fraction) * len(tokens)). It is not random, as windows drawn on both sides of
    many cuts would share text.

    Raises:
        ValueError: ``val_fraction`` is not from 0 to 1.
    """
    if not 0 <= val_fraction <= 1:
        raise ValueError(f"val_fraction: {val_fraction} is not a fraction; give a number from 0 to 1.")
    cut = int((1 - val_fraction) * len(tokens))
    return tokens[:cut], tokens[cut:]


class TokenDataset:
    """Inputs and targets from one long row of tokens; ``len`` is the number of tokens.

    Args:
        tokens: integers, shape (n,), n >= 2: an array or np.memmap. Lists are copied into an array.
        context: T, the number of tokens the model sees at once.

    Raises:
        ValueError: ``tokens`` is not a row of at least two integers, or ``context`` is not positive.
    """

    def __init__(self, tokens: np.ndarray, context: int):
        tokens = np.asanyarray(tokens)
        if tokens.ndim != 1 or len(tokens) < 2 or tokens.dtype.kind not in "iu":
            raise ValueError(
                f"tokens: got shape {tokens.shape} and dtype {tokens.dtype}; one row of at least 2 integers is needed, "
                "an input and its target."
            )
        if context < 1:
            raise ValueError(f"context: {context} is too small; the model has to see at least 1 token.")
        self.tokens = tokens
        self.context = context

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, batch_size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return (inputs, targets), int64 of shape (batch_size, T), from windows that start at random.

        Raises:
            ValueError: the text is too short for one window.
        """
        if len(self) <= self.context:
            raise ValueError(
                f"tokens: the text is {len(self)} tokens long, and a context of {self.context} needs at least "
                f"{self.context + 1}; use more text or a smaller context."
            )
        starts = rng.integers(0, len(self) - self.context, size=batch_size)
        windows = self.tokens[starts[:, None] + np.arange(self.context + 1)].astype(np.int64)
        return windows[:, :-1], windows[:, 1:]

    def windows(self, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (inputs, targets), int64, in which each token but the first is a target exactly once, in order.

        The windows follow each other without overlap, ``batch_size`` in a batch of shape (B, T), fewer in the last.
        What is left at the end, r < T targets, comes as a batch of its own, of shape (1, r).
        """
        full = (len(self) - 1) // self.context
        for first in range(0, full, batch_size):
            yield self._rows(first * self.context, min(first + batch_size, full) * self.context, self.context)
        if rest := (len(self) - 1) % self.context:
            yield self._rows(full * self.context, len(self) - 1, rest)

    def fingerprint(self) -> str:
        """Return what tells this data from other data: context, length, SHA-256 of the first and last million tokens.

        A resumed run compares it with the one of the run before.
        """
        digest = hashlib.sha256()
        for part in (self.tokens[:1_000_000], self.tokens[-1_000_000:]):
            digest.update(np.array(part, dtype=np.int64).tobytes())
        return f"{self.context} of {len(self)} tokens, {digest.hexdigest()[:16]}"

    def _rows(self, start: int, stop: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the inputs from ``start`` up to ``stop``, and their targets, in rows of ``width``."""
        tokens = np.array(self.tokens[start : stop + 1], dtype=np.int64)
        return tokens[:-1].reshape(-1, width), tokens[1:].reshape(-1, width)
