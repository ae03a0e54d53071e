"""What a user reads when something is wrong: wrong arguments, and the first NaN."""

import numpy as np
import pytest

from tinyllm import Tensor, detect_anomaly
from tinyllm import functional as F


def ones(*shape, dtype=np.float32):
    return Tensor(np.ones(shape, dtype))


q = ones(2, 3, 4, 5)
WRONG = [
    (lambda: ones(2, 3) + ones(2, 4), r"add: .*axis -1 .*\(2, 3\).*\(2, 4\).*equal or 1"),
    (lambda: ones(4, 3) * ones(2, 3), r"mul: .*axis -2"),
    (lambda: F.where(np.ones((2, 3), bool), ones(3), ones(2)), r"where: .*condition \(2, 3\), a \(3,\), b \(2,\)"),
    (lambda: ones(2, 3) @ ones(4, 3), r"matmul: .*\(3\).*\(4\).*did you mean b.transpose\(-1, -2\)"),
    (lambda: ones(2, 3) @ ones(4, 5), r"matmul: .*check which axis"),
    (lambda: ones(2, 1, 3) @ ones(3, 3, 1), r"matmul: the batch axes"),
    (lambda: ones() @ ones(2), "matmul: a number.*use *"),
    (lambda: F.linear(ones(2, 3), ones(3, 4)), r"linear: .*x \(2, 3\), weight \(3, 4\).*needs \.T"),
    (lambda: F.linear_gelu(ones(2, 3), ones(4, 3), ones(3)), r"linear_gelu: bias must have shape \(4,\)"),
    (lambda: F.embedding(np.ones(2), ones(3, 4)), "embedding: ids must be integers, not float64.*astype"),
    (lambda: F.embedding(np.ones(2, int), ones(3)), r"embedding: weight must be a matrix of .* \(weight \(3,\)\)"),
    (lambda: F.embedding([0], ones(3, 2, dtype=int)), r"embedding: weight must be a matrix of floating.* not int64"),
    (lambda: F.layer_norm(ones(2, 3), ones(2)), r"layer_norm: weight must match .*x \(2, 3\), weight \(2,\)"),
    (lambda: F.rms_norm(ones(2, 3), ones(2)), r"rms_norm: weight must match .*x \(2, 3\), weight \(2,\)"),
    (lambda: F.add_layer_norm(ones(2, 3), ones(3), ones(3)), r"add_layer_norm: both .*\(2, 3\).*\(3,\).*not broadcast"),
    (lambda: F.swiglu(ones(2, 3), ones(3)), r"swiglu: both arguments must have one shape \(a \(2, 3\), b \(3,\)\)"),
    (lambda: F.attention(ones(2, 3, 4), q, q), r"attention: q must be \(B, T, H, D\).*q \(2, 3, 4\)"),
    (lambda: F.attention(q, ones(2, 3, 4, 6), ones(2, 3, 4, 6)), "attention: q, k and v must agree in .*head size"),
    (lambda: F.attention(q, q[:, :, :3], q[:, :, :3]), r"attention: the heads of q \(axis 2\) must be a multiple"),
    (lambda: F.attention(q, q, q, ones(2, 3, 3)), r"attention: bias must be \(2, 4, 3, 3\).*bias \(2, 3, 3\)"),
    (lambda: F.attention(q, q, q, key_start=np.zeros(3, int)), r"attention: key_start must be \(2,\)"),
    (lambda: F.attention(q, q, q, key_end=np.zeros(2)), "attention: key_end must be integers"),
    (lambda: F.attention(q, q, q, dropout=1.0), r"attention: the dropout probability must be in \[0, 1\)"),
    (lambda: F.self_attention(ones(2, 3, 12), n_head=3), r"self_attention: .*n_head=3 \(qkv \(2, 3, 12\)\)"),
    (lambda: F.rope(q[..., :4], np.ones((3, 2)), np.ones((3, 2))), "rope: mixes float32 and float64"),
    (lambda: F.rope(q, *F.rope_tables(range(3), 4)), r"rope: x must be \(B, T, H, D\) with D even"),
    (lambda: F.dropout(ones(2), 1.0), r"dropout: .*got p=1.0"),
    (lambda: F.cross_entropy(ones(2, 3), [0, 1, 2]), r"cross_entropy: .*one target per row.*\(2, 3\).*\(3,\)"),
    (lambda: F.cross_entropy(ones(1, 3), [0.5]), "cross_entropy: targets must be integers"),
    (lambda: F.cross_entropy(ones(1, 3), [0], reduction="max"), "cross_entropy: reduction must be .*'max'"),
    (lambda: F.cross_entropy(ones(1, 3), [0], label_smoothing=2), "cross_entropy: label_smoothing must be between"),
    (lambda: F.linear_cross_entropy(ones(2, 3), ones(5, 3), [0]), r"linear_cross_entropy: .*one target per row"),
    (lambda: F.linear_cross_entropy(ones(2, 3), ones(3, 5), [0, 0]), r"linear_cross_entropy: .*weight \(3, 5\)"),
    (lambda: ones(2, 3).sum(axis=2), r"sum: there is no axis 2 \(x \(2, 3\)\)"),
    (lambda: ones(2, 3).sum(axis=(0, -2)), r"sum: axis 0 is named twice"),
    (lambda: ones(2, 3).transpose(0, 2), r"transpose: there is no axis 2 \(x \(2, 3\)\); x has 2 axes"),
    (lambda: ones(2, 3).transpose(-3, 0), r"transpose: there is no axis -3"),
    (lambda: ones(2, 0).max(axis=1), "max: there is no maximum of nothing"),
    (lambda: ones(2, 3).reshape(4, -1), r"reshape: 6 elements do not fill shape \(4, -1\)"),
    (lambda: ones(2, 3).permute(0, 0), r"permute: \(0, 0\) does not name each of the 2 axes once"),
    (lambda: ones(2, 3).permute(2, 3), r"permute: \(2, 3\) does not name each of the 2 axes once"),
    (lambda: F.concatenate([ones(2, 3), ones(3, 2)]), r"concatenate: all axes but 0 .*\(2, 3\).*\(3, 2\)"),
    (lambda: F.concatenate([ones(2), ones(2)], axis=1), "concatenate: there is no axis 1"),
    (lambda: F.split(ones(4), [1, 2]), r"split: the sizes \(1, 2\) must .*add up to the length of axis 0"),
    (lambda: F.split(ones(4), [-1, 5]), r"split: the sizes \(-1, 5\) must be 0 or more"),
    (lambda: F.split(ones(4), 2, axis=1), r"split: there is no axis 1 \(x \(4,\)\)"),
    (lambda: Tensor([1.5], requires_grad=True).cast(np.int64), r"cast: no gradient passes through int64.*detach\(\)"),
]
IDS, WHOLE = ones(2, 3, dtype=np.int64), ones(3, 3, dtype=np.int64)
WRONG += [      # integers, where only floating-point numbers make sense
    (lambda view=view, op=op, args=args: getattr(view, op)(*args),
     f"{op}: argument {i} must be floating point, not int64")
    for view, op, args, i in [
        (F, "softmax", [IDS], 0), (F, "log_softmax", [IDS], 0), (F, "gelu", [IDS], 0), (F, "silu", [IDS], 0),
        (F, "swiglu", [ones(2, 3), IDS], 1), (F, "linear", [IDS, ones(4, 3)], 0), (F, "linear", [ones(2, 3), WHOLE], 1),
        (F, "linear_gelu", [IDS, WHOLE], 0), (F, "mlp", [IDS, WHOLE, None, WHOLE, None], 0),
        (F, "layer_norm", [IDS, ones(3)], 0), (F, "add_layer_norm", [IDS, IDS, ones(3)], 0),
        (F, "rms_norm", [IDS, ones(3)], 0), (Tensor, "erf", [IDS], 0),
        (F, "attention", [q, q, ones(2, 3, 4, 5, dtype=int)], 2), (F, "dropout", [IDS], 0), (F, "sample", [IDS], 0),
        (F, "cross_entropy", [IDS, [0, 1]], 0), (F, "linear_cross_entropy", [IDS, WHOLE, [0, 1]], 0),
    ]]


