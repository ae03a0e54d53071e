"""Generation: ask the model what comes next, choose a token, append it, and ask again.

One loop, `_write`, serves single texts, batches, several samples of a prompt, streaming and beams. Each round has two
steps:

    logits = reader(texts)                          what the model thinks of every next token: (B, T) -> (B, V)
    rows, tokens = chooser(logits, texts, step)     text i goes on from texts[rows[i]], with tokens[i]

The Sampler at the end of this file lets every text go on with a token drawn for it; Beams (beam.py) drop some texts and
split others. Both first let the rules of warpers.py change the logits. What a user can ask for stands in options.py.
"""
import functools
import sys
import warnings
import weakref

import numpy as np

from . import backend, modes
from . import functional as F
from .beam import Beams
from .modes import no_grad
from .options import Options, need
from .quantize import quantized
from .recorded import Places, arrays_of
from .tensor import Tensor
from .warpers import ends, unpadded, warper


def stream(model, ids, max_new_tokens=None, **options):
    """Yield the new tokens as they come: each time an int64 array (B * num_return_sequences,), one token per text.

    ids: the prompt, (T,) or (B, T) token ids, at least one; or a list of prompts of any lengths. An encoder-decoder
    reads them as its source, and its texts begin behind the start token. options: see Options. A text that is over is
    filled up until all texts are over. Beam search cannot be streamed: until its end it may take back every token.
    """
    o = Options(max_new_tokens, **options)
    need(o.num_beams == 1, "beam search knows its text only at the end, so stream() has nothing to show; use "
         "generate(), or num_beams=1")
    return _write(model, *_start(model, ids, o))


def generate(model, ids, max_new_tokens=None, **options):
    """The prompts and what follows them: (B * num_return_sequences, T + new) int64; texts of a prompt stand together.

    Arguments as for stream(). Short prompts are filled up on the left. For an encoder-decoder, the start token and what
    follows it: (B * num_return_sequences, 1 + new).
    """
    o = Options(max_new_tokens, **options)
    reader, chooser, texts, steps = _start(model, ids, o)
    new = [tokens[:, None] for tokens in _write(model, reader, chooser, texts, steps)]
    if o.num_beams == 1:
        return np.concatenate([texts, *new], axis=1)
    if not new:                     # no token may come: the prompts, as often as asked for
        return texts[np.arange(len(texts)) % o.num_beams < o.num_return_sequences]
    return chooser.texts()


def _write(model, reader, chooser, texts, steps):
    """The loop: texts (B, T); yields the new tokens (B,) of each round."""
    evaluating = model.evaluating()
    with reader:
        for step in range(steps):
            with evaluating:        # but not while a caller has the token: it may train, or let another text go on
                logits = reader(texts)
            if step == 0:
                _need_numbers(logits.data)
            rows, tokens = chooser(logits, texts, step)
            if rows is not None:
                texts = texts[rows]
                reader.reorder(rows)
            texts = np.concatenate([texts, tokens[:, None]], axis=1)
            yield tokens
            if chooser.done:
                return


def _need_numbers(logits):
    """Weights that are damaged make NaN of everything, and a draw among NaN would look like a text."""
    if np.isnan(backend.of(logits).to_numpy(logits)).any():
        raise FloatingPointError("generate: the model's logits are NaN, no numbers; its weights are damaged, or its "
                                 "training went wrong")


def _start(model, ids, o):
    """The reader, the chooser, the texts that they begin with, and how many tokens may come."""
    prompts, copies = _prompts(ids), o.num_beams if o.num_beams > 1 else o.num_return_sequences
    settings = getattr(model, "settings", {})
    model = quantized(model) if o.quantize else model
    if hasattr(model, "read_source"):       # an encoder-decoder: the prompt is read once, the texts begin behind it
        c = model.config
        with model.evaluating(), no_grad():
            model, context = model.read_source(_filled_up(prompts, c.pad_token_id, "right"), copies), sys.maxsize
        prompts = [[c.decoder_start_token_id]] * len(prompts)
    else:
        need(hasattr(model, "next_logits"), f"{type(model).__name__} has no next_logits(), so it cannot write; take a "
             "model such as GPT")
        c, context = model.config, model.config.n_positions
    T = max(map(len, prompts))
    o.complete(c, T, settings)
    V = getattr(c, "target_vocab_size", None) or c.vocab_size
    need(o.pad_token_id is None or 0 <= o.pad_token_id < V, f"pad_token_id={o.pad_token_id} is no token of this model; "
         f"any from 0 to {V - 1} will do, as no text looks at it")
    texts = np.repeat(_filled_up(prompts, o.pad_token_id, "left"), copies, axis=0)          # (B, T)
    padding = np.repeat([T - len(prompt) for prompt in prompts], copies)                    # (B,)
    steps = max(0, o.max_length - T if o.max_new_tokens is None else o.max_new_tokens)
    reader = Reader(model, padding, context, T + steps, o.use_cache)
    return reader, Beams(o, padding, steps) if o.num_beams > 1 else Sampler(o, padding), texts, steps


