"""A model for writing, with its matrices in int8 (int8.py): a quarter of the bytes to read for each token.

    small = quantized(model)
    generate(small, ids, 100)           or, made anew each time, generate(model, ids, 100, quantize="int8")

The model itself is not touched; the copy shares with it all that stays in floating point. What rounding the weights
costs, in perplexity, is small and can be measured on any text: losses().
"""
import copy

from .int8 import Int8
from .modes import no_grad
from .nn import Linear, Module
from .tensor import Tensor


def quantized(model):
    """A copy of a model in which each matrix that multiplies activations is int8: those of all Linear layers and of
    the projections of attention, and the head, also where that is the table of embeddings. That table stays in floating
    point for looking up. So do norms, biases, and what is recurrent in an RNN.

    The copy can do what needs no gradient: logits, loss, generate(). Its parameters are not to be had, as it has only
    some of them: RuntimeError.
    """
    if not isinstance(model, Module):
        raise ValueError(f"quantized: {type(model).__name__} is no Module, so it has no matrices; take a model such as "
                         "GPT")
    if vars(model).get("named_parameters") is _no_parameters:       # it is such a copy already
        return model
    small = _copy(model, "")
    small.named_parameters = _no_parameters
    return small.eval()


def losses(model, *batch):
    """What model.loss(*batch) is with its own weights and with int8 ones: two numbers, in nats per token.

    metrics.perplexity() of both is what people report. For a text longer than the model's context, compare
    train.evaluate(model, data, batch_size) with train.evaluate(quantized(model), data, batch_size).
    """
    with no_grad(), model.evaluating():
        return model.loss(*batch).item(), quantized(model).loss(*batch).item()


def _copy(value, name):
    """A copy of a nest of modules, lists, tuples and dicts, in the attribute `name` of another."""
    if isinstance(value, Module):
        matrices = ("weight",) if isinstance(value, Linear) or name == "lm_head" else ("in_proj_weight",)
        twin = copy.copy(value)
        for key, part in vars(value).items():
            setattr(twin, key, Int8.of(part) if key in matrices else _copy(part, key))
        return twin
    if isinstance(value, Tensor):
        return value.detach()               # the same array, without a gradient
    if isinstance(value, dict):
        return {key: _copy(part, name) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_copy(part, name) for part in value)
    return value


def _no_parameters(*args, **kwargs):
    raise RuntimeError("quantized: this copy of a model has int8 in the place of its matrices; it can write, but not "
                       "be trained, saved or moved; do that with the model that it was made from")
