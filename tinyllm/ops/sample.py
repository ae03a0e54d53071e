"""Choosing the next token from the model's logits."""
import numpy as np

from .random import bits_of_rows


def sample(logits, rng, *, temperature=1.0, top_k=None, top_p=None, min_p=None, site=0):
    """Draw one token per row from softmax(logits / temperature), limited to the top_k / top_p / min_p most likely ones.

    logits (B, V), rng (seed, step) -> ids (B,) int64. temperature 0: the most likely token (greedy). top_k: keep the k
    most likely tokens (None, 0 or more than V: all). top_p: keep the smallest set of most likely tokens whose
    probabilities sum to at least p (Holtzman et al. 2019, eq. 2); None or 1: all. min_p: keep the tokens that are at
    least min_p times as likely as the most likely one (Nguyen et al. 2024, arXiv:2407.01082); None or 0: all. Top-k
    comes first, then top-p, then min-p.

    The draw is Gumbel-argmax: add noise -log(-log u) to each logit and take the largest; the winner is distributed as
    the softmax (Gumbel 1954). The noise depends on (seed, step, row, token) alone, so NumPy and Triton draw the same
    token, and every row draws its own.
    """
    if temperature == 0:
        return logits.argmax(axis=-1)
    z = logits.astype(np.float32)
    top = z.max(axis=-1, keepdims=True)
    with np.errstate(all="ignore"):         # however cold it gets, the best has the score 0; the others may reach -inf
        scores = np.where(z == top, np.float32(0), (z - top) / np.float32(temperature))
    scores = _keep_top(scores, top_k, top_p)
    if min_p:
        scores = np.where(scores < np.float32(np.log(min_p)), np.float32(-np.inf), scores)      # the best has score 0
    bits = bits_of_rows(rng, scores.shape, site)
    u = ((bits >> np.uint32(9)).astype(np.float32) + np.float32(0.5)) * np.float32(2**-23)      # exact, inside (0, 1)
    return (scores - np.log(-np.log(u))).argmax(axis=-1)


def _keep_top(scores, top_k, top_p):
    """scores with -inf for the tokens that top-k and top-p rule out; the most likely token always stays."""
    V = scores.shape[-1]
    k = V if not top_k else min(top_k, V)
    if k == V and (top_p is None or top_p >= 1):
        return scores
    order = np.argsort(-scores, axis=-1, kind="stable")[:, :k]              # most likely first; equals by token id
    best = np.take_along_axis(scores, order, axis=-1)
    if top_p is not None and top_p < 1:
        p = np.exp(best, dtype=np.float64)                                  # times a constant, as best[:, 0] is 0
        before = np.cumsum(p, axis=-1) - p                                  # mass of the more likely tokens
        best[(before >= top_p * p.sum(axis=-1, keepdims=True)) & (np.arange(k) > 0)] = -np.inf
    kept = np.full_like(scores, -np.inf)
    np.put_along_axis(kept, order, best, axis=-1)
    return kept
