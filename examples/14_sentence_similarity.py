"""14. Sentence similarity: which sentences mean the same, going by a BERT.

    python examples/14_sentence_similarity.py                           the BERT that 7_masked_language_model.py trains
    python examples/14_sentence_similarity.py all-MiniLM-L6-v2          a downloaded BERT
    python examples/14_sentence_similarity.py bert-base-uncased --sentence "It rains." --sentence "The sky is wet."

BERT makes a vector of each token, which knows the text around it. Their mean, over the tokens and not over the padding,
is a vector for the sentence, and the cosine of the angle between two of these says how alike the sentences are:

    s = mean of the vectors of its tokens           cosine(s, s') = s . s' / (|s| |s'|), from -1 to 1

A BERT that has only learned to fill gaps was never asked for such vectors: they all point roughly the same way, so even
strangers look alike, and only the order of the numbers says something. Models that were trained on pairs of sentences,
such as all-MiniLM-L6-v2, use the whole scale (Reimers and Gurevych 2019, "Sentence-BERT", arXiv:1908.10084).
Writes runs/similarity.png.
"""
import argparse
from pathlib import Path

import tinyllm     # before NumPy: it tells NumPy's BLAS how to wait (ops/threads.py)
import numpy as np
import script

SENTENCES = [
    "The function returns a list of strings.",
    "This method returns a list of names.",
    "An exception is raised if the file does not exist.",
    "If there is no such file, an error occurs.",
    "The loop stops when the condition is false.",
    "The loop runs while the condition is true.",
]


def vectors(trunk, tokenizer, sentences):
    """A vector for each sentence, of length 1: (B, C)"""
    rows = [tinyllm.model_input(trunk, tokenizer, sentence) for sentence in sentences]
    mask = np.arange(max(map(len, rows))) < np.array([len(row) for row in rows])[:, None]       # (B, T)
    ids = np.full(mask.shape, trunk.config.pad_token_id)
    ids[mask] = np.concatenate(rows)
    with tinyllm.no_grad():
        x = trunk(ids, attention_mask=mask).numpy()                                             # (B, T, C)
    mean = (x * mask[..., None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)                  # (B, C)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


def show(cosines, sentences):
    """The table, and the most similar pairs."""
    print("      " + "".join(f"{i + 1:6d}" for i in range(len(sentences))))
    for i, (row, sentence) in enumerate(zip(cosines, sentences)):
        print(f"{i + 1:4d}  " + "".join(f"{value:6.2f}" for value in row) + f"   {sentence}")
    pairs = [(i, j) for i in range(len(sentences)) for j in range(i)]
    print("\nThe most similar:")
    for i, j in sorted(pairs, key=lambda pair: -cosines[pair])[:3]:
        print(f"  {cosines[i, j]:.3f}   {sentences[j]}  |  {sentences[i]}")


def picture(cosines, sentences, path):
    """The table as a heat map."""
    from matplotlib.figure import Figure
    n = len(sentences)
    figure = Figure(figsize=(0.7 * n + 5.5, 0.7 * n + 1), layout="constrained")
    axes = figure.subplots()
    lowest = cosines.min()
    image = axes.imshow(cosines, cmap="viridis", vmin=lowest, vmax=1)
    for i in range(n):
        for j in range(n):
            bright = cosines[i, j] > (1 + lowest) / 2
            axes.text(j, i, f"{cosines[i, j]:.2f}", ha="center", va="center", fontsize=8,
                      color="black" if bright else "white")
    short = [s if len(s) <= 60 else s[:57] + "..." for s in sentences]
    axes.set_yticks(range(n), [f"{s}  {i + 1}" for i, s in enumerate(short)], fontsize=8, parse_math=False)
    axes.set_xticks(range(n), range(1, n + 1))
    figure.colorbar(image, label="cosine", shrink=0.8)
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description="How similar sentences are, going by a BERT.",
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("folder", nargs="?", default="runs/bert", help="a run, a checkpoint, or a downloaded BERT")
    parser.add_argument("--sentence", action="append", help="a sentence to compare; repeat it (default: six of ours)")
    parser.add_argument("--out", default="runs/similarity.png", help="where to write the picture")
    args = parser.parse_args()
    out = script.picture_file(args.out)
    sentences = args.sentence or SENTENCES
    if len(sentences) < 2:
        raise ValueError("one sentence is like no other; give two or more, with --sentence before each")
    if args.folder == "runs/bert" and not Path(args.folder).is_dir():
        raise ValueError("there is no BERT in runs/bert yet; train one with python examples/7_masked_language_model.py "
                         "(five minutes), or name the folder of a downloaded one")
    model, tokenizer = tinyllm.load(args.folder)
    trunk = getattr(model, "bert", model)           # without the head for hidden tokens, if there is one
    if not hasattr(trunk, "pool"):                  # which a BERTModel has
        raise ValueError(f"{args.folder} holds a {type(model).__name__}, which does not look at a whole sentence; take "
                         "a BERT, such as the one of 7_masked_language_model.py")
    print(f"{model.num_parameters():,} parameters compare {len(sentences)} sentences, in a second.")
    if not args.sentence:
        print("Expect 1.00 on the diagonal, where each sentence meets itself, and high values beside it, for 1 and 2, "
              "3 and 4, 5 and 6.\nThat the last two say the opposite, few models notice: the words are the same.")
    print()
    v = vectors(trunk, tokenizer, sentences)
    script.need_numbers(v, args.folder)
    cosines = v @ v.T                                                                           # (B, B)
    show(cosines, sentences)
    with script.drawing():
        picture(cosines, sentences, out)
        print(f"\nThe same as a picture: {out}.")


if __name__ == "__main__":
    script.run(main)
