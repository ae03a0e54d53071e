"""Optimizer steps over one flat buffer, in place, and the norm of all gradients.

The numbers that change from step to step come in an array, hyper = [learning rate, step number], and the gradient norm
in another: a step recorded once on a GPU can then be replayed with new values. All of a model's parameters lie in one
flat buffer (tinyllm/optim.py), so a step is one loop over chunks, whatever the number of tensors.
"""
import numpy as np

from .memory import row_chunks
from .threads import in_parallel


def grad_norm(grad):
    """The Euclidean norm of a flat gradient (P,), as a 0-d float32 array; summed in float64 chunk by chunk."""
    total = sum(float(np.dot(grad[r], grad[r])) for r in row_chunks(grad[:, None]))
    return np.array(np.sqrt(total), np.float32)


def adamw_step(param, grad, exp_avg, exp_avg_sq, hyper, norm=None, working=None, *,
               beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, decoupled=True, max_norm=0.0):
    """One AdamW step on flat buffers (P,); param, exp_avg (m), exp_avg_sq (v) and working are updated IN PLACE.

        g = grad * min(1, max_norm / norm)              clipping, if max_norm > 0
        m = beta1 m + (1 - beta1) g                     a running mean of the gradient ...
        v = beta2 v + (1 - beta2) g^2                   ... and of its square
        param -= lr * weight_decay * param              decoupled: this is the W of AdamW
        param -= lr * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)

    Dividing by 1 - beta^t undoes the bias of starting m and v at zero. decoupled=False is Adam with L2 regularisation:
    g += weight_decay * param instead. If the norm is not finite, nothing is written. working: another buffer (P,),
    which gets the new parameters rounded to its dtype: a model that computes in 16 bits learns in 32.
    Sources: Kingma & Ba 2014, algorithm 1; Loshchilov & Hutter 2017, algorithm 2.
    """
    scale = _clip(norm, max_norm)
    if scale is None:
        return
    lr, t = float(hyper[0]), float(hyper[1])
    # m / (sqrt(v) c + eps) = (m / c) / (sqrt(v) + eps / c): the bias corrections become two numbers, not two passes
    c = (1 - beta2 ** t) ** -0.5
    step_size, small = lr / (1 - beta1 ** t) / c, eps / c

    def update(part):
        for r in row_chunks(param[:, None], part):
            p, g, m, v = param[r], grad[r] * scale, exp_avg[r], exp_avg_sq[r]
            if weight_decay and not decoupled:
                g += weight_decay * p
            if weight_decay and decoupled:
                p *= 1 - lr * weight_decay
            m *= beta1
            m += (1 - beta1) * g
            v *= beta2
            g *= g
            g *= 1 - beta2
            v += g
            change = np.sqrt(v, out=g)
            change += small
            np.divide(m, change, out=change)
            change *= step_size
            p -= change
            if working is not None:
                working[r] = p

    in_parallel(update, len(param), 13 * len(param))


def sgd_step(param, grad, velocity, hyper, norm=None, working=None, *, momentum=0.0, nesterov=False, weight_decay=0.0,
             max_norm=0.0):
    """One step of stochastic gradient descent on flat buffers (P,); param, velocity and working are updated IN PLACE.

        g = grad * min(1, max_norm / norm) + weight_decay * param
        velocity = momentum * velocity + g              a heavy ball that keeps rolling (Polyak 1964)
        param -= lr * velocity                          nesterov: lr * (g + momentum * velocity) (Sutskever et al. 2013)

    velocity is None without momentum; working: see adamw_step. If the norm is not finite, nothing is written.
    """
    scale = _clip(norm, max_norm)
    if scale is None:
        return
    lr = float(hyper[0])
    for r in row_chunks(param[:, None]):
        g = grad[r] * scale + weight_decay * param[r]
        if momentum:
            u = velocity[r]
            u *= momentum
            u += g
            g = g + momentum * u if nesterov else u
        param[r] -= lr * g
        if working is not None:
            working[r] = param[r]


def _clip(norm, max_norm):
    """What to multiply the gradient with; None if the gradient is not finite. torch adds the same 1e-6."""
    if norm is None:
        return 1.0
    if not np.isfinite(norm):
        return None
    return min(1.0, max_norm / (float(norm) + 1e-6)) if max_norm else 1.0
