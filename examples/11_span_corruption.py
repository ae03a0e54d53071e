"""11. Span corruption: how T5 learns from plain text, and what it then knows to write into a gap.

    python examples/11_span_corruption.py                       the text that comes with Python, three minutes
    python examples/11_span_corruption.py --sentence "A ___ is a function that ___ a value."

An encoder-decoder needs pairs of texts, and the world is full of single ones. T5 makes pairs of them (Raffel et al.
2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", arXiv:1910.10683, sections
3.1.4 and 3.3.4; the paper's own example):

    text        Thank you for inviting me to your party last week
    source      Thank you <extra_id_0> me to your party <extra_id_1> week
    target      <extra_id_0> for inviting <extra_id_1> last <extra_id_2>

15 % of the tokens are hidden, in spans of 3 on average. A sentinel, a token of its own for each span, says where; the
target names each span and what it was, and a last sentinel ends it. BERT would predict every hidden token by itself;
here the length of a span is hidden, too, and its tokens are written one after another, each knowing those before it.
And the target is short, so that training costs less than writing the whole text again would.

Three minutes show how this is learned, not yet what it is good for. To go on with a span, the decoder needs no more
than its own last token, and that comes soon. For the first token of a span, it has to look up what stands around the
gap, through two attentions: one in the encoder, which carries the neighbours to the sentinel, and one in the decoder,
which finds that sentinel. One token in twenty teaches it, and after three minutes it has hardly begun. (T5's baseline
read 34 billion tokens, section 3.1.2; this one reads 2 million.)

The model is T5 "tiny", with 600 byte-pair tokens. Everything is written into one folder (--out): checkpoints,
log.jsonl, loss.png, and spans.png, which shows where in a span the surprises are.
"""
import argparse
import re
from pathlib import Path

import tinyllm     # before NumPy: it tells NumPy's BLAS how to wait (ops/threads.py)
import numpy as np
import script
from tinyllm import checkpoint, text, train
from tinyllm.text import BPETokenizer, TokenDataset
from tinyllm.text.rewrite import normalize

VOCABULARY, CONTEXT, SENTINELS = 600, 48, 10
DENSITY, MEAN_SPAN = 0.15, 3
PAD, END, *SENTINEL = ["<pad>", "</s>", *(f"<extra_id_{i}>" for i in range(SENTINELS))]
GAP = "___"
DRAWN = re.compile(r"^[\W_]*$|^\s*[|+].*$", re.MULTILINE)       # lines and tables drawn with signs: too easy to guess
SENTENCES = [
    "The ___ statement is used to define a function.",
    "If the value is not ___, a KeyError is raised.",
    "Changed in version 3.___: the new argument was added.",
    "This is the same as ___ in the previous example.",
    "Return the ___ of the object as a ___.",
]


def how_much(length, density=DENSITY, mean_span=MEAN_SPAN):
    """(hidden tokens, spans) for a text of `length` tokens, rounded; at least one of each, and one token stays"""
    hidden = min(max(round(length * density), 1), length - 1)
    spans = max(round(hidden / mean_span), 1)
    return hidden, min(spans, hidden, length - hidden + 1)


def random_partition(total, parts, rng):
    """`parts` whole numbers of at least 1 with this sum, all such rows being equally likely: (parts,)"""
    cuts = np.sort(rng.choice(total - 1, parts - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))


def draw_spans(length, rng, density=DENSITY, mean_span=MEAN_SPAN):
    """Which tokens to hide: a list of (start, end). No two spans touch; any such choice is equally likely.

    Hidden and kept stretches take turns. The first and the last kept one may be empty, so that a gap can stand at
    either end: they get one token too many at first. (The authors' program begins each text with a kept token, and
    ends it with a hidden one.)
    """
    hidden, spans = how_much(length, density, mean_span)
    kept = random_partition(length - hidden + 2, spans + 1, rng)
    kept[0] -= 1
    sizes = random_partition(hidden, spans, rng)
    ends = np.cumsum(kept[:-1]) + np.cumsum(sizes)
    return list(zip((ends - sizes).tolist(), ends.tolist()))


def corrupt(ids, spans, sentinels):
    """(source, target), two lists: the text with a sentinel for each span; the spans, each behind its sentinel"""
    source, target, done = [], [], 0
    for sentinel, (start, end) in zip(sentinels, spans):
        source += [*ids[done:start], sentinel]
        target += [sentinel, *ids[start:end]]
        done = end
    return [*source, *ids[done:]], [*target, sentinels[len(spans)]]


