"""What Hugging Face's files call the parts of a model: the tables that pretrained.py reads and writes with.

A Family is a kind of model there, by its "model_type" in config.json. Most names in tinyllm are theirs already; the
tables hold what differs.
"""
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from .functional import ROPE_SCALING

TANH_GELU = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")      # three programs for one formula


def nothing_else(settings_or_model):
    """A hook that has nothing to add."""
    return {}


@dataclass
class Family:
    """One kind of model, under both of its names."""

    model_type: str
    architectures: dict                 # class here -> class there
    fields: dict                        # field of the configuration here -> field of config.json
    fixed: dict = field(default_factory=dict)       # fields here that are no choice there, and their values
    defaults: dict = field(default_factory=dict)    # of fields that config.json may leave out, where ours differ
    only: dict = field(default_factory=dict)        # fields of config.json -> the values that exist here, too
    read: Callable = nothing_else       # settings in config.json -> further fields here
    write: Callable = nothing_else      # model -> further fields of config.json
    prefix: str = ""                    # in front of most tensors' names; some files leave it out
    names: dict = field(default_factory=dict)       # pattern in the name of a parameter -> what stands there instead
    turned: str = "$^"                  # pattern of the names of matrices that are stored as (in, out)
    copies: dict = field(default_factory=dict)      # tensors that may be there a second time -> the first one
    spare: str = "$^"                   # pattern of the names of tensors that are no parameters here

    def config_fields(self, settings):
        """config.json -> the fields of the configuration here; ValueError names a setting that does not exist here."""
        for name, known in {**self.only, "quantization_config": (None,)}.items():
            if name in settings and settings[name] not in known:
                allowed = " or ".join(repr(value) for value in known)
                raise ValueError(f"{name} is {settings[name]!r}, and this engine's {self.model_type} knows {allowed}")
        settings = self.defaults | settings
        found = {ours: settings[theirs] for ours, theirs in self.fields.items() if theirs in settings}
        return self.fixed | found | self.read(settings)

    def settings(self, model):
        """A model here -> the fields of config.json"""
        return {theirs: getattr(model.config, ours) for ours, theirs in self.fields.items()} | self.write(model)

    def differences(self, config):
        """The fields in which a configuration here is no model of this family, in words."""
        return [f"{name}={getattr(config, name)!r} instead of {value!r}" for name, value in self.fixed.items()
                if name not in TRAINING_ONLY and getattr(config, name) != value]

    def pieces(self, name, shape, config):
        """The tensors that make up a parameter, one below the other: [(name there, shape there)]"""
        for pattern, replacement in self.names.items():
            name = re.sub(pattern, replacement, name)
        if "qkv_proj" not in name:
            return [(name, shape[::-1] if self.is_turned(name) else shape)]
        keys = (shape[0] - config.n_embd) // 2                      # rows of k, and of v; q has n_embd
        return [(name.replace("qkv", letter), (rows, *shape[1:])) for letter, rows in
                zip("qkv", (config.n_embd, keys, keys))]

    def is_turned(self, name):
        """Whether the matrix of this name is stored as (in, out); tinyllm keeps (out, in)."""
        return bool(re.search(self.turned, name))

    def plain(self, name):
        """A tensor's name in the spelling that all files share: without the prefix, and with today's words."""
        return re.sub(r"\.beta$", ".bias", re.sub(r"\.gamma$", ".weight", name.removeprefix(self.prefix)))


TRAINING_ONLY = ("embd_pdrop", "resid_pdrop")       # what a family lacks of these, nobody misses after training


def same(*names):
    """The fields that have one name here and there."""
    return {name: name for name in names}


def special_tokens(model, **defaults):
    """Ids that the library takes for granted unless told otherwise; none of them exists in a small vocabulary."""
    return {name: None for name, default in defaults.items()
            if name not in model.settings and default >= model.config.vocab_size}


