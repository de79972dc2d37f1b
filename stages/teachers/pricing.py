"""What a request costs: tokens of texts and pictures by each provider's rule, and a price table with dates."""

from __future__ import annotations

import fnmatch
import functools
import json
import math
import re
from datetime import date
from pathlib import Path
from typing import Literal

import yaml
from pydantic import ValidationError

from schemas.base import Record
from schemas.caption import Usage
from schemas.yaml import load_yaml
from stages.teachers.protocol import Detail, TeacherRequest

PRICES = Path(__file__).with_name("prices.yaml")

_PIECES = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]|[A-Za-z\u00c0-\u024f]+|\d|[^\w\s]")
_TURN_TOKENS = 4
_LONG_WORD = 7


class ImageRule(Record):
    """How a model counts a picture.

    `tiles`: `base` + `tile` for each 512 px tile after fitting into 2048 px and the shorter side to 768 px; with
    detail low `base` alone. `patches`: one token a `patch` px square, at most `cap`, times `factor`, plus `extra`.
    """

    rule: Literal["tiles", "patches"]
    base: int = 0
    tile: int = 0
    patch: int = 28
    cap: int = 16384
    factor: float = 1.0
    extra: int = 0

    def tokens(self, width: int, height: int, detail: Detail) -> int:
        """Tokens of one picture of this size in pixels."""
        if self.rule == "patches":
            count = math.ceil(width / self.patch) * math.ceil(height / self.patch)
            return math.ceil(min(count, self.cap) * self.factor) + self.extra
        if detail == "low":
            return self.base
        scale = min(1.0, 2048 / max(width, height))
        scale *= min(1.0, 768 / (min(width, height) * scale))
        tiles = math.ceil(width * scale / 512) * math.ceil(height * scale / 512)
        return self.base + self.tile * tiles


class Price(Record):
    """One model's list price in US dollars per million tokens; null where its use has no list price."""

    match: str
    input: float | None
    output: float | None
    batch: float | None
    date: date
    images: ImageRule

    def cost(self, prompt_tokens: int, completion_tokens: int, batch: bool = False) -> float | None:
        """Dollars, or None without a list price; `batch` applies the Batch API's factor where there is one."""
        if self.input is None or self.output is None:
            return None
        factor = self.batch if batch and self.batch is not None else 1.0
        return factor * (prompt_tokens * self.input + completion_tokens * self.output) / 1e6


def price_of(model: str, table: str | None = None) -> Price:
    """The first entry of `table` (a YAML file), then of the package's table, that fits a model's name.

    Raises `ValueError` for a table that cannot be read.
    """
    entries = [*(_load(table) if table else ()), *_load(str(PRICES))]
    return next(entry for entry in entries if fnmatch.fnmatchcase(model, entry.match))


def text_tokens(text: str) -> int:
    """An estimate of a text's tokens without the model's tokenizer.

    A token each for a common word, a digit, a sign and a Chinese character; longer words count one more for every
    seven letters.
    """
    return sum(1 + (len(piece) - 1) // _LONG_WORD for piece in _PIECES.findall(text))


def request_tokens(request: TeacherRequest, price: Price) -> int:
    """An estimate of a request's prompt tokens: texts, pictures by the model's rule, and each turn's frame."""
    return sum(
        _TURN_TOKENS
        + text_tokens(message.text)
        + sum(price.images.tokens(p.width, p.height, request.detail) for p in message.pictures)
        for message in request.messages
    )


def most_cost(request: TeacherRequest, price: Price, batch: bool = False) -> float | None:
    """The most dollars that one reply to a request can cost, or None without a list price.

    No tokenizer makes more tokens of a text than it has bytes; the schema counts too, as some providers bill it.
    """
    texts = [message.text for message in request.messages]
    text_bytes = sum(len(text.encode()) for text in [*texts, json.dumps(request.schema)])
    pictures = [picture for message in request.messages for picture in message.pictures]
    shown = sum(price.images.tokens(p.width, p.height, request.detail) for p in pictures)
    return price.cost(text_bytes + shown + _TURN_TOKENS * len(texts), request.max_tokens, batch)


def priced(usage: Usage, price: Price, batch: bool = False) -> Usage:
    """The usage with its cost by list price."""
    cost = price.cost(usage.prompt_tokens, usage.completion_tokens, batch)
    return usage.model_copy(update={"cost_usd": cost})


@functools.cache
def _load(path: str) -> tuple[Price, ...]:
    try:
        raw = load_yaml(Path(path).read_text(encoding="utf-8"))
        return tuple(Price.model_validate(entry) for entry in raw["models"])
    except (OSError, yaml.YAMLError, ValidationError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a price table (a list `models` of prices): {error}") from error
