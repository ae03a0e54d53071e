"""Small models of transformers with random weights, and ours with the same: (ours, theirs), in float64.

The weights are wide, so that the logits differ clearly and rounding decides nothing.
"""
import numpy as np
import pytest

import tinyllm

V = 23


def gpt2():
    _, transformers = _libraries()
    shape = dict(vocab_size=V, n_positions=24, n_embd=16, n_layer=2, n_head=2)
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape, initializer_range=0.5, bos_token_id=None,
                                                                  eos_token_id=None))
    ours = tinyllm.GPT(tinyllm.GPTConfig(**shape))
    weights = {name.removeprefix("transformer."): array for name, array in _weights(theirs).items()}
    turned = ("c_attn.weight", "c_proj.weight", "c_fc.weight")          # Conv1D stores (in, out)
    return _loaded(ours, {name: array.T if name.endswith(turned) else array for name, array in weights.items()}), theirs


def llama():
    _, transformers = _libraries()
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=V, hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=24, initializer_range=0.5, bos_token_id=None, eos_token_id=None))
    ours = tinyllm.GPT(tinyllm.GPTConfig(
        vocab_size=V, n_positions=24, n_embd=16, n_layer=2, n_head=4, n_kv_head=2, n_inner=20, norm="rms_norm",
        layer_norm_epsilon=1e-6, position="rotary", mlp="swiglu", bias=False, tie_word_embeddings=False))
    w = {name.removeprefix("model."): array for name, array in _weights(theirs).items()}
    state = {"wte.weight": w["embed_tokens.weight"], "ln_f.weight": w["norm.weight"],
             "lm_head.weight": w["lm_head.weight"]}
    names = {"attn.c_proj": "self_attn.o_proj", "mlp.c_gate": "mlp.gate_proj", "mlp.c_fc": "mlp.up_proj",
             "mlp.c_proj": "mlp.down_proj", "ln_1": "input_layernorm", "ln_2": "post_attention_layernorm"}
    for i in range(2):
        state |= {f"h.{i}.{own}.weight": w[f"layers.{i}.{name}.weight"] for own, name in names.items()}
        qkv = [w[f"layers.{i}.self_attn.{name}_proj.weight"] for name in "qkv"]
        state[f"h.{i}.attn.c_attn.weight"] = np.concatenate(qkv)
    return _loaded(ours, state), theirs


def t5():
    torch, transformers = _libraries()
    shape = dict(vocab_size=V, d_model=16, d_kv=6, d_ff=24, num_layers=2, num_heads=2, relative_attention_num_buckets=8,
                 relative_attention_max_distance=12, initializer_factor=1.5, tie_word_embeddings=False, eos_token_id=1,
                 pad_token_id=0)
    theirs = transformers.T5ForConditionalGeneration(transformers.T5Config(**shape, decoder_start_token_id=0))
    theirs.lm_head.weight = torch.nn.Parameter(torch.randn(V, 16))      # a head of its own, or it repeats what it reads
    return _loaded(tinyllm.T5(tinyllm.T5Config(**shape)), _weights(theirs)), theirs


def theirs_generate(model, ids, mask=None, **options):
    """What transformers writes, without drawing: ids (B, T) -> (B, ...) array"""
    torch, _ = _libraries()
    ids = torch.from_numpy(np.asarray(ids))
    mask = torch.ones_like(ids) if mask is None else torch.from_numpy(mask).long()
    return model.generate(ids, attention_mask=mask, do_sample=False, **options).numpy()


def _libraries():
    torch, transformers = (pytest.importorskip(name, reason="the reference") for name in ("torch", "transformers"))
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    return torch, transformers


def _weights(model):
    model.double().eval()
    return {name: p.detach().numpy() for name, p in model.state_dict().items()}


def _loaded(model, weights):
    model.to("numpy", np.float64).load_state_dict({name: weights[name] for name in model.state_dict()})
    return model
