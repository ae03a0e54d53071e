"""What the tests of several models share: gradients of all parameters at once, and the same run on both paths."""
import numpy as np

from tinyllm import backend, optim, random, train

EPS32 = float(np.finfo(np.float32).eps)


def check_random_directions(model, loss, directions=3, step=1e-5):
    """In float64: the slope of loss() along random directions of all parameters, by backward() and by differences.

    gradcheck() is for functions of tensors; a model's parameters must be moved where they are.
    """
    rng, masks, before = np.random.default_rng(0), random.get_state(), [p.data for p in model.parameters()]

    def at(distance, direction):
        random.set_state(masks)         # the same dropout every time
        for p, start, d in zip(model.parameters(), before, direction):
            p.data = start + distance * d
        return loss()

    for _ in range(directions):
        direction = [rng.standard_normal(p.shape) for p in model.parameters()]
        length = np.sqrt(sum((d * d).sum() for d in direction))
        direction = [d / length for d in direction]     # a straight piece of the loss is short
        up, down = (at(distance, direction).item() for distance in (step, -step))
        model.zero_grad()
        at(0, direction).backward()
        slope = sum((p.grad * d).sum() for p, d in zip(model.parameters(), direction))
        np.testing.assert_allclose((up - down) / (2 * step), slope, rtol=1e-6)


def training(model, batches, lr=1e-3):
    """For each batch a training step, and of it the loss, the gradient norm, and every gradient by name.

    AdamW divides a gradient by its own size, however small: with the usual eps of 1e-8, one that is 1e-8 and has a
    rounding error of 2e-9 moves its weight by another step. With 1e-5 it hardly moves.
    """
    optimizer = optim.AdamW(model.parameters(), lr, eps=1e-5)
    step, records = train.training_step(model, optimizer, train.TrainConfig(clip=1.0)), []
    for i, batch in enumerate(batches):
        random.next_step(i)
        (loss,), norm = step([batch], lr)
        gradients = {name: backend.of(p.grad).to_numpy(p.grad) for name, p in model.named_parameters()}
        records.append({"loss": np.array(float(loss)), "norm": np.array(float(norm)), **gradients})
    return records


def check_two_paths(make, batches, lr=1e-3):
    """Training on Triton is no worse than three times NumPy's own float32 error, against the float64 truth.

    make(backend, dtype): the same model each time. Errors are measured against the largest entry of all gradients of a
    step: rounding scales with that, also where a gradient is zero but for rounding (the keys' biases: softmax does not
    see what is added to all scores of a query).
    """
    truth, plain, triton = (training(make(*how), batches, lr) for how in (
        ("numpy", np.float64), ("numpy", None), ("triton", None)))
    for step, (exact, numpy32, kernels) in enumerate(zip(truth, plain, triton)):
        largest = max(np.abs(g).max() for name, g in exact.items() if name not in ("loss", "norm"))
        for name in exact:
            size = np.abs(exact[name]).max() if name in ("loss", "norm") else largest
            allowed = 3 * np.abs(numpy32[name] - exact[name]).max() + 16 * EPS32 * size
            error = np.abs(kernels[name] - exact[name]).max()
            assert error <= allowed, (f"step {step}, {name}: the kernels are off by {error:.2g}, "
                                      f"allowed is {allowed:.2g}")
