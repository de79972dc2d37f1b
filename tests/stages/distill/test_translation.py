"""Translated captions: what a translation must keep, what follows when it does not, and what it depends on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from schemas.arrow import from_table, to_table
from schemas.caption import Caption
from schemas.keys import digest_value
from stages.base import checked
from stages.distill import CaptionsConfig, build_distill
from stages.distill.translation import losses, numbers_zh, writing
from stages.distill.units import TranslationUnit
from stages.teachers.config import TeacherConfig

ENGLISH = "A red bus with two doors and the number 12, on whose side stands 'CITY LINE', behind a STOP sign."
FAITHFUL = "一辆有两扇门的红色公交车，编号12，车身上写着‘CITY LINE’，位于一块STOP标志后面。"


@pytest.mark.parametrize(
    ("chinese", "lost"),
    [
        (FAITHFUL, None),
        (FAITHFUL.replace("两扇门", "2扇门").replace("12", "十二"), None),
        (FAITHFUL.replace("两扇门", "车门"), "number 2"),
        (FAITHFUL.replace("编号12", "编号13"), "number 12"),
        (FAITHFUL.replace("红色", "蓝色"), "colour red"),
        (FAITHFUL.replace("CITY LINE", "城市线"), "CITY LINE"),
        (FAITHFUL.replace("STOP", "停车"), "STOP"),
        (ENGLISH, "not written in Chinese"),
        (FAITHFUL + "It is a large vehicle that carries people.", "not written in Chinese"),
    ],
)
def test_a_translation_keeps_numbers_colours_writing_and_is_chinese(chinese: str, lost: str | None) -> None:
    found = losses({"caption": ENGLISH}, {"caption": chinese})
    assert found == [] if lost is None else any(lost in said for said in found), found


def test_numerals_and_writing_are_read() -> None:
    assert numbers_zh("十二个、二十、一百二十三和3.5") == {12.0, 20.0, 123.0, 3.5}
    assert writing("The cat's bowl says \"Milo\" and 'no dogs'; a B52 and a TV, 300 USD.") == {
        "Milo", "no dogs", "B52", "TV", "USD"
    }  # fmt: skip


def units(*texts: str | None, task: Any = "brief") -> list[TranslationUnit]:
    return [
        TranslationUnit(
            caption_key=digest_value(["zh", number]), region_key=digest_value(number), media_key=digest_value("m"),
            task=task, language="zh", uri="none.png", kind="image", source="s", width=8, height=8,
            input_digest=digest_value(text), source_status="ok" if text else "failed", source_text=text,
        )
        for number, text in enumerate(texts)
    ]  # fmt: skip


def translate(server: Any, folder: Path, asked: list[TranslationUnit]) -> list[Caption]:
    config = TeacherConfig(backend="openai", model="m", base_url=server.url)
    captions = CaptionsConfig(languages=("en", "zh"), zh="translate")
    stage = build_distill(config, captions, asked[0].task, "zh", str(folder))
    stage.open()
    try:
        table = pa.concat_tables(checked(stage, to_table(asked, stage.unit)))
    finally:
        stage.close()
    rows = {row.caption_key: row for row in from_table(table, Caption)}
    return [rows[unit.caption_key] for unit in asked]


def test_a_loss_is_repaired_once_and_then_fails_the_row(teacher_server: Callable[..., Any], tmp_path: Path) -> None:
    seen: Counter[str] = Counter()

    def answer(chat: Any) -> dict[str, str]:
        name = "cup" if "cup" in chat.text else "dog" if "dog" in chat.text else "car"
        seen[name] += 1
        good = {"cup": "一只红色的杯子。", "dog": "一条黑色的狗。", "car": "一辆白色的汽车。"}[name]
        wrong = name == "car" or (name == "dog" and seen[name] == 1)
        return {"caption": good.replace("白色的", "").replace("黑色的", "") if wrong else good}

    server = teacher_server(answer=answer)
    asked = units("A red cup.", "A black dog.", "A white car.", None)
    rows = translate(server, tmp_path, asked)
    assert [row.status for row in rows] == ["ok", "ok", "failed", "blocked"]
    assert [row.text for row in rows[:2]] == ["一只红色的杯子。", "一条黑色的狗。"]
    assert [row.reason for row in rows] == [None, None, "invalid", "source_failed"]
    assert "colour white" in (rows[2].message or "")
    assert seen == {"cup": 1, "dog": 2, "car": 2}
    assert all(not chat.images for chat in server.chats), "a translation is paid for without pictures"
    repaired = next(chat for chat in server.chats if len(chat.body["messages"]) == 4)
    assert "is missing" in repaired.body["messages"][-1]["content"]
    again = translate(server, tmp_path, asked)
    assert [row.status for row in again] == [row.status for row in rows]
    assert sum(server.billed.values()) == 5, "from the ledger the same answers are judged the same"


def test_an_explanation_is_translated_part_by_part(teacher_server: Callable[..., Any], tmp_path: Path) -> None:
    parts = {"label": "杯子", "definition": "盛饮料的小容器。", "function": "它放在桌上供人喝水。"}
    server = teacher_server(answer=lambda chat: parts)
    (unit,) = units("Cup. A small vessel. It holds water.", task="explain")
    english = {"label": "cup", "definition": "A small vessel.", "function": "It holds water."}
    told = unit.model_copy(update={f"source_{name}": text for name, text in english.items()})
    (row,) = translate(server, tmp_path, [told])
    assert (row.label, row.definition, row.function) == tuple(parts.values())
    assert row.text == "杯子。盛饮料的小容器。它放在桌上供人喝水。"
    assert all(text in server.chats[0].text for text in english.values())


def test_translated_and_seen_captions_have_their_own_fingerprints() -> None:
    config = TeacherConfig(backend="openai", model="m")
    settings = [
        build_distill(config, CaptionsConfig(languages=("en", "zh"), zh=mode), "brief", language, "l").settings()
        for mode, language in (("pixels", "zh"), ("translate", "zh"), ("pixels", "en"), ("translate", "en"))
    ]
    assert settings[0] != settings[1]
    assert settings[2] == settings[3]
