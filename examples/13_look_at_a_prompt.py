"""13. Look at a prompt: what its tokens are, what the model expected at each, and where its attention looks.

    python examples/13_look_at_a_prompt.py                              the model that 3_train_gpt.py has trained
    python examples/13_look_at_a_prompt.py --prompt "if the list is empty, a "
    python examples/13_look_at_a_prompt.py gpt2 --prompt "Paris is the capital of" --layer 5    a downloaded model

A language model gives, at every position, a probability to every token that could come next. The token that does come
had the probability p, and carries -log2 p bits of surprise: 0 if the model was certain of it, 1 if it gave it one half.
Writes the attention maps of all layers, or of one in large, as a picture: runs/attention_maps.png.
"""
import argparse

import tinyllm     # before NumPy: it tells NumPy's BLAS how to wait (ops/threads.py)
import numpy as np
import script
from tinyllm import functional as F, metrics
from tinyllm.text import CharTokenizer

MOST_LABELS = 48        # with more tokens than that, their names along a map cannot be read


def look(model, ids):
    """log p of every token after each of ids (T,): (T, V); and the attention weights of each layer, (H, T, T)"""
    with tinyllm.no_grad(), tinyllm.watch_attention() as maps:
        logp = F.log_softmax(model(np.array([ids]))[0]).numpy()
    return logp, [layer[0] for layer in maps]


def pieces(model, tokenizer, prompt):
    """The prompt's ids, and of each its span of the prompt; None for what the model has in front of every text."""
    ids = tinyllm.model_input(model, tokenizer, prompt)
    special = {} if isinstance(tokenizer, CharTokenizer) else {"allowed_special": "all"}
    _, spans = tokenizer.encode_with_offsets(prompt, **special)
    return ids, [None] * (len(ids) - len(spans)) + spans


def name(tokenizer, i):
    """A token in quotes; as bytes if it is a part of a character."""
    if i >= tokenizer.vocab_size:           # many models have more rows than there are tokens, for a rounder number
        return f"(unused: {i})"
    data = tokenizer.token_bytes(i, first=False)
    try:
        return repr(data.decode("utf-8"))
    except UnicodeDecodeError:
        return repr(data)


def label(tokenizer, i):
    """A token for the picture, short and in characters that its font has."""
    token = name(tokenizer, i).removeprefix("b")[1:-1].replace(" ", "\N{MIDDLE DOT}")
    return token.encode("latin-1", "backslashreplace").decode("latin-1")


def show_surprise(tokenizer, ids, spans, logp):
    """A row for each token, and how well the model guessed the prompt altogether."""
    print("   #      id   span      token              probability   bits of surprise")
    total = 0.0
    for t, (i, span) in enumerate(zip(ids, spans)):
        place = "" if span is None else f"{span[0]}-{span[1]}"
        row = f"{t:4d} {i:7d}   {place:<9} {name(tokenizer, i):<18} "
        if t:                                       # nothing is said about the first token: it has nothing before it
            bits = -float(logp[t - 1, i]) / np.log(2)
            total += bits
            row += f"{2**-bits:11.4%}   {bits:5.2f} {'#' * round(2 * bits)}"
        print(row.rstrip())
    if len(ids) > 1:
        mean = total / (len(ids) - 1)
        print(f"\n{mean:.2f} bits per token, a perplexity of {metrics.perplexity(mean * np.log(2)):.2f}: on average it "
              "was as undecided as among so many equally likely tokens.")


def show_next(tokenizer, logp, k=10):
    """The k most likely tokens after the prompt."""
    print(f"\nWhat comes next, of {len(logp):,} tokens:")
    for i in np.argsort(-logp, kind="stable")[:k]:
        p = float(np.exp(logp[i]))
        print(f"  {name(tokenizer, i):<18} {p:8.3%} {'#' * round(50 * p)}".rstrip())


def picture(maps, names, path):
    """A panel for each head: a row for each token, bright where it looks. maps: {layer: (H, T, T)}"""
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure
    heads, T = len(next(iter(maps.values()))), len(names)
    panels = [(layer, head) for layer in maps for head in range(heads)]
    columns = heads if len(maps) > 1 else int(np.ceil(np.sqrt(heads)))
    rows = -(-len(panels) // columns)
    named = len(panels) <= 16 and T <= MOST_LABELS
    size = max(2, 0.095 * T) + 0.7 if named else 1.2
    figure = Figure(figsize=(size * columns + 1, size * rows + 0.5), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(panels):]:
        axes.axis("off")
    for axes, (layer, head) in zip(grid.flat, panels):
        # the square root of the weights: else a head that looks at many tokens a little would be black
        image = axes.imshow(maps[layer][head], cmap="magma", norm=PowerNorm(0.5, vmin=0, vmax=1))
        axes.set_title(f"layer {layer}, head {head + 1}" if named else f"{layer}.{head + 1}", fontsize=8, pad=3)
        axes.set(xticks=range(T) if named else [], yticks=range(T) if named else [])
        if named:
            style = {"fontsize": 6, "family": "monospace", "parse_math": False}         # "$" is a dollar
            axes.set_xticklabels(names, rotation=90, **style)
            axes.set_yticklabels(names, **style)
    figure.supxlabel("looks at", fontsize=9)
    figure.supylabel("token", fontsize=9)
    figure.colorbar(image, ax=grid, label="attention weight", shrink=0.5, ticks=[0, 0.05, 0.25, 0.5, 1])
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description="Look at a prompt as a language model does.",
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("folder", nargs="?", default="runs/gpt", help="a run, a checkpoint, or a downloaded model")
    parser.add_argument("--prompt", default="Return the name of the list.", help="the text to look at")
    parser.add_argument("--layer", type=int, help="draw only the maps of this layer, from 1 (default: of all layers)")
    parser.add_argument("--out", default="runs/attention_maps.png", help="where to write the picture")
    args = parser.parse_args()
    out = script.picture_file(args.out)
    model, tokenizer = tinyllm.load(args.folder)
    if not hasattr(model, "next_logits"):
        raise ValueError(f"{args.folder} holds a {type(model).__name__}, which does not guess the next token of a "
                         "text; take a model such as GPT")
    ids, spans = pieces(model, tokenizer, args.prompt)
    if not ids:
        raise ValueError("the prompt is empty; write something into --prompt")
    print(f"{model.num_parameters():,} parameters look at {len(ids)} tokens. Expect the first tokens to be the most "
          "surprising ones: the\nmore stands before a token, the better it can be guessed.\n")
    logp, maps = look(model, ids)
    script.need_numbers(logp, args.folder)
    if args.layer is not None and not 1 <= args.layer <= len(maps):
        raise ValueError(f"--layer {args.layer}: the model has {len(maps)} layers of attention, from 1 on")
    show_surprise(tokenizer, ids, spans, logp)
    show_next(tokenizer, logp[-1])
    if not maps:
        print(f"\nNo picture: there is no attention in a {type(model).__name__}.")
        return
    chosen = {i + 1: weights for i, weights in enumerate(maps) if args.layer in (None, i + 1)}
    with script.drawing():
        picture(chosen, [label(tokenizer, i) for i in ids], out)
        print(f"\nWhere {len(chosen) * len(maps[0])} heads look: {out}. A line below the diagonal is a head that "
              "looks one token back; a bright\nfirst column, one that found nothing to look for: the weights of a row "
              "must add up to 1, so it rests there.")


if __name__ == "__main__":
    script.run(main)
