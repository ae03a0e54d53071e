"""BERT against torch and transformers, and what makes it one: every position sees the whole text, and no padding."""

import dataclasses

import numpy as np
import pytest
import torch
from model_checks import check_random_directions, check_two_paths
from strategies import integers, normal

from tinyllm import BERT, BERTConfig, Tensor, checkpoint, manual_seed, optim
from tinyllm import functional as F
from tinyllm.models import MODELS, BERTModel
from tinyllm.models import BERTForQuestionAnswering as QuestionAnswering
from tinyllm.models import BERTForSequenceClassification as SequenceClassification
from tinyllm.models import BERTForTokenClassification as TokenClassification

ALL = [BERT, SequenceClassification, TokenClassification, QuestionAnswering]
NO_DROPOUT = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
IDS = integers(13, 3, 7, low=1)                         # 0 is padding
TARGETS = {     # for each head: right, wrong, nothing to tell
    BERT: np.where(integers(2, 3, 7, seed=1) == 1, integers(13, 3, 7, seed=2), -100),
    SequenceClassification: np.array([0, 2, -100]),
    TokenClassification: np.where(integers(4, 3, 7, seed=3) > 0, integers(3, 3, 7, seed=4), -100),
    QuestionAnswering: np.array([[1, 2], [0, 6], [3, -100]]),
}


def config(**changes):
    sizes = dict(vocab_size=13, hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=20,
                 max_position_embeddings=8, num_labels=3)
    return BERTConfig(**{**sizes, **NO_DROPOUT, **changes})


def moved(kind=BERT, dtype=np.float64, **changes):
    """A model in float64 whose parameters are all far from where they start."""
    manual_seed(1)
    model = kind(config(**changes)).to("numpy", dtype)
    for i, p in enumerate(model.parameters()):
        p.data = (p.data + 0.3 * normal(*p.shape, seed=i)).astype(dtype)
    return model


# Against torch and transformers

def test_layer_is_torchs_post_norm_layer():
    """Output and every gradient of TransformerEncoderLayer, with padded rows."""
    layer = moved(BERTModel).encoder["layer"][0]
    twin = torch.nn.TransformerEncoderLayer(12, 3, 20, dropout=0.0, activation="gelu", layer_norm_eps=1e-12,
                                            batch_first=True, norm_first=False).double()
    w = {name: torch.tensor(array) for name, array in layer.state_dict().items()}
    for kind in ("weight", "bias"):
        packed = [w.pop(f"attention.self.{name}.{kind}") for name in ("query", "key", "value")]
        w["self_attn.in_proj_" + kind] = torch.cat(packed)
    names = {"attention.output.dense": "self_attn.out_proj", "attention.output.LayerNorm": "norm1",
             "intermediate.dense": "linear1", "output.dense": "linear2", "output.LayerNorm": "norm2"}
    rename = lambda name: next((names[old] + name.removeprefix(old) for old in names if name.startswith(old)), name)
    twin.load_state_dict({rename(name): array for name, array in w.items()})

    x, ends = normal(2, 5, 12), np.array([5, 3])
    seen = np.arange(5) < ends[:, None]
    upstream = normal(2, 5, 12, seed=1) * seen[:, :, None]      # torch and we may differ in the padding
    ours, theirs = Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    out, expected = layer(ours, ends), twin(theirs, src_key_padding_mask=~torch.tensor(seen))
    np.testing.assert_allclose(out.numpy()[seen], expected.detach().numpy()[seen], atol=1e-12)
    (out * upstream).sum().backward()
    (expected * torch.tensor(upstream)).sum().backward()
    np.testing.assert_allclose(ours.grad, theirs.grad, atol=1e-12)
    grads = {name: p.grad for name, p in twin.named_parameters()}
    for kind in ("weight", "bias"):
        parts = grads["self_attn.in_proj_" + kind].chunk(3)
        grads |= {f"attention.self.{name}.{kind}": g for name, g in zip(("query", "key", "value"), parts)}
    for name, p in layer.named_parameters():
        np.testing.assert_allclose(p.grad, grads.get(rename(name), grads.get(name)), atol=1e-12, err_msg=name)


@pytest.mark.parametrize("kind, name", [
    (BERTModel, "BertModel"), (BERT, "BertForMaskedLM"), (SequenceClassification, "BertForSequenceClassification"),
    (TokenClassification, "BertForTokenClassification"), (QuestionAnswering, "BertForQuestionAnswering")])
