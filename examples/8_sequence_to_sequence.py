"""8. From one text to another: an encoder-decoder learns to read numbers and dates.

    python examples/8_sequence_to_sequence.py                       both models, one to five minutes
    python examples/8_sequence_to_sequence.py --model t5            one of them
    python examples/8_sequence_to_sequence.py --ask "number: nine hundred and six" --ask "date: 5th of May 2021"

Two tasks in one model, told apart by the first word of the source, as T5 does it:

    number: forty-one thousand three hundred and six    ->  41306
    date: Wednesday, 24 June 1987                       ->  1987-06-24

The tokens are words, digits and signs. Nobody tells the model that "forty" is a 4 in one place and a 40 in another,
that June is 06, or that the year comes first: it learns all that from examples. What it is asked at the end it has not
seen: no number and no day of the questions stands among the examples.

Two models learn the same: the first Transformer (tinyllm/models/seq2seq.py) and T5 (tinyllm/models/t5.py). Their
attention to the source shows where each digit that they write comes from. Everything is written into one folder per
model (--out): checkpoints, log.jsonl, loss.png; and attention.png, the pictures of both. Started again, the script goes
on where it was interrupted, and asks a model that has learned already without training it anew.
"""
import argparse
import datetime
import re
from pathlib import Path

import tinyllm     # before NumPy: it tells NumPy's BLAS how to wait (ops/threads.py)
import numpy as np
import script
from tinyllm import checkpoint, train
from tinyllm.text import PairDataset

ONES = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen").split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
MONTHS = ("January February March April May June July August September October November December").split()
FIRST_DAY, DAYS = datetime.date(1900, 1, 1), 73_049         # up to the end of 2099
SPECIAL = PAD, START, END = 0, 1, 2                         # ids that stand for no text
STEPS = {"seq2seq": 600, "t5": 1500}
ASKED = ["number: seven hundred and forty-one thousand two hundred and six", "date: the 24th of June, 1987"]


