"""Recorded steps (kernels/graph.py). Without a GPU they run again each time, on the same buffers and by the same rules.
"""
import numpy as np
import pytest

pytest.importorskip("torch", reason="the kernels' arrays are torch tensors: pip install tinyllm[triton]")
pytest.importorskip("triton", reason="Triton exists for Linux only: pip install tinyllm[triton]")

import tinyllm  # noqa: E402
from tinyllm import Tensor, kernels, nn, optim, text, train  # noqa: E402
from tinyllm import functional as F  # noqa: E402
from tinyllm.kernels import runtime  # noqa: E402


def on_device(array):
    return Tensor._of(array)


def test_new_numbers_flow_in_and_results_stay_where_they_are():
    step = kernels.capture(lambda x, more: [(on_device(x) * 2.0 + on_device(more["y"])).data])
    results = []
    for i in range(4):
        x, y = np.full((2, 3), i, np.float32), np.full(3, 10 * i, np.float32)
        (out,) = step(x, {"y": y})
        results.append(out)
        np.testing.assert_array_equal(runtime.to_numpy(out), 2 * x + y)
    assert runtime.INTERPRETED or results[2] is results[3]      # a graph's results have one place


def test_other_shapes_are_other_recordings():
    step = kernels.capture(lambda x: on_device(x).sum().data)
    for n in (3, 5, 3, 5, 3, 5):
        assert float(step(np.ones(n, np.float32))) == n
    assert len(step.recordings) == 2


def test_device_arrays_are_arguments_too():
    step, x = kernels.capture(lambda x: (on_device(x) + 1.0).data), runtime.from_numpy(np.zeros(4, np.float32))
    for i in range(1, 4):
        x = runtime.copy(step(x))
        np.testing.assert_array_equal(runtime.to_numpy(x), np.full(4, i))
    read_only = np.broadcast_to(np.float32(7), 4)               # after a device array, one of the host's
    np.testing.assert_array_equal(runtime.to_numpy(step(read_only)), np.full(4, 8))


def test_none_is_no_array_and_a_number_is_refused():
    step = kernels.capture(lambda x, nothing: (on_device(x) * 3.0).data)
    assert float(step(np.array([2.0], np.float32), None)) == 6
    with pytest.raises(TypeError, match="takes arrays, not a int: a number would stay what it was"):
        step(np.array([2.0], np.float32), 5)


def test_constants_are_made_once_and_new_ones_are_refused():
    """Positions are the same in each step; what the host computes from a counter would be frozen."""
    counter = [0]

    def constant(x):
        return (on_device(x) + np.arange(3, dtype=np.float32)).data

    def frozen(x):
        counter[0] += 1
        return (on_device(x) + np.full(3, counter[0], np.float32)).data

    step = kernels.capture(constant)
    for _ in range(3):
        np.testing.assert_array_equal(runtime.to_numpy(step(np.zeros(3, np.float32))), [0, 1, 2])
    step = kernels.capture(frozen)
    step(np.zeros(3, np.float32))
    with pytest.raises(RuntimeError, match=r"makes an array \(3,\) of float32 .* must be an argument of it"):
        step(np.zeros(3, np.float32))


def test_reading_numbers_inside_is_refused():
    step = kernels.capture(lambda x: on_device(x) * on_device(x).sum().item())
    with pytest.raises(RuntimeError, match="cannot read numbers back .* capture=False"):
        step(np.ones(3, np.float32))
    assert float(on_device(runtime.from_numpy(np.ones(3, np.float32))).sum().item()) == 3, "the rule ends with the step"


# Training: every model, recorded and not

LAYERS = dict(vocab_size=11, d_model=16, nhead=2, dim_feedforward=32, n_positions=8, dropout=0.1)
BERT = dict(vocab_size=11, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=8)


def next_tokens(rng):
    ids = rng.integers(1, 11, (3, 9))
    return ids[:, :8], ids[:, 1:]


def padded(rng, low=3):
    """Rows of other lengths in each batch, filled up with 0."""
    ids = rng.integers(3, 11, (3, 8))
    ids[np.arange(8) >= rng.integers(low, 9, (3, 1))] = 0
    return ids


def pairs(rng):
    target = padded(rng)
    return padded(rng), np.where(target == 0, -100, target)


def hidden_tokens(rng):
    ids = padded(rng)
    asked = (rng.random(ids.shape) < 0.3) & (ids != 0)
    return ids, np.where(asked, ids, -100)


