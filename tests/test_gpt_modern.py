"""The options that turn GPT-2 into Llama: each against torch, all against transformers; GPT-2 is what it was."""

import dataclasses
import hashlib

import numpy as np
import pytest
import torch
import torch.nn.functional as TF
from model_checks import check_random_directions, check_two_paths
from strategies import integers, normal

import tinyllm
from tinyllm import GPT, GPTConfig, Tensor, checkpoint, generate, manual_seed, no_grad, optim, random
from tinyllm.models.gpt import NO_DROPOUT
from tinyllm.models.llama import GroupedAttention

LLAMA = dict(norm="rms_norm", position="rotary", mlp="swiglu", n_kv_head=2, tie_word_embeddings=False, bias=False)
EACH = {"norm": {"norm": "rms_norm"}, "position": {"position": "rotary", "rope_theta": 100.0}, "mlp": {"mlp": "swiglu"},
        "width": {"n_inner": 10}, "heads": {"n_kv_head": 2}, "head": {"tie_word_embeddings": False},
        "one key head": LLAMA | {"n_kv_head": 1, "bias": True}, "llama": LLAMA}


def config(**changes):
    return GPTConfig(**{**dict(vocab_size=13, n_positions=8, n_embd=16, n_layer=2, n_head=4), **NO_DROPOUT, **changes})


def moved(**changes):
    """A GPT in float64 whose biases and norms are not where they start."""
    manual_seed(1)
    model = GPT(config(**changes)).to("numpy", np.float64)
    for i, p in enumerate(model.parameters()):
        p.data = p.data + 0.2 * normal(*p.shape, seed=i)
    return model


def batch(step=0):
    text = integers(13, 3, 8, seed=step)
    return text[:, :-1], text[:, 1:]


# GPT-2's form

RECORDED = {    # before there were options: SHA-256 of the initial parameters with their names, and five steps' losses
    True: ("5e5e2c0808a65a6703a91904daa9362f32824b90e27f3615d45fb3cd8891d64f",
           [2.5724430084228516, 2.5806546211242676, 2.5952298641204834, 2.5783255100250244, 2.6054487228393555]),
    False: ("56ba4b38065aaf3983aab853354d43edfe9fafcd09fbff3401e01395805273e5",
            [2.5610387325286865, 2.6025421619415283, 2.5742340087890625, 2.5457615852355957, 2.536033868789673]),
}


def test_rotary_positions_of_llama_3_1_turn_as_fast_as_the_references():
    """At its own numbers: some of its 64 speeds stay, some are an eighth, some lie between."""
    modeling_rope_utils = pytest.importorskip("transformers.modeling_rope_utils")
    transformers = pytest.importorskip("transformers")
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    reference = transformers.LlamaConfig(hidden_size=4096, num_attention_heads=32, max_position_embeddings=131072,
                                         rope_parameters={"rope_type": "llama3", "rope_theta": 500000.0, **scaling})
    speeds, _ = modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](reference, "cpu")
    cos, sin = tinyllm.functional.rope_tables([1], 128, 500000.0, np.float64, scaling)
    np.testing.assert_allclose(np.arctan2(sin[0], cos[0]), speeds.numpy(), rtol=1e-5)
    plain = np.arctan2(*tinyllm.functional.rope_tables([1], 128, 500000.0, np.float64)[::-1])[0]
    ratio = np.arctan2(sin[0], cos[0]) / plain
    assert (ratio > 0.999).any() and (ratio < 0.126).any() and ((ratio > 0.2) & (ratio < 0.9)).any()


