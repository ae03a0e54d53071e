"""Hugging Face folders: the library's models compute the same here, and ours there, however the files are spelled."""

import dataclasses
import json
import tracemalloc

import numpy as np
import pytest
import torch
import torch.nn.functional as TF
from reference_folders import IDS, KINDS, NEXT, change_settings, change_tensors, reference, saved, their_logits
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import tinyllm
from tinyllm import GPT, T5, GPTConfig, checkpoint, optim, random
from tinyllm.models import BERTForSequenceClassification as SequenceClassification
from tinyllm.models import BERTModel
from tinyllm.tensor_file import open_tensors

transformers = pytest.importorskip("transformers", reason="the reference: pip install transformers")


@pytest.fixture(scope="module", params=list(KINDS))
def pair(request, tmp_path_factory):
    """(name of the kind, the library's model, the folder that it was saved to)"""
    model, folder = reference(request.param), tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    return request.param, model, folder


@pytest.fixture
def gpt2(tmp_path):
    return saved("gpt2", tmp_path / "gpt2")


def assert_same_weights(model, other):
    """Bit for bit. Logits need not be: BLAS adds in another order where a matrix lies the other way round."""
    ours, theirs = model.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)


# The same numbers

def test_logits_and_gradients_of_the_loss_are_the_librarys(pair, tmp_path):
    """Gradients are compared by putting them in the place of the weights: so their names and shapes become the file's.

    Where parameters are tied, so are gradients. The library's T5 ties the head to a table of which it says it is not
    tied; in ours it is a copy then, and the two gradients are added.
    """
    name, theirs, folder = pair
    kind, ours = KINDS[name], KINDS[name].ours.from_pretrained(folder)
    logits = their_logits(name, theirs)
    np.testing.assert_allclose(ours(*kind.inputs).numpy(), logits.detach(), rtol=0, atol=1e-4)

    theirs.zero_grad()
    loss = TF.cross_entropy(logits.flatten(0, -2), torch.from_numpy(kind.targets).flatten())
    loss.backward()
    our_loss = ours.loss(kind.inputs[0], kind.targets)
    our_loss.backward()
    assert our_loss.item() == pytest.approx(loss.item(), rel=1e-5)
    for p in ours.parameters():
        p.data = p.grad
    ours.save_pretrained(tmp_path)
    gradients = load_file(tmp_path / "model.safetensors")
    if name == "t5, gated":
        gradients["shared.weight"] += gradients.pop("lm_head.weight")
    expected = {name: p.grad.numpy() for name, p in theirs.named_parameters()}
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        allowed = 1e-3 * np.abs(expected[name]).max() + 1e-6        # that of a key's bias is zero but for rounding
        np.testing.assert_allclose(gradient, expected[name], rtol=0, atol=allowed, err_msg=name)


