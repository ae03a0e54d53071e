"""Rules for the next token that look at the text so far: what it makes unlikely or forbids, and what ends it.

Those that change the logits are pure functions of host arrays, the same on both paths:

    logits (B, V), texts: B rows of token ids, prompts included -> new logits (B, V); a forbidden token has -inf

Names, meaning and order are those of Hugging Face's generate(). What follows there, temperature, top-k, top-p and
min-p, looks at the logits alone and is part of the draw (ops/sample.py).
"""
import numpy as np


def repetition_penalty(logits, texts, penalty):
    """Make the tokens of the text less likely: a positive logit is divided by the penalty, a negative one multiplied.

    How often a token occurred does not matter. Below 1 the penalty is a reward. Source: Keskar et al. 2019 (CTRL,
    arXiv:1909.05858), section 4.1, which divides all logits; of a negative one that would make the token likelier.
    """
    out = logits.copy()
    for row, text in zip(out, texts):
        tokens = np.unique(text)
        row[tokens] = np.where(row[tokens] < 0, row[tokens] * penalty, row[tokens] / penalty)
    return out


def no_repeat_ngrams(logits, texts, n):
    """Forbid every token that would complete n tokens in a row which the text already has (Paulus et al. 2017).

    With n = 1 no token comes twice. Names and common phrases are repetitions, too: small n make texts evasive.
    """
    out = logits.copy()
    for row, text in zip(out, texts):
        if len(text) >= n:
            grams = np.lib.stride_tricks.sliding_window_view(np.asarray(text), n)       # (len(text) - n + 1, n)
            last = text[len(text) - n + 1:]                                             # the n - 1 tokens at the end
            row[grams[(grams[:, :-1] == last).all(axis=1), -1]] = -np.inf
    return out


def suppress(logits, tokens):
    """Forbid some tokens: with the stop tokens, a text cannot end. An id that no token has changes nothing."""
    out = logits.copy()
    out[:, np.isin(np.arange(out.shape[1]), list(tokens))] = -np.inf
    return out


def warper(options, padding):
    """All rules that the options ask for as one function (logits (B, V), texts (B, T)) -> logits; None: no rule at all.

    padding (B,): how many tokens stand before each prompt. They make a text longer, and are no part of it otherwise.
    """
    o = options
    if o.repetition_penalty == 1 and not (o.no_repeat_ngram_size or o.min_length or o.suppress_tokens):
        return None

    def warp(logits, texts):
        rows = unpadded(texts, padding)
        if o.repetition_penalty != 1:
            logits = repetition_penalty(logits, rows, o.repetition_penalty)
        if o.no_repeat_ngram_size:
            logits = no_repeat_ngrams(logits, rows, o.no_repeat_ngram_size)
        if texts.shape[1] < o.min_length:
            logits = suppress(logits, o.stop_tokens)
        if o.suppress_tokens:
            logits = suppress(logits, o.suppress_tokens)
        return logits
    return warp


def ends(options, texts):
    """Which texts end with their last token, a stop token or one that completes a stop string: rows of ids -> (B,)

    The string may begin in the prompt, and the token may go on behind it.
    """
    o, over = options, np.isin([text[-1] for text in texts], options.stop_tokens)
    if o.stop_strings:
        longest = max(len(string.encode()) for string in o.stop_strings)
        for i in np.flatnonzero(~over):
            tail = texts[i][-longest - 1:].tolist()         # enough: a token is a byte of text, or more
            before, after = o.tokenizer.decode(tail[:-1]), o.tokenizer.decode(tail)
            over[i] = any(after.rfind(string) > before.rfind(string) for string in o.stop_strings)
    return over


def unpadded(texts, padding):
    """Texts (B, T) as a list of rows, without the first padding[i] tokens of row i."""
    return [text[n:] for text, n in zip(texts, padding)]
