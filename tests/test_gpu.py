"""What only a GPU can show. CI has none and skips this file; elsewhere: pytest -m gpu -n 0

The other tests of the kernels run on a GPU too, without a change, where there is one. Here stands the rest: what atomic
additions could make different from run to run, arrays of more than 2^31 numbers that exist in full, a training run.
"""
import os

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the kernels' arrays are torch tensors: pip install tinyllm[triton]")
pytest.importorskip("triton", reason="Triton exists for Linux only: pip install tinyllm[triton]")

import tinyllm  # noqa: E402
from tinyllm import backend, kernels, ops, optim, text, train  # noqa: E402
from tinyllm.kernels import runtime  # noqa: E402

pytestmark = [pytest.mark.gpu,
              pytest.mark.skipif(runtime.INTERPRETED or not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]
BEYOND = 2**31 + 2**16      # numbers; in bfloat16 they take 4.3 GB
DTYPES = ["float32", "bfloat16"]


def needs_gigabytes(n):
    if torch.cuda.mem_get_info()[0] < n * 2**30:
        pytest.skip(f"needs {n} GB of free GPU memory")


def train_a_little(dtype, shape="nano", steps=5, batch=8, **changes):
    """Losses and weights of a short run with dropout and many repeated tokens."""
    tinyllm.manual_seed(1)
    config = tinyllm.GPTConfig.preset(shape, vocab_size=65, **changes)
    model = tinyllm.GPT(config).to("triton", dtype)
    step = train.training_step(model, optim.AdamW(model.parameters(), 1e-3), train.TrainConfig())
    rng, losses = np.random.default_rng(0), []
    for i in range(steps):
        tinyllm.random.next_step(i)
        ids = rng.integers(0, 65, (batch, config.n_positions + 1)) // 8     # eight different tokens
        losses.append(float(step([(ids[:, :-1], ids[:, 1:])], 1e-3)[0][0]))
    return losses, model.state_dict()


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_runs_in_deterministic_mode_end_in_the_same_bits(dtype):
    backend.use_deterministic_algorithms()
    try:
        (losses, first), (again, second) = (
            train_a_little(dtype, "tiny", batch=64, embd_pdrop=0.1, attn_pdrop=0.1, resid_pdrop=0.1) for _ in range(2))
    finally:
        backend.use_deterministic_algorithms(False)
    assert losses == again and all(np.array_equal(first[name], second[name]) for name in first)


def test_every_operation_gives_the_same_bits_twice():
    """One model has all that a GPT uses; a single launch that races would show here."""
    q = torch.randn(2, 300, 4, 64, device="cuda", dtype=torch.bfloat16)
    logits, targets = torch.randn(100, 5003, device="cuda"), torch.randint(0, 5003, (100,), device="cuda")
    x, w = torch.randn(3000, 768, device="cuda", dtype=torch.bfloat16), torch.randn(768, device="cuda").bfloat16()
    runs = []
    for _ in range(2):
        out, saved = kernels.attention_forward(q, q, q, causal=True)
        grads = kernels.attention_backward(q, saved=saved)[:3]
        loss, saved = kernels.cross_entropy_forward(logits, targets)
        norm, norm_saved = kernels.layer_norm_forward(x, w, w)
        runs.append([out, *grads, loss, kernels.cross_entropy_backward(torch.ones_like(loss), saved=saved)[0], norm,
                     *kernels.layer_norm_backward(x, saved=norm_saved)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("rows, n_in, n_out", [(64, 3072, 768), (64, 768, 2304), (16, 3072, 768), (33, 1024, 100)])
def test_the_last_program_sees_what_the_others_wrote(rows, n_in, n_out):
    """Parts of a sum change hands between programs (last.py). One that came too early would see what stood there
    before: the parts of another product, which got the same memory.
    """
    x, weight = torch.randn(rows, n_in, device="cuda").bfloat16(), torch.randn(n_out, n_in, device="cuda").bfloat16()
    first, expected = kernels.fused_linear(x, weight), x.float() @ weight.float().T
    assert float((first - expected).abs().max()) <= float(expected.abs().max()) / 64
    for i in range(300):
        kernels.fused_linear(-x, weight)
        assert torch.equal(kernels.fused_linear(x, weight), first), i


@pytest.mark.parametrize("batch, key_heads", [(1, 12), (3, 4), (8, 12)])
def test_parts_of_attention_change_hands(batch, key_heads):
    q = torch.randn(batch, 1, 12, 64, device="cuda").bfloat16()
    k, v = (torch.randn(batch, 1024, key_heads, 64, device="cuda").bfloat16() for _ in "kv")
    (first, _), wide = kernels.attention_forward(q, k, v), lambda x: x.float().transpose(1, 2)
    expected = torch.nn.functional.scaled_dot_product_attention(wide(q), wide(k), wide(v), enable_gqa=True)
    assert float((first - expected.transpose(1, 2)).abs().max()) <= float(expected.abs().max()) / 64
    for i in range(300):
        kernels.attention_forward(q, k, -v)
        assert torch.equal(kernels.attention_forward(q, k, v)[0], first), i


@pytest.mark.parametrize("options", [dict(top_k=50), dict(top_p=0.9), dict(top_k=50, top_p=0.9), dict()], ids=str)
def test_draws_change_hands(options):
    logits, rng = torch.randn(64, 50257, device="cuda").bfloat16() * 3, np.array([5, 7])
    expected = ops.sample(runtime.to_numpy(logits), rng, temperature=0.8, **options)
    first = kernels.sample(logits, rng, temperature=0.8, **options)
    assert (runtime.to_numpy(first) == expected).mean() > 0.95      # float32 rounds differently where top-p ends
    for i in range(300):
        kernels.sample(-logits, rng, temperature=0.8, **options)
        assert torch.equal(kernels.sample(logits, rng, temperature=0.8, **options), first), i


def test_element_wise_kernels_reach_beyond_two_to_the_31():
    needs_gigabytes(16)
    a = torch.zeros(BEYOND, device="cuda", dtype=torch.bfloat16)
    a[-3:] = torch.tensor([1.0, 2.0, 3.0])
    out, _ = kernels.add_forward(a, a)
    assert out[-4:].tolist() == [0, 2, 4, 6] and float(out[:2**20].abs().max()) == 0
    total, _ = kernels.sum_forward(a, axis=None, keepdims=False)
    assert float(total) == 6


def test_dropout_draws_the_same_mask_beyond_two_to_the_31():
    """The last row's mask is the one that NumPy draws for those elements."""
    needs_gigabytes(12)
    rows, columns, rng = 2**17 + 4, 2**14, np.array([5, 7])
    x = torch.ones((rows, columns), device="cuda", dtype=torch.bfloat16)
    out, _ = kernels.dropout_forward(x, runtime.from_numpy(rng), p=0.5, site=3)
    first = (rows - 1) * columns
    counters = np.arange(first // 4, first // 4 + columns // 4, dtype=np.uint64)
    words = ops.philox((5, 0), (counters & 0xFFFFFFFF, np.full_like(counters, 3), np.full_like(counters, 7),
                                counters >> np.uint64(32)))
    keep = np.stack(words, 1).reshape(-1) >= 2**31
    np.testing.assert_array_equal(runtime.to_numpy(out[-1]), np.where(keep, 2.0, 0.0))


@pytest.mark.parametrize("rows, columns", [(43_008, 50_257)])
def test_linear_cross_entropy_reaches_beyond_two_to_the_31(rows, columns):
    """At 50,304 columns from row 42,690 on: the last rows alone must give the same losses and gradients."""
    needs_gigabytes(12)
    generator = torch.Generator("cuda").manual_seed(0)
    x = torch.randn((rows, 64), device="cuda", generator=generator).bfloat16()
    weight = torch.randn((columns, 64), device="cuda", generator=generator).bfloat16() * 0.1
    targets = torch.randint(0, columns, (rows,), device="cuda", generator=generator)
    results = []
    for part in (slice(None), slice(-256, None)):
        loss, saved = kernels.linear_cross_entropy_forward(x[part], weight, targets[part], reduction="none")
        dx, _, _ = kernels.linear_cross_entropy_backward(torch.ones_like(loss), saved=saved)
        results.append((loss[-256:].clone(), dx[-256:].clone()))
        del loss, saved, dx
    for whole, part in zip(*results):
        # other tiles may sum in another order, and bfloat16 rounds to 1 in 256; a wrong offset gives another row
        assert float((whole - part).float().abs().max()) <= float(part.float().abs().max()) / 64


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_real_training_run_ends_where_numpy_does(dtype, tmp_path):
    """300 steps of the main example's model. NumPy with another seed for the data tells how much chance is in it."""
    corpus = text.default_corpus()
    tokenizer = text.CharTokenizer.train(corpus)
    data = [text.TokenDataset(part, 64) for part in text.split(np.array(tokenizer.encode(corpus)), 0.1)]
    losses = {}
    runs = (("numpy", "numpy", None, 1), ("chance", "numpy", None, 2), ("triton", "triton", dtype, 1))
    for name, where, kind, seed in runs:
        config = train.TrainConfig(steps=300, eval_every=300, save_every=300, eval_windows=200, sample_tokens=0,
                                   seed=seed)
        tinyllm.manual_seed(1)
        model = tinyllm.GPT(tinyllm.GPTConfig.preset("tiny", vocab_size=tokenizer.vocab_size)).to(where, kind)
        losses[name] = train.train(model, *data, config, tmp_path / name, tokenizer)
    assert losses["numpy"] < 2.6, "NumPy itself has not learned"
    allowed = max(abs(losses["chance"] - losses["numpy"]), 0.01)
    assert abs(losses["triton"] - losses["numpy"]) <= allowed, losses


def test_the_kernels_run_compiled_here():
    """A control: with TRITON_INTERPRET set by mistake, a green run would say nothing about the GPU."""
    assert os.environ.get("TRITON_INTERPRET", "0") in ("", "0") and runtime.device().type == "cuda"
