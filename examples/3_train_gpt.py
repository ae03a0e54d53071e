"""3. Train a GPT from scratch and watch it learn to write. The main script.

    python examples/3_train_gpt.py                          the text that comes with Python, a few minutes on a laptop
    python examples/3_train_gpt.py --text FILE [FILE ...]   your own text, UTF-8
    python examples/3_train_gpt.py --tokenizer bpe          tokens of several letters instead of single ones
    python examples/3_train_gpt.py --resume                 go on where it was interrupted (Ctrl-C saves)
    python examples/3_train_gpt.py --backend triton         the same with Triton kernels, on a GPU (--dtype bfloat16)

Without a GPU, the kernels run in Triton's interpreter, about a second per step for a very small model:

    TRITON_INTERPRET=1 python examples/3_train_gpt.py --backend triton --preset nano --batch-size 4 --steps 100 \\
        --eval-windows 100 --sample-tokens 0 --out runs/nano

The recipe is nanoGPT's for a small computer: 4 layers, 4 heads, width 128, context 64, 12 windows a step, 2,000 steps
of AdamW. Everything it writes lies in one folder (--out): checkpoints, log.jsonl, loss.png, and arguments.json, from
which --resume takes what you do not repeat.
"""
import argparse
import json
from pathlib import Path

import tinyllm     # before NumPy: it tells NumPy's BLAS how to wait (ops/threads.py)
import numpy as np
import script
from tinyllm import backend, checkpoint, metrics, text, train
from tinyllm.models.gpt import PRESETS
from tinyllm.tensor_file import json_object

TRAINING = {
    "steps": "how often the weights are changed", "batch_size": "windows of text per step",
    "grad_accum": "batches per step, one after another: a large batch in little memory",
    "lr": "the peak learning rate", "min_lr": "the last learning rate", "warmup": "steps until the peak",
    "schedule": f"how the learning rate falls: {', '.join(train.SCHEDULES)}", "weight_decay": "of the matrices",
    "clip": "the largest norm of the gradient; 0: any", "log_every": "steps between two lines of the log",
    "eval_every": "steps between two evaluations", "save_every": "steps between two checkpoints",
    "eval_windows": "how many windows of the validation text to evaluate; 0: all of it",
    "sample_tokens": "length of the sample at each evaluation; 0: none",
    "seed": "of the weights, the data, the dropout",
}


