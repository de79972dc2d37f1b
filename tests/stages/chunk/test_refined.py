"""Events of masklets that nobody drew: SAM 2 made them from one box."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schemas.arrow import from_table, to_table
from schemas.mask import Mask
from stages.base import checked
from stages.chunk import ChunkConfig, ChunkUnit, build_chunk
from stages.refine.config import RefineConfig
from stages.refine.seeds import RefineUnit
from stages.refine.stage import RefineStage, build_refine
from stages.shapes.clip import draw_clip

CLIPS = 6


@pytest.fixture(scope="module")
def nano() -> RefineStage:
    pytest.importorskip("sam2", reason="the extra [sam2] is not installed")
    stage = build_refine(RefineConfig(backend="sam2", checkpoint="nano", device="cpu", workers=1))
    stage.open()
    return stage


def refined(unit: ChunkUnit, refiner: RefineStage) -> ChunkUnit:
    """The unit with the masklet that a refiner makes from the box on the first frame on which its target is visible."""
    first = next(frame for frame in unit.frames or () if frame.visible)
    asked = RefineUnit(
        input_digest=unit.input_digest, region_key=unit.region_key, media_key=unit.media_key, uri=unit.uri,
        kind="video", width=unit.width, height=unit.height, num_frames=unit.num_frames, fps=unit.fps,
        box=first.box, frame_index=first.frame_index, time_s=first.time_s,
    )  # fmt: skip
    frames = [
        frame
        for table in checked(refiner, to_table([asked], RefineUnit))
        for row in from_table(table, Mask)
        for frame in row.frames or ()
    ]
    return unit.model_copy(update={"frames": sorted(frames, key=lambda frame: frame.frame_index)})


@pytest.mark.slow
def test_events_are_found_on_masklets_made_from_one_box(
    nano: RefineStage, tmp_path: Path, units_of: Callable[..., list[ChunkUnit]], run_stage: Callable[..., Any]
) -> None:
    """200 such clips have F1 0.93 (benchmarks/results/chunk.txt); a few vary more."""
    hits = proposed = true = 0
    for seed in range(CLIPS):
        clip = draw_clip((1, seed), frames=42)
        units = [refined(unit, nano) for unit in units_of(clip, f"clip{seed}", tmp_path)]
        rows = run_stage(build_chunk(ChunkConfig()), units)
        for unit, thing in zip(units, clip.objects, strict=True):
            found = [row["start_s"] for row in rows if row["region_key"] == unit.region_key][1:]
            truth = [event.start_s for event in thing.events[1:]]
            proposed, true = proposed + len(found), true + len(truth)
            for moment in found:
                near = [edge for edge in truth if abs(edge - moment) <= 0.3]
                if near:
                    truth.remove(min(near, key=lambda edge: abs(edge - moment)))
                    hits += 1
    assert true > 20
    assert 2 * hits / (proposed + true) >= 0.85
