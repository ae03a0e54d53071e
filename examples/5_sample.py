"""5. Write with a trained model: text appears token by token.

    python examples/5_sample.py runs/gpt --prompt "The function"
    python examples/5_sample.py runs/gpt --prompt "The function" --temperature 0 --tokens 500
    python examples/5_sample.py runs/gpt --top-k 20 --top-p 0.9 --seed 7 --copies 3

The folder is a run of 3_train_gpt.py, or one checkpoint in it.
"""
import argparse
import sys
import time

import tinyllm
from tinyllm import checkpoint


def main():
    parser = argparse.ArgumentParser(description="Write with a trained model.")
    parser.add_argument("folder", nargs="?", default="runs/gpt", help="a run, or a checkpoint (default: %(default)s)")
    parser.add_argument("--prompt", default="\n", help="what the text begins with")
    parser.add_argument("--tokens", type=int, default=400, help="how many to write (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0: always the likeliest (default: %(default)s)")
    parser.add_argument("--top-k", type=int, default=50, help="choose among so many, 0: all (default: %(default)s)")
    parser.add_argument("--top-p", type=float, default=1.0,
                        help="choose among those with this probability in sum, 1: all")
    parser.add_argument("--seed", type=int, default=0, help="another number, another text (default: %(default)s)")
    parser.add_argument("--copies", type=int, default=1, help="several texts at once, printed one after another")
    parser.add_argument("--backend", choices=["numpy", "triton"], default="numpy", help="which path computes")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32",
                        help="16-bit weights with --backend triton only")
    parser.add_argument("--stop", help="end a text at this character or token")
    args = parser.parse_args()
    if args.backend == "numpy" and args.dtype != "float32":
        raise ValueError(f"--dtype {args.dtype}: NumPy computes in float32; add --backend triton")

    model, tokenizer = checkpoint.load_model(args.folder)
    if tokenizer is None:
        raise ValueError(f"{args.folder} was saved without a tokenizer, so nobody knows what its tokens mean; pass "
                         "the tokenizer to train()")
    model.to(args.backend, args.dtype)
    prompt = tokenizer.encode(args.prompt)
    stop = tokenizer.encode(args.stop)[-1:] if args.stop else ()
    print(f"{model.num_parameters():,} parameters; writing {args.tokens} tokens, a few seconds on a laptop.\n",
          file=sys.stderr)

    start, new, shown = time.perf_counter(), [], 0
    if args.copies == 1:
        print(args.prompt, end="", flush=True)
    for tokens in tinyllm.stream(model, prompt, args.tokens, temperature=args.temperature, top_k=args.top_k,
                                 top_p=args.top_p, seed=args.seed, num_return_sequences=args.copies, stop_tokens=stop):
        new.append(tokens)
        if args.copies == 1:        # decode all of it: a letter such as é may need two tokens
            text = tokenizer.decode([int(t[0]) for t in new])
            complete = text.rstrip("\N{REPLACEMENT CHARACTER}")
            print(complete[shown:], end="", flush=True)
            shown = len(complete)
    if args.copies > 1:
        for i in range(args.copies):
            print(f"--- text {i + 1}\n{args.prompt}{tokenizer.decode([int(t[i]) for t in new])}")
    seconds = time.perf_counter() - start
    print(f"\n\n{len(new) * args.copies / seconds:,.0f} tokens per second", file=sys.stderr)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print()
        sys.exit(130)
