"""Lexicons: patterns in data files, per language, with examples that must and must not match."""

from __future__ import annotations

import re
from functools import lru_cache
from importlib import resources
from typing import Any, Literal

import polars as pl
from pydantic import BaseModel, ConfigDict, model_validator

from schemas.caption import Language
from schemas.keys import digest_bytes
from schemas.yaml import load_yaml

FOLDER = "stages.score.lexicons"
SPARED = "°°"
# What counts as a word: in Chinese a character, a Latin word or a number.
TOKEN = {"en": r"[\p{L}\p{N}]+(?:['’\-][\p{L}\p{N}]+)*", "zh": r"\p{Han}|\p{Latin}+|\p{N}+"}


class Examples(BaseModel):
    """Sentences that a list must hit and sentences that it must leave alone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hit: list[str]
    clean: list[str]


class Lexicon(BaseModel):
    """One list of patterns a language.

    A pattern is a regular expression in the syntax that Python's `re` and Rust's `regex` share (no look-around);
    `{name}` is replaced by the macro of that name, of the list's own or of the list that it `uses`, which may hold
    macros declared after it. English patterns match whole words unless `words` is false, all without regard to case.
    What an exception matches is taken out of the text before the patterns are looked for: it stands in for the
    look-around that the engines do not share.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    about: str
    source: str
    anchor: Literal["anywhere", "start", "end"] = "anywhere"
    uses: str | None = None
    words: bool = True
    macros: dict[str, str] = {}
    patterns: dict[Language, list[str]]
    exceptions: dict[Language, list[str]] = {}
    examples: dict[Language, Examples]
    hash: str = ""

    @model_validator(mode="after")
    def _examples_for_all(self) -> Lexicon:
        missing = [
            language for language, patterns in self.patterns.items() if patterns and not self.examples.get(language)
        ]
        if missing:
            raise ValueError(f"lexicon {self.name} has patterns but no examples for {missing}")
        return self

    def regex(self, language: Language) -> str | None:
        """One expression for all patterns of a language, or None where the list has none."""
        return self._anchored(self._either(self.patterns.get(language, []), language))

    def regexes(self, language: Language) -> list[str]:
        """An expression for each pattern: many large ones are matched faster one by one than all at once."""
        found = [self._anchored(self._either([pattern], language)) for pattern in self.patterns.get(language, [])]
        return [expression for expression in found if expression is not None]

    def _anchored(self, words: str | None) -> str | None:
        if words is None:
            return None
        if self.anchor == "start":
            return rf"(?i)^[\s\"'“‘*#]*{words}[\s,，:：]*"
        if self.anchor == "end":
            return rf"(?i)(?:{words}|[,，、;；:：(（\[\-–—])\s*$"
        return f"(?i){words}"

    def spared(self, language: Language) -> str | None:
        """One expression for what is taken out of a text first, or None where the list has no exceptions."""
        words = self._either(self.exceptions.get(language, []), language)
        return None if words is None else f"(?i){words}"

    def count(self, text: pl.Expr, language: Language) -> pl.Expr:
        """How often the list matches a column's texts (int64)."""
        expression = self.regex(language)
        if expression is None:
            return pl.lit(0, pl.Int64)
        return self.without_exceptions(text, language).str.count_matches(expression).cast(pl.Int64)

    def without_exceptions(self, text: pl.Expr, language: Language) -> pl.Expr:
        """A column's texts with `SPARED`, which no pattern matches, for each exception."""
        spared = self.spared(language)
        return text if spared is None else text.str.replace_all(spared, SPARED)

    def hits(self, text: str, language: Language) -> list[str]:
        """The stretches of one text that the list matches; for people and tests, stages count them in columns."""
        expression, spared = self.regex(language), self.spared(language)
        rest = text if spared is None else re.sub(spared, SPARED, text)
        return [match.group(0) for match in re.finditer(expression, rest)] if expression else []

    def _either(self, patterns: list[str], language: Language) -> str | None:
        if not patterns:
            return None
        body = "|".join(f"(?:{_expand(pattern, self.macros, language)})" for pattern in patterns)
        return rf"\b(?:{body})(?:\b|\s|$)" if language == "en" and self.words else f"(?:{body})"


@lru_cache(maxsize=64)
def load_lexicon(name: str) -> Lexicon:
    """The lexicon `lexicons/<name>.yaml`. Raises `FileNotFoundError` naming the lists that exist."""
    file = resources.files(FOLDER) / f"{name}.yaml"
    if not file.is_file():
        raise FileNotFoundError(f"there is no lexicon {name!r}; there are {', '.join(lexicon_names())}")
    data = file.read_bytes()
    read = load_yaml(data)
    if "uses" in read:
        shared = load_lexicon(read["uses"])
        read["macros"] = read.get("macros", {}) | shared.macros
        data += shared.hash.encode()
    return Lexicon.model_validate(read | {"hash": digest_bytes(data).hex()})


def lexicon_names() -> list[str]:
    """The lexicons that travel with the package."""
    names = (entry.name for entry in resources.files(FOLDER).iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def settings_of(*names: str) -> dict[str, Any]:
    """What a fingerprint says of the lexicons that a rule reads."""
    return {name: load_lexicon(name).hash for name in names}


def _expand(pattern: str, macros: dict[str, str], language: Language) -> str:
    for name, value in macros.items():
        pattern = pattern.replace("{" + name + "}", value)
    if language == "en":
        # Unicode's classes have hundreds of ranges: as wildcards between words they make matching ten times slower.
        for short, ranges in (("w", "A-Za-z0-9_"), ("d", "0-9")):
            pattern = pattern.replace(rf"[\{short}", f"[{ranges}").replace(rf"\{short}", f"[{ranges}]")
    return pattern