def read_spans(target, sentinels, end=None):
    """What a target says: sentinel -> the tokens behind it; nothing before the first one, or from `end` on, counts"""
    spans, current = {}, []
    for token in target:
        if token == end:
            break
        if token in sentinels:
            current = spans.setdefault(token, [])
        else:
            current.append(token)
    return spans


def fill_in(source, spans):
    """The text again: the source with each sentinel replaced by its span"""
    return [token for place in source for token in spans.get(place, [place])]


class SpanDataset(TokenDataset):
    """Sources and targets from one long row of tokens. As all texts are of one length, so are all sources (L - hidden +
    spans tokens), and all targets (hidden + spans + the last sentinel + the end): nothing needs padding.
    """

    def __init__(self, tokens, tokenizer):
        super().__init__(tokens, CONTEXT)
        self.sentinels = [tokenizer.special_tokens[token] for token in SENTINEL]
        self.end = tokenizer.special_tokens[END]

    def batch(self, batch_size, rng):
        """(sources, targets), int64 (batch_size, S) and (batch_size, T), of texts that start at random"""
        return self.pairs(super().batch(batch_size, rng)[0], [rng] * batch_size)

    def windows(self, batch_size):
        """The whole text, in pieces of CONTEXT tokens; where the gaps are depends on the place in the text alone."""
        starts = np.arange(0, len(self) - CONTEXT + 1, CONTEXT)
        for some in np.split(starts, range(batch_size, len(starts), batch_size)):
            yield self.pairs(self.tokens[some[:, None] + np.arange(CONTEXT)], map(np.random.default_rng, some))

    def pairs(self, texts, rngs):
        made = [corrupt(ids, draw_spans(len(ids), rng), self.sentinels) for ids, rng in zip(texts.tolist(), rngs)]
        return np.array([source for source, _ in made]), np.array([[*target, self.end] for _, target in made])


def read(sentence, tokenizer):
    """The ids of a sentence, with a sentinel for each gap. The space before a gap belongs to what fills it."""
    first, *rest = sentence.split(GAP)
    if not 1 <= len(rest) < SENTINELS:
        raise ValueError(f'the sentence "{sentence}" has {len(rest)} gaps; write {GAP} for 1 to {SENTINELS - 1}')
    parts = [first, *(f"{sentinel}{part}" for sentinel, part in zip(SENTINEL, rest))]
    return tokenizer.encode("".join(part.rstrip(" ") for part in parts[:-1]) + parts[-1], allowed_special=SENTINEL)


def fill(model, tokenizer, sentence):
    """The sentence with what the model writes into its gaps, in brackets"""
    source, sentinels = read(sentence, tokenizer), [tokenizer.special_tokens[token] for token in SENTINEL]
    written = tinyllm.generate(model, [source], 8 * (sentence.count(GAP) + 1), temperature=0)[0].tolist()
    spans = read_spans(written, sentinels, tokenizer.special_tokens[END])
    opened, closed = tokenizer.encode("["), tokenizer.encode("]")
    return tokenizer.decode(fill_in(source, {s: [*opened, *spans.get(s, []), *closed] for s in sentinels}))


def surprises(model, data, frequencies):
    """Mean nats per token of the targets by place, 0 for sentinels and the end, 1 for the first token of a span, ...:
    two arrays, for the model, and for one that knows how frequent each token is, and no more
    """
    total = np.zeros((3, CONTEXT))
    marks = [*data.sentinels, data.end]
    with model.evaluating(), tinyllm.no_grad():
        for sources, targets in data.windows(64):
            losses, place = model.loss(sources, targets, reduction="none").numpy(), 0
            for column, nats in zip(targets.T, losses.T):
                place = np.where(np.isin(column, marks), 0, place + 1)              # (B,)
                for row, values in enumerate((nats, -np.log(frequencies[column]), 1)):
                    np.add.at(total[row], place, values)
    seen = total[2] > 100
    return total[0, seen] / total[2, seen], total[1, seen] / total[2, seen]


def picture(ours, baseline, path):
    from matplotlib.figure import Figure
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes, places = figure.subplots(), np.arange(len(ours))
    bars = axes.bar(places, ours, color="lightsteelblue", label="T5")
    axes.bar_label(bars, fmt="%.2f", label_type="center")
    axes.hlines(baseline[1:], places[1:] - 0.4, places[1:] + 0.4, color="tab:orange", label="frequencies alone")
    axes.set_xticks(places, ["sentinel\nor end", *(f"token {i}" for i in places[1:])])
    axes.set(title="The target, on text that the model has not seen", xlabel="place in the span",
             ylabel="nats per token", ylim=(0, 1.2 * max(baseline[1:])))
    axes.legend(loc="upper left", ncols=2)
    figure.savefig(path, dpi=110)


