"""docs/guides/add-a-source.md does what it says: its lines are read, its adapter works, its test passes."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter

from schemas.yaml import load_yaml
from stages.ingest import sources
from stages.ingest.base import SourceConfig, SourceError
from stages.ingest.preview import preview
from stages.ingest.recipes import Recipe

GUIDE = Path(__file__).parents[3] / "docs" / "guides" / "add-a-source.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)


def module(name: str, text: str, folder: Path) -> ModuleType:
    path = folder / f"{name}.py"
    path.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture
def kettles(tmp_path, monkeypatch) -> None:
    """The guide's adapter among the formats, as the one line in `formats()` puts it there."""
    adapter = module("kettles", blocks("python")[0], tmp_path).ADAPTER
    known = dict(sources.formats())
    monkeypatch.setattr(sources, "formats", lambda: {**known, "kettles": adapter})


@pytest.mark.usefixtures("kettles")
def test_the_adapter_of_the_guide_passes_the_test_of_the_guide(tmp_path, picture, rows_of):
    text = "from stages.ingest.base import SourceConfig\n\n" + blocks("python")[1]
    steps = module("kettles_test", text, tmp_path)
    (name,) = [name for name in vars(steps) if name.startswith("test_")]
    getattr(steps, name)(tmp_path, picture, rows_of)


@pytest.mark.usefixtures("kettles")
def test_the_adapter_of_the_guide_refuses_another_file_and_can_be_looked_at(tmp_path, picture, rows_of):
    picture(tmp_path / "a.png")
    (tmp_path / "k.csv").write_text("a.png,4,6,20,10,kettle\ngone.png,4,6,20,10,kettle\na.png\n")
    config = SourceConfig(format="kettles", annotations=str(tmp_path / "k.csv"), media=str(tmp_path))
    assert [row.reason for row in rows_of(config)] == [None, "missing_media", "bad_record"]
    assert preview(config).startswith(b"\x89PNG")
    (tmp_path / "k.csv").write_text("photo;x;y\n")
    with pytest.raises(SourceError, match="expected photo,x,y,width,height,name"):
        rows_of(config)


def test_the_recipe_of_the_guide_is_one():
    text = blocks("yaml")[0]
    recipe = TypeAdapter(dict[str, Recipe]).validate_python(load_yaml(text))["kettles"]
    assert (recipe.tasks, recipe.benchmarks) == (("label", "explain"), ("val",))


def test_the_lines_of_the_guide_are_regions_without_any_adapter(tmp_path, picture, rows_of):
    picture(tmp_path / "photos" / "a.jpg", 160, 240)
    film = np.zeros((12, 240, 160, 3), np.uint8)
    (tmp_path / "clip").mkdir()
    for index, frame in enumerate(film):
        Image.fromarray(frame).save(tmp_path / "clip" / f"{index:05d}.jpg")
    lines = [json.loads(line) for line in blocks("json")[0].splitlines()]
    for line in lines:
        line["media"] = line["media"].replace("clip.mp4", "clip/")
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    photo, video = rows_of(SourceConfig(format="regions", annotations=str(tmp_path / "r.jsonl")))
    assert (photo.status, photo.source_id, photo.label) == ("ok", "a-1", "kettle")
    assert (video.status, video.frame_index) == ("ok", 0)
    assert [point.frame_index for point in video.track or [] if point.box is not None] == [0]
