"""Modules: names, states and modes; layers against torch.nn."""

import numpy as np
import pytest
import torch
from checks import check_same, run, run_torch
from strategies import normal

from tinyllm import Tensor, manual_seed, nn, no_grad


class Part(nn.Module):
    def __init__(self):
        self.scale = Tensor([2.0], requires_grad=True)
        self.inner = nn.Linear(2, 2, bias=False)


class Whole(nn.Module):
    """Parameters of all kinds: own ones, parts, lists of parts, and one that is used in two places."""

    def __init__(self):
        self.first = nn.Linear(2, 3)
        self.blocks = [Part(), nn.LayerNorm(3)]
        self.shift = Tensor([1.0, 2.0], requires_grad=True)
        self.head = nn.Linear(2, 3, bias=False)
        self.head.weight = self.first.weight
        self.drop, self.size = nn.Dropout(0.5), 3


NAMES = ["first.weight", "first.bias", "blocks.0.scale", "blocks.0.inner.weight", "blocks.1.weight", "blocks.1.bias",
         "shift"]


def test_parameters_are_named_by_their_path_in_order_of_definition():
    whole = Whole()
    assert [name for name, _ in whole.named_parameters()] == NAMES
    assert whole.parameters()[2] is whole.blocks[0].scale


class Containers(nn.Module):
    """Parameters and parts in lists, tuples and dicts, and in those inside of those; a part that knows its owner."""

    def __init__(self):
        self.h = [nn.Linear(2, 1, bias=False), Tensor([1.0], requires_grad=True)]
        self.heads = {"key": nn.Linear(2, 1, bias=False), "bias": Tensor([2.0], requires_grad=True)}
        self.grid = [[nn.Linear(2, 1, bias=False)], ({"deep": nn.Dropout(0.5), "again": self.h[0]}, 3, None)]
        self.heads["key"].owner = self


def test_parameters_are_found_in_lists_tuples_and_dicts():
    whole = Containers()
    assert list(whole.state_dict()) == ["h.0.weight", "h.1", "heads.key.weight", "heads.bias", "grid.0.0.weight"]
    assert list(whole.modules()) == [whole, whole.h[0], whole.heads["key"], whole.grid[0][0], whole.grid[1][0]["deep"]]
    assert not whole.eval().grid[1][0]["deep"].training
    state = {name: array + 1 for name, array in whole.state_dict().items()}
    whole.load_state_dict(state)
    assert whole.heads["bias"].data.tolist() == [3]


def test_a_shared_parameter_counts_once():
    assert Whole().num_parameters() == 6 + 3 + 1 + 4 + 3 + 3 + 2


def test_modules_lists_all_parts():
    whole = Whole()
    part, norm = whole.blocks
    assert list(whole.modules()) == [whole, whole.first, part, part.inner, norm, whole.head, whole.drop]


def test_train_and_eval_reach_every_part():
    whole = Whole()
    assert whole.eval() is whole and not any(part.training for part in whole.modules())
    assert whole.train() is whole and all(part.training for part in whole.modules())


def test_a_mode_belongs_to_one_object():
    Whole().eval()
    assert Whole().training


def test_zero_grad_forgets_all_gradients():
    whole = Whole()
    for p in whole.parameters():
        p.grad = np.ones(p.shape)
    whole.zero_grad()
    assert all(p.grad is None for p in whole.parameters())


def test_to_changes_the_dtype_and_keeps_shared_parameters_shared():
    whole = Whole().to("numpy", np.float64)
    assert {p.dtype for p in whole.parameters()} == {np.dtype(np.float64)} and whole.head.weight is whole.first.weight


def test_state_dict_is_a_copy():
    whole = Whole()
    state = whole.state_dict()
    assert list(state) == NAMES
    state["shift"][...] = 9
    assert whole.shift.data.tolist() == [1, 2]


