"""Writing on the Triton path: a recorded step gives the tokens that a plain one gives, whatever happens in between."""
import gc
import warnings
import weakref

import numpy as np
import pytest

pytest.importorskip("torch", reason="the kernels' arrays are torch tensors: pip install tinyllm[triton]")
pytest.importorskip("triton", reason="Triton exists for Linux only: pip install tinyllm[triton]")

from agreement import small_tiles  # noqa: E402
from strategies import normal  # noqa: E402
from test_beams import make  # noqa: E402

import tinyllm  # noqa: E402
from tinyllm import Tensor, backend, composed, generate, kernels, no_grad, ops, optim, quantized, stream  # noqa: E402
from tinyllm import functional as F  # noqa: E402
from tinyllm.generate import Memory  # noqa: E402
from tinyllm.kernels.graph import Captured  # noqa: E402
from tinyllm.kernels import runtime  # noqa: E402

KINDS = pytest.mark.parametrize("kind", ["gpt", "llama", "transformer-lm", "seq2seq", "t5", "lstm", "rnn", "gru"])
put = kernels.from_numpy


def write(model, prompts, n, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return generate(model, prompts, n, pad_token_id=0, **options)


def both(kind, prompts, n, **options):
    texts = [write(make(kind, where, None), prompts, n, **options) for where in ("numpy", "triton")]
    np.testing.assert_array_equal(*texts)


def recorded(model):
    return Memory.kept[model].step.recordings


@KINDS
def test_texts_of_one_length(kind):
    both(kind, [[5, 6, 7]], 4, temperature=0.7, seed=1)
    both(kind, [[5, 6, 7], [8, 3, 2]], 3, temperature=0)


@KINDS
def test_a_step_is_recorded_whatever_the_model(kind, monkeypatch):
    steps, call = [], Captured.__call__
    monkeypatch.setattr(Captured, "__call__",
                        lambda self, *a: (steps.append([np.shape(x) for x in a]), call(self, *a))[1])
    write(make(kind, "triton", None), [[5, 6, 7]], 4, temperature=0)
    assert [shapes for shapes in steps if shapes[0] == (1, 1)] == [[(1, 1), (1,), ()]] * 3      # all but the first


@pytest.mark.parametrize("kind", ["gpt", "llama", "lstm"])
def test_texts_that_outgrow_the_context_need_no_new_recording(kind):
    model = make(kind, "triton", None)
    texts = [write(m, [[5, 6, 7], [8]], 17, temperature=0.7, seed=1) for m in (model, make(kind, "numpy", None))]
    np.testing.assert_array_equal(*texts)
    assert len(recorded(model)) <= 2                    # with key_start, and later, when all have outgrown it, without


def test_beams_and_samples():
    both("llama", [[5, 6, 7], [8]], 5, num_beams=3, num_return_sequences=2, stop_tokens=[9])
    both("gpt", [[5, 6, 7], [8]], 4, num_return_sequences=2, seed=3)
    both("lstm", [[5, 6, 7], [8]], 5, num_beams=3, num_return_sequences=2, stop_tokens=[9])
    both("t5", [[5, 6, 7], [8]], 5, num_beams=3, num_return_sequences=2, stop_tokens=[9])


def test_the_next_text_takes_the_recorded_step_over():
    model, prompt = make("gpt", "triton", None), [[5, 6, 7]]
    first = write(model, prompt, 3, seed=1)
    steps = recorded(model)
    np.testing.assert_array_equal(write(model, prompt, 3, seed=1), first)
    assert write(model, [[3, 4]], 4, seed=1).shape == (1, 6) and recorded(model) is steps and len(steps) == 1
    write(model, prompt * 2, 3)
    assert recorded(model) is not steps                 # another number of texts


def test_other_weights_are_recorded_anew():
    model, other = make("gpt", "triton", None), make("gpt")
    write(model, [[5, 6, 7]], 3, seed=1)
    steps = recorded(model)
    model.load_state_dict({name: -array for name, array in other.state_dict().items()})     # in place
    changed = write(model, [[5, 6, 7]], 3, temperature=0)
    assert recorded(model) is steps
    model.to("numpy").to("triton")                      # elsewhere
    np.testing.assert_array_equal(write(model, [[5, 6, 7]], 3, temperature=0), changed)
    assert recorded(model) is not steps
    steps = recorded(model)
    optim.SGD(model.parameters(), lr=0.1)               # puts all parameters into one array
    np.testing.assert_array_equal(write(model, [[5, 6, 7]], 3, temperature=0), changed)
    assert recorded(model) is not steps


@pytest.mark.parametrize("kind", ["gpt", "t5"])
def test_parameters_that_move_in_the_middle_of_a_text(kind, monkeypatch):
    times, record = [], Memory._record
    monkeypatch.setattr(Memory, "_record", lambda self: (times.append(1), record(self)))
    model, moves = make(kind, "triton", None), Tensor.moves
    expected = [tokens.item() for tokens in stream(model, [5, 6], 6, temperature=0)]
    assert len(times) == 1 and Tensor.moves == moves            # so that a token costs one comparison
    half_read = stream(model, [5, 6], 6, temperature=0)
    tokens = [next(half_read).item() for _ in range(3)]
    times.clear()
    optim.SGD(make(kind).parameters(), lr=0.1)                  # another model's
    tokens.append(next(half_read).item())
    assert not times
    optim.SGD(model.parameters(), lr=0.1)
    assert tokens + [token.item() for token in half_read] == expected and len(times) == 1


def test_two_streams_of_one_model_do_not_share_a_cache():
    model = make("gpt", "triton", None)
    alone = [np.stack(list(stream(model, prompt, 4, seed=1))) for prompt in ([5, 6], [8, 9])]
    together = list(zip(*(stream(model, prompt, 4, seed=1) for prompt in ([5, 6], [8, 9]))))
    for text, tokens in zip(alone, zip(*together)):
        np.testing.assert_array_equal(text, np.stack(tokens))


def test_a_model_is_not_kept_alive():
    model = make("gpt", "triton", None)
    write(model, [[5, 6, 7]], 3)
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None and not len(Memory.kept)


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_int8_weights(dtype):
    small = quantized(make("llama", "triton", dtype))
    texts = [write(small, [[5, 6, 7]], 5, temperature=0) for _ in range(2)]
    np.testing.assert_array_equal(*texts)


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("dtype, T, S, group, size", [("float32", 1, 40, 1, 8), ("float32", 3, 40, 2, 20),
                                                      ("float32", 1, 300, 20, 16), ("bfloat16", 1, 150, 2, 64)])
def test_cached_attention_is_that_of_numpy(dtype, T, S, group, size, has_bias):
    """Behind what was written, the cache holds NaN; new keys may fall on the border of two stretches."""
    rng = np.random.default_rng(0)
    for position, processors in ((0, 7), (15, 7), (16, 7), (S - T, 7), (S - T, 2)):     # four parts, and one
        q, k, v = (rng.standard_normal((2, T, heads, size), np.float32) for heads in (2 * group, 2, 2))
        caches = [np.full((2, S, 2, size), np.nan, np.float32) for _ in "kv"]
        for cache in caches:
            cache[:, :position] = rng.standard_normal((2, position, 2, size), np.float32)
        start, place = np.array([0, min(7, position)]), np.array([position])
        bias = rng.standard_normal((1, 2 * group, 1, S), np.float32)
        there = [put(array, dtype) for array in (q, k, v, *caches, bias)]
        q, k, v, *caches, bias = (kernels.to_numpy(array) for array in there)       # rounded
        expected = ops.cached_attention(q, k, v, *caches, place, start, bias if has_bias else None, scale=0.3)
        with small_tiles(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(runtime, "n_multiprocessors", lambda: processors)
            out = kernels.cached_attention(*there[:5], put(place), put(start), there[5] if has_bias else None,
                                           scale=0.3)
        error = np.abs(kernels.to_numpy(out) - expected).max()
        assert error < (1e-5 if dtype == "float32" else 2e-2), error
        for ours, theirs in zip(there[3:5], caches):
            np.testing.assert_array_equal(kernels.to_numpy(ours), theirs)


@pytest.mark.parametrize("bias, scale", [(None, None), (Tensor(normal(1, 4, 1, 9, seed=9)), 1.0)])
def test_cached_attention_is_composed_of_attention(bias, scale):
    shapes = ((3, 4), (3, 2), (3, 2), (9, 2), (9, 2))
    q, k, v, *caches = (normal(2, T, heads, 4, seed=i) for i, (T, heads) in enumerate(shapes))
    arguments = (*map(Tensor, (q, k, v)), *caches, np.array([5]), np.array([0, 2]), bias)
    expected = composed.cached_attention(*arguments, scale=scale).numpy()
    np.testing.assert_allclose(F.cached_attention(*arguments, scale=scale).numpy(), expected, rtol=1e-10)
    np.testing.assert_array_equal(caches[0][:, 5:8], k)
    with pytest.raises(RuntimeError, match="cached_attention: gradients do not pass through a cache"):
        F.cached_attention(Tensor(q, requires_grad=True), *arguments[1:])


def test_positions_in_a_text():
    start = np.array([0, 3, 9])
    np.testing.assert_array_equal(kernels.to_numpy(kernels.text_positions(put(np.array([5])), put(start))), [5, 2, 0])
    np.testing.assert_array_equal(ops.text_positions(np.array([5]), start), [5, 2, 0])


def test_rope_looks_its_position_up():
    x, tables = np.random.default_rng(0).standard_normal((2, 1, 3, 8)), np.random.default_rng(1).random((2, 9, 4))
    expected, _ = ops.rope_forward(x, *(table[4:5] for table in tables))
    np.testing.assert_array_equal(ops.rope_forward(x, *tables, np.array([4]))[0], expected)
    with no_grad():
        found = composed.rope(Tensor(x), *tables, position=np.array([4])).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    out, _ = kernels.rope_forward(put(x, "float32"), *(put(t, "float32") for t in tables), put(np.array([4])))
    np.testing.assert_allclose(kernels.to_numpy(out), expected, atol=1e-6)


def test_the_step_on_numpy_is_the_same_function_of_arrays():
    """There it is never recorded; but nothing hinders it."""
    model, ids = make("llama").eval(), np.array([[5, 6, 7, 8]])
    with no_grad():
        cache = model.new_cache(1, 8)
        model.next_logits(ids[:, :3], cache)
        for layer in cache:
            layer.used = np.array([3])
        step, whole = model.next_logits(ids[:, 3:], cache), model.next_logits(ids)
        np.testing.assert_allclose(step.numpy(), whole.numpy(), rtol=1e-9)
    assert not backend.get("numpy").records


@pytest.mark.parametrize("where", ["numpy", "triton"])
def test_an_encoder_decoder_that_runs_out_of_positions_says_so(where):
    """A recorded step sees an array for the position, and would look it up behind the end of the table."""
    model = tinyllm.Seq2Seq(tinyllm.Seq2SeqConfig(vocab_size=11, d_model=16, nhead=2, dim_feedforward=32, n_positions=8,
                                                  num_encoder_layers=1, num_decoder_layers=1)).to(where)
    assert generate(model, [[3, 4]], 7, stop_tokens=[]).shape == (1, 8)
    with pytest.raises(ValueError, match="9 tokens are more than its n_positions=8"):
        generate(model, [[3, 4]], 12, stop_tokens=[])
