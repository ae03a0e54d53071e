"""Beam search: keep several texts in view, and choose the likeliest whole text instead of the likeliest next token.

A text is as likely as all its tokens together, log p(text) = sum over t of log p(token t | the tokens before). Taking
the best token each time (greedy) can lead into a corner, where every continuation is unlikely; and there are far too
many texts, V^n, to look at all of them. Beam search keeps the `num_beams` best beginnings of a text that are n tokens
long: the hypotheses. In each round,

    1. every hypothesis of a prompt is continued with every token: num_beams * V candidates, each with the score of its
       hypothesis plus log p of the token;
    2. of the num_beams best candidates, those that end with this token are finished texts. They go on a list, which
       keeps the num_beams best;
    3. of the candidates that do not end, the num_beams best are the next hypotheses. One hypothesis may have several
       heirs, another none.

The sum of logarithms falls with every token, so that short texts would win. On the list, a text of n tokens has

    score = log p(text) / n^length_penalty

With 0 it is the sum itself, with 1 the mean per token, and the larger the penalty, the better for long texts. This is
Hugging Face's rule, and the texts found here are those that its generate() finds. Wu et al. 2016 (arXiv:1609.08144,
equation 14) divide by ((5 + n) / 6)^alpha instead, and add a term for how much of the source was attended to.

The search for a prompt ends when its list is full and nothing better is to be expected:

    early_stopping=True         at once
    early_stopping=False        when the best hypothesis would not get on the list if it were finished as it is
    early_stopping="never"      the same, but with n as large as it may become where that is better for its score

With a length penalty above 0 only the last one is sure, and it takes longest.

A likely text is not always a good one. Beams are for translations and answers, where little is left open; what they
write freely is dull and repeats itself (Holtzman et al. 2019, arXiv:1904.09751).
"""
import numpy as np

from . import backend
from . import functional as F
from .options import need
from .tensor import Tensor
from .warpers import ends, warper

NEVER = -1e9        # added to the score of what fills a place only as long as there is nothing else


class Beams:
    """Chooses the tokens of num_beams texts for each prompt; the texts of one prompt stand together.

    padding (B * num_beams,): how many tokens stand before each prompt. steps: how many may come.
    """

    def __init__(self, options, padding, steps):
        self.o, self.padding, self.steps, self.warp = options, padding, steps, warper(options, padding)
        batch = len(padding) // options.num_beams
        self.scores = np.full((batch, options.num_beams), NEVER)        # sums of log p of the hypotheses, best first;
        self.scores[:, 0] = 0                                           # as yet all are the same text: one counts
        self.finished = [[] for _ in range(batch)]                      # of each prompt (score, text), best first
        self.open = np.ones(batch, bool)                                # whether something better may come
        self.done = False

    def __call__(self, logits, texts, step):
        """logits (B * num_beams, V) after texts (B * num_beams, T) -> rows, tokens: (B * num_beams,) each

        Text i goes on as what was text rows[i], with tokens[i] behind it.
        """
        K, batch = self.o.num_beams, len(self.finished)
        logits = backend.of(logits.data).to_numpy(logits.data).astype(np.float64)
        logp = F.log_softmax(Tensor(logits)).numpy()                                        # (B K, V)
        if self.warp:
            logp = self.warp(logp, texts)
        totals = self.scores[:, :, None] + logp.reshape(batch, K, -1)                       # (B, K, V)
        heirs = [self._round(b, totals[b], texts[b * K:(b + 1) * K], step + 1) for b in range(batch)]
        self.done = not self.open.any()
        rows = [b * K + parents for b, (parents, _) in enumerate(heirs)]
        return np.concatenate(rows), np.concatenate([tokens for _, tokens in heirs])

    def _round(self, b, totals, texts, n):
        """The n-th token of prompt b: totals (K, V), texts (K, T) -> parents and tokens of the heirs, (K,) each"""
        K, V = totals.shape
        # all hypotheses may end, with each of the stop tokens: so many candidates leave K that do not
        candidates = _largest(totals.ravel(), K * max(2, 1 + len(self.o.stop_tokens)))
        parents, tokens, scores = candidates // V, candidates % V, totals.ravel()[candidates]
        heirs = np.concatenate([texts[parents], tokens[:, None]], axis=1)                   # (candidates, T + 1)
        over = ends(self.o, heirs[:, self.padding[b * K]:]) | (n == self.steps)
        if self.open[b]:
            self._finish(b, heirs[:K][over[:K]], scores[:K][over[:K]], n)
        scores = scores + NEVER * over
        best = np.argsort(-scores, kind="stable")[:K]
        self.scores[b] = scores[best]
        self.open[b] &= self._may_improve(b, n)
        return parents[best], tokens[best]

    def _finish(self, b, texts, scores, n):
        """Put texts of n tokens on the list of prompt b; the num_beams best stay."""
        real = scores > NEVER / 2                       # neither forbidden nor there to fill a place
        self.finished[b] += zip(scores[real] / n**self.o.length_penalty, texts[real])
        self.finished[b].sort(key=lambda entry: -entry[0])
        del self.finished[b][self.o.num_beams:]

    def _may_improve(self, b, n):
        """Whether a hypothesis of prompt b, of n tokens so far, may still get on the list."""
        o, best, full = self.o, self.scores[b, 0], len(self.finished[b]) == self.o.num_beams
        if best < NEVER / 2:                            # what is left only fills places
            return False
        if not full or o.early_stopping is True:
            return not full
        longest = self.steps if o.early_stopping == "never" and o.length_penalty > 0 else n
        return best / longest**o.length_penalty > self.finished[b][-1][0]

    def texts(self):
        """The num_return_sequences best texts of each prompt, best first: (B * num_return_sequences, T)

        Short ones are filled up with pad_token_id, or with their last token.
        """
        o, found = self.o, [text for entries in self.finished for _, text in entries[:self.o.num_return_sequences]]
        wanted = len(self.finished) * o.num_return_sequences
        need(len(found) == wanted, f"beam search found {len(found)} texts of {wanted}; there are no others, or the "
             "rules (no_repeat_ngram_size, min_length, suppress_tokens) forbid them")
        out = np.empty((wanted, max(map(len, found))), np.int64)
        for row, text in zip(out, found):
            row[:] = text[-1] if o.pad_token_id is None else o.pad_token_id
            row[:len(text)] = text
        return out


def _largest(x, k):
    """Where the k largest numbers of x (N,) stand, the largest first; equals in their order."""
    k = min(k, len(x))
    some = np.argpartition(-x, k - 1)[:k]                   # sorting all would take ten times as long
    return some[np.lexsort((some, -x[some]))]