def test_load_state_dict_copies_every_number():
    a, b = Whole(), Whole()
    before = [p.data for p in b.parameters()]
    state = a.state_dict()
    b.load_state_dict(state)
    state["shift"][...] = 9
    for p, q, old in zip(a.parameters(), b.parameters(), before):
        np.testing.assert_array_equal(p.data, q.data)
        assert q.data is old                        # in place: an optimizer that holds the array sees the new values


def wrong_state(whole):
    state = {name: array + 1 for name, array in whole.state_dict().items()}
    del state["shift"]
    state["shfit"] = np.zeros(2)
    state["first.weight"] = state["first.weight"].T
    return state


def test_load_state_dict_lists_all_that_does_not_fit_and_touches_nothing():
    whole = Whole()
    before = whole.state_dict()
    with pytest.raises(ValueError) as error:
        whole.load_state_dict(wrong_state(whole))
    for part in ("Whole", "missing: shift", "unexpected: shfit", "first.weight is (2, 3), should be (3, 2)",
                 "nothing was loaded", "transposed"):
        assert part in str(error.value)
    for name, array in whole.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_load_state_dict_refuses_texts_and_touches_nothing():
    layer = nn.Linear(2, 2)
    before = layer.state_dict()
    with pytest.raises(ValueError, match="bias holds no numbers; nothing was loaded"):
        layer.load_state_dict({"weight": before["weight"] + 1, "bias": np.array(["a", "b"])})
    np.testing.assert_array_equal(layer.weight.numpy(), before["weight"])


def test_load_state_dict_blames_transposition_only_where_it_fits():
    state = Whole().state_dict() | {"shift": np.zeros(5)}
    with pytest.raises(ValueError, match="mis-shaped: shift is .* configuration") as error:
        Whole().load_state_dict(state)
    assert "transposed" not in str(error.value)


# Layers against torch.nn

def attention_twin():
    """torch's own multi-head attention, causal, under our parameter names."""
    layer = torch.nn.MultiheadAttention(6, 2, batch_first=True).double()

    def forward(x, w_in, b_in, w_out, b_out):
        future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        values = {"in_proj_weight": w_in, "in_proj_bias": b_in, "out_proj.weight": w_out, "out_proj.bias": b_out}
        return torch.func.functional_call(layer, values, (x, x, x), {"attn_mask": future, "need_weights": False})[0]
    return forward


def torch_layer(layer):
    layer = layer.double()
    names = [name for name, _ in layer.named_parameters()]
    return lambda x, *values: torch.func.functional_call(layer, dict(zip(names, values)), (x,))


FLOATS, IDS = normal(2, 4, 6), np.array([[0, 3, 3], [1, 0, 4]])
LAYERS = [
    (nn.Linear(6, 4), torch_layer(torch.nn.Linear(6, 4)), FLOATS),
    (nn.Linear(6, 4, bias=False), torch_layer(torch.nn.Linear(6, 4, bias=False)), FLOATS),
    (nn.Embedding(5, 3), torch_layer(torch.nn.Embedding(5, 3)), IDS),
    (nn.LayerNorm(6, eps=0.1), torch_layer(torch.nn.LayerNorm(6, eps=0.1)), FLOATS),
    (nn.LayerNorm(6, bias=False), torch_layer(torch.nn.LayerNorm(6, bias=False)), FLOATS),
    (nn.RMSNorm(6, eps=0.1), torch_layer(torch.nn.RMSNorm(6, eps=0.1)), FLOATS),
    (nn.MLP(6), torch_layer(torch.nn.Sequential(
        torch.nn.Linear(6, 24), torch.nn.GELU("tanh"), torch.nn.Linear(24, 6))), FLOATS),
    (nn.MultiHeadAttention(6, 2), attention_twin(), FLOATS),
]


