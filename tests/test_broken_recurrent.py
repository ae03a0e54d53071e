"""Broken recurrent layers: one line changed, as a slip would change it. Each must turn a check red (see broken.py)."""

import importlib
import inspect
import textwrap

import numpy as np
import pytest
import test_recurrent
import test_rnn
from broken import composed, each, slopes, witness

from tinyllm import LSTMLM, ops


def passes(test, *args):
    return each(test, [args])


GRU = passes(test_recurrent.test_layers_are_those_of_torch, "GRU", 2, 7, 3, False)
PIECES = passes(test_recurrent.test_a_sequence_in_pieces_is_the_whole, "LSTM", (3,))
MISTAKES = [    # what went wrong, file, function, old, new, the check that sees it
    ("no tanh", "ops.recurrent", "rnn_forward", "np.tanh(a, out=a)", "pass", composed("rnn")),
    ("no slope", "ops.recurrent", "rnn_backward", "np.subtract(1, da[t], out=da[t])", "pass", slopes("rnn")),
    ("no way back into the state before", "ops.recurrent", "rnn_backward", "np.matmul(da[t], weight_hh, out=dh)",
     "dh[...] = 0", slopes("rnn")),
    ("only the way through the next step", "ops.recurrent", "rnn_backward", "dh += dout[:, t]", "pass", witness("rnn")),
    ("another order of the gates", "ops.recurrent", "lstm_forward", "i, f, g, o = ", "i, f, o, g = ", witness("lstm")),
    ("a gate that is not squashed", "ops.recurrent", "lstm_forward", "_sigmoid_in_place(a)", "pass", composed("lstm")),
    ("no way back into the state before", "ops.recurrent", "lstm_backward", "np.matmul(da[t], weight_hh, out=dh)",
     "dh[...] = 0", slopes("lstm")),
    ("a forget gate that is forgotten", "ops.recurrent", "lstm_backward", "dc *= f[t]", "pass", slopes("lstm")),
    ("a memory that nothing comes back through", "ops.recurrent", "lstm_backward", "dc += dh", "dc = dh",
     composed("lstm")),
    ("an output gate on the wrong path", "ops.recurrent", "lstm_backward", "da4[t, :, 3] *= dh", "da4[t, :, 3] *= dc",
     witness("lstm")),
    ("a memory one step late", "ops.recurrent", "_slopes", "rows(c[:-1])", "rows(c[1:])", slopes("lstm")),
    ("a state one step late", "ops.recurrent", "_gradients", "rows(h[:-1])", "rows(h[1:])", slopes("rnn")),
    ("a sequence that starts from zeros", "ops.recurrent", "_states", "0 if first is None else first", "0", PIECES),
    ("no gradient from behind the sequence", "ops.recurrent", "_or_zeros", "if gradient is None", "if True", PIECES),
    ("only one of the biases", "ops.recurrent", "_bias", "if b is not None", "if b is not None and b is biases[0]",
     composed("lstm")),
    ("a gate that works the other way", "composed", "gru", "n + z * (h - n)", "h + z * (n - h)", GRU),
    ("a bias that nobody adds", "composed", "gru", "F.linear(h, weight_hh, bias_hh)", "F.linear(h, weight_hh)", GRU),
    ("dropout before the first layer", "nn", "Recurrent.forward", "if layer else x", "", passes(
        test_recurrent.test_dropout_lies_between_layers)),
    ("every layer with the state of the first", "nn", "Recurrent.forward", "s[layer]", "s[0]", PIECES),
    ("a state that is still on the tape", "models.rnn", "RecurrentLM.hidden", "tuple(s.detach() for s in state)",
     "state", passes(test_rnn.test_gradients_end_where_the_state_came_from)),
    ("a cache that stays empty", "models.rnn", "StateCache.keep", "ours[:] = new", "pass",
     passes(test_rnn.test_generation_with_its_cache_is_the_one_without, LSTMLM)),
    ("a loss that ignores the state", "models.rnn", "RecurrentLM.loss", "self.hidden(ids, state)", "self.hidden(ids)",
     passes(test_rnn.test_a_state_continues_the_text, LSTMLM)),
]


def patched(monkeypatch, module, name, old, new):
    """Replace a function, or a method, by its source with one change."""
    owner = module = importlib.import_module("tinyllm." + module)
    *classes, name = name.split(".")
    for part in classes:
        owner = getattr(owner, part)
    real = getattr(owner, name)
    source = textwrap.dedent(inspect.getsource(real))
    assert source.count(old) == 1, f"{name} contains {old!r} {source.count(old)} times"
    namespace = dict(vars(module))
    exec(compile(source.replace(old, new), f"<broken {name}>", "exec"), namespace)
    monkeypatch.setattr(owner, name, namespace[name])
    if getattr(ops, name, None) is real:
        monkeypatch.setattr(ops, name, namespace[name])


@pytest.mark.parametrize("what, module, name, old, new, check", MISTAKES, ids=[f"{m[0]}: {m[2]}" for m in MISTAKES])
def test_a_mistake_turns_the_check_red(what, module, name, old, new, check, monkeypatch):
    check()
    patched(monkeypatch, module, name, old, new)
    with pytest.raises((AssertionError, pytest.fail.Exception)), np.errstate(all="ignore"):
        check()
