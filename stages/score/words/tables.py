"""The word tables as Python values."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

from pydantic import BaseModel, ConfigDict

from schemas.caption import Language
from schemas.keys import digest_bytes
from schemas.yaml import load_yaml

_HERE = "stages.score.words"
_TEACHERS = "stages.teachers"


class Colour(BaseModel):
    """A colour: its words in each language and RGB anchors (0 to 255) that look like it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    en: tuple[str, ...]
    zh: tuple[str, ...]
    rgb: tuple[tuple[int, int, int], ...]


class English(BaseModel):
    """The small words of English captions by their work in a sentence, and the numbers that they stand for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    numbers: dict[str, int]
    crowds: dict[str, int]
    determiners: frozenset[str]
    prepositions: frozenset[str]
    others: frozenset[str]
    verbs: frozenset[str]
    copulas: frozenset[str]
    passives: frozenset[str]
    owns: frozenset[str]
    links: frozenset[str]
    patterns: frozenset[str]
    colour_nouns: frozenset[str]
    surfaces: frozenset[str]
    apart: frozenset[str]
    fills: frozenset[str]
    adjectives: frozenset[str]
    adverbs: frozenset[str]
    irregular: dict[str, str]
    generic: frozenset[str]
    parts: frozenset[str]
    hair_and_skin: frozenset[str]
    things: frozenset[str]
    contents: frozenset[str]
    set_phrases: frozenset[str]
    many_coloured: frozenset[str]
    people: frozenset[str]
    food: frozenset[str]


class Chinese(BaseModel):
    """The small words of Chinese captions by their work in a sentence, and the numbers that they stand for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    digits: dict[str, int]
    crowds: dict[str, int]
    collectives: tuple[str, ...]
    units: tuple[str, ...]
    singular: tuple[str, ...]
    holds: tuple[str, ...]
    partitives: tuple[str, ...]
    adjectives: tuple[str, ...]
    shades: tuple[str, ...]
    unsure: tuple[str, ...]
    wholes: tuple[str, ...]
    light: tuple[str, ...]
    fills: tuple[str, ...]
    set_off: tuple[str, ...]
    covers: tuple[str, ...]
    turns: tuple[str, ...]
    owns: tuple[str, ...]
    parts: tuple[str, ...]
    set_phrases: tuple[str, ...]
    generic: tuple[str, ...]
    compounds: tuple[str, ...]
    verbs: tuple[str, ...]
    places: tuple[str, ...]
    presents: tuple[str, ...]
    hair_and_skin: tuple[str, ...]
    many_coloured: frozenset[str]
    people: frozenset[str]


@cache
def english() -> English:
    """The small words of English."""
    return English.model_validate(_read(_HERE, "grammar.yaml")["en"])


@cache
def chinese() -> Chinese:
    """The small words of Chinese."""
    return Chinese.model_validate(_read(_HERE, "grammar.yaml")["zh"])


@cache
def colours() -> dict[str, Colour]:
    """Colour names to what they are, in a fixed order: a set of colours is a bit mask over it."""
    return {name: Colour.model_validate(value) for name, value in _read(_HERE, "colours.yaml").items()}


@cache
def names(language: Language) -> dict[str, tuple[str, ...]]:
    """Other names of labels in a language, labels in lower case."""
    return {label: tuple(others) for label, others in _read(_HERE, "names.yaml")[language].items()}


@cache
def chinese_names() -> dict[str, str]:
    """English labels of public sources, without hyphens, to their Chinese names."""
    return {label.lower().replace("-", " "): name for label, name in _read(_TEACHERS, "names_zh.yaml").items()}


@cache
def tables_hash() -> str:
    """What a fingerprint says of these tables."""
    ours = ("colours.yaml", "names.yaml", "grammar.yaml")
    files = (*((_HERE, name) for name in ours), (_TEACHERS, "names_zh.yaml"))
    return digest_bytes(b"".join((resources.files(package) / name).read_bytes() for package, name in files)).hex()


def _read(package: str, name: str) -> dict[str, Any]:
    content: dict[str, Any] = load_yaml((resources.files(package) / name).read_text("utf-8"))
    return content