def _prompts(ids):
    """The prompts, one int64 array (T,) each."""
    ids = ids.numpy() if isinstance(ids, Tensor) else ids
    ragged = isinstance(ids, (list, tuple)) and len({np.shape(row) for row in ids}) > 1
    rows = [np.asarray(row) for row in ids] if ragged else np.atleast_2d(np.asarray(ids))
    for row in rows if len(rows) else [rows]:
        need(row.ndim == 1 and row.size > 0, "the prompt must be (T,) or (B, T) token ids with T at least 1, not "
             f"{row.shape if ragged else rows.shape}; a text can start with a newline's token")
        need(row.dtype.kind in "iu", f"the prompt must be token ids, not {row.dtype}; a text becomes ids with "
             "tokenizer.encode(text)")
    return [row.astype(np.int64) for row in rows]


def _filled_up(prompts, pad_token_id, side):
    """Prompts of any lengths as one array (B, T)."""
    T = max(map(len, prompts))
    need(pad_token_id is not None or all(len(prompt) == T for prompt in prompts), "the prompts have different lengths; "
         "say what shall fill them up, with pad_token_id=0, for example: no text looks at it")
    out = np.full((len(prompts), T), pad_token_id or 0)
    for row, prompt in zip(out, prompts):
        row[slice(len(prompt)) if side == "right" else slice(T - len(prompt), T)] = prompt
    return out


