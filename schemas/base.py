"""The base of every record, and the field types that they share."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

SCHEMA_VERSION = 1

Status = Literal["ok", "filtered", "failed", "blocked"]


class FixedBytes:
    """Annotation marker: the Arrow type is `fixed_size_binary(width)`."""

    def __init__(self, width: int) -> None:
        self.width = width


class LocalPath:
    """Annotation marker of a configuration field: a relative path is resolved against the configuration file."""


PathStr = Annotated[str, LocalPath()]
"""A local path or any fsspec URL in a configuration."""


def _key_from(value: Any) -> Any:
    return bytes.fromhex(value) if isinstance(value, str) else value


Key = Annotated[
    bytes,
    FixedBytes(16),
    Field(min_length=16, max_length=16, json_schema_extra={"pattern": "^[0-9a-f]{32}$"}),
    BeforeValidator(_key_from),
    PlainSerializer(bytes.hex, return_type=str, when_used="json"),
]
"""16 bytes; hexadecimal only in JSON, for people."""

Box = tuple[float, float, float, float]
"""xyxy, float pixels of the EXIF-upright image."""


class Record(BaseModel):
    """A frozen row: unknown fields and non-finite numbers are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Row(Record):
    """A row of a stage's output table: one unit's fate, and what it was made from.

    `digest` covers the columns named in `content`; it is what the next stage calls its `input_digest`.
    """

    key_field: ClassVar[str]
    content: ClassVar[tuple[str, ...]] = ()

    input_digest: Key
    digest: Key | None = None
    status: Status = "ok"
    reason: str | None = None
    attempts: int = 1
