"""A broken contract, tape, optimizer, sampler or model: each must turn a check red (see broken.py)."""

from functools import partial
from operator import add

import numpy as np
import pytest
import test_generate
import test_gpt
import test_operands
import test_optim
import test_random
import test_tensor
from broken import Mistakes, assert_red, each, filled, pure, stays_float32

from tinyllm import Tensor
from tinyllm.ops import memory

mistake = Mistakes()


@pytest.mark.parametrize("target, broken, check", mistake)
def test_a_mistake_turns_the_check_red(target, broken, check, monkeypatch):
    assert_red(target, broken, check, monkeypatch)


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
    node.versions = [getattr(t, "_version", [0])[0] for t in node.inputs]
    return real(node, douts)


@mistake("tensor._own", partial(test_tensor.test_ids_may_change_before_backward, test_tensor.IDS[1]))
def an_index_belongs_to_its_owner(real, index):
    return index


@mistake("tensor.pair", partial(test_operands.test_integers_and_lists_take_the_dtype_of_the_tensor, add, "array",
                                np.float32))
def integers_keep_their_type(real, a, b):
    return (a, Tensor(b)) if isinstance(a, Tensor) else (Tensor(a), b)


# Optimizers, sampling, models

@mistake("optim._kind", test_optim.test_a_model_that_moved_away_is_noticed)
def every_array_is_of_one_kind(real, array):
    return "float32 on numpy"


@mistake("ops.adamw_step", partial(test_optim.test_adam, options={}, name="AdamW", weight_decay=0.0))
def the_start_is_biased(real, param, grad, m, v, hyper, *others, **options):
    real(param, grad, m, v, np.array([hyper[0], 1e9]), *others, **options)


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


@mistake("ops.philox", each(test_random.test_philox_gives_the_published_numbers, test_random.VECTORS))
def a_round_is_missing(real, key, counter):
    return real(key, counter, rounds=9)


@mistake("ops.sample.bits_of_rows", test_random.test_rows_draw_independently)
def all_rows_draw_the_same(real, rng, shape, site):
    return np.broadcast_to(real(rng, shape[1:], site), shape)


@mistake("ops.sample.bits_of_rows", test_random.test_samples_of_successive_steps_are_distributed_as_the_softmax)
def all_steps_draw_the_same(real, rng, shape, site):
    return real((rng[0], 0), shape, site)


@mistake("ops.sample._keep_top", each(test_random.test_top_k_and_top_p_keep_the_most_likely, test_random.KEPT))
def top_k_keeps_one_more(real, scores, top_k, top_p):
    return real(scores, top_k and top_k + 1, top_p)


@mistake("ops.kv_append", test_generate.test_logits_piece_by_piece_are_those_of_the_whole)
def the_cache_is_one_off(real, *arrays, position):
    real(*arrays, position=max(0, position - 1))


@mistake("functional.linear_cross_entropy", partial(test_gpt.test_logits_loss_and_every_gradient, True))
def tied_weights_learn_as_input_only(real, x, weight, *args):
    return real(x, weight.detach(), *args)
