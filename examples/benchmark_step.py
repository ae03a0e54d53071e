"""The GPU benchmark's first jobs: a whole training step of a GPT, and the two kernels of its optimizer.

Ours is train.training_step, as train.train calls it: a batch arrives as NumPy arrays, then forward and backward pass,
clipping, AdamW. torch gets what nanoGPT does to be fast: torch.compile, F.scaled_dot_product_attention, autocast to
bfloat16, fused AdamW. Both start from the same weights and see the same batches; the first losses must be alike.
"""
import functools

import tinyllm     # before NumPy: it tells NumPy's BLAS how to wait (ops/threads.py)
import numpy as np
import torch
from benchmark_rows import Row, job, kernels, plain
from tinyllm import optim, train
from torch_twin import TorchGPT, adamw as groups_of

LR, BETAS, DECAY, CLIP = 1e-3, (0.9, 0.99), 0.1, 1.0
WARM = 3                    # steps before the clock starts: their losses are compared, and their peak memory counts


def train_ours(s, config, weights):
    """The function (ids, targets) -> loss that trains our model by one step."""
    model = tinyllm.GPT(config)
    model.load_state_dict(weights)
    model.to("triton", str(s.dtype)[6:])
    optimizer = optim.AdamW(model.parameters(), LR, BETAS, weight_decay=DECAY)
    step = train.training_step(model, optimizer, train.TrainConfig(clip=CLIP))
    return lambda *batch: step([batch], LR)[0][0]


def train_torch(s, config, weights):
    """The same for the twin in torch: float32 weights, and bfloat16 where autocast finds it safe."""
    twin = TorchGPT(config)
    twin.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    twin.to(s.device)
    groups = [{key: group[key] for key in ("params", "weight_decay")}
              for group in groups_of(twin, LR, BETAS, DECAY).param_groups]
    optimizer = torch.optim.AdamW(groups, LR, BETAS, fused=True)
    loss_of = torch.compile(twin.loss, backend=s.compiler, dynamic=False) if s.compiler else twin.loss

    def step(*batch):
        ids, targets = (torch.from_numpy(array).to(s.device) for array in batch)
        with torch.autocast(s.device.type, torch.bfloat16, enabled=s.dtype == torch.bfloat16):
            loss = loss_of(ids, targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), CLIP)
        optimizer.step()
        return loss.detach()
    return step


@job
def training_step(s):
    """The small GPT of the examples, and GPT-2 124M. A side is built when it is first called: its memory is its own."""
    for preset, changes, size in s.models:
        tinyllm.manual_seed(1)
        config = tinyllm.GPTConfig.preset(preset, **changes, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)
        yield step_row(s, f"training step, {preset}, {size} x {config.n_positions}", config, size)


def step_row(s, name, config, size):
    """The row of one model, `size` texts a step."""
    model, T = tinyllm.GPT(config), config.n_positions
    weights, text = model.state_dict(), np.random.default_rng(0).integers(0, config.vocab_size, (WARM, size, T + 1))
    batches = [(ids[:, :-1].copy(), ids[:, 1:].copy()) for ids in text]
    twin = "compiled" if s.compiler else "eager"
    make, steps, losses, peaks = {"ours": train_ours, twin: train_torch}, {}, {}, {}

    def call(side, i):
        if side not in steps:
            before = allocated(s, "memory_allocated", restart=True)
            step = make[side](s, config, weights)
            losses[side] = [float(step(*batch)) for batch in batches]
            peaks[side] = allocated(s, "max_memory_allocated") - before
            steps[side] = step
        return steps[side](*batches[i])

    def pairs():
        for side in make:
            call(side, 0)
        share = max(torch.finfo(s.dtype).eps / 2, 1e-5)         # of a loss, that rounding may change
        return [(torch.tensor(a), torch.tensor(b), share * b) for a, b in zip(losses["ours"], losses[twin])]

    def extra(times):
        return {"tokens_per_second": {side: size * T / us * 1e6 for side, us in times.items()},
                "peak_memory_bytes": {side: n for side, n in peaks.items() if n}}

    # what the optimizer cannot do without (see below), and see GPT.flops_per_token
    n_bytes, operations = optimizer_bytes(s) * model.num_parameters(), model.flops_per_token() * size * T
    return Row(name, functools.partial(call, "ours"), {twin: functools.partial(call, twin)}, n_bytes, operations,
               pairs=pairs, capture=False, extra=extra)


def allocated(s, what, restart=False):
    """Bytes that torch's allocator gives out (or did at most, since the restart); 0 without a GPU."""
    if s.device.type != "cuda":
        return 0
    if restart:
        torch.cuda.reset_peak_memory_stats()
    return getattr(torch.cuda, what)()


def optimizer_bytes(s):
    """A parameter's: gradient, float32 weight and two moments read, the latter three written, and a 16-bit copy."""
    return 4 * 4 + 3 * 4 + (2 if s.e == 2 else 0)


@job
def adamw(s):
    """A step of all parameters; "fused" is torch.optim.AdamW(fused=True), and a copy in 16 bits."""
    n, half, lr, beta1, beta2, eps, step = s.parameters, s.e == 2, LR, 0.9, 0.999, 1e-8, 10
    hyper, norm = torch.tensor([lr, step], device=s.device), torch.tensor(1.0, device=s.device)

    def new():
        p, g, m = (s.new(n, dtype=torch.float32) for _ in "pgm")
        return p, g, m, torch.rand_like(p), s.new(n) if half else p

    def ours(p, g, m, v, working):
        kernels.adamw_step(p, g, m, v, hyper, norm, working if half else None, weight_decay=DECAY)

    def eager(p, g, m, v, working):
        m.lerp_(g, 1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        p.mul_(1 - lr * DECAY)
        p.addcdiv_(m / (1 - beta1**step), (v / (1 - beta2**step)).sqrt() + eps, value=-lr)
        if half:
            working.copy_(p)

    @functools.cache
    def optimizer(p):
        rate = torch.tensor(lr, device=s.device)
        return torch.optim.AdamW([p], rate, (beta1, beta2), eps, DECAY, fused=True, capturable=True)

    def fused(p, g, m, v, working):
        p.grad = g
        optimizer(p).step()
        if half:
            working.copy_(p)

    def pairs():            # they work in place, so both start from copies of the same
        state = new()
        results = [[x.clone() for x in state] for _ in range(2)]
        if not half:
            results = [[*arrays[:4], arrays[0]] for arrays in results]
        ours(*results[0])
        eager(*results[1])
        return [(a, b, None) for a, b in zip(*results)]

    yield plain(s, "adamw", new, ours, eager, optimizer_bytes(s) * n, 15 * n, {"fused": fused}, pairs=pairs, terms=15)


@job
def grad_norm(s):
    """The length of all gradients together. A thread adds up some hundred squares, then the threads' sums are added."""
    yield plain(s, "grad_norm", lambda: (s.new(s.parameters, dtype=torch.float32),), kernels.grad_norm,
                torch.linalg.vector_norm, 4 * s.parameters, 2 * s.parameters, terms=1024)
