"""The models, one file each."""
from .bert import (
    BERT,
    BERTConfig,
    BERTForQuestionAnswering,
    BERTForSequenceClassification,
    BERTForTokenClassification,
    BERTModel,
)
from .gpt import GPT, GPTConfig
from .ngram import NGram, NGramConfig
from .rnn import GRULM, LSTMLM, RNNLM, RNNConfig
from .seq2seq import Seq2Seq, Seq2SeqConfig
from .t5 import T5, T5Config
from .transformer_lm import TransformerLM, TransformerLMConfig

MODELS = {      # name in a checkpoint -> classes
    "gpt": (GPT, GPTConfig),
    "rnn": (RNNLM, RNNConfig),
    "lstm": (LSTMLM, RNNConfig),
    "gru": (GRULM, RNNConfig),
    "transformer-lm": (TransformerLM, TransformerLMConfig),
    "seq2seq": (Seq2Seq, Seq2SeqConfig),
    "t5": (T5, T5Config),
    "bert": (BERT, BERTConfig),
    "bert-sequence-classification": (BERTForSequenceClassification, BERTConfig),
    "bert-token-classification": (BERTForTokenClassification, BERTConfig),
    "bert-question-answering": (BERTForQuestionAnswering, BERTConfig),
}
