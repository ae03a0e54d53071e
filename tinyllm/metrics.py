"""How good is it? The numbers that people report of a language model."""
import math

import numpy as np


def perplexity(loss):
    """e^loss, for a loss in nats per token:
    among how many equally likely tokens the model is, on average, undecided.
    """
    return math.inf if loss >= 700 else math.exp(loss)


def bits_per_byte(loss, tokens, n_bytes):
    """loss / ln 2 * tokens / bytes: comparable between tokenizers, as every text has as many bytes under all of them.

    loss: mean nats per token over a text of `tokens` predicted tokens, which stand for `n_bytes` bytes of UTF-8.
    """
    return loss / math.log(2) * tokens / n_bytes


def bits_per_character(loss, tokens, characters):
    """loss / ln 2 * tokens / characters: like bits_per_byte, for a text of that many characters."""
    return bits_per_byte(loss, tokens, characters)


def accuracy(predicted, targets, ignore_index=-100):
    """The share of positions where both agree, leaving out those whose target is ignore_index; NaN if none is left.

    predicted, targets: integer arrays of one shape, such as logits.argmax(-1) and the tokens that came.
    """
    predicted, targets = np.asarray(predicted), np.asarray(targets)
    if predicted.shape != targets.shape:
        raise ValueError(f"accuracy: one prediction per target, got {predicted.shape} and {targets.shape}; "
                         "pass logits.argmax(-1)")
    counts = targets != ignore_index
    return float((predicted == targets)[counts].mean()) if counts.any() else math.nan
