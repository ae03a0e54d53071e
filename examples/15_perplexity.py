"""15. Perplexity of a text that is longer than the model's context, with a sliding window.

    python examples/15_perplexity.py                                    the model that 3_train_gpt.py has trained
    python examples/15_perplexity.py gpt2 --text FILE --stride 1024 512     a downloaded model, your text
    python examples/15_perplexity.py gpt2 --text FILE --int8                and what it costs to round the weights
    python examples/15_perplexity.py gpt2 --text FILE --tokens 0 --backend triton --dtype bfloat16      all of the text

Perplexity is e to the mean surprise per token, -log p(token | the tokens before). The tokens before are at most as many
as fit into the context, so a long text must be read window by window:

    stride = window     |<- scored ->|                      the fastest; but the first tokens of each window
                                     |<- scored ->|         have hardly any text before them
    stride < window     |<- scored ->|                      each window goes back a bit, and only its last
                              |<---->|scored|               `stride` tokens are scored, all with much before them

Either way each token is scored once. The smaller the stride, the more the model sees before each token, and the longer
it takes; with stride 1 every token has a full context. So a perplexity says little without its stride. Bits per byte
are the same thing per byte of text, and can be compared between models with different tokens. Writes
runs/perplexity.png.
"""
import argparse
import time
from itertools import pairwise

import tinyllm     # before NumPy: it tells NumPy's BLAS how to wait (ops/threads.py)
import numpy as np
import script
from tinyllm import metrics, text
from tqdm import tqdm

WIDEST = 1024       # the usual window: recent models could read a hundred times as much, and fill any memory with it

