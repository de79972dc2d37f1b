"""The Batch API client against a real HTTP server: files, jobs, restarts, and rows that come back in all ways."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.base import Outage
from stages.distill.answers import BriefAnswer
from stages.teachers.batch import BatchTeacher
from stages.teachers.chat import TeacherSetupError
from stages.teachers.config import BatchConfig, LimitsConfig, TeacherConfig
from stages.teachers.jobs import Job, JobFolder
from stages.teachers.protocol import Decoding, Message, Reply, TeacherRequest
from stages.views.config import ViewConfig
from stages.views.encode import to_picture


def teacher(server: Any, jobs: Path, forgive_before: float = 0.0, **batch: Any) -> BatchTeacher:
    settings = BatchConfig(**{"wait_s": 0.05, "poll_s": 0.02} | batch)
    limits = LimitsConfig(tries=3, first_wait_s=0.01)
    config = TeacherConfig(
        backend="openai_batch", model="gpt-4o-mini", base_url=server.url, batch=settings, limits=limits
    )
    return BatchTeacher(config, JobFolder(str(jobs)), forgive_before)


def request(number: int) -> TeacherRequest:
    picture = to_picture(np.full((28, 28, 3), 9, np.uint8), ViewConfig(), encoded=True)
    turns = (Message("system", "Describe."), Message("user", f"Thing {number}.", (picture,)))
    return TeacherRequest(model="gpt-4o-mini", messages=turns, answer=BriefAnswer, decoding=Decoding(), max_tokens=64)


def ask(asked: BatchTeacher, count: int) -> list[Reply]:
    async def run() -> list[Reply]:
        await asked.start()
        try:
            return list(await asyncio.gather(*(asked.ask(request(i)) for i in range(count))))
        finally:
            await asked.stop()

    return asyncio.run(run())


def echo(chat: Any) -> dict[str, str]:
    return {"caption": chat.text.split("\n")[-1]}


def test_results_come_back_to_their_requests_at_the_batch_price(
    teacher_server: Callable[..., Any], tmp_path: Path
) -> None:
    server = teacher_server(answer=echo)
    replies = ask(teacher(server, tmp_path), 12)
    assert [reply.text for reply in replies] == [f'{{"caption":"Thing {i}."}}' for i in range(12)]
    usage = replies[0].usage
    assert usage.cost_usd == pytest.approx(0.5 * (0.15 * usage.prompt_tokens + 0.6 * usage.completion_tokens) / 1e6)
    assert len(server.batches) == 1


def test_files_stay_under_the_providers_limits(teacher_server: Callable[..., Any], tmp_path: Path) -> None:
    server = teacher_server(answer=echo)
    assert {reply.outcome for reply in ask(teacher(server, tmp_path / "a", max_requests=5), 12)} == {"answer"}
    assert sorted(len(server.files[b["input_file_id"]].splitlines()) for b in server.batches.values()) == [2, 5, 5]
    small = teacher_server(answer=echo)
    assert {reply.outcome for reply in ask(teacher(small, tmp_path / "b", max_bytes=6000), 12)} == {"answer"}
    assert len(small.batches) > 1
    assert all(len(small.files[batch["input_file_id"]]) <= 6000 for batch in small.batches.values())


def test_failed_and_missing_rows_are_asked_again_by_themselves(
    teacher_server: Callable[..., Any], tmp_path: Path
) -> None:
    seen: set[str] = set()

    def verdict(chat: Any, row: int) -> str:
        first = chat.custom_id not in seen
        seen.add(chat.custom_id)
        return {0: "error", 1: "missing"}.get(row, "answer") if first and len(seen) <= 6 else "answer"

    server = teacher_server(answer=echo, batch_verdict=verdict, batch_end="expired")
    replies = ask(teacher(server, tmp_path), 6)
    assert [reply.outcome for reply in replies] == ["answer"] * 6
    assert max(server.billed.values()) == 1, "rows that were answered are not bought again"


def test_typed_outcomes_and_rows_that_never_come(teacher_server: Callable[..., Any], tmp_path: Path) -> None:
    verdicts = ["refused", "truncated", "invalid", "missing"]
    server = teacher_server(batch_verdict=lambda chat, row: verdicts[int(chat.text.split()[-1].strip("."))])
    replies = ask(teacher(server, tmp_path), 4)
    assert [reply.outcome for reply in replies] == ["refused", "truncated", "invalid", "unavailable"]
    failed = teacher_server(batch_end="failed", batch_verdict=lambda chat, row: "missing")
    assert {reply.outcome for reply in ask(teacher(failed, tmp_path / "failed"), 2)} == {"unavailable"}
    assert len(failed.batches) == 1, "a file that does not pass validation is not sent again"


def test_a_restart_goes_on_waiting_for_the_job(teacher_server: Callable[..., Any], tmp_path: Path) -> None:
    server = teacher_server(answer=echo, batch_polls=10_000)

    async def begin() -> None:
        first = teacher(server, tmp_path)
        await first.start()
        asking = [asyncio.ensure_future(first.ask(request(i))) for i in range(3)]
        while not any(batch["polls"] for batch in server.batches.values()):
            await asyncio.sleep(0.01)
        await first.stop()
        await asyncio.gather(*asking, return_exceptions=True)

    asyncio.run(begin())
    server.batch_polls = 0
    replies = ask(teacher(server, tmp_path), 4)
    assert [reply.outcome for reply in replies] == ["answer"] * 4
    assert sorted(len(server.files[b["input_file_id"]].splitlines()) for b in server.batches.values()) == [1, 3]


@pytest.mark.parametrize("made", [True, False])
def test_a_job_whose_id_was_never_recorded_is_found_by_name_or_made_again(
    teacher_server: Callable[..., Any], tmp_path: Path, made: bool
) -> None:
    """The state that a kill leaves between making a job and recording its id."""
    server = teacher_server(answer=echo)
    ask(teacher(server, tmp_path), 2)
    folder = JobFolder(str(tmp_path))
    (job,) = folder.load()
    folder.save(Job(name=job.name if made else "lost", created_s=job.created_s, requests=job.requests))
    if not made:
        folder.remove(job)
    assert {reply.outcome for reply in ask(teacher(server, tmp_path), 2)} == {"answer"}
    assert len(server.batches) == (1 if made else 2)


def test_a_job_for_which_the_provider_has_no_room_is_made_again_without_another_upload(
    teacher_server: Callable[..., Any], tmp_path: Path
) -> None:
    server = teacher_server(answer=echo, batches_without_room=2)
    assert {reply.outcome for reply in ask(teacher(server, tmp_path), 3)} == {"answer"}
    assert (server.uploads, len(server.batches)) == (1, 3)
    assert max(server.billed.values()) == 1
    (job,) = JobFolder(str(tmp_path)).load()
    assert job.batch_id == "batch-2"


def test_a_provider_that_cannot_be_reached_is_polled_on(teacher_server: Callable[..., Any], tmp_path: Path) -> None:
    server = teacher_server(answer=echo, poll_faults=9)
    assert {reply.outcome for reply in ask(teacher(server, tmp_path), 2)} == {"answer"}
    assert len(server.batches) == 1


def test_what_is_forgiven_is_asked_again_and_a_job_that_still_runs_is_waited_for(
    teacher_server: Callable[..., Any], tmp_path: Path
) -> None:
    server = teacher_server(answer=echo, batch_polls=10_000)

    async def begin() -> None:
        first = teacher(server, tmp_path)
        await first.start()
        asking = asyncio.ensure_future(first.ask(request(0)))
        while not any(batch["polls"] for batch in server.batches.values()):
            await asyncio.sleep(0.01)
        await first.stop()
        await asyncio.gather(asking, return_exceptions=True)

    asyncio.run(begin())
    server.batch_polls = 0
    assert ask(teacher(server, tmp_path, forgive_before=time.time()), 1)[0].outcome == "answer"
    assert len(server.batches) == 1, "a job that had not ended is not bought again"
    ask(teacher(server, tmp_path, forgive_before=time.time()), 1)
    assert len(server.batches) == 2, "one that had ended is forgiven"


def test_a_request_of_two_jobs_belongs_to_the_later_one(teacher_server: Callable[..., Any], tmp_path: Path) -> None:
    """The state that a kill leaves between a job that expired and the job that asks its rows again."""
    server = teacher_server(answer=echo, batch_end="expired", batch_verdict=lambda chat, row: "missing")
    ask(teacher(server, tmp_path), 1)
    folder = JobFolder(str(tmp_path))
    first, *others = folder.load()
    assert others
    for job in others[1:]:
        folder.remove(job)
    server.batch_end, server.batch_verdict = "completed", lambda chat, row: "answer"
    server.batches[others[0].batch_id].update(status="in_progress")
    folder.remove(first)
    folder.save(first.model_copy(update={"name": "f" * 32}))
    folder.remove(others[0])
    folder.save(others[0].model_copy(update={"name": "0" * 32, "ended_s": None}))
    made = len(server.batches)
    assert ask(teacher(server, tmp_path), 1)[0].outcome == "answer"
    assert len(server.batches) == made


def test_a_provider_that_refuses_the_client_ends_the_run_and_one_that_is_away_is_an_outage(
    teacher_server: Callable[..., Any], tmp_path: Path
) -> None:
    server = teacher_server(refuse_uploads=True)
    with pytest.raises(TeacherSetupError, match="not for you"):
        ask(teacher(server, tmp_path), 2)
    assert not JobFolder(str(tmp_path)).load()
    server.stop()
    with pytest.raises(Outage):
        ask(teacher(server, tmp_path), 2)


def test_a_key_without_a_prefix_that_a_row_repeats_is_not_shown(
    teacher_server: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLANTED", "0123456789abcdef0123456789abcdef")
    server = teacher_server(batch_verdict=lambda chat, row: "echo")
    config = TeacherConfig(
        backend="openai_batch", model="m", base_url=server.url, api_key_env="PLANTED",
        batch=BatchConfig(wait_s=0.05, poll_s=0.02), limits=LimitsConfig(tries=2, first_wait_s=0.01),
    )  # fmt: skip
    (reply,) = ask(BatchTeacher(config, JobFolder(str(tmp_path))), 1)
    assert "Incorrect API key provided" in (reply.message or "")
    assert "0123456789abcdef" not in (reply.message or "")


def test_forgotten_requests_leave_the_records(tmp_path: Path) -> None:
    folder = JobFolder(str(tmp_path / "jobs"))
    folder.forget([bytes(16)])
    first, second, third = (bytes([number]) * 16 for number in range(3))
    folder.save(Job(name="both", created_s=0, requests=(first.hex(), second.hex()), batch_id="b"))
    folder.save(Job(name="alone", created_s=0, requests=(first.hex(),)))
    folder.save(Job(name="other", created_s=0, requests=(third.hex(),)))
    folder.forget([first])
    left = {job.name: job.requests for job in folder.load()}
    assert left == {"both": (second.hex(),), "other": (third.hex(),)}
