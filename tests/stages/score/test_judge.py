"""A second teacher's word on captions."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from PIL import Image

from pipeline.config import EngineConfig
from pipeline.engine import build_stages
from schemas.arrow import to_table
from stages.base import checked
from stages.masks import encode
from stages.score.judge import JudgeConfig, JudgeStage, JudgeUnit
from stages.teachers.config import TeacherConfig
from stages.teachers.protocol import Reply, Teacher, TeacherRequest

CONFIG = JudgeConfig(teacher=TeacherConfig(backend="openai", model="judge", base_url="http://127.0.0.1:9/v1"))


def key(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


class Colourist(Teacher):
    """A teacher of rules: the target is a red disc, and nothing else is."""

    name, model, billed, sees = "colourist", "judge", False, "encoded"
    asked: list[TeacherRequest]

    def __init__(self) -> None:
        self.asked = []

    async def ask(self, request: TeacherRequest) -> Reply:
        self.asked.append(request)
        words = request.messages[-1].text
        if "Describe the target" in words:
            return Reply(outcome="answer", text=json.dumps({"caption": "A red disc."}), finish_reason="stop")
        if "REFUSE" in words:
            return Reply(outcome="refused", message="no")
        verdict = "no" if "blue" in words else "yes"
        return Reply(outcome="answer", text=json.dumps({"verdict": verdict}), finish_reason="stop")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(np.full((48, 64, 3), 90, np.uint8)).save(path)
    return path


def unit(photo: Path, name: str, text: str | None, **more: Any) -> JudgeUnit:
    mask = np.zeros((48, 64), bool)
    mask[10:30, 10:40] = True
    base: dict[str, Any] = {
        "caption_key": key(name), "region_key": key("r"), "media_key": key(str(photo)), "task": "brief",
        "language": "en", "uri": str(photo), "kind": "image", "source": "s", "width": 64, "height": 48,
        "mask": encode(mask), "box": (10, 10, 40, 30), "input_digest": key(name), "text": text,
    }  # fmt: skip
    return JudgeUnit(**{**base, **more})


def judge(units: list[JudgeUnit], monkeypatch: pytest.MonkeyPatch) -> tuple[dict[bytes, dict[str, Any]], Colourist]:
    stage, teacher = JudgeStage(CONFIG), Colourist()
    monkeypatch.setattr(stage.source, "make", lambda: teacher)
    stage.open()
    try:
        rows = pl.concat([pl.DataFrame(pl.from_arrow(part)) for part in checked(stage, to_table(units, JudgeUnit))])
    finally:
        stage.close()
    return {row["caption_key"]: row for row in rows.to_dicts()}, teacher


def test_a_second_teacher_agrees_or_does_not(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = [{"task": "detailed", "language": "en", "event_index": -1, "text": "The disc is red."}]
    rows, teacher = judge(
        [unit(photo, "good", "A red disc.", siblings=others), unit(photo, "bad", "A blue box.")], monkeypatch
    )
    good, bad = rows[key("good")], rows[key("bad")]
    assert (good["views_agree"], good["second_caption_agrees"], good["siblings_agree"]) == (1.0, 1, 1)
    assert (bad["views_agree"], bad["second_caption_agrees"], bad["siblings_agree"]) == (0.0, 0, None)
    pictured = [len(request.messages[-1].pictures) for request in teacher.asked]
    assert sorted(count > 0 for count in pictured) == [False] * 3 + [True] * 6


def test_what_was_not_answered_fails_the_unit_with_the_outcome(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, _ = judge([unit(photo, "odd", "REFUSE"), unit(photo, "good", "A red disc.")], monkeypatch)
    assert (rows[key("odd")]["status"], rows[key("odd")]["reason"]) == ("failed", "refused")
    assert rows[key("good")]["status"] == "ok"


def test_videos_and_missing_media(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = unit(photo, "gone", "A red disc.", uri=str(photo.with_name("gone.png")), media_key=key("gone"))
    rows, _ = judge([gone, unit(photo, "event", "It moves.", task="stream")], monkeypatch)
    assert (rows[key("gone")]["status"], rows[key("gone")]["reason"]) == ("failed", "missing_media")
    assert (rows[key("event")]["status"], rows[key("event")]["views_agree"]) == ("ok", None)


def test_the_measured_teacher_cannot_judge() -> None:
    with pytest.raises(ValueError, match="cannot judge"):
        JudgeStage(JudgeConfig(teacher=TeacherConfig()))


def test_what_a_run_retries_is_asked_again(teacher_server: Callable[..., Any], photo: Path, tmp_path: Path) -> None:
    server = teacher_server(answer=lambda chat: {"verdict": "yes"}, verdict=lambda chat: "refused")
    teacher = TeacherConfig(backend="openai", model="judge", base_url=server.url)
    second = JudgeConfig(teacher=teacher, questions=("two_views",))
    config = EngineConfig(run=str(tmp_path / "run"), score={"judge": second})

    def status(forgive_before: float = 0.0) -> str:
        stage = build_stages(config, forgive_before).score["judge"]
        stage.open()
        (row,) = pa.concat_tables(checked(stage, to_table([unit(photo, "a", "A disc.")], JudgeUnit))).to_pylist()
        stage.close()
        return str(row["status"])

    assert status() == "failed"
    server.verdict = lambda chat: "answer"
    assert status() == "failed"
    assert status(forgive_before=time.time() + 1) == "ok"
