"""What every teacher is: a request in, a typed reply out."""

from __future__ import annotations

import base64
import functools
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from schemas.base import Box, Record
from schemas.caption import Language, Outcome, Task, Usage
from schemas.keys import digest_bytes, digest_value
from schemas.region import Hint

Role = Literal["system", "user", "assistant"]
Detail = Literal["auto", "low", "high"]


class Decoding(Record):
    """How a teacher samples. `max_tokens` null takes the prompt's own limit."""

    temperature: float = Field(default=0.2, ge=0.0, le=2.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    max_tokens: int | None = Field(default=None, ge=1)
    seed: int | None = 0


@dataclass(frozen=True, eq=False)
class Picture:
    """One image of a request: pixels (H, W, 3) uint8 RGB, encoded bytes, or both. `digest` is of the pixels."""

    width: int
    height: int
    media_type: str
    digest: bytes
    data: bytes | None = None
    pixels: NDArray[np.uint8] | None = None

    def data_url(self) -> str:
        """The encoded picture as a `data:` URL. Raises `ValueError` for a picture that was never encoded."""
        if self.data is None:
            raise ValueError("this picture holds pixels only; encode it for a teacher behind HTTP")
        return f"data:{self.media_type};base64,{base64.b64encode(self.data).decode('ascii')}"


@dataclass(frozen=True)
class Message:
    """One turn of the conversation; pictures come before the text."""

    role: Role
    text: str
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class SubjectEvent:
    """One event of a subject's masklet; times in seconds."""

    event_index: int
    start_s: float
    end_s: float
    absent: bool
    motion: str | None


@dataclass(frozen=True, eq=False)
class Subject:
    """What a request is about, for a teacher that measures instead of looking.

    `pixels` (h, w, 3) uint8 and `mask` (h, w) bool are the same crop of the frame; `crop` is its place, xyxy pixels of
    the frame of `width` x `height`. For a video it is one frame on which the target is visible.
    """

    task: Task
    language: Language
    label: str | None
    hints: tuple[Hint, ...]
    width: int
    height: int
    crop: Box
    pixels: NDArray[np.uint8] | None = None
    mask: NDArray[np.bool_] | None = None
    events: tuple[SubjectEvent, ...] = ()
    event_index: int = -1
    history: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class TeacherRequest:
    """A conversation to be continued with one JSON object that is valid by `answer`.

    `options` are `TeacherConfig.request_options()`: what the endpoint is sent beside it all. `digest` is the canonical
    identity of what is asked, and of whom; it does not depend on where the teacher runs.
    """

    model: str
    messages: tuple[Message, ...]
    answer: type[BaseModel]
    decoding: Decoding
    max_tokens: int
    detail: Detail = "auto"
    options: str = "{}"
    subject: Subject | None = None
    tags: Mapping[str, str] = field(default_factory=dict)

    @functools.cached_property
    def schema(self) -> dict[str, Any]:
        """The JSON schema of the answer."""
        return json_schema(self.answer)

    @functools.cached_property
    def digest(self) -> bytes:
        """16 bytes over model, messages, pictures, schema, decoding and the endpoint's options."""
        return digest_value(
            {
                "model": self.model,
                "messages": [[m.role, m.text, [p.digest for p in m.pictures]] for m in self.messages],
                "schema": json.dumps(self.schema, sort_keys=True),
                "decoding": self.decoding.model_dump(mode="json"),
                "max_tokens": self.max_tokens,
                "detail": self.detail,
                "options": self.options,
            }
        )

    def with_limit(self, max_tokens: int) -> TeacherRequest:
        """The same question with another token limit."""
        return replace(self, max_tokens=max_tokens)

    def with_repair(self, answered: str, error_text: str) -> TeacherRequest:
        """The conversation continued: the teacher's unusable answer, and what was wrong with it."""
        turns = (Message("assistant", answered), Message("user", error_text))
        return replace(self, messages=self.messages + turns)


@functools.cache
def _schema_of(model: type[BaseModel]) -> str:
    return json.dumps(model.model_json_schema())


def json_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of an answer model: closed objects, all fields required."""
    schema: dict[str, Any] = json.loads(_schema_of(model))
    schema.pop("description", None)
    return schema


class Reply(Record):
    """A teacher's typed reply. `text` is what it said, `message` why the reply is no answer.

    `usage` is what this reply cost; a reply from the ledger has `cached` true and was paid for before.
    """

    outcome: Outcome
    text: str | None = None
    finish_reason: str | None = None
    message: str | None = None
    usage: Usage = Usage()
    cached: bool = False


class Teacher(ABC):
    """One back end. A worker holds one teacher and calls it from one event loop.

    `billed` teachers are asked through the ledger; `sees` says what a request has to carry: encoded pictures, raw
    pixels, or no picture but the `subject`.
    """

    name: str
    model: str
    billed: bool
    sees: Literal["encoded", "pixels", "subject"]

    async def start(self) -> None:
        """Called once on the worker's event loop before the first request."""

    @abstractmethod
    async def ask(self, request: TeacherRequest) -> Reply:
        """One reply to one request. Never raises for what a server does; raises for a defect of ours."""

    async def stop(self) -> None:
        """Called once on the event loop after the last request; cancels what is still in flight."""


def picture_digest(pixels: NDArray[np.uint8], encoding: str) -> bytes:
    """The digest of a picture: its pixels, its shape and how it is to be encoded."""
    head = f"{pixels.shape} {encoding} ".encode()
    return digest_bytes(head + np.ascontiguousarray(pixels).tobytes())
