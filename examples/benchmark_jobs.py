"""What `python examples/benchmark.py gpu` measures: every kernel at the sizes of GPT-2 124M, 32 texts of 1024 tokens.

A job is a function of the sizes that yields rows (benchmark_rows.py). In each stands what the call cannot do without,

    bytes           each input read once and each result written once; s.e is the size of a number of the model. What a
                    forward pass must leave for its backward pass counts as a result, and there as an input
    operations      additions and multiplications; a product of matrices (M, K) and (K, N) has 2 M N K

and what a torch user would write instead:

    eager           torch's own operation, or the formula in torch operations; ours must agree with it
    compiled        torch.compile of that
    flash, cudnn    F.scaled_dot_product_attention, held to one of its kernels (eager takes the one that it prefers)

Gradients of weights are float32 in tinyllm, and of the weights' own type in torch. The optimizer's jobs are in
benchmark_optimizer.py; whole models in benchmark_step.py, benchmark_models.py and benchmark_decode.py.
"""
import contextlib
import functools
import math

import torch
import torch.nn.functional as F
from benchmark_rows import both_ways, job, kernels, plain
from torch.nn.attention import SDPBackend, sdpa_kernel

# ------------------------------------------------------------------ matrix products

@job
def linear(s):
    """The four layers of a block: three products each, of which the weight gradient's has the longest sums."""
    for name, I, O in (("c_attn", s.C, 3 * s.C), ("c_proj", s.C, s.C), ("c_fc", s.C, 4 * s.C),
                       ("mlp c_proj", 4 * s.C, s.C)):
        x, weight, out, work = s.n * I, O * I, s.n * O, 2 * s.n * O * I

        def layer(I=I, O=O):
            return s.new(s.n, I), s.new(O, I, scale=I**-0.5), s.new(O)

        def backward(*needs):       # a set for the backward pass: dout, what forward saved, and x and w for torch
            x, w, b = layer()
            out, saved = kernels.linear_forward(x, w, b, needs=needs)
            return torch.randn_like(out), saved, x, w

        yield plain(s, f"linear {name} forward", layer, lambda x, w, b: kernels.linear_forward(x, w, b)[0], F.linear,
                    s.e * (x + weight + O + out), work, terms=I)
        yield plain(s, f"linear {name} input gradient", functools.partial(backward, True, False, False),
                    lambda dout, saved, x, w: kernels.linear_backward(dout, saved)[0],
                    lambda dout, saved, x, w: dout @ w, s.e * (out + weight + x), work, terms=O)
        yield plain(s, f"linear {name} weight gradient", functools.partial(backward, False, True, False),
                    lambda dout, saved, x, w: kernels.linear_backward(dout, saved)[1],
                    lambda dout, saved, x, w: dout.T @ x, s.e * (out + x) + 4 * weight, work, terms=s.n)


@job
def linear_gelu(s):
    """c_fc with its GELU; x W^T + b is left for the backward pass."""
    I, O = s.C, 4 * s.C
    x, weight, out, work = s.n * I, O * I + O, s.n * O, 2 * s.n * O * I
    return both_ways(
        s, "linear_gelu", lambda: (s.new(s.n, I), s.new(O, I, scale=I**-0.5), s.new(O)),
        lambda x, w, b: F.gelu(F.linear(x, w, b), approximate="tanh"), terms=(I, s.n),
        forward=(s.e * (x + weight + 2 * out), work),
        backward=(s.e * (2 * out + weight + 2 * x) + 4 * weight, 2 * work))


@job
def mlp(s):
    """Both layers of a block's second half; x W1^T + b1 is left for the backward pass."""
    C, wide = s.C, 4 * s.C
    x, weights, hidden, work = s.n * C, 2 * wide * C + wide + C, s.n * wide, 4 * s.n * C * wide
    return both_ways(
        s, "mlp", lambda: (s.new(s.n, C), s.new(wide, C, scale=C**-0.5), s.new(wide), s.new(C, wide, scale=wide**-0.5),
                           s.new(C)),
        lambda x, w1, b1, w2, b2: F.linear(F.gelu(F.linear(x, w1, b1), approximate="tanh"), w2, b2), terms=(wide, s.n),
        forward=(s.e * (2 * x + weights + hidden), work),
        backward=(s.e * (3 * x + weights + hidden) + 4 * weights, 2 * work))


