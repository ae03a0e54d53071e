"""Broken operations, each of which must turn a check red (see broken.py)."""

import numpy as np
import pytest
import test_gpt
import test_primitives
import test_tensor
from broken import Mistakes, assert_red, composed, each, float32, slopes, witness

mistake = Mistakes()


@pytest.mark.parametrize("target, broken, check", mistake)
def test_a_mistake_turns_the_check_red(target, broken, check, monkeypatch):
    assert_red(target, broken, check, monkeypatch)


# Primitives

@mistake("ops.sub_backward", witness("sub"))
def the_sign_of_the_subtrahend_is_lost(real, dout, saved):
    return dout, dout


@mistake("ops.mul_backward", slopes("mul"))
def factors_are_swapped(real, dout, saved):
    return real(dout, saved)[::-1]


@mistake("ops.div_backward", witness("div"))
def the_divisor_is_not_squared(real, dout, saved):
    b, out = saved
    return dout / b, -dout * out


@mistake("ops.pow_backward", slopes("pow"))
def the_exponent_is_not_lowered(real, dout, saved):
    a, b, out, _ = saved
    return dout * b * out, real(dout, saved)[1]


@mistake("ops.sqrt_backward", slopes("sqrt"))
def the_half_is_forgotten(real, dout, saved):
    return (dout / saved[0],)


@mistake("ops.tanh_backward", slopes("tanh"))
def tanh_is_not_squared(real, dout, saved):
    return (dout * (1 - saved[0]),)


@mistake("ops.sigmoid_backward", witness("sigmoid"))
def sigmoid_is_its_own_slope(real, dout, saved):
    return (dout * saved[0],)


@mistake("ops.where_backward", witness("where"))
def the_sides_are_swapped(real, dout, saved):
    return (None, *real(dout, saved)[:0:-1])


@mistake("ops.mean_backward", slopes("mean"))
def a_mean_is_a_sum(real, dout, saved):
    return (real(dout, saved)[0] * saved[-1],)


@mistake("ops.max_backward", each(test_primitives.test_ties_share_the_gradient_as_in_torch, test_primitives.TIES))
def every_winner_takes_all(real, dout, saved):
    share, = real(np.ones_like(dout), saved)
    return (np.sign(share) * real(dout, saved)[0] / np.where(share == 0, 1, share),)


@mistake("ops.maximum_backward", each(test_primitives.test_ties_share_the_gradient_as_in_torch, test_primitives.TIES))
def the_first_one_wins_a_tie(real, dout, saved):
    a, b = saved
    return dout * (a >= b), dout * (a < b)


@mistake("ops.matmul_backward", witness("matmul"))
def only_the_first_of_a_batch_counts(real, dout, saved):
    da, db = real(dout, saved)
    return da, db[0] if db.ndim > saved[1].ndim else db


@mistake("ops.permute_backward", slopes("permute"))
def the_permutation_is_not_inverted(real, dout, saved):
    back, = real(dout, saved)
    return (dout.transpose(saved[0]).reshape(back.shape),)


@mistake("ops.getitem_backward", witness("getitem"))
def a_repeated_index_counts_once(real, dout, saved):
    dx = np.zeros(saved[0])
    dx[saved[1]] = dout
    return (dx,)


@mistake("ops.concatenate_backward", slopes("concatenate"))
def the_pieces_are_cut_one_off(real, dout, saved):
    return real(np.roll(dout, 1, axis=saved[1]), saved)


@mistake("ops.split_backward", test_tensor.test_unused_outputs_count_as_zero)
def an_unused_piece_gets_something(real, *douts, saved):
    return (np.where(real(*douts, saved=saved)[0] == 0, 1, real(*douts, saved=saved)[0]),)


@mistake("ops.cast_backward", test_primitives.test_cast_there_and_back)
def the_gradient_keeps_the_new_type(real, dout, saved):
    return (dout,)


@mistake("ops.unbroadcast", witness("add"))
def the_wrong_axis_is_summed(real, grad, shape):
    return grad.sum(axis=-1) if grad.shape == (3, 3) and shape == (3,) else real(grad, shape)


# Fused operations

@mistake("ops.linear_backward", composed("linear"))
def the_bias_gets_no_gradient(real, dout, saved):
    return (*real(dout, saved)[:2], None)


@mistake("ops.linear_backward", composed("linear"))
def the_weight_gradient_is_transposed(real, dout, saved):
    dx, dweight, dbias = real(dout, saved)
    return dx, dweight.T, dbias


@mistake("ops.linear_gelu_backward", slopes("linear_gelu"))
def the_slope_of_gelu_is_forgotten(real, dout, saved):
    return real(dout, (*saved[:-1], np.ones_like(saved[-1])))


@mistake("ops.gelu_backward", slopes("gelu", shape=(4, 5)))
def the_slope_of_gelu_stays_below_1(real, dout, saved):
    return (dout * np.clip(saved[0], 0, 1),)


@mistake("ops.gelu_forward", composed("gelu"))
def tanh_stands_in_for_erf(real, x, **options):
    return real(x, **{**options, "approximate": "tanh"})


@mistake("ops.swiglu_backward", slopes("swiglu"))
def gate_and_value_are_swapped(real, dout, saved):
    return real(dout, saved)[::-1]


@mistake("ops.embedding_backward", slopes("embedding"))
def a_repeated_token_counts_once(real, dout, saved):
    dweight = np.zeros(saved[1])
    dweight[saved[0]] = dout
    return None, dweight


