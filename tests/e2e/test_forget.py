"""A media is taken down from a real run: gone everywhere, proved by `verify`, kept out by the builds after it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from typer.testing import CliRunner

from jobs.cli import app
from jobs.reporting import write_run_report
from pipeline.build import build, status
from pipeline.forget import forget
from pipeline.forgotten import forgotten
from pipeline.tables import Run
from pipeline.verify import verify
from stages.teachers.cache import stats

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]

SCRIPT = Path(__file__).with_name("killed_forget.py")
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, make_world: Callable[..., Any], teacher_module: Any) -> Any:
    """A run of a billed teacher with two packs, old decisions and a report."""
    folder = tmp_path_factory.mktemp("forget")
    server = teacher_module.TeacherServer().start()
    teacher = {"backend": "openai", "model": "m", "base_url": server.url}
    world = make_world(folder, images=4, teacher=teacher, pack={"layout": "split", "validation_fraction": 0.0})
    build(world.config())
    policy = folder / "strict.yaml"
    policy.write_text("name: strict\nchecks:\n  - {reason: long, column: words, max: 1, action: drop}\n")
    build(world.config(f"policy={policy}"))
    build(world.config("pack.layout=joined"))
    write_run_report(world.config())
    server.stop()
    return world


@pytest.fixture
def copied(world: Any, tmp_path: Path) -> Any:
    """The run in a folder of its own, with the configuration that finds it."""
    shutil.copytree(world.folder / "run", tmp_path / "run")
    settings = {**world.settings, "run": str(tmp_path / "run")}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return lambda *overrides: _config(tmp_path / "config.yaml", overrides)


def _config(path: Path, overrides: tuple[str, ...]) -> Any:
    from pipeline.config import load_config

    return load_config(path, list(overrides))


def a_media(run: Run) -> tuple[bytes, str]:
    """Key and URI of a media that has captions."""
    view = run.view()
    told = view.rows("captions", None, ["media_key"]).collect()["media_key"]
    refs = view.rows("media_refs", None, ["media_key", "uri"]).collect()
    return refs.filter(pl.col("media_key").is_in(told.implode())).sort("uri").row(0)


def holds(run: Path, key: bytes) -> list[str]:
    """Files, the record of the takedown aside, in which the key stands as bytes or as text."""
    files = [path for path in run.rglob("*") if path.is_file() and path.parent.name != "forgotten"]
    return [str(path) for path in files if key.hex().encode() in path.read_bytes() or key in path.read_bytes()]


def test_a_dry_run_changes_nothing(copied: Any) -> None:
    run = Run.open(copied().run)
    key, uri = a_media(run)
    before = {info.path: info.mtime for info in run.store.files("") if not info.path.startswith("lease/")}
    report = forget(run, [uri], dry_run=True)
    assert report.media[0].media_key == key
    assert {"media", "media_refs", "probes", "regions", "masks", "captions", "packed"} <= set(report.rows)
    assert any(name.startswith("scores/") for name in report.rows)
    assert len([name for name in report.rows if name.startswith("decisions/")]) == 2
    assert len(report.media[0].packs) == 3
    assert {info.path: info.mtime for info in run.store.files("") if not info.path.startswith("lease/")} == before


def test_it_is_gone_everywhere_and_stays_away(copied: Any, tmp_path: Path) -> None:
    config = copied()
    run, folder = Run.open(config.run), Path(config.run)
    key, uri = a_media(run)
    replies = stats(f"{config.run}/ledger").replies
    counts = status(config)
    assert holds(folder, key)

    done = CliRunner().invoke(app, ["forget", str(tmp_path / "config.yaml"), key.hex()[:12], "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["replies"] > 0
    assert stats(f"{config.run}/ledger").replies == replies - report["replies"]
    assert holds(folder, key) == []
    assert verify(run).ok
    assert CliRunner().invoke(app, ["verify", str(tmp_path / "config.yaml")]).exit_code == 0
    assert not list((folder / "report").glob("*"))
    assert Path(uri).exists()

    build(config, phases=("ingest",))
    after = status(config)
    assert after["ingest"].total == counts["ingest"].total
    assert after["ingest"].filtered == counts["ingest"].filtered + report["rows"]["regions"]
    rows = run.view().rows("regions", None).filter(pl.col("reason") == "forgotten").collect()
    assert rows["status"].unique().to_list() == ["filtered"]
    assert rows.select("box", "polygons", "mask", "label", "media_key").null_count().row(0) == (len(rows),) * 5
    build(config)
    assert status(config)["pack"].pending == 0
    assert build(config).rows == 0
    assert holds(folder, key) == []
    assert verify(run).ok

    again = forget(run, [key.hex()])
    assert (again.rows, again.replies) == ({}, 0)
    assert verify(run).ok


def test_verify_finds_what_is_left(copied: Any) -> None:
    run = Run.open(copied().run)
    key, _ = a_media(run)
    kept = {info.path: run.store.read(info.path) for info in run.store.files("")}
    forget(run, [key.hex()])
    record = forgotten(run.store)[0]
    shard = next(path for path in record.shards if path.startswith("media_shards"))
    segment = next(path for path in kept if path.endswith(".seg"))
    indexes = [f"packs/{pack}/regions.parquet" for pack in record.packs]
    index = next(path for path in indexes if key.hex() in pl.read_parquet(kept[path])["media_key"])
    page = "report/index.html"
    for path in (shard, segment, index, page):
        run.store.write_durable(path, kept[path])
    found = {problem.file for problem in verify(run).problems}
    assert {shard, segment, index, page} <= found


def test_a_name_that_is_none_is_refused(world: Any) -> None:
    done = CliRunner().invoke(app, ["forget", str(world.path), "nothing.jpg"])
    assert done.exit_code == 1
    assert "no media of this run" in done.output


@pytest.mark.timeout(900)
def test_killed_anywhere(copied: Any, killing_tools: dict[str, str], tmp_path: Path) -> None:
    """At each failpoint: killed, then forgotten again; or killed, then a build that ends what was begun."""
    run = Run.open(copied().run)
    key, _ = a_media(run)
    command = [sys.executable, str(SCRIPT), copied().run, str(tmp_path / "runs"), key.hex()]
    done = subprocess.run(command, cwd=REPOSITORY, env=killing_tools, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    points = {line.split(":")[0] for line in done.stdout.split()}
    steps = {"recorded", "ledger", "shard", "pack_file", "pack", "part", "rows", "done"}
    assert {f"forget.{step}" for step in steps} <= points
    for folder in sorted((tmp_path / "runs").iterdir()):
        assert holds(folder, key) == [], folder.name
        assert verify(Run.open(str(folder))).problems == [], folder.name