MODELS = {
    "GPT": (lambda: tinyllm.GPT(tinyllm.GPTConfig(11, n_positions=8, n_embd=16, n_layer=1, n_head=2)), next_tokens),
    "Llama": (lambda: tinyllm.GPT(tinyllm.GPTConfig.preset("llama-tiny", vocab_size=11, n_positions=8, n_embd=16,
                                                           n_layer=1, n_inner=32)), next_tokens),
    "LSTM": (lambda: tinyllm.LSTMLM(tinyllm.RNNConfig.preset("nano", vocab_size=11, dropout=0.1)), next_tokens),
    "causal": (lambda: tinyllm.TransformerLM(tinyllm.TransformerLMConfig(**LAYERS, num_layers=1)), next_tokens),
    "encoder": (lambda: tinyllm.TransformerLM(tinyllm.TransformerLMConfig(**LAYERS, num_layers=1, causal=False,
                                                                          pad_token_id=0)),
                lambda rng: (padded(rng),) * 2),
    "Seq2Seq": (lambda: tinyllm.Seq2Seq(tinyllm.Seq2SeqConfig(**LAYERS, num_encoder_layers=1, num_decoder_layers=1)),
                pairs),
    "T5": (lambda: tinyllm.T5(tinyllm.T5Config(vocab_size=11, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)),
           pairs),
    "BERT": (lambda: tinyllm.BERT(tinyllm.BERTConfig(**BERT)), hidden_tokens),
}


def losses(make, draw, capture, steps=2):
    """Each step's losses, of two batches, and gradient norm; then a summed loss that evaluate() would use."""
    tinyllm.manual_seed(1)
    model, rng = make().to("triton"), np.random.default_rng(0)
    model.train()
    step = train.training_step(model, optim.AdamW(model.parameters(), eps=1e-4), train.TrainConfig(capture=capture))
    sum_of, results = train.summed_loss(model, capture), []
    for i in range(steps):
        tinyllm.random.next_step(i)
        parts, norm = step([draw(rng), draw(rng)], 1e-2 * (i + 1))
        results.append([*map(float, parts), float(norm)])
        with model.evaluating(), tinyllm.no_grad():
            results.append([float(sum_of(draw(rng)))])
    return np.concatenate(results)


@pytest.mark.parametrize("name", MODELS)
def test_a_recorded_training_is_the_other_one(name):
    np.testing.assert_allclose(losses(*MODELS[name], True), losses(*MODELS[name], False), rtol=2e-5)


def test_a_step_that_cannot_be_recorded_runs_as_ever(monkeypatch):
    """A model without prepare(), and anomaly mode, which looks at every number."""
    monkeypatch.setattr(kernels, "capture", lambda step: pytest.fail("recorded"))
    model = nn.Linear(3, 1).to("triton")
    model.loss = lambda x, y: F.linear(Tensor(x).to("triton"), model.weight, model.bias).sum()
    step = train.training_step(model, optim.SGD(model.parameters(), 0.1), train.TrainConfig())
    x = np.ones((2, 3), np.float32)
    assert float(step([(x, x)], 0.1)[0][0]) > float(step([(x, x)], 0.1)[0][0])


def test_anomaly_mode_sees_every_number_of_a_training_step():
    make, draw = MODELS["GPT"]
    model = make().to("triton")
    step = train.training_step(model, optim.SGD(model.parameters(), 0.1), train.TrainConfig())
    with tinyllm.detect_anomaly():
        step([draw(np.random.default_rng(0))], 0.1)


@pytest.mark.parametrize("name, place", [("GPT", 0), ("GPT", 1), ("Seq2Seq", 0), ("BERT", 1)])
def test_ids_are_checked_before_they_go_to_a_recorded_step(name, place):
    make, draw = MODELS[name]
    model, rng = make().to("triton"), np.random.default_rng(0)
    step = train.training_step(model, optim.SGD(model.parameters(), 0.1), train.TrainConfig())
    for _ in range(2):
        step([draw(rng)], 0.1)
    batch = [array.copy() for array in draw(rng)]
    batch[place][1, 2] = 11
    with pytest.raises(IndexError, match=r"token id 11 at position \(1, 2\) is outside the vocabulary of 11"):
        step([tuple(batch)], 0.1)


