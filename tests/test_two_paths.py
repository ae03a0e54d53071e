"""The same model, trained on both paths: NumPy, and Triton kernels (in Triton's interpreter where there is no GPU)."""
import numpy as np
import pytest

pytest.importorskip("torch", reason="the Triton path needs torch")
pytest.importorskip("triton", reason="the Triton path needs triton, which exists for Linux only")

import tinyllm  # noqa: E402
from tinyllm import backend, optim, train  # noqa: E402

CONFIG = tinyllm.GPTConfig(vocab_size=65, n_positions=16, n_embd=32, n_layer=2, n_head=2, embd_pdrop=0.0,
                           attn_pdrop=0.0, resid_pdrop=0.0)


def ten_steps(where, dtype=None):
    """Losses, gradient norms, and every gradient by name, of ten training steps of a two-layer GPT."""
    tinyllm.manual_seed(1)
    model = tinyllm.GPT(CONFIG).to(where, dtype)
    optimizer = optim.AdamW(model.parameters(), 1e-3)
    step = train.training_step(model, optimizer, train.TrainConfig(clip=1.0))
    rng, records = np.random.default_rng(0), []
    for _ in range(10):
        ids = rng.integers(0, CONFIG.vocab_size, (2, 17))
        losses, norm = step([(ids[:, :-1], ids[:, 1:])], 1e-3)
        gradients = {name: backend.of(p.grad).to_numpy(p.grad) for name, p in model.named_parameters()}
        records.append({"loss": np.array(float(losses[0])), "norm": np.array(float(norm)), **gradients})
    return records


def test_ten_training_steps_agree_in_the_loss_and_in_every_gradient():
    """No worse than three times NumPy's own float32 error, against the float64 truth.

    AdamW divides by the gradient's size, so where a gradient is zero but for rounding (the keys' biases: softmax does
    not see what is added to all scores of a query) both float32 runs wander; errors are measured against the largest
    entry of all gradients of a step, which is what rounding scales with.
    """
    truth, plain, triton = ten_steps("numpy", np.float64), ten_steps("numpy"), ten_steps("triton")
    for step, (exact, numpy32, kernels) in enumerate(zip(truth, plain, triton)):
        largest = max(np.abs(g).max() for name, g in exact.items() if name not in ("loss", "norm"))
        for name in exact:
            size = np.abs(exact[name]).max() if name in ("loss", "norm") else largest
            allowed = 3 * np.abs(numpy32[name] - exact[name]).max() + 16 * np.finfo(np.float32).eps * size
            error = np.abs(kernels[name] - exact[name]).max()
            assert error <= allowed, (f"step {step}, {name}: the kernels are off by {error:.2g}, "
                                      f"allowed is {allowed:.2g}")


def test_tensors_of_two_backends_do_not_mix():
    a, b = tinyllm.Tensor([1.0]), tinyllm.Tensor([1.0]).to("triton")
    with pytest.raises(ValueError, match=r"add: its tensors live on different backends \(numpy, triton\)"):
        a + b


def test_a_model_moves_there_and_back():
    tinyllm.manual_seed(1)
    model = tinyllm.GPT(CONFIG)
    before = model.state_dict()
    after = model.to("triton").to("numpy").state_dict()
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_an_operation_without_a_kernel_says_so():
    with pytest.raises(NotImplementedError, match=r'erf_forward does not exist on the triton backend.*\.to\("numpy"\)'):
        tinyllm.Tensor([1.0]).to("triton").erf()
