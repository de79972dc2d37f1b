"""A job killed at any write, rename, link, PUT, commit or deletion leaves a run that the next job completes."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pipeline.commits import parse_part_path
from pipeline.tables import Run
from pipeline.verify import verify
from stages.failpoints import FAILPOINT_VARIABLE, LOG_VARIABLE

SYNC_POINTS = {
    f"{each}.{when}" for each in ("part", "commit", "snapshot", "checkpoint") for when in ("before", "after")
}
LOCAL_POINTS = {"write.synced", "write.renamed", "create.synced", "create.linked"}
STORE_POINTS = {f"{each}.{when}" for each in ("write", "create", "delete") for when in ("before", "after")}


def failpoints_of(job: ModuleType, processes: Any, folder: Path, url: str, options: Any) -> Counter[str]:
    log = folder / "failpoints"
    assert processes.run(job.build, url, options, folder / "journal", **{LOG_VARIABLE: str(log)}) == 0
    return Counter(log.read_text().split())


def survive(job: ModuleType, processes: Any, folder: Path, url: str, options: Any, point: str) -> None:
    """Kills the job at a point, runs it again, and checks all that a run promises."""
    first, second = folder / "first", folder / "second"
    assert processes.run(job.build, url, options, first, **{FAILPOINT_VARIABLE: point}) == -signal.SIGKILL, point
    run = Run.open(url, options)
    killed = verify(run)
    assert killed.ok, (point, killed.problems)
    committed = {line for line in _journal(first, "committed") if line[0] == job.SECOND.hex()}
    assert committed <= _seen(run), f"{point}: a commit that was reported is gone"

    assert processes.run(job.build, url, options, second) == 0, point
    view = run.view()
    assert view.active("things") == job.SECOND, point
    rows = view.rows("things", job.SECOND, ["number"]).collect()["number"].to_list()
    assert sorted(rows) == list(job.NUMBERS), point
    live = view.live("things", job.SECOND, ["number"]).collect()["number"].to_list()
    assert sorted(live) == [number for number in job.NUMBERS if number != job.DROPPED], point
    assert not committed & set(_journal(second, "made")), f"{point}: committed work was done again"

    report = verify(run)
    assert report.ok, (point, report.problems)
    assert report.orphans == 0, point
    parts = {info.path for info in run.store.files("tables") if parse_part_path(info.path)}
    assert parts == {commit.part.path for commits in view.tables.values() for commit in commits}, point
    assert not run.store.unfinished("tables"), point


def in_parallel(kill: Callable[[str], None], points: list[str]) -> None:
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(kill, points))


def _journal(path: Path, what: str) -> list[tuple[str, int]]:
    lines = (line.split() for line in (path.read_text().splitlines() if path.exists() else []))
    return [(fingerprint, int(number)) for kind, fingerprint, number in lines if kind == what]


def _seen(run: Run) -> set[tuple[str, int]]:
    view = run.view()
    return {
        (fingerprint.hex(), number)
        for table in view.tables
        for fingerprint in view.fingerprints(table)
        for number in view.rows(table, fingerprint, ["number"]).collect()["number"].to_list()
    }


@pytest.fixture
def memory_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: a killed process loses what it had not written, whatever lies beneath."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory, prefix="perceive-") as folder:
        yield Path(folder)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_failpoint_on_a_local_disk(job: ModuleType, processes: Any, memory_disk: Path) -> None:
    points = failpoints_of(job, processes, memory_disk, str(memory_disk / "run"), None)
    assert set(points) >= SYNC_POINTS | LOCAL_POINTS | STORE_POINTS | {"lease.claimed"}
    every = [f"{name}:{hit}" for name, hits in points.items() for hit in range(1, hits + 1)]

    def kill(point: str) -> None:
        folder = memory_disk / point
        folder.mkdir()
        survive(job, processes, folder, str(folder / "run"), None, point)
        shutil.rmtree(folder)

    in_parallel(kill, every)


@pytest.mark.slow
def test_failpoints_on_s3(
    job: ModuleType, processes: Any, tmp_path: Path, s3_url: str, s3_options: dict[str, Any]
) -> None:
    """One hit of every failpoint, in the second build: each run takes seconds on moto's server."""
    points = failpoints_of(job, processes, tmp_path, f"{s3_url}/log", s3_options)
    assert set(points) >= SYNC_POINTS | STORE_POINTS | {"lease.claimed"}
    assert not set(points) & LOCAL_POINTS

    def kill(point: str) -> None:
        folder = tmp_path / point
        folder.mkdir()
        survive(job, processes, folder, f"{s3_url}/{point.replace(':', '-')}", s3_options, point)

    in_parallel(kill, [f"{name}:{(hits + 1) // 2}" for name, hits in points.items()])


@pytest.mark.parametrize("point", ["commit.before:4", "create.linked:9", "checkpoint.after:3", "delete.before:6"])
def test_some_failpoints(job: ModuleType, processes: Any, tmp_path: Path, point: str) -> None:
    survive(job, processes, tmp_path, str(tmp_path / "run"), None, point)


def test_without_the_variable_nothing_happens(job: ModuleType, processes: Any, tmp_path: Path) -> None:
    assert FAILPOINT_VARIABLE not in os.environ
    assert processes.run(job.build, str(tmp_path / "run"), None, tmp_path / "journal") == 0
