"""BERT (Devlin et al. 2018, "BERT: Pre-training of Deep Bidirectional Transformers", arXiv:1810.04805).

    ids (B, T) -> token + position + segment vectors -> layer norm -> the layers -> (B, T, C) -> a head -> logits

In GPT a position sees what stands before it; here it sees the whole text. So the model cannot be asked for the next
token, which it would see, but it can be asked for tokens that were hidden (text/masking.py). What it learns from that
is good for other tasks: the layers stay, and a new head of a few numbers takes the place of the old one. A layer
differs from GPT's in that it normalises *after* each branch was added (post-norm), as the first Transformer did: each
layer then changes the scale of the stream that runs through all, and deep models need a warm-up of the learning rate.

The names of all parameters are those of Hugging Face's BertModel, BertForMaskedLM (here: BERT), and so on. Dictionaries
are parts too, so the tree of names can be seen where it is made.
"""
import dataclasses
from dataclasses import dataclass

import numpy as np

from .. import functional as F
from ..config import Config
from ..nn import Dropout, Embedding, LayerNorm, Linear, Module, full, normal
from ..pretrained import Pretrained
from .inputs import lengths, prepare, text_ends, token_ids

ACTIVATIONS = {"gelu": F.gelu, "gelu_new": lambda x: F.gelu(x, approximate="tanh"), "relu": F.relu}


