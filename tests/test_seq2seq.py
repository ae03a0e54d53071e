"""Encoder-decoders and the layers of the first Transformer: equal to torch's, blind to padding and to the future."""
import math

import numpy as np
import pytest
import torch
from model_checks import check_random_directions, check_two_paths

import tinyllm
from tinyllm import checkpoint, optim, train
from tinyllm.models import transformer
from tinyllm.models.t5 import relative_buckets
from tinyllm.text import PairDataset

SHAPE = dict(vocab_size=23, d_model=16, nhead=2, dim_feedforward=24, num_encoder_layers=2, num_decoder_layers=2,
             dropout=0.0, label_smoothing=0.0)
T5_SHAPE = dict(vocab_size=23, d_model=16, d_kv=6, d_ff=24, num_layers=2, num_heads=2, dropout_rate=0.0,
                relative_attention_num_buckets=8, relative_attention_max_distance=12, initializer_factor=0.5)
KINDS = {
    "post-norm": lambda: tinyllm.Seq2Seq(tinyllm.Seq2SeqConfig(**SHAPE)),
    "pre-norm, two vocabularies": lambda: tinyllm.Seq2Seq(tinyllm.Seq2SeqConfig(
        **SHAPE, norm_first=True, target_vocab_size=23, activation="gelu", tie_word_embeddings=False)),
    "T5": lambda: tinyllm.T5(tinyllm.T5Config(**T5_SHAPE)),
    "T5 v1.1": lambda: tinyllm.T5(tinyllm.T5Config(**T5_SHAPE, feed_forward_proj="gated-gelu",
                                                   tie_word_embeddings=False)),
}
SOURCE = np.array([[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 0, 0], [9, 8, 0, 0, 0, 0]])
TARGETS = np.array([[7, 6, 5, 4, 2], [5, 5, 2, -100, -100], [9, 8, 7, 2, -100]])


def make(kind, dtype=None, where="numpy"):
    tinyllm.manual_seed(4)
    return KINDS[kind]().to(where, dtype)


@pytest.fixture(params=list(KINDS))
def kind(request):
    return request.param


def test_padding_changes_nothing(kind):
    model = make(kind, np.float64)
    whole = model.loss(SOURCE, TARGETS, reduction="none").numpy()
    for row, (source, targets) in enumerate(zip(SOURCE, TARGETS)):
        source, targets = source[source != 0][None], targets[targets != -100][None]
        alone = model.loss(source, targets, reduction="none").numpy()[0]
        np.testing.assert_allclose(whole[row, :targets.size], alone, rtol=1e-10)
        assert (whole[row, targets.size:] == 0).all()


def test_the_decoder_does_not_see_the_future_and_sees_all_of_the_source(kind):
    model, decoder_input = make(kind, np.float64), np.array([[1, 5, 6, 7, 8]])
    before = model(SOURCE[:1], decoder_input).numpy()
    changed = decoder_input.copy()
    changed[0, 3] = 12
    after = model(SOURCE[:1], changed).numpy()
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert (before[:, 3:] != after[:, 3:]).any(-1).all()
    for i in range(SOURCE.shape[1]):
        source = SOURCE[:1].copy()
        source[0, i] = 20
        assert (model(source, decoder_input).numpy() != before).any(-1).all()


def test_a_permutation_of_the_batch_permutes_the_output(kind):
    model, order = make(kind, np.float64), [2, 0, 1]
    losses = model.loss(SOURCE, TARGETS, reduction="none").numpy()
    np.testing.assert_allclose(model.loss(SOURCE[order], TARGETS[order], reduction="none").numpy(), losses[order],
                               rtol=1e-10)


def test_gradients_by_random_directions(kind):
    model = make(kind, np.float64)
    check_random_directions(model, lambda: model.loss(SOURCE, TARGETS))


