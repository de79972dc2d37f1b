"""Regions: what a source points at on a media, with all it says of the target."""

from __future__ import annotations

from typing import ClassVar, Literal

from schemas.base import Box, Key, Record, Row
from schemas.geometry import Point, Rle, TrackPoint
from schemas.media import MediaKind

HintKind = Literal["label", "phrase", "definition", "attribute", "caption", "relation", "action"]


class Hint(Record):
    """Text that a source gives about the target, in its own language (`en`, `zh`, ...)."""

    kind: HintKind
    language: str
    text: str


class Region(Row):
    """A region prompt on a media, as ingested.

    `box` is xyxy in float pixels of the upright image; `polygons` are flat `x0, y0, x1, y1, ...` rings in the same
    pixels; `mask` is a source mask; `track` is what the source says on the frames of a video. `frame_index` and
    `time_s` are the prompt frame (0 for images). `region_key` = H(media key, source, source id, prompt geometry); a
    region whose media could not be read has no media key and status `failed`.
    """

    key_field: ClassVar[str] = "region_key"
    content: ClassVar[tuple[str, ...]] = (
        "media_key", "source", "source_id", "frame_index", "box", "points", "polygons", "mask", "track",
        "label", "hints", "is_crowd", "is_group", "is_part", "split", "licence", "status", "reason",
    )  # fmt: skip

    region_key: Key
    media_key: Key | None
    uri: str
    kind: MediaKind
    source: str
    source_id: str
    source_media_id: str
    split: str
    licence: str | None = None
    frame_index: int = 0
    time_s: float = 0.0
    box: Box | None = None
    points: list[Point] | None = None
    polygons: list[list[float]] | None = None
    mask: Rle | None = None
    track: list[TrackPoint] | None = None
    label: str | None = None
    hints: list[Hint] = []
    is_crowd: bool = False
    is_group: bool = False
    is_part: bool = False
    message: str | None = None


class Selection(Row):
    """Whether a region goes on, decided before any money is spent."""

    key_field: ClassVar[str] = "region_key"
    content: ClassVar[tuple[str, ...]] = ("region_key", "status", "reason")

    region_key: Key
    source: str