def make_data(vocabulary):
    """The tokenizer, and the data: nine tenths of the text to learn from, the rest to ask about"""
    corpus = normalize(DRAWN.sub("", text.default_corpus()))
    print(f"Text, without tables, with single spaces: {text.describe(corpus)}")
    tokenizer = BPETokenizer.train(corpus, vocabulary, [PAD, END, *SENTINEL])
    ids = np.array(tokenizer.encode(corpus))
    return tokenizer, *(SpanDataset(part, tokenizer) for part in text.split(ids, 0.1))


def make_model(tokenizer, seed):
    """A tiny T5 with a head of its own, as in T5's version 1.1: here it gets as far in half the steps"""
    tinyllm.manual_seed(seed)
    pad, end = tokenizer.special_tokens[PAD], tokenizer.special_tokens[END]
    return tinyllm.T5(tinyllm.T5Config.preset("tiny", vocab_size=tokenizer.vocab_size, tie_word_embeddings=False,
                                              pad_token_id=pad, eos_token_id=end, decoder_start_token_id=pad))


def main():
    parser = argparse.ArgumentParser(description="Train a small T5 to write what is hidden.",
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000, help="how often the weights are changed")
    parser.add_argument("--sentence", action="append", default=[], help=f"with {GAP} for each gap; may be repeated")
    parser.add_argument("--seed", type=int, default=1, help="of the weights and the data")
    parser.add_argument("--out", default="runs/t5", help="folder for everything that is written")
    parser.add_argument("--resume", action="store_true", help="continue from the newest checkpoint in --out")
    args = parser.parse_args()
    script.folder(args.out)
    config = train.TrainConfig(steps=args.steps, batch_size=16, lr=3e-3, min_lr=0.0, warmup=min(200, args.steps // 10),
                               schedule="linear", betas=(0.9, 0.98), weight_decay=0.01, eval_every=500, save_every=500,
                               sample_tokens=0, seed=args.seed)
    newest = checkpoint.latest(args.out) if args.resume else None
    if args.resume and newest is None:
        raise ValueError(f"there is no checkpoint in {args.out} to resume from; run without --resume first")
    tokenizer, train_data, val_data = make_data(VOCABULARY)
    for sentence in args.sentence:
        read(sentence, tokenizer)               # a mistake in it should show now, not after the training
    model = make_model(tokenizer, args.seed)
    sources, targets = val_data.pairs(val_data.tokens[None, :CONTEXT], [np.random.default_rng(args.seed)])
    print(f"\n  text     {tokenizer.decode(val_data.tokens[:CONTEXT])}\n  source   {tokenizer.decode(sources[0])}\n"
          f"  target   {tokenizer.decode(targets[0])}\n")
    print(f"Model: {model.num_parameters():,} parameters. Job: {config.steps:,} steps of {config.batch_size} texts of "
          f"{CONTEXT} tokens, {how_much(CONTEXT)[0]} of them hidden in {how_much(CONTEXT)[1]} spans;\nabout three "
          "minutes on two cores. Expect: the sentinels are learned first, then which tokens are frequent, then how a\n"
          "span goes on; the loss ends near 2.8. How a span begins takes far longer.\n")
    train.train(model, train_data, val_data, config, args.out, tokenizer, newest)

    counts = np.bincount(train_data.tokens, minlength=tokenizer.vocab_size) + 1
    ours, baseline = surprises(model, val_data, counts / counts.sum())
    print("\nText it has not seen, nats per token:   by this model   by frequencies alone")
    for place, (a, b) in enumerate(zip(ours, baseline)):
        name = f"token {place} of a span" if place else "sentinels, the end"
        print(f"  {name:20s}{a:24.2f}" + f"{b:18.2f}" * (place > 0))
    print("\nGaps, filled with the likeliest token each time:")
    for sentence in [*args.sentence, *SENTENCES]:
        print(f"  {fill(model, tokenizer, sentence)}")
    with script.drawing():
        picture(ours, baseline, Path(args.out) / "spans.png")
        print(f"\nThe surprises as a picture: {args.out}/spans.png. The curve of the loss: {args.out}/loss.png.")


if __name__ == "__main__":
    script.run(main)
