"""tinyllm: learn how language models work by reading and running them. The README lists the files in reading order."""
import os

os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "20")      # before NumPy is imported: see ops/threads.py

from . import composed, functional, metrics, nn, optim, random, text
from .draw import draw
from .generate import generate, stream
from .gradcheck import gradcheck
from .load import load, model_input
from .models import BERT, BERTConfig, GPT, GPTConfig, GRULM, LSTMLM, NGram, NGramConfig, RNNConfig, RNNLM
from .models import Seq2Seq, Seq2SeqConfig, T5, T5Config, TransformerLM, TransformerLMConfig
from .modes import detect_anomaly, no_grad, watch_attention
from .quantize import quantized
from .random import manual_seed
from .tensor import Tensor

__version__ = "0.1.0"
