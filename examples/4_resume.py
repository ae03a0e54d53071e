"""4. Interrupt a training run, go on later, and get the same model bit for bit.

    python examples/4_resume.py

Trains a very small GPT twice: once without a break, once stopped half-way and resumed from its checkpoint by a fresh
model. Leaves nothing behind. --backend triton does the same with Triton kernels (on a GPU, in deterministic mode).
"""
import argparse
import sys
import tempfile
from pathlib import Path

import tinyllm     # before NumPy: it tells NumPy's BLAS how to wait (ops/threads.py)
import numpy as np
import script
from tinyllm import backend, checkpoint, text, train

CONFIG = train.TrainConfig(steps=60, batch_size=8, warmup=10, eval_every=30, save_every=30, sample_tokens=0)


def fresh(vocab_size, where):
    """A new model; with dropout, so that the random state has to be continued as well."""
    tinyllm.manual_seed(CONFIG.seed)
    config = tinyllm.GPTConfig.preset("tiny", vocab_size=vocab_size, n_layer=2, n_embd=64, resid_pdrop=0.1)
    return tinyllm.GPT(config).to(where)


def main():
    parser = argparse.ArgumentParser(description="Interrupt a training run, resume it, and compare the bits.")
    parser.add_argument("--backend", choices=["numpy", "triton"], default="numpy")
    where = parser.parse_args().backend
    if where == "triton":
        backend.use_deterministic_algorithms()
    corpus = text.default_corpus()[:100_000]
    tokenizer = text.CharTokenizer.train(corpus)
    train_part, val_part = text.split(np.array(tokenizer.encode(corpus)), 0.1)
    data = text.TokenDataset(train_part, 64), text.TokenDataset(val_part, 64)
    print("Two runs of 60 steps, the second one interrupted at step 30: a few seconds each. "
          "Expect a validation loss near 3.2,")
    print("the same in both, and not one differing bit in the weights.\n")

    with tempfile.TemporaryDirectory() as folder:
        straight, first, second = (fresh(tokenizer.vocab_size, where) for _ in range(3))
        train.train(straight, *data, CONFIG, Path(folder) / "straight", tokenizer)
        out = Path(folder) / "broken"
        train.train(first, *data, CONFIG, out, tokenizer, stop_at=30)
        print("... the process could end here; all that is left is", checkpoint.latest(out).name)
        train.train(second, *data, CONFIG, out, tokenizer, resume=checkpoint.latest(out))

    differing = [name for name, value in straight.state_dict().items() if (value != second.state_dict()[name]).any()]
    print(f"\nParameters that differ after 60 steps: {', '.join(differing) or 'none, all bits are equal'}.")
    if differing:
        sys.exit(1)


if __name__ == "__main__":
    script.run(main)
