"""The distil stage with the measured teacher, on drawn photos with exact truth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from prompts import for_task
from schemas.arrow import arrow_schema, from_table, to_table
from schemas.caption import Caption, Language, Task
from schemas.geometry import Rle
from schemas.keys import digest_value
from stages.base import checked, fingerprint
from stages.distill import CaptionsConfig, build_distill
from stages.distill.units import CaptionUnit
from stages.shapes.config import ShapesConfig
from stages.shapes.images import write_images
from stages.shapes.palette import KINDS
from stages.teachers.config import TeacherConfig

MEASURED = TeacherConfig()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("shapes")
    made = write_images(folder, ShapesConfig(images=16, clips=0, seed=3))
    return folder, json.loads(made.truth.read_text())["annotations"]


def units_of(world: tuple[Path, dict[str, Any]], task: Task, language: Language) -> list[CaptionUnit]:
    folder, truth = world
    units = []
    for name, record in truth.items():
        mask = Rle.model_validate(record["mask"])
        image = f"{int(name) // 100 - 1:06d}"
        region = digest_value(["region", name])
        units.append(
            CaptionUnit(
                caption_key=digest_value([region, task, language]),
                region_key=region,
                media_key=digest_value(image),
                task=task,
                language=language,
                uri=str(folder / "images" / f"{image}.jpg"),
                kind="image",
                source="shapes",
                label=record["kind"],
                width=mask.size[1],
                height=mask.size[0],
                mask=mask,
                box=tuple(record["box"]),
                input_digest=digest_value(name),
            )
        )
    return units


def run(units: list[CaptionUnit], task: Task, language: Language, captions: CaptionsConfig | None = None) -> Any:
    stage = build_distill(MEASURED, captions or CaptionsConfig(), task, language)
    stage.open()
    try:
        rows = pa.concat_tables(checked(stage, to_table(units, CaptionUnit)))
    finally:
        stage.close()
    assert rows.schema == arrow_schema(Caption)
    by_key = {row.caption_key: row for row in from_table(rows, Caption)}
    return [by_key[unit.caption_key] for unit in units]


def test_the_measured_teacher_names_colour_size_and_place_of_drawn_shapes(world: Any) -> None:
    rows = run(units_of(world, "brief", "en"), "brief", "en")
    truth = list(world[1].values())
    assert all(row.status == "ok" and row.teacher == "measured" for row in rows)
    # "left" and "top" of the truth against the words of a caption
    place = {"top": "upper", "bottom": "lower", "left": "left", "right": "right", "centre": "centre"}
    right_colour = [record["colour"] in row.text.split() for row, record in zip(rows, truth, strict=True)]
    right_size = [record["size"] in row.text for row, record in zip(rows, truth, strict=True)]
    right_place = [
        all(place[word] in row.text for word in record["position"].split())
        for row, record in zip(rows, truth, strict=True)
    ]
    assert sum(right_colour) >= 0.95 * len(rows), [
        (row.text, record["colour"]) for row, record, good in zip(rows, truth, right_colour, strict=True) if not good
    ]
    assert sum(right_size) >= 0.95 * len(rows)
    assert sum(right_place) >= 0.95 * len(rows)
    assert all(record["kind"] in row.text for row, record in zip(rows, truth, strict=True))


@pytest.mark.parametrize("task", ["label", "explain", "brief", "detailed"])
def test_chinese_captions_hold_chinese_only(world: Any, task: Task) -> None:
    for row in run(units_of(world, task, "zh"), task, "zh"):
        letters = [char for char in row.text if char.isalpha()]
        assert all("\u4e00" <= char <= "\u9fff" for char in letters), row.text


def test_an_explain_answer_keeps_its_parts_apart(world: Any) -> None:
    for row in run(units_of(world, "explain", "en"), "explain", "en"):
        assert row.label in KINDS
        assert row.definition
        assert row.function
        assert row.text.lower().startswith(row.label)
        assert row.definition in row.text


def test_bad_units_come_back_as_failed_rows_and_their_neighbours_do_not_pay(world: Any, tmp_path: Path) -> None:
    units = units_of(world, "brief", "en")
    missing = units[0].model_copy(update={"uri": str(tmp_path / "no.jpg"), "media_key": digest_value("other")})
    maskless = units[1].model_copy(update={"mask": None})
    shrunk = units[2].model_copy(update={"mask": Rle(size=(2, 2), counts="04")})
    rows = run([missing, maskless, shrunk, *units[3:]], "brief", "en")
    assert [row.reason for row in rows[:3]] == ["missing_media", "no_mask", "mask_size"]
    assert {row.status for row in rows[3:]} == {"ok"}


def test_one_prompt_changes_one_fingerprint(tmp_path: Path) -> None:
    own = CaptionsConfig(prompts=str(tmp_path))
    pairs: list[tuple[Task, Language]] = [
        (task, language) for task in ("label", "explain", "brief", "detailed", "video", "stream")
        for language in ("en", "zh")
    ]  # fmt: skip
    before = {pair: fingerprint(build_distill(MEASURED, own, *pair)) for pair in pairs}
    assert len(set(before.values())) == len(pairs)
    prompt = for_task("brief", "en")
    source = Path(__file__).parents[3] / "prompts" / "templates" / "brief.en.md"
    (tmp_path / "brief.en.md").write_text(source.read_text().replace("Write one sentence", "Write a single sentence"))
    after = {pair: fingerprint(build_distill(MEASURED, own, *pair)) for pair in pairs}
    assert [pair for pair in pairs if before[pair] != after[pair]] == [("brief", "en")]
    assert for_task("brief", "en").hash == prompt.hash
