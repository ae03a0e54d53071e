"""2. Attention seen from inside: a picture of where each position looks.

    python examples/2_attention.py                  trains a very small GPT to repeat itself, in half a minute

The task: some random letters, over and over: "kqzjkqzjkqzj...". How many letters there are before they repeat differs
from text to text, so positions say nothing. From the second round on, each letter can be known for certain: find the
place where the present letter stood before, and take the one *after* it. One layer of attention cannot do that, because
it sees which letter stands where but not what stood before it. Two layers can: the first one passes each letter on to
its right-hand neighbour, the second one looks for the place whose left-hand neighbour is the present letter. The pair
is called an induction head (Olsson et al. 2022, "In-context learning and induction heads"). Writes runs/attention.png.
"""
import argparse
from pathlib import Path

import tinyllm     # before NumPy: it tells NumPy's BLAS how to wait (ops/threads.py)
import numpy as np
import script
from tinyllm import no_grad, optim, watch_attention

LETTERS, LENGTH, STEPS = 26, 32, 1000


def batch(rng, size):
    """Texts of 5 to 12 different letters, repeated:
    ids (size, LENGTH + 1) and the length of each one's round (size,)
    """
    rounds = rng.integers(5, 13, size)
    texts = [np.resize(rng.permutation(LETTERS)[:n], LENGTH + 1) for n in rounds]
    return np.stack(texts), rounds


def train(model, rng):
    """Learn to predict the next letter, counting from the second round on: the first one is pure chance."""
    optimizer = optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    schedule = optim.cosine(3e-3, STEPS, warmup=100)
    for step in range(STEPS + 1):
        texts, rounds = batch(rng, 32)
        known = np.arange(1, LENGTH + 1) >= rounds[:, None]
        targets = np.where(known, texts[:, 1:], -100)               # -100: ignored by the loss
        loss = model.loss(texts[:, :-1], targets)
        if step % 100 == 0:
            print(f"  step {step:4d}   loss {loss.item():.4f}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(schedule(step), max_norm=1.0)


def picture(weights, text, path):
    """One panel per layer and head: a row per position, bright where it looks."""
    from matplotlib.figure import Figure
    heads = len(weights[0])
    figure = Figure(figsize=(4.4 * heads, 4.6 * len(weights)), layout="constrained")
    panels = figure.subplots(len(weights), heads, squeeze=False)
    for layer, row in enumerate(panels):
        for head, axes in enumerate(row):
            image = axes.imshow(weights[layer][head], cmap="viridis", vmin=0, vmax=1)
            axes.set(title=f"layer {layer + 1}, head {head + 1}", xlabel="looks at", ylabel="position",
                     xticks=range(len(text)), yticks=range(len(text)), xticklabels=text, yticklabels=text)
            axes.tick_params(labelsize=7)
    figure.colorbar(image, ax=panels, label="attention weight", shrink=0.5)
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description="Train two layers to repeat letters, and see where they look.")
    parser.add_argument("--seed", type=int, default=1, help="of the weights and the letters (default: %(default)s)")
    seed = parser.parse_args().seed
    print(f"Training a GPT of two layers to repeat random letters: {STEPS:,} steps, half a minute.")
    print(f"Guessing gives a loss of ln {LETTERS} = {np.log(LETTERS):.2f}. The loss stays on a plateau, falls "
          "steeply when the two layers\nbegin to work together, and ends near 0.\n")
    tinyllm.manual_seed(seed)
    model = tinyllm.GPT(tinyllm.GPTConfig(vocab_size=LETTERS, n_positions=LENGTH, n_embd=64, n_layer=2, n_head=2,
                                          embd_pdrop=0, attn_pdrop=0, resid_pdrop=0))
    rng = np.random.default_rng(seed)
    train(model, rng)

    texts, (n, *_) = batch(rng, 1)
    ids = texts[:, :-1]
    with no_grad(), watch_attention() as maps:
        predicted = model(ids).numpy().argmax(-1)[0]                # what follows each position
    weights = [layer[0] for layer in maps]                          # of each layer (H, T, T)
    letters = [chr(ord("a") + i) for i in texts[0]]
    print(f"\nA new text, whose {n} letters repeat, and from the second round on what the model says will come:")
    print("  text       " + "".join(letters))
    print("  predicted  " + " " * n + "".join(chr(ord("a") + i) for i in predicted[n - 1:]))
    print("\nWhere the heads look. The first round: one place back, to carry each letter to its neighbour. "
          "Later rounds: at the")
    print("earlier copies of the letter that will come.")
    first, later = np.arange(1, n), np.arange(n, LENGTH)
    for layer, heads in enumerate(weights):
        for head, p in enumerate(heads):
            copies = sum(p[t, j] for t in later for j in range(t - n + 1, -1, -n)) / len(later)
            print(f"  layer {layer + 1}, head {head + 1}:   first round, one place back "
                  f"{p[first, first - 1].mean():4.0%}   later rounds, at earlier copies {copies:4.0%}")
    Path("runs").mkdir(exist_ok=True)
    with script.drawing():
        picture(weights, letters[:-1], "runs/attention.png")
        print("\nThe weights as a picture: runs/attention.png")


if __name__ == "__main__":
    script.run(main)