@pytest.mark.parametrize("act", ["gelu", "gelu_new", "relu"])
def test_names_and_outputs_are_those_of_transformers(kind, name, act):
    transformers = pytest.importorskip("transformers")
    model = moved(kind, hidden_act=act, num_labels=2)         # of questions, transformers wants 2
    theirs = getattr(transformers, name)(transformers.BertConfig(**dataclasses.asdict(model.config))).double().eval()
    tied = {"cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
            "cls.predictions.decoder.bias": "cls.predictions.bias"}
    state = model.state_dict()
    assert set(theirs.state_dict()) - set(tied) == set(state)
    state |= {new: state[old] for new, old in tied.items() if kind is BERT}
    theirs.load_state_dict({name: torch.tensor(array) for name, array in state.items()})
    ids, types = IDS.copy(), integers(2, 3, 7)
    ids[1, 4:] = 0
    expected = theirs(torch.tensor(ids), attention_mask=torch.tensor(ids != 0), token_type_ids=torch.tensor(types))
    out = model(ids, None, types)
    if kind is BERTModel:
        expected = {"hidden": expected.last_hidden_state, "pooled": expected.pooler_output}
        found = {"hidden": out.numpy(), "pooled": model.pool(out).numpy()}
    elif kind is QuestionAnswering:
        expected = {"start": expected.start_logits, "end": expected.end_logits}
        found = {"start": out.numpy()[:, 0], "end": out.numpy()[:, 1]}
    else:
        expected, found = {"logits": expected.logits}, {"logits": out.numpy()}
    for key, array in found.items():
        theirs_now = expected[key].detach().numpy()
        if array.shape[:2] == ids.shape:                        # what stands at padding means nothing
            array, theirs_now = array[ids != 0], theirs_now[ids != 0]
        np.testing.assert_allclose(array, theirs_now, rtol=0, atol=1e-4, err_msg=key)


LAYER_NAMES = ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
               "attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm"]
HEADS = {BERT: ["cls.predictions.bias", "cls.predictions.transform.dense.weight",
                "cls.predictions.transform.dense.bias", "cls.predictions.transform.LayerNorm.weight",
                "cls.predictions.transform.LayerNorm.bias"],
         SequenceClassification: ["bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight",
                                  "classifier.bias"],
         TokenClassification: ["classifier.weight", "classifier.bias"],
         QuestionAnswering: ["qa_outputs.weight", "qa_outputs.bias"]}


@pytest.mark.parametrize("kind", ALL)
def test_names_are_those_of_the_published_files(kind):
    tables = [f"bert.embeddings.{name}_embeddings.weight" for name in ("word", "position", "token_type")]
    vectors = [f"bert.embeddings.LayerNorm.{end}" for end in ("weight", "bias")]
    layers = [f"bert.encoder.layer.{i}.{name}.{end}" for i in range(2) for name in LAYER_NAMES
              for end in ("weight", "bias")]
    assert list(kind(config()).state_dict()) == tables + vectors + layers + HEADS[kind]


# What it sees

def padded(ids, how_many, with_what=0):
    return np.concatenate([ids, np.full((len(ids), how_many), with_what)], axis=1)


@pytest.mark.parametrize("kind", ALL)
def test_padding_changes_nothing(kind):
    """Told by the padding's id, or by a mask, whatever stands there then; alone, or beside a longer text."""
    model, ids, types = moved(kind), IDS[:, :5], integers(2, 3, 7)
    mask = padded(np.ones_like(ids), 2)
    alone = model(ids, None, types[:, :5]).numpy()
    longer = [model(padded(ids, 2), None, types), model(padded(ids, 2, 9), mask, types),
              model(np.concatenate([padded(ids, 2), IDS]), None, np.concatenate([types, types]))]
    for found in longer:
        found = found.numpy()[:3]
        cut = {3: found[:, :5], 2: found}[found.ndim] if kind is not QuestionAnswering else found[:, :, :5]
        np.testing.assert_allclose(cut, alone, rtol=0, atol=1e-12)


def test_padding_changes_neither_loss_nor_gradient():
    results = []
    for ids, targets in ((IDS, TARGETS[BERT]), (padded(IDS, 1), padded(TARGETS[BERT], 1, -100))):
        model = moved()
        loss = model.loss(ids, targets)
        loss.backward()
        results.append([loss.numpy(), *(p.grad for p in model.parameters())])
    for a, b in zip(*results):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


