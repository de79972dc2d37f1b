"""What a refiner is asked for and what it answers, the same for every back end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from schemas.base import Box, Key, Record
from schemas.geometry import Point, Rle, TrackPoint
from schemas.media import MediaKind
from stages import masks
from stages.base import UnitError
from stages.masks import MaskArray

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


class RefineUnit(Record):
    """One region and its media: the columns of both that refinement reads."""

    input_digest: Key
    region_key: Key
    media_key: Key
    uri: str
    kind: MediaKind
    frame_index: int = 0
    time_s: float = 0.0
    box: Box | None = None
    points: list[Point] | None = None
    polygons: list[list[float]] | None = None
    mask: Rle | None = None
    track: list[TrackPoint] | None = None
    width: int
    height: int
    num_frames: int = 1
    fps: float | None = None


@dataclass(frozen=True)
class Seed:
    """A prompt in pixels of the image: any of box, points and source mask (bool, the image's size), at least one."""

    box: Box | None
    points: tuple[Point, ...]
    mask: MaskArray | None

    @property
    def extent(self) -> Box | None:
        """The box that the source gives, or the box of its mask."""
        if self.box is not None:
            return self.box
        return masks.box_of(self.mask) if self.mask is not None else None


@dataclass(frozen=True)
class Candidate:
    """A refiner's mask (bool, the image's size), its estimate of its IoU and SAM's stability (None: no such).

    `box` is the mask's tight box where the refiner knows it (None: to be looked for); all work on a mask is then by
    the size of the box, not of the image.
    """

    mask: MaskArray
    predicted_iou: float | None = None
    stability: float | None = None
    box: Box | None = None

    def located(self) -> Candidate:
        """The same with its box, which stays None for an empty mask."""
        return self if self.box is not None else replace(self, box=masks.box_of(self.mask))


def seed_of(unit: RefineUnit, height: int, width: int) -> Seed:
    """The seed of a region on an image of this size.

    Raises `UnitError`: `bad_mask` for a source mask that cannot be read, `box_outside` for a box that does not meet
    the image, `no_prompt` where there is nothing to go by.
    """
    box = _clipped(unit.box, height, width) if unit.box is not None else None
    points = tuple(unit.points or ())
    source = source_mask(unit.mask, unit.polygons, height, width)
    if box is None and not points and source is None:
        raise UnitError("no_prompt", "the region has no box, point, polygon or mask")
    return Seed(box, points, source)


def source_mask(
    mask: Rle | None, polygons: Sequence[Sequence[float]] | None, height: int, width: int
) -> MaskArray | None:
    """The mask that the source gives, at this size; None where it gives none or an empty one."""
    try:
        if mask is not None:
            array = _fitted(mask, height, width)
        elif polygons:
            array = masks.decode(masks.from_polygons(polygons, height, width))
        else:
            return None
    except ValueError as error:
        raise UnitError("bad_mask", f"the source mask cannot be read: {error}") from error
    return array if array.any() else None


def _fitted(mask: Rle, height: int, width: int) -> MaskArray:
    """Published masks are at times a pixel smaller or larger than their frame; more is another image's mask."""
    if abs(mask.size[0] - height) > 2 or abs(mask.size[1] - width) > 2:
        raise UnitError("bad_mask", f"the mask is {mask.size[1]}x{mask.size[0]}, the image {width}x{height} pixels")
    return masks.resize(mask, height, width)


def _clipped(box: Box, height: int, width: int) -> Box:
    x0, y0, x1, y1 = max(box[0], 0.0), max(box[1], 0.0), min(box[2], float(width)), min(box[3], float(height))
    if x1 <= x0 or y1 <= y0:
        raise UnitError("box_outside", f"the box {box} does not meet the image of {width}x{height} pixels")
    return (x0, y0, x1, y1)
