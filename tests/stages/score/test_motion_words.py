"""What people say of motion, stillness and absence, in many wordings, and captions that only sound like it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from schemas.arrow import to_table
from schemas.caption import Language
from schemas.keys import digest_value
from stages.base import checked
from stages.score.video import VideoScoreUnit, VideoStage

COLUMNS = ("motion_wrong_way", "motion_of_still", "stillness_of_moving", "absence_unsaid", "absence_invented")

MOVES = {
    "en": (
        "The dog makes its way to the gate.", "The dog strolls through the yard.", "The dog gallops across the field.",
        "The dog hurries along.", "The dog dashes off.", "The dog sprints past.", "The dog leaps over the fence.",
        "The dog hops across the lawn.", "The dog marches along the wall.", "The dog chases a ball.",
        "The dog passes the tree.", "The dog passes in front of the house.", "The dog crosses the yard.",
        "The dog approaches the gate.", "The dog enters the room.", "The dog backs away.", "The dog retreats.",
        "The dog changes its position.", "The dog is in motion.", "The car zooms past.",
        "The car zigzags down the road.",
        "The dog meanders through the grass.", "The mouse scurries away.", "The man jogs along the beach.",
        "The cart hurtles down the hill.", "The box is carried across the room.", "The boat cruises along the shore.",
        "The car speeds away.", "The car pulls away.", "The car accelerates.", "The lamp swings back and forth.",
        "The table wobbles.", "The dog traverses the field.", "The beam sweeps across the wall.",
        "The cat edges closer.", "The snail inches forward.", "The ball whizzes by.", "The dog runs to the gate.",
        "The dog moves.", "The dog is walking.", "The circle moves slowly.",
    ),
    "zh": (
        "小狗穿过院子。", "小狗横穿马路。", "小狗越过栅栏。", "小狗经过大门。", "小狗朝右边去了。", "小狗一直在动。",
        "圆形正在运动。", "圆形改变了位置。", "圆形来回摆动。", "圆形平移。", "汽车逐渐靠近。", "小狗在人群中穿行。",
    ),
}  # fmt: skip
LEFT = {
    "en": (
        "The dog makes for the left side.", "The dog crosses to the left.", "The dog edges to the left.",
        "The dog hops to the left.", "The dog leaps to the left.", "The dog walks from the right to the left.",
        "The dog crosses from right to left.", "The dog is pulled to the left.", "The dog exits at the left.",
        "The dog's position changes to the left.", "Leftward motion of the dog.", "To the left moves the dog.",
        "The dog trots across the lawn to the left.", "The dog runs from the right side towards the left side.",
        "The dog walks past the house towards the left.", "The dog moves down and to the left.",
        "The child rides a bike to the left.", "The truck reverses to the left.", "The skier goes along, veering left.",
        "The white car on the right side of the road drives to the left.",
    ),
    "zh": (
        "小狗左移。", "小狗移向左侧。", "小狗移到左边。", "小狗移动到左侧。", "小狗朝左运动。", "小狗向左平移。",
        "小狗向画面左侧移动。", "小狗滑向左边。", "小狗从右边移到左边。", "小狗从右向左移动。",
        "一把红色的椅子向左移动。", "可以看到小狗在树旁边向左移动。", "小狗将向左移动。",
    ),
}  # fmt: skip
UP = {
    "en": (
        "The kite goes higher.", "The plane gains height.", "The rocket shoots up.", "The plane takes off.",
        "The crate is hoisted.", "The crate is lifted off the ground.", "The balloon moves up.",
    ),
    "zh": ("气球上移。", "飞机起飞。", "气球越升越高。", "气球向画面上方飘去。"),
}  # fmt: skip
STILL = {
    "en": (
        "The dog stands quietly.", "The dog sits calmly.", "The dog holds its position.", "The dog keeps its position.",
        "The dog maintains its position.", "The dog is still.", "The dog is static.", "The dog is frozen in place.",
        "The dog doesn't budge.", "The dog doesn’t budge.", "The dog isn't moving.", "The dog does not stir.",
        "The dog has not moved.", "The dog stays absolutely still.", "The dog is totally motionless.",
        "The dog pauses.", "The dog freezes.", "The dog comes to a halt.", "The dog stops.",
    ),
    "zh": (
        "小狗待在原地。", "小狗没动。", "小狗不动。", "小狗没有动。", "小狗固定不动。", "小狗的位置不变。",
        "小狗停着。", "小狗停了下来。", "小狗没有任何移动。", "小狗没有位移。",
    ),
}  # fmt: skip
AWAY = {
    "en": (
        "The dog is hidden.", "The dog is nowhere to be seen.", "The dog is gone.", "The dog has left.",
        "The dog is out of the image.", "The dog isn't visible.", "The dog is invisible.", "The dog is missing.",
        "The dog is lost from view.", "The dog fades from view.", "The dog is fully occluded.",
        "The dog can no longer be seen.", "No dog is in sight.", "The dog exits.", "The dog leaves the image.",
        "The dog leaves the field of view.",
    ),
    "zh": (
        "小狗不见了。", "小狗不在了。", "小狗看不到了。", "小狗完全被遮挡。", "小狗隐藏起来。", "小狗离场。",
        "小狗出了画面。", "小狗移到画面外。", "小狗没有出现。",
    ),
}  # fmt: skip
INNOCENT = (
    ("The man continues to speak.", "still", "en"),
    ("She lifts a cup.", "still", "en"),
    ("He pushes a button.", "still", "en"),
    ("A road runs along the house.", "still", "en"),
    ("A pair of running shoes lies there.", "still", "en"),
    ("A rolling pin on a table.", "still", "en"),
    ("An old man with a walking stick.", "still", "en"),
    ("A racing car is parked.", "still", "en"),
    ("一名飞行员坐着。", "still", "zh"),
    ("A man walks from left to right.", "moving right", "en"),
    ("A man runs from the left side towards the right side.", "moving right", "en"),
    ("A man walks with his left arm raised.", "moving right", "en"),
    ("A man walks up to the counter.", "moving down", "en"),
    ("A dog moves left while the camera moves right.", "moving left", "en"),
    ("A car drives past a stop sign.", "moving right", "en"),
    ("A stop sign.", "moving right", "en"),
    ("The dog does not stop running.", "moving right", "en"),
    ("The man stops playing the violin.", "moving right", "en"),
    ("小狗没有停下来。", "moving right", "zh"),
    ("停在路边的车旁，小狗跑过去。", "moving right", "zh"),
    ("A white sink with a tap.", "moving up", "en"),
    ("She watches as the ball disappears.", "still", "en"),
    ("The woman stands still while a dog runs past.", "still", "en"),
    ("The woman stands there and the ball rolls away.", "still", "en"),
    ("镜头向左移动，小狗向右跑。", "moving right", "zh"),
    ("他把球扔向左边。", "moving right", "zh"),
    ("另一只狗向左跑，小狗保持静止。", "still", "zh"),
    ("一名运动员站着。", "still", "zh"),
    ("The car is stationary while other cars drive past.", "still", "en"),
    ("The man runs his fingers through his hair.", "still", "en"),
    ("A man stands up and leaves the room.", "moving right", "en"),
)


def scores(texts: list[str], motion: str | None, language: Language) -> list[dict[str, int | None]]:
    units = [
        VideoScoreUnit(
            caption_key=digest_value(number), region_key=digest_value(number), input_digest=digest_value(number),
            language=language, task="stream", text=text, absent=motion == "absent", motion=motion, visible_share=0.9,
        )
        for number, text in enumerate(texts)
    ]  # fmt: skip
    tables = checked(VideoStage(), to_table(units, VideoScoreUnit))
    rows = {row["caption_key"]: row for table in tables for row in table.to_pylist()}
    return [{name: rows[unit.caption_key][name] for name in COLUMNS} for unit in units]


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize(
    ("wordings", "motion", "column"),
    [
        (MOVES, "still", "motion_of_still"),
        (LEFT, "moving right", "motion_wrong_way"),
        (UP, "moving down", "motion_wrong_way"),
        (STILL, "moving right", "stillness_of_moving"),
        (AWAY, "still", "absence_invented"),
    ],
    ids=["moves", "left", "up", "still", "away"],
)
def test_every_wording_is_understood(
    wordings: dict[Language, tuple[str, ...]], motion: str, column: str, language: Language
) -> None:
    texts = [*wordings[language]]
    assert [text for text, row in zip(texts, scores(texts, motion, language), strict=True) if not row[column]] == []


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize(
    ("wordings", "motion"),
    [(LEFT, "moving left"), (UP, "moving up"), (STILL, "still"), (AWAY, "absent")],
    ids=["left", "up", "still", "away"],
)
def test_what_is_true_is_not_held_against_a_caption(
    wordings: dict[Language, tuple[str, ...]], motion: str, language: Language
) -> None:
    texts = [text for text in wordings[language] if not text.startswith(("The dog exits at", "The dog moves down"))]
    wrong = [(text, row) for text, row in zip(texts, scores(texts, motion, language), strict=True) if any(row.values())]
    assert wrong == []


@pytest.mark.parametrize(("text", "motion", "language"), INNOCENT)
def test_what_only_sounds_like_motion(text: str, motion: str, language: Language) -> None:
    (row,) = scores([text], motion, language)
    assert row == dict.fromkeys(COLUMNS, 0)


def test_motion_that_was_not_measured_is_not_stillness() -> None:
    texts = ["The dog runs to the gate.", "The dog is out of view.", "The dog stays still."]
    assert all(value is None for row in scores(texts, None, "en") for value in row.values())


@pytest.mark.parametrize("motion", ["still", "moving right", "moving left", "moving up", "moving down"])
def test_captions_by_people_of_people_are_let_be(shared_data: Path, motion: str) -> None:
    """945 captions, measured as if nobody moved, or everybody one way: what they do not say is not held against them.

    Of the fifth that are held to speak of motion, a reader agrees with nineteen in twenty: "walks across the lawn".
    """
    lines = (shared_data / "pam_eval/input_full.jsonl").read_text().splitlines()
    texts = [told["gt"].strip() for line in lines for told in json.loads(line)["annotations"]]
    assert len(texts) == 945
    rows = scores(texts, motion, "en")
    share = {name: sum(row[name] or 0 for row in rows) / len(rows) for name in COLUMNS}
    print(motion, share)
    assert share["motion_of_still"] < 0.215
    assert share["motion_wrong_way"] < 0.02
    assert share["stillness_of_moving"] < 0.02
    assert share["absence_invented"] < 0.002
