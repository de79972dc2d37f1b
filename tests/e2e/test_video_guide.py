"""docs/guides/video.md, from its first line to its last: an MP4 with one box becomes streaming captions in shards."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from jobs.cli import app
from pipeline.config import load_config
from pipeline.looking import open_corpus
from schemas.geometry import Rle
from stages.masks import decode

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "video.md"
FILES = {"json": "regions.jsonl", "yaml": "video.yaml"}


def perceive(line: str) -> str:
    """Runs a command line as the guide has it; returns what it prints."""
    program, *arguments = shlex.split(line, comments=True)
    assert program == "perceive"
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "160"})
    assert result.exit_code == 0, f"{line}: {result.output}"
    return result.output


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The names that the guide's Python leaves, after every block of it was done in its order in one folder."""
    pytest.importorskip("sam2", reason="the extra [sam2] is not installed")
    names: dict[str, Any] = {}
    with contextlib.chdir(tmp_path_factory.mktemp("guide")):
        for language, text in re.findall(r"```(\w+)\n(.*?)```", GUIDE.read_text("utf-8"), re.DOTALL):
            if language in FILES:
                Path(FILES[language]).write_text(text, encoding="utf-8")
            elif language == "bash":
                for line in text.splitlines():
                    perceive(line)
            else:
                assert language == "python"
                exec(compile(text, f"{GUIDE.name} ({language})", "exec"), names)
        yield names


def test_the_shard_has_the_masklet_its_events_and_chains_in_two_languages(followed: dict[str, Any]) -> None:
    region, clip = followed["region"], followed["clip"]
    masks = {frame["frame_index"]: frame["mask"] for frame in region["frames"]}
    overlaps = []
    for index, mask in masks.items():
        true = clip.masks[index, 0]
        if mask and true.any():
            found = decode(Rle.model_validate(mask))
            overlaps.append((found & true).sum() / (found | true).sum())
    assert np.mean(overlaps) > 0.8
    assert abs(len(region["events"]) - len(clip.objects[0].events)) <= 1
    for language in ("en", "zh"):
        told = [c for c in region["captions"] if (c["task"], c["language"]) == ("stream", language)]
        assert [caption["event_index"] for caption in told] == list(range(len(told)))
        assert len(told) >= 3
        assert [caption["history"] for caption in told] == [None, *(caption["text"] for caption in told[:-1])]
    assert {caption["task"] for caption in region["captions"]} == {"video", "stream"}
    assert followed["storyboard"].ndim == 3
    assert len(list(Path("clips/videos").glob("*.mp4"))) == 2


def test_pams_records_carry_the_previous_caption(followed: dict[str, Any]) -> None:
    (file,) = Path("pam").rglob("*stream*en*.jsonl")
    records = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    texts = [record["conversations"][1]["value"] for record in records]
    asked = [record["conversations"][0]["value"].split("Previous caption: ")[1] for record in records]
    assert asked == ["None", *texts[:-1]]
    assert all(len(record["frames"]) >= 16 for record in records)


def test_inspect_shows_the_events_in_time(followed: dict[str, Any]) -> None:
    shown = perceive(f"perceive inspect video.yaml {followed['region']['region_key'][:12]}")
    lines = shown.split("timeline\n")[1].splitlines()
    events = open_corpus(load_config(Path("video.yaml"))).chunk.rows.sort("event_index").to_dicts()
    ends = 0
    for event, line in zip(events, lines, strict=False):
        found = re.fullmatch(r"\s+(\d+)\s+([\d.]+ - [\d.]+ s)   (\s*[━·]+)\s+(.*?)\s*", line)
        assert found is not None, line
        number, times, bar, motion = found.groups()
        assert int(number) == event["event_index"]
        assert times == f"{event['start_s']:.1f} - {event['end_s']:.1f} s"
        assert motion == event["motion"]
        assert ("·" in bar) == event["absent"]
        begins = len(bar) - len(bar.lstrip())
        assert begins == pytest.approx(ends, abs=1), "a bar begins where the one before it ends"
        ends = len(bar)
    assert "moving" in shown
