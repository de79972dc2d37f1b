"""Video and streaming captions of drawn clips by the measured teacher, in order and with history."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from schemas.arrow import from_table, to_table
from schemas.caption import Caption, Language
from schemas.geometry import FrameMask, Rle
from schemas.keys import digest_value
from schemas.sample import SampleEvent
from stages.base import checked
from stages.distill import CaptionsConfig, build_distill
from stages.distill.units import EarlierCaption, StreamUnit, VideoUnit
from stages.distill.video import history_for
from stages.masks import area, box_of, decode
from stages.shapes.clips import write_clips
from stages.shapes.config import ShapesConfig
from stages.teachers.config import TeacherConfig

FPS = 24.0


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """One record a masklet: its video, its masks as `FrameMask`, its true events."""
    folder = tmp_path_factory.mktemp("clips")
    made = write_clips(folder, ShapesConfig(images=0, clips=2, seed=5, clip_seconds=4.0))
    truth = json.loads(made.truth.read_text())
    found = []
    for path in made.annotations:
        record = json.loads(path.read_text())
        video = next(made.media.glob(f"{record['video_id']}*.mp4"))
        things = next(clip for name, clip in truth["clips"].items() if record["video_id"] in name)["objects"]
        step = round(record["video_frame_count"] / len(record["masklet"]))
        for number, thing in enumerate(things):
            frames = []
            for index, masks in enumerate(record["masklet"]):
                rle = Rle.model_validate(masks[number])
                shown = area(rle) > 0
                share = area(rle) / (rle.size[0] * rle.size[1])
                frames.append(
                    FrameMask(
                        frame_index=index * step,
                        time_s=index * step / FPS,
                        visible=shown,
                        box=box_of(decode(rle)),
                        mask=rle if shown else None,
                        area_share=share,
                    )
                )
            found.append({"uri": str(video), "frames": frames, "label": thing["kind"], **thing})
    return found


def common(clip: dict[str, Any], number: int, task: str, language: Language, event: int = -1) -> dict[str, Any]:
    region = digest_value(["region", number])
    return {
        "caption_key": digest_value([region, task, language, event]), "region_key": region,
        "media_key": digest_value(clip["uri"]), "task": task, "language": language, "event_index": event,
        "uri": clip["uri"], "kind": "video", "source": "shapes", "label": clip["label"], "width": 256, "height": 256,
        "frames": clip["frames"], "input_digest": digest_value([number, event]),
    }  # fmt: skip


def chain(clip: dict[str, Any], number: int, language: Language = "en") -> list[StreamUnit]:
    return [
        StreamUnit(
            **common(clip, number, "stream", language, index),
            num_events=len(clip["events"]),
            start_frame=round(event["start_s"] * FPS),
            end_frame=round(event["end_s"] * FPS),
            start_s=event["start_s"],
            end_s=event["end_s"],
            visible_share=0.0 if event["absent"] else 1.0,
            absent=event["absent"],
            motion=event["motion"],
        )
        for index, event in enumerate(clip["events"])
    ]


def run(units: list[Any], captions: CaptionsConfig | None = None) -> list[Caption]:
    first = units[0]
    stage = build_distill(TeacherConfig(), captions or CaptionsConfig(), first.task, first.language)
    stage.open()
    try:
        table = pa.concat_tables(checked(stage, to_table(units, type(first))))
    finally:
        stage.close()
    rows = {row.caption_key: row for row in from_table(table, Caption)}
    return [rows[unit.caption_key] for unit in units]


def test_each_event_names_its_motion_and_carries_the_caption_before_it(clips: list[dict[str, Any]]) -> None:
    units = [unit for number, clip in enumerate(clips) for unit in chain(clip, number)]
    rows = run(units)
    assert {row.status for row in rows} == {"ok"}
    words = {
        "leaving": "leaves",
        "returning": "back",
        "moving about": "about",
        "still": "still",
        "absent": "out of view",
        "turning": "turns",
        "growing": "larger",
        "shrinking": "smaller",
    }
    for unit, row, before in zip(units, rows, [None, *rows], strict=False):
        assert row.history == (before.text if unit.event_index and before else None)
        motion = (unit.motion or "").split(", ")[-1]
        expected = words.get(motion) or motion.removeprefix("moving ").removeprefix("changing ")
        assert expected in (row.text or ""), (unit.motion, row.text)


def test_the_first_event_names_the_true_colour(clips: list[dict[str, Any]]) -> None:
    right = []
    for number, clip in enumerate(clips):
        first = run(chain(clip, number))[0]
        right.append(clip["events"][0]["absent"] or clip["events"][0]["colour"] in (first.text or ""))
    assert sum(right) >= 0.9 * len(right)


def test_chinese_chains_are_chinese(clips: list[dict[str, Any]]) -> None:
    for row in run(chain(clips[0], 0, "zh")):
        assert all("\u4e00" <= char <= "\u9fff" for char in row.text or "" if char.isalpha())


def test_a_clip_caption_tells_its_events_in_order(clips: list[dict[str, Any]]) -> None:
    units = []
    for number, clip in enumerate(clips):
        events = [
            SampleEvent(
                event_index=index, start_frame=0, end_frame=0, start_s=event["start_s"], end_s=event["end_s"],
                absent=event["absent"], motion=event["motion"],
            )
            for index, event in enumerate(clip["events"])
        ]  # fmt: skip
        units.append(VideoUnit(**common(clip, number, "video", "en"), events=events))
    for clip, row in zip(clips, run(units), strict=True):
        assert row.status == "ok"
        assert row.text is not None
        assert row.text.count(", then ") == len(clip["events"]) - 1
        assert clip["label"] in row.text


def test_a_broken_event_fails_and_the_later_ones_are_blocked_until_taken_up_again(clips: list[dict[str, Any]]) -> None:
    clip = next(clip for clip in clips if len(clip["events"]) >= 3)
    good = chain(clip, 0)
    broken = [good[0], good[1].model_copy(update={"uri": good[1].uri + ".lost"}), *good[2:]]
    rows = run(broken)
    assert [row.status for row in rows] == ["ok", "failed", *["blocked"] * (len(good) - 2)]
    assert rows[1].reason == "missing_media"
    assert rows[0].text is not None
    told = [EarlierCaption(event_index=0, text=rows[0].text)]
    rest = [unit.model_copy(update={"earlier": told, "attempts": 1}) for unit in good[1:]]
    resumed = run(rest)
    assert [row.text for row in resumed] == [row.text for row in run(good)[1:]]
    assert resumed[0].attempts == 2
    alone = run([unit.model_copy(update={"earlier": None}) for unit in good[1:]])
    assert [alone[0].reason, alone[1].status] == ["no_history", "blocked"]


@pytest.mark.parametrize(("depth", "expected"), [(0, []), (1, ["c"]), (2, ["b", "c"]), (9, ["a", "b", "c"])])
def test_history_is_as_deep_as_configured(depth: int, expected: list[str]) -> None:
    assert history_for(3, {0: "a", 1: "b", 2: "c"}, depth) == expected


def test_paths_of_lost_videos_are_named(clips: list[dict[str, Any]], tmp_path: Path) -> None:
    unit = chain(clips[0], 0)[0].model_copy(update={"uri": str(tmp_path / "gone.mp4")})
    (row,) = run([unit])
    assert "gone.mp4" in (row.message or "")