class Reader:
    """Asks the model about the texts, each time about what it has not seen yet.

    starts (B,): where that begins which the model sees of each text. At first, that is behind its padding. When a text
    has outgrown the context, it is half a context before its end, and the cache begins anew: half, so that this is
    rare. The cache holds the positions from the smallest start on.
    """

    def __init__(self, model, padding, context, length, use_cache):
        self.model, self.starts, self.context, self.length = model, padding, context, length
        self.use_cache, self.memory, self.seen, self.warned = use_cache, None, 0, False

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self.memory is not None:
            self.memory.keep()

    def __call__(self, texts):
        """The logits of the token after each text: (B, T) -> (B, V)"""
        T = texts.shape[1]
        outgrown = T - self.starts > self.context
        if outgrown.any():
            self._warn()
            self.starts = np.where(outgrown, T - max(1, self.context // 2), self.starts)
        first = self.starts.min()
        key_start = self.starts - first if self.starts.max() > first else None              # None: all alike
        with no_grad():
            if not self.use_cache:
                return self.model.next_logits(texts[:, first:], None, key_start)
            if self.memory is None:
                length = min(self.context, -(-self.length // 256) * 256)    # a few tokens more shall fit the same
                self.memory, self.seen = Memory.of(self.model, len(texts), length), first
            elif outgrown.any():
                self.memory.forget()
                self.seen = first
            new, self.seen = texts[:, self.seen:], T
            return self.memory.next_logits(new, key_start)

    def reorder(self, rows):
        """From now on, text i is what text rows[i] was; rows (B,). Both belong to one prompt, and begin alike."""
        if self.memory is not None and (rows != np.arange(len(rows))).any():
            with no_grad():
                self.model.reorder_cache(self.memory.cache, rows)

    def _warn(self):
        if not self.warned:
            warnings.warn_explicit(         # one line, without a line of our source under it
                f"the text has outgrown the context of {self.context} tokens; the model now sees only its last "
                f"{self.context // 2} to {self.context}", UserWarning, "tinyllm.generate", 0)
        self.warned = True


class Memory:
    """The model's cache for `batch` texts of up to `length` tokens, and on a GPU the recorded step that goes with it.

    One token of each text is little work, and a GPU has done it before Python has launched the next kernel. So there
    the step is recorded once and then played back (kernels/graph.py): as a function of arrays alone, over a cache that
    stays where it is. To record takes as long as a few tokens. Whoever writes next with the same model, and as many
    texts, can have it too: what is left in the cache lies behind its end.
    """

    kept = weakref.WeakKeyDictionary()      # model -> the Memory that its last texts were written with

    def __init__(self, model, batch, length):
        self.model, self.batch, self.length, self.step = weakref.ref(model), batch, length, None
        self.cache = model.new_cache(batch, length)
        self.longest = getattr(model.config, "n_positions", sys.maxsize)
        if getattr(model, "steps_alike", False) and backend.of(arrays_of(model)[0]).records:
            self._record()

    @classmethod
    def of(cls, model, batch, length):
        """The one that was kept, if it serves, or else a new one."""
        memory = cls.kept.pop(model, None)
        if memory is None or not memory._serves(model, batch, length):
            memory = None                       # its cache goes before another comes
            return cls(model, batch, length)
        memory.forget()
        return memory

    def _record(self):
        self.places, self.moves = Places(self.model()), Tensor.moves
        self.step = backend.of(arrays_of(self.model())[0]).capture(_step(self.model, self.cache))

    def _serves(self, model, batch, length):
        return self.batch == batch and self.length >= length and self.places.hold(model)

    def keep(self):
        """The texts are written: let others have it."""
        if self.step is not None:
            Memory.kept[self.model()] = self

    def forget(self):
        """Begin anew, with an empty cache."""
        if self.step is None:
            self.cache = self.model().new_cache(self.batch, self.length)
        else:
            _set_used(self.cache, 0)

    def next_logits(self, ids, key_start):
        """The logits after ids (B, T), which follow what the cache holds: (B, V)"""
        used = 0 if self.step is None or modes.looking() else self.cache[0].used
        if used == 0 or ids.shape[1] > 1 or used >= self.longest:       # too long: the model says so
            return self.model().next_logits(ids, self.cache, key_start)
        if self.moves != Tensor.moves:          # in the middle of a text, something has moved
            self.moves = Tensor.moves
            if not self.places.hold(self.model()):
                self._record()
        logits = self.step(ids, np.array([used]), key_start)
        _set_used(self.cache, used + 1)
        return Tensor._of(logits)


def _step(model, cache):
    """The function that is recorded; model: a weak reference, as the model's Memory shall not keep it alive."""
    def step(ids, used, key_start):
        """ids (B, 1), used (1,): how many positions the cache holds, key_start (B,) or None -> logits (B, V)"""
        _set_used(cache, used)
        return model().next_logits(ids, cache, key_start).data
    return step


def _set_used(cache, used):
    for layer in cache:
        layer.used = used


class Sampler:
    """Lets every text go on with a token drawn for it; one that is over is filled up until all are."""

    def __init__(self, options, padding):
        self.o, self.padding, self.warp = options, padding, warper(options, padding)
        self.over, self.done = np.zeros(len(padding), bool), False

    def __call__(self, logits, texts, step):
        """logits (B, V) after texts (B, T) -> None, which is every row, and tokens (B,)"""
        o, logits = self.o, logits.data
        if self.warp:
            logits = self.warp(backend.of(logits).to_numpy(logits), texts)
            need((logits[~self.over] > -np.inf).any(axis=1).all(), "the rules (no_repeat_ngram_size, min_length, "
                 f"suppress_tokens) leave no token as number {step + 1}; loosen one")
        draw = drawing(backend.of(logits), o.temperature, o.top_k, o.top_p, o.min_p)
        new = draw(logits, np.array([o.seed, step]))
        new = backend.of(new).to_numpy(new)
        new = np.where(self.over, texts[:, -1] if o.pad_token_id is None else o.pad_token_id, new)
        live = np.flatnonzero(~self.over)
        longer = np.concatenate([texts, new[:, None]], axis=1)
        self.over[live] = ends(o, unpadded(longer[live], self.padding[live]))
        self.done = self.over.all()
        return None, new


@functools.lru_cache(maxsize=8)
def drawing(ops, *options):
    """F.sample() with these options, as a function of arrays, recorded where that pays: logits (B, V), rng (2,) -> (B,)
    """
    return ops.capture(lambda logits, rng: F.sample(logits, *options, rng=rng))