def surprise(model, ids, window, stride):
    """Of each token but the first: -log p in nats, and how many tokens the model saw before it: (N - 1,) each

    A window ends at each of `ends` and is as long as any other; what the window before has scored, it only reads.
    """
    n = len(ids) - 1
    window = min(window, n)
    ends = [*range(window, n, stride), n]
    losses, seen = np.empty(n), np.empty(n, int)
    scored, together = 0, max(1, 1024 // window)                # short windows, several at once
    with tinyllm.no_grad():
        for i in tqdm(range(0, len(ends), together), desc=f"stride {stride}", leave=False, disable=None):
            starts = [end - window for end in ends[i:i + together]]
            rows = np.stack([ids[start:start + window + 1] for start in starts])
            found = model.loss(rows[:, :-1], rows[:, 1:], reduction="none").numpy()             # (B, window)
            for start, row in zip(starts, found):
                losses[scored:start + window] = row[scored - start:]
                seen[scored:start + window] = np.arange(scored - start, window) + 1
                scored = start + window
    return losses, seen


def picture(results, path):
    """Perplexity by stride; and where it comes from, the surprise by how many tokens stand before a token."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    strides = sorted(results)
    left.plot(strides, [metrics.perplexity(results[stride][0].mean()) for stride in strides], marker="o")
    left.set(xlabel="stride", ylabel="perplexity", title="Perplexity by stride")
    left.set_xscale("log", base=2)
    left.set_xticks(strides, strides)
    losses, seen = results[strides[-1]]
    steps = list(pairwise(np.unique(np.geomspace(1, seen.max() + 1, 13).astype(int))))      # ever wider: 1, 2, 3-4, ...
    means = [losses[(seen >= low) & (seen < high)].mean() / np.log(2) for low, high in steps]
    right.plot([np.sqrt(low * (high - 1)) for low, high in steps], means, marker="o")
    right.set(xlabel="how many tokens stand before it in its window", ylabel="bits per token",
              title=f"Why: a token and what stands before it (stride {strides[-1]})")
    right.set_xscale("log", base=2)
    right.xaxis.set_major_formatter("{x:.0f}")
    figure.savefig(path, dpi=110)


def tokens_of(args, model, tokenizer):
    """The ids to score."""
    if args.text:
        corpus = text.read_text(*args.text)
    else:                   # the tenth that 3_train_gpt.py keeps for validation
        corpus = text.default_corpus()
        corpus = corpus[int(0.9 * len(corpus)):]
    ids = tinyllm.model_input(model, tokenizer, corpus, allowed_special=())[:args.tokens or None]
    if len(ids) < 2:
        raise ValueError(f"the text has {len(ids)} tokens; it takes two, as the first one has nothing before it")
    return np.array(ids)


def arguments():
    parser = argparse.ArgumentParser(description="Perplexity of a text, with a sliding window.",
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("folder", nargs="?", default="runs/gpt", help="a run, a checkpoint, or a downloaded model")
    parser.add_argument("--text", nargs="+", metavar="FILE", help="UTF-8 text (default: the end of Python's own pages)")
    parser.add_argument("--tokens", type=int, default=8192, help="score only the first so many tokens; 0: all")
    parser.add_argument("--window", type=int, help="tokens that the model reads at once (default: its "
                        f"context, or {WIDEST} if that is less)")
    parser.add_argument("--stride", type=int, nargs="+", metavar="N", help="how far the window moves; several are "
                        "compared (default: the window, a half and a quarter of it)")
    parser.add_argument("--int8", action="store_true", help="also with the matrices rounded to a byte per number")
    parser.add_argument("--backend", choices=["numpy", "triton"], default="numpy", help="which path computes")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32",
                        help="of the weights; the 16-bit ones with --backend triton only")
    parser.add_argument("--out", default="runs/perplexity.png", help="where to write the picture")
    args = parser.parse_args()
    if args.backend == "numpy" and args.dtype != "float32":
        raise ValueError(f"--dtype {args.dtype}: NumPy computes in float32; add --backend triton")
    if args.tokens < 0:
        raise ValueError(f"--tokens {args.tokens}: give the number of tokens to score, or 0 for all")
    return args


def windows_of(args, context):
    """The window and the strides that were asked for, or the usual ones."""
    window = min(context, WIDEST) if args.window is None else args.window
    if not 1 <= window <= context:
        raise ValueError(f"--window {window}: the model reads 1 to {context} tokens at once")
    strides = args.stride or sorted({window, max(1, window // 2), max(1, window // 4)}, reverse=True)
    if not all(1 <= stride <= window for stride in strides):
        raise ValueError(f"--stride {' '.join(map(str, strides))}: a stride is 1 to {window}, or tokens would be left "
                         "out")
    return window, strides


def main():
    args = arguments()
    out = script.picture_file(args.out)
    model, tokenizer = tinyllm.load(args.folder)
    if not hasattr(model, "next_logits"):
        raise ValueError(f"{args.folder} holds a {type(model).__name__}, which does not guess the next token of a "
                         "text; take a model such as GPT")
    window, strides = windows_of(args, model.config.n_positions)
    ids = tokens_of(args, model, tokenizer)
    n_bytes = len(tokenizer.decode(ids[1:]).encode("utf-8"))
    print(f"{model.num_parameters():,} parameters, windows of {window} tokens, a text of {len(ids):,}. Expect: half "
          "the stride, twice the time, and\na lower perplexity, as long as the model can make use of more text. A "
          "small one soon has enough.\n")
    if args.backend == "triton":
        model.to(args.backend, args.dtype)
    print("  stride  tokens before it, at least  seconds  perplexity  bits per byte" + "  perplexity, int8" * args.int8)

    results, small = {}, tinyllm.quantized(model) if args.int8 else None
    for stride in strides:
        start = time.perf_counter()
        results[stride] = losses, seen = surprise(model, ids, window, stride)
        script.need_numbers(losses, args.folder)
        least = seen[min(window, len(seen) - 1):].min()         # behind the first window, which has what there is
        loss = losses.mean()
        row = (f"{stride:8d} {least:27d} {time.perf_counter() - start:8.1f} {metrics.perplexity(loss):11.4f} "
               f"{metrics.bits_per_byte(loss, len(losses), n_bytes):14.4f}")
        if args.int8:
            row += f" {metrics.perplexity(surprise(small, ids, window, stride)[0].mean()):17.4f}"
        print(row)
    with script.drawing():
        picture(results, out)
        print(f"\nThe same as a picture, and why it is so: {out}.")


if __name__ == "__main__":
    script.run(main)