@mistake("ops.layer_norm_backward", composed("layer_norm"))
def the_spread_is_constant(real, dout, saved):
    xhat, rstd, weight, _ = saved
    g = dout.reshape(xhat.shape) * weight
    dx = rstd[:, None] * (g - g.mean(axis=-1, keepdims=True))
    return dx.reshape(dout.shape), *real(dout, saved)[1:]


@mistake("ops.layer_norm_backward", slopes("layer_norm"))
def the_mean_is_constant(real, dout, saved):
    xhat, rstd, weight, _ = saved
    g = dout.reshape(xhat.shape) * weight
    dx = rstd[:, None] * (g - xhat * (g * xhat).mean(axis=-1, keepdims=True))
    return dx.reshape(dout.shape), *real(dout, saved)[1:]


@mistake("ops.rms_norm_backward", witness("rms_norm"))
def the_size_is_constant(real, dout, saved):
    _, rstd, weight = saved
    return (dout.reshape(len(rstd), -1) * weight * rstd).reshape(dout.shape), real(dout, saved)[1]


@mistake("ops.add_layer_norm_backward", composed("add_layer_norm"))
def the_residual_stream_is_cut(real, dtotal, dout, saved):
    return real(None, dout, saved)


@mistake("ops.softmax_backward", slopes("softmax"))
def probabilities_do_not_compete(real, dout, saved):
    return (dout * saved[0],)


@mistake("ops.softmax_forward", composed("softmax"))
def the_maximum_is_not_taken_off(real, x):
    with np.errstate(all="ignore"):
        out = np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)
    return out, (out,)


@mistake("ops.log_softmax_forward", float32("log_softmax"))
def the_logarithm_comes_after_rounding(real, x):
    with np.errstate(divide="ignore"):
        out = np.log(np.exp(real(x)[0]))
    return out, (out,)


@mistake("ops.layer_norm_forward", float32("layer_norm"))
def the_variance_is_a_difference_of_large_numbers(real, x, weight, bias=None, *, eps=1e-5):
    _, (xhat, _, *rest) = real(x, weight, bias, eps=eps)
    variance = (x * x).mean(axis=-1, keepdims=True) - x.mean(axis=-1, keepdims=True) ** 2
    rstd = 1 / np.sqrt(np.maximum(variance, 0) + eps)
    out = (x - x.mean(axis=-1, keepdims=True)) * rstd * weight
    return out if bias is None else out + bias, (xhat, rstd.reshape(-1), *rest)


@mistake("ops.attention_backward", float32("attention"))
def a_gradient_passes_through_16_bits(real, dout, saved):
    return tuple(g if g is None else g.astype(np.float16).astype(g.dtype) for g in real(dout, saved))


@mistake("ops.attention._attend_backward", composed("attention"))
def attention_has_no_delta(real, dout, dq, dk, dv, dbias, core):
    real(dout, dq, dk, dv, dbias, (*core[:3], np.zeros_like(core[3]), *core[4:]))


@mistake("ops.attention._mask_future", test_gpt.test_nothing_leaks_from_the_future)
def the_mask_lets_one_future_key_through(real, scores, i, offset):
    real(scores, i, offset + 1)


@mistake("ops.attention._mask_future", composed("self_attention"))
def the_mask_hides_the_present(real, scores, i, offset):
    real(scores, i, offset - 1)


@mistake("ops.attention._key_mask", witness("attention"))
def the_end_is_visible(real, start, end, S, dtype):
    return real(start, None if end is None else end + 1, S, dtype)


@mistake("ops.attention_backward", composed("attention"))
def grouped_heads_share_the_mean(real, dout, saved):
    dq, dk, *rest = real(dout, saved)
    return dq, dk * (dk.shape[2] / dq.shape[2]), *rest


@mistake("ops.attention_backward", composed("attention"))
def the_bias_gradient_ends_with_its_block(real, dout, saved):
    dq, dk, dv, dbias, *rest = real(dout, saved)
    if dbias is not None:
        dbias[:, :, 64:] = 0
    return dq, dk, dv, dbias, *rest


@mistake("ops.self_attention_backward", composed("self_attention"))
def keys_and_values_are_swapped(real, dout, saved):
    dqkv, *rest = real(dout, saved)
    q, k, v = np.split(dqkv, 3, axis=-1)
    return np.concatenate([q, v, k], axis=-1), *rest


@mistake("ops.rope_backward", slopes("rope"))
def the_gradient_turns_the_wrong_way(real, dout, saved):
    cos, sin, interleaved = saved
    return real(dout, (cos, -sin, interleaved))


@mistake("ops.rope._pairs", witness("rope"))
def other_features_are_paired(real, x, interleaved):
    return real(x, not interleaved)


@mistake("ops.dropout_backward", composed("dropout"))
def survivors_are_not_scaled(real, dout, saved):
    keep, _ = saved
    return dout * keep, None


@mistake("ops.dropout_backward", slopes("dropout"))
def the_mask_is_drawn_anew(real, dout, saved):
    keep, p = saved
    return real(dout, (keep[::-1], p))


@mistake("ops.loss._upstream", composed("cross_entropy"))
def the_mean_is_not_divided(real, dout, count, reduction):
    return dout


@mistake("ops.loss._reduce", witness("cross_entropy"))
def ignored_targets_count(real, losses, count, reduction):
    return real(losses, losses.size, reduction)


@mistake("ops.cross_entropy_forward", witness("cross_entropy"))
def nothing_is_smoothed(real, *arrays, label_smoothing, **options):
    return real(*arrays, **options)


@mistake("ops.linear_cross_entropy_backward", composed("linear_cross_entropy"))
def the_weight_gradient_is_not_scaled(real, dout, saved):
    dx, _, _ = real(dout, saved)
    return dx, saved[2].T @ saved[0], None