def test_with_a_cache_or_without_the_same_tokens_come(kind):
    """float64: no two tokens are so close that the order of sums decides."""
    model = make(kind, np.float64)
    cached, again = (tinyllm.generate(model, SOURCE, 8, temperature=0, use_cache=cache) for cache in (True, False))
    np.testing.assert_array_equal(cached, again)
    for row, source in enumerate(SOURCE):
        alone = tinyllm.generate(model, source[source != 0], 8, temperature=0)[0]
        assert cached[row, :len(alone)].tolist() == alone.tolist()


def test_it_learns_by_heart(kind):
    """Twenty texts and their reverses: after two hundred steps it writes them without a mistake, ends included."""
    rng = np.random.default_rng(0)
    texts = [rng.integers(3, 13, rng.integers(2, 6)).tolist() for _ in range(20)]
    model = make(kind)
    data = PairDataset([(t, t[::-1]) for t in texts], eos_token_id=model.config.eos_token_id)
    step = train.training_step(model, optim.AdamW(model.parameters()), train.TrainConfig())
    (batch,) = data.windows(20)
    losses = [float(step([batch], 1e-2)[0][0]) for _ in range(200)]
    written = tinyllm.generate(model, batch[0], batch[1].shape[1], temperature=0)[:, 1:]
    assert losses[0] > 2 and losses[-1] < 0.1, losses[-1]
    assert (written == batch[1])[batch[1] != -100].all()


def test_both_paths_agree_in_the_loss_and_in_every_gradient(kind):
    pytest.importorskip("triton", reason="the Triton path needs triton, which exists for Linux only")
    check_two_paths(lambda where, dtype: make(kind, dtype, where), [(SOURCE, TARGETS)])


def test_a_checkpoint_brings_it_back(kind, tmp_path):
    model = make(kind)
    checkpoint.save(tmp_path / "checkpoint-000001", model, optim.AdamW(model.parameters()), {"step": 1})
    again, _ = checkpoint.load_model(tmp_path)
    np.testing.assert_array_equal(again(SOURCE, TARGETS.clip(0)).numpy(), model(SOURCE, TARGETS.clip(0)).numpy())


# The layers are torch's

@pytest.mark.parametrize("norm_first, activation", [(False, "relu"), (True, "gelu")])
def test_layers_equal_torchs_with_its_weights(norm_first, activation):
    """Forward and every gradient, through padding and the causal mask; names and shapes are the same."""
    config = transformer.LayerConfig(d_model=16, nhead=2, dim_feedforward=24, dropout=0.0, activation=activation,
                                     norm_first=norm_first)
    options = dict(d_model=16, nhead=2, dim_feedforward=24, dropout=0.0, activation=activation, batch_first=True,
                   norm_first=norm_first, dtype=torch.float64)
    torch.manual_seed(0)
    theirs = torch.nn.TransformerEncoderLayer(**options), torch.nn.TransformerDecoderLayer(**options)
    ours = transformer.EncoderLayer(config), transformer.DecoderLayer(config)
    for mine, other in zip(ours, theirs):
        mine.to("numpy", np.float64).load_state_dict({k: v.detach().numpy() for k, v in other.state_dict().items()})
    x, memory, dout = (np.random.default_rng(i).standard_normal(shape) for i, shape in
                       enumerate([(2, 5, 16), (2, 7, 16), (2, 5, 16)]))
    ends = np.array([7, 4])
    hidden = torch.arange(7)[None] >= torch.from_numpy(ends)[:, None]
    a = theirs[0](torch.from_numpy(memory), src_key_padding_mask=hidden)
    b = theirs[1](torch.from_numpy(x), a, tgt_mask=torch.nn.Transformer.generate_square_subsequent_mask(
        5, dtype=torch.float64), memory_key_padding_mask=hidden)
    (b * torch.from_numpy(dout)).sum().backward()
    encoded = ours[0](tinyllm.Tensor(memory), ends)
    out = ours[1](tinyllm.Tensor(x), *ours[1].multihead_attn.keys_and_values(encoded), ends)
    (out * tinyllm.Tensor(dout)).sum().backward()
    np.testing.assert_allclose(out.numpy(), b.detach().numpy(), atol=1e-10)
    for mine, other in zip(ours, theirs):
        for name, p in other.named_parameters():
            np.testing.assert_allclose(dict(mine.named_parameters())[name].grad, p.grad.numpy(), atol=1e-10,
                                       err_msg=name)


