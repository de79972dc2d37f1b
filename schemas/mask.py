"""Masks: a row a region, or for video a row a region and segment of at most 64 frames."""

from __future__ import annotations

from typing import ClassVar, Literal

from schemas.base import Box, Key, Row
from schemas.geometry import FrameMask, Rle

MaskSource = Literal["refined", "source"]

SEGMENT_FRAMES = 64


class Mask(Row):
    """A refined mask with the facts that rule 17 reads; a null score is neither pass nor fail.

    `mask` and `box` (xyxy) are of the prompt frame; `frames` is the masklet's segment for a video. `predicted_iou` is
    the refiner's own estimate, `stability` SAM's (IoU of the mask over logit offsets +-1), `seed_agreement` the IoU
    with the seed mask, or of the mask's box with the seed box. `mask_key` = H(region key, segment).
    """

    key_field: ClassVar[str] = "mask_key"
    content: ClassVar[tuple[str, ...]] = ("region_key", "segment", "mask", "frames", "status", "reason")

    mask_key: Key
    region_key: Key
    media_key: Key
    segment: int = 0
    num_segments: int = 1
    frame_index: int = 0
    time_s: float = 0.0
    mask: Rle | None = None
    box: Box | None = None
    frames: list[FrameMask] | None = None
    predicted_iou: float | None = None
    stability: float | None = None
    seed_agreement: float | None = None
    area_share: float | None = None
    parts: int | None = None
    main_part_share: float | None = None
    holes_filled: int | None = None
    mask_source: MaskSource | None = None
    verdict: str | None = None
    backend: str
    message: str | None = None