# ------------------------------------------------------------------ attention

def scaled_dot_product(H, only=None):
    """torch's attention on packed queries, keys and values; only: the one kernel that it may use."""
    def attend(qkv):                                                                # (B, T, 3 C)
        q, k, v = qkv.unflatten(2, (3, H, -1)).permute(2, 0, 3, 1, 4).unbind(0)     # (B, H, T, D) each
        with contextlib.nullcontext() if only is None else sdpa_kernel(only):
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return out.transpose(1, 2).flatten(2)                                       # (B, T, C)
    return attend


@job
def attention(s):
    """Causal: half of the T^2 scores, each one product of D terms before the softmax and one behind it.

    Backward there are four such products, and the scores once more.
    """
    for T in (s.T, s.long):
        array, lse, work = s.e * s.n * s.C, 4 * s.n * s.H, 2 * s.n * T * s.C
        others = {"flash": scaled_dot_product(s.H, SDPBackend.FLASH_ATTENTION),
                  "cudnn": scaled_dot_product(s.H, SDPBackend.CUDNN_ATTENTION)}
        yield from both_ways(
            s, f"attention T={T}", lambda T=T: (s.new(s.n // T, T, 3 * s.C),), scaled_dot_product(s.H),
            op="self_attention", n_head=s.H, others=others, terms=(T, T),
            forward=((3 + 1) * array + lse, work),                          # qkv, out
            backward=((3 + 1 + 1 + 3) * array + lse, work * 5 // 2))        # qkv, out, dout, dqkv


@job
def decode(s):
    """One new token against the keys and values of a text."""
    for B in (1, s.B):
        cached = B * s.keys * s.C

        def new(B=B):
            return s.new(B, 1, s.H, s.C // s.H), *(s.new(B, s.keys, s.H, s.C // s.H) for _ in "kv")

        def function(*qkv):
            return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in qkv)).transpose(1, 2)

        yield plain(s, f"attention, one token, B={B}", new,
                    lambda q, k, v: kernels.attention_forward(q, k, v, causal=True)[0], function,
                    s.e * (2 * cached + 2 * B * s.C), 4 * cached, terms=s.keys)


# ------------------------------------------------------------------ the loss

@job
def linear_cross_entropy(s):
    """The head and the loss. The forward pass leaves the gradient of the logits."""
    rows = min(s.rows, s.n)
    x, weight, logits, work = rows * s.C, s.V * s.C, rows * s.V, 2 * rows * s.V * s.C
    return both_ways(
        s, "linear_cross_entropy", lambda: (s.new(rows, s.C), s.new(s.V, s.C, scale=s.C**-0.5), s.ids(rows)),
        lambda x, w, targets: F.cross_entropy(F.linear(x, w).float(), targets), terms=(rows, rows),     # as autocast
        forward=(s.e * (x + weight + logits) + 8 * rows, work),
        backward=(s.e * (logits + 2 * x + weight) + 4 * weight, 2 * work))


@job
def cross_entropy(s):
    """The loss alone. The forward pass leaves the gradient of the logits."""
    rows = min(s.rows, s.n)
    logits = rows * s.V
    return both_ways(
        s, "cross_entropy", lambda: (s.new(rows, s.V), s.ids(rows)),
        lambda z, targets: F.cross_entropy(z.float(), targets), terms=(rows, rows),
        forward=(s.e * 2 * logits + 8 * rows, 5 * logits), backward=(s.e * 2 * logits, logits))


# ------------------------------------------------------------------ bound by memory

@job
def embedding(s):
    """A row of the table for each token; backward a table of gradients, half of it zeros."""
    return both_ways(
        s, "embedding", lambda: (s.ids(s.n), s.new(s.V, s.C)), F.embedding, terms=(1, 16),
        forward=(s.e * 2 * s.n * s.C + 8 * s.n, 0), backward=(s.e * s.n * s.C + 4 * s.V * s.C + 8 * s.n, s.n * s.C))


@job
def layer_norm(s):
    """A mean and a 1 / standard deviation a row are left for the backward pass."""
    m, statistics = s.n * s.C, 4 * 2 * s.n
    return both_ways(
        s, "layer_norm", lambda: (s.new(s.n, s.C), s.new(s.C), s.new(s.C)),
        lambda x, w, b: F.layer_norm(x, (s.C,), w, b), terms=(s.C, s.n),
        forward=(s.e * (2 * m + 2 * s.C) + statistics, 8 * m),
        backward=(s.e * (3 * m + s.C) + statistics + 4 * 2 * s.C, 14 * m))


@job
def add_layer_norm(s):
    """The residual addition and the norm behind it: two arrays in, two out, and the same backward."""
    m, statistics = s.n * s.C, 4 * 2 * s.n

    def function(x, branch, w, b):
        total = x + branch
        return total, F.layer_norm(total, (s.C,), w, b)

    return both_ways(
        s, "add_layer_norm", lambda: (s.new(s.n, s.C), s.new(s.n, s.C), s.new(s.C), s.new(s.C)), function,
        terms=(s.C, s.n),
        forward=(s.e * (4 * m + 2 * s.C) + statistics, 9 * m),
        backward=(s.e * (4 * m + s.C) + statistics + 4 * 2 * s.C, 15 * m))


@job
def rms_norm(s):
    """As layer_norm, without a mean and a bias."""
    m, statistics = s.n * s.C, 4 * s.n
    return both_ways(
        s, "rms_norm", lambda: (s.new(s.n, s.C), s.new(s.C)), lambda x, w: F.rms_norm(x, (s.C,), w, 1e-6),
        terms=(s.C, s.n),
        forward=(s.e * (2 * m + s.C) + statistics, 4 * m),
        backward=(s.e * (3 * m + s.C) + statistics + 4 * s.C, 10 * m))


@job
def softmax(s):
    """Of rows as long as a text, as many as all heads have."""
    m = s.n * s.H * s.T
    return both_ways(s, "softmax", lambda: (s.new(s.n * s.H, s.T),), lambda x: F.softmax(x, -1), terms=(s.T, s.T),
                     forward=(s.e * 2 * m, 5 * m), backward=(s.e * 3 * m, 4 * m))


@job
def gelu(s):
    """The tanh form, on the wide side of the MLP."""
    m = s.n * 4 * s.C
    return both_ways(s, "gelu", lambda: (s.new(s.n, 4 * s.C),), lambda x: F.gelu(x, approximate="tanh"),
                     approximate="tanh", terms=(10, 20), forward=(s.e * 2 * m, 10 * m), backward=(s.e * 3 * m, 20 * m))


@job
def dropout(s):
    """Ours and torch's draw other masks: what is kept must be x / (1 - p), and a share of 1 - p must be kept.

    The mask is seen in what the forward pass made of x, except where x happens to be 0.
    """
    m, p = s.n * s.C, 0.1

    def pairs(way, arrays, forward, douts):
        (out, saved), seen = forward, arrays[0] != 0
        found, x = (out, arrays[0]) if way == "forward" else (kernels.dropout_backward(*douts, saved=saved)[0], *douts)
        share = (out[seen] != 0).double().mean()
        return [(found[seen], torch.where(out != 0, x / (1 - p), 0)[seen], None),
                (share, torch.full_like(share, 1 - p), 5 * math.sqrt(p * (1 - p) / m))]         # five sigma

    return both_ways(s, "dropout", lambda: (s.new(s.n, s.C), s.ids(2)), lambda x, rng: F.dropout(x, p), p=p,
                     pairs=pairs, forward=(s.e * 2 * m, 10 * m), backward=(s.e * 2 * m, 10 * m))


@job
def rope(s):
    """All heads; the tables of cosines and sines get no gradients."""
    D, m = s.C // s.H, s.n * s.C

    def new():
        angles = torch.rand(s.T, D // 2, device=s.device) * 6
        return s.new(s.B, s.T, s.H, D), angles.cos(), angles.sin()

    def function(x, cos, sin):
        (a, b), cos, sin = x.chunk(2, -1), cos[:, None], sin[:, None]
        return torch.cat((a * cos - b * sin, a * sin + b * cos), -1).to(x.dtype)

    return both_ways(s, "rope", new, function, learned=1, terms=(2, 2), forward=(s.e * 2 * m + 4 * s.T * D, 3 * m),
                     backward=(s.e * 2 * m + 4 * s.T * D, 3 * m))


@job
def fused_linear(s):
    """The layers of a block when each text gets one more token, with the norm before them and the sum after them."""
    C, norm, gelu = s.C, dict(norm="layer_norm"), dict(norm="layer_norm", activation="gelu")
    for B in s.writing[2]:
        for name, I, O, options in (("c_attn", C, 3 * C, norm), ("c_proj", C, C, {}), ("c_fc", C, 4 * C, gelu),
                                    ("mlp c_proj", 4 * C, C, {})):
            def new(B=B, I=I, O=O, options=options):
                around = (1 + s.new(I, scale=0.1), s.new(I), None) if options else (None, None, s.new(B, O))
                return s.new(B, I), s.new(O, I, scale=I**-0.5), None, s.new(O), *around

            def function(x, w, _, b, gain, shift, residual, options=options):
                if not options:
                    return residual + F.linear(x, w, b)
                out = F.linear(F.layer_norm(x, x.shape[-1:], gain, shift), w, b)
                return F.gelu(out, approximate="tanh") if "activation" in options else out

            yield plain(s, f"layer {name}, {B} text{'s' * (B > 1)}", new,
                        lambda *arrays, options=options: kernels.fused_linear(*arrays, **options), function,
                        s.e * (B * I + O * I + O + B * O + (2 * I if options else B * O)), 2 * B * O * I, terms=I)


@job
def sample(s):
    """The next token out of the 50 likeliest. torch's dice are others; ours must be one of the 50."""
    def ours(logits, rng):
        return kernels.sample(logits, rng, temperature=0.8, top_k=50)

    def function(logits, rng):
        z = logits.float() / 0.8
        z = z.masked_fill(z < torch.topk(z, 50).values[:, -1:], -math.inf)
        # argmax(p / exponential noise) draws from p, and does not stop to look at p as torch.multinomial does
        return (F.softmax(z, -1) / torch.empty_like(z).exponential_(1)).argmax(-1)

    def pairs():
        z, rng = s.new(s.B, s.V).float(), s.ids(2)
        behind = torch.topk(z, 50).values[:, -1] - z.gather(1, ours(z, rng)[:, None])[:, 0]
        return [(behind.clamp_min(0), torch.zeros_like(behind), 0.0)]

    yield plain(s, "sample", lambda: (s.new(s.B, s.V), s.ids(2)), ours, function, s.e * s.B * s.V, 2 * s.B * s.V,
                pairs=pairs)


@job
def add(s):
    """Two arrays into a third: nothing but memory."""
    m = s.n * s.C
    yield plain(s, "add", lambda: (s.new(s.n, s.C), s.new(s.n, s.C)), lambda a, b: kernels.add_forward(a, b)[0],
                torch.add, s.e * 3 * m, m)


@job
def column_sum(s):
    """As the gradient of a bias needs it."""
    m = s.n * s.C
    yield plain(s, "column_sum", lambda: (s.new(s.n, s.C),), lambda x: kernels.sum_forward(x, axis=0)[0],
                lambda x: x.sum(0), s.e * (m + s.C), m, terms=s.n)
