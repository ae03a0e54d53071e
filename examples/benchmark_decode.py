"""The GPU benchmark's job for writing: the next token of GPT-2, when the text fills half of its context.

Ours looks at the last token and draws the next one from the 50 likeliest, with the recorded step that generate() uses.
torch does the same in the manner of gpt-fast (benchmark_twins.py): keys and values in buffers of a fixed size,
torch.compile with mode="reduce-overhead", which records CUDA graphs, weights of the same type. On both sides the token
stays on the device. generate() reads each one, since a text may be over; "ours, and read" does so, too.
"""
import functools
import sys

import tinyllm     # before NumPy: it tells NumPy's BLAS how to wait (ops/threads.py)
import numpy as np
import torch
from benchmark_rows import Row, job, kernels
from benchmark_step import NO_DROPOUT, to_device
from benchmark_twins import StaticGPT, load
from tinyllm import no_grad, quantized
from tinyllm.generate import Memory, drawing

TEMPERATURE, TOP_K = 0.8, 50


def decode_ours(s, model, texts):
    """Two functions without arguments: the logits (B, V) behind the texts (B, T), and the next tokens (B,)

    The cache holds all but the last token, and is set back to that before each call.
    """
    (B, T), last, model = texts.shape, texts[:, -1:].copy(), model.eval()
    memory = Memory(model, B, model.config.n_positions)
    with no_grad():
        memory.next_logits(texts[:, :-1], None)

    @no_grad()
    def logits():
        for layer in memory.cache:
            layer.used = T - 1
        return model and memory.next_logits(last, None).data    # the memory does not keep its model alive

    draw = drawing(kernels, TEMPERATURE, TOP_K, None, None)
    return logits, lambda: draw(logits(), np.array([1, T]))


def decode_torch(s, model, texts):
    """The same for the twin."""
    (B, T), config = texts.shape, model.config
    twin = load(StaticGPT(config, B, config.n_positions), model.state_dict()).to(s.device, s.dtype).eval()
    ids, position = to_device(s, texts), torch.arange(T, device=s.device)
    last, now = ids[:, -1:].clone(), position[-1:].clone()
    next_token = twin.next_token
    if s.compiler:
        how = {"mode": "reduce-overhead"} if s.compiler == "inductor" else {}
        next_token = torch.compile(next_token, backend=s.compiler, fullgraph=True, dynamic=False, **how)
    with torch.no_grad():
        twin.logits(ids[:, :-1], position[:-1])

    @torch.no_grad()
    def step():
        if s.compiler == "inductor":
            torch.compiler.cudagraph_mark_step_begin()
        return next_token(last, now, TEMPERATURE, TOP_K)

    return torch.no_grad()(lambda: twin.logits(last, now)), step


def skipped_graphs():
    """How often torch.compile was to record a CUDA graph and did not, so far."""
    dynamo = sys.modules.get("torch._dynamo")                   # imported by whoever compiles
    return dynamo.utils.counters["inductor"]["cudagraph_skips"] if dynamo else 0


@job
def next_token(s):
    """For one text and for many, with weights of the model's own type and, ours only, in int8."""
    preset, changes, batches, T = s.writing
    tinyllm.manual_seed(1)
    model = tinyllm.GPT(tinyllm.GPTConfig.preset(preset, **changes, **NO_DROPOUT))
    name = "compiled" if s.compiler else "eager"
    ours = tinyllm.GPT(model.config)
    ours.load_state_dict(model.state_dict())
    ours.to("triton", str(s.dtype)[6:])
    for B in batches:
        texts = np.random.default_rng(0).integers(0, model.config.vocab_size, (B, T + 1))
        torches = functools.cache(functools.partial(decode_torch, s, model, texts))         # made when first called
        for weights in (str(s.dtype)[6:], "int8"):
            make = functools.cache(lambda w=weights: decode_ours(s, quantized(ours) if w == "int8" else ours, texts))
            yield token_row(s, model, B, T, weights, make, {name: torches})


def token_row(s, model, B, T, weights, ours, theirs):
    """A row: `ours` and each of theirs make (logits, step)."""
    def pairs():            # the whole model rounds more often than one kernel; int8 rounds each weight once more
        found, expected = ours()[0](), next(iter(theirs.values()))()[0]()
        allowed = 16 * (torch.finfo(s.dtype).eps + torch.finfo(torch.float32).eps * model.config.n_embd**0.5)
        allowed = max(allowed, 0.1) if weights == "int8" else allowed
        return [(found, expected, allowed * expected.abs().max().item())]

    def extra(times):
        return {"batch": B, "weights": weights, "torch_skipped_graphs": skipped_graphs(),
                "tokens_per_second": {side: B / us * 1e6 for side, us in times.items()}}

    # Every weight is read once, and so are the keys and values; of the positions' vectors only one.
    matrices = model.num_parameters() - model.wpe.num_parameters()
    cached = 2 * B * (T + 1) * model.config.n_layer * model.config.n_embd
    n_bytes = (1 if weights == "int8" else s.e) * matrices + s.e * cached
    return Row(f"next token, batch {B}, {weights}", lambda i: ours()[1](),
               {side: lambda i, make=make: make()[1]() for side, make in theirs.items()}, n_bytes,
               2 * B * matrices + 2 * cached, pairs=pairs, capture=False, extra=extra,
               also={"ours, and read": lambda i: kernels.to_numpy(ours()[1]())})
