"""12. Where do the pieces of a unigram tokenizer come from? Start with far too many, drop what is least missed.

    python examples/12_unigram_vocabulary.py                    500, 1,000 and 2,000 pieces, in half a minute
    python examples/12_unigram_vocabulary.py --size 700 --word tokenizers

Byte-pair encoding grows a vocabulary: it joins the commonest pair, again and again. The unigram model of SentencePiece
(Kudo 2018, "Subword Regularization", arXiv:1804.10959, section 3.2; Kudo and Richardson 2018) shrinks one. Each piece x
has a probability p(x), a word is as probable as all its cuts into pieces together,

    p(word) = sum over cuts x_1 .. x_m of  p(x_1) ... p(x_m)

and the p(x) shall make the text as probable as possible. Three steps, of which the last two alternate:

    seed      every character, and the substrings that save most: count times length
    EM        E: how often is each piece used, in all cuts of all words, each cut counting with its probability?
              M: p(x) = that count, divided by all counts together
    prune     for each piece, how much less likely does the text become without it? The least missed quarter goes

p(x) is the plain maximum of the likelihood, so that no EM step can lower it (Dempster, Laird and Rubin 1977).
SentencePiece takes exp(digamma(count)) instead of the count, which presses rare pieces further down.

The result is an ordinary tinyllm.text.UnigramTokenizer, saved and loaded again, beside byte-pair encoding of the same
size. Writes runs/unigram/: the largest tokenizer, and vocabulary.png.
"""
import argparse
import heapq
import math
from collections import Counter
from pathlib import Path

from tinyllm import text
import script
from tinyllm.text import BPETokenizer, UnigramTokenizer
from tinyllm.text.pretokenize import pretokenize
from tinyllm.text.rewrite import normalize
from tinyllm.text.unigram import SPACE

LONGEST = 16            # characters of a piece, at most
SEED = 10               # how many times as many pieces there are at the start as at the end
KEEP = 0.75             # of the pieces, this share survives a pruning
STEPS = 2               # of EM between two prunings
NEVER = 1e-9            # the least count, for a character that is never used alone: ln 0 is no number
NAMES = ("unigram", "BPE")
WORDS = ["unhashable", "subclasses", "generators", "misspelled"]


def count_words(corpus):
    """word -> how often it occurs. A word begins with the space before it, as "▁"; signs are words of their own."""
    return Counter(word.replace(" ", SPACE) for word in pretokenize(" " + corpus))


def seed_scores(words, size):
    """piece -> ln p: all characters, and substrings that occur at least twice, those with the largest count * length"""
    counts = Counter()
    for word, n in words.items():
        for start in range(len(word)):
            for end in range(start + 1, min(len(word), start + LONGEST) + 1):
                counts[word[start:end]] += n
    characters = [piece for piece in counts if len(piece) == 1]
    longer = [piece for piece, n in counts.items() if len(piece) > 1 and n > 1]
    longer = heapq.nlargest(max(0, size - len(characters)), longer, key=lambda piece: counts[piece] * len(piece))
    return normalized({piece: counts[piece] for piece in characters + longer})


def normalized(weights):
    """ln p(x) for weights that are proportional to the p(x)"""
    total = math.fsum(weights.values())
    return {piece: math.log(weight / total) for piece, weight in weights.items()}


def arriving(word, scores):
    """For each place of a word, where the pieces that end there begin: a list of (start, piece)"""
    return [[(start, word[start:end]) for start in range(max(0, end - LONGEST), end) if word[start:end] in scores]
            for end in range(len(word) + 1)]


def log_sum(logs):
    """ln(e^a + e^b + ...), without the overflow"""
    largest = max(logs)
    return largest + math.log(sum(math.exp(a - largest) for a in logs))


