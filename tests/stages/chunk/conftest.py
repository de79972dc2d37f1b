"""Drawn clips as chunk units."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from schemas.arrow import to_table
from schemas.geometry import FrameMask
from schemas.keys import digest_value
from stages.chunk import ChunkUnit
from stages.masks import box_of, encode
from stages.shapes.clip import Clip
from stages.shapes.clips import write_mp4


@pytest.fixture(scope="session")
def units_of() -> Callable[..., list[ChunkUnit]]:
    """Makes the units of a clip's objects; with `folder` its frames are written there as a video."""

    def make(clip: Clip, name: str, folder: Path | None = None) -> list[ChunkUnit]:
        fps = 1 / float(clip.times_s[1])
        uri = f"memory://{name}.mp4"
        if folder is not None:
            uri = str(folder / f"{name}.mp4")
            write_mp4(Path(uri), list(clip.frames), round(fps))
        height, width = clip.frames.shape[1:3]
        units = []
        for k in range(clip.masks.shape[1]):
            frames = []
            for i, mask in enumerate(clip.masks[:, k]):
                seen = bool(mask.any())
                frames.append(
                    FrameMask(
                        frame_index=i,
                        time_s=float(clip.times_s[i]),
                        visible=seen,
                        box=box_of(mask),
                        mask=encode(mask) if seen else None,
                        area_share=float(mask.mean()),
                    )
                )
            units.append(
                ChunkUnit(
                    region_key=digest_value([name, k]),
                    media_key=digest_value(name),
                    source_id=f"{name}/{k}",
                    uri=uri,
                    width=width,
                    height=height,
                    fps=fps,
                    num_frames=len(frames),
                    duration_s=len(frames) / fps,
                    frames=frames,
                    input_digest=digest_value(["in", name, k]),
                )
            )
        return units

    return make


@pytest.fixture(scope="session")
def run_stage() -> Callable[..., list[dict[str, Any]]]:
    """Runs a stage over units through `checked`; returns the rows as dictionaries, in order of region and event."""
    from stages.base import checked

    def run(stage: Any, units: Sequence[ChunkUnit]) -> list[dict[str, Any]]:
        stage.open()
        try:
            rows = pa.concat_tables(list(checked(stage, to_table(units, ChunkUnit)))).to_pylist()
        finally:
            stage.close()
        return sorted(rows, key=lambda row: (row["region_key"], row["event_index"]))

    return run
