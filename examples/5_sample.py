"""5. Write with a trained model: text appears token by token.

    python examples/5_sample.py                                         the model that 3_train_gpt.py has trained
    python examples/5_sample.py --prompt "The function" --temperature 0 --tokens 500
    python examples/5_sample.py gpt2 --prompt "My neighbour's parrot has learned to"        a downloaded model
    python examples/5_sample.py t5-small --prompt "translate English to German: The book is on the table." --num-beams 4

The folder is a run of 3_train_gpt.py, a checkpoint in it, or a downloaded model of the GPT-2, Llama or T5 kind. A GPT
goes on with the prompt. A T5 reads it as its source and writes an answer.

What you do not say depends on the model. One that was trained here writes a single text, of 400 tokens, at temperature
0.8. A published one writes three continuations of 50 tokens: each token is drawn among the 50 likeliest, and of these
only among those that make up 0.95 of the probability. An answer is made of the likeliest tokens.
"""
import argparse
import sys
import time
import warnings

import tinyllm     # before NumPy: it tells NumPy's BLAS how to wait (ops/threads.py)
import numpy as np
import script
from tinyllm import metrics, text
from tinyllm.options import ends_of
from tinyllm.text import StreamingDecoder

FLAGS = {       # the options of tinyllm.generate that are one number: tinyllm/options.py says more
    "temperature": (float, "0: always the likeliest token; the higher, the more evenly it draws"),
    "top_k": (int, "draw among so many of the likeliest tokens; 0: all"),
    "top_p": (float, "draw among the likeliest tokens that have this probability together; 1: all"),
    "min_p": (float, "draw among those that are at least min-p times as likely as the likeliest"),
    "repetition_penalty": (float, "above 1: tokens that occurred become less likely"),
    "no_repeat_ngram_size": (int, "so many tokens in a row occur only once"),
    "max_length": (int, "how long a text may get, the prompt included; instead of --max-new-tokens"),
    "min_new_tokens": (int, "a text does not end before; needs a model that knows how a text ends"),
    "min_length": (int, "the same, the prompt included"),
    "num_beams": (int, "search for the likeliest text with so many beams, instead of drawing"),
    "length_penalty": (float, "for beams; above 1: rather long texts, below: short ones"),
    "seed": (int, "another number, another text (default: 0)"),
}


def arguments():
    parser = argparse.ArgumentParser(description="Write with a trained model.")
    parser.add_argument("folder", nargs="?", default="runs/gpt",
                        help="a run, a checkpoint, or a downloaded model (default: %(default)s)")
    parser.add_argument("--prompt", default="\n", help="what the text begins with; for a T5, what it reads")
    parser.add_argument("--max-new-tokens", "--tokens", type=int, metavar="N", help="how many tokens to write at most")
    parser.add_argument("--num-return-sequences", "--copies", type=int, metavar="N", help="how many texts to write")
    for name, (kind, meaning) in FLAGS.items():
        parser.add_argument("--" + name.replace("_", "-"), type=kind, metavar="N", help=meaning)
    parser.add_argument("--early-stopping", nargs="?", const=True, choices=["never"],
                        help="for beams: stop as soon as there are enough texts; never: only when none can be better")
    parser.add_argument("--stop", action="append", dest="stop_strings", metavar="TEXT",
                        help="end a text with these characters; may be repeated")
    for name, meaning in (("stop", "end a text with one of these ids"), ("suppress", "never write one of these ids")):
        parser.add_argument(f"--{name}-tokens", nargs="+", type=int, metavar="ID", help=meaning)
    parser.add_argument("--int8", action="store_true", help="round the matrices to a byte per number: less to read")
    parser.add_argument("--backend", choices=["numpy", "triton"], default="numpy", help="which path computes")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32",
                        help="of the weights; the 16-bit ones with --backend triton only")
    args = parser.parse_args()
    if args.backend == "numpy" and args.dtype != "float32":
        raise ValueError(f"--dtype {args.dtype}: NumPy computes in float32; add --backend triton")
    return args


def options(args, model, tokenizer):
    """The options of generate(): what was asked for, and for the rest what suits the model."""
    names = ["max_new_tokens", "num_return_sequences", *FLAGS, "early_stopping", "stop_strings", "stop_tokens",
             "suppress_tokens"]
    asked = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if hasattr(model, "read_source"):                       # an encoder-decoder
        usual = {"max_new_tokens": 100, "temperature": 0}
    elif getattr(model, "settings", None):                  # config.json, so it is a published model
        usual = {"max_new_tokens": 50, "top_k": 50, "top_p": 0.95, "num_return_sequences": 3}
    else:
        usual = {"max_new_tokens": 400, "temperature": 0.8, "top_k": 50}
    if asked.get("num_beams", 1) > 1 or asked.get("temperature") == 0:          # nothing is drawn
        usual = {"max_new_tokens": usual["max_new_tokens"]}
    if "max_length" in asked:
        del usual["max_new_tokens"]
    ends = ends_of(model.config, getattr(model, "settings", {}))
    return {"seed": 0, "stop_tokens": ends, "tokenizer": tokenizer, **usual, **asked}


