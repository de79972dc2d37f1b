"""Refinement of videos: drawn clips with exact masks, through both back ends."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from schemas.arrow import from_table, to_table
from schemas.geometry import TrackPoint
from schemas.keys import digest_value
from schemas.mask import Mask
from stages import masks
from stages.base import checked
from stages.refine.config import RefineConfig
from stages.refine.seeds import RefineUnit
from stages.refine.stage import build_refine
from stages.shapes.clip import Clip, draw_clip

FRAMES = 20


def folder_of(clip: Clip, path: Path) -> str:
    path.mkdir()
    for index, frame in enumerate(clip.frames):
        cv2.imwrite(str(path / f"{index:05d}.png"), cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    return f"{path}/"


@pytest.fixture(scope="module")
def clip() -> Clip:
    return draw_clip(3, frames=FRAMES, size=(128, 128), fps=12.0, objects=(2, 2), camera=0.0, leave=0.0)


@pytest.fixture(scope="module")
def folder(clip: Clip, tmp_path_factory: pytest.TempPathFactory) -> str:
    return folder_of(clip, tmp_path_factory.mktemp("video") / "clip")


def unit(uri: str, number: int, frames: int = FRAMES, **prompt: object) -> RefineUnit:
    return RefineUnit(
        input_digest=digest_value(number), region_key=digest_value([uri, number]), media_key=digest_value(uri), uri=uri,
        kind="video", width=128, height=128, num_frames=frames, fps=12.0, **prompt,
    )  # fmt: skip


def run(units: list[RefineUnit], config: RefineConfig) -> list[Mask]:
    stage = build_refine(config)
    stage.open()
    rows = [row for table in checked(stage, to_table(units, RefineUnit)) for row in from_table(table, Mask)]
    stage.close()
    return rows


def points(clip: Clip, number: int, every: int) -> list[TrackPoint]:
    return [
        TrackPoint(frame_index=index, time_s=index / 12, mask=masks.encode(clip.masks[index, number]))
        for index in range(0, FRAMES, every)
    ]


def mean_j(row: Mask, clip: Clip, number: int) -> float:
    assert row.frames is not None
    return float(
        np.mean(
            [
                masks.iou(frame.mask, masks.encode(clip.masks[frame.frame_index, number])) if frame.mask else 0.0
                for frame in row.frames
            ]
        )
    )


@pytest.mark.parametrize(
    ("config", "least"),
    [
        (RefineConfig(), 0.8),
        (RefineConfig(backend="sam2", checkpoint="nano", device="cpu", frame_batch=5), 0.88),
    ],
    ids=["grabcut", "nano"],
)
def test_objects_are_followed_both_ways_from_their_prompt_frames(
    clip: Clip, folder: str, config: RefineConfig, least: float
) -> None:
    units = [
        unit(folder, number, frame_index=frame, time_s=frame / 12, box=masks.box_of(clip.masks[frame, number]))
        for number, frame in ((0, 0), (1, 11))
    ]
    rows = {row.region_key: row for row in run(units, config)}
    for number, one in enumerate(units):
        row = rows[one.region_key]
        assert row.status == "ok", row.message
        assert row.frames is not None
        assert [frame.frame_index for frame in row.frames] == list(range(FRAMES))
        assert row.frames[5].time_s == pytest.approx(5 / 12)
        assert mean_j(row, clip, number) > least


def test_source_masks_stand_on_annotated_frames_and_their_absence_too(clip: Clip, folder: str) -> None:
    track = points(clip, 0, every=5)
    track[2] = TrackPoint(frame_index=10, time_s=10 / 12)
    row = run([unit(folder, 0, mask=track[0].mask, track=track)], RefineConfig())[0]
    assert row.frames is not None
    assert row.mask_source == "source"
    for frame in (0, 5, 15):
        assert row.frames[frame].mask == masks.encode(clip.masks[frame, 0])
    assert not row.frames[10].visible
    assert row.frames[10].mask is None
    assert "annotated frames" in (row.verdict or "")


def test_a_drifted_track_is_prompted_anew_from_an_annotated_frame(clip: Clip, folder: str) -> None:
    wrong = unit(folder, 0, mask=masks.encode(clip.masks[0, 1]), track=points(clip, 0, every=FRAMES // 2)[1:])
    config = RefineConfig(backend="sam2", checkpoint="nano", device="cpu", prefer="refined")
    row = run([wrong], config)[0]
    assert row.frames is not None
    late = [frame for frame in row.frames if frame.frame_index > FRAMES // 2 and frame.mask is not None]
    assert np.mean([masks.iou(f.mask, masks.encode(clip.masks[f.frame_index, 0])) for f in late]) > 0.8


def test_long_videos_come_in_segments_and_a_break_fails_only_what_follows(tmp_path: Path) -> None:
    long = draw_clip(5, frames=70, size=(64, 64), fps=24.0, objects=(1, 1), camera=0.0, leave=0.0)
    uri = folder_of(long, tmp_path / "long")
    box = masks.box_of(long.masks[0, 0])
    rows = run([unit(uri, 0, 70, box=box)], RefineConfig())
    assert [(row.segment, row.num_segments, len(row.frames or [])) for row in rows] == [(0, 2, 64), (1, 2, 6)]
    assert len({row.mask_key for row in rows}) == 2
    (tmp_path / "long" / "00067.png").write_bytes(b"broken")
    rows = run([unit(uri, 0, 70, box=box)], RefineConfig())
    assert [(row.segment, row.status, row.reason) for row in rows] == [
        (0, "ok", None),
        (1, "failed", "unreadable_media"),
    ]


def test_damage_fails_its_own_rows_only(clip: Clip, folder: str, tmp_path: Path) -> None:
    (tmp_path / "cut.mp4").write_bytes(b"\0\0\0\x18ftypmp42")
    units = [
        unit(folder, 0, box=masks.box_of(clip.masks[0, 0])),
        unit(folder, 1, frame_index=900, box=masks.box_of(clip.masks[0, 1])),
        unit(str(tmp_path / "cut.mp4"), 2, box=(1.0, 1.0, 9.0, 9.0)),
        unit(str(tmp_path / "gone.mp4"), 3, box=(1.0, 1.0, 9.0, 9.0)),
    ]
    rows = {row.region_key: row for row in run(units, RefineConfig())}
    assert [rows[one.region_key].reason for one in units] == [None, "bad_frame", "unreadable_media", "missing_media"]


def test_j_f_and_their_mean_are_told_where_the_source_has_masks(clip: Clip, folder: str) -> None:
    config = RefineConfig(backend="sam2", checkpoint="nano", device="cpu", prefer="refined")
    row = run([unit(folder, 0, mask=masks.encode(clip.masks[0, 0]), track=points(clip, 0, every=5))], config)[0]
    assert row.frames is not None
    tracked = [masks.decode(f.mask) if f.mask else np.zeros((128, 128), np.bool_) for f in row.frames[5::5]]
    j, f, both = masks.j_and_f(tracked, [clip.masks[index, 0] for index in (5, 10, 15)])
    assert f"mean J {j:.2f}, F {f:.2f}, J&F {both:.2f} on 3 annotated frames" in (row.verdict or "")


@pytest.mark.slow
def test_a_break_costs_sam2_no_segment_before_it(tmp_path: Path) -> None:
    long = draw_clip(5, frames=70, size=(64, 64), fps=24.0, objects=(1, 1), camera=0.0, leave=0.0)
    uri = folder_of(long, tmp_path / "long")
    (tmp_path / "long" / "00066.png").write_bytes(b"broken")
    config = RefineConfig(backend="sam2", checkpoint="nano", device="cpu", frame_batch=11)
    rows = run([unit(uri, 0, 70, mask=masks.encode(long.masks[0, 0]))], config)
    assert [(row.segment, row.status, row.reason) for row in rows] == [
        (0, "ok", None),
        (1, "failed", "unreadable_media"),
    ]
