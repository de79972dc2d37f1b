"""From a unit to what its teacher gets of it: pictures, or the measured teacher's subject."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from schemas.base import Box
from schemas.geometry import Rle
from stages.base import UnitError
from stages.distill.units import CaptionUnit
from stages.masks import box_of, decode
from stages.media.images import decode_image, read_bytes
from stages.teachers.protocol import Picture, Subject
from stages.views.config import ViewConfig
from stages.views.encode import to_picture
from stages.views.images import render

Pixels = NDArray[np.uint8]


def load_image(unit: CaptionUnit, storage_options: Mapping[str, Any]) -> Pixels:
    """The image (H, W, 3) uint8 RGB of a unit. Raises `UnitError` for a file that cannot be read."""
    return decode_image(read_bytes(unit.uri, storage_options))


def mask_on(mask: Rle | None, pixels: Pixels) -> NDArray[np.bool_]:
    """A mask (H, W) on its frame. Raises `UnitError` where there is none or it is of another size."""
    if mask is None:
        raise UnitError("no_mask", "the region has no refined mask")
    if tuple(mask.size) != pixels.shape[:2]:
        raise UnitError("mask_size", f"the mask is {tuple(mask.size)}, the frame {pixels.shape[:2]} (height, width)")
    inside = decode(mask)
    if not inside.any():
        raise UnitError("empty_mask", "the region's mask covers no pixel")
    return inside


def teacher_pictures(
    unit: CaptionUnit, pixels: Pixels, views: Sequence[str], config: ViewConfig, sees: Literal["encoded", "pixels"]
) -> list[Picture]:
    """The pictures of an image unit through all views. Raises `UnitError` for a mask that cannot be shown."""
    mask = mask_on(unit.mask, pixels)
    box = box_of(mask) or _whole(pixels)
    return [
        to_picture(picture, config, encoded=sees == "encoded")
        for view in views
        for picture in render(view, pixels, mask, box, config)
    ]


def image_subject(unit: CaptionUnit, pixels: Pixels) -> Subject:
    """The subject of an image unit: the crop of its mask's box. Raises `UnitError` like `mask_on`."""
    crop, cut, inside = cut_out(pixels, mask_on(unit.mask, pixels))
    return Subject(
        task=unit.task,
        language=unit.language,
        label=unit.label,
        hints=tuple(unit.hints),
        width=pixels.shape[1],
        height=pixels.shape[0],
        crop=crop,
        pixels=cut,
        mask=inside,
    )


def cut_out(pixels: Pixels, mask: NDArray[np.bool_]) -> tuple[Box, Pixels, NDArray[np.bool_]]:
    """The crop of a mask's box as xyxy pixels, and copies of frame and mask there; the frame itself may be freed."""
    x0, y0, x1, y1 = (int(edge) for edge in box_of(mask) or _whole(pixels))
    crop = (float(x0), float(y0), float(x1), float(y1))
    return crop, pixels[y0:y1, x0:x1].copy(), mask[y0:y1, x0:x1].copy()


def _whole(pixels: Pixels) -> Box:
    return 0.0, 0.0, float(pixels.shape[1]), float(pixels.shape[0])
