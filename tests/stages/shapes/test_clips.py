"""The clips of the shapes world: SA-V files, exact masks, events that the masks bear out."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest

from schemas.geometry import Rle
from stages.masks import decode
from stages.shapes.clip import Clip, draw_clip
from stages.shapes.clips import write_clips
from stages.shapes.config import ShapesConfig
from stages.shapes.palette import COLOURS, lab
from stages.shapes.script import DIRECTIONS


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    return [draw_clip(seed, frames=42, size=(128, 128), camera=0.0) for seed in range(12)]


def test_a_seed_fixes_a_clip() -> None:
    one, same, other = draw_clip(3, 8, (64, 64)), draw_clip(3, 8, (64, 64)), draw_clip(4, 8, (64, 64))
    assert np.array_equal(one.frames, same.frames)
    assert np.array_equal(one.masks, same.masks)
    assert one.objects == same.objects
    assert not np.array_equal(one.frames, other.frames)


def test_events_cover_the_clip_in_order(clips: list[Clip]) -> None:
    for clip in clips:
        for thing in clip.objects:
            assert thing.events[0].start_s == 0
            assert thing.events[-1].end_s == pytest.approx(len(clip.frames) / 6)
            for event, following in zip(thing.events, thing.events[1:], strict=False):
                assert event.end_s == pytest.approx(following.start_s)
                assert event.motion != following.motion


def test_absence_is_where_no_pixel_is_visible(clips: list[Clip]) -> None:
    absences = 0
    for clip in clips:
        for k, thing in enumerate(clip.objects):
            visible = clip.masks[:, k].any((1, 2))
            for event in thing.events:
                inside = (clip.times_s >= event.start_s - 1e-9) & (clip.times_s < event.end_s - 1e-9)
                assert visible[inside].any() != event.absent or not inside.any()
                absences += event.absent
    assert absences > 2


def test_masks_move_as_the_words_say(clips: list[Clip]) -> None:
    checked = 0
    for clip in clips:
        for k, thing in enumerate(clip.objects):
            for event in thing.events:
                inside = (clip.times_s >= event.start_s) & (clip.times_s <= event.end_s)
                if event.absent or inside.sum() < 3 or "leaving" in event.motion or "returning" in event.motion:
                    continue
                first, last = clip.masks[inside][0, k], clip.masks[inside][-1, k]
                step = np.argwhere(last).mean(0)[::-1] - np.argwhere(first).mean(0)[::-1]
                growth = np.log(last.sum() / first.sum())
                name = event.motion.removeprefix("moving ")
                if name in DIRECTIONS:
                    assert step @ DIRECTIONS[name] > 0.9 * np.linalg.norm(step) > 2
                elif name in ("growing", "shrinking"):
                    assert (growth > 0.1) == (name == "growing")
                else:
                    assert np.linalg.norm(step) < 2
                checked += 1
    assert checked > 30


def test_the_camera_moves_everything_together() -> None:
    for seed in range(30):
        clip = draw_clip(seed, frames=24, size=(128, 128), camera=1.0, leave=0.0)
        for k, thing in enumerate(clip.objects):
            if thing.events[0].motion != "still":
                continue
            centres = [np.argwhere(mask).mean(0)[::-1] for mask in clip.masks[:, k]]
            count = int(thing.events[0].end_s * 6)
            measured = (centres[count] - centres[0]) / (count / 6)
            assert np.allclose(measured, -np.array(clip.camera), atol=1.5)
            return
    pytest.fail("no clip began with a still shape")


def test_clips_are_h264_with_sa_v_records(tmp_path: Path) -> None:
    paths = write_clips(tmp_path, ShapesConfig(clips=2, seed=4, clip_seconds=3, clip_size=(96, 64)))
    truth = json.loads(paths.truth.read_text())["clips"]
    assert len(paths.annotations) == 2
    for path in paths.annotations:
        record = json.loads(path.read_text())
        with av.open(str(path.with_name(f"{record['video_id']}.mp4"))) as container:
            assert container.streams.video[0].codec_context.name == "h264"
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert len(frames) == record["video_frame_count"] == 72
        assert len(record["masklet"]) == 18
        for row, image in zip(record["masklet"], frames[::4], strict=True):
            for thing, coded in zip(truth[record["video_id"]]["objects"], row, strict=True):
                mask = decode(Rle(**coded))
                if mask.sum() > 60 and thing["events"][0]["motion"] == "still" and image is frames[0]:
                    typical = lab(np.median(image[mask], axis=0).astype(np.uint8))
                    assert np.linalg.norm(typical - lab(np.array(COLOURS[thing["colour"]].rgb))) < 22


def test_sa_v_keys_are_those_of_the_public_example(tmp_path: Path, shared_data: Path) -> None:
    public = json.loads((shared_data / "sav" / "sav_000001_manual.json").read_text())
    path = write_clips(tmp_path, ShapesConfig(clips=1, clip_seconds=1, clip_size=(64, 64))).annotations[0]
    record = json.loads(path.read_text())
    assert list(record) == list(public)
    for name, value in public.items():
        assert type(record[name]) is type(value), name
        if isinstance(value, list):
            assert type(record[name][0]) is type(value[0]), name
