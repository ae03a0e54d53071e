"""Cross-entropy: how surprised the model is by the token that came. Alone, and together with the layer before it."""
import numpy as np

from . import memory
from .memory import add_into, row_chunks, rows


def cross_entropy_forward(logits, targets, *, ignore_index=-100, label_smoothing=0.0, reduction="mean"):
    """loss_n = -log softmax(logits_n)[target_n], averaged, summed or as it is.

    logits (..., V), targets (...) integers in [0, V), or ignore_index where there is nothing to predict.
    label_smoothing e: the target distribution is (1 - e) one-hot + e / V uniform (Szegedy et al. 2015, section 7).
    reduction: "mean" over the targets that count, "sum" -> scalar; "none" -> (...), 0 where ignored.
    """
    dlogits = memory.empty(logits.shape, logits.dtype)
    dlogits[...] = logits
    losses, count = _losses(rows(dlogits), targets.reshape(-1), ignore_index, label_smoothing)
    return _reduce(losses.reshape(targets.shape), count, reduction), (dlogits, count, reduction)


def cross_entropy_backward(dout, saved):
    """dlogits = dout * (softmax(logits) - target distribution)   [/ count, for the mean].

    The log-sum-exp has the softmax as its gradient; the target's own logit is subtracted, and contributes -1.
    """
    dlogits, count, reduction = saved
    return dlogits * _upstream(dout, count, reduction)[..., None], None


def linear_cross_entropy_forward(x, weight, targets, *, ignore_index=-100, label_smoothing=0.0, reduction="mean",
                                 needs=(True, True, False)):
    """cross_entropy(x W^T, targets): the language model's head, whose logits are a workspace and never leave.

    x (N, C), weight (V, C), targets (N,) -> scalar, or (N,) with reduction="none". The logits (N, V) are the largest
    array of the whole step; they are overwritten by their own gradient, so there is one of them instead of three.
    """
    logits = memory.empty((x.shape[0], weight.shape[0]), x.dtype)
    np.matmul(x, weight.T, out=logits)
    losses, count = _losses(logits, targets, ignore_index, label_smoothing)
    return _reduce(losses, count, reduction), (x, weight, logits, count, reduction, needs)


def linear_cross_entropy_backward(dout, saved, into=(None, None, None)):
    """dx = dlogits W, dW = dlogits^T x; the loss's own gradient scales the small factors, not the (N, V) one.

    into[1]: an array to which dW is added, IN PLACE, or None.
    """
    x, weight, dlogits, count, reduction, needs = saved
    scale = np.broadcast_to(_upstream(dout, count, reduction), (len(x),))[:, None]
    dx = (dlogits @ weight) * scale if needs[0] else None
    dweight = add_into(into[1], dlogits.T @ (x * scale)) if needs[1] else None
    return dx, dweight, None


def _losses(logits, targets, ignore_index, label_smoothing):
    """Turn logits (N, V), in place, into d(sum of losses)/dlogits; return the losses (N,) and how many count."""
    N, V = logits.shape
    losses = memory.empty((N,), logits.dtype)
    counts = targets != ignore_index
    safe = np.where(counts, targets, 0)
    for r in row_chunks(logits):
        z, target, index = logits[r], safe[r], np.arange(len(safe[r]))
        z -= z.max(axis=-1, keepdims=True)
        loss = -(1 - label_smoothing) * z[index, target]
        if label_smoothing:
            loss -= label_smoothing * z.mean(axis=-1)
        np.exp(z, out=z)
        total = z.sum(axis=-1)
        losses[r] = np.where(counts[r], np.log(total) + loss, 0)
        z *= (counts[r] / total).astype(z.dtype)[:, None]                   # softmax, 0 in the rows that don't count
        if label_smoothing:
            z -= (label_smoothing / V * counts[r]).astype(z.dtype)[:, None]
        z[index, target] -= (1 - label_smoothing) * counts[r]
    return losses, int(counts.sum())


def _reduce(losses, count, reduction):
    if reduction == "none":
        return losses
    total = losses.sum(dtype=np.float64).astype(losses.dtype)
    return np.asarray(total if reduction == "sum" else total / losses.dtype.type(max(1, count)))


def _upstream(dout, count, reduction):
    """The gradient of each single loss, given the reduced one's."""
    return dout * dout.dtype.type(1 / max(1, count)) if reduction == "mean" else dout
