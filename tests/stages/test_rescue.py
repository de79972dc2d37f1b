"""What a policy lets be repaired, and the repairs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from PIL import Image

from schemas.arrow import arrow_schema, from_table, to_table
from schemas.caption import Caption
from stages.base import checked, fingerprint
from stages.decide import decide
from stages.distill import CaptionsConfig, build_distill
from stages.distill.units import CaptionUnit
from stages.masks import encode
from stages.policy import Policy, load_policy
from stages.rescue import build_rescue, instruction, rescue_plan, rescue_units, strip_openers
from stages.teachers.config import TeacherConfig
from stages.teachers.protocol import Reply, Teacher, TeacherRequest

ROOT = Path(__file__).resolve().parents[2]
POLICY = Policy.model_validate(
    {
        "name": "test",
        "checks": [
            {"reason": "mark_leak", "column": "mark_hits", "max": 0, "repair": "ask"},
            {"reason": "scene_opener", "column": "openers", "max": 0, "repair": "strip_opener"},
            {"reason": "mask_unsure", "column": "mask_predicted_iou", "min": 0.75},
            {"reason": "hedging", "column": "hedges", "max": 0, "action": "flag", "repair": "ask"},
        ],
    }
)


def key(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def captions(*rows: dict[str, Any]) -> pl.DataFrame:
    filled = [
        Caption(
            caption_key=key(f"c{i}"), region_key=row.pop("region_key", key(f"r{i}")), media_key=key("m"),
            task=row.pop("task", "brief"), language=row.pop("language", "en"), teacher="t", model="m", prompt_id="p",
            prompt_hash=key("p"), input_digest=key(f"i{i}"), digest=key(f"d{i}"), text=row.pop("text", "A dog."),
            attempts=row.pop("attempts", 1), event_index=row.pop("event_index", -1), status=row.pop("status", "ok"),
        )
        for i, row in enumerate(dict(row) for row in rows)
    ]  # fmt: skip
    frame = pl.DataFrame(pl.from_arrow(to_table(filled, Caption)))
    scores = ("mark_hits", "openers", "mask_predicted_iou", "hedges")
    return frame.with_columns(pl.Series(name, [row.get(name) for row in rows], dtype=pl.Float64) for name in scores)


def plan_of(frame: pl.DataFrame, **more: Any) -> pl.DataFrame:
    return rescue_plan(frame, decide(frame, POLICY), POLICY, **more)


def test_only_what_can_be_repaired_is_planned() -> None:
    frame = captions(
        {"mark_hits": 1},
        {"openers": 1, "text": "In this image, a dog runs."},
        {"mark_hits": 1, "openers": 1},
        {"mark_hits": 1, "mask_predicted_iou": 0.5},
        {"hedges": 2},
        {"mark_hits": 1, "attempts": 3},
        {},
        {"openers": 1, "text": "In the picture's centre, a dog runs."},
    )
    plan = plan_of(frame)
    assert dict(plan.select("caption_key", "repair").rows()) == {
        key("c0"): "ask", key("c1"): "strip_opener", key("c2"): "ask", key("c7"): "ask",
    }  # fmt: skip


def test_the_instruction_names_every_failure_once() -> None:
    text = instruction(["mark_leak", "repeated_run", "repeated_phrase"], "en")
    assert "outline" in text
    assert text.count("repeated itself") == 1
    assert instruction(["something_new"], "zh") == "它不符合本数据集的质量要求"


@pytest.mark.parametrize("name", ["default", "strict", "lenient"])
def test_every_repairable_reason_has_an_instruction_of_its_own(name: str) -> None:
    checks = load_policy(ROOT / f"configs/policy/{name}.yaml").checks
    lacking = [c.reason for c in checks if c.repair and instruction([c.reason], "en") == instruction(["?"], "en")]
    assert lacking == []


def test_a_stream_is_taken_up_at_the_event_that_stopped_it() -> None:
    chain = {"task": "stream", "region_key": key("r")}
    frame = captions(
        {**chain, "event_index": 0},
        {**chain, "event_index": 1, "mark_hits": 1},
        {**chain, "event_index": 2},
        {**chain, "event_index": 3, "mark_hits": 1},
    )
    plan = plan_of(frame).sort("event_index")
    assert plan["event_index"].to_list() == [1, 2, 3]
    assert [text is not None for text in plan["instruction"].to_list()] == [True, False, False]


def test_a_stream_that_stopped_for_another_reason_is_left() -> None:
    chain = {"task": "stream", "region_key": key("r")}
    frame = captions(
        {**chain, "event_index": 0, "mask_predicted_iou": 0.1}, {**chain, "event_index": 1, "mark_hits": 1}
    )
    assert len(plan_of(frame)) == 0


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("In this image, a dog runs.", "en", "A dog runs."),
        ("The image shows a red cup on a table.", "en", "A red cup on a table."),
        ("图中是一只狗。", "zh", "一只狗。"),
        ("Shown here is a small dog on a rug.", "en", "A small dog on a rug."),
        ("In this image, there is a dog on a rug.", "en", "A dog on a rug."),
        ("Caption: In this image, a dog runs.", "en", "A dog runs."),
        ("As seen in the image above, a dog runs.", "en", "A dog runs."),
        ("这张图片中的小狗趴在地毯上。", "zh", "小狗趴在地毯上。"),
        ("好的，图中有一只狗。", "zh", "一只狗。"),
        # What would be left is no sentence: the teacher is asked again.
        ("In this image.", "en", None),
        ("The image shows that the dog lies down.", "en", None),
        ("This image captures how a dog lies down.", "en", None),
        ("In the picture's centre, a dog lies on a rug.", "en", None),
        ("The image provides a view of a dog on a rug.", "en", None),
        ("Displayed in a shop window, the red dress has a collar.", "en", None),
        ("画面中央的小狗趴在地毯上。", "zh", None),
        ("根据图片，小狗趴在地毯上。", "zh", None),
        ("镜头是黑色的，装在相机上。", "zh", None),
    ],
)
def test_an_opener_is_stripped(text: str, language: str, expected: str | None) -> None:
    frame = captions({"openers": 1, "text": text, "language": language})
    rows = from_table(strip_openers(frame, plan_of(frame)), Caption)
    assert [row.text for row in rows] == ([expected] if expected else [])
    if rows:
        assert (rows[0].attempts, rows[0].message, rows[0].input_digest) == (2, "opener stripped", key("i0"))
        assert rows[0].digest != key("d0")


class Echo(Teacher):
    """Answers with the last turn of the conversation, so that tests see what it was told."""

    name, model, billed, sees = "echo", "echo", False, "encoded"

    async def ask(self, request: TeacherRequest) -> Reply:
        said = [f"{message.role}: {message.text[-400:]}" for message in request.messages[2:]]
        text = " | ".join(said).replace("\n", " ").replace('"', "'")[:390] or "nothing"
        return Reply(outcome="answer", text=json.dumps({"caption": text}), finish_reason="stop")


@pytest.fixture
def unit(tmp_path: Path) -> CaptionUnit:
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8).astype(np.uint8)).save(path)
    mask = np.zeros((48, 64), bool)
    mask[10:30, 10:40] = True
    return CaptionUnit(
        caption_key=key("c0"), region_key=key("r0"), media_key=key("m"), task="brief", language="en", uri=str(path),
        kind="image", source="s", label="dog", width=64, height=48, mask=encode(mask), box=(10, 10, 40, 30),
        input_digest=key("i0"),
    )  # fmt: skip


def test_the_teacher_is_told_what_was_wrong(unit: CaptionUnit, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = captions({"mark_hits": 1, "text": "A dog in a red box."})
    units = rescue_units(to_table([unit], CaptionUnit), plan_of(frame))
    assert units["attempts"].to_pylist() == [1]
    teacher = TeacherConfig(backend="openai", model="any", base_url="http://127.0.0.1:9/v1")
    stage = build_rescue(teacher, CaptionsConfig(), "brief", "en", ledger=str(Path(unit.uri).parent / "ledger"))
    monkeypatch.setattr(stage.source, "make", Echo)
    stage.open()
    try:
        (row,) = from_table(pa.concat_tables(checked(stage, units)), Caption)
    finally:
        stage.close()
    assert row.status == "ok"
    assert row.text is not None
    assert "assistant: A dog in a red box." in row.text
    assert "user:" in row.text
    assert instruction(["mark_leak"], "en")[:40] in row.text


def test_rescued_rows_belong_to_the_captions_they_replace() -> None:
    teacher = TeacherConfig(backend="openai", model="any")
    for task in ("brief", "video", "stream"):
        rescue = build_rescue(teacher, CaptionsConfig(), task, "en", ledger="x")
        assert fingerprint(rescue) == fingerprint(build_distill(teacher, CaptionsConfig(), task, "en", ledger="x"))
        assert rescue.table == "captions"


def test_earlier_events_go_with_a_chain() -> None:
    chain = {"task": "stream", "region_key": key("r")}
    frame = captions({**chain, "event_index": 0, "text": "It rests."}, {**chain, "event_index": 1, "mark_hits": 1})
    units = pa.table(
        {
            "caption_key": pa.array([key("c0"), key("c1")], pa.binary(16)),
            "region_key": pa.array([key("r")] * 2, pa.binary(16)),
            "language": ["en", "en"],
            "event_index": [0, 1],
        }
    )
    asked = rescue_units(units, plan_of(frame), frame).to_pylist()
    assert [(row["event_index"], row["earlier"]) for row in asked] == [(1, [{"event_index": 0, "text": "It rests."}])]


def test_caption_schema_is_kept() -> None:
    frame = captions({"openers": 1, "text": "In this image, a dog runs."})
    assert strip_openers(frame, plan_of(frame)).schema == arrow_schema(Caption)
