"""What generate() and stream() can be told, and what makes no sense.

Names and meanings are those of Hugging Face's generate(), with two exceptions. A token is drawn unless temperature=0
asks for the most likely one (there, drawing has to be asked for: do_sample=True). And the ids that end a text are
called stop_tokens (there, eos_token_id).
"""
from dataclasses import dataclass
from numbers import Integral

from . import random


@dataclass
class Options:
    """The options of generate() and stream().

    The length of a text is that of a row that generate() returns: the padding before the prompt, the prompt, and the
    answer. An encoder-decoder's row has the start token in place of the prompt. Where both are given, max_new_tokens
    holds and not max_length, min_new_tokens and not min_length.
    """

    max_new_tokens: int | None = None           # how many tokens to write at most, or ...
    max_length: int | None = None               # ... how long a text may get
    num_return_sequences: int = 1               # how many texts for each prompt
    seed: int | None = None                     # the same seed, the same texts; None: others every time

    # the draw (ops/sample.py), in this order
    temperature: float = 1.0                    # 0: the most likely token (greedy); the higher, the more evenly
    top_k: int | None = None                    # among so many of the likeliest
    top_p: float | None = None                  # among the likeliest that have this probability together
    min_p: float | None = None                  # among those that are min_p times as likely as the likeliest, or more

    # rules (warpers.py)
    repetition_penalty: float = 1.0             # above 1: tokens that occurred become less likely
    no_repeat_ngram_size: int = 0               # so many tokens in a row occur only once; 0: no such rule
    min_length: int = 0                         # no stop token comes while a text is shorter, or ...
    min_new_tokens: int | None = None           # ... has fewer new tokens
    suppress_tokens: tuple = ()                 # tokens that never come

    # the end
    stop_tokens: int | list | None = None       # who draws one of these ids is over; None: the model's eos_token_id
    stop_strings: str | list = ()               # who completes one of these strings is over; needs ...
    tokenizer: object = None                    # ... a tokenizer, for its decode()
    pad_token_id: int | None = None             # stands before short prompts and behind texts that are over; None: the
                                                # model's; if it has none, texts that are over repeat their last token
    # beam search (beam.py)
    num_beams: int = 1                          # above 1: search, instead of drawing
    length_penalty: float = 1.0                 # above 1: rather long texts, below: short ones
    early_stopping: bool | str = False          # True, False or "never": when to stop looking

    use_cache: bool = True                      # False: compute all positions again for each token; slower, same result
    quantize: str | None = None                 # "int8": with a copy of the model whose matrices take a byte per number

    def __post_init__(self):
        self.stop_strings = [self.stop_strings] if isinstance(self.stop_strings, str) else list(self.stop_strings)
        for name, least in (("num_return_sequences", 1), ("num_beams", 1), ("no_repeat_ngram_size", 0),
                            ("min_length", 0), ("min_new_tokens", 0)):
            value = getattr(self, name)
            need(value is None or isinstance(value, Integral) and value >= least,
                 f"{name} must be at least {least}, not {value}, and a whole number")
        need(self.max_new_tokens is not None or self.max_length is not None,
             "say how much to write, with max_new_tokens or max_length")
        need((self.max_new_tokens or 0) >= 0 and (self.max_length or 0) >= 0,
             f"max_new_tokens={self.max_new_tokens} and max_length={self.max_length} must not be negative")
        need(self.repetition_penalty > 0, f"repetition_penalty must be above 0, not {self.repetition_penalty}")
        need(all(self.stop_strings), "an empty stop string would end every text at once; leave it out")
        need(not self.stop_strings or hasattr(self.tokenizer, "decode"),
             "stop_strings needs tokenizer=..., to read what the model writes")
        for name in ("stop_tokens", "suppress_tokens"):
            ids = getattr(self, name)
            need(ids is None or not isinstance(ids, str) and all(isinstance(i, Integral) for i in _as_list(ids)),
                 f"{name} must be token ids, not {ids!r}; a tokenizer's encode() makes them of a string")
        self.suppress_tokens = tuple(_as_list(self.suppress_tokens))
        need(self.quantize in (None, "int8"), f'quantize must be "int8" or None, not {self.quantize!r}')
        self._check_beams()

    def _check_beams(self):
        if self.num_beams == 1:
            need(self.length_penalty == 1 and self.early_stopping is False,
                 "length_penalty and early_stopping belong to beam search; add num_beams=2 or more")
            return
        off = {"temperature": (0, 1), "top_k": (None, 0), "top_p": (None, 1), "min_p": (None, 0)}
        drawing = [name for name, values in off.items() if getattr(self, name) not in values]
        need(not drawing, f"beam search draws nothing, so {' and '.join(drawing)} would do nothing; leave that out, or "
             "num_beams")
        need(self.num_return_sequences <= self.num_beams, f"num_return_sequences={self.num_return_sequences} is more "
             f"than num_beams={self.num_beams}; beam search keeps no more texts than beams")
        need(self.early_stopping in (True, False, "never"),
             f'early_stopping must be True, False or "never", not {self.early_stopping!r}')

    def complete(self, config, length, settings=()):
        """Fill in what depends on the model's configuration and on the length of the prompt; returns self.

        settings: see ends_of().
        """
        self.stop_tokens = ends_of(config, settings) if self.stop_tokens is None else _as_list(self.stop_tokens)
        if self.pad_token_id is None:
            self.pad_token_id = getattr(config, "pad_token_id", None)
        if self.min_new_tokens is not None:
            self.min_length = length + self.min_new_tokens
        need(self.stop_tokens or not self.min_length,
             "min_length and min_new_tokens keep stop tokens away, and there are none; add stop_tokens")
        self.seed = random.new_seed() if self.seed is None else random.check_seed(self.seed)
        return self


def ends_of(config, settings=()):
    """The ids that end a model's texts; what was trained here on one long text has none.

    settings: a published model's config.json, which knows eos_token_id even where our configuration has no such field.
    """
    return _as_list(dict(settings).get("eos_token_id", getattr(config, "eos_token_id", None)))


def _as_list(ids):
    return [] if ids is None else [ids] if isinstance(ids, Integral) else list(ids)


def need(holds, problem):
    """ValueError unless `holds`."""
    if not holds:
        raise ValueError(f"generate: {problem}")