GPT2 = Family(
    model_type="gpt2",
    architectures={"GPT": "GPT2LMHeadModel"},
    fields=same("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner", "embd_pdrop", "attn_pdrop",
                "resid_pdrop", "layer_norm_epsilon", "initializer_range", "tie_word_embeddings"),
    fixed={"norm": "layer_norm", "position": "learned", "mlp": "gelu", "bias": True, "n_kv_head": None},
    only={"activation_function": TANH_GELU, "scale_attn_weights": (True,), "add_cross_attention": (False,),
          "scale_attn_by_inverse_layer_idx": (False,)},
    write=lambda model: special_tokens(model, bos_token_id=50256, eos_token_id=50256),
    prefix="transformer.",
    names={r"^(wte|wpe|h|ln_f)\.": r"transformer.\1."},
    turned=r"\.(c_attn|c_proj|c_fc)\.weight$",          # GPT-2's layer is called Conv1D, and computes x W + b
    copies={"lm_head.weight": "wte.weight"},
    spare=r"\.attn\.(bias|masked_bias)$",               # the causal mask, as a buffer
)


def llama_fields(settings):
    """Rotary positions and biases: two settings each that say, or could contradict, what is one field here."""
    parameters = settings.get("rope_parameters") or {}
    rope = settings.get("rope_scaling") or parameters           # where both say something, the older name counts
    kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, dict) else None
    if kind not in ("default", "llama3") or settings.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(f"rope_scaling is {rope!r} (rotary positions of the kind {kind!r}), and this engine's llama "
                         "knows the kinds default and llama3 alone, over whole heads")
    scaling = {name: rope.get(name) for name in ROPE_SCALING} if kind == "llama3" else None
    heads, width = settings["num_attention_heads"], settings["hidden_size"]
    if settings.get("head_dim") and settings["head_dim"] * heads != width:
        raise ValueError(f"head_dim is {settings['head_dim']}, and here {heads} heads share hidden_size={width}")
    if settings["mlp_bias"] != settings["attention_bias"]:
        raise ValueError(f"mlp_bias is {settings['mlp_bias']} and attention_bias is {settings['attention_bias']}; this "
                         "engine's llama has biases in both or in neither")
    theta = rope.get("rope_theta", parameters.get("rope_theta", settings["rope_theta"]))
    return {"rope_theta": theta, "rope_scaling": scaling}


def llama_settings(model):
    """What LlamaConfig wants to know beyond the names; rope_theta stands where older and newer versions look for it."""
    config, scaling = model.config, model.config.rope_scaling
    kind = {"rope_type": "llama3", **scaling} if scaling else {"rope_type": "default"}
    return {"intermediate_size": config.n_inner or 8 * config.n_embd // 3, "mlp_bias": config.bias,
            "num_key_value_heads": config.n_kv_head or config.n_head, "hidden_act": "silu",
            "rope_parameters": {**kind, "rope_theta": config.rope_theta}, "rope_scaling": kind if scaling else None,
            **special_tokens(model, bos_token_id=1, eos_token_id=2)}


LLAMA = Family(
    model_type="llama",
    architectures={"GPT": "LlamaForCausalLM"},
    fields={"vocab_size": "vocab_size", "n_positions": "max_position_embeddings", "n_embd": "hidden_size",
            "n_layer": "num_hidden_layers", "n_head": "num_attention_heads", "n_kv_head": "num_key_value_heads",
            "n_inner": "intermediate_size", "attn_pdrop": "attention_dropout", "layer_norm_epsilon": "rms_norm_eps",
            "initializer_range": "initializer_range", "bias": "attention_bias", "rope_theta": "rope_theta",
            "tie_word_embeddings": "tie_word_embeddings"},
    fixed={"norm": "rms_norm", "position": "rotary", "mlp": "swiglu", "embd_pdrop": 0.0, "resid_pdrop": 0.0},
    defaults={"vocab_size": 32000, "max_position_embeddings": 2048, "hidden_size": 4096, "num_hidden_layers": 32,
              "num_attention_heads": 32, "intermediate_size": 11008, "attention_dropout": 0.0, "rms_norm_eps": 1e-6,
              "attention_bias": False, "mlp_bias": False, "rope_theta": 10000.0, "tie_word_embeddings": False},
    only={"hidden_act": ("silu", "swish")},
    read=llama_fields,
    write=llama_settings,
    prefix="model.",
    names={r"^wte\.": "model.embed_tokens.", r"^h\.": "model.layers.", r"^ln_f\.": "model.norm.",
           r"\.ln_1\.": ".input_layernorm.", r"\.ln_2\.": ".post_attention_layernorm.",
           r"\.attn\.c_attn\.": ".self_attn.qkv_proj.",         # three tensors, q_proj, k_proj and v_proj: see pieces()
           r"\.attn\.c_proj\.": ".self_attn.o_proj.", r"\.mlp\.c_gate\.": ".mlp.gate_proj.",
           r"\.mlp\.c_fc\.": ".mlp.up_proj.", r"\.mlp\.c_proj\.": ".mlp.down_proj."},
    copies={"lm_head.weight": "embed_tokens.weight"},
    spare=r"\.rotary_emb\.inv_freq$",
)


