"""The numbers that people report of a language model."""

import math

import numpy as np
import pytest

from tinyllm import metrics


def test_perplexity():
    assert metrics.perplexity(0.0) == 1
    assert metrics.perplexity(math.log(8)) == pytest.approx(8)
    assert metrics.perplexity(1e6) == math.inf      # and no OverflowError
    assert math.isnan(metrics.perplexity(math.nan))


def test_bits_per_byte_and_character():
    """10 tokens at 3 bits each, for a text of 15 bytes that are 12 characters."""
    assert metrics.bits_per_byte(3 * math.log(2), 10, 15) == pytest.approx(2)
    assert metrics.bits_per_character(3 * math.log(2), 10, 12) == pytest.approx(2.5)


def test_accuracy():
    assert metrics.accuracy([[1, 2], [3, 4]], [[1, 0], [3, -100]]) == pytest.approx(2 / 3)
    assert metrics.accuracy([1, 0], [7, 0], ignore_index=7) == 1
    assert math.isnan(metrics.accuracy([1], [-100]))
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2,\).*argmax"):
        metrics.accuracy(np.zeros((2, 3)), [1, 2])
