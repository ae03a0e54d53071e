"""Folders that are damaged, or hold what is not implemented: one sentence for each, no memory, and nothing executed."""

import json
import pickle
import tracemalloc

import numpy as np
import pytest
from reference_folders import KINDS, change_settings, change_tensors, saved

from tinyllm import GPT, GPTConfig, checkpoint, optim


@pytest.fixture
def gpt2(tmp_path):
    return saved("gpt2", tmp_path / "gpt2")


def without(name):
    return lambda tensors: {key: a for key, a in tensors.items() if key != name}


WRONG_TENSORS = {
    "missing": (without("transformer.h.1.ln_1.bias"), r"missing: h\.1\.ln_1\.bias$"),
    "mis-shaped": (lambda t: t | {"transformer.wpe.weight": np.zeros((9, 12), np.float32)},
                   r"mis-shaped: wpe\.weight is \(9, 12\), should be \(8, 12\)"),
    "turned": (lambda t: t | {"transformer.h.0.mlp.c_fc.weight": np.zeros((48, 12), np.float32)},
               r"mis-shaped: h\.0\.mlp\.c_fc\.weight is \(48, 12\), should be \(12, 48\)"),
    "unknown": (lambda t: t | {"score.weight": np.zeros(3, np.float32)}, r"unexpected: score\.weight"),
    "integers": (lambda t: t | {"transformer.wte.weight": np.zeros((13, 12), np.int32)},
                 "transformer.wte.weight is stored as I32; weights can be read from F32, F16, BF16, F64"),
    "under two names": (lambda t: t | {"wte.weight": t["transformer.wte.weight"]},
                        "(transformer.)?wte.weight and (transformer.)?wte.weight are two names of one tensor"),
    "two heads": (lambda t: t | {"lm_head.weight": t["transformer.wte.weight"] + 1},
                  "lm_head.weight and wte.weight should be one tensor, .*set tie_word_embeddings to false"),
}


@pytest.mark.parametrize("change, message", WRONG_TENSORS.values(), ids=WRONG_TENSORS)
def test_tensors_that_do_not_fit_are_named(change, message, gpt2):
    change_tensors(gpt2, change)
    with pytest.raises(ValueError, match=message):
        GPT.from_pretrained(gpt2)


def test_all_that_is_missing_is_listed(gpt2):
    change_settings(gpt2, n_layer=3)
    with pytest.raises(ValueError, match=r"missing: h\.2\.ln_1\.weight, h\.2\.ln_1\.bias, .*h\.2\.mlp\.c_proj\.bias"):
        GPT.from_pretrained(gpt2)


@pytest.mark.parametrize("kind, changes, message", [
    ("gpt2", {"activation_function": "relu"}, "activation_function is 'relu', and this engine's gpt2 knows 'gelu_new'"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
    ("gpt2", {"quantization_config": {"bits": 4}}, r"quantization_config is \{'bits': 4\}"),
    ("gpt2", {"n_head": 5}, "GPTConfig: n_embd is 12; it should be a multiple of n_head=5"),
    ("gpt2", {"n_embd": "12"}, "GPTConfig: n_embd is '12'"),
    ("gpt2", {"layer_norm_epsilon": "small"}, "GPTConfig: layer_norm_epsilon is 'small'; it should be a number"),
    ("gpt2", {"tie_word_embeddings": "false"}, "GPTConfig: tie_word_embeddings is 'false'; .* True or False"),
    ("gpt2", {"model_type": "gpt_neox"}, "GPT cannot be a model of the type 'gpt_neox'; there are gpt2, llama, bert"),
    ("gpt2", {"model_type": ["gpt2"]}, r"GPT cannot be a model of the type \['gpt2'\]"),
    ("gpt2", {"model_type": "t5"}, "GPT cannot be a model of the type 't5'; use T5.from_pretrained"),
    ("gpt2", {"model_type": None}, "GPT cannot be a model of the type None"),
    ("bert", {"hidden_act": "silu"}, "BERTConfig: hidden_act is 'silu'; it should be one of gelu, gelu_new, relu"),
    ("bert", {"hidden_act": ["gelu"]}, "config.json: "),
    ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
    ("bert", {"is_decoder": True}, "is_decoder is True, and this engine's bert knows False"),
    ("t5", {"feed_forward_proj": "gated-silu"}, "T5Config: feed_forward_proj is 'gated-silu'"),
    ("t5", {"decoder_start_token_id": 99}, "T5Config: decoder_start_token_id is 99; it should be a token, less than"),
    ("t5", {"feed_forward_proj": "relu", "dense_act_fn": "gelu_new"}, "dense_act_fn is 'gelu_new', and .* 'relu' with"),
    ("llama", {"hidden_act": "gelu"}, "hidden_act is 'gelu', and this engine's llama knows 'silu' or 'swish'"),
    ("llama", {"rope_parameters": {"rope_type": "llama3", "factor": 8}}, "rope_scaling is .* four positive numbers"),
    ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 8}}, "rotary positions of the kind 'yarn'"),
    ("llama", {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling is .*'linear'"),
    ("llama", {"rope_parameters": "default"}, "rope_scaling is 'default'"),
    ("llama", {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "linear", "factor": 2}},
     "rope_scaling is .*'linear'"),
    ("llama", {"head_dim": 8}, "head_dim is 8, and here 4 heads share hidden_size=16"),
    ("llama", {"mlp_bias": True}, "mlp_bias is True and attention_bias is False; .*in both or in neither"),
    ("llama", {"attention_bias": True}, "mlp_bias is False and attention_bias is True"),
])
def test_settings_that_are_not_implemented_are_refused_by_name(kind, changes, message, tmp_path):
    saved(kind, tmp_path)
    change_settings(tmp_path, **changes)
    with pytest.raises(ValueError, match=message) as error:
        KINDS[kind].ours.from_pretrained(tmp_path)
    assert str(tmp_path / "config.json") in str(error.value)


