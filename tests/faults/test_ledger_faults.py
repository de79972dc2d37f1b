"""The ledger under SIGKILL: what was handed on is on disk, and what is on disk is read again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from schemas.keys import digest_value
from stages.teachers.ledger import GROUP_REPLIES, Ledger

# One interpreter forks a buyer for every failpoint: a fresh one each would spend the time on imports.
DRIVER = """
import json, os, sys, time
from pathlib import Path

from schemas.keys import digest_value
from stages import failpoints
from stages.teachers.ledger import Ledger
from stages.teachers.segments import Entry

def buy(folder, report):
    ledger = Ledger(str(folder))
    ledger.open()
    for group in range(4):
        waiting = []
        for reply in range(40):
            request = digest_value([group, reply])
            if ledger.lookup(request) is None:
                print("bought", request.hex(), file=report, flush=True)
                entry = Entry(request=request, outcome="answer", text=request.hex(), teacher="t", model="m",
                              created_s=time.time())
                waiting.append((request, ledger.append(entry)))
        for request, done in waiting:
            done.result()
            print("kept", request.hex(), file=report, flush=True)
    ledger.close()

def run(folder, failpoint, report, log):
    child = os.fork()
    if child == 0:
        if failpoint:
            os.environ["PERCEIVE_FAILPOINT"] = failpoint
        os.environ["PERCEIVE_FAILPOINT_LOG"] = str(log)
        failpoints.rearm()
        with report.open("w") as out:
            buy(folder, out)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

root = Path(sys.argv[1])
for failpoint in [*sys.argv[2:], ""]:
    folder = root / failpoint.replace(":", "-")
    folder.mkdir(parents=True, exist_ok=True)
    first = run(folder / "ledger", failpoint, folder / "first", folder / "log")
    logs = sorted(path.name for path in (folder / "ledger").glob("*.wal"))
    second = run(folder / "ledger", "", folder / "second", folder / "log2")
    (folder / "result.json").write_text(json.dumps({"first": first, "second": second, "logs": logs}))
"""

EVERYTHING = [digest_value([group, reply]) for group in range(4) for reply in range(40)]
POINTS = (
    "ledger.listed", "ledger.log.created", "ledger.append.before:2", "ledger.append.after:2", "ledger.fsync.after:3",
    "ledger.index.before", "ledger.seal.before", "ledger.seal.after",
)  # fmt: skip


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder a failpoint: a ledger whose first buyer was killed there, and whose second ran to its end."""
    root = tmp_path_factory.mktemp("ledgers")
    subprocess.run([sys.executable, "-c", DRIVER, str(root), *POINTS], check=True, timeout=120)
    return root


def lines(report: Path, word: str) -> set[str]:
    words = [line.split() for line in report.read_text().splitlines()]
    return {line[1] for line in words if len(line) == 2 and line[0] == word}


@pytest.mark.parametrize("failpoint", POINTS)
def test_a_kill_costs_at_most_one_group_commit(killed: Path, failpoint: str) -> None:
    folder = killed / failpoint.replace(":", "-")
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    assert (result["first"], result["second"]) == (-signal.SIGKILL, 0)
    bought, kept = lines(folder / "first", "bought"), lines(folder / "first", "kept")
    bought_again = lines(folder / "second", "bought")
    assert not kept & bought_again, "a reply that was handed on was bought again"
    assert len(bought & bought_again) <= GROUP_REPLIES
    ledger = Ledger(str(folder / "ledger"))
    ledger.open()
    found = [ledger.lookup(request) for request in EVERYTHING]
    ledger.close()
    assert all(entry is not None and entry.text == entry.request.hex() for entry in found)
    assert not list((folder / "ledger").glob("*.wal"))


def test_every_failpoint_on_a_local_disk_is_tried(killed: Path) -> None:
    assert set((killed / "log").read_text().split()) == {point.split(":")[0] for point in POINTS}
    assert lines(killed / "second", "bought") == set(), "a finished run buys nothing again"


def test_a_torn_tail_is_cut_and_all_before_it_counts(killed: Path, tmp_path: Path) -> None:
    (segment,) = (killed / "ledger").glob("*.seg")
    log = tmp_path / "torn.wal"
    log.write_bytes(segment.read_bytes()[:-5])
    ledger = Ledger(str(tmp_path))
    ledger.open()
    found = [ledger.lookup(request) for request in EVERYTHING]
    ledger.close()
    assert found.count(None) == 1
    assert next(tmp_path.glob("*.seg")).stat().st_size < segment.stat().st_size - 5


# Processes put to sleep where another one may come in between, and woken when it has.
RACES = """
import fcntl, os, signal, sys, time
from pathlib import Path

from schemas.keys import digest_value
from stages import failpoints
from stages.teachers import cache
from stages.teachers.ledger import Ledger
from stages.teachers.segments import Entry

def asleep(failpoint, work, *arguments):
    child = os.fork()
    if child == 0:
        os.environ["PERCEIVE_FAILPOINT"] = failpoint + ":1:stop"
        failpoints.rearm()
        work(*arguments)
        os._exit(0)
    assert os.WIFSTOPPED(os.waitpid(child, os.WUNTRACED)[1]), failpoint
    return child

def woken(child):
    os.kill(child, signal.SIGCONT)
    assert os.waitpid(child, 0)[1] == 0

def write(folder, tell=None, wait=None):
    ledger = Ledger(folder)
    ledger.open()
    ledger.append(Entry(request=digest_value("a"), outcome="answer", teacher="t", model="m", created_s=1.0)).result()
    if tell is not None:
        os.write(tell, b"written")
        os.read(wait, 1)
    assert ledger.lookup(digest_value("a"))
    ledger.close()

def read(folder, held):
    ledger = Ledger(folder)
    ledger.open()
    assert (ledger.lookup(digest_value("a")) is not None) == held
    ledger.close()

def count(folder, held):
    counted = cache.stats(folder)
    assert counted.replies == held and bool(counted.bytes) == held

root, race = Path(sys.argv[1]), sys.argv[2]
folder = str(root / "ledger")
(root / "ledger").mkdir()
if race == "begun":
    writer = asleep("ledger.log.created", write, folder)
    read(folder, False)
    woken(writer)
    read(folder, True)
elif race == "closed":
    (told, tell), (wait, go) = os.pipe(), os.pipe()
    writer = os.fork()
    if writer == 0:
        write(folder, tell, wait)
        os._exit(0)
    os.read(told, 7)
    readers = [asleep("ledger.listed", work, folder, True) for work in (read, count)]
    os.write(go, b".")
    assert os.waitpid(writer, 0)[1] == 0
    assert not list(Path(folder).glob("*.wal"))
    for reader in readers:
        woken(reader)
elif race == "removed":
    log = os.open(folder + "/empty.wal", os.O_RDWR | os.O_CREAT)
    fcntl.flock(log, fcntl.LOCK_EX)
    readers = [asleep("ledger.listed", work, folder, False) for work in (read, count)]
    fcntl.flock(log, fcntl.LOCK_UN)
    read(folder, False)
    assert not list(Path(folder).iterdir())
    for reader in readers:
        woken(reader)
"""


@pytest.mark.parametrize("race", ["begun", "closed", "removed"])
def test_one_worker_begins_or_closes_a_log_while_another_opens_the_ledger(tmp_path: Path, race: str) -> None:
    subprocess.run([sys.executable, "-c", RACES, str(tmp_path), race], check=True, timeout=120)
