"""Packing again: a new policy writes no pixels and says so; shards whose pictures were away are written on retry."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from typer.testing import CliRunner

from jobs.cli import app
from pipeline.build import PHASES, build, status
from pipeline.config import EngineConfig, load_config
from pipeline.looking import open_corpus, tables_of
from pipeline.tables import Run
from pipeline.verify import verify
from stages.shapes.config import ShapesConfig
from stages.shapes.images import write_images

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]

STRICT = "name: strict\nchecks:\n  - {{reason: large, column: mask_area_share, max: {}, action: drop}}\n"


def _config(folder: Path, images: int, **pack: Any) -> Path:
    drawn = write_images(folder / "world", ShapesConfig(images=images, clips=0, size=(640, 480), objects=(1, 2)))
    (folder / "all.yaml").write_text("name: all\nchecks: []\n", "utf-8")
    settings = {
        "run": "run",
        "policy": "all.yaml",
        "sources": [{"format": "coco", "annotations": str(drawn.annotations[0]), "media": str(drawn.media)}],
        "captions": {"tasks": ["label", "brief"], "languages": ["en"]},
        "pack": {"validation_fraction": 0.4, **pack},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(settings), "utf-8")
    return path


def _perceive(*command: str | Path) -> str:
    done = CliRunner().invoke(app, list(map(str, command)))
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_new_policy_writes_no_media_shard_and_under_a_twentieth_of_the_bytes(tmp_path: Path) -> None:
    config = _config(tmp_path, 12, layout="split", max_shard_bytes="60kB")
    first = build(load_config(config))
    assert first.pack is not None
    assert first.pack["effort"]["media_shards_written"] == first.pack["effort"]["caption_shards_written"] > 2
    _shows_the_whole_life(config)
    pixels = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "media_shards").rglob("*.tar")}
    areas = open_corpus(load_config(config)).scored["mask_area_share"].unique().sort()
    (tmp_path / "strict.yaml").write_text(STRICT.format((areas[-1] + areas[-2]) / 2), "utf-8")

    told = json.loads(_perceive("filter", config, "--policy", tmp_path / "strict.yaml", "--pack", "--json"))
    effort = told["pack_effort"]
    assert told["kept"] == told["captions"] - 2, "the captions of the largest region go"
    assert (effort["media_shards_written"], effort["media_shards_reused"]) == (0, len(pixels))
    assert effort["caption_shards_written"] == 1
    assert 0 < effort["bytes_written"] < 0.05 * effort["bytes_total"]
    pack_id = Run.open(str(tmp_path / "run")).view().snapshot.pointers["pack"]
    index = pl.read_parquet(tmp_path / "run" / "packs" / pack_id / "regions.parquet")
    assert json.loads(index["decoding"][0])["temperature"] >= 0
    assert index["mask_area_share"].max() <= (areas[-1] + areas[-2]) / 2
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "media_shards").rglob("*.tar")}
    assert after == pixels

    back = " ".join(_perceive("pack", config, "--policy", tmp_path / "all.yaml").split())
    assert f"0 media shards written, {len(pixels)} taken over" in back
    assert "bytes written (0.0%)" in back
    assert verify(Run.open(str(tmp_path / "run"))).ok


@pytest.mark.parametrize("layout", ["joined", "split"])
def test_shards_whose_pictures_were_away_are_written_on_retry(tmp_path: Path, layout: str) -> None:
    path = _config(tmp_path, 5, layout=layout)
    config = load_config(path)
    build(config, PHASES[:-1])
    pictures = sorted(path for path in (tmp_path / "world").rglob("*.jpg") if path.is_file())
    away = tmp_path / "away"
    away.mkdir()
    for picture in pictures[1:]:
        picture.rename(away / picture.name)

    build(config, ("pack",))
    poor = status(config)["pack"]
    assert 0 < poor.ok < poor.total
    assert poor.failed == poor.total - poor.ok
    manifest = _manifest(config)
    (index,) = Path(config.run).glob("packs/*/regions.parquet")
    assert poor.ok == len(pl.read_parquet(index)), "captions whose picture is missing are not in the pack"
    assert manifest["failed"]
    assert {row["reason"] for row in manifest["failed"]} <= {"missing_media", "no_media_shard"}
    assert verify(Run.open(config.run)).ok

    for picture in pictures[1:]:
        (away / picture.name).rename(picture)
    assert build(config).rows == 0, "a build does not try again unasked"
    _perceive("retry-failed", path)
    whole = status(config)["pack"]
    assert (whole.ok, whole.failed) == (poor.total, 0)
    manifest = _manifest(config)
    assert (manifest["failed"], manifest["missing_samples"]) == ([], [])
    packed = tables_of(open_corpus(config))["packed"].filter(pl.col("status") == "ok")
    assert packed["attempts"].max() == 2
    assert verify(Run.open(config.run)).ok
    _lost_files_come_back(path, manifest)


def _lost_files_come_back(path: Path, manifest: dict[str, Any]) -> None:
    """`pack` writes anew what is gone of a finished pack: a shard, a file beside it, all of it."""
    config = load_config(path)
    run, pack = Path(config.run), Path(config.run) / "packs" / manifest["pack_id"]
    (run / manifest["shards"][0]["shard"]).unlink()
    _perceive("pack", path)
    assert _manifest(config) == manifest
    (pack / "regions.parquet").unlink()
    _perceive("pack", path)
    shutil.rmtree(pack)
    counts = status(config)["pack"]
    assert (counts.ok, counts.pending) == (0, counts.total)
    _perceive("pack", path)
    assert _manifest(config) == manifest
    _perceive("verify", path)


def _shows_the_whole_life(config: Path) -> None:
    """`perceive inspect` of a region that was packed tells of every stage that it went through."""
    now = open_corpus(load_config(config))
    (region, *_) = now.captions.filter(pl.col("status") == "ok")["region_key"].to_list()
    told = _perceive("inspect", config, region.hex()[:12])
    texts = now.captions.filter(pl.col("region_key") == region)["text"]
    for part in ("source record", "media", "named by", "selection", "mask, segment 0", "caption label en"):
        assert part in told, part
    for part in ("scores text", "scores mask", "decision", "outcome", "answer", "packed in packs/"):
        assert part in told, part
    assert all(" ".join(text.split()[:3]) in " ".join(told.split()) for text in texts)


def _manifest(config: EngineConfig) -> dict[str, Any]:
    (path,) = Path(config.run).glob("packs/*/manifest.json")
    return dict(json.loads(path.read_text("utf-8")))
