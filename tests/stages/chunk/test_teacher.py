"""Spans from a teacher behind real HTTP: what it is shown, what becomes of its answer, what is not asked twice."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pipeline.config import EngineConfig
from pipeline.engine import build_stages
from stages.base import fingerprint
from stages.chunk import ChunkConfig, ChunkUnit, build_chunk
from stages.chunk.config import MotionConfig
from stages.shapes.clip import draw_clip
from stages.teachers.config import LimitsConfig, TeacherConfig

CONFIG = ChunkConfig(backend="teacher", motion=MotionConfig(pixels=False))


@pytest.fixture(scope="module")
def units(tmp_path_factory: pytest.TempPathFactory, units_of: Callable[..., list[ChunkUnit]]) -> list[ChunkUnit]:
    folder = tmp_path_factory.mktemp("clips")
    clips = [draw_clip(seed, frames=42, size=(192, 128), camera=0, leave=0, objects=(1, 1)) for seed in range(3)]
    made = [units_of(clip, f"clip{number}", folder)[0] for number, clip in enumerate(clips)]
    return [unit.model_copy(update={"label": f"thing {number}"}) for number, unit in enumerate(made)]


def online(server: Any, model: str = "m") -> TeacherConfig:
    return TeacherConfig(backend="openai", model=model, base_url=server.url, limits=LimitsConfig(first_wait_s=0.01))


def spans(*edges: float) -> dict[str, Any]:
    return {"events": [{"start_s": a, "end_s": b} for a, b in itertools.pairwise(edges)]}


def test_the_teacher_sees_a_time_stamped_sheet_and_its_spans_become_events(
    teacher_server: Callable[..., Any], units: list[ChunkUnit], tmp_path: Path, run_stage: Callable[..., Any]
) -> None:
    server = teacher_server(answer=lambda chat: spans(0, 2.5, 4.0, 7))
    rows = run_stage(build_chunk(CONFIG, online(server), str(tmp_path)), units)
    assert len(server.chats) == len(units)
    for unit in units:
        mine = [row for row in rows if row["region_key"] == unit.region_key]
        assert [(row["start_s"], row["end_s"]) for row in mine] == [(0, 2.5), (2.5, 4), (4, 7)]
        assert all(row["motion"] and row["backend"] == "teacher" and row["message"] is None for row in mine)
    for chat in server.chats:
        assert "from 0.0 to 7.0 seconds" in chat.text
        assert "calls the target: thing" in chat.text
        (sheet,) = chat.images
        picture = cv2.imdecode(np.frombuffer(sheet, np.uint8), cv2.IMREAD_COLOR)
        assert picture.shape[1] > 6 * 240
        assert (picture == 255).all(-1).mean() > 0.03  # the paper with the times


def test_bad_spans_are_mended_and_said(
    teacher_server: Callable[..., Any], units: list[ChunkUnit], tmp_path: Path, run_stage: Callable[..., Any]
) -> None:
    answer = {"events": [{"start_s": 3, "end_s": 6}, {"start_s": 0.5, "end_s": 3.5}, {"start_s": 8, "end_s": 9}]}
    server = teacher_server(answer=lambda chat: answer)
    rows = run_stage(build_chunk(CONFIG, online(server), str(tmp_path)), units[:1])
    assert [(row["start_s"], row["end_s"]) for row in rows] == [(0, 3), (3, 7)]
    for said in ("left out", "out of order", "overlaps cut", "gaps closed"):
        assert said in rows[0]["message"]


def test_a_refusal_fails_its_own_unit_and_answers_are_not_bought_twice(
    teacher_server: Callable[..., Any], units: list[ChunkUnit], tmp_path: Path, run_stage: Callable[..., Any]
) -> None:
    server = teacher_server(
        answer=lambda chat: spans(0, 3, 7), verdict=lambda chat: "refused" if "thing 1" in chat.text else "answer"
    )
    rows = run_stage(build_chunk(CONFIG, online(server), str(tmp_path)), units)
    fates = {row["region_key"]: (row["status"], row["reason"]) for row in rows}
    assert [fates[unit.region_key] for unit in units] == [("ok", None), ("failed", "refused"), ("ok", None)]
    asked = len(server.chats)
    run_stage(build_chunk(CONFIG, online(server), str(tmp_path)), [units[0], units[2]])
    assert len(server.chats) == asked


def test_what_a_run_retries_is_asked_again(
    teacher_server: Callable[..., Any], units: list[ChunkUnit], tmp_path: Path, run_stage: Callable[..., Any]
) -> None:
    server = teacher_server(answer=lambda chat: spans(0, 3, 7), verdict=lambda chat: "refused")
    config = EngineConfig(run=str(tmp_path), teacher=online(server), chunk=CONFIG)
    assert {row["status"] for row in run_stage(build_stages(config).chunk, units[:1])} == {"failed"}
    server.verdict = lambda chat: "answer"
    assert {row["status"] for row in run_stage(build_stages(config).chunk, units[:1])} == {"failed"}
    retried = build_stages(config, forgive_before=time.time() + 1).chunk
    assert {row["status"] for row in run_stage(retried, units[:1])} == {"ok"}


def test_the_measured_teacher_proposes_nothing() -> None:
    with pytest.raises(ValueError, match="sees pictures"):
        build_chunk(CONFIG, TeacherConfig())
    with pytest.raises(ValueError, match="needs a teacher"):
        build_chunk(CONFIG)


def test_the_model_is_part_of_the_fingerprint(teacher_server: Callable[..., Any], tmp_path: Path) -> None:
    server = teacher_server()
    one, same, other = (build_chunk(CONFIG, online(server, model), str(tmp_path)) for model in ("a", "a", "b"))
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)