def test_every_token_sees_every_token():
    model = moved()
    before = model(IDS).numpy()
    for t in range(7):
        changed = IDS.copy()
        changed[:, t] = changed[:, t] % 12 + 1
        assert (model(changed).numpy() != before).any(axis=-1).all()


@pytest.mark.parametrize("kind", ALL)
def test_rows_of_a_batch_do_not_see_each_other(kind):
    model, order = moved(kind), [2, 0, 1]
    np.testing.assert_allclose(model(IDS[order]).numpy(), model(IDS).numpy()[order], rtol=0, atol=1e-12)


def test_a_text_of_padding_alone_stays_finite():
    assert np.isfinite(moved()(np.zeros((2, 4), int)).numpy()).all()


def test_segments_and_positions_matter():
    model = moved()
    assert not np.allclose(model(IDS).numpy(), model(IDS, None, np.ones_like(IDS)).numpy())
    assert not np.allclose(model(IDS).numpy()[:, ::-1], model(IDS[:, ::-1]).numpy())
    np.testing.assert_array_equal(model(IDS).numpy(), model(IDS.tolist(), None, np.zeros_like(IDS)).numpy())


# Losses and gradients

@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_loss_is_the_cross_entropy_of_the_logits(kind, reduction):
    model = moved(kind)
    expected = F.cross_entropy(model(IDS), TARGETS[kind], reduction=reduction).numpy()
    np.testing.assert_allclose(model.loss(IDS, TARGETS[kind], reduction).numpy(), expected, rtol=1e-12)


def test_the_loss_takes_masks_and_segments():
    model, types = moved(), integers(2, 3, 7)
    mask = np.arange(7) < np.array([[7], [4], [6]])
    expected = F.cross_entropy(model(IDS, mask, types), TARGETS[BERT])
    found = model.loss(IDS, TARGETS[BERT], attention_mask=mask, token_type_ids=types)
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-12)


