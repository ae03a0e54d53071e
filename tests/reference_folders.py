"""Hugging Face folders for the tests: small models of the library with random weights, and ways to spoil them."""

import json
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from strategies import integers

from tinyllm import BERT, GPT, T5
from tinyllm.models import BERTForQuestionAnswering as QuestionAnswering
from tinyllm.models import BERTForSequenceClassification as SequenceClassification
from tinyllm.models import BERTForTokenClassification as TokenClassification

transformers = pytest.importorskip("transformers", reason="the reference: pip install transformers")
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

IDS = integers(13, 3, 7, low=1)
SOURCE = np.array([[5, 6, 7, 8, 9, 10], [11, 12, 4, 3, 0, 0]])              # 0 is padding
TARGETS = np.array([[7, 6, 5, 1], [5, 1, -100, -100]])
DECODER_INPUT = np.array([[0, 7, 6, 5], [0, 5, 1, 0]])

GPT2_SHAPE = {"vocab_size": 13, "n_positions": 8, "n_embd": 12, "n_layer": 2, "n_head": 3}
BERT_SHAPE = {"vocab_size": 13, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3,
              "intermediate_size": 20, "max_position_embeddings": 8}
T5_SHAPE = {"vocab_size": 13, "d_model": 12, "d_kv": 5, "d_ff": 18, "num_layers": 2, "num_heads": 3,
            "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12}
LLAMA_SHAPE = {"vocab_size": 13, "hidden_size": 16, "intermediate_size": 22, "num_hidden_layers": 2,
               "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 8, "rms_norm_eps": 1e-5}
V1_1 = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}


def logits_of(out):
    return out.logits


@dataclass
class Kind:
    """A model of the reference library, and the class that reads it here."""

    ours: type
    theirs: str
    settings: dict
    targets: np.ndarray
    inputs: tuple = (IDS,)
    named: dict = field(default_factory=lambda: {"input_ids": IDS})         # the inputs, as the library takes them
    logits: object = logits_of


T5_INPUTS = {"inputs": (SOURCE, DECODER_INPUT), "targets": TARGETS, "named": {
    "input_ids": SOURCE, "attention_mask": np.int64(SOURCE != 0), "decoder_input_ids": DECODER_INPUT}}
NEXT = integers(13, 3, 7, seed=1)
KINDS = {
    "gpt2": Kind(GPT, "GPT2LMHeadModel", GPT2_SHAPE, NEXT),
    "gpt2, untied": Kind(GPT, "GPT2LMHeadModel", {**GPT2_SHAPE, "tie_word_embeddings": False, "n_inner": 10}, NEXT),
    "llama": Kind(GPT, "LlamaForCausalLM", {**LLAMA_SHAPE, "rope_parameters": {
        "rope_type": "default", "rope_theta": 500.0}}, NEXT),
    "llama 3.1": Kind(GPT, "LlamaForCausalLM", {**LLAMA_SHAPE, "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 0.5, "high_freq_factor": 2.0,
        "original_max_position_embeddings": 9}}, NEXT),
    "llama, tied": Kind(GPT, "LlamaForCausalLM", {**LLAMA_SHAPE, "tie_word_embeddings": True,
                                                  "num_key_value_heads": None}, NEXT),
    "llama, biased": Kind(GPT, "LlamaForCausalLM", {**LLAMA_SHAPE, "attention_bias": True, "mlp_bias": True}, NEXT),
    "bert": Kind(BERT, "BertForMaskedLM", BERT_SHAPE, np.where(NEXT < 4, NEXT, -100)),
    "bert, classes": Kind(SequenceClassification, "BertForSequenceClassification", {
        **BERT_SHAPE, "num_labels": 3, "hidden_act": "gelu_new"}, np.array([0, 2, 1])),
    "bert, tokens": Kind(TokenClassification, "BertForTokenClassification", {
        **BERT_SHAPE, "num_labels": 3, "hidden_act": "relu"}, integers(3, 3, 7)),
    "bert, spans": Kind(QuestionAnswering, "BertForQuestionAnswering", BERT_SHAPE, integers(7, 3, 2),
                        logits=lambda out: torch.stack([out.start_logits, out.end_logits], dim=1)),
    "t5": Kind(T5, "T5ForConditionalGeneration", {**T5_SHAPE, "num_decoder_layers": 1}, **T5_INPUTS),
    "t5, gated": Kind(T5, "T5ForConditionalGeneration", {**T5_SHAPE, **V1_1}, **T5_INPUTS),
    "t5, gated, untied": Kind(T5, "T5ForConditionalGeneration", {**T5_SHAPE, **V1_1}, **T5_INPUTS),
}


def reference(kind):
    """The library's model, its parameters all far from where they start."""
    torch.manual_seed(0)
    class_ = getattr(transformers, KINDS[kind].theirs)
    model = class_(class_.config_class(**KINDS[kind].settings, bos_token_id=None, eos_token_id=1)).eval()
    if kind == "t5, gated, untied":         # the constructor ties the head in any case
        model.lm_head.weight = torch.nn.Parameter(torch.zeros(13, 12))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn(p.shape))
    return model


def their_logits(kind, model):
    return KINDS[kind].logits(model(**{name: torch.from_numpy(a) for name, a in KINDS[kind].named.items()}))


def saved(kind, folder):
    """The library's model in a folder of its own, to be read or spoilt."""
    reference(kind).save_pretrained(folder)
    return folder


def change_settings(folder, **changes):
    """Change config.json; None takes a field away."""
    settings = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in settings.items() if k not in changes or
                                                    v is not None}))


def change_tensors(folder, change):
    """Rewrite model.safetensors; change: a function of a dictionary that returns another."""
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")
