"""10. XLNet: one model that can read a text in every order, and so fill a gap from both of its sides.

    python examples/10_xlnet.py                     trains on the text that comes with Python, four minutes

GPT predicts each token from those on its left. BERT sees both sides, but predicts the hidden tokens apart from each
other, and from a [MASK] that no later text contains. XLNet (Yang et al. 2019, "XLNet: Generalized Autoregressive
Pretraining for Language Understanding", arXiv:1906.08237) predicts token after token as GPT does, only in an order z
that is drawn anew each time (equation 3):

    log p(x) = sum over t of  log p(x_z(t) | x_z(1), ..., x_z(t-1))         the tokens keep their places in the text

Averaged over all orders, each token is predicted from every set of others. That needs two streams (section 2.3). To
predict position i, the model must know which position is asked for, but not its token; to serve later predictions, it
must hold the token too. So every position has two vectors, made by the same weights:

    content  h_i: starts as the token's vector, looks at h_j for all j up to i in the order     (i itself included)
    query    g_i: starts as one learned vector, looks at h_j for all j before i in the order    (i itself left out)

and g_i makes the prediction. As in the paper, only the last part of an order is predicted, for its start sees too
little to learn from; and neighbours come together, in spans of up to 5 (section 3.1). What differs: positions enter by
rotation (tinyllm/ops/rope.py), which is relative as the paper's encoding is but far shorter to write, and the text is
not carried on from segment to segment, which that encoding was made for; norms stand before the branches; one order
serves a whole batch.

The tokens are characters. Writes runs/xlnet.png: the loss by how much of the text is visible.
"""
import argparse
import time
from pathlib import Path

import tinyllm     # before NumPy: it tells NumPy's BLAS how to wait (ops/threads.py)
import numpy as np
import script
from tinyllm import functional as F, nn, optim, text

WIDTH, LAYERS, HEADS, CONTEXT, BATCH = 128, 3, 4, 64, 16
K = 2                   # of each order, the last 1/K is predicted (the paper: K = 6); with more, a step teaches more
GAPS = [
    "returns the value of the |argum|ent that was given",
    "if the object has no such |attri|bute, an exception",
    "the body of the |func|tion is executed when",
    "the class is a |subc|lass of the built-in type",
    "this is the same as |calli|ng the method directly",
]


def draw_order(length, rng, longest=5):
    """A factorisation order: the text is cut into spans of 1 to 5 positions, which come in random order, (length,)"""
    ends = np.cumsum(rng.integers(1, longest + 1, length))
    spans = np.split(np.arange(length), ends[ends < length])
    return np.concatenate([spans[i] for i in rng.permutation(len(spans))])


def visible(order, predicted):
    """Who may look at whom: (T + M, T) booleans, for the T positions' content and the M last positions' queries"""
    rank = np.argsort(order)                                            # when each position comes, (T,)
    content = rank[None, :] <= rank[:, None]                            # (T, T)
    query = rank[None, :] < rank[order[len(order) - predicted:], None]  # (M, T)
    return np.concatenate([content, query])


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), for both streams at once: they share all weights"""

    def __init__(self):
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.mlp = nn.MLP(WIDTH)

    def forward(self, x, T, bias, turns):
        """x (B, T + M, C), content and then queries; keys and values are the content's alone. -> (B, T + M, C)"""
        normed, (cos, sin) = self.ln_1(x), turns
        content = normed[:, :T]
        q, k, v = (layer(y).reshape(*y.shape[:2], HEADS, -1)            # (B, T + M or T, H, D)
                   for layer, y in ((self.q, normed), (self.k, content), (self.v, content)))
        y = F.attention(F.rope(q, cos, sin), F.rope(k, cos[:T], sin[:T]), v, bias)
        x, normed = self.ln_2.add(x, self.o(y.reshape(*x.shape)))
        return x + self.mlp(normed)