def test_the_library_loads_what_is_saved(pair, tmp_path):
    """Every weight comes back bit for bit, none is missed, and none is left over."""
    name, theirs, folder = pair
    KINDS[name].ours.from_pretrained(folder).save_pretrained(tmp_path)
    again, report = type(theirs).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for (key, a), b in zip(again.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.equal(a, b), key
    assert torch.equal(their_logits(name, again), their_logits(name, theirs))


def test_settings_survive_both_ways(pair, tmp_path):
    name, theirs, folder = pair
    ours = KINDS[name].ours.from_pretrained(folder)
    ours.save_pretrained(tmp_path)
    assert KINDS[name].ours.from_pretrained(tmp_path).config == ours.config
    saved, again = theirs.config.to_dict(), transformers.AutoConfig.from_pretrained(tmp_path).to_dict()
    ignored = {"transformers_version", "_name_or_path"}
    assert {k: v for k, v in saved.items() if k not in ignored} == {k: again[k] for k in saved.keys() - ignored}


def test_what_has_no_field_here_is_kept(tmp_path):
    """The names of labels, and ids of special tokens."""
    saved("bert, classes", tmp_path)
    change_settings(tmp_path, id2label={"0": "bad", "1": "good", "2": "ugly"}, eos_token_id=7, torch_dtype="float16")
    SequenceClassification.from_pretrained(tmp_path).save_pretrained(tmp_path)
    again = transformers.AutoConfig.from_pretrained(tmp_path)
    assert again.id2label == {0: "bad", 1: "good", 2: "ugly"} and again.eos_token_id == 7
    assert again.dtype == torch.float32 and "torch_dtype" not in json.loads((tmp_path / "config.json").read_text())


def test_a_new_model_is_saved_without_tokens_that_it_does_not_have(tmp_path):
    GPT(GPTConfig.preset("nano", vocab_size=5)).save_pretrained(tmp_path)
    again = transformers.GPT2LMHeadModel.from_pretrained(tmp_path)
    assert again.config.eos_token_id is None and again.config.n_embd == 32
    config = tinyllm.BERTConfig.preset("tiny", vocab_size=9, num_labels=4)
    SequenceClassification(config).save_pretrained(tmp_path / "bert")
    assert transformers.AutoConfig.from_pretrained(tmp_path / "bert").num_labels == 4
    change_settings(tmp_path / "bert", id2label=None, label2id=None, num_labels=4)      # as in older files
    assert SequenceClassification.from_pretrained(tmp_path / "bert").config.num_labels == 4


def test_a_trunk_comes_out_of_any_bert(tmp_path):
    theirs, ids = reference("bert, classes"), torch.from_numpy(IDS)
    theirs.save_pretrained(tmp_path)
    ours, expected = BERTModel.from_pretrained(tmp_path), theirs.bert(ids)
    np.testing.assert_allclose(ours(IDS).numpy(), expected.last_hidden_state.detach(), rtol=0, atol=1e-4)
    np.testing.assert_allclose(ours.pool(ours(IDS)).numpy(), expected.pooler_output.detach(), rtol=0, atol=1e-4)
    ours.save_pretrained(tmp_path / "trunk")
    again = transformers.BertModel.from_pretrained(tmp_path / "trunk")
    assert torch.equal(again(ids).last_hidden_state, expected.last_hidden_state)


def test_what_left_out_settings_mean():
    """A config.json may hold the model's type alone; then the library's defaults count."""
    families = tinyllm.pretrained_names.FAMILIES
    for kind, config in (("gpt2", GPTConfig), ("llama", GPTConfig), ("bert", tinyllm.BERTConfig),
                         ("t5", tinyllm.T5Config)):
        theirs = transformers.AutoConfig.for_model(kind).to_dict()
        assert config(**families[kind].config_fields({})) == config(**families[kind].config_fields(theirs)) or \
            kind in ("llama", "t5")         # which say None for "as many as the others"
    llama = GPTConfig(**families["llama"].config_fields({}))
    assert (llama.n_embd, llama.n_inner, llama.rope_theta, llama.tie_word_embeddings) == (4096, 11008, 1e4, False)


# All spellings of a file

def without_prefix(tensors):
    return {name.removeprefix("transformer.").removeprefix("bert.").removeprefix("model."): a
            for name, a in tensors.items()}


def with_buffers(tensors):
    return tensors | {"transformer.h.0.attn.bias": np.ones((1, 1, 8, 8), np.uint8),
                      "transformer.h.1.attn.masked_bias": np.float32([-1e4])}


def old_bert(tensors):
    """As the first files were: other words, positions as a buffer, a head for the next sentence, tied tensors twice."""
    renamed = {name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): a
               for name, a in tensors.items()}
    return renamed | {"bert.embeddings.position_ids": np.arange(8)[None], "cls.seq_relationship.bias": np.zeros(2),
                      "bert.pooler.dense.weight": np.zeros((12, 12)),
                      "cls.predictions.decoder.weight": tensors["bert.embeddings.word_embeddings.weight"],
                      "cls.predictions.decoder.bias": tensors["cls.predictions.bias"]}


def old_t5(tensors):
    table = tensors["shared.weight"]
    return {name: a for name, a in tensors.items() if name != "shared.weight"} | {
        "encoder.embed_tokens.weight": table, "decoder.embed_tokens.weight": table, "lm_head.weight": table,
        "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": np.zeros((8, 3), np.float32)}


