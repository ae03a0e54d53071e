"""load() and model_input(): a folder is opened, and a text read, as transformers does; or one sentence says why not."""
import pytest
from example_folders import PROMPT, published, theirs, trained  # noqa: F401 (two are fixtures)
from reference_tokenizers import train_bpe

import tinyllm
from tinyllm import checkpoint, optim


@pytest.mark.parametrize("name, class_", [("gpt2", tinyllm.GPT), ("llama", tinyllm.GPT), ("bert", tinyllm.BERT),
                                          ("trunk", tinyllm.models.BERTModel), ("t5", tinyllm.T5)])
def test_a_folder_is_opened_with_its_class_and_a_text_becomes_the_librarys_input(name, class_, published):
    model, tokenizer = tinyllm.load(published / name)
    assert type(model) is class_ and not model.training
    for text in (PROMPT, ""):
        assert tinyllm.model_input(model, tokenizer, text) == theirs(published / name)[1](text).input_ids


def test_special_tokens_in_a_text_are_found_if_allowed(published, trained):
    model, tokenizer = tinyllm.load(published / "bert")
    mask = tokenizer.special_tokens["[MASK]"]
    assert tinyllm.model_input(model, tokenizer, "[MASK]")[1:-1] == [mask]
    assert mask not in tinyllm.model_input(model, tokenizer, "[MASK]", allowed_special=())
    model, tokenizer = tinyllm.load(trained / "runs/gpt")
    assert tinyllm.model_input(model, tokenizer, "ab") == tokenizer.encode("ab")


def test_an_encoder_decoder_may_have_any_tokenizer():
    """As in examples/11_span_corruption.py."""
    model = tinyllm.T5(tinyllm.T5Config.preset("tiny", vocab_size=300))
    tokenizer = tinyllm.text.BPETokenizer.train("the cat " * 50, 260)
    assert tinyllm.model_input(model, tokenizer, "the cat") == tokenizer.encode("the cat")


def test_a_folder_without_a_usable_model_is_refused_in_one_sentence(published, trained, tmp_path):
    copy = lambda name, *files: [(tmp_path / name).mkdir()] + [
        (tmp_path / name / file).write_bytes((published / "gpt2" / file).read_bytes()) for file in files]
    copy("empty")
    copy("no tokenizer", "config.json", "model.safetensors")
    copy("no weights", "config.json", "tokenizer.json")
    copy("unknown")
    (tmp_path / "unknown/config.json").write_text('{"model_type": "mamba"}')
    copy("mixed", "config.json", "model.safetensors")
    mixed = train_bpe(500)
    mixed.save(str(tmp_path / "mixed/tokenizer.json"))
    model = tinyllm.load(trained / "runs/gpt")[0]
    checkpoint.save(tmp_path / "dumb", model, optim.AdamW(model.parameters()), {"step": 1})
    for name, message in {
            "nowhere": r"there is no folder .*hf download NAME --local-dir .*nowhere",
            "empty": "holds no model: there is neither a checkpoint of tinyllm in it nor a config.json",
            "no tokenizer": "there is no tokenizer.json in this folder",
            "no weights": "has neither model.safetensors nor",
            "unknown": "models of the type 'mamba' are not implemented here; there are gpt2, llama, bert, t5",
            "mixed": "its tokenizer has 500 tokens and its model knows only 460",
            "dumb": "was saved without a tokenizer"}.items():
        with pytest.raises((ValueError, FileNotFoundError), match=message) as refused:
            tinyllm.load(tmp_path / name)
        assert "\n" not in str(refused.value)
