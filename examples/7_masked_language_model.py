"""7. BERT: hide words in a text, and learn to tell what they were.

    python examples/7_masked_language_model.py                  the text that comes with Python, a few minutes
    python examples/7_masked_language_model.py --sentence "a function is [MASK] by its name ."      with your question
    python examples/7_masked_language_model.py --resume         go on where it was interrupted, or only show the results

A language model like GPT reads from left to right. BERT reads all of a text at once, so it can use what stands behind a
gap as well, and is taught by gaps: of every window of 32 tokens some are hidden (tinyllm/text/masking.py), and the loss
is the surprise at what stood there. For a long time it learns only which tokens are frequent; then its attention finds
the neighbours of a gap, and what goes with them.

The model: two layers of width 128; the tokens: 2,000 pieces of words, learned by WordPiece. Everything is written into
one folder (--out): checkpoints, log.jsonl, loss.png, and fills.png, the most likely words for some gaps.
"""
import argparse
import re
from pathlib import Path

import tinyllm     # before NumPy: it tells NumPy's BLAS how to wait (ops/threads.py)
import numpy as np
import script
from tinyllm import checkpoint, functional as F, text, train
from tinyllm.text import MaskedDataset, WordPieceTokenizer

VOCABULARY, CONTEXT = 2000, 32
# In Python's pages, underlines and tables are drawn with signs: thousands of "-" and "|", too easy to guess.
DRAWN = re.compile(r"^[\W_]*$|^\s*[|+].*$", re.MULTILINE)
SENTENCES = [
    "the [MASK] statement is used to define a function .",
    "if no exception occurs , the [MASK] clause is executed .",
    "the name of the [MASK] is a string .",
    "raises a [MASK] exception if the value is not found .",
    "this is the same [MASK] in the previous example .",
    "new in version 3 [MASK] 6",
]


def make_data():
    """The tokenizer, and the two datasets: nine tenths of the text to learn from, the rest to ask about."""
    corpus = DRAWN.sub("", text.default_corpus())
    print(f"Text, without tables: {text.describe(corpus)}")
    tokenizer = WordPieceTokenizer.train(corpus, VOCABULARY)
    parts = text.split(np.array(tokenizer.encode(corpus)), 0.1)
    return tokenizer, *(MaskedDataset(part, CONTEXT, tokenizer) for part in parts)


def make_model(seed):
    tinyllm.manual_seed(seed)
    return tinyllm.BERT(tinyllm.BERTConfig(
        vocab_size=VOCABULARY, hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=512,
        max_position_embeddings=CONTEXT, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        initializer_range=0.05))        # BERT base has 0.02 at six times the width: the narrower, the larger


def accuracy(model, data, guess):
    """How many of the hidden tokens the model's first choice gets right, and how many `guess` would: two shares."""
    right = guessed = asked = 0
    model.eval()
    with tinyllm.no_grad():
        for inputs, targets in data.windows(32):
            hidden = targets != -100
            right += (model(inputs).numpy().argmax(-1) == targets)[hidden].sum()
            guessed += (targets == guess).sum()
            asked += hidden.sum()
    return right / asked, guessed / asked


def fills(model, tokenizer, sentence, k=5):
    """The k most likely tokens for the first gap of a sentence: [(token, probability), ...]"""
    ids = np.array([tokenizer.encode(sentence, add_special_tokens=True, allowed_special="[MASK]")])     # (1, T)
    gaps = np.flatnonzero(ids[0] == tokenizer.special_tokens["[MASK]"])
    if not len(gaps):
        raise ValueError(f'the sentence "{sentence}" has no gap; write [MASK] for the word to be found')
    model.eval()
    with tinyllm.no_grad():
        p = F.softmax(model(ids)[0, int(gaps[0])]).numpy()                                              # (V,)
    return [(tokenizer.vocabulary[i], float(p[i])) for i in p.argsort()[::-1][:k]]


def picture(answers, path):
    """A panel per sentence: its gap's most likely tokens, and how likely they are."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(9, 1.7 * len(answers)), layout="constrained")
    for axes, (sentence, found) in zip(figure.subplots(len(answers), squeeze=False)[:, 0], answers):
        names, shares = zip(*reversed(found))
        bars = axes.barh(range(len(names)), shares, color="tab:blue")
        axes.bar_label(bars, [f"{share:.0%}" for share in shares], padding=3, fontsize=8)
        axes.set_yticks(range(len(names)), names, fontfamily="monospace")
        axes.set_xlim(0, 1.08)
        axes.set_title(sentence.replace("[MASK]", "____"), fontsize=10, loc="left")
    axes.set_xlabel("probability of the token in the gap")
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description="Train a BERT on hidden tokens.",
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--steps", type=int, default=2400, help="how often the weights are changed")
    parser.add_argument("--sentence", action="append", default=[], help="a sentence with [MASK] in it; may be repeated")
    parser.add_argument("--seed", type=int, default=1, help="of the weights and the data")
    parser.add_argument("--out", default="runs/bert", help="folder for everything that is written")
    parser.add_argument("--resume", action="store_true", help="continue from the newest checkpoint in --out")
    args = parser.parse_args()
    script.folder(args.out)
    config = train.TrainConfig(steps=args.steps, batch_size=32, lr=2e-3, min_lr=0.0, warmup=min(200, args.steps // 10),
                               schedule="linear", betas=(0.9, 0.98), weight_decay=0.01, eval_every=500, save_every=500,
                               sample_tokens=0, seed=args.seed)
    newest = checkpoint.latest(args.out) if args.resume else None
    if args.resume and newest is None:
        raise ValueError(f"there is no checkpoint in {args.out} to resume from; run without --resume first")
    tokenizer, train_data, val_data = make_data()
    sentences = [*args.sentence, *SENTENCES]
    model = make_model(args.seed)
    for sentence in args.sentence:
        fills(model, tokenizer, sentence)       # a mistake in it should show now, not after the training
    print(f"Model: {model.num_parameters():,} parameters. Job: {config.steps:,} steps of {config.batch_size} windows "
          f"of {CONTEXT} tokens; a few minutes on two cores.")
    print(f"Expect: the loss starts near ln {VOCABULARY:,} = {np.log(VOCABULARY):.1f}, falls to 5 and a half with the "
          "frequencies alone,\nand from there more slowly, as context begins to count.\n")
    train.train(model, train_data, val_data, config, args.out, tokenizer, newest)

    commonest = int(np.bincount(train_data.tokens).argmax())
    ours, guessed = accuracy(model, val_data, commonest)
    print(f"\nHidden tokens of text it has not seen: {ours:.1%} right. Always guessing the commonest token, "
          f"{tokenizer.vocabulary[commonest]} : {guessed:.1%}, so it is {ours / guessed:.1f} times as good.")
    answers = [(sentence, fills(model, tokenizer, sentence)) for sentence in sentences]
    for sentence, found in answers:
        print(f"\n  {sentence}\n     " + "   ".join(f"{token} {share:.0%}" for token, share in found))
    with script.drawing():
        picture(answers, Path(args.out) / "fills.png")
        print(f"\nThe same as a picture: {args.out}/fills.png. The curve of the loss: {args.out}/loss.png.")


if __name__ == "__main__":
    script.run(main)
