"""Rules 18 and 19: motion words against measured motion, order, absence, and copied history, in both languages."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from schemas.arrow import to_table
from schemas.caption import Language
from schemas.keys import digest_value
from stages.base import checked
from stages.score.claims import claims
from stages.score.video import Spell, VideoScoreUnit, VideoStage, copied_share


def spells(*motions: str) -> list[Spell]:
    return [
        Spell(
            event_index=i,
            start_frame=10 * i,
            end_frame=10 * i + 9,
            start_s=i,
            end_s=i + 1,
            absent=m == "absent",
            motion=m,
        )
        for i, m in enumerate(motions)
    ]


def score(text: str, language: Language = "en", **event: Any) -> dict[str, Any]:
    key = digest_value(text)
    task = "video" if "events" in event else "stream"
    unit = VideoScoreUnit(
        caption_key=key, region_key=key, input_digest=key, language=language, task=task, text=text, **event
    )
    stage = VideoStage()
    rows = [row for table in checked(stage, to_table([unit], VideoScoreUnit)) for row in table.to_pylist()]
    return rows[0]


def stream(text: str, motion: str, language: Language = "en", **more: Any) -> dict[str, Any]:
    return score(text, language, motion=motion, absent=motion == "absent", visible_share=0.9, **more)


@pytest.mark.parametrize(
    ("text", "motion", "language", "bad"),
    [
        ("The circle moves to the left.", "moving left", "en", None),
        ("The circle moves to the left.", "moving up left", "en", None),
        ("The circle moves to the left.", "moving right", "en", "motion_wrong_way"),
        ("The circle moves to the left.", "moving up", "en", "motion_wrong_way"),
        ("The circle moves to the left.", "still", "en", "motion_of_still"),
        ("A dog walks along the path.", "moving right", "en", None),
        ("A dog walks along the path.", "still", "en", "motion_of_still"),
        ("The circle stays still.", "still", "en", None),
        ("The cup does not move.", "still", "en", None),
        ("The circle stays still.", "moving down", "en", "stillness_of_moving"),
        ("The circle grows larger in view.", "growing", "en", None),
        ("The circle shrinks.", "growing", "en", "motion_wrong_way"),
        ("The circle is out of view.", "absent", "en", None),
        ("The circle is large and red.", "absent", "en", "absence_unsaid"),
        ("The circle leaves the frame.", "moving left, leaving", "en", None),
        ("The circle leaves the frame.", "still", "en", "absence_invented"),
        ("圆形向左移动。", "moving left", "zh", None),
        ("圆形向左移动。", "moving right", "zh", "motion_wrong_way"),
        ("圆形向右上方移动。", "moving up right", "zh", None),
        ("圆形向左移动。", "still", "zh", "motion_of_still"),
        ("圆形保持静止。", "moving left", "zh", "stillness_of_moving"),
        ("圆形不在视野内。", "absent", "zh", None),
        ("一个红色的圆形。", "absent", "zh", "absence_unsaid"),
    ],
)
def test_event_captions(text: str, motion: str, language: Language, bad: str | None) -> None:
    found = stream(text, motion, language)
    names = ("motion_wrong_way", "motion_of_still", "stillness_of_moving", "absence_unsaid", "absence_invented")
    assert {name for name in names if found[name]} == ({bad} if bad else set())
    assert all(found[name] is not None for name in names)


@pytest.mark.parametrize(
    ("text", "language", "order"),
    [
        ("It first moves to the left, then turns on the spot, then moves up.", "en", 1.0),
        ("It moves up, then turns on the spot, and finally moves to the left.", "en", 1 / 3),
        ("It moves up after it turns on the spot.", "en", 1.0),
        ("It turns on the spot after it moves up.", "en", 0.5),
        ("它先是向左移动，然后在原地转动，然后向上移动。", "zh", 1.0),
        ("它先是在原地转动，然后向左移动。", "zh", 0.5),
        ("It moves to the left.", "en", None),
    ],
)
def test_order(text: str, language: Language, order: float | None) -> None:
    found = score(text, language, events=spells("moving left", "turning", "moving up"))
    assert found["motion_order"] == (None if order is None else pytest.approx(order))


def test_several_claims_may_be_of_one_event() -> None:
    found = score("It moves up and right and grows larger.", events=spells("moving up right, growing", "still"))
    assert found["motion_order"] == 1.0


def test_history() -> None:
    before = "A red circle with white stripes moves slowly to the left side."
    assert copied_share(before, before, "en") == 1.0
    assert copied_share("Now it turns upwards and grows in the middle.", before, "en") == 0.0
    assert copied_share("It stops.", before, "en") is None
    assert copied_share("It moves slowly to the right.", before, "en") == pytest.approx(1 / 3)
    assert copied_share(before, None, "en") is None
    half = copied_share(
        "一个红色的大圆形向左移动，然后停下来不再移动了", "一个红色的大圆形向左移动，后来离开画面", "zh"
    )
    assert half is not None
    assert 0.05 < half < 0.8
    assert stream(before, "moving left", history=before)["history_copied"] == 1.0


@pytest.mark.parametrize(
    ("text", "history", "language"),
    [
        (
            "Wagging its tail happily, the brown dog runs across the yard to the gate and barks.",
            "The brown dog runs across the yard to the gate, wagging its tail happily, and barks.",
            "en",
        ),
        (
            "一只棕色小狗跑过了院子，来到大门口，高兴摇着尾巴。",
            "一只棕色的小狗跑过院子来到大门口，高兴地摇着尾巴。",
            "zh",
        ),
        (
            "高兴地摇着尾巴，一只棕色的小狗跑过院子来到大门口。",
            "一只棕色的小狗跑过院子来到大门口，高兴地摇着尾巴。",
            "zh",
        ),
    ],
)
def test_a_copy_with_light_edits_is_still_a_copy(text: str, history: str, language: Language) -> None:
    share = copied_share(text, history, language)
    assert share is not None
    assert share >= 0.43  # the default policy's limit


def test_visibility_is_null_for_absence() -> None:
    assert stream("It stays still.", "still")["event_visible_share"] == 0.9
    assert stream("It is out of view.", "absent")["event_visible_share"] is None


def test_claims_come_in_the_order_told() -> None:
    assert claims("It moves to the right, stops, and grows larger.", "en") == ["right", "still", "growing"]
    assert claims("它向右移动，停下，逐渐变大。", "zh") == ["right", "still", "growing"]
    assert claims("A star left of the square, in the upper part.", "en") == []


def test_a_short_description_of_a_video_is_held_to_its_events_too() -> None:
    key = digest_value("brief")
    unit = VideoScoreUnit(
        caption_key=key, region_key=key, input_digest=key, language="en", task="brief",
        text="A cup that moves to the left.", events=spells("moving right"),
    )  # fmt: skip
    (row,) = [row for table in checked(VideoStage(), to_table([unit], VideoScoreUnit)) for row in table.to_pylist()]
    assert row["motion_wrong_way"] == 1


def test_captions_of_images_score_null() -> None:
    key = digest_value("image")
    unit = VideoScoreUnit(
        caption_key=key, region_key=key, input_digest=key, language="en", task="brief", text="A cup moves to the left."
    )
    tables = list(checked(VideoStage(), to_table([unit], VideoScoreUnit)))
    scores = pl.concat([pl.DataFrame(pl.from_arrow(table)) for table in tables]).select(
        "motion_wrong_way", "motion_order", "history_copied", "event_visible_share"
    )
    assert scores.null_count().row(0) == (1, 1, 1, 1)
