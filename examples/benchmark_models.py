"""The GPU benchmark's training steps of the other models: BERT, an LSTM, an encoder-decoder. See benchmark_step.py."""
import tinyllm     # before NumPy: it tells NumPy's BLAS how to wait (ops/threads.py)
import benchmark_twins as twins
import numpy as np
from benchmark_rows import job
from benchmark_step import rivals, step_row


@job
def bert_step(s):
    """BERT base, which has to tell the tokens that were hidden: exactly 15 % of them, so that all batches are alike."""
    preset, changes, B, T = s.bert
    tinyllm.manual_seed(1)
    config = tinyllm.BERTConfig.preset(preset, **changes, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model, rng = tinyllm.BERT(config), np.random.default_rng(0)

    def batch():
        ids = rng.integers(1, config.vocab_size, (B, T))                # 0 would be padding
        targets, places = np.full(B * T, -100), rng.choice(B * T, round(0.15 * B * T), replace=False)
        targets[places] = ids.reshape(-1)[places]
        ids.reshape(-1)[places] = min(103, config.vocab_size - 1)       # [MASK]
        return ids, targets.reshape(B, T)

    def hidden(ids, targets):
        """What the twin's loss takes: as ours does, it looks for them, and spares the head the rest."""
        places = np.flatnonzero(targets != -100)
        return ids, places, targets.reshape(-1)[places]

    C, layers = config.hidden_size, config.num_hidden_layers            # 6 a weight, see GPT.flops_per_token
    weights = sum(layer.num_parameters() for layer in model.bert.encoder["layer"])
    head = 0.15 * (C * C + C * config.vocab_size)
    yield step_row(s, f"training step, BERT, {B} x {T}", model, [batch() for _ in range(s.warm)], B * T,
                   (6 * (weights + head) + 12 * layers * C * T) * B * T, rivals(s, twins.BERT, hidden))


@job
def lstm_step(s):
    """A language model of two LSTM layers; torch's are cuDNN's."""
    preset, changes, B, T = s.lstm
    tinyllm.manual_seed(1)
    model = tinyllm.LSTMLM(tinyllm.RNNConfig.preset(preset, **changes))
    text = np.random.default_rng(0).integers(0, model.config.vocab_size, (s.warm, B, T + 1))
    yield step_row(s, f"training step, LSTM, {B} x {T}", model,
                   [(ids[:, :-1].copy(), ids[:, 1:].copy()) for ids in text], B * T,
                   model.flops_per_token() * B * T, rivals(s, twins.LSTM))


@job
def seq2seq_step(s):
    """The base model of the first Transformer: as many tokens in a source as in a target, and both count."""
    preset, changes, B, T = s.seq2seq
    tinyllm.manual_seed(1)
    config = tinyllm.Seq2SeqConfig.preset(preset, **changes, dropout=0.0)
    model = tinyllm.Seq2Seq(config)
    text = np.random.default_rng(0).integers(3, config.vocab_size, (s.warm, 2, B, T))     # 0 to 2: padding, begin, end
    yield step_row(s, f"training step, Seq2Seq, {B} x {T}+{T}", model,
                   [(source.copy(), target.copy()) for source, target in text], 2 * B * T,
                   model.flops_per_token(T, T) * B * T, rivals(s, twins.Seq2Seq))
