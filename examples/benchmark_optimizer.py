"""The GPU benchmark's jobs for the optimizer: one step of AdamW, and the length of all gradients together."""
import functools

import torch
from benchmark_rows import job, kernels, plain
from benchmark_step import DECAY, LR, optimizer_bytes


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
