"""Batches of pairs: a model reads a source text and has to write the target text that belongs to it.

    pairs           5 6 7 -> 8 9        5 -> 6 7 8              padding 0, end 2
    batch()         sources  5 6 7      targets  8 9 2 -100     pairs drawn at random
                             5 0 0               6 7 8 2
    windows()       every pair once, in order

Rows are filled up on the right to the longest of their batch. Behind the end of a target there is nothing to tell, so
its padding is -100, which the losses leave out.
"""

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np


class PairDataset:
    """Sources and targets; ``len`` is the number of pairs.

    Args:
        pairs: (source, target) each, two lists of token ids that may be of any length; a source not of length 0.
        pad_token_id: what fills the sources up; no source ends with it.
        eos_token_id: what stands at the end of each target; it is added here. None: the targets have their end already.

    Raises:
        ValueError: there are no pairs, or one is not as described.
    """

    def __init__(
        self, pairs: Iterable[tuple[list[int], list[int]]], pad_token_id: int = 0, eos_token_id: int | None = 2
    ):
        end = [] if eos_token_id is None else [eos_token_id]
        self.pairs = [(_row(source), _row([*target, *end])) for source, target in pairs]
        self.pad_token_id = pad_token_id
        if not self.pairs:
            raise ValueError("pairs: there are none; give at least one (source, target).")
        for i, (source, target) in enumerate(self.pairs):
            if len(source) == 0 or len(target) == 0:
                empty = "target" if len(source) else "source"
                raise ValueError(f"pairs: the {empty} of number {i} is empty; leave this pair out.")
            if source[-1] == pad_token_id:
                raise ValueError(
                    f"pairs: the source of number {i} ends with {pad_token_id}, which is the padding; cut it off."
                )

    def __len__(self) -> int:
        return len(self.pairs)

    def batch(self, batch_size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return (sources, targets), int64 of shape (batch_size, S) and (batch_size, T), of pairs drawn at random."""
        return self._fill_up([self.pairs[i] for i in rng.integers(0, len(self), size=batch_size)])

    def windows(self, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (sources, targets), int64, in which each pair stands once, in order; fewer rows in the last batch."""
        for first in range(0, len(self), batch_size):
            yield self._fill_up(self.pairs[first : first + batch_size])

    def fingerprint(self) -> str:
        """Return what tells this data from other data: the number of pairs, and a SHA-256 of them all.

        A resumed run compares it with the one of the run before.
        """
        digest = hashlib.sha256()
        for row in (row for pair in self.pairs for row in pair):
            digest.update(np.int64(len(row)).tobytes() + row.tobytes())
        return f"{len(self)} pairs, {digest.hexdigest()[:16]}"

    def _fill_up(self, pairs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
        sources, targets = zip(*pairs)
        return _rectangle(sources, self.pad_token_id), _rectangle(targets, -100)


def _row(ids: list[int]) -> np.ndarray:
    """Return token ids as an int64 array; ValueError if they are none."""
    row = np.asarray(ids)
    if row.ndim != 1 or (row.size and row.dtype.kind not in "iu"):
        raise ValueError(f"pairs: {str(ids)[:40]} is not a list of token ids; encode texts with a tokenizer.")
    return row.astype(np.int64)


def _rectangle(rows: tuple[np.ndarray, ...], filling: int) -> np.ndarray:
    """Return rows of any length as one array, filled up on the right."""
    full = np.full((len(rows), max(map(len, rows))), filling)
    for place, row in zip(full, rows):
        place[: len(row)] = row
    return full
