"""Negative controls: mistakes that people make, each of which must turn a check of this suite red.

A test that has never failed proves little. Here the engine is broken on purpose, one line at a time, and the very
functions that the other files call must notice.
"""

import importlib
from functools import partial

import numpy as np
import pytest
import test_generate
import test_gpt
import test_optim
import test_tensor
from checks import check_composed, check_float32, check_gradient, check_torch
from strategies import FIXED, MAKERS
from test_contract import check_filled, check_pure, check_stays_float32

from tinyllm.ops import memory

MISTAKES = []


def mistake(target, check):
    """Register a function as a broken version of tinyllm.<target>; it gets the real one as its first argument."""
    def register(function):
        MISTAKES.append(pytest.param("tinyllm." + target, function, check, id=function.__name__))
        return function
    return register


def all_cases(check, op):
    """check(op, case) on every fixed case of `op`; torch would draw another dropout mask."""
    cases = [sizes for sizes in FIXED[op] if check is not check_torch or "dropout" not in sizes]
    return lambda: [check(op, MAKERS[op](**sizes)) for sizes in cases]


composed, witness, float32 = (partial(all_cases, check) for check in (check_composed, check_torch, check_float32))
pure, filled, stays_float32 = (partial(all_cases, check) for check in (check_pure, check_filled, check_stays_float32))


def slopes(op, **sizes):
    return lambda: check_gradient(op, MAKERS[op](**sizes))


def each(test, arguments):
    """A parametrized test on all of its arguments."""
    return lambda: [test(*args) for args in arguments]


@pytest.mark.parametrize("target, broken, check", MISTAKES)
def test_a_mistake_turns_the_check_red(target, broken, check, monkeypatch):
    check()
    module, _, name = target.rpartition(".")
    module = importlib.import_module(module)
    monkeypatch.setattr(module, name, partial(broken, getattr(module, name)))
    with pytest.raises((AssertionError, pytest.fail.Exception)):    # the second is what pytest.raises() raises
        check()


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


@mistake("ops.max_backward", each(test_tensor.test_ties_share_the_gradient_as_in_torch, test_tensor.TIES))
def every_winner_takes_all(real, dout, saved):
    share, = real(np.ones_like(dout), saved)
    return (np.sign(share) * real(dout, saved)[0] / np.where(share == 0, 1, share),)


@mistake("ops.maximum_backward", each(test_tensor.test_ties_share_the_gradient_as_in_torch, test_tensor.TIES))
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


@mistake("ops.cast_backward", test_tensor.test_cast_there_and_back)
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


# The contract

@mistake("ops.relu_forward", pure("relu"))
def an_input_is_written(real, x):
    return np.maximum(x, 0, out=x), (x,)


@mistake("ops.softmax_backward", pure("softmax"))
def an_incoming_gradient_is_written(real, dout, saved):
    dx, = real(dout, saved)
    dout[...] = dx
    return (dout,)


@mistake("ops.linear_gelu_backward", pure("linear_gelu"))
def what_was_saved_is_written(real, dout, saved):
    result = real(dout, saved)
    saved[-1][...] = 0
    return result


@mistake("ops.embedding_forward", filled("embedding"))
def a_row_is_not_filled(real, ids, weight, **options):
    out, saved = real(ids, weight, **options)
    out.reshape(-1)[:1] = memory.empty((1,), out.dtype)
    return out, saved


@mistake("ops.silu_backward", stays_float32("silu"))
def a_constant_makes_it_float64(real, dout, saved):
    return (real(dout, saved)[0] * np.float64(1),)


# The tape

@mistake("tensor._accumulate", test_tensor.test_gradients_add_up_over_calls_until_they_are_cleared)
def the_last_gradient_wins(real, leaf, grad, fresh):
    leaf.grad = grad.copy()


@mistake("tensor._accumulate", test_tensor.test_each_leaf_owns_its_gradient)
def two_leaves_share_a_gradient(real, leaf, grad, fresh):
    leaf.grad = grad


@mistake("tensor._run_backward", partial(test_tensor.test_backward_refuses_stale_values, test_tensor.by_loading))
def stale_values_are_used(real, node, douts):
    node.versions = [getattr(t, "_version", 0) for t in node.inputs]
    return real(node, douts)


# Optimizers, sampling, models

@mistake("ops.adamw_step", partial(test_optim.test_adam, options={}, name="AdamW", weight_decay=0.0))
def the_start_is_biased(real, param, grad, m, v, hyper, norm, **options):
    real(param, grad, m, v, np.array([hyper[0], 1e9]), norm, **options)


@mistake("ops.adamw_step", partial(test_optim.test_adam, options={}, name="AdamW", weight_decay=0.3))
def the_decay_goes_through_the_gradient(real, *arrays, decoupled, **options):
    real(*arrays, decoupled=False, **options)


@mistake("ops.sgd_step", partial(test_optim.test_sgd, options=test_optim.SGDS[2], weight_decay=0.0))
def nesterov_is_ignored(real, *arrays, nesterov, **options):
    real(*arrays, **options)


@mistake("ops.optim._clip", partial(test_optim.test_clipping_on_the_way, 0.5))
def nothing_is_clipped(real, norm, max_norm):
    return 1.0


@mistake("ops.optim._clip", partial(test_optim.test_a_gradient_that_is_not_finite_changes_no_number,
                                    broken=np.nan, make=test_optim.MAKERS[0]))
def nan_is_let_through(real, norm, max_norm):
    return real(np.float32(1), max_norm)


@mistake("ops.philox", each(test_generate.test_philox_gives_the_published_numbers, test_generate.VECTORS))
def a_round_is_missing(real, key, counter):
    return real(key, counter, rounds=9)


@mistake("ops.sample.first_bits", test_generate.test_rows_draw_independently)
def all_rows_draw_the_same(real, rng, n, site):
    return np.resize(real(rng, 5, site), n)


@mistake("ops.sample.first_bits", test_generate.test_samples_of_successive_steps_are_distributed_as_the_softmax)
def all_steps_draw_the_same(real, rng, n, site):
    return real((rng[0], 0), n, site)


@mistake("ops.sample._keep_top", each(test_generate.test_top_k_and_top_p_keep_the_most_likely, test_generate.KEPT))
def top_k_keeps_one_more(real, scores, top_k, top_p):
    return real(scores, top_k and top_k + 1, top_p)


@mistake("ops.kv_append", test_generate.test_logits_piece_by_piece_are_those_of_the_whole)
def the_cache_is_one_off(real, *arrays, position):
    real(*arrays, position=max(0, position - 1))


@mistake("functional.linear_cross_entropy", partial(test_gpt.test_logits_loss_and_every_gradient, True))
def tied_weights_learn_as_input_only(real, x, weight, *args):
    return real(x, weight.detach(), *args)