@pytest.mark.parametrize("changes, message", [
    ({"n_layer": 10**9}, "config.json: it asks for more layers than there are tensors, 28"),
    ({"n_embd": 3 * 10**8}, r"mis-shaped: .*wte\.weight is \(13, 12\), should be \(13, 300000000\)"),
    ({"n_embd": 3 * 10**9}, "config.json: "), ({"n_embd": 3 * 10**30}, "config.json: "),     # no array is so large
    ({"vocab_size": 10**12}, r"mis-shaped: wte\.weight is \(13, 12\), should be \(1000000000000, 12\)")])
def test_sizes_that_are_lies_cost_nothing(changes, message, gpt2):
    change_settings(gpt2, **changes)
    tracemalloc.start()
    with pytest.raises(ValueError, match=message):
        GPT.from_pretrained(gpt2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


class Trap:
    """Unpickled, it would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_is_refused_and_not_opened(gpt2):
    (gpt2 / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="has neither model.safetensors nor model.safetensors.index.json"):
        GPT.from_pretrained(gpt2)
    (gpt2 / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(gpt2 / "sprung")))
    with pytest.raises(ValueError, match=r"a pickle \(pytorch_model.bin\).*convert it with transformers: .*save_pretr"):
        GPT.from_pretrained(gpt2)
    (gpt2 / "model.safetensors").write_bytes((gpt2 / "pytorch_model.bin").read_bytes())         # under a false name
    with pytest.raises(ValueError, match="damaged or no safetensors file"):
        GPT.from_pretrained(gpt2)
    assert not (gpt2 / "sprung").exists()


@pytest.mark.parametrize("content, message", [
    (None, "has no config.json, which says what kind"), ("{", "config.json is no JSON object .*download it again"),
    ("[]", "config.json is no JSON object"), ("[" * 200_000, "config.json is no JSON object"),
    ('"gpt2"', "config.json is no JSON object"), ("{}", "GPT cannot be a model of the type None")])
def test_a_config_that_is_none_is_refused(content, message, gpt2):
    (gpt2 / "config.json").unlink()
    if content is not None:
        (gpt2 / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        GPT.from_pretrained(gpt2)


def test_a_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nowhere is no folder; download a model first, with `hf download NAME"):
        GPT.from_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize("index, message", [
    ("{", "is no JSON object"), ({}, "has no weight_map"), ({"weight_map": {"a": 1}}, "has no weight_map"),
    ({"weight_map": {"a": "../gpt2/part"}}, r"speaks of '\.\./gpt2/part', and there is no such file"),
    ({"weight_map": {"a": "absent.safetensors"}}, "speaks of 'absent.safetensors'"),
    ({"weight_map": {"a": "part"}}, r"speaks of tensors that are not in its files: a \(in part\)")])
def test_a_wrong_index_is_refused(index, message, gpt2):
    (gpt2 / "model.safetensors").rename(gpt2 / "part")
    (gpt2 / "model.safetensors.index.json").write_text(index if isinstance(index, str) else json.dumps(index))
    with pytest.raises(ValueError, match=message):
        GPT.from_pretrained(gpt2)


def test_a_checkpoint_is_told_from_a_published_model(tmp_path):
    model = GPT(GPTConfig.preset("nano", vocab_size=5))
    checkpoint.save(tmp_path / "checkpoint-1", model, optim.AdamW(model.parameters()), {"step": 1})
    with pytest.raises(ValueError, match="it is a checkpoint of tinyllm, so use tinyllm.load"):
        GPT.from_pretrained(tmp_path / "checkpoint-1")


@pytest.mark.parametrize("changes, message", [
    ({"bias": False}, "no gpt2, with bias=False instead of True; no llama, with norm='layer_norm' instead of"),
    ({"position": "rotary"}, "no gpt2, with position='rotary' instead of 'learned'")])
def test_what_no_reference_model_can_be_is_not_saved(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        GPT(GPTConfig.preset("nano", vocab_size=5, **changes)).save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()