@pytest.mark.parametrize("wrong, message", WRONG, ids=[message.partition(":")[0] for _, message in WRONG])
def test_wrong_arguments_are_explained(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


@pytest.mark.parametrize("ids", [[0, 3], [[0], [-1]]])
def test_an_id_outside_the_vocabulary_is_named_with_its_place(ids):
    place = r"\(1,\)" if ids[1] == 3 else r"\(1, 0\)"
    for use in (lambda: F.embedding(ids, ones(3, 2)), lambda: F.cross_entropy(ones(*np.shape(ids), 3), ids),
                lambda: F.linear_cross_entropy(ones(*np.shape(ids), 2), ones(3, 2), ids)):
        with pytest.raises(IndexError, match=f"token id (3|-1) at position {place} is outside the vocabulary of 3"):
            use()


def test_an_operation_needs_a_tensor():
    with pytest.raises(TypeError, match=r"relu: none of its inputs is a Tensor"):
        F.relu(np.ones(3))


# Anomaly mode

def test_anomaly_mode_names_the_operation_whose_output_is_nan():
    with np.errstate(all="ignore"), detect_anomaly():
        with pytest.raises(FloatingPointError, match=r"output 0 of log .*\(1,\)"):
            (Tensor([1.0]) - 2).log() * 3


def test_anomaly_mode_names_the_operation_whose_gradient_is_nan():
    x = Tensor([0.0], requires_grad=True)
    with np.errstate(all="ignore"), detect_anomaly():
        with pytest.raises(FloatingPointError, match="gradient 0 of sqrt"):
            (x.sqrt() * 0).sum().backward()         # 0 * infinity
    with np.errstate(all="ignore"):                 # outside the block nothing is looked at
        (x.sqrt() * 0).sum().backward()
    assert np.isnan(x.grad).all()
