"""The GPU benchmark's first job, a whole training step of a GPT; and how every model's step is measured.

Ours is train.training_step, as train.train calls it: a batch arrives as NumPy arrays, then forward and backward pass,
clipping, AdamW. torch gets what nanoGPT does to be fast: torch.compile, F.scaled_dot_product_attention, autocast to
bfloat16, fused AdamW, pinned memory, an even vocabulary (benchmark_twins.py). GPT-2 runs twice, once with each of
torch's fast kernels for attention, "flash" and "cudnn"; the better one counts.

All start from the same weights and see the same batches; the first losses must be alike. A side is built when it is
first called, so that its memory is its own.
"""
import functools
import gc

import tinyllm     # before NumPy: it tells NumPy's BLAS how to wait (ops/threads.py)
import numpy as np
import torch
from benchmark_rows import Row, job
from benchmark_twins import GPT, load
from tinyllm import optim, train
from torch.nn.attention import SDPBackend
from torch_twin import adamw as groups_of

LR, BETAS, DECAY, CLIP = 1e-3, (0.9, 0.99), 0.1, 1.0
NO_DROPOUT = dict(embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)


def train_ours(s, model, capture=True):
    """The function (*batch) -> loss that trains a copy of the model by one step; capture: as one CUDA graph."""
    ours = type(model)(model.config)
    ours.load_state_dict(model.state_dict())
    ours.to("triton", str(s.dtype)[6:])
    optimizer = optim.AdamW(ours.parameters(), LR, BETAS, weight_decay=DECAY)
    settings = {} if capture else {"capture": False}
    step = train.training_step(ours, optimizer, train.TrainConfig(clip=CLIP, **settings))
    return lambda *batch: step([batch], LR)[0][0]


def train_torch(s, model, twin, arrays):
    """The same for the twin in torch, with float32 weights, and bfloat16 where autocast finds it safe.

    twin: a function config -> nn.Module with a loss(); arrays: *batch -> what that loss takes.
    """
    half = s.dtype == torch.bfloat16
    if half:                                                    # for what autocast leaves in float32
        torch.set_float32_matmul_precision("high")
    theirs = load(twin(model.config), model.state_dict()).to(s.device)
    groups = [{key: group[key] for key in ("params", "weight_decay")}
              for group in groups_of(theirs, LR, BETAS, DECAY).param_groups]
    optimizer = torch.optim.AdamW(groups, LR, BETAS, fused=True)
    loss_of = torch.compile(theirs.loss, backend=s.compiler, dynamic=False) if s.compiler else theirs.loss

    def step(*batch):
        batch = [to_device(s, array) for array in arrays(*batch)]
        with torch.autocast(s.device.type, torch.bfloat16, enabled=half):
            loss = loss_of(*batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), CLIP)
        optimizer.step()
        return loss.detach()
    return step


def to_device(s, array):
    """A NumPy array on the device. From pinned memory it travels while Python goes on."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(s.device, non_blocking=True) if s.device.type == "cuda" else tensor


def rivals(s, twin, arrays=lambda *batch: batch, kernels=()):
    """{name: side} of torch's: one for each of the `kernels` for attention, {name: SDPBackend}, or one that chooses.

    Those kernels know 16-bit numbers only.
    """
    if kernels and s.compiler and s.dtype != torch.float32:
        return {name: functools.partial(train_torch, twin=functools.partial(twin, sdpa=sdpa), arrays=arrays)
                for name, sdpa in kernels.items()}
    return {"compiled" if s.compiler else "eager": functools.partial(train_torch, twin=twin, arrays=arrays)}


@job
def training_step(s):
    """GPT-2 124M, and the small GPT of the examples."""
    for preset, changes, size in s.models:
        tinyllm.manual_seed(1)
        config = tinyllm.GPTConfig.preset(preset, **changes, **NO_DROPOUT)
        model, T = tinyllm.GPT(config), config.n_positions
        text = np.random.default_rng(0).integers(0, config.vocab_size, (s.warm, size, T + 1))
        kernels = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
        large = preset == "gpt2"
        yield step_row(s, f"training step, {preset}, {size} x {T}", model,
                       [(ids[:, :-1].copy(), ids[:, 1:].copy()) for ids in text], size * T,
                       model.flops_per_token() * size * T, rivals(s, GPT, kernels=kernels if large else ()),
                       {} if large else {"ours, not captured": functools.partial(train_ours, capture=False)})


def step_row(s, name, model, batches, tokens, operations, theirs, also=()):
    """The row of one model.

    batches: s.warm of them, tuples of arrays, each of `tokens` tokens. theirs: {name: function (s, model) -> step};
    also: the same for other ways of ours.
    """
    make, steps, losses, peaks = {"ours": train_ours, **dict(also), **theirs}, {}, {}, {}

    def build(side):
        before = allocated(s, "memory_allocated", restart=True)
        step = make[side](s, model)
        losses[side] = [float(step(*batch)) for batch in batches]
        peaks[side] = allocated(s, "max_memory_allocated") - before
        steps[side] = step

    def call(side, i):
        if side not in steps:
            build(side)
        return steps[side](*batches[i])

    def pairs():
        failed = {side: error for side in make if (error := attempt(build, side)) is not None}
        if "ours" in failed or failed.keys() >= theirs.keys():
            raise next(iter(failed.values()))                   # that of another side is found when it is timed
        share = max(torch.finfo(s.dtype).eps / 2, 1e-5)         # of a loss, that rounding may change
        ours, torches = ([losses[side] for side in losses if (side in theirs) is torch_s] for torch_s in (False, True))
        return [(torch.tensor(a), torch.tensor(b), share * b)
                for one in ours for other in torches for a, b in zip(one, other)]

    def extra(times):
        return {"tokens_per_second": {side: tokens / us * 1e6 for side, us in times.items()},
                "peak_memory_bytes": {side: n for side, n in peaks.items() if n}}

    calls = {side: functools.partial(call, side) for side in make}
    return Row(name, calls["ours"], {side: calls[side] for side in theirs}, optimizer_bytes(s) * model.num_parameters(),
               operations, pairs=pairs, capture=False, extra=extra, also={side: calls[side] for side in dict(also)})


def attempt(function, *args):
    """The exception that a call ends in, or None."""
    try:
        function(*args)
    except Exception as error:
        return error


def allocated(s, what, restart=False):
    """Bytes that torch's allocator gives out (or did at most, since the restart); 0 without a GPU."""
    if s.device.type != "cuda":
        return 0
    if restart:
        gc.collect()                                            # what the row before has left must not count
        torch.cuda.reset_peak_memory_stats()
    return getattr(torch.cuda, what)()


def optimizer_bytes(s):
    """What a step cannot do without, a parameter: its gradient, float32 weight and two moments read, the latter three
    written, and a 16-bit copy.
    """
    return 4 * 4 + 3 * 4 + (2 if s.e == 2 else 0)
