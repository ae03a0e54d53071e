"""3. Train a GPT from scratch and watch it learn to write. The main script.

    python examples/3_train_gpt.py                          the text that comes with Python, a few minutes on a laptop
    python examples/3_train_gpt.py --text FILE [FILE ...]   your own text, UTF-8
    python examples/3_train_gpt.py --tokenizer bpe          tokens of several letters instead of single ones
    python examples/3_train_gpt.py --resume                 go on where it was interrupted (Ctrl-C saves)

The recipe is nanoGPT's for a small computer: 4 layers, 4 heads, width 128, context 64, 12 windows a step, 2,000 steps
of AdamW. Everything it writes lies in one folder (--out): checkpoints, log.jsonl, loss.png.
"""
import argparse
import sys

import tinyllm     # before NumPy: it tells NumPy's BLAS how to wait (ops/threads.py)
import numpy as np
from tinyllm import checkpoint, text, train
from tinyllm.models.gpt import PRESETS


def arguments():
    parser = argparse.ArgumentParser(description="Train a GPT.", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--text", nargs="+", metavar="FILE", help="UTF-8 text to learn from (default: Python's own)")
    parser.add_argument("--tokenizer", choices=["char", "bpe"], default="char")
    parser.add_argument("--vocab-size", type=int, default=1024, help="for --tokenizer bpe")
    parser.add_argument("--preset", choices=list(PRESETS), default="tiny", help="the model's shape")
    parser.add_argument("--context", type=int, help="tokens it sees at once (default: the preset's)")
    parser.add_argument("--bias", action="store_true", help="with biases, like GPT-2")
    parser.add_argument("--out", default="runs/gpt", help="folder for everything that is written")
    parser.add_argument("--resume", nargs="?", const="latest", metavar="CHECKPOINT",
                        help="continue from a checkpoint (default: the newest in --out)")
    for name, default in vars(train.TrainConfig()).items():
        if isinstance(default, (int, float)):
            parser.add_argument("--" + name.replace("_", "-"), type=type(default), default=default, help=" ")
    return parser.parse_args()


def main():
    args = arguments()
    settings = {k: v for k, v in vars(args).items() if k in vars(train.TrainConfig())}
    config = train.TrainConfig(**settings)
    if args.resume == "latest":
        args.resume = checkpoint.latest(args.out)
        if args.resume is None:
            sys.exit(f"There is no checkpoint in {args.out} to resume from; run without --resume first.")
    elif not args.resume and checkpoint.latest(args.out):
        sys.exit(f"{args.out} holds an earlier run; give --resume to go on with it, or another folder with --out.")

    corpus = text.clean(text.read_text(*args.text), fold=False) if args.text else text.default_corpus()
    print(f"Text: {text.describe(corpus)}" + ("" if args.text else " (the pages behind Python's help())"))
    if args.tokenizer == "char":
        tokenizer = text.CharTokenizer.train(corpus)
    else:
        print(f"Learning {args.vocab_size:,} tokens from it by byte-pair encoding ...")
        tokenizer = text.BPETokenizer.train(corpus, args.vocab_size)
    tokens = np.array(tokenizer.encode(corpus))

    tinyllm.manual_seed(config.seed)
    changes = {"n_positions": args.context} if args.context else {}
    model = tinyllm.GPT(tinyllm.GPTConfig.preset(args.preset, vocab_size=tokenizer.vocab_size, bias=args.bias,
                                                 **changes))
    context = model.config.n_positions
    if len(text.split(tokens, 0.1)[0]) <= context or len(text.split(tokens, 0.1)[1]) < 2:
        sys.exit(f"error: the text has {len(tokens)} tokens, too few to train on nine tenths of it with a context of "
                 f"{context}; give more text, or a smaller --context.")
    train_data, val_data = (text.TokenDataset(part, context) for part in text.split(tokens, 0.1))

    print(f"Model: {model.num_parameters():,} parameters, a vocabulary of {tokenizer.vocab_size:,}, "
          f"{context} tokens at once.")
    print(
        f"Job: {config.steps:,} steps of {config.batch_size * config.grad_accum} x {context} tokens, "
        f"{model.flops_per_token(context) * context * config.batch_size * config.grad_accum * config.steps / 1e12:.1f}"
        " trillion floating-point operations; the bar below tells the time left.")
    print(f"Expect: the loss starts near ln {tokenizer.vocab_size} = {np.log(tokenizer.vocab_size):.2f}, where "
          f"every token is equally likely{EXPECTED if not args.text and not changed(config, args) else ''}.\n")
    try:
        loss = train.train(model, train_data, val_data, config, args.out, tokenizer, args.resume)
    except (ValueError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    if loss is not None:
        per_byte = tinyllm.metrics.bits_per_byte(loss, *val_size(tokens, tokenizer))
        print(f"Validation loss {loss:.4f} nats per token, which is {per_byte:.3f} bits per byte of text.")
    print(f"The curve is {args.out}/loss.png. To write with the model: python examples/5_sample.py {args.out}")


EXPECTED = ", and ends at about 1.42 on text the model has not seen, in 3 to 4 minutes on two cores"


def changed(config, args):
    """Whether anything differs from the defaults, so that the expectation above does not apply."""
    return (config != train.TrainConfig() or args.tokenizer != "char" or args.preset != "tiny"
            or args.context or args.bias)


def val_size(tokens, tokenizer):
    """How many tokens of the validation part are predicted, and how many bytes of text they stand for."""
    predicted = text.split(tokens, 0.1)[1][1:]
    return len(predicted), len(tokenizer.decode(predicted.tolist()).encode("utf-8"))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
