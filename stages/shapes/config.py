"""What the shapes world is asked to draw."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field

from schemas.base import Record
from stages.shapes.palette import KINDS, TEXTURES

Masks = Literal["none", "rle", "polygon"]
DefectKind = Literal[
    "background_box",
    "shifted_box",
    "zero_area_box",
    "outside_box",
    "nan_box",
    "missing_file",
    "unreadable_file",
    "unknown_category",
    "wrong_category",
]

DEFECT_KINDS: tuple[DefectKind, ...] = get_args(DefectKind)


class ShapesConfig(Record):
    """A folder of photos and clips of shapes.

    `size` is [width, height] of the photos, `clip_size` of the clips, in pixels. `jitter` moves each edge of a photo's
    annotated box by up to this fraction of the box's side. `masks` says which segmentation the photos' annotations
    carry: none (boxes only, so that refinement has work), exact `rle`, or `polygon` rings. `defects` is the share of
    photo annotations that a planted defect of one of `defect_kinds` replaces or joins; the truth file names each.
    """

    images: int = Field(24, ge=0)
    clips: int = Field(4, ge=0)
    size: tuple[int, int] = (320, 240)
    clip_size: tuple[int, int] = (256, 256)
    seed: int = Field(0, ge=0)
    objects: tuple[int, int] = (2, 5)
    kinds: tuple[str, ...] = tuple(KINDS)
    textures: tuple[str, ...] = tuple(TEXTURES)
    jitter: float = Field(0.05, ge=0, lt=0.5)
    masks: Masks = "none"
    defects: float = Field(0.0, ge=0, le=1)
    defect_kinds: tuple[DefectKind, ...] = DEFECT_KINDS
    clip_seconds: float = Field(7.0, gt=0)
    clip_objects: tuple[int, int] = (1, 3)
    clip_camera: float = Field(0.3, ge=0, le=1)
    clip_occlusion: float = Field(0.0, ge=0, le=1)
