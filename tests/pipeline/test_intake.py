"""Ingest into a run: slice by slice, each row once, whatever was committed before. The photos are absent: no Ray."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline import known
from pipeline.build import build, status
from pipeline.config import load_config
from pipeline.looking import open_corpus
from pipeline.tables import Run
from stages.failpoints import FAILPOINT_VARIABLE
from stages.ingest import coco

_BUILD = """
import sys
from pipeline import known
from pipeline.build import build
from pipeline.config import load_config
from stages.ingest import coco
known.SLICE_ROWS = coco.BATCH_ROWS = 50
build(load_config(sys.argv[1]), ("ingest",))
"""


def write(folder: Path, count: int, label: str = "cup") -> Path:
    """A configuration with a COCO file of this many boxes on photos that are not there."""
    boxes = [{"id": n, "image_id": n % 7, "category_id": 1, "bbox": [1, 2, 30, 40 + n]} for n in range(count)]
    document = {
        "images": [{"id": n, "file_name": f"{n}.jpg", "width": 640, "height": 480} for n in range(7)],
        "annotations": boxes,
        "categories": [{"id": 1, "name": label}],
    }
    (folder / "images").mkdir(exist_ok=True)
    (folder / "instances.json").write_text(json.dumps(document))
    sources = [{"format": "coco", "annotations": "instances.json", "media": "images"}]
    (folder / "run.yaml").write_text(json.dumps({"run": str(folder / "run"), "sources": sources}))
    return folder / "run.yaml"


@pytest.fixture(autouse=True)
def small_slices(monkeypatch):
    monkeypatch.setattr(known, "SLICE_ROWS", 50)
    monkeypatch.setattr(coco, "BATCH_ROWS", 50)


def regions(path: Path) -> pl.DataFrame:
    return open_corpus(load_config(path)).regions


def commits(path: Path) -> list[Any]:
    return list(Run.open(load_config(path).run).view().commits("regions"))


def test_a_source_is_committed_in_slices_of_bounded_size(tmp_path):
    path = write(tmp_path, 330)
    result = build(load_config(path), ("ingest",))
    assert result.done["ingest"] == 330
    assert result.reasons["ingest"] == {"missing_media": 330}
    assert [commit.part.rows for commit in commits(path)] == [50] * 6 + [30]
    assert status(load_config(path))["ingest"].failed == 330


def test_a_killed_ingest_goes_on_and_commits_no_row_twice(tmp_path):
    path = write(tmp_path, 330)
    root = str(Path(known.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root, FAILPOINT_VARIABLE: "commit.after:6"}
    done = subprocess.run([sys.executable, "-c", _BUILD, str(path)], env=environment, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    before = sum(commit.part.rows for commit in commits(path))
    assert 0 < before < 330
    config = load_config(path, ["runner.lease_ttl_s=0.5"])
    again = build(config, ("ingest",))
    assert again.done["ingest"] == 330 - before
    assert sum(commit.part.rows for commit in commits(path)) == 330
    assert regions(path)["region_key"].n_unique() == 330


def test_a_changed_file_adds_what_is_new_and_drops_what_is_gone(tmp_path):
    path = write(tmp_path, 120)
    build(load_config(path), ("ingest",))
    write(tmp_path, 200)
    assert build(load_config(path), ("ingest",)).done["ingest"] == 80
    write(tmp_path, 60)
    assert "ingest" not in build(load_config(path), ("ingest",)).done
    assert len(regions(path)) == 60
    write(tmp_path, 200)
    assert "ingest" not in build(load_config(path), ("ingest",)).done
    assert len(regions(path)) == 200
    write(tmp_path, 200, label="mug")
    assert build(load_config(path), ("ingest",)).done["ingest"] == 200
    assert regions(path)["label"].unique().to_list() == ["mug"]


def test_a_file_that_breaks_off_is_an_error_and_the_whole_file_mends_it(tmp_path):
    path = write(tmp_path, 330)
    whole = (tmp_path / "instances.json").read_text()
    (tmp_path / "instances.json").write_text(whole[: len(whole) // 2] + "]}")
    with pytest.raises(ValueError, match=r"instances\.json"):
        build(load_config(path), ("ingest",))
    (tmp_path / "instances.json").write_text(whole)
    build(load_config(path), ("ingest",))
    assert len(regions(path)) == 330