@dataclass
class BERTConfig(Config):
    """The shape of a BERT; the fields carry the names of Hugging Face's BertConfig. The defaults are BERT base."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"                    # exact; "gelu_new": its tanh form; "relu"
    hidden_dropout_prob: float = 0.1            # of the embeddings and of what each branch adds
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512          # how many tokens it sees at most
    type_vocab_size: int = 2                    # how many segments are told apart, such as question and answer
    initializer_range: float = 0.02             # standard deviation of the initial weights
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0                       # what fills short texts up, on the right
    num_labels: int = 2                         # classes of the two classifiers

    FROM_ZERO = ("pad_token_id",)
    PROBABILITIES = ("hidden_dropout_prob", "attention_probs_dropout_prob")

    def check(self):
        self.need_multiple("hidden_size", "num_attention_heads", "every head gets an equal part of it")
        self.need_one_of("hidden_act", ACTIVATIONS)


# Layers and width, with heads of 64; the first four: Turc et al. 2019, "Well-Read Students Learn Better".
SIZES = {"tiny": (2, 128), "mini": (4, 256), "small": (4, 512), "medium": (8, 512), "base": (12, 768),
         "large": (24, 1024)}
BERTConfig.PRESETS = {name: dict(hidden_size=size, num_hidden_layers=layers, num_attention_heads=size // 64,
                                 intermediate_size=4 * size) for name, (layers, size) in SIZES.items()}


class Layer(Module):
    """x = layer_norm(x + attention(x)), then layer_norm(x + mlp(x))"""

    def __init__(self, config):
        c, C = config, config.hidden_size
        self.n_head, self.dropout = c.num_attention_heads, c.attention_probs_dropout_prob
        self.attention = {
            "self": {"query": Linear(C, C), "key": Linear(C, C), "value": Linear(C, C)},
            "output": {"dense": Linear(C, C), "LayerNorm": LayerNorm(C, c.layer_norm_eps)},
        }
        self.intermediate = {"dense": Linear(C, c.intermediate_size)}
        self.output = {"dense": Linear(c.intermediate_size, C), "LayerNorm": LayerNorm(C, c.layer_norm_eps)}
        self.activation = ACTIVATIONS[c.hidden_act]
        self.drop = Dropout(c.hidden_dropout_prob)

    def forward(self, x, key_end=None):
        """(B, T, C) -> (B, T, C); key_end (B,): how many positions of each row may be looked at."""
        B, T, C = x.shape
        # Three products, for the sake of the names: as many multiplications as in GPT's packed one, but x is read three
        # times, and its three gradients are added up. NumPy: a tenth more for attention at width 128, 2 % from 256 on.
        q, k, v = (self.attention["self"][name](x).reshape(B, T, self.n_head, -1) for name in ("query", "key", "value"))
        y = F.attention(q, k, v, None, None, key_end, dropout=self.dropout if self.training else 0.0)   # (B, T, H, D)
        y = self.drop(self.attention["output"]["dense"](y.reshape(B, T, C)))
        x = self.attention["output"]["LayerNorm"].add(x, y)[1]
        y = self.drop(self.output["dense"](self.activation(self.intermediate["dense"](x))))
        return self.output["LayerNorm"].add(x, y)[1]


class BERTModel(Module, Pretrained):
    """The trunk, without a head: a vector for each token, which knows all the text around it.

    pooler: whether pool() shall exist, which makes one vector of them.
    """

    config_class = BERTConfig

    def __init__(self, config, pooler=True):
        self.config, C = config, config.hidden_size
        self.embeddings = {
            "word_embeddings": Embedding(config.vocab_size, C),
            "position_embeddings": Embedding(config.max_position_embeddings, C),
            "token_type_embeddings": Embedding(config.type_vocab_size, C),
            "LayerNorm": LayerNorm(C, config.layer_norm_eps),
        }
        self.encoder = {"layer": [Layer(config) for _ in range(config.num_hidden_layers)]}
        self.pooler = {"dense": Linear(C, C)} if pooler else {}
        self.drop = Dropout(config.hidden_dropout_prob)
        initialise(self, config)

    def forward(self, ids, attention_mask=None, token_type_ids=None, key_end=None):
        """ids (B, T) integers -> (B, T, C)

        attention_mask (B, T): 1 for tokens, 0 for the padding behind them; without it, the padding is what the row ends
        with in pad_token_id. What is computed at padding means nothing, and no token sees it. token_type_ids (B, T):
        each token's segment; without it, all are in segment 0. key_end (B,): how many tokens of each row are text, in
        place of the mask.
        """
        ids = token_ids("BERT", ids)
        T, longest = ids.shape[1], self.config.max_position_embeddings
        if T > longest:
            raise ValueError(f"BERT: {T} tokens are more than its max_position_embeddings={longest}; cut the text")
        if key_end is None:
            key_end = text_lengths(ids, attention_mask, self.config.pad_token_id)
        types = np.zeros(T, np.int64) if token_type_ids is None else np.asarray(token_type_ids)
        e = self.embeddings
        x = e["word_embeddings"](ids) + (e["position_embeddings"](np.arange(T)) + e["token_type_embeddings"](types))
        x = self.drop(e["LayerNorm"](x))                                    # (B, T, C)
        for layer in self.encoder["layer"]:
            x = layer(x, key_end)
        return x

    def pool(self, x):
        """One vector for the whole text, from that of its first token, [CLS]: (B, T, C) -> (B, C)"""
        return self.pooler["dense"](x[:, 0]).tanh()


def text_lengths(ids, attention_mask, pad_token_id):
    """How many tokens of each row of ids (B, T) come before its padding: (B,), or None if no row is padded."""
    if attention_mask is None:
        return lengths(ids != pad_token_id)
    mask = np.asarray(attention_mask).astype(bool)
    if mask.shape != ids.shape:
        raise ValueError(f"BERT: attention_mask is {mask.shape} and ids are {ids.shape}; both must be (batch, time)")
    if (~mask[:, :-1] & mask[:, 1:]).any():
        raise ValueError("BERT: attention_mask has a 0 in front of a 1; padding must stand on the right, behind the "
                         "text")
    return lengths(mask)


def initialise(model, config):
    """Normal weights, zero biases, as published."""
    for name, p in model.named_parameters():
        if p.ndim == 2:
            p.data = normal(*p.shape, std=config.initializer_range).data
        elif name.endswith("bias"):
            p.data = full(p.shape, 0).data


class BERT(Module, Pretrained):
    """BERT as it learns from text alone: the trunk, and a head that says which tokens were hidden.

    Hugging Face's BertForMaskedLM. model(ids) gives, at every position, the logits of the token that belongs there.
    """

    config_class = BERTConfig

    def __init__(self, config):
        self.config, C = config, config.hidden_size
        self.bert = BERTModel(config, pooler=False)
        self.cls = {"predictions": {
            "bias": full(config.vocab_size, 0),
            "transform": {"dense": Linear(C, C), "LayerNorm": LayerNorm(C, config.layer_norm_eps)},
        }}
        self.activation = ACTIVATIONS[config.hidden_act]
        initialise(self, config)

    def head(self, x):
        """(..., C) -> (..., V); the last product is with the token embeddings again (tied weights)."""
        predictions = self.cls["predictions"]
        x = self.activation(predictions["transform"]["dense"](x))
        x = predictions["transform"]["LayerNorm"](x)
        return F.linear(x, self.bert.embeddings["word_embeddings"].weight, predictions["bias"])

    def forward(self, ids, attention_mask=None, token_type_ids=None):
        """ids (B, T) -> logits (B, T, V); the other arguments are those of BERTModel."""
        return self.head(self.bert(ids, attention_mask, token_type_ids))

    def loss(self, ids, targets, reduction="mean", attention_mask=None, token_type_ids=None, key_end=None, asked=None):
        """Cross-entropy in nats per hidden token: ids and targets (B, T) -> scalar, or (B, T) with reduction="none".

        targets: what was hidden, and -100 elsewhere. The head, a fifth of a small model's work or more, is spared
        where there is nothing to tell. key_end, asked: from prepare(), whose targets are those of the places `asked`.
        """
        x = self.bert(ids, attention_mask, token_type_ids, key_end)         # (B, T, C)
        if asked is not None:
            return F.cross_entropy(self.head(F.embedding(asked, x.reshape(-1, x.shape[2]))), targets,
                                   reduction=reduction)
        targets = np.asarray(targets)
        if reduction == "none":
            return F.cross_entropy(self.head(x), targets, reduction="none")
        self._check_targets(ids, targets)
        asked = np.flatnonzero(targets != -100)                             # (N,)
        return F.cross_entropy(self.head(x.reshape(-1, x.shape[2])[asked]), targets.reshape(-1)[asked],
                               reduction=reduction)

    def _check_targets(self, ids, targets):
        if targets.shape != np.shape(ids):
            raise ValueError(f"BERT: targets are {targets.shape} and ids are {np.shape(ids)}; there must be one target "
                             "per token, -100 where nothing is hidden")

    def prepare(self, ids, targets):
        """A batch, for a recorded loss(): see inputs.py. Batches should have the same shapes: so the number of places
        where something is asked is rounded up to a sixteenth of all, with targets of -100.
        """
        arrays = prepare(self, ids, targets)
        self._check_targets(arrays["ids"], arrays["targets"])
        targets = arrays["targets"].reshape(-1)
        asked, unit = np.flatnonzero(targets != -100), max(1, targets.size // 16)
        more = -len(asked) % unit if len(asked) else unit
        return {"ids": arrays["ids"], "key_end": text_ends(arrays["ids"] != self.config.pad_token_id),
                "asked": np.append(asked, np.zeros(more, np.int64)),
                "targets": np.append(targets[asked], np.full(more, -100))}

    def config_dict(self):
        """The configuration as a dictionary, for a checkpoint."""
        return {"model_type": "bert", **dataclasses.asdict(self.config)}


class FineTuned(Module, Pretrained):
    """What the models for other tasks share. A trained trunk comes in by its names:

    model.load_state_dict(model.state_dict() | {n: a for n, a in bert.state_dict().items() if n.startswith("bert.")})
    """

    config_class = BERTConfig

    def loss(self, ids, targets, reduction="mean", attention_mask=None, token_type_ids=None):
        """Cross-entropy in nats: ids (B, T), targets as the logits but without the classes (-100: none) -> scalar"""
        logits = self(ids, attention_mask, token_type_ids)
        return F.cross_entropy(logits, np.asarray(targets), reduction=reduction)

    def config_dict(self):
        """The configuration as a dictionary, for a checkpoint."""
        return {"model_type": self.model_type, **dataclasses.asdict(self.config)}


class BERTForSequenceClassification(FineTuned):
    """One of num_labels classes for a whole text (or a pair of them): targets (B,)."""

    model_type = "bert-sequence-classification"

    def __init__(self, config):
        self.config = config
        self.bert = BERTModel(config)
        self.drop = Dropout(config.hidden_dropout_prob)
        self.classifier = Linear(config.hidden_size, config.num_labels)
        initialise(self, config)

    def forward(self, ids, attention_mask=None, token_type_ids=None):
        """ids (B, T) -> logits (B, num_labels)"""
        return self.classifier(self.drop(self.bert.pool(self.bert(ids, attention_mask, token_type_ids))))


class BERTForTokenClassification(FineTuned):
    """One of num_labels classes for each token, such as its part of speech: targets (B, T)."""

    model_type = "bert-token-classification"

    def __init__(self, config):
        self.config = config
        self.bert = BERTModel(config, pooler=False)
        self.drop = Dropout(config.hidden_dropout_prob)
        self.classifier = Linear(config.hidden_size, config.num_labels)
        initialise(self, config)

    def forward(self, ids, attention_mask=None, token_type_ids=None):
        """ids (B, T) -> logits (B, T, num_labels)"""
        return self.classifier(self.drop(self.bert(ids, attention_mask, token_type_ids)))


class BERTForQuestionAnswering(FineTuned):
    """Where in a text the answer stands: targets (B, 2), the positions of its first and its last token."""

    model_type = "bert-question-answering"

    def __init__(self, config):
        self.config = config
        self.bert = BERTModel(config, pooler=False)
        self.qa_outputs = Linear(config.hidden_size, 2)
        initialise(self, config)

    def forward(self, ids, attention_mask=None, token_type_ids=None):
        """ids (B, T) -> (B, 2, T): at each position the logits that the answer starts and that it ends there."""
        return self.qa_outputs(self.bert(ids, attention_mask, token_type_ids)).permute(0, 2, 1)
