"""Rows of the masks table from verdicts and failures."""

from __future__ import annotations

from schemas.geometry import FrameMask
from schemas.keys import digest_value
from schemas.mask import SEGMENT_FRAMES, Mask
from stages.base import UnitError
from stages.refine.seeds import RefineUnit
from stages.refine.verdict import Verdict


def num_segments(num_frames: int) -> int:
    """How many segments of at most `SEGMENT_FRAMES` a media has (1 for an image)."""
    return max(1, -(-num_frames // SEGMENT_FRAMES))


def mask_key(region_key: bytes, segment: int) -> bytes:
    """H(region key, segment)."""
    return digest_value([region_key, segment])


def mask_row(
    unit: RefineUnit, backend: str, verdict: Verdict, segment: int = 0, frames: list[FrameMask] | None = None
) -> Mask:
    """The row of a refined region, or of one segment of its masklet; `mask` and `box` are of the prompt frame."""
    return Mask(
        input_digest=unit.input_digest,
        mask_key=mask_key(unit.region_key, segment),
        region_key=unit.region_key,
        media_key=unit.media_key,
        segment=segment,
        num_segments=num_segments(unit.num_frames),
        frame_index=unit.frame_index,
        time_s=unit.time_s,
        mask=verdict.rle,
        box=verdict.box,
        frames=frames,
        predicted_iou=verdict.predicted_iou,
        stability=verdict.stability,
        seed_agreement=verdict.seed_agreement,
        area_share=verdict.area_share,
        parts=verdict.parts,
        main_part_share=verdict.main_part_share,
        holes_filled=verdict.holes_filled,
        mask_source=verdict.mask_source,
        verdict=verdict.verdict,
        backend=backend,
    )


def failed_row(unit: RefineUnit, backend: str, error: UnitError, segment: int = 0, segments: int = 1) -> Mask:
    """The row of a region, or of one of its segments, that could not be refined."""
    return Mask(
        input_digest=unit.input_digest,
        status="failed",
        reason=error.reason,
        message=error.message,
        mask_key=mask_key(unit.region_key, segment),
        region_key=unit.region_key,
        media_key=unit.media_key,
        segment=segment,
        num_segments=segments,
        frame_index=unit.frame_index,
        time_s=unit.time_s,
        backend=backend,
    )