class XLNet(nn.Module):
    """model(ids, order, predicted): logits of the last `predicted` positions of the order, each from those before it"""

    def __init__(self, vocab_size):
        self.wte = nn.Embedding(vocab_size, WIDTH)
        self.query = nn.normal(1, 1, WIDTH)                             # where each g starts: "what stands here?"
        self.h = [Block() for _ in range(LAYERS)]
        self.ln_f = nn.LayerNorm(WIDTH)
        self.wte.weight.data *= 0.05                                    # the head as well: guesses start even

    def streams(self, ids, order, predicted):
        """(h, g): the content of all positions (B, T, C), and the queries of the predicted ones (B, M, C), in order"""
        (B, T), seen = ids.shape, visible(order, predicted)
        dtype = self.wte.weight.dtype
        positions = np.concatenate([np.arange(T), order[T - predicted:]])
        bias = np.where(seen, 0, -np.inf).astype(dtype)[None, None]     # (1, 1, T + M, T)
        turns = F.rope_tables(positions, WIDTH // HEADS, dtype=dtype)
        x = F.concatenate([self.wte(ids), self.query + np.zeros((B, predicted, WIDTH), dtype)], axis=1)
        for block in self.h:
            x = block(x, T, bias, turns)
        x = self.ln_f(x)
        return x[:, :T], x[:, T:]

    def forward(self, ids, order, predicted):
        """ids (B, T), order (T,) -> (B, M, V)"""
        return F.linear(self.streams(ids, order, predicted)[1], self.wte.weight)

    def loss(self, ids, order, predicted, reduction="mean"):
        """Nats per predicted token: a scalar, or (B, M) in the order of prediction with reduction="none" """
        g = self.streams(ids, order, predicted)[1]
        return F.linear_cross_entropy(g, self.wte.weight, ids[:, order[len(order) - predicted:]], reduction=reduction)


def train(model, data, steps, seed, lr=3e-3):
    """Each step: new texts, and a new order for them"""
    optimizer, schedule = optim.AdamW(model.parameters(), lr, (0.9, 0.98)), optim.cosine(lr, steps, 100, lr / 20)
    losses, start = [], time.perf_counter()
    for step in range(1, steps + 1):
        rng = np.random.default_rng([seed, step])
        ids, _ = data.batch(BATCH, rng)
        loss = model.loss(ids, draw_order(CONTEXT, rng), CONTEXT // K)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(schedule(step), max_norm=1.0)
        losses.append(loss.item())
        if step % 200 == 0 or step == steps:
            seconds = time.perf_counter() - start
            print(f"  step {step:5,}   loss {np.mean(losses[-200:]):.3f}   {seconds:4.0f} s", flush=True)


def gap_orders(length, start, end):
    """Three orders in which the positions from start to end, from left to right, are predicted from different sides:
    name -> (order, how many are predicted, of which the gap comes first)
    """
    left, gap, right = np.split(np.arange(length), [start, end])
    return {"left side": (np.concatenate([left, gap, right]), length - start),
            "right side": (np.concatenate([right, gap, left]), end),
            "both sides": (np.concatenate([left, right, gap]), end - start)}


def fill(model, ids, order, predicted, n):
    """The likeliest tokens of the first n predicted positions, one after another, each knowing those before: (n,)"""
    ids = ids.copy()                                                    # (1, T)
    places = order[len(order) - predicted:][:n]
    for i, place in enumerate(places):
        ids[0, place] = model(ids, order, predicted).numpy()[0, i].argmax()
    return ids[0, places]


def show_gaps(model, tokenizer):
    """Each sentence's gap, filled from the left, from the right, from both sides."""
    for sentence in GAPS:
        left, gap, right = sentence.split("|")
        ids, start = np.array([tokenizer.encode(left + gap + right)]), len(left)
        print(f"\n  {left}[{gap}]{right}")
        for name, (order, predicted) in gap_orders(ids.shape[1], start, start + len(gap)).items():
            loss = model.loss(ids, order, predicted, "none").numpy()[0, :len(gap)].mean()
            filled = tokenizer.decode(fill(model, ids, order, predicted, len(gap)))
            print(f"      {name:11s} [{filled}]   {loss:.2f}")


def measure(model, data, seed, n=128, gap=5):
    """On texts that it has not seen: loss by the number of visible characters, (T,), the mean over 16 orders; and the
    loss of each character of a gap in the middle: side -> (gap,)
    """
    rng = np.random.default_rng(seed)
    ids, _ = data.batch(n, rng)
    parts = [model.loss(part, draw_order(CONTEXT, rng), CONTEXT, "none").numpy().mean(0)
             for part in np.split(ids, 16)]                             # each order with texts of its own
    orders = gap_orders(CONTEXT, (CONTEXT - gap) // 2, (CONTEXT + gap) // 2)
    sides = {name: model.loss(ids, *order, "none").numpy()[:, :gap].mean(0) for name, order in orders.items()}
    return np.mean(parts, 0), sides


def picture(curve, sides, path):
    """Left: the loss by how much is visible. Right: inside a gap, by which sides are visible."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    left.plot(curve, ".-")
    left.axvline(CONTEXT - CONTEXT // K, color="gray", linestyle=":")
    left.set(xlabel=f"visible characters, of {CONTEXT} (it was trained to the right of the line)",
             ylabel="nats per character", title="The more it sees, the better it predicts")
    for name, losses in sides.items():
        right.plot(range(1, len(losses) + 1), losses, "o-", label=name)
    right.set(xlabel="character of the gap, filled from left to right", xticks=range(1, len(losses) + 1),
              title="A gap in the middle: which side is visible")
    right.legend()
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description="Train a small XLNet on orders drawn at random.",
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000, help="how often the weights are changed")
    parser.add_argument("--seed", type=int, default=1, help="of the weights, the data and the orders")
    parser.add_argument("--out", default="runs", help="folder for the picture")
    args = parser.parse_args()
    script.folder(args.out)
    corpus = text.default_corpus()
    tokenizer = text.CharTokenizer.train(corpus)
    train_data, val_data = (text.TokenDataset(part, CONTEXT)
                            for part in text.split(np.array(tokenizer.encode(corpus)), 0.1))
    tinyllm.manual_seed(args.seed)
    model = XLNet(tokenizer.vocab_size)
    print(f"Text: {text.describe(corpus)}; {tokenizer.vocab_size} different characters\n"
          f"Model: {model.num_parameters():,} parameters. Job: {args.steps:,} steps of {BATCH} texts of {CONTEXT} "
          f"characters, the last {CONTEXT // K} of each order predicted;\nthree to four minutes on two cores.\n"
          f"Expect: the loss starts near ln {tokenizer.vocab_size} = {np.log(tokenizer.vocab_size):.1f} and ends near "
          "1.35; both sides of a gap tell more than one.\n")
    train(model, train_data, args.steps, args.seed)

    with tinyllm.no_grad():
        print("\nGaps, [with what stands there]. Below, what the model fills in when it has seen one side, or both;\n"
              "and how surprised it is by the true characters, in nats for each:")
        show_gaps(model, tokenizer)
        curve, sides = measure(model, val_data, args.seed)
    print("\nText it has not seen, a gap of 5 characters, nats per character of the gap:")
    for name, losses in sides.items():
        print(f"  {name:11s} visible: {losses.mean():.2f}")
    print(f"and in random orders: {curve[:16].mean():.2f} in the first quarter, {curve[-16:].mean():.2f} in the last")
    with script.drawing():
        picture(curve, sides, Path(args.out) / "xlnet.png")
        print(f"\nAs a picture: {args.out}/xlnet.png")


if __name__ == "__main__":
    script.run(main)
