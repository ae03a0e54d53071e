"""The optimizers' kernels, over one flat buffer that holds every parameter of the model.

    norm = sqrt(sum of grad^2)                                          (twin: tinyllm/ops/optim.py)

    g = grad min(1, max_norm / (norm + 1e-6))                           clipping by the global norm
    m = beta1 m + (1 - beta1) g,   v = beta2 v + (1 - beta2) g^2
    param -= lr weight_decay param                                      (not decoupled: g += weight_decay param instead)
    param -= lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)   AdamW: Loshchilov & Hutter, arXiv:1711.05101

    velocity = momentum velocity + g,   param -= lr velocity            SGD; nesterov: lr (g + momentum velocity)

    grad_ptr, param_ptr, exp_avg_ptr (m), exp_avg_sq_ptr (v), velocity_ptr     (n,) float32
    working_ptr     (n,) or None: gets param rounded to its type. A model that computes in bfloat16 learns in float32:
                    steps are often too small for the 8 bits of a bfloat16's mantissa, and would be rounded away
    partial_ptr     (programs,)
    norm_ptr        0-d, or None: no clipping, no check
    hyper_ptr       (2,): learning rate, step number t counted from 1
    grids           (min(ceil(n / BLOCK), MAX_PROGRAMS),) and (1,) for the norm, (ceil(n / BLOCK),) for the steps

What changes from step to step is read from device memory, never from the host: a recorded step can be replayed.
"""

import math

import triton
import triton.language as tl

from . import configs, runtime

MAX_PROGRAMS = 1024


@triton.jit
def square_sum_kernel(grad_ptr, partial_ptr, n, BLOCK: tl.constexpr):
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    for _ in range(tl.program_id(0), tl.cdiv(n, BLOCK), tl.num_programs(0)):
        grad = tl.load(grad_ptr + offsets, mask=offsets < n, other=0.0)
        total += grad * grad
        offsets += tl.num_programs(0) * BLOCK
    tl.store(partial_ptr + tl.program_id(0), tl.sum(total))


@triton.jit
def root_of_sum_kernel(partial_ptr, norm_ptr, n, BLOCK: tl.constexpr):
    """A launch of its own, because no program may read what another program of the same launch writes."""
    offsets = tl.arange(0, BLOCK)
    tl.store(norm_ptr, tl.sqrt(tl.sum(tl.load(partial_ptr + offsets, mask=offsets < n, other=0.0))))


@triton.jit
def one_minus_exp(u):
    """1 - exp(u) for u <= 0. Near 0 the subtraction would cancel: beta2 = 0.999 leaves 1 - beta2^1 four digits.

    There the series -u (1 + u/2 (1 + u/3 (1 + ...))) takes its place.
    """
    near = tl.maximum(u, -0.5)
    series = 1.0
    for n in tl.static_range(9, 1, -1):
        series = 1.0 + near / n * series
    return tl.where(u < -0.5, 1.0 - tl.exp(u), -near * series)


@triton.jit
def clip(norm_ptr, max_norm):
    """(whether the gradient is finite, what to multiply it with)"""
    finite = True
    scale = 1.0
    if norm_ptr is not None:
        norm = tl.load(norm_ptr)
        finite = norm < float("inf")        # false for NaN too
        scale = tl.where(max_norm > 0.0, tl.minimum(1.0, max_norm / (norm + 1e-6)), 1.0)
    return finite, scale


@triton.jit
def adamw_kernel(param_ptr, grad_ptr, exp_avg_ptr, exp_avg_sq_ptr, hyper_ptr, norm_ptr, working_ptr, n,
                 beta1, one_minus_beta1, log_beta1, beta2, one_minus_beta2, log_beta2, eps, weight_decay, max_norm,
                 DECOUPLED: tl.constexpr, BLOCK: tl.constexpr):
    finite, scale = clip(norm_ptr, max_norm)
    learning_rate = tl.load(hyper_ptr).to(tl.float32)
    step = tl.load(hyper_ptr + 1).to(tl.float32)
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    written = (offsets < n) & finite
    g = tl.load(grad_ptr + offsets, mask=written, other=0.0) * scale
    m = tl.load(exp_avg_ptr + offsets, mask=written, other=0.0)
    v = tl.load(exp_avg_sq_ptr + offsets, mask=written, other=0.0)
    param = tl.load(param_ptr + offsets, mask=written, other=0.0)
    if not DECOUPLED:
        g += weight_decay * param
    m = beta1 * m + one_minus_beta1 * g
    v = beta2 * v + one_minus_beta2 * g * g
    m_hat = m / one_minus_exp(step * log_beta1)
    v_hat = v / one_minus_exp(step * log_beta2)
    if DECOUPLED:
        param -= learning_rate * weight_decay * param
    param -= learning_rate * m_hat / (tl.sqrt(v_hat) + eps)
    tl.store(exp_avg_ptr + offsets, m, mask=written)
    tl.store(exp_avg_sq_ptr + offsets, v, mask=written)
    tl.store(param_ptr + offsets, param, mask=written)
    if working_ptr is not None:
        tl.store(working_ptr + offsets, param, mask=written)