def expected_counts(word, scores):
    """(ln p(word), how often each piece is used on average: a list of (piece, count), a piece once for each place)

    Forward: sums[e] = ln of the probability of all cuts of the first e characters, from those of their last piece's
    start. Backward: through[e] = the share of the cuts in which a piece ends at e; the pieces that end there divide it
    among themselves in the ratio of what they brought forward, and hand it on to their starts. (It is what the tape
    would do: these counts are the gradient of ln p(word) with respect to the scores.)
    """
    edges, sums = arriving(word, scores), [0.0]
    for end in range(1, len(word) + 1):
        sums.append(log_sum([sums[start] + scores[piece] for start, piece in edges[end]]))
    through, used = [0.0] * len(word) + [1.0], []
    for end in range(len(word), 0, -1):
        for start, piece in edges[end]:
            share = through[end] * math.exp(sums[start] + scores[piece] - sums[end])
            through[start] += share
            used.append((piece, share))
    return sums[-1], used


def em_step(words, scores):
    """(better scores, ln p of all words under the old ones)"""
    likelihood, counts = 0.0, dict.fromkeys(scores, 0.0)
    for word, n in words.items():
        ln_p, used = expected_counts(word, scores)
        likelihood += n * ln_p
        for piece, share in used:
            counts[piece] += n * share
    return normalized({piece: max(count, NEVER) for piece, count in counts.items()}), likelihood


def best_cuts(word, scores, k):
    """The k likeliest cuts of a word, best first: [(ln p, pieces), ...]. Viterbi's algorithm with k winners a place."""
    edges, best = arriving(word, scores), [[(0.0, ())]]
    for end in range(1, len(word) + 1):
        best.append(heapq.nlargest(k, ((ln_p + scores[piece], (*cut, piece))
                                       for start, piece in edges[end] for ln_p, cut in best[start])))
    return best[-1]


def prune(scores, size):
    """The `size` pieces that would be missed most; characters always stay, so that every word still has a cut.

    Without x, the text writes it with the next best pieces: ln p(text) falls by about the number of times that x is
    used, which is proportional to p(x), times (ln p(x) - ln p of its best other cut). "About", for neighbours could
    help, and two pieces may count on each other: so only a part goes at a time.
    """
    def loss(piece):
        others = [ln_p for ln_p, cut in best_cuts(piece, scores, 2) if len(cut) > 1]
        return math.exp(scores[piece]) * (scores[piece] - others[0])

    characters = [piece for piece in scores if len(piece) == 1]
    longer = [piece for piece in scores if len(piece) > 1]
    kept = heapq.nlargest(size - len(characters), longer, key=loss)
    return normalized({piece: math.exp(scores[piece]) for piece in characters + kept})


def learn(words, size):
    """Yield (scores, bits per character before the step) for each step of EM, until `size` pieces are left."""
    n_characters = sum(len(word) * n for word, n in words.items())
    single = len(set("".join(words)))
    if size < single:
        raise ValueError(f"size: the text has {single} different characters, and all of them stay; ask for {single} "
                         f"pieces or more, not {size}")
    scores = seed_scores(words, SEED * size)
    while True:
        for _ in range(STEPS):
            scores, likelihood = em_step(words, scores)
            yield scores, -likelihood / math.log(2) / n_characters
        if len(scores) <= size:
            return
        scores = prune(scores, max(size, int(KEEP * len(scores))))


def as_tokenizer(scores):
    """What tinyllm.text knows how to use: the unknown, and the pieces by falling probability."""
    return UnigramTokenizer([("<unk>", 0.0), *sorted(scores.items(), key=lambda item: (-item[1], item[0]))])


def measure(tokenizer, corpus):
    """(characters per token, bits per character if each token costs -log2 of its frequency in this text)"""
    counts = Counter(tokenizer.encode(corpus))
    n = counts.total()
    return len(corpus) / n, -sum(c * math.log2(c / n) for c in counts.values()) / len(corpus)


def compare(size, words, parts):
    """Learn both vocabularies of one size: a row of the table, and what EM and pruning did on the way"""
    history = []
    for scores, bits in learn(words, size - 1):                 # one id is for the unknown
        history.append((len(scores), bits))
        print(f"\r  {len(scores):6,} pieces, {bits:.3f} bits per character", end="", flush=True)
    print()
    row = {"size": size, "scores": scores, "unigram": as_tokenizer(scores),
           "BPE": BPETokenizer.train(parts["learned from"], size)}
    return row | {(name, part): measure(row[name], parts[part]) for name in NAMES for part in parts}, history