@pytest.mark.parametrize("layer, twin, x", LAYERS, ids=[type(layer).__name__ for layer, _, _ in LAYERS])
def test_layer(layer, twin, x):
    """Output and the gradients of input and parameters; the parameters are random, so that none hides behind 0 or 1."""
    shapes = [p.shape for p in layer.parameters()]
    values = [normal(*shape, seed=i + 1) for i, shape in enumerate(shapes)]

    def ours(x, *params):
        replace(layer, params)
        return layer(x)

    check_same(run(ours, ((x, *values), {})), run_torch(twin, ((x, *values), {})))


def replace(module, params):
    """Put other tensors in the place of a module's parameters, so that they can be arguments of a function."""
    for (name, _), new in zip(list(module.named_parameters()), params):
        *path, last = name.split(".")
        owner = module
        for step in path:
            owner = getattr(owner, step)
        setattr(owner, last, new)


def test_layers_start_as_those_of_torch():
    manual_seed(0)
    for p in nn.Linear(100, 200).parameters():      # uniform in +-0.1
        assert 0.098 < np.abs(p.data).max() <= 0.1 and abs(p.data.std() - 0.1 / 3**0.5) < 0.006
    assert abs(nn.Embedding(100, 100).weight.data.std() - 1) < 0.05
    for norm in (nn.LayerNorm(3), nn.RMSNorm(3)):
        assert norm.weight.data.tolist() == [1, 1, 1]
    assert nn.LayerNorm(3).bias.data.tolist() == [0, 0, 0]


def test_a_seed_gives_the_same_weights():
    weights = []
    for seed in (1, 1, 2):
        manual_seed(seed)
        weights.append(nn.Linear(3, 2).weight.data.tolist())
    assert weights[0] == weights[1] != weights[2]


def test_layer_norm_of_a_sum():
    x, branch, norm = Tensor(normal(2, 6)), Tensor(normal(2, 6, seed=1)), nn.LayerNorm(6).to("numpy", np.float64)
    total, normed = norm.add(x, branch)
    np.testing.assert_allclose(total.numpy(), (x + branch).numpy())
    np.testing.assert_allclose(normed.numpy(), norm(x + branch).numpy())


def test_dropout_works_while_training_only():
    drop, x = nn.Dropout(0.5), Tensor(np.ones((20, 20), np.float32))
    assert set(np.unique(drop(x).numpy())) == {0, 2}
    assert drop.eval()(x) is x and nn.Dropout(0.0)(x) is x


def test_attention_needs_heads_of_equal_size():
    with pytest.raises(ValueError, match="n_embd=6 must be a multiple of n_head=4"):
        nn.MultiHeadAttention(6, 4)


def test_padding_on_the_left_changes_nothing():
    layer = nn.MultiHeadAttention(6, 2)
    x = normal(1, 4, 6).astype(np.float32)
    padded = np.concatenate([normal(1, 3, 6, seed=5).astype(np.float32), x], axis=1)
    found = layer(Tensor(padded), key_start=np.array([3])).numpy()[:, 3:]
    np.testing.assert_allclose(found, layer(Tensor(x)).numpy(), rtol=1e-5, atol=1e-6)


def test_a_cache_refuses_to_lose_a_gradient():
    layer, x = nn.MultiHeadAttention(4, 2), Tensor(np.ones((1, 2, 4), np.float32))
    cache = nn.KVCache(1, 3, 2, 2, np.zeros(1, np.float32))
    with pytest.raises(RuntimeError, match=r"KVCache: gradients do not pass through a cache; .*`with no_grad\(\)"):
        layer(x, cache)
    with no_grad():
        assert layer(x, cache).shape == (1, 2, 4) and cache.used == 2


def test_a_full_cache_says_so():
    cache = nn.KVCache(1, 3, 2, 4, np.zeros(1, np.float32))
    k = Tensor(np.ones((1, 2, 2, 4), np.float32))
    keys, values = cache.append(k, k * 2)
    assert keys.shape == (1, 2, 2, 4) and (values.numpy() == 2).all()
    with pytest.raises(ValueError, match="4 positions do not fit into a cache of 3"):
        cache.append(k, k)