def arguments():
    parser = argparse.ArgumentParser(description="Train a GPT.", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--text", nargs="+", metavar="FILE", help="UTF-8 text to learn from (default: Python's own)")
    parser.add_argument("--tokenizer", choices=["char", "bpe"], default="char", help="a token: a letter, or a piece")
    parser.add_argument("--vocab-size", type=int, default=1024, help="for --tokenizer bpe")
    parser.add_argument("--preset", choices=list(PRESETS), default="tiny", help="the model's shape")
    parser.add_argument("--context", type=int, help="tokens it sees at once (default: the preset's)")
    parser.add_argument("--bias", action="store_true", help="with biases, like GPT-2")
    parser.add_argument("--backend", choices=["numpy", "triton"], default="numpy", help="which path computes")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32",
                        help="of the weights and activations; the 16-bit ones with --backend triton only")
    parser.add_argument("--deterministic", action="store_true", help="on a GPU: the same bits in every run, slower")
    parser.add_argument("--no-capture", dest="capture", action="store_false",
                        help="on a GPU: launch each kernel from Python, in place of one CUDA graph for a step")
    parser.add_argument("--out", default="runs/gpt", help="folder for everything that is written")
    parser.add_argument("--resume", nargs="?", const="latest", metavar="CHECKPOINT",
                        help="continue a run from a checkpoint, or from its newest (default: the run in --out)")
    for name, meaning in TRAINING.items():
        default = getattr(train.TrainConfig, name)
        parser.add_argument("--" + name.replace("_", "-"), type=type(default), default=default, help=meaning)
    args = parser.parse_args()
    if not args.resume:
        return args
    named = Path(args.out if args.resume == "latest" else args.resume)      # a run, or one of its checkpoints
    newest = checkpoint.latest(named) or (named if (named / "state.json").exists() else None)
    if newest is None:
        raise ValueError(f"there is no checkpoint in {named} to resume from; run without --resume first")
    earlier = newest.parent / "arguments.json"
    if earlier.exists():
        parser.set_defaults(**json_object(earlier.read_bytes(), earlier))
    parser.set_defaults(out=str(newest.parent))         # it goes on where it began, unless --out says otherwise
    args = parser.parse_args()
    args.resume = newest
    return args


def main():
    args = arguments()
    script.folder(args.out)
    config = train.TrainConfig(**{name: getattr(args, name) for name in [*TRAINING, "capture"]})
    corpus = text.clean(text.read_text(*args.text), fold=False) if args.text else text.default_corpus()
    print(f"Text, cleaned: {text.describe(corpus)}" + ("" if args.text else " (the pages behind Python's help())"))
    tokenizer = make_tokenizer(args, corpus)
    train_tokens, val_tokens = text.split(np.array(tokenizer.encode(corpus)), 0.1)
    model = make_model(args, tokenizer)
    context = model.config.n_positions
    if len(train_tokens) <= context or len(val_tokens) < 2:
        raise ValueError(f"the text has {len(train_tokens) + len(val_tokens)} tokens, too few to train on nine tenths "
                         f"of it with a context of {context}; give more text, or a smaller --context.")
    train_data, val_data = (text.TokenDataset(part, context) for part in (train_tokens, val_tokens))

    tokens = config.steps * config.batch_size * config.grad_accum * context
    print(f"Model: {model.num_parameters():,} parameters, a vocabulary of {tokenizer.vocab_size:,}, "
          f"{context} tokens at once.")
    print(f"Job: {config.steps:,} steps of {config.batch_size * config.grad_accum} x {context} tokens, "
          f"{model.flops_per_token(context) * tokens / 1e12:.1f} trillion floating-point operations; the bar below "
          "tells the time left.")
    print(f"Expect: the loss starts near ln {tokenizer.vocab_size} = {np.log(tokenizer.vocab_size):.2f}, where "
          f"every token is equally likely{expectation(args, config)}.\n")
    if not checkpoint.latest(args.out):
        kept = {name: value for name, value in vars(args).items() if name not in ("out", "resume")}
        (Path(args.out) / "arguments.json").write_text(json.dumps(kept, indent=2), encoding="utf-8")
    loss = train.train(model, train_data, val_data, config, args.out, tokenizer, args.resume)
    report(model, val_data, tokenizer, loss, config)
    if (Path(args.out) / "loss.png").exists():
        print(f"The curve is {args.out}/loss.png.")
    print(f"To write with the model: python examples/5_sample.py {args.out}")


def make_tokenizer(args, corpus):
    """The tokenizer of the run to be resumed, or a new one."""
    if args.resume:
        return text.load_tokenizer(args.resume)
    if args.tokenizer == "char":
        return text.CharTokenizer.train(corpus)
    print(f"Learning {args.vocab_size:,} tokens from it by byte-pair encoding ...")
    return text.BPETokenizer.train(corpus, args.vocab_size)


def make_model(args, tokenizer):
    """A GPT with fresh weights, where it shall run."""
    tinyllm.manual_seed(args.seed)
    changes = {} if args.context is None else {"n_positions": args.context}
    config = tinyllm.GPTConfig.preset(args.preset, vocab_size=tokenizer.vocab_size, bias=args.bias, **changes)
    if args.backend == "numpy" and args.dtype != "float32":
        raise ValueError(f"--dtype {args.dtype}: NumPy trains in float32; add --backend triton")
    if args.deterministic and args.backend == "triton":     # NumPy always is
        backend.use_deterministic_algorithms()
    return tinyllm.GPT(config).to(args.backend, args.dtype)


def expectation(args, config):
    """What a run with the default settings comes to."""
    defaults = (config == train.TrainConfig() and args.tokenizer == "char" and args.preset == "tiny"
                and not (args.text or args.context or args.bias) and args.backend == "numpy")
    return ", and ends at about 1.42 on text the model has not seen, in 1 to 4 minutes on two cores" if defaults else ""


def report(model, val_data, tokenizer, loss, config):
    """The loss in other units, and how often the likeliest token is the one that comes (in the windows evaluated)."""
    targets = val_data.tokens[1:]
    written = tokenizer.decode(targets.tolist())
    right = seen = 0
    model.eval()
    with tinyllm.no_grad():
        for n, (ids, wanted) in enumerate(val_data.windows(config.batch_size)):
            right += metrics.accuracy(model(ids).numpy().argmax(-1), wanted) * wanted.size
            seen += wanted.size
            if config.eval_windows and (n + 1) * config.batch_size >= config.eval_windows:
                break
    print(f"Validation loss {loss:.4f} nats per token: "
          f"{metrics.bits_per_character(loss, len(targets), len(written)):.3f} bits per character, "
          f"{metrics.bits_per_byte(loss, len(targets), len(written.encode('utf-8'))):.3f} per byte of text. "
          f"The likeliest token is right {right / seen:.1%} of the time.")


if __name__ == "__main__":
    script.run(main)