def test_nothing_hidden_is_nothing_lost():
    model = moved()
    loss = model.loss(IDS, np.full_like(IDS, -100))
    loss.backward()
    assert loss.item() == 0 and all(p.grad is None or not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("kind", ALL)
def test_gradients_with_dropout_by_random_directions(kind):
    model, ids = moved(kind, hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2), padded(IDS[:, :5], 2)
    ids[0] = IDS[0]
    check_random_directions(model, lambda: model.loss(ids, TARGETS[kind]))


def test_dropout_ends_with_training():
    model = moved(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    losses = lambda: [model.loss(IDS, TARGETS[BERT]).item() for _ in range(2)]
    first, second = losses()
    assert first != second
    model.eval()
    first, second = losses()
    assert first == second


@pytest.mark.parametrize("kind", ALL)
def test_both_paths_agree_in_the_loss_and_in_every_gradient(kind):
    """A training step with dropout and padding."""
    pytest.importorskip("triton", reason="the Triton path needs triton, which exists for Linux only")
    ids = IDS.copy()
    ids[1, 4:] = 0
    targets = np.where(ids == 0, -100, TARGETS[kind]) if TARGETS[kind].shape == ids.shape else TARGETS[kind]
    changes = dict(num_hidden_layers=1, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    check_two_paths(lambda where, dtype: moved(kind, np.float32, **changes).to(where, dtype), [(ids, targets)])


# The model as a whole

def test_it_learns_what_was_hidden():
    """Counting in a circle from anywhere: the neighbours on either side tell each number."""
    manual_seed(0)
    model = BERT(config(hidden_size=24, num_hidden_layers=1, initializer_range=0.1))
    optimizer, rng = optim.AdamW(model.parameters(), 3e-3), np.random.default_rng(0)

    def questions():
        ids = (rng.integers(0, 10, (32, 1)) + np.arange(8)) % 10 + 2
        hidden = rng.random(ids.shape) < 0.2
        return np.where(hidden, 1, ids), np.where(hidden, ids, -100)

    for _ in range(300):
        model.loss(*questions()).backward()
        optimizer.step()
        optimizer.zero_grad()
    ids, targets = questions()
    right = model(ids).numpy().argmax(-1) == targets
    assert right[targets != -100].mean() > 0.9


def test_it_starts_undecided_with_the_published_spread():
    manual_seed(3)
    model = BERT(config(vocab_size=300, hidden_size=96, intermediate_size=384))
    for name, p in model.named_parameters():
        if p.ndim == 2:
            assert abs(p.data.std() / 0.02 - 1) < 0.1 and abs(p.data.mean()) < 4 * 0.02 / p.data.size**0.5, name
        else:
            assert (p.data == (0 if name.endswith("bias") else 1)).all(), name
    assert abs(model.loss(integers(300, 4, 8), integers(300, 4, 8, seed=1)).item() - np.log(300)) < 0.1


def parameters(c):
    """How many a trunk with pooler has, by hand."""
    C, I = c.hidden_size, c.intermediate_size
    layer = 4 * (C * C + C) + (C * I + I) + (I * C + C) + 2 * 2 * C
    tables = c.vocab_size + c.max_position_embeddings + c.type_vocab_size
    return tables * C + 2 * C + c.num_hidden_layers * layer + C * C + C


def test_parameters_counted_by_hand():
    assert BERTModel(config()).num_parameters() == parameters(config())
    assert BERTModel(config(), pooler=False).num_parameters() == parameters(config()) - 12 * 12 - 12
    published = {"base": 109_482_240, "large": 335_141_888, "tiny": 4_385_920, "mini": 11_170_560}
    assert {name: parameters(BERTConfig.preset(name)) for name in published} == published


@pytest.mark.parametrize("kind", ALL)
def test_a_checkpoint_brings_it_back(kind, tmp_path):
    model = moved(kind, np.float32)
    assert MODELS[model.config_dict()["model_type"]] == (kind, BERTConfig)
    checkpoint.save(tmp_path / "checkpoint-000001", model, optim.AdamW(model.parameters(), 1e-3), {"step": 1})
    again, tokenizer = checkpoint.load_model(tmp_path)
    assert type(again) is kind and again.config == model.config and tokenizer is None
    np.testing.assert_array_equal(again(IDS).numpy(), model(IDS).numpy())


def test_a_trained_trunk_moves_into_another_model():
    bert, model = moved(dtype=np.float32), TokenClassification(config())
    model.load_state_dict(model.state_dict() | {n: a for n, a in bert.state_dict().items() if n.startswith("bert.")})
    np.testing.assert_array_equal(model.bert(IDS).numpy(), bert.bert(IDS).numpy())


@pytest.mark.parametrize("changes, message", [
    ({"hidden_size": 10}, "hidden_size is 10; it should be a multiple of num_attention_heads=3"),
    ({"num_hidden_layers": 0}, "num_hidden_layers is 0; it should be a whole number, at least 1"),
    ({"pad_token_id": -1}, "pad_token_id is -1; it should be a whole number, at least 0"),
    ({"hidden_dropout_prob": 1.0}, "hidden_dropout_prob is 1.0; it should be a probability"),
    ({"hidden_act": "swish"}, "hidden_act is 'swish'; it should be one of gelu, gelu_new, relu"),
])
def test_wrong_options_are_explained(changes, message):
    with pytest.raises(ValueError, match="BERTConfig: " + message):
        config(**changes)


def test_wrong_inputs_are_explained():
    model = BERT(config())
    with pytest.raises(ValueError, match='there is no preset "huge"; choose one of tiny'):
        BERTConfig.preset("huge")
    with pytest.raises(ValueError, match="9 tokens are more than its max_position_embeddings=8"):
        model(np.ones((1, 9), int))
    with pytest.raises(ValueError, match=r"\(batch, time\), not \(2,\).*ids\[None\]"):
        model(np.ones(2, int))
    with pytest.raises(IndexError, match="token id 13 .* outside the vocabulary of 13"):
        model([[1, 13]])
    with pytest.raises(ValueError, match="a 0 in front of a 1; padding must stand on the right"):
        model(IDS, np.arange(7) >= np.zeros((3, 1)) + 2)
    with pytest.raises(ValueError, match=r"attention_mask is \(3, 6\) and ids are \(3, 7\)"):
        model(IDS, np.ones((3, 6)))
    with pytest.raises(ValueError, match=r"targets are \(3, 6\) and ids are \(3, 7\)"):
        model.loss(IDS, TARGETS[BERT][:, 1:])
    with pytest.raises(IndexError, match="cross_entropy: token id 20"):
        model.loss(IDS, np.full_like(IDS, 20))