def transformer_lm(causal):
    tinyllm.manual_seed(4)
    return tinyllm.TransformerLM(tinyllm.TransformerLMConfig(
        vocab_size=23, d_model=16, nhead=2, dim_feedforward=24, num_layers=3, dropout=0.0, causal=causal))


@pytest.mark.parametrize("causal", [True, False])
def test_a_transformer_lm_is_torchs_transformer_encoder(causal):
    """Three layers and the last norm, with a causal or a key-padding mask: the loss, and every gradient."""
    ours, ids = transformer_lm(causal).to("numpy", np.float64), SOURCE
    targets = np.where(ids == 0, -100, (ids * 7 + 1) % 23)
    layer = torch.nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0, batch_first=True, dtype=torch.float64)
    theirs = torch.nn.TransformerEncoder(layer, 3, torch.nn.LayerNorm(16, dtype=torch.float64),
                                         enable_nested_tensor=False)
    weights = {name: torch.from_numpy(array) for name, array in ours.state_dict().items()}
    theirs.load_state_dict({name.removeprefix("encoder."): array for name, array in weights.items()
                            if name.startswith("encoder.")})
    table = weights["embedding.weight"].requires_grad_()
    x = table[torch.from_numpy(ids)] * 4 + torch.from_numpy(transformer.sinusoids(ids.shape[1], 16))
    mask = torch.nn.Transformer.generate_square_subsequent_mask(ids.shape[1], dtype=torch.float64)
    x = theirs(x, mask=mask, is_causal=True) if causal else theirs(x, src_key_padding_mask=torch.from_numpy(ids == 0))
    loss = torch.nn.functional.cross_entropy((x @ table.T).flatten(0, 1), torch.from_numpy(targets).flatten())
    loss.backward()
    mine = ours.loss(ids, targets)
    mine.backward()
    assert mine.item() == pytest.approx(loss.item(), rel=1e-12)
    gradients = {"embedding.weight": table.grad} | {f"encoder.{n}": p.grad for n, p in theirs.named_parameters()}
    assert set(gradients) == set(ours.state_dict())
    for name, p in ours.named_parameters():
        np.testing.assert_allclose(p.grad, gradients[name].numpy(), atol=1e-10, err_msg=name)


@pytest.mark.parametrize("causal", [True, False])
def test_a_transformer_lm_is_the_same_on_both_paths_and_has_the_slopes_of_finite_differences(causal):
    targets = np.where(SOURCE == 0, -100, (SOURCE * 7 + 1) % 23)
    model = transformer_lm(causal).to("numpy", np.float64)
    check_random_directions(model, lambda: model.loss(SOURCE, targets))
    check_two_paths(lambda where, dtype: transformer_lm(causal).to(where, dtype), [(SOURCE, targets)])


@pytest.mark.parametrize("projection, tied", [("relu", True), ("gated-gelu", False)])
def test_t5_is_that_of_transformers(projection, tied):
    """Names, the loss, logits through padding, and every gradient."""
    transformers = pytest.importorskip("transformers", reason="the reference: pip install transformers")
    settings = {**T5_SHAPE, "feed_forward_proj": projection, "tie_word_embeddings": tied}
    torch.manual_seed(0)
    config = transformers.T5Config(**settings, decoder_start_token_id=0)
    theirs = transformers.T5ForConditionalGeneration(config)
    if not tied:                # the constructor ties them in any case, and remembers the flag for the scale only
        theirs.lm_head.weight = torch.nn.Parameter(torch.randn(23, 16))
    theirs = theirs.double().train()
    ours = tinyllm.T5(tinyllm.T5Config(**settings, eos_token_id=1)).to("numpy", np.float64)
    weights = {name: p.detach().numpy() for name, p in theirs.named_parameters()}
    ours.load_state_dict({name: weights[name] for name, _ in ours.named_parameters()})
    reference = theirs(input_ids=torch.from_numpy(SOURCE), attention_mask=torch.from_numpy(SOURCE != 0).long(),
                       labels=torch.from_numpy(TARGETS))
    loss = ours.loss(SOURCE, TARGETS)
    assert loss.item() == pytest.approx(reference.loss.item(), rel=1e-6)       # the library's softmax may be float32
    reference.loss.backward()
    loss.backward()
    gradients = dict(theirs.named_parameters())
    for name, p in ours.named_parameters():
        np.testing.assert_allclose(p.grad, gradients[name].grad.numpy(), rtol=1e-4, atol=1e-6, err_msg=name)


