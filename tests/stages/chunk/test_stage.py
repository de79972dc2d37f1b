"""The chunk stage: every masklet comes back, in order, covered, with the words of what it does."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.geometry import FrameMask, Rle
from schemas.keys import digest_value
from stages.base import fingerprint
from stages.chunk import ChunkConfig, ChunkStage, ChunkUnit, build_chunk
from stages.chunk.config import MotionConfig
from stages.shapes.clip import Clip, draw_clip

Rows = list[dict[str, Any]]
BLIND = MotionConfig(pixels=False)


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    return [draw_clip(seed, frames=42, size=(192, 144), camera=0.5) for seed in range(40, 48)]


def matched(truth: list[float], found: list[float], within: float = 0.3) -> int:
    left = list(truth)
    for moment in found:
        near = [t for t in left if abs(t - moment) <= within]
        if near:
            left.remove(min(near, key=lambda t: abs(t - moment)))
    return len(truth) - len(left)


def test_events_of_drawn_clips_are_found_and_named(
    clips: list[Clip], tmp_path: Path, units_of: Callable[..., list[ChunkUnit]], run_stage: Callable[..., Rows]
) -> None:
    hits = proposed = true = named = told = 0
    for number, clip in enumerate(clips):
        units = units_of(clip, f"clip{number}", tmp_path)
        rows = run_stage(build_chunk(ChunkConfig()), units)
        for unit, thing in zip(units, clip.objects, strict=True):
            mine = [row for row in rows if row["region_key"] == unit.region_key]
            truth = [event.start_s for event in thing.events[1:]]
            found = [row["start_s"] for row in mine[1:]]
            hits, proposed, true = hits + matched(truth, found), proposed + len(found), true + len(truth)
            for event in thing.events:
                row = max(mine, key=lambda r: min(r["end_s"], event.end_s) - max(r["start_s"], event.start_s))
                named += set(event.motion.split(", ")) == set(row["motion"].split(", "))
                told += 1
    f1 = 2 * hits / (proposed + true)
    assert true > 30
    assert f1 >= 0.95
    assert named / told >= 0.95


@pytest.mark.parametrize("backend", ["motion", "uniform"])
def test_events_cover_the_masklet_in_order(
    clips: list[Clip], backend: Any, units_of: Callable[..., list[ChunkUnit]], run_stage: Callable[..., Rows]
) -> None:
    units = [unit for number, clip in enumerate(clips) for unit in units_of(clip, f"clip{number}")]
    rows = run_stage(build_chunk(ChunkConfig(backend=backend, uniform_s=2.0, motion=BLIND)), units)
    by_region = {unit.region_key: [row for row in rows if row["region_key"] == unit.region_key] for unit in units}
    for unit in units:
        mine = by_region[unit.region_key]
        assert [row["event_index"] for row in mine] == list(range(mine[0]["num_events"]))
        assert (mine[0]["start_s"], mine[0]["start_frame"]) == (0.0, 0)
        assert mine[-1]["end_s"] == pytest.approx(7.0)
        assert mine[-1]["end_frame"] == 41
        for row, following in itertools.pairwise(mine):
            assert row["end_s"] == following["start_s"]
            assert row["end_frame"] + 1 == following["start_frame"]
        for row in mine:
            inside = unit.frames[row["start_frame"] : row["end_frame"] + 1]  # type: ignore[index]
            assert row["visible_share"] == pytest.approx(np.mean([frame.visible for frame in inside]))
            assert row["absent"] == (row["visible_share"] < 0.5)
            assert row["backend"] == backend


def test_order_and_batching_do_not_matter(
    clips: list[Clip], units_of: Callable[..., list[ChunkUnit]], run_stage: Callable[..., Rows]
) -> None:
    units = [unit for number, clip in enumerate(clips) for unit in units_of(clip, f"clip{number}")]
    stage = build_chunk(ChunkConfig(motion=BLIND))
    together = run_stage(stage, units)
    alone = [row for unit in reversed(units) for row in run_stage(stage, [unit])]
    assert together == sorted(alone, key=lambda row: (row["region_key"], row["event_index"]))


def test_what_cannot_be_cut_is_accounted_for(
    clips: list[Clip], units_of: Callable[..., list[ChunkUnit]], run_stage: Callable[..., Rows]
) -> None:
    good = units_of(clips[0], "good")[0]

    def variant(name: str, frames: list[FrameMask] | None) -> ChunkUnit:
        changed = {"region_key": digest_value(name), "frames": frames}
        return good.model_copy(update=changed)

    gone = [FrameMask(frame_index=i, time_s=i / 6, visible=False) for i in range(10)]
    broken = FrameMask(frame_index=0, time_s=0, visible=True, mask=Rle(size=(8, 8), counts="zzz"))
    units = [good, variant("none", None), variant("empty", []), variant("gone", gone), variant("broken", [broken])]
    rows = {row["region_key"]: row for row in run_stage(build_chunk(ChunkConfig(motion=BLIND)), units)}
    fates = [(rows[unit.region_key]["status"], rows[unit.region_key]["reason"]) for unit in units]
    assert fates == [
        ("ok", None),
        ("failed", "empty_masklet"),
        ("failed", "empty_masklet"),
        ("filtered", "never_visible"),
        ("failed", "invalid_mask"),
    ]


def test_a_video_that_is_needed_and_missing_fails_its_units_only(
    clips: list[Clip], tmp_path: Path, units_of: Callable[..., list[ChunkUnit]], run_stage: Callable[..., Rows]
) -> None:
    here, away = units_of(clips[0], "here", tmp_path)[0], units_of(clips[1], "away")[0]
    away = away.model_copy(update={"uri": str(tmp_path / "away.mp4")})
    rows = {row["region_key"]: row for row in run_stage(build_chunk(ChunkConfig()), [here, away])}
    assert rows[here.region_key]["status"] == "ok"
    assert (rows[away.region_key]["status"], rows[away.region_key]["reason"]) == ("failed", "missing_media")


def test_spans_of_a_file_are_mended_and_told(
    clips: list[Clip], tmp_path: Path, units_of: Callable[..., list[ChunkUnit]], run_stage: Callable[..., Rows]
) -> None:
    units = units_of(clips[0], "filed")
    lines = [{"source_id": "filed/0", "spans": [[3, 5], [0.5, 3.4], [9, 10]]}]
    path = tmp_path / "spans.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    stage = build_chunk(ChunkConfig(backend="file", file=str(path), motion=BLIND))
    rows = run_stage(stage, units[:1])
    assert next((r["start_s"], r["end_s"]) for r in rows if not r["absent"])[0] == 0.0
    assert "out of order" in rows[0]["message"]
    assert "overlaps cut" in rows[0]["message"]
    assert rows[-1]["end_s"] == pytest.approx(7.0)
    assert all(row["motion"] for row in rows)
    other = units[0].model_copy(update={"source_id": "unknown"})
    assert run_stage(stage, [other])[0]["reason"] == "no_spans"
    path.write_text('{"source_id": "a"}')
    with pytest.raises(ValueError, match=r"spans\.jsonl, line 1"):
        build_chunk(ChunkConfig(backend="file", file=str(path)))


def test_shots_are_cut_where_the_picture_changes(
    tmp_path: Path, units_of: Callable[..., list[ChunkUnit]], run_stage: Callable[..., Rows]
) -> None:
    first, second = (draw_clip(seed, frames=48, size=(96, 64), fps=12, camera=0, leave=0) for seed in (5, 6))
    joined = Clip(
        np.concatenate([first.frames, 255 - second.frames]),
        np.concatenate([first.masks[:, :1], second.masks[:, :1]]),
        np.arange(96) / 12,
        first.objects[:1],
        (0.0, 0.0),
    )
    rows = run_stage(build_chunk(ChunkConfig(backend="shots", motion=BLIND)), units_of(joined, "cut", tmp_path))
    assert [row["start_s"] for row in rows] == [0.0, pytest.approx(4.0, abs=0.1)]


def test_settings_name_what_the_events_depend_on() -> None:
    plain = fingerprint(ChunkStage(ChunkConfig()))
    assert fingerprint(ChunkStage(ChunkConfig(uniform_s=9))) == plain
    assert fingerprint(ChunkStage(ChunkConfig(min_s=0.5))) != plain
    assert fingerprint(ChunkStage(ChunkConfig(backend="uniform"))) != plain


@pytest.mark.parametrize(
    "bad", [{"max_s": 1.0}, {"backend": "file"}, {"file": "x.jsonl"}, {"backend": "magic"}, {"minimum": 1}]
)
def test_configurations_that_make_no_sense_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        ChunkConfig(**bad)
