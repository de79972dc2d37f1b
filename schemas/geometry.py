"""Geometry that records carry: points, run-length masks, tracks. Pixels of the EXIF-upright image."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from schemas.base import Box, Record


class Point(Record):
    """A click: pixel coordinates, label 1 inside the target and 0 outside."""

    x: float
    y: float
    label: Annotated[int, Field(ge=0, le=1)] = 1


class Rle(Record):
    """A mask as COCO compressed run lengths: `size` is [height, width], `counts` the pycocotools string."""

    size: tuple[int, int]
    counts: str


class TrackPoint(Record):
    """What a source says of its target on one video frame; a null box and mask mean it is absent there."""

    frame_index: int
    time_s: float
    box: Box | None = None
    mask: Rle | None = None


class FrameMask(Record):
    """The refined mask of a target on one video frame. `visible` is false where the target is absent."""

    frame_index: int
    time_s: float
    visible: bool
    box: Box | None = None
    mask: Rle | None = None
    area_share: float = 0.0
    object_score: float | None = None