def in_words(n):
    """A number from 0 to 999,999 as it is spoken: 41306 -> "forty-one thousand three hundred and six" """
    if n < 20:
        return ONES[n]
    if n < 100:
        return TENS[n // 10 - 2] + ("-" + ONES[n % 10] if n % 10 else "")
    size, name, joint = (1000, "thousand", " ") if n >= 1000 else (100, "hundred", " and ")
    joint = " and " if n % size < 100 else joint            # "five thousand and six", "five thousand six hundred"
    return f"{in_words(n // size)} {name}" + (joint + in_words(n % size) if n % size else "")


def written(day, form):
    """A date in one of FORMS ways."""
    d, month, year = day.day, MONTHS[day.month - 1], day.year
    th = "th" if d in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(d % 10, "th")
    return (f"{d} {month} {year}", f"{month} {d}, {year}", f"the {d}{th} of {month}, {year}", f"{month} {d}{th} {year}",
            f"{d} {month[:3]} {year}", f"{day:%A}, {d} {month} {year}", f"{d}.{day.month}.{year}",
            f"{month[:3]} {d} {year}")[form]


FORMS = 8


class Words:
    """The simplest tokenizer for these texts: letters side by side are a token, and so is any other sign; no spaces."""

    def __init__(self, texts):
        self.words = [f"<{i}>" for i in SPECIAL] + sorted({word for text in texts for word in self.cut(text)})
        self.ids = {word: i for i, word in enumerate(self.words)}

    def cut(self, text):
        return re.findall(r"[^\W\d]+|\S", text)

    def encode(self, text):
        for word in self.cut(text):
            if word not in self.ids:
                raise ValueError(f'"{text}": "{word}" does not occur in the examples; write it as they do')
        return [self.ids[word] for word in self.cut(text)]

    def decode(self, ids):
        return "".join(self.words[i] for i in ids if i not in SPECIAL)


def make_pairs(rng, examples, questions):
    """Two lists of (source, target), to learn from and to ask: half numbers, half dates, all numbers and days distinct.

    Short numbers are as frequent as long ones: of all numbers below a million, nine in ten have six digits.
    """
    count = (examples + questions) // 2
    numbers = rng.permutation(list({int(10 ** x) for x in rng.uniform(0, 6, 10 * count)}))[:count]
    days = [FIRST_DAY + datetime.timedelta(int(i)) for i in rng.permutation(DAYS)[:count]]
    pairs = [pair for n, day in zip(numbers, days) for pair in (
        ("number: " + in_words(n), str(n)), ("date: " + written(day, rng.integers(FORMS)), day.isoformat()))]
    return pairs[questions:], pairs[:questions]


def make_model(name, tokenizer, seed):
    tinyllm.manual_seed(seed)
    ids = dict(vocab_size=len(tokenizer.words), pad_token_id=PAD, decoder_start_token_id=START, eos_token_id=END)
    if name == "t5":
        # T5 knows how far words stand apart, but not where they stand: to find out which word becomes which digit takes
        # it more steps, and with two layers in the encoder more than twice as many
        return tinyllm.T5(tinyllm.T5Config.preset("tiny", **ids, num_layers=3, num_decoder_layers=2))
    return tinyllm.Seq2Seq(tinyllm.Seq2SeqConfig.preset("tiny", **ids))


def answers(model, tokenizer, sources):
    """What the model writes for each source text."""
    found = []
    for first in range(0, len(sources), 100):
        data = PairDataset([(tokenizer.encode(source), []) for source in sources[first:first + 100]], PAD, END)
        (ids, _), = data.windows(100)                                               # (B, S), filled up
        texts = tinyllm.generate(model, ids, max_new_tokens=12, temperature=0)[:, 1:]       # (B, T), without START
        found += [tokenizer.decode(row) for row in texts]
    return found


def looks(model, tokenizer, source):
    """What the model writes, and where it looks for that: a text of T characters, and weights (T, S)

    The weights are those of the attention to the source, the mean over all heads and layers.
    """
    text, = answers(model, tokenizer, [source])
    ids, output = tokenizer.encode(source), [*tokenizer.encode(text), END]
    with model.evaluating(), tinyllm.no_grad(), tinyllm.watch_attention() as maps:
        model(np.array([ids]), np.array([[START, *output[:-1]]]))       # position t reads t - 1 and writes t
    to_source = [p for p in maps if p.shape[2:] == (len(output), len(ids))]
    return text, np.mean(to_source, axis=(0, 1, 2))[:-1]


def picture(found, path):
    """A row of panels per question, a panel per model: a line for each token written, bright where it looks."""
    from matplotlib.figure import Figure
    questions = list(dict.fromkeys(source for _, source, *_ in found))
    models = len(found) // len(questions)
    figure = Figure(figsize=(6.5 * models + 0.5, 4.2 * len(questions)), layout="constrained")
    panels = figure.subplots(len(questions), models, squeeze=False)
    for axes, (name, source, text, weights) in zip(panels.T.flat, found):       # one model after the other
        image = axes.imshow(weights, cmap="viridis", vmin=0, vmax=1, aspect="auto")
        axes.set(title=f"{name} writes {''.join(text)}", xticks=range(len(source)), yticks=range(len(text)))
        axes.set_xticklabels(source, rotation=60, ha="right", rotation_mode="anchor")
        axes.set_yticklabels(text)
    figure.colorbar(image, ax=panels, label="attention weight", shrink=0.5)
    figure.savefig(path, dpi=110)


def learn(name, args, tokenizer, examples, questions):
    """Train one model, or what an earlier run has left to do, ask it, show what it gets wrong; returns the model."""
    out = Path(args.out) / name
    steps = STEPS[name] if args.steps is None else args.steps
    config = train.TrainConfig(steps=steps, batch_size=64, lr=1e-3, min_lr=0.0, warmup=min(100, steps // 10),
                               schedule="cosine", betas=(0.9, 0.98), weight_decay=0.01, eval_every=steps,
                               save_every=steps, sample_tokens=0, seed=args.seed)
    model = make_model(name, tokenizer, args.seed)
    encode = lambda pairs: PairDataset([tuple(map(tokenizer.encode, pair)) for pair in pairs], PAD, END)
    print(f"{name}: {model.num_parameters():,} parameters, {config.steps:,} steps of {config.batch_size} pairs.")
    if newest := checkpoint.latest(out):
        print(f"It goes on from {newest}.")
    train.train(model, encode(examples), encode(questions), config, out, resume=newest)
    sources, targets = zip(*questions)
    texts = answers(model, tokenizer, sources)
    for task in ("number", "date"):
        asked = [(s, t, a) for s, t, a in zip(sources, targets, texts) if s.startswith(task)]
        wrong = [(s, t, a) for s, t, a in asked if t != a]
        print(f"  {task}s it has not seen: {1 - len(wrong) / len(asked):.1%} of {len(asked)} exactly right")
        for s, t, a in wrong[:2]:
            print(f"    wrong, for example: {s}  ->  {a} instead of {t}")
    return model


def main():
    parser = argparse.ArgumentParser(description="Train encoder-decoders to read numbers and dates.",
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", choices=("seq2seq", "t5", "both"), default="both", help="which one to train")
    parser.add_argument("--steps", type=int, help="how often the weights are changed (default: "
                        + ", ".join(f"{name} {steps}" for name, steps in STEPS.items()) + ")")
    parser.add_argument("--ask", action="append", default=[], help="a source text of your own; may be repeated")
    parser.add_argument("--seed", type=int, default=1, help="of the weights and the data")
    parser.add_argument("--out", default="runs/seq2seq", help="folder for everything that is written")
    args = parser.parse_args()
    script.folder(args.out)
    examples, questions = make_pairs(np.random.default_rng(args.seed), 20_000, 1000)
    tokenizer = Words(text for pair in examples for text in pair)
    for source in args.ask:
        if not tokenizer.encode(source):    # a mistake in it should show now, not after the training
            raise ValueError(f'--ask "{source}": there are no words in it; write a number or a date')
    print(f"Pairs: {len(examples):,} to learn from, {len(questions):,} to be asked about. For example:")
    for source, target in examples[:4]:
        print(f"  {source}  ->  {target}")
    print("Expect: one to five minutes for both; the loss starts near 4, and the rules of the tasks are found between "
          "loss 1 and 0.1.\n")
    found = []
    for name in ("seq2seq", "t5") if args.model == "both" else (args.model,):
        model = learn(name, args, tokenizer, examples, questions)
        for source in [*args.ask, *ASKED]:
            text, weights = looks(model, tokenizer, source)
            print(f"  {source}  ->  {text}")
            found.append((name, tuple(tokenizer.cut(source)), tokenizer.cut(text), weights))
        print()
    with script.drawing():
        picture(found, Path(args.out) / "attention.png")
        print(f"Where they looked: {args.out}/attention.png. The curves of the loss: loss.png in the models' folders.")


if __name__ == "__main__":
    script.run(main)
