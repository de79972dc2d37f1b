"""Batch jobs and uploads of the ledger under SIGKILL: a restart takes up what was made, and buys nothing twice."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schemas.keys import digest_value
from stages.teachers.ledger import Ledger

pytestmark = pytest.mark.slow

# One interpreter forks a child for every failpoint: a fresh one each would spend the time on imports.
FORKING = """
import asyncio, json, os, sys, time
from pathlib import Path

from schemas.keys import digest_value
from stages import failpoints
from stages.distill.answers import BriefAnswer
from stages.teachers.batch import BatchTeacher
from stages.teachers.config import BatchConfig, LimitsConfig, TeacherConfig
from stages.teachers.jobs import JobFolder
from stages.teachers.ledger import Ledger
from stages.teachers.ledgered import LedgeredTeacher
from stages.teachers.protocol import Decoding, Message, TeacherRequest
from stages.teachers.segments import Entry

async def batch(folder, url):
    ledger = Ledger(folder + "/ledger")
    ledger.open()
    config = TeacherConfig(backend="openai_batch", model="gpt-4o-mini", base_url=url,
                           batch=BatchConfig(wait_s=0.05, poll_s=0.02), limits=LimitsConfig(tries=3))
    teacher = LedgeredTeacher(BatchTeacher(config, JobFolder(folder + "/ledger/jobs")), ledger)
    await teacher.start()
    def request(number):
        return TeacherRequest(model="gpt-4o-mini", messages=(Message("user", f"{folder} {number}"),),
                              answer=BriefAnswer, decoding=Decoding(), max_tokens=64)
    replies = await asyncio.gather(*(teacher.ask(request(i)) for i in range(20)))
    await teacher.stop()
    ledger.close()
    assert all(reply.outcome == "answer" for reply in replies), replies

def upload(url, options, spool):
    os.environ["XDG_CACHE_HOME"] = spool
    ledger = Ledger(url, options)
    ledger.open()
    missing = [i for i in range(40) if ledger.lookup(digest_value(i)) is None]
    print("bought", len(missing), flush=True)
    waiting = [ledger.append(Entry(request=digest_value(i), outcome="answer", text=str(i), teacher="t", model="m",
                                   created_s=time.time())) for i in missing]
    for done in waiting:
        done.result()
    ledger.close()

def run(failpoint, what, *arguments):
    child = os.fork()
    if child == 0:
        os.environ["PERCEIVE_FAILPOINT"] = failpoint
        failpoints.rearm()
        asyncio.run(batch(*arguments)) if what == "batch" else upload(*arguments)
        sys.stdout.flush()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

for line in sys.stdin:
    print("exit", run(*json.loads(line)), flush=True)
"""


class Forks:
    """Runs the functions of the script above, each in a fork of an interpreter that has imported everything."""

    def __init__(self) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen([sys.executable, "-c", FORKING], stdin=pipe, stdout=pipe, text=True)

    def run(self, *arguments: Any) -> tuple[int, list[str]]:
        """The exit code and what was printed before it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(arguments) + "\n")
        self._process.stdin.flush()
        told = []
        for line in self._process.stdout:
            if line.startswith("exit "):
                return int(line.split()[1]), told
            told.append(line.strip())
        raise AssertionError("the forking interpreter has ended")

    def end(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="module")
def forks() -> Any:
    made = Forks()
    yield made
    made.end()


@pytest.mark.parametrize("failpoint", ["batch.upload.before", "batch.save.before", "batch.save.after"])
def test_a_killed_client_takes_up_the_job_that_it_had_made(
    forks: Forks, teacher_server: Callable[..., Any], tmp_path: Path, failpoint: str
) -> None:
    server = teacher_server(answer=lambda chat: {"caption": "A thing."})
    assert forks.run(failpoint, "batch", str(tmp_path), server.url)[0] == -signal.SIGKILL
    made = 0 if failpoint == "batch.upload.before" else 1
    assert (len(server.batches), len(list((tmp_path / "ledger" / "jobs").glob("*.json")))) == (made, 1)
    assert forks.run("", "batch", str(tmp_path), server.url)[0] == 0
    assert len(server.batches) == 1, "one job in all"
    assert sum(server.billed.values()) == len(server.billed) == 20
    assert forks.run("", "batch", str(tmp_path), server.url)[0] == 0
    assert len(server.batches) == 1, "a third run reads its ledger"


@pytest.mark.parametrize("point", ["seg.before", "seg.after", "idx.before", "idx.after"])
def test_replies_whose_upload_was_killed_are_uploaded_by_the_next_run(
    forks: Forks, s3_url: str, s3_options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    spool = str(tmp_path / "here")
    code, told = forks.run(f"ledger.upload.{point}", "upload", s3_url, s3_options, spool)
    assert (code, told) == (-signal.SIGKILL, ["bought 40"])
    code, told = forks.run("", "upload", s3_url, s3_options, spool)
    assert (code, told) == (0, ["bought 0"])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    ledger = Ledger(s3_url, s3_options)
    ledger.open()
    found = [ledger.lookup(digest_value(number)) for number in range(40)]
    ledger.close()
    assert [entry.text for entry in found if entry is not None] == [str(number) for number in range(40)]
    assert not list(Path(spool).rglob("*.seg"))