def test_weights_that_somebody_loads_reach_the_recording():
    make, draw = MODELS["GPT"]
    tinyllm.manual_seed(1)
    model, rng = make().to("triton"), np.random.default_rng(0)
    before, batch = model.state_dict(), draw(rng)
    step = train.training_step(model, optim.SGD(model.parameters(), 0.5), train.TrainConfig())
    runs = []
    for _ in range(2):
        model.load_state_dict(before)
        runs.append([])
        for i in range(3):
            tinyllm.random.next_step(i)                             # the same dropout
            runs[-1].append(float(step([batch], 0.5)[0][0]))
    assert runs[0][0] != runs[0][1] and runs[0] == runs[1]


def test_parameters_that_move_are_recorded_anew():
    """A summed_loss() that outlives its parameters' place in memory, as an optimizer gives them another."""
    make, draw = MODELS["GPT"]
    model, batch = make().to("triton").eval(), draw(np.random.default_rng(0))
    loss = train.summed_loss(model)
    with tinyllm.no_grad():
        before = [float(loss(batch)) for _ in range(2)]
        optim.SGD(model.parameters(), 0.1)
        for p in model.parameters():
            p.data = runtime.copy(p.data) * 2
        after = [float(loss(batch)) for _ in range(2)]
        assert before[0] == before[1] != after[0] == after[1]
        assert after[0] == float(train.summed_loss(model, capture=False)(batch))


def test_recordings_differ_by_nesting_and_keys_and_only_the_last_are_kept(monkeypatch):
    step = kernels.capture(lambda tree, more: (on_device(tree["a"]) - on_device(tree["b"])).data if more is None
                           else (on_device(more) * 10.0).data)
    x, y = (np.full(2, n, np.float32) for n in (5, 3))
    results = [step({"a": x, "b": y}, None), step({"b": x, "a": y}, None), step({"a": x}, y)]
    assert [float(r[0]) for r in results] == [2, -2, 30] and len(step.recordings) == 3
    from tinyllm.kernels import graph
    monkeypatch.setattr(graph, "KEPT", 2)
    for n in (3, 4, 5, 3):
        step({"a": np.ones(n, np.float32), "b": np.ones(n, np.float32)}, None)
    assert len(step.recordings) == 2


def test_every_step_has_its_own_dropout_and_the_next_draw_is_numpys():
    """Also without next_step(), and whether a step is recorded or not."""
    results = []
    for where in ("numpy", "triton"):
        tinyllm.manual_seed(1)
        config = tinyllm.GPTConfig(11, n_positions=8, n_embd=16, n_layer=1, n_head=2, embd_pdrop=0.5)
        model = tinyllm.GPT(config).to(where)
        step = train.training_step(model, optim.SGD(model.parameters(), 1e-9), train.TrainConfig())
        batch = MODELS["GPT"][1](np.random.default_rng(0))
        results.append([float(step([batch], 1e-9)[0][0]) for _ in range(3)] + [tinyllm.random.new_seed()])
    assert len(set(results[0][:3])) == 3 and results[0][3] == results[1][3]
    np.testing.assert_allclose(results[0][:3], results[1][:3], rtol=1e-5)


def test_a_loss_of_ones_own_is_not_recorded():
    class Mine(tinyllm.GPT):
        def loss(self, ids, targets, reduction="mean"):
            return super().loss(ids, np.where(targets == 3, -100, targets), reduction)

    tinyllm.manual_seed(1)
    model = Mine(tinyllm.GPTConfig(11, n_positions=8, n_embd=16, n_layer=1, n_head=2)).to("triton")
    step = train.training_step(model, optim.SGD(model.parameters(), 0.1), train.TrainConfig())
    for _ in range(2):
        step([MODELS["GPT"][1](np.random.default_rng(0))], 0.1)


def test_bert_wants_one_target_for_each_token_here_too():
    model = MODELS["BERT"][0]().to("triton")
    with pytest.raises(ValueError, match=r"BERT: targets are \(3, 7\) and ids are \(3, 8\)"):
        model.prepare(np.ones((3, 8), int), np.ones((3, 7), int))


def test_resuming_does_not_care_whether_steps_are_recorded(tmp_path):
    """capture changes no number, so it is no other run."""
    data = [text.TokenDataset(np.random.default_rng(0).integers(0, 11, 100), 8)] * 2
    for i, capture in enumerate((True, False)):
        tinyllm.manual_seed(1)
        config = train.TrainConfig(steps=2, batch_size=2, save_every=1, eval_every=2, eval_windows=1, sample_tokens=0,
                                   capture=capture)
        train.train(MODELS["GPT"][0]().to("triton"), *data, config, tmp_path,
                    resume=tmp_path / "checkpoint-000001" if i else None, stop_at=None if i else 1)