@pytest.mark.parametrize("kind, change", [
    ("gpt2", without_prefix), ("gpt2", with_buffers), ("llama", without_prefix), ("bert", without_prefix),
    ("bert", old_bert), ("t5", old_t5),
    ("gpt2", lambda t: t | {"lm_head.weight": t["transformer.wte.weight"]}),
    ("llama, tied", lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"],
                                   "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2)})])
def test_other_spellings_are_the_same_model(kind, change, tmp_path):
    saved(kind, tmp_path)
    expected = KINDS[kind].ours.from_pretrained(tmp_path)
    change_tensors(tmp_path, change)
    assert_same_weights(KINDS[kind].ours.from_pretrained(tmp_path), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_other_widths_become_float32(kind, dtype, tmp_path):
    """Each number exactly: float32 holds all of both 16-bit kinds. torch does the expected conversion."""
    theirs = reference(kind).to(dtype)
    theirs.save_pretrained(tmp_path)
    ours = KINDS[kind].ours.from_pretrained(tmp_path)
    assert {p.dtype for p in ours.parameters()} == {np.dtype(np.float32)}
    ours.save_pretrained(tmp_path / "again")
    again = type(theirs).from_pretrained(tmp_path / "again")
    for a, b in zip(again.parameters(), theirs.parameters(), strict=True):
        assert a.dtype == torch.float32 and torch.equal(a, b.float())


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5"])
def test_several_files_are_one_model(kind, tmp_path):
    model = reference(kind)
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "parts", max_shard_size="3KB")
    assert len(list((tmp_path / "parts").glob("model-*.safetensors"))) > 2
    assert_same_weights(*(KINDS[kind].ours.from_pretrained(tmp_path / name) for name in ("whole", "parts")))


def test_rotary_angles_are_read_in_the_older_spelling(tmp_path):
    saved("llama", tmp_path)
    change_settings(tmp_path, rope_parameters=None, rope_theta=77.0, rope_scaling=None)
    assert GPT.from_pretrained(tmp_path).config.rope_theta == 77.0


# Memory, and what becomes of a loaded model

def test_weights_are_views_of_the_file_until_they_are_written_to(gpt2):
    model, before = GPT.from_pretrained(gpt2), (gpt2 / "model.safetensors").read_bytes()
    (whole,) = {id(t.map): t.map for t in open_tensors(gpt2 / "model.safetensors").values()}.values()
    assert not whole.flags.owndata and all(not p.data.flags.owndata for p in model.parameters())
    turned = model.h[0].attn.c_attn.weight.data
    assert turned.shape == (36, 12) and turned.strides == (4, 144)          # as the file has it
    turned[...] = 1
    assert (gpt2 / "model.safetensors").read_bytes() == before and (turned == 1).all()


def test_loading_draws_nothing_and_wants_no_memory(tmp_path):
    """What Python and NumPy allocate is a small part of the weights, which are mapped."""
    tinyllm.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=4000, n_positions=64, n_embd=256, n_layer=2, n_head=4))
    model.save_pretrained(tmp_path)
    state = random.weights().bit_generator.state
    tracemalloc.start()
    loaded = GPT.from_pretrained(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.05 * 4 * model.num_parameters()
    assert random.weights().bit_generator.state == state and random.initialising() and not loaded.training
    assert_same_weights(loaded, model)


def test_numbers_across_word_borders_are_read_past_the_map(tmp_path):
    """GPT-2's published file begins its data at 3 mod 4. A copy of what is mapped would be there besides the map."""
    model = GPT(GPTConfig(vocab_size=50, n_positions=16, n_embd=16, n_layer=1, n_head=2))
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    content = file.read_bytes()
    n = int.from_bytes(content[:8], "little")
    file.write_bytes((n + 3).to_bytes(8, "little") + content[8:8 + n] + b"   " + content[8 + n:])
    tensors = open_tensors(file)
    for name, stored in tensors.items():
        assert stored.offset % 4 == 3 and dataclasses.replace(stored, map=None).read().flags.aligned, name
    assert_same_weights(GPT.from_pretrained(tmp_path), model)


def test_a_loaded_model_learns_and_is_kept(gpt2, tmp_path):
    """As one that was built with the same numbers: steps, a checkpoint before and after, and back into its folder."""
    loaded, before = GPT.from_pretrained(gpt2), (gpt2 / "model.safetensors").read_bytes()
    built = GPT(loaded.config).eval()
    built.load_state_dict(loaded.state_dict())
    for step in range(3):
        for model in (loaded, built):
            optimizer = optim.AdamW(model.parameters(), 1e-2)
            checkpoint.save(tmp_path / f"checkpoint-{step}", model, optimizer, {"step": step})
            assert_same_weights(checkpoint.load_model(tmp_path)[0], model)
            model.loss(IDS, NEXT).backward()
            optimizer.step()
            model.zero_grad()
    np.testing.assert_allclose(loaded(IDS).numpy(), built(IDS).numpy(), rtol=0, atol=1e-5)
    assert (gpt2 / "model.safetensors").read_bytes() == before
    loaded.save_pretrained(gpt2)
    assert_same_weights(GPT.from_pretrained(gpt2), loaded)


def test_a_checkpoint_of_turned_views_is_right(gpt2, tmp_path):
    """The writer of safetensors copies memory as it lies; a transposed view lies the other way round."""
    model = GPT.from_pretrained(gpt2)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    for name, array in load_file(tmp_path / "weights.safetensors").items():
        np.testing.assert_array_equal(array, dict(model.named_parameters())[name].numpy(), err_msg=name)
    model.save_pretrained(gpt2)         # over the file that it is looking at
    assert_same_weights(GPT.from_pretrained(gpt2), model)
    assert sorted(path.name for path in gpt2.iterdir() if "generation" not in path.name) == [
        "config.json", "model.safetensors"]


def test_a_file_is_replaced_when_the_new_one_is_whole(gpt2, monkeypatch):
    model, before = GPT.from_pretrained(gpt2), (gpt2 / "model.safetensors").read_bytes()

    def full_disk(arrays, path, metadata):
        path.write_bytes(b"half")
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr("tinyllm.pretrained.save_file", full_disk)
        with pytest.raises(OSError, match="no space left"):
            model.save_pretrained(gpt2)
    assert (gpt2 / "model.safetensors").read_bytes() == before and not list(gpt2.glob("*.tmp"))
    model.save_pretrained(gpt2)
    with safe_open(gpt2 / "model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}          # older versions of the library load no file without


def test_both_paths_have_the_same_logits(gpt2):
    pytest.importorskip("triton", reason="the Triton path needs triton, which exists for Linux only")
    model = GPT.from_pretrained(gpt2)
    expected = model(IDS).numpy()
    np.testing.assert_allclose(model.to("triton")(IDS).numpy(), expected, rtol=0, atol=1e-5)


def test_two_roles_of_one_tensor_are_changed_apart(tmp_path):
    saved("t5, gated", tmp_path)
    model = T5.from_pretrained(tmp_path)
    before = model.shared.weight.numpy().copy()
    model.lm_head.weight.data[...] = 0
    np.testing.assert_array_equal(model.shared.weight.numpy(), before)
