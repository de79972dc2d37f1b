"""Rule 17: whether the mask under a caption is one that a teacher could have described."""

from __future__ import annotations

from typing import ClassVar

import polars as pl

from schemas.base import Box, Row
from schemas.caption import Language
from schemas.geometry import Rle
from stages.score.base import Need, Rule, ScoreRow, ScoreStage, ScoreUnit


class MaskUnit(ScoreUnit):
    """The refined mask of the caption's region: a column each of `schemas.mask.Mask`, of the prompt frame."""

    mask: Rle | None = None
    box: Box | None = None
    predicted_iou: float | None = None
    stability: float | None = None
    seed_agreement: float | None = None
    area_share: float | None = None
    main_part_share: float | None = None


class MaskScores(ScoreRow):
    """Scores of rule 17."""

    mask_predicted_iou: float | None = None
    mask_stability: float | None = None
    mask_seed_agreement: float | None = None
    mask_area_share: float | None = None
    mask_area_px: float | None = None
    mask_short_side_px: float | None = None
    mask_box_fill: float | None = None
    mask_main_part: float | None = None


class MaskQuality(Rule):
    """Rule 17: bad masks make bad text.

    Facts of the refined mask: the refiner's own IoU estimate and stability (null where the refiner has none), the
    agreement with the seed (IoU), the share of the image, the area in pixels, the shorter side of its box in pixels,
    the share of its box that it fills, and the share of its largest connected part. A caption without a mask scores
    null throughout.
    Source: FILTERS rule 17; stability as in SAM (arXiv 2304.02643, section 5).
    """

    name = "mask_quality"
    number = 17
    needs: ClassVar[tuple[Need, ...]] = ("mask",)
    columns = (
        "mask_predicted_iou", "mask_stability", "mask_seed_agreement", "mask_area_share", "mask_area_px",
        "mask_short_side_px", "mask_box_fill", "mask_main_part",
    )  # fmt: skip

    def scores(self, units: pl.DataFrame, language: Language) -> pl.DataFrame:
        size = pl.col("mask").struct.field("size")
        pixels = size.arr.get(0) * size.arr.get(1)
        area = pl.col("area_share") * pixels
        width = pl.col("box").arr.get(2) - pl.col("box").arr.get(0)
        height = pl.col("box").arr.get(3) - pl.col("box").arr.get(1)
        box = width * height
        return units.select(
            mask_predicted_iou="predicted_iou",
            mask_stability="stability",
            mask_seed_agreement="seed_agreement",
            mask_area_share="area_share",
            mask_area_px=area,
            mask_short_side_px=pl.min_horizontal(width, height),
            mask_box_fill=pl.when(box > 0).then(area / box),
            mask_main_part="main_part_share",
        )


class MaskStage(ScoreStage):
    """Rule 17 over the mask of the caption's region."""

    group: ClassVar[str] = "mask"
    table: ClassVar[str] = "scores/mask"
    unit: ClassVar[type[ScoreUnit]] = MaskUnit
    row: ClassVar[type[Row]] = MaskScores

    def __init__(self) -> None:
        super().__init__((MaskQuality(),))
