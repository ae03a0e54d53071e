"""watch_attention(): the weights of every attention, in order, and only while somebody watches."""
import numpy as np
import pytest

import tinyllm
from tinyllm import functional as F


def heads(rng, *shape):
    return tinyllm.Tensor(rng.standard_normal(shape), requires_grad=True)


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"causal": True, "scale": 0.3}])
@pytest.mark.parametrize("limits", [(None, None), ([1, 0, 4], [4, 5, 5])])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_the_weights_times_the_values_are_the_output(options, limits, kv_heads):
    rng = np.random.default_rng(3)
    q, k, v = heads(rng, 3, 4, 4, 8), heads(rng, 3, 5, kv_heads, 8), heads(rng, 3, 5, kv_heads, 8)
    bias = tinyllm.Tensor(rng.standard_normal((1, 4, 4, 5)))
    with tinyllm.watch_attention() as maps:
        out = F.attention(q, k, v, bias, *limits, **options)
    (weights,) = maps
    assert weights.shape == (3, 4, 4, 5)
    values = np.repeat(v.numpy(), 4 // kv_heads, axis=2)                            # (B, S, H, D)
    np.testing.assert_allclose(np.einsum("bhts,bshd->bthd", weights, values), out.numpy(), rtol=1e-12, atol=1e-12)


def test_each_layer_of_a_model_is_seen_once_in_order_and_the_model_says_the_same():
    tinyllm.manual_seed(1)
    model = tinyllm.GPT(tinyllm.GPTConfig(vocab_size=11, n_positions=8, n_embd=16, n_layer=3, n_head=2)).eval()
    ids = np.arange(10).reshape(2, 5)
    alone = model(ids).numpy()
    with tinyllm.watch_attention() as maps:
        np.testing.assert_array_equal(model(ids).numpy(), alone)
    assert [p.shape for p in maps] == [(2, 2, 5, 5)] * 3
    for p in maps:
        np.testing.assert_allclose(p.sum(-1), 1, rtol=1e-6)
        assert not np.triu(p, 1).any()                                              # causal
    qkv = model.h[0].attn.c_attn(model.h[0].ln_1(model.wte(ids) + model.wpe(np.arange(5))))
    q, k, _ = np.split(qkv.numpy().reshape(2, 5, 6, 8), 3, axis=2)                  # (B, T, H, D)
    scores = np.where(np.tri(5, dtype=bool), np.einsum("bthd,bshd->bhts", q, k) / np.sqrt(8), -np.inf)
    e = np.exp(scores - scores.max(-1, keepdims=True))
    np.testing.assert_allclose(maps[0], e / e.sum(-1, keepdims=True), rtol=1e-5, atol=1e-7)


def test_nothing_is_kept_afterwards_and_inner_watchers_do_not_disturb():
    q = tinyllm.Tensor(np.ones((1, 2, 1, 4)))
    with tinyllm.watch_attention() as outer:
        F.attention(q, q, q)
        with tinyllm.watch_attention() as inner:
            F.attention(q, q, q)
        F.attention(q, q, q)
    F.attention(q, q, q)
    assert len(outer) == 2 and len(inner) == 1


def test_dropout_does_not_touch_what_is_seen():
    tinyllm.manual_seed(1)
    q = tinyllm.Tensor(np.random.default_rng(1).standard_normal((1, 6, 2, 4)))
    with tinyllm.watch_attention() as maps:
        F.attention(q, q, q, dropout=0.5)
    np.testing.assert_allclose(maps[0], F.attention_weights(q, q).numpy())
