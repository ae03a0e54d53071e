"""Configurations: dataclasses that look at their fields, and say in one sentence which of them makes no sense."""
import dataclasses
from numbers import Integral, Real
from typing import ClassVar


class Config:
    """What the configurations share. A subclass is a dataclass; its further rules stand in its check().

    A field of type int must be a whole number of at least 1, or of at least 0 if its name stands in FROM_ZERO; one of
    type int | None may be None, too. One of type float must be a number, one of type bool True or False. Those in
    PROBABILITIES go from 0 to below 1.
    """

    FROM_ZERO: ClassVar[tuple] = ()
    PROBABILITIES: ClassVar[tuple] = ()
    PRESETS: ClassVar[dict] = {}            # name -> the fields that differ from the defaults

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, least = getattr(self, field.name), 0 if field.name in self.FROM_ZERO else 1
            if field.type is int or field.type == int | None and value is not None:
                self.need(field.name, isinstance(value, Integral) and value >= least,
                          f"a whole number, at least {least}")
            elif field.type is float and field.name not in self.PROBABILITIES:
                self.need(field.name, isinstance(value, Real), "a number")
            elif field.type is bool:
                self.need(field.name, isinstance(value, bool), "True or False")
        for name in self.PROBABILITIES:
            value = getattr(self, name)
            self.need(name, isinstance(value, Real) and 0 <= value < 1, "a probability, from 0 to below 1")
        self.check()

    def check(self):
        """Further rules: calls of need()."""

    def need(self, name, holds, wanted):
        """ValueError unless `holds`: it names the field, its value, and what it should be."""
        if not holds:
            raise ValueError(f"{type(self).__name__}: {name} is {getattr(self, name)!r}; it should be {wanted}")

    def need_one_of(self, name, known):
        self.need(name, getattr(self, name) in known, f"one of {', '.join(known)}")

    def need_multiple(self, name, divisor, why):
        """The field must be a multiple of another one."""
        n = getattr(self, divisor)
        self.need(name, getattr(self, name) % n == 0, f"a multiple of {divisor}={n}: {why}")

    @classmethod
    def preset(cls, name, **changes):
        """A configuration by name (see PRESETS), with some fields changed: GPTConfig.preset("tiny", vocab_size=65)"""
        if name not in cls.PRESETS:
            raise ValueError(f'{cls.__name__}: there is no preset "{name}"; choose one of {", ".join(cls.PRESETS)}')
        return cls(**{**cls.PRESETS[name], **changes})
