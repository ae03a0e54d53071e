"""Folders with models for the examples that open any: published ones with random weights, and what examples leave."""
import json

import pytest
from reference_tokenizers import END, tokenizers, train_bpe, train_unigram, train_wordpiece

import tinyllm
from tinyllm import checkpoint, optim
from tinyllm.text import CharTokenizer, WordPieceTokenizer, default_corpus

transformers = pytest.importorskip("transformers", reason="the reference: pip install transformers")
torch = pytest.importorskip("torch")
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

CONTEXT, UNUSED = 40, 60
GPT2 = {"n_positions": CONTEXT, "n_embd": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.4}
LLAMA = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": CONTEXT, "initializer_range": 0.4}
BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
        "max_position_embeddings": CONTEXT, "initializer_range": 0.4}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "initializer_factor": 1.5}
PROMPT, SENTENCES = "Return $$ naïve café", ["The list is empty.", "A café!", "If it's not, an $$ error"]


def template(tokenizer, around, *special):
    """What the library's tokenizer is to put around a text."""
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=around, special_tokens=[(token, tokenizer.token_to_id(token)) for token in special])
    return tokenizer


def publish(folder, class_name, tokenizer, **settings):
    """A folder as models are published: random weights, config.json, tokenizer.json; and more ids than tokens."""
    torch.manual_seed(1)
    class_ = getattr(transformers, class_name)
    config = class_.config_class(vocab_size=tokenizer.get_vocab_size() + UNUSED, **settings)
    class_(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))


def publish_each_kind(where):
    """A folder for each kind of model."""
    bpe, wordpiece, unigram = train_bpe(400), train_wordpiece(True), train_unigram(True)
    end = bpe.token_to_id(END)
    publish(where / "gpt2", "GPT2LMHeadModel", bpe, **GPT2, bos_token_id=end, eos_token_id=end)
    template(bpe, f"{END} $A", END)
    publish(where / "llama", "LlamaForCausalLM", bpe, **LLAMA, bos_token_id=end, eos_token_id=[end, 70])
    template(wordpiece, "[CLS] $A [SEP]", "[CLS]", "[SEP]")
    publish(where / "bert", "BertForMaskedLM", wordpiece, **BERT)
    publish(where / "trunk", "BertModel", wordpiece, **BERT)
    publish(where / "t5", "T5ForConditionalGeneration", template(unigram, "$A </s>", "</s>"), **T5,
            decoder_start_token_id=0, eos_token_id=1)


def leave_runs(where):
    """runs/gpt and runs/bert, as examples 3 and 7 leave them, though not trained."""
    tinyllm.manual_seed(1)
    characters, words = CharTokenizer.train(default_corpus()), WordPieceTokenizer.train(" ".join(SENTENCES), 60)
    models = {"gpt": (tinyllm.GPT(tinyllm.GPTConfig.preset("nano", vocab_size=characters.vocab_size, n_positions=32)),
                      characters),
              "bert": (tinyllm.BERT(tinyllm.BERTConfig(vocab_size=words.vocab_size, **BERT)), words)}
    for name, (model, tokenizer) in models.items():
        checkpoint.save(where / f"runs/{name}/checkpoint-000001", model, optim.AdamW(model.parameters()), {"step": 1},
                        tokenizer)


def theirs(folder):
    """The library's model and tokenizer."""
    name, = json.loads((folder / "config.json").read_text())["architectures"]
    model = getattr(transformers, name).from_pretrained(folder, attn_implementation="eager").eval()
    return model, transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))


def their_logp(model, ids):
    """log softmax of the logits after each of ids (T,): (T, V)"""
    with torch.no_grad():
        return model(torch.tensor([list(map(int, ids))])).logits[0].double().log_softmax(-1).numpy()


def written(rows, ids, folder, tokenizer):
    """Rows of ids as texts, up to the token that ends each; unused ids stand for no text."""
    config = json.loads((folder / "config.json").read_text())
    ends, n_tokens = config["eos_token_id"], config["vocab_size"] - UNUSED
    ends = ends if isinstance(ends, list) else [ends]
    for row in rows:
        row = [int(i) for i in row]
        last = next((t for t in range(len(ids), len(row)) if row[t] in ends), len(row))
        yield tokenizer.decode([i for i in row[:last] if i < n_tokens])


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder with a folder for each kind of published model."""
    where = tmp_path_factory.mktemp("published")
    publish_each_kind(where)
    return where


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with runs/gpt and runs/bert in it."""
    where = tmp_path_factory.mktemp("trained")
    leave_runs(where)
    return where
