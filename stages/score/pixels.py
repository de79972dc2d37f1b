"""Rule 16, colours: what a caption says of its target's colour against the pixels under the mask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import cv2
import numpy as np
import numpy.typing as npt
import polars as pl

from schemas.base import Box, Key, Row
from schemas.caption import Language, Task
from schemas.geometry import Rle
from schemas.media import MediaKind
from schemas.region import Hint
from stages.base import UnitError
from stages.masks import decode
from stages.media.images import load_image
from stages.media.video import open_video
from stages.score.base import Need, Rule, ScoreRow, ScoreStage, ScoreUnit
from stages.score.mentions import target_colours
from stages.score.words.tables import colours, tables_hash

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

SAMPLE = 2048
STILL_TASKS = ("label", "brief", "detailed")
TOLERANCE = 14.0
"""In CIE Lab: a pixel also looks like colours that are this much farther than its nearest one."""


class PixelUnit(ScoreUnit):
    """A caption and the mask of its region on its prompt frame."""

    media_key: Key
    task: Task
    text: str | None = None
    source_label: str | None = None
    hints: list[Hint] = []
    uri: str
    kind: MediaKind
    frame_index: int = 0
    fps: float | None = None
    mask: Rle | None = None
    box: Box | None = None


class PixelScores(ScoreRow):
    """Scores of rule 16 from pixels."""

    colour_support: float | None = None


class ColourCheck(Rule):
    """Rule 16, colours: a colour named of the target that its pixels do not show.

    `colour_support` is, for the least supported of the colours that the text says of its target ("a red and white
    cup", "杯子是红色的"), the share of mask pixels that look like it: whose CIE Lab distance to the colour's nearest
    anchor is at most 14 more than to the nearest of all. Null where the text names no colour of the target, and for
    captions of videos, whose targets may change colour, and for definitions, which speak of a class.
    Source: FILTERS rule 16; colour terms after Berlin and Kay, "Basic Color Terms" (1969).
    """

    name = "colour_check"
    number = 16
    version = 3
    needs: ClassVar[tuple[Need, ...]] = ("text", "mask", "pixels")
    columns = ("colour_support",)

    def settings(self) -> dict[str, Any]:
        return {"tables": tables_hash(), "tolerance": TOLERANCE}

    def scores(self, units: pl.DataFrame, language: Language) -> pl.DataFrame:
        still = units["task"].is_in(STILL_TASKS).to_numpy()
        named = np.where(still, units["_colours"].to_numpy(), 0)
        support = np.asarray(units["_profile"].to_list(), np.float64).reshape(len(units), -1)
        wanted = (named[:, None] >> np.arange(support.shape[1])) & 1 == 1
        least = np.where(wanted, support, np.inf).min(axis=1)
        known = np.isfinite(least)
        return pl.DataFrame({"colour_support": pl.Series(np.where(known, least, 0.0))}).select(
            pl.when(pl.Series(known)).then("colour_support").alias("colour_support")
        )


class PixelStage(ScoreStage):
    """Rule 16 over pixels: media are decoded once a batch, colours measured once a region that is called by one."""

    group: ClassVar[str] = "pixels"
    table: ClassVar[str] = "scores/pixels"
    unit: ClassVar[type[ScoreUnit]] = PixelUnit
    row: ClassVar[type[Row]] = PixelScores
    group_by: ClassVar[tuple[str, ...]] = ("media_key",)
    batch_groups: int = 64

    def __init__(self, storage_options: Mapping[str, Any] | None = None) -> None:
        super().__init__((ColourCheck(),))
        self.storage_options = dict(storage_options or {})

    def prepare(self, units: pl.DataFrame, language: Language) -> pl.DataFrame:
        told = units.with_columns(_colours=target_colours(units, language))
        profiles: dict[bytes, Floats] = {}
        failures: dict[bytes, str] = {}
        still = pl.col("task").is_in(STILL_TASKS) & pl.col("mask").is_not_null()
        coloured = told.filter(still & (pl.col("_colours") > 0)).unique("region_key")
        for (_, uri, kind, index), regions in coloured.group_by("media_key", "uri", "kind", "frame_index"):
            try:
                frame = load_frame(str(uri), str(kind), int(str(index)), regions["fps"][0], self.storage_options)
            except UnitError as error:
                failures |= dict.fromkeys(regions["region_key"].to_list(), error.reason)
                continue
            for region_key, mask in regions.select("region_key", "mask").iter_rows():
                try:
                    profiles[region_key] = colour_profile(frame, decode(Rle.model_validate(mask)))
                except (UnitError, ValueError) as error:
                    failures[region_key] = error.reason if isinstance(error, UnitError) else "bad_mask"
        nothing = np.full(len(colours()), np.inf, np.float32)
        rows = [profiles.get(key, nothing).tolist() for key in told["region_key"].to_list()]
        failed = [failures.get(key) for key in told["region_key"].to_list()]
        width = len(colours())
        return told.with_columns(
            _profile=pl.Series(rows, dtype=pl.List(pl.Float32)) if rows else pl.lit([0.0] * width),
            _failure=pl.Series(failed, dtype=pl.String),
        )


def load_frame(uri: str, kind: str, index: int, fps: float | None, storage_options: Mapping[str, Any]) -> Pixels:
    """The frame (H, W, 3) uint8 RGB that a region's prompt lies on. Raises `UnitError` where it cannot be read."""
    if kind == "image":
        return load_image(uri, storage_options)
    video = open_video(uri, fps=fps)
    try:
        frame: Pixels = video.frames([index])[0]
        return frame
    finally:
        video.close()


def colour_profile(frame: Pixels, mask: npt.NDArray[np.bool_]) -> Floats:
    """For each colour of the table the share of mask pixels that look like it; they overlap and need not sum to 1.

    `frame` is (H, W, 3) uint8 RGB, `mask` (H, W) bool. Edge pixels are left out where enough remain. Raises
    `UnitError` for a mask of another size or an empty one.
    """
    if mask.shape != frame.shape[:2]:
        raise UnitError("mask_size", f"the mask is {mask.shape}, the frame {frame.shape[:2]} (height, width)")
    if not mask.any():
        raise UnitError("empty_mask", "the mask covers no pixel")
    thin = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=0).astype(bool)
    rows = frame[thin if thin.sum() >= 64 else mask]
    lab = _lab(rows[:: max(1, len(rows) // SAMPLE)])
    gaps = np.stack([_gap(lab, _lab(np.asarray(colour.rgb, np.uint8))) for colour in colours().values()], axis=1)
    near = gaps <= gaps.min(axis=1, keepdims=True) + TOLERANCE
    return np.asarray(near.mean(axis=0), np.float32)


def _gap(lab: Floats, anchors: Floats) -> Floats:
    return np.asarray(np.linalg.norm(lab[:, None] - anchors[None], axis=2).min(axis=1), np.float32)


def _lab(rows: Pixels) -> Floats:
    flat = np.ascontiguousarray(rows, np.uint8).reshape(-1, 1, 3).astype(np.float32) / 255.0
    return np.asarray(cv2.cvtColor(flat, cv2.COLOR_RGB2LAB), np.float32).reshape(-1, 3)