def report(rows, words):
    """The table, and some words as the smallest and the largest vocabulary cut them."""
    print("\nCharacters per token; bits per character, if a token costs -log2 of its frequency:\n\n"
          "            text learned from            unseen text\n"
          "     ids    unigram      BPE             unigram      BPE")
    for row in rows:
        seen, unseen = ("   ".join("{:.2f} {:.2f}".format(*row[name, part]) for name in NAMES)
                        for part in ("learned from", "unseen"))
        print(f"  {row['size']:6,}    {seen}       {unseen}")
    for row in dict.fromkeys((0, len(rows) - 1)):
        scores, bpe = rows[row]["scores"], rows[row]["BPE"]
        print(f"\nWith {rows[row]['size']:,} ids, the likeliest cuts, with their share of all cuts; and BPE:")
        for word in words:
            cuts, (ln_p, _) = best_cuts(SPACE + word, scores, 3), expected_counts(SPACE + word, scores)
            print("  " + "   ".join(f"{' '.join(cut)} {math.exp(score - ln_p):.1%}" for score, cut in cuts)
                  + "   BPE: " + " ".join(bpe.decode([i]).replace(" ", SPACE) for i in bpe.encode(" " + word)))


def picture(history, rows, path):
    """Left: what the pieces cost, from the seed to the last pruning. Right: how long tokens are, by size."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(*zip(*history), "o-", markersize=4)
    left.set(xlabel="pieces: fewer and fewer", ylabel="bits per character",
             title=f"{STEPS} steps of EM at each size, then a quarter goes")
    left.invert_xaxis()
    for name, color in zip(NAMES, ("tab:blue", "tab:orange")):
        for part, style in (("learned from", "o:"), ("unseen", "o-")):
            points = [(row["size"], row[name, part][0]) for row in rows]
            right.plot(*zip(*points), style, color=color, label=f"{name}, text {part}")
    right.set(xlabel="size of the vocabulary", ylabel="characters per token", title="Longer pieces, fewer tokens")
    right.legend(loc="upper left", fontsize=8)
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description="Learn unigram vocabularies, and compare them with BPE.",
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--size", type=int, nargs="+", default=[500, 1000, 2000], help="ids in the vocabularies")
    parser.add_argument("--word", nargs="+", default=WORDS, help="words to be cut")
    parser.add_argument("--out", default="runs/unigram", help="folder for what is written")
    args = parser.parse_args()
    script.folder(args.out)
    if min(args.size) < 257:
        raise ValueError(f"--size: {min(args.size)} is too small, for BPE begins with 256 bytes; ask for 257 or more")
    corpus = normalize(text.default_corpus())
    cut = corpus.index(" ", len(corpus) * 9 // 10)
    parts = {"learned from": corpus[:cut], "unseen": corpus[cut + 1:]}
    words = count_words(parts["learned from"])
    if strange := set("".join(args.word)) - set("".join(words)):
        raise ValueError(f"--word: {min(strange)!r} does not occur in the text, so it is in no piece; take other words")
    print(f"Text, with single spaces: {text.describe(corpus)}\nJob: from nine tenths of it, {words.total():,} words "
          f"and signs of which {len(words):,} differ, {len(args.size)} vocabularies; half a minute.")
    print("Expect: the first step of EM gains most; then most pieces can go for nothing, and the last ones hurt.\n")
    results = [compare(size, words, parts) for size in sorted(args.size)]
    rows, history = [row for row, _ in results], results[-1][1]
    report(rows, args.word)

    tokenizer = rows[-1]["unigram"]
    tokenizer.save(args.out)
    again = text.load_tokenizer(args.out)
    ids = again.encode(corpus)
    same = ids == tokenizer.encode(corpus) and again.decode(ids) == corpus
    print(f"\nThe largest one, saved in {args.out} and loaded again: the text "
          + ("comes back." if same else "DOES NOT COME BACK."))
    with script.drawing():
        picture(history, rows, Path(args.out) / "vocabulary.png")
        print(f"The same as a picture: {args.out}/vocabulary.png")


if __name__ == "__main__":
    script.run(main)
