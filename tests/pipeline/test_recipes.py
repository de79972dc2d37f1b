"""Recipes in a run: what a source leaves open is its format's, what the teacher is told follows, identity with it."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from pipeline import corpus
from pipeline.build import config_text
from pipeline.config import EngineConfig, load_config

HINTS = [
    {"kind": "attribute", "language": "en", "text": "red"},
    {"kind": "definition", "language": "en", "text": "a vessel"},
    {"kind": "label", "language": "en", "text": "cup"},
    {"kind": "label", "language": "en", "text": "cup"},
]


def config(folder: Path, **settings: object) -> EngineConfig:
    path = folder / "run.yaml"
    sources = [
        {"format": "lvis", "annotations": "a.json"},
        {"format": "refer", "annotations": {"refs": "refcoco+/refs(unc).p", "instances": "refcoco+/instances.json"}},
        {"format": "sav", "annotations": "sav"},
        {"format": "regions", "annotations": "r.jsonl"},
    ]
    path.write_text(json.dumps({"run": "run", "sources": sources, **settings}))
    return load_config(path)


def located(source: str = "lvis_train") -> pl.DataFrame:
    kind = {"uri": "a", "kind": "image", "media_key": b"m" * 16, "mask_digest": b"d" * 16, "width": 64, "height": 48}
    row = {
        "region_key": b"r" * 16, "source": source, "label": "cup", "hints": HINTS, "is_part": False, "frame_index": 0
    }  # fmt: skip
    return pl.DataFrame([{**kind, **row}])


def asked(run: EngineConfig, source: str, task: corpus.Task) -> pl.DataFrame:
    return corpus.asked_of(located(source), run.asked(), run.default_asked(), task, "en")


def test_recognition_sets_are_asked_for_label_and_explain_and_refer_sets_for_brief_and_detailed(tmp_path):
    run = config(tmp_path)
    wanted = {name: ask.tasks for name, ask in run.asked().items()}
    assert wanted["lvis_train"] == ("label", "explain")
    assert wanted["refcoco+_train"] == ("brief", "detailed")
    assert wanted["sav_train"] == ("video", "stream")
    assert wanted["regions_train"] is None
    assert len(asked(run, "lvis_train", "explain")) == 1
    assert len(asked(run, "lvis_train", "brief")) == 0
    assert len(asked(run, "regions_train", "brief")) == 1


def test_what_a_configuration_names_goes_before_the_recipe(tmp_path):
    run = config(tmp_path, captions={"tasks": ["brief"]})
    assert all(ask.tasks is None for ask in run.asked().values())
    assert run.default_asked().tasks == ("brief",)
    by_name = config(tmp_path, captions={"sources": {"lvis_train": {"tasks": ["detailed"]}}})
    assert by_name.asked()["lvis_train"].tasks == ("detailed",)
    assert by_name.asked()["refcoco+_train"].tasks == ("brief", "detailed")


def test_the_benchmark_splits_of_the_formats_are_guarded_unless_named(tmp_path):
    guarded = config(tmp_path).select.benchmark_splits
    assert guarded["refcoco+_train"] == ("val", "test", "testA", "testB")
    assert guarded["lvis_train"] == ("val",)
    assert "regions_train" not in guarded
    assert config(tmp_path, select={"benchmark_splits": {}}).select.benchmark_splits == {}


def test_the_configuration_kept_beside_a_run_asks_the_same(tmp_path):
    run = config(tmp_path)
    (tmp_path / "kept.yaml").write_bytes(config_text(run))
    assert load_config(tmp_path / "kept.yaml") == run


def test_the_teacher_is_told_the_kinds_of_the_recipe_in_its_order_and_each_once(tmp_path):
    run = config(tmp_path)
    told = asked(run, "lvis_train", "label")
    assert [hint["text"] for hint in told["hints"][0]] == ["cup", "a vessel"]
    assert told["label"].to_list() == ["cup"]
    silent = asked(run, "sav_train", "video")
    assert silent.is_empty()  # an image asks no video task
    plain = asked(run, "regions_train", "brief")
    assert [hint["text"] for hint in plain["hints"][0]] == ["cup", "a vessel", "red"]
    untouched = corpus.told(located(), {"elsewhere": ("label",)})
    assert untouched.equals(located())
    nothing = corpus.told(located(), {"lvis_train": ()})
    assert nothing["hints"].to_list() == [[]]
    assert nothing["label"].to_list() == [None]
    assert nothing.schema == located().schema


@pytest.mark.parametrize(("kinds", "same"), [(("label", "definition"), True), (("definition",), False)])
def test_captions_depend_on_what_is_told_and_on_nothing_else_of_the_recipe(kinds, same):
    from stages.distill.units import CaptionUnit

    empty = pl.DataFrame(schema={"region_key": pl.Binary, "event_index": pl.Int64})
    rows = located().with_columns(
        time_s=0.0, mask=None, box=None, fps=None, kind=pl.lit("image"), num_frames=1, frames=None
    )

    def digest(wanted: tuple[corpus.HintKind, ...]) -> object:
        units = corpus.distill_units(corpus.told(rows, {"lvis_train": wanted}), empty, "label", "en", CaptionUnit)
        return units["input_digest"].to_pylist()

    assert (digest(kinds) == digest(("label", "definition"))) is same