def n_labels(settings):
    """How many labels a classifier has: older files count them, newer ones name them."""
    if settings.get("id2label"):
        return {"num_labels": len(settings["id2label"])}
    return {"num_labels": settings["num_labels"]} if "num_labels" in settings else {}


def label_names(model):
    """config.json does not count the labels of a classifier, it names them."""
    known = model.settings.get("id2label") or {}
    if not hasattr(model, "classifier") or len(known) == model.config.num_labels:
        return {}
    labels = {str(i): f"LABEL_{i}" for i in range(model.config.num_labels)}
    return {"id2label": labels, "label2id": {name: int(i) for i, name in labels.items()}}


BERT = Family(
    model_type="bert",
    architectures={"BERT": "BertForMaskedLM", "BERTModel": "BertModel",
                   "BERTForSequenceClassification": "BertForSequenceClassification",
                   "BERTForTokenClassification": "BertForTokenClassification",
                   "BERTForQuestionAnswering": "BertForQuestionAnswering"},
    fields=same("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
                "hidden_act", "hidden_dropout_prob", "attention_probs_dropout_prob", "max_position_embeddings",
                "type_vocab_size", "initializer_range", "layer_norm_eps", "pad_token_id"),
    only={"position_embedding_type": ("absolute",), "is_decoder": (False,), "add_cross_attention": (False,),
          "tie_word_embeddings": (True,)},
    read=n_labels,
    write=label_names,
    prefix="bert.",
    copies={"cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
            "cls.predictions.decoder.bias": "cls.predictions.bias"},
    # The published files hold the head of next-sentence prediction, too; and any trunk may come with another's head.
    spare=r"^(embeddings\.(position_ids|token_type_ids)|(pooler|cls|classifier|qa_outputs)\..*)$",
)


def t5_fields(settings):
    """Recent versions of the library say "tied" of every T5, and keep what it was under another name. What the MLP
    computes can stand there twice, too.
    """
    kind = settings.get("feed_forward_proj", "relu")
    expected = "gelu_new" if kind == "gated-gelu" else "relu"
    if settings.get("dense_act_fn", expected) != expected:
        raise ValueError(f"dense_act_fn is {settings['dense_act_fn']!r}, and this engine's t5 has {expected!r} with "
                         f"feed_forward_proj={kind!r}")
    return {"tie_word_embeddings": settings.get("scale_decoder_outputs", settings.get("tie_word_embeddings", True))}


T5 = Family(
    model_type="t5",
    architectures={"T5": "T5ForConditionalGeneration"},
    fields=same("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads",
                "relative_attention_num_buckets", "relative_attention_max_distance", "dropout_rate",
                "layer_norm_epsilon", "initializer_factor", "feed_forward_proj", "tie_word_embeddings", "pad_token_id",
                "eos_token_id", "decoder_start_token_id"),
    only={"is_encoder_decoder": (True,)},
    read=t5_fields,
    write=lambda model: {"scale_decoder_outputs": model.config.tie_word_embeddings, "is_encoder_decoder": True,
                         "num_decoder_layers": len(model.decoder.block)},
    copies={"encoder.embed_tokens.weight": "shared.weight", "decoder.embed_tokens.weight": "shared.weight",
            "lm_head.weight": "shared.weight"},
    spare=r"^decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight$",   # the first files had it
)

FAMILIES = {family.model_type: family for family in (GPT2, LLAMA, BERT, T5)}
