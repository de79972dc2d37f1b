"""How views are drawn and encoded."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from schemas.base import Record

ImageView = Literal["crop_mask", "full_mask", "contour", "set_of_marks"]
VideoView = Literal["storyboard", "clip_frames"]
Encoding = Literal["jpeg", "png", "webp"]


class ViewConfig(Record):
    """Sizes are of the picture that the teacher gets, in pixels; shares are of the picture's sides or of brightness.

    `context` is the side of a crop in sides of the target's box (3 is the focal crop of Describe Anything,
    arXiv 2504.16072; 2 spends fewer tokens on surroundings); crops are at least `min_crop` pixels of the photograph.
    Pictures are scaled so that the longer side is at most `max_side` and the shorter at least `min_side` where that
    fits; `multiple` rounds both sides to whole visual patches of the teacher.
    """

    context: float = Field(default=2.0, ge=1.0, le=8.0)
    min_crop: int = Field(default=48, ge=1)
    max_side: int = Field(default=512, ge=32, le=4096)
    min_side: int = Field(default=224, ge=16, le=4096)
    multiple: int = Field(default=28, ge=1, le=64)
    dim: float = Field(default=0.8, ge=0.0, le=1.0)
    blank: tuple[int, int, int] = (255, 255, 255)
    line_share: float = Field(default=0.004, gt=0.0, le=0.02)
    mark: int = Field(default=1, ge=1, le=99)
    encoding: Encoding = "jpeg"
    quality: int = Field(default=90, ge=1, le=100)