@triton.jit
def sgd_kernel(param_ptr, grad_ptr, velocity_ptr, hyper_ptr, norm_ptr, working_ptr, n, momentum, weight_decay,
               max_norm, NESTEROV: tl.constexpr, BLOCK: tl.constexpr):
    finite, scale = clip(norm_ptr, max_norm)
    learning_rate = tl.load(hyper_ptr).to(tl.float32)
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    written = (offsets < n) & finite
    param = tl.load(param_ptr + offsets, mask=written, other=0.0)
    g = tl.load(grad_ptr + offsets, mask=written, other=0.0) * scale + weight_decay * param
    change = g
    if velocity_ptr is not None:
        velocity = momentum * tl.load(velocity_ptr + offsets, mask=written, other=0.0) + g
        tl.store(velocity_ptr + offsets, velocity, mask=written)
        change = g + momentum * velocity if NESTEROV else velocity
    param -= learning_rate * change
    tl.store(param_ptr + offsets, param, mask=written)
    if working_ptr is not None:
        tl.store(working_ptr + offsets, param, mask=written)


def grad_norm(grad):
    """sqrt(sum of squares) of one flat buffer (n,) -> 0-d float32 array on the device. Added up in a fixed order."""
    grad, config = runtime.contiguous(grad), configs.lookup("optim", grad.dtype)
    n_programs = max(1, min(triton.cdiv(grad.numel(), config["BLOCK"]), MAX_PROGRAMS))
    partial = runtime.empty((n_programs,))
    norm = runtime.empty(())
    square_sum_kernel[(n_programs,)](grad, partial, grad.numel(), **config)
    root_of_sum_kernel[(1,)](partial, norm, n_programs, BLOCK=MAX_PROGRAMS)
    return norm


def adamw_step(param, grad, exp_avg, exp_avg_sq, hyper, norm=None, working=None, *,
               beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, decoupled=True, max_norm=0.0):
    """One AdamW step; param, exp_avg, exp_avg_sq and working, all (n,), are updated IN PLACE.

    hyper: (2,) on the device, [learning rate, step number counted from 1].
    norm: 0-d, from grad_norm; where it is not finite nothing is written. None: no clipping and no check.
    working: the parameters as the model computes with them, in 16 bits; None where it computes with param.
    max_norm: the longest gradient that is left as it is; 0: no clipping.
    decoupled: False is Adam with L2 regularisation (Kingma & Ba 2015, arXiv:1412.6980).

    Raises ValueError for a buffer with gaps, because a copy of it would be updated instead.
    """
    _refuse_gaps("adamw_step", param, exp_avg, exp_avg_sq, working)
    log_beta1, log_beta2 = (math.log(beta) if beta > 0 else -math.inf for beta in (beta1, beta2))
    config = configs.lookup("optim", param.dtype)
    adamw_kernel[(triton.cdiv(param.numel(), config["BLOCK"]),)](
        param, runtime.contiguous(grad), exp_avg, exp_avg_sq, hyper, norm, working, param.numel(),
        float(beta1), 1.0 - beta1, log_beta1, float(beta2), 1.0 - beta2, log_beta2, float(eps), float(weight_decay),
        float(max_norm), DECOUPLED=decoupled, **config)


def sgd_step(param, grad, velocity, hyper, norm=None, working=None, *, momentum=0.0, nesterov=False, weight_decay=0.0,
             max_norm=0.0):
    """One step of stochastic gradient descent; param, velocity and working, all (n,), are updated IN PLACE.

    velocity is None without momentum; the other arguments are those of adamw_step.
    """
    _refuse_gaps("sgd_step", param, velocity, working)
    config = configs.lookup("optim", param.dtype)
    sgd_kernel[(triton.cdiv(param.numel(), config["BLOCK"]),)](
        param, runtime.contiguous(grad), velocity if momentum else None, hyper, norm, working, param.numel(),
        float(momentum), float(weight_decay), float(max_norm), NESTEROV=nesterov, **config)


def _refuse_gaps(name, *buffers):
    if not all(buffer is None or buffer.is_contiguous() for buffer in buffers):
        raise ValueError(f"{name} writes in place, so its buffers must be contiguous: pass the flat buffers, not "
                         "strided views")
