"""The same model, trained on both paths: NumPy, and Triton kernels (in Triton's interpreter where there is no GPU)."""
import numpy as np
import pytest

pytest.importorskip("torch", reason="the Triton path needs torch")
pytest.importorskip("triton", reason="the Triton path needs triton, which exists for Linux only")

from model_checks import check_two_paths, training  # noqa: E402

import tinyllm  # noqa: E402
from tinyllm import backend, optim, train  # noqa: E402

SHAPE = dict(vocab_size=65, n_positions=16, n_embd=32, n_layer=2, n_head=2)
NO_DROPOUT = dict(embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)


def make(where, dtype=None, **changes):
    tinyllm.manual_seed(1)
    return tinyllm.GPT(tinyllm.GPTConfig(**SHAPE, **changes)).to(where, dtype)


def batches(n):
    ids = np.random.default_rng(0).integers(0, SHAPE["vocab_size"], (n, 2, 17))
    return [(some[:, :-1], some[:, 1:]) for some in ids]


@pytest.mark.parametrize("changes", [NO_DROPOUT, {}], ids=["without dropout", "with dropout"])
def test_ten_training_steps_agree_in_the_loss_and_in_every_gradient(changes):
    check_two_paths(lambda where, dtype: make(where, dtype, **changes), batches(10))


def test_ten_steps_in_bfloat16_follow_the_float32_run():
    """bfloat16 rounds to 1 in 256. A loss averages such errors over tokens and features, a gradient adds them up."""
    exact, half = (training(make(*how, **NO_DROPOUT), batches(10)) for how in (("numpy",), ("triton", "bfloat16")))
    for step, (a, b) in enumerate(zip(exact, half)):
        assert abs(a["loss"] - b["loss"]) < 2.0**-8 * a["loss"], f"step {step}: loss {b['loss']} instead of {a['loss']}"
        for name in a:
            close = np.abs(a[name] - b[name]).max() / np.abs(a["wte.weight"]).max()
            assert close < 2.0**-4, f"step {step}: {name} is off by {close:.3f} of the largest gradient"


def test_master_weights_learn_what_bfloat16_would_round_away():
    """A hundred steps of a millionth each: none of them changes a bfloat16 near 1, all of them together do."""
    p = tinyllm.Tensor(np.ones(4, np.float32), requires_grad=True).to("triton", "bfloat16")
    optimizer = optim.SGD([p], lr=1e-4)
    for _ in range(100):
        p.grad = backend.get("triton").from_numpy(np.ones(4, np.float32))
        optimizer.step()
    np.testing.assert_allclose(backend.of(optimizer.flat).to_numpy(optimizer.flat), 0.99, rtol=1e-5)
    assert (p.numpy() == 0.98828125).all() and optimizer.state_dict()[0]["master"].dtype == np.float32


def test_loaded_weights_reach_the_master_copy():
    tinyllm.manual_seed(1)
    layer = tinyllm.nn.Linear(3, 2).to("triton", "bfloat16")
    optimizer = optim.SGD(layer.parameters(), lr=0.5)
    layer.load_state_dict({"weight": np.ones((2, 3)), "bias": np.zeros(2)})
    for p in layer.parameters():
        p.grad = backend.get("triton").from_numpy(np.ones(p.shape, np.float32))
    optimizer.step()
    assert (layer.weight.numpy() == 0.5).all() and (layer.bias.numpy() == -0.5).all()


def test_tensors_of_two_backends_do_not_mix():
    a, b = tinyllm.Tensor([1.0]), tinyllm.Tensor([1.0]).to("triton")
    with pytest.raises(ValueError, match=r"add: its tensors live on different backends \(numpy, triton\)"):
        a + b


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("other", [3, 0.5, [1, 2], np.array([1, 2]), np.array([True, False]),
                                   tinyllm.Tensor(np.array([1, 2])).to("triton")], ids=str)
def test_numbers_lists_and_integers_stand_beside_a_tensor_there_too(other, dtype):
    x = tinyllm.Tensor([1.5, 2.0], requires_grad=True).to("triton", dtype)
    plain = other.numpy() if isinstance(other, tinyllm.Tensor) else np.array(other)
    for out in (x * other, other * x, tinyllm.functional.where([True, True], x * other, other)):
        assert out.dtype == x.dtype
        np.testing.assert_array_equal(out.numpy(), np.array([1.5, 2.0]) * plain)


def test_a_model_moves_there_and_back():
    tinyllm.manual_seed(1)
    model = tinyllm.GPT(tinyllm.GPTConfig(**SHAPE))
    before = model.state_dict()
    after = model.to("triton").to("numpy").state_dict()
    assert all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_training_evaluating_sampling_and_resuming_on_triton(dtype, tmp_path):
    """The loop of train.py, as it is; a run that was interrupted and resumed ends in the same bits."""
    tokens = np.random.default_rng(0).integers(0, 9, 200)
    data = [tinyllm.text.TokenDataset(part, 4) for part in (tokens[:150], tokens[150:])]
    config = train.TrainConfig(steps=4, batch_size=2, grad_accum=2, eval_every=4, save_every=2, eval_windows=2,
                               log_every=2, sample_tokens=0)
    shape = dict(vocab_size=9, n_positions=4, n_embd=8, n_layer=1, n_head=2)
    finals = []
    for folder, stop, resume in (("whole", None, None), ("cut", 2, None), ("cut", None, "checkpoint-000002")):
        tinyllm.manual_seed(1)
        model = tinyllm.GPT(tinyllm.GPTConfig(**shape)).to("triton", dtype)
        resume = resume and tmp_path / folder / resume
        loss = train.train(model, *data, config, tmp_path / folder, resume=resume, stop_at=stop)
        finals.append((loss, model.state_dict()))
    assert finals[0][0] == finals[2][0] and np.isfinite(finals[0][0])
    assert all(np.array_equal(finals[0][1][name], finals[2][1][name]) for name in finals[0][1])


def test_both_paths_write_the_same_text():
    texts = []
    for where in ("numpy", "triton"):
        tinyllm.manual_seed(1)
        model = tinyllm.GPT(tinyllm.GPTConfig(**{**SHAPE, "n_layer": 1}, initializer_range=0.3)).to(where)
        texts += [tinyllm.generate(model, [[1, 2], [3, 4]], 6, temperature=t, top_k=20, seed=3).tolist()
                  for t in (0, 0.8)]
    assert texts[:2] == texts[2:]
