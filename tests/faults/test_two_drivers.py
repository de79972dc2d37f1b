"""Two real drivers on one run: the second is refused, a dead one's place is taken, a sleeper's commits do not count."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pipeline.commits import parse_commit_path
from pipeline.tables import Run
from pipeline.verify import verify
from stages.failpoints import FAILPOINT_VARIABLE


def asleep(process: Any) -> None:
    """Waits until a process has stopped itself."""
    stat = Path(f"/proc/{process.pid}/stat")
    while stat.read_text().rpartition(")")[2].split()[0] != "T":
        assert process.is_alive(), f"it ended with {process.exitcode}"
        time.sleep(0.01)


def silent(run: Run) -> None:
    """Waits until the run's holder counts as gone."""
    while (standing := run.holder()) is None or standing.live:
        time.sleep(0.05)


def numbers(run: Run, job: ModuleType) -> list[int]:
    return sorted(run.view().rows("things", job.FIRST, ["number"]).collect()["number"].to_list())


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.open(str(tmp_path / "run"))


def test_a_second_driver_is_refused_and_told_by_whom(job: ModuleType, processes: Any, run: Run) -> None:
    first = processes.start(job.commit_one, run.store.url, 60.0, 1, **{FAILPOINT_VARIABLE: "commit.before:1:stop"})
    asleep(first)
    assert processes.run(job.commit_one, run.store.url, 60.0, 2) == job.HELD
    message = Path(run.store.url, "held-2").read_text()
    assert f"held by driver of 1 on {os.uname().nodename}, pid {first.pid}, heard of" in message
    os.kill(first.pid, signal.SIGCONT)
    first.join()
    assert first.exitcode == 0
    assert numbers(run, job) == [1]


def test_a_killed_driver_s_place_is_taken_at_once(job: ModuleType, processes: Any, run: Run) -> None:
    point = {FAILPOINT_VARIABLE: "commit.before"}
    assert processes.run(job.commit_one, run.store.url, 3600.0, 1, **point) == -signal.SIGKILL
    assert processes.run(job.commit_one, run.store.url, 3600.0, 2) == 0
    assert numbers(run, job) == [2]


@pytest.mark.parametrize(
    ("point", "writes_late"),
    [
        ("part.after", False),  # it looks at the lease after waking up, and writes nothing
        ("commit.before", True),  # it has looked already: its commit record is written, and must not count
        ("create.synced:5", True),  # the same, one system call before the record's link
    ],
)
def test_a_sleeper_s_late_commit_is_fenced_off(
    job: ModuleType, processes: Any, run: Run, point: str, writes_late: bool
) -> None:
    """Stopped past its time to live, the driver is taken over; resumed, it must not add anything."""
    stop = f"{point}:1:stop" if ":" not in point else f"{point}:stop"
    sleeper = processes.start(job.commit_one, run.store.url, 0.4, 1, **{FAILPOINT_VARIABLE: stop})
    asleep(sleeper)
    silent(run)
    assert processes.run(job.commit_one, run.store.url, 60.0, 2) == 0
    os.kill(sleeper.pid, signal.SIGCONT)
    sleeper.join()
    assert sleeper.exitcode == job.LOST
    parsed = [parse_commit_path(info.path) for info in run.store.files("tables")]
    assert (1 in [each[2] for each in parsed if each]) == writes_late
    assert numbers(run, job) == [2]
    assert verify(run).ok
    assert processes.run(job.commit_one, run.store.url, 60.0, 1) == 0
    with run.writer("sweep") as writer:
        writer.sweep()
    assert numbers(run, job) == [1, 2]
    assert verify(run).orphans == 0