def test_labels_are_smoothed_as_torch_does_and_only_while_training():
    tinyllm.manual_seed(4)
    model = tinyllm.Seq2Seq(tinyllm.Seq2SeqConfig(**{**SHAPE, "label_smoothing": 0.1})).to("numpy", np.float64)
    logits = torch.from_numpy(model(SOURCE, np.array([[1, 7, 6, 5, 4], [1, 5, 5, 2, 0], [1, 9, 8, 7, 2]])).numpy())
    for smoothing, mode in ((0.1, True), (0.0, False)):
        expected = torch.nn.functional.cross_entropy(logits.reshape(-1, 23), torch.from_numpy(TARGETS).reshape(-1),
                                                     label_smoothing=smoothing)
        assert model.train(mode).loss(SOURCE, TARGETS).item() == pytest.approx(float(expected), rel=1e-10)


def test_sinusoids_are_the_papers():
    table = transformer.sinusoids(5, 6)
    for position in range(5):
        for i in range(3):
            angle = position / 10000 ** (2 * i / 6)
            assert table[position, 2 * i] == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[position, 2 * i + 1] == pytest.approx(math.cos(angle), abs=1e-6)


def test_relative_buckets_by_hand():
    """Distances of half the buckets have one each; beyond, a bucket covers ever more, and the last one all the rest."""
    assert relative_buckets(-np.arange(6), False, 8, 16).tolist() == [0, 1, 2, 3, 4, 4]
    assert relative_buckets(-np.array([8, 15, 16, 1000]), False, 8, 16).tolist() == [6, 7, 7, 7]
    both = relative_buckets(np.array([-3, 0, 3]), True, 8, 16)
    assert both[1] == 0 and both[2] == both[0] + 4


def test_a_transformer_lm_predicts_without_seeing_the_future():
    tinyllm.manual_seed(4)
    config = tinyllm.TransformerLMConfig(vocab_size=23, d_model=16, nhead=2, dim_feedforward=24, num_layers=2,
                                         dropout=0.0, pad_token_id=None)
    model, ids = tinyllm.TransformerLM(config).to("numpy", np.float64), SOURCE[:1].copy()
    before = model(ids).numpy()
    ids[0, 3] = 1
    assert (model(ids).numpy()[:, :3] == before[:, :3]).all() and (model(ids).numpy()[:, 3:] != before[:, 3:]).any()
    cached, again = (tinyllm.generate(model, ids, 6, temperature=0, use_cache=cache) for cache in (True, False))
    np.testing.assert_array_equal(cached, again)


# Pairs

def test_pairs_are_filled_up_and_fingerprinted():
    pairs = [([5, 6, 7], [8, 9]), ([5], [6, 7, 8])]
    data = PairDataset(pairs)
    (source, targets), = data.windows(2)
    assert source.tolist() == [[5, 6, 7], [5, 0, 0]] and targets.tolist() == [[8, 9, 2, -100], [6, 7, 8, 2]]
    assert data.fingerprint() == PairDataset(pairs).fingerprint() != PairDataset(pairs[::-1]).fingerprint()
    assert len(data) == 2 and data.batch(5, np.random.default_rng(0))[0].shape[0] == 5


@pytest.mark.parametrize("pairs, message", [
    ([], "there are none"), ([([], [1])], "the source of number 0 is empty"), ([([5, 0], [1])], "ends with 0")])
def test_pairs_that_make_no_sense_are_refused(pairs, message):
    with pytest.raises(ValueError, match=message):
        PairDataset(pairs)
