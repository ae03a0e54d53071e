"""Batches for BERT: some tokens are hidden, and the model has to tell which ones they were.

    tokens          10 11 12 13 14 15 16 17         context 6, of which [CLS] and [SEP] take two
    batch()         inputs  [CLS] 13 14 [MASK] 16 [SEP]           a window that starts at random
                    targets  -100 -100 -100 15 -100 -100          -100: nothing to tell here
    windows()       the windows 10 11 12 13 and 14 15 16 17, in order, masked in the same way each time

Of the tokens chosen, only 80 % become [MASK]. 10 % become a random token and 10 % stay what they are, for [MASK] never
occurs when the model is used later: so that it keeps a good vector for every token, it must not know which ones it will
be asked about. (Devlin et al. 2019, section 3.1. The mask is drawn anew each time a window comes, as in Liu et al.
2019, "RoBERTa", section 4.1; their section 4.2 is why there are no pairs of sentences here.)
"""

from collections.abc import Iterator

import numpy as np

from .data import TokenDataset
from .wordpiece import WordPieceTokenizer


def mask_tokens(
    ids: np.ndarray, tokenizer: WordPieceTokenizer, rng: np.random.Generator, probability: float = 0.15
) -> tuple[np.ndarray, np.ndarray]:
    """Hide some tokens; return (inputs, targets), int64 arrays like ``ids``, with targets of -100 at all others.

    Special tokens are never hidden, and a random token is never one: a [PAD] would pass for the end of the text.

    Args:
        ids: token ids, of any shape.
        tokenizer: what made them; it has to know "[MASK]".
        rng: where chance comes from; in a training run a function of (seed, step).
        probability: with which each token that is not special is chosen.
    """
    ids = np.asarray(ids, np.int64)
    special = list(tokenizer.special_tokens.values())
    ordinary = np.setdiff1d(np.arange(tokenizer.vocab_size), special)
    chosen = (rng.random(ids.shape) < probability) & ~np.isin(ids, special)
    chance, others = rng.random(ids.shape), rng.choice(ordinary, ids.shape)
    hidden = np.where(chance < 0.8, tokenizer.special_tokens["[MASK]"], np.where(chance < 0.9, others, ids))
    return np.where(chosen, hidden, ids), np.where(chosen, ids, -100)


class MaskedDataset(TokenDataset):
    """Inputs and targets from one long row of tokens; ``len`` is the number of tokens.

    Args:
        tokens: integers, shape (n,), n >= 2: an array or np.memmap, without [CLS] and [SEP].
        context: T, the number of tokens the model sees at once, [CLS] and [SEP] included.
        tokenizer: what made the tokens; its special tokens include "[CLS]", "[SEP]" and "[MASK]".
        probability: the share of tokens to hide.

    Raises:
        ValueError: ``tokens`` is not a row of at least two integers, ``context`` is below 3, ``probability`` is not
            above 0 and at most 1, or the tokenizer lacks one of the special tokens.
    """

    def __init__(self, tokens: np.ndarray, context: int, tokenizer: WordPieceTokenizer, probability: float = 0.15):
        super().__init__(tokens, context)
        if context < 3:
            raise ValueError(f"context: {context} is too small; [CLS], [SEP] and a token between them need 3.")
        if not 0 < probability <= 1:
            raise ValueError(f"probability: {probability} is not a share of tokens; give a number above 0, at most 1.")
        if missing := {"[CLS]", "[SEP]", "[MASK]"} - set(getattr(tokenizer, "special_tokens", ())):
            raise ValueError(
                f"tokenizer: it has no {', '.join(sorted(missing))}; train it with these as special tokens, as a "
                "WordPieceTokenizer always is."
            )
        self.tokenizer = tokenizer
        self.probability = probability
        self._width = context - 2  # tokens of the text in a window

    def batch(self, batch_size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return (inputs, targets), int64 of shape (batch_size, T), from windows that start at random.

        Raises:
            ValueError: the text is too short for one window.
        """
        if len(self) < self._width:
            raise ValueError(
                f"tokens: the text is {len(self)} tokens long, and a context of {self.context} needs at least "
                f"{self._width}; use more text or a smaller context."
            )
        starts = rng.integers(0, len(self) - self._width + 1, size=batch_size)
        return mask_tokens(self._windows(starts, self._width), self.tokenizer, rng, self.probability)

    def windows(self, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (inputs, targets), int64, in which each token of the text stands exactly once, in order.

        The windows follow each other without overlap, ``batch_size`` in a batch of shape (B, T), fewer in the last.
        What is left at the end, r < T - 2 tokens, comes as a batch of its own, of shape (1, r + 2). What is hidden in a
        window depends on its place in the text alone: every evaluation asks the same questions.
        """
        starts = np.arange(0, len(self) - self._width + 1, self._width)
        for first in range(0, len(starts), batch_size):
            yield self._questions(starts[first : first + batch_size], self._width)
        if rest := len(self) % self._width:
            yield self._questions(np.array([len(self) - rest]), rest)

    def fingerprint(self) -> str:
        """Return what tells this data from other data: that of ``TokenDataset``, and the share of hidden tokens."""
        return f"{super().fingerprint()}, {self.probability:g} of them hidden"

    def _windows(self, starts: np.ndarray, width: int) -> np.ndarray:
        """Return [CLS], ``width`` tokens from each start on, [SEP]: (B, width + 2)."""
        special = self.tokenizer.special_tokens
        rows = np.full((len(starts), width + 2), special["[CLS]"], np.int64)
        rows[:, 1:-1] = self.tokens[starts[:, None] + np.arange(width)]
        rows[:, -1] = special["[SEP]"]
        return rows

    def _questions(self, starts: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (inputs, targets) of the windows at these starts, each masked by a generator of its own."""
        rows = self._windows(starts, width)
        masked = [
            mask_tokens(row, self.tokenizer, np.random.default_rng(int(start)), self.probability)
            for row, start in zip(rows, starts)
        ]
        inputs, targets = zip(*masked)
        return np.stack(inputs), np.stack(targets)
