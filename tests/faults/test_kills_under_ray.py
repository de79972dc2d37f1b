"""Real SIGKILLs in a real build: of the driver, of a worker at a stage, of a worker that writes shards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import yaml

from pipeline.build import status
from pipeline.config import EngineConfig, load_config
from pipeline.looking import open_corpus
from pipeline.tables import Run
from pipeline.verify import verify
from stages.shapes.config import ShapesConfig
from stages.shapes.images import write_images

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

REPOSITORY = Path(__file__).resolve().parents[2]


class Job:
    """`perceive build` as a process of its own, with a mark by which its Ray workers are found."""

    def __init__(self, config: Path) -> None:
        self.mark = f"PERCEIVE_TEST_MARK={uuid.uuid4().hex}"
        name, _, value = self.mark.partition("=")
        env = {**os.environ, name: value, "PYTHONPATH": str(REPOSITORY)}
        env.pop("RAY_ADDRESS", None)
        command = [sys.executable, "-m", "jobs", "build", str(config), "--json"]
        self.process = subprocess.Popen(
            command, env=env, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def workers(self) -> list[int]:
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    mine = self.mark.encode() in (folder / "environ").read_bytes()
                    if mine and b"_WorkerBody" in (folder / "cmdline").read_bytes():
                        found.append(int(folder.name))
                except (FileNotFoundError, ProcessLookupError, PermissionError):
                    continue
        return found

    def wait_for(self, happened: Callable[[], bool], timeout_s: float = 300.0) -> None:
        end = time.monotonic() + timeout_s
        while not happened():
            assert self.process.poll() is None, f"the build ended too early: {self.process.communicate()[1][-2000:]}"
            assert time.monotonic() < end, "the build never came so far"
            time.sleep(0.02)

    def finish(self) -> None:
        out, err = self.process.communicate(timeout=400)
        assert self.process.returncode == 0, err[-3000:]
        assert json.loads(out)["stages"]["pack"]["pending"] == 0


@pytest.fixture
def config(tmp_path: Path) -> Path:
    drawn = write_images(tmp_path / "world", ShapesConfig(images=14, clips=0, size=(160, 120), seed=5))
    settings = {
        "run": "run",
        "sources": [{"format": "coco", "annotations": str(drawn.annotations[0]), "media": str(drawn.media)}],
        "select": {"min_side": 8},
        "captions": {"tasks": ["label", "brief"]},
        "pack": {"max_shard_bytes": 12_000},
        "runner": {"lease_ttl_s": 8.0, "most_groups": 2},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def commits(config: EngineConfig, table: str) -> int:
    return len(list(Path(config.run, "tables", table, "commits").glob("*.json")))


def assert_whole(config: EngineConfig) -> None:
    counts = status(config)
    assert all(count.balanced and not count.pending and not count.failed for count in counts.values()), counts
    assert counts["pack"].ok == counts["decide"].ok > 0
    report = verify(Run.open(config.run))
    assert report.ok, report.problems
    now = open_corpus(config)
    for frame, key in ((now.regions, "region_key"), (now.refine.rows, "mask_key"), (now.captions, "caption_key")):
        assert not frame.filter(pl.col(key).is_duplicated()).height


def test_a_killed_driver_leaves_a_run_that_goes_on(config: Path) -> None:
    settings = load_config(config)
    first = Job(config)
    first.wait_for(lambda: commits(settings, "masks") >= 2)
    first.process.send_signal(signal.SIGKILL)
    first.process.wait()
    made = commits(settings, "masks")
    second = Job(config)
    second.finish()
    assert commits(settings, "masks") >= made
    assert_whole(settings)


def test_a_killed_worker_costs_its_batch_a_second_try_and_nothing_else(config: Path) -> None:
    settings = load_config(config)
    job = Job(config)
    job.wait_for(lambda: commits(settings, "masks") >= 1)
    job.wait_for(lambda: bool(job.workers()))
    os.kill(job.workers()[0], signal.SIGKILL)
    job.finish()
    assert_whole(settings)


def test_a_killed_shard_writer_leaves_no_torn_shard(config: Path) -> None:
    settings = load_config(config)
    job = Job(config)
    shards = Path(settings.run, "packs")
    job.wait_for(lambda: any(shards.rglob("*.tar")))
    for pid in job.workers():
        os.kill(pid, signal.SIGKILL)
    job.finish()
    assert_whole(settings)
    manifest = json.loads(next(shards.glob("*/manifest.json")).read_text())
    listed = {str(Path(settings.run, shard["shard"])) for shard in manifest["shards"]}
    assert {str(path) for path in Path(settings.run).rglob("*.tar")} == listed