class Text:
    """A text in the making: tokens go in, characters come out, up to where it ends."""

    def __init__(self, beginning, ids, tokenizer, stop_tokens, stop_strings=(), **_):
        self.decoder, self.vocab_size = StreamingDecoder(tokenizer), tokenizer.vocab_size
        self.stop_tokens, self.stop_strings = stop_tokens, stop_strings
        self.decoder.add(ids)               # the prompt, which may end inside a character
        self.text, self.start, self.tokens, self.over = beginning, len(beginning), 0, False

    def add(self, token):
        """The characters that are certain with this token; "" behind the end, where texts are only filled up."""
        if self.over:
            return ""
        self.tokens += 1
        known = token < self.vocab_size     # many models have more rows than there are tokens, for a rounder number
        new = self.decoder.add(token) if known and token not in self.stop_tokens else ""
        self.text += new
        self.over = token in self.stop_tokens or any(       # a stop string may begin in the prompt, but not end there
            self.text.find(stop, max(0, self.start - len(stop) + 1)) >= 0 for stop in self.stop_strings)
        return new


def in_int8(model, tokenizer, prompt, ends):
    """The model with its matrices in int8; it is printed what the rounding costs."""
    small = tinyllm.quantized(model)
    if hasattr(model, "read_source"):           # an encoder-decoder: what it answers
        source = np.array([prompt])
        batch = source, tinyllm.generate(model, source, 50, temperature=0, stop_tokens=ends)[:, 1:]
        what = "that it answers in float32"
    elif hasattr(model.config, "n_positions"):
        known, n = getattr(tokenizer, "characters", None), min(model.config.n_positions, 512)
        sample = "".join(c for c in text.default_corpus()[-10_000:] if known is None or c in known)
        ids = np.array([tinyllm.model_input(model, tokenizer, sample, ())[-n - 1:]])
        batch, what = (ids[:, :-1], ids[:, 1:]), "of Python's own pages; on any text, see 15_perplexity.py --int8"
    else:
        return small                            # no model that writes, as stream() will say
    with tinyllm.no_grad():
        before, after = (metrics.perplexity(m.loss(*batch).item()) for m in (model, small))
    print(f"int8: a perplexity of {after:.3f} instead of {before:.3f} on {batch[1].size} tokens {what}",
          file=sys.stderr)
    return small


def main():
    args = arguments()
    model, tokenizer = tinyllm.load(args.folder)
    n_parameters, answers = model.num_parameters(), hasattr(model, "read_source")
    if args.backend == "triton":
        model.to(args.backend, args.dtype)
    o = options(args, model, tokenizer)
    copies, beams = o.get("num_return_sequences", 1), o.get("num_beams", 1) > 1
    ids = tinyllm.model_input(model, tokenizer, args.prompt)
    if args.int8:
        model = in_int8(model, tokenizer, ids, o["stop_tokens"])
    most = o["max_new_tokens"] if "max_new_tokens" in o else max(0, o["max_length"] - (1 if answers else len(ids)))
    beginning, seen = ("", []) if answers else (args.prompt, ids)
    texts = [Text(beginning, seen, **o) for _ in range(copies)]
    print(f"{n_parameters:,} parameters; {copies} x {most} tokens at most, a few seconds with a small "
          f"model on a laptop{'; beams show nothing before the end' if beams else ''}.", file=sys.stderr)
    context = getattr(model.config, "n_positions", None)
    if context and not answers and len(ids) + most > context:
        print(f"It sees {context} tokens at once; in a longer text, the last half of them or more.",
              file=sys.stderr)
        warnings.filterwarnings("ignore", "the text has outgrown")      # said now, not in the middle of the text
    print(file=sys.stderr)

    start = time.perf_counter()
    if beams:               # a row for each text; an answer stands behind the start token
        rounds = tinyllm.generate(model, ids, **o)[:, len(seen) or 1:].T
    else:
        rounds = tinyllm.stream(model, ids, **o)
    heading = "--- text {}\n" if copies > 1 else ""
    print(heading.format(1) + beginning, end="", flush=True)
    for tokens in rounds:   # a token for each text; the first text is shown as it comes
        new = [one.add(token) for one, token in zip(texts, tokens)]
        print(new[0], end="", flush=True)
    print(texts[0].decoder.finish())
    seconds = time.perf_counter() - start
    for i, one in enumerate(texts[1:], 2):
        print(heading.format(i) + one.text + one.decoder.finish())
    tokens = sum(one.tokens for one in texts)
    print(f"\n{tokens} tokens, {tokens / seconds:,.0f} tokens per second", file=sys.stderr)


if __name__ == "__main__":
    script.run(main)
