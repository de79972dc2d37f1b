"""Captions that PAM's annotation files bring along become rows of a run and records of its shards; nobody is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import polars as pl
import pytest
import webdataset as wds
from typer.testing import CliRunner

from jobs.cli import app
from pipeline.build import build, status
from pipeline.config import load_config
from pipeline.looking import open_corpus
from pipeline.tables import Run
from pipeline.verify import verify
from prompts.pam import user_text
from stages.shapes.config import ShapesConfig
from stages.shapes.images import write_images

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]

WORDS = {
    ("label", "en"): "shape {}",
    ("label", "zh"): "形状{}",
    ("explain", "en"): "shape {}. A plain figure.",
    ("brief", "zh"): "第{}个“图形”在画面中。",
    ("detailed", "en"): "Figure {} is filled with one colour and lies on a plain ground.",
}


def _asked(task: str, language: str, text: str, history: str | None = None) -> list[dict[str, str]]:
    return [{"from": "human", "value": user_text(task, language, history)}, {"from": "gpt", "value": text}]


def _of_images(photos: Any) -> list[dict[str, Any]]:
    document = json.loads(photos.annotations[0].read_text())
    names = {image["id"]: image["file_name"] for image in document["images"]}
    return [
        {
            "type": "image",
            "image": f"/mnt/release/photos/{names[found['image_id']]}",
            "bbox": found["bbox"],
            "points": None,
            "labels": None,
            "conversations": _asked(task, language, text.format(number)),
            "grade": {"by": "标注员", "stars": number},
        }
        for number, found in enumerate(document["annotations"])
        for (task, language), text in WORDS.items()
    ]


def _of_a_clip(folder: Path) -> list[dict[str, Any]]:
    """A red square that moves right over forty frames, told in two events."""
    folder.mkdir(parents=True)
    for index in range(40):
        frame = np.full((96, 160, 3), 90, np.uint8)
        frame[30:60, 10 + 2 * index : 40 + 2 * index] = (40, 40, 220)
        cv2.imwrite(str(folder / f"{index:05d}.jpg"), frame)
    texts = ["A red square moves to the right.", "The square goes on to the edge."]
    return [
        {
            "type": "video",
            "image_root": f"/mnt/release/frames/{folder.name}",
            "frames": [f"{index:05d}.jpg" for index in range(start, start + 20)],
            "bbox": [[10 + 2 * start, 30, 30, 30]],
            "points": None,
            "labels": None,
            "conversations": _asked("stream", "en", texts[start // 20], texts[0] if start else None),
        }
        for start in (0, 20)
    ]


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder with pictures and an annotation file, and what the command said of importing it."""
    root = tmp_path_factory.mktemp("import")
    photos = write_images(root / "world", ShapesConfig(images=4, clips=0, seed=1, size=(160, 120), objects=(2, 3)))
    records = [*_of_images(photos), *_of_a_clip(root / "world" / "frames" / "judo")]
    (root / "pam.jsonl").write_text("\n".join(json.dumps(record) for record in records), "utf-8")
    return root, records, _import(root)


def _import(root: Path) -> dict[str, Any]:
    command = ["import", "pam", str(root / "pam.jsonl"), "--out", str(root / "in"), "--json"]
    done = CliRunner().invoke(app, [*command, "--media", str(root / "world"), "--fps", "10"])
    assert done.exit_code == 0, done.output
    return dict(json.loads(done.stdout))


def test_every_caption_is_a_row_of_the_run(imported: Any) -> None:
    root, records, said = imported
    assert (said["records"], said["captions"], said["skipped"]) == (len(records), len(records), {})
    assert said["unknown_keys"] == {"grade": len(records) - 2}
    assert said["stages"]["select"]["ok"] == said["stages"]["ingest"]["in"]
    now = open_corpus(load_config(root / "in" / "corpus.yaml"))
    masked = now.masked.select("region_key", "source_id")
    assert len(masked)
    assert said["rows"]["distill/imported"] == said["stages"]["distill"]["ok"] == len(now.captions)
    brought = now.brought.join(masked, on="source_id")
    assert sorted(now.captions["text"]) == sorted(brought["text"])
    assert set(now.captions.select("teacher", "model").rows()) == {("imported", "pam-data")}
    images = now.captions.filter(pl.col("task") != "stream")
    assert {json.loads(message)["grade"]["by"] for message in images["message"]} == {"标注员"}
    assert not (root / "in" / "run" / "ledger").exists()


def test_a_second_import_changes_nothing(imported: Any) -> None:
    root, _, said = imported
    again = _import(root)
    assert again["rows"] == {}
    assert again["stages"] == said["stages"]


def test_imported_captions_are_scored_decided_and_packed(imported: Any, tmp_path: Path) -> None:
    root, records, _ = imported
    policy = tmp_path / "all.yaml"
    policy.write_text("name: all\nchecks: []\n", "utf-8")
    config = load_config(root / "in" / "corpus.yaml", [f"policy={policy}", "pack.validation_fraction=0"])
    result = build(config)
    counts = status(config)
    assert not {name for name in result.done if name.startswith("distill")}
    assert counts["score/text"].ok == counts["distill"].ok == counts["decide"].ok == counts["pack"].ok > 0
    assert all(count.balanced and not count.pending for count in counts.values())
    told: dict[tuple[str, str], set[str]] = {}
    for shard in sorted((root / "in" / "run" / "packs").rglob("*.tar")):
        for sample in wds.WebDataset(str(shard), shardshuffle=False).decode():
            for region in sample["json"]["regions"]:
                for caption in region["captions"]:
                    told.setdefault((caption["task"], caption["language"]), set()).add(caption["text"])
    texts = {record["conversations"][1]["value"] for record in records}
    assert {pair for pair in told if pair[0] != "stream"} == set(WORDS)
    assert set().union(*told.values()) <= texts
    assert told["stream", "en"] == {record["conversations"][1]["value"] for record in records[-2:]}
    assert verify(Run.open(config.run)).ok


def test_what_is_imported_is_not_asked_again(imported: Any) -> None:
    root, _, _ = imported
    pack = ["captions.tasks=[label,brief]", "captions.languages=[en]", "sources.0.captions.tasks=[label,brief]"]
    config = load_config(root / "in" / "corpus.yaml", pack)
    now = open_corpus(config)
    # The pictures' English labels are there, the clip's is not; English briefs are nowhere.
    assert now.distill["label", "en"].units["kind"].to_pylist() == ["video"]
    assert len(now.distill["brief", "en"].units) == len(now.masked)


def test_a_stream_that_was_cut_otherwise_fails_by_name(imported: Any) -> None:
    root, _, _ = imported
    config = load_config(root / "in" / "corpus.yaml", ["chunk.backend=uniform", "chunk.file=", "chunk.uniform_s=100"])
    result = build(config, ("chunk", "distill"))
    assert result.reasons["distill/imported"] == {"events_differ": 2}
    assert all(count.balanced for count in result.stages.values())


def test_a_missing_caption_file_is_named(imported: Any) -> None:
    root, _, _ = imported
    moved = root / "in" / "elsewhere.parquet"
    (root / "in" / "captions.parquet").rename(moved)
    try:
        done = CliRunner().invoke(app, ["status", str(root / "in" / "corpus.yaml")])
    finally:
        moved.rename(root / "in" / "captions.parquet")
    assert done.exit_code == 1
    assert "import them again" in " ".join(done.output.split())
