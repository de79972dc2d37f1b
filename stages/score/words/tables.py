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
    files = ((_HERE, "colours.yaml"), (_HERE, "names.yaml"), (_TEACHERS, "names_zh.yaml"))
    return digest_bytes(b"".join((resources.files(package) / name).read_bytes() for package, name in files)).hex()


def _read(package: str, name: str) -> dict[str, Any]:
    content: dict[str, Any] = load_yaml((resources.files(package) / name).read_text("utf-8"))
    return content