@pytest.mark.parametrize("bias", RECORDED)
def test_without_options_it_is_the_gpt_it_was(bias):
    """Names, their order, initial numbers; and how it trains, up to what another BLAS may round otherwise."""
    manual_seed(1)
    model = GPT(GPTConfig(vocab_size=13, n_positions=8, n_embd=12, n_layer=2, n_head=3, bias=bias))
    digest = hashlib.sha256()
    for name, array in model.state_dict().items():
        digest.update(name.encode() + array.tobytes())
    assert digest.hexdigest() == RECORDED[bias][0]
    optimizer, losses = optim.AdamW(model.parameters(), 1e-2), []
    for step in range(5):
        random.next_step(step)
        text = np.random.default_rng(step).integers(0, 13, (3, 9))
        loss = model.loss(text[:, :-1], text[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    np.testing.assert_allclose(losses, RECORDED[bias][1], rtol=1e-6)


# Against torch

def torch_logits(c, w, ids):
    """The model again, from a dictionary of torch tensors; rotation as a product of complex numbers (paper, eq. 13)."""
    B, T = ids.shape
    D, K = c.n_embd // c.n_head, c.n_kv_head or c.n_head

    def linear(x, name):
        return TF.linear(x, w[name + ".weight"], w.get(name + ".bias"))

    def norm(x, name):
        if c.norm == "rms_norm":
            return TF.rms_norm(x, x.shape[-1:], w[name + ".weight"], c.layer_norm_epsilon)
        return TF.layer_norm(x, x.shape[-1:], w[name + ".weight"], w.get(name + ".bias"), c.layer_norm_epsilon)

    def turn(x):        # (B, T, heads, D)
        if c.position == "learned":
            return x
        angles = torch.outer(torch.arange(T), c.rope_theta ** (-torch.arange(D // 2, dtype=torch.float64) * 2 / D))
        pairs = torch.complex(*x.split(D // 2, dim=-1)) * torch.polar(torch.ones_like(angles), angles)[:, None]
        return torch.cat([pairs.real, pairs.imag], dim=-1)

    x = w["wte.weight"][ids] + (w["wpe.weight"][:T] if c.position == "learned" else 0)
    for i in range(c.n_layer):
        h = f"h.{i}."
        sizes = [c.n_embd, K * D, K * D]
        q, k, v = (a.reshape(B, T, -1, D) for a in linear(norm(x, h + "ln_1"), h + "attn.c_attn").split(sizes, dim=-1))
        q, k, v = (a.transpose(1, 2) for a in (turn(q), turn(k), v))
        y = TF.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + linear(y.transpose(1, 2).reshape(B, T, -1), h + "attn.c_proj")
        normed = norm(x, h + "ln_2")
        u = linear(normed, h + "mlp.c_fc")
        u = TF.gelu(u, approximate="tanh") if c.mlp == "gelu" else TF.silu(linear(normed, h + "mlp.c_gate")) * u
        x = x + linear(u, h + "mlp.c_proj")
    return TF.linear(norm(x, "ln_f"), w["wte.weight" if c.tie_word_embeddings else "lm_head.weight"])


@pytest.mark.parametrize("changes", EACH.values(), ids=EACH)
def test_logits_loss_and_every_gradient_are_those_of_torch(changes):
    model, (ids, targets) = moved(**changes), batch()
    weights = {name: torch.tensor(a, requires_grad=True) for name, a in model.state_dict().items()}
    theirs = torch_logits(model.config, weights, torch.tensor(ids))
    np.testing.assert_allclose(model(ids).numpy(), theirs.detach(), rtol=0, atol=1e-10)
    TF.cross_entropy(theirs.flatten(0, 1), torch.tensor(targets).flatten()).backward()
    model.loss(ids, targets).backward()
    for name, p in model.named_parameters():
        np.testing.assert_allclose(p.grad, weights[name].grad, rtol=0, atol=1e-10, err_msg=name)


def test_logits_are_those_of_transformers():
    """LlamaForCausalLM with the same weights: its q, k and v lie below each other in c_attn."""
    transformers = pytest.importorskip("transformers")
    model, ids = moved(**LLAMA, n_inner=20, rope_theta=500.0), batch()[0]
    c, w = model.config, {name: torch.tensor(array) for name, array in model.state_dict().items()}
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=c.vocab_size, hidden_size=c.n_embd, intermediate_size=c.n_inner, num_hidden_layers=c.n_layer,
        num_attention_heads=c.n_head, num_key_value_heads=c.n_kv_head, rms_norm_eps=c.layer_norm_epsilon,
        rope_theta=c.rope_theta, rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta},
        tie_word_embeddings=False, max_position_embeddings=c.n_positions)).double().eval()
    state = {"model.embed_tokens.weight": w["wte.weight"], "model.norm.weight": w["ln_f.weight"],
             "lm_head.weight": w["lm_head.weight"]}
    for i in range(c.n_layer):
        h, layer, key_rows = f"h.{i}.", f"model.layers.{i}.", c.n_kv_head * c.n_embd // c.n_head
        q, k, v = w[h + "attn.c_attn.weight"].split([c.n_embd, key_rows, key_rows])
        state |= {layer + name + ".weight": array for name, array in {
            "self_attn.q_proj": q, "self_attn.k_proj": k, "self_attn.v_proj": v,
            "self_attn.o_proj": w[h + "attn.c_proj.weight"], "mlp.gate_proj": w[h + "mlp.c_gate.weight"],
            "mlp.up_proj": w[h + "mlp.c_fc.weight"], "mlp.down_proj": w[h + "mlp.c_proj.weight"],
            "input_layernorm": w[h + "ln_1.weight"], "post_attention_layernorm": w[h + "ln_2.weight"]}.items()}
    theirs.load_state_dict(state)
    np.testing.assert_allclose(model(ids).numpy(), theirs(torch.tensor(ids)).logits.detach(), rtol=0, atol=1e-4)


# What makes it a language model

def test_gradients_with_dropout_by_random_directions():
    model, (ids, targets) = moved(**LLAMA, embd_pdrop=0.2, attn_pdrop=0.2, resid_pdrop=0.2), batch()
    check_random_directions(model, lambda: model.loss(ids, targets))


def test_nothing_leaks_from_the_future():
    model, ids = moved(**LLAMA), batch()[0]
    before = model(ids).numpy()
    for t in range(ids.shape[1]):
        changed = ids.copy()
        changed[:, t] = (changed[:, t] + 1) % 13
        after = model(changed).numpy()
        np.testing.assert_array_equal(after[:, :t], before[:, :t])
        assert (after[:, t:] != before[:, t:]).any(axis=-1).all()


def test_rotary_scores_depend_on_the_distance_alone():
    layer = GroupedAttention(16, 4, 2, rope_theta=100.0, n_positions=50)
    q, k = (Tensor(np.repeat(normal(1, 1, 4, 4, seed=i), 6, axis=1)) for i in range(2))    # one vector, everywhere

    def scores(start):
        turned = [layer._rotate(x, start).numpy()[0, :, 0] for x in (q, k)]                 # (T, D)
        return turned[0] @ turned[1].T

    near, far = scores(0), scores(40)
    np.testing.assert_allclose(near, far, atol=1e-12)
    for distance in range(-5, 6):
        np.testing.assert_allclose(np.diag(near, distance), np.diag(near, distance)[0], atol=1e-12)
    assert len(np.unique(near.round(6))) == 11


@pytest.mark.parametrize("changes", EACH.values(), ids=EACH)
def test_logits_with_a_cache_are_those_without(changes):
    model, ids = moved(**changes), batch()[0]
    cache = model.new_cache(len(ids))
    with no_grad():
        pieces = [model(ids[:, a:b], cache).numpy() for a, b in ((0, 3), (3, 4), (4, 7))]
        np.testing.assert_allclose(np.concatenate(pieces, axis=1), model(ids).numpy(), atol=1e-12)


def test_text_with_a_cache_is_that_without():
    """In float32 and beyond the context, where the cache begins anew."""
    manual_seed(1)
    model = GPT(config(**LLAMA, initializer_range=0.3))
    for temperature in (0, 0.8):
        with pytest.warns(UserWarning, match="outgrown"):
            texts = [generate(model, [[1, 2], [3, 4]], 12, temperature=temperature, seed=3, use_cache=use_cache)
                     for use_cache in (True, False)]
        np.testing.assert_array_equal(*texts)


def test_grouped_heads_make_the_cache_smaller():
    sizes = [GPT(config(n_kv_head=n)).new_cache(3)[0].k.size for n in (None, 4, 2, 1)]
    assert sizes == [3 * 8 * 16, 3 * 8 * 16, 3 * 8 * 8, 3 * 8 * 4]


def test_it_starts_undecided_with_the_published_spread():
    manual_seed(3)
    model = GPT(GPTConfig.preset("llama-tiny", vocab_size=300, tie_word_embeddings=False))
    for name, p in model.named_parameters():
        if p.ndim == 2:
            assert abs(p.data.std() / (0.02 / 8**0.5 if name.endswith("c_proj.weight") else 0.02) - 1) < 0.05, name
        else:
            assert (p.data == 1).all(), name
    assert abs(model.loss(integers(300, 4, 8), integers(300, 4, 8, seed=1)).item() - np.log(300)) < 0.1


def test_the_preset_is_as_large_as_tiny():
    tiny, llama = (GPT(GPTConfig.preset(name, vocab_size=65)) for name in ("tiny", "llama-tiny"))
    assert llama.num_parameters() == 65 * 128 + 4 * (12 * 128**2 + 2 * 128) + 128
    assert abs(llama.num_parameters() / tiny.num_parameters() - 1) < 0.03


def test_operations_per_token_by_hand():
    matrices = 2 * (2 * 16**2 + 2 * 16 * 8 + 3 * 16 * 42 + 2 * 16) + 16 + 13 * 16
    assert GPT(config(**LLAMA)).flops_per_token(context=4) == 6 * matrices + 12 * 2 * 16 * 4
    tied = GPT(config(**LLAMA | {"tie_word_embeddings": True}))     # one table less, and no product less
    assert tied.flops_per_token(context=4) == 6 * matrices + 12 * 2 * 16 * 4


@pytest.mark.parametrize("changes, message", [
    ({"norm": "batch_norm"}, "norm is 'batch_norm'; it should be one of layer_norm, rms_norm"),
    ({"position": "absolute"}, "position is 'absolute'; .* learned, rotary"),
    ({"mlp": "relu"}, "mlp is 'relu'; .* gelu, swiglu"),
    ({"n_kv_head": 3}, "n_head is 4; it should be a multiple of n_kv_head=3"),
    ({"n_kv_head": 0}, "n_kv_head is 0; it should be a whole number"), ({"n_inner": 2.5}, "n_inner is 2.5"),
    ({"rope_theta": 0}, "rope_theta is 0; it should be a positive number"),
    ({"position": "rotary", "rope_scaling": {"factor": 8.0}},
     "rope_scaling is .*'factor': 8.0.* four positive numbers, factor, low_freq_factor"),
    ({"position": "rotary", "n_embd": 12},
     "n_embd is 12; it should be a multiple of 2 n_head=8: rotary positions turn pairs"),
])
def test_wrong_options_are_explained(changes, message):
    with pytest.raises(ValueError, match="GPTConfig: " + message):
        config(**changes)


def test_a_checkpoint_keeps_the_options(tmp_path):
    model = GPT(config(**LLAMA, rope_theta=77.0))
    checkpoint.save(tmp_path / "checkpoint-000001", model, optim.AdamW(model.parameters(), 1e-3), {"step": 1})
    again, _ = checkpoint.load_model(tmp_path)
    assert dataclasses.asdict(again.config) == dataclasses.asdict(model.config)
    np.testing.assert_array_equal(again(batch()[0]).numpy(), model(batch()[0]).numpy())


def test_both_paths_agree_in_the_loss_and_in_every_gradient():
    """Two training steps."""
    pytest.importorskip("triton", reason="the Triton path needs triton, which exists for Linux only")

    def make(where, dtype):
        manual_seed(1)
        return GPT(config(**LLAMA, attn_pdrop=0.1)).to(where, dtype)

    check_two_paths(make, [batch(0), batch(1)])


def test_both_paths_write_the_same_text():
    pytest.importorskip("triton", reason="the Triton path needs triton, which exists for Linux only")
    texts = []
    for where in ("numpy", "triton"):
        manual_seed(1)
        model = GPT(config(**LLAMA, initializer_range=0.3)).to(where)
        texts.append(tinyllm.generate(model, [[1, 2], [3, 4]], 5, temperature=0.8, seed=3).tolist())
    assert texts[0] == texts[1]
