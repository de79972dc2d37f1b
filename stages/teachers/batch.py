"""The `openai_batch` teacher: the provider's Batch API, at its lower price, behind the same protocol.

Requests are collected until a file is full or nothing more comes, uploaded as JSONL, and waited for. A request's line
is named by its digest, so results map back by themselves. A job's record is saved before its file is uploaded and again
with the job's id before it is waited for; a restart goes on waiting for every job that is recorded, and finds by its
name a job that was made but not yet recorded.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from typing import Any, Literal

import openai
import orjson
from openai import AsyncOpenAI

from stages.base import Outage
from stages.failpoints import failpoint
from stages.teachers.budget import Purse
from stages.teachers.chat import TeacherSetupError, api_key, chat_body, read_completion, redact
from stages.teachers.config import TeacherConfig
from stages.teachers.jobs import Job, JobFolder
from stages.teachers.limiter import backoff
from stages.teachers.logs import LedgerError
from stages.teachers.online import open_client
from stages.teachers.pricing import most_cost, price_of, priced
from stages.teachers.protocol import Reply, Teacher, TeacherRequest

log = logging.getLogger("perceive.teachers")

_LONGEST_PAUSE_S = 600.0
_AWAY = (openai.APIConnectionError, openai.InternalServerError, openai.RateLimitError)
_REFUSED = (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError)
_ENDED = frozenset({"completed", "expired", "cancelled", "failed"})


class BatchTeacher(Teacher):
    """Asks through batch jobs. A row that failed, expired or is missing is asked again in another job, by itself.

    `jobs` is where job records are kept (a folder or URL that every worker and a restart can read); jobs whose results
    were fetched before `forgive_before` (Unix seconds) are no longer looked at, so that their rows can be asked again.
    `ask` raises `TeacherSetupError` where the provider refuses this client, and `Outage` where it cannot be reached.
    """

    name = "openai_batch"
    billed = True
    sees: Literal["encoded", "pixels", "subject"] = "encoded"

    def __init__(
        self, config: TeacherConfig, jobs: JobFolder, forgive_before: float = 0.0, purse: Purse | None = None
    ) -> None:
        self._config = config
        self._settings = config.batch
        self.model = config.identity
        self._price = price_of(str(config.model), config.prices)
        self._key = api_key(config)
        self._jobs = jobs
        self._forgive_before = forgive_before
        self._purse = purse
        self._client: AsyncOpenAI
        self._lines: dict[str, bytes] = {}
        self._size = 0
        self._owner: dict[str, Job] = {}
        self._results: dict[str, asyncio.Task[dict[str, Any]]] = {}
        self._waiting: dict[str, asyncio.Future[Job]] = {}
        self._flush: asyncio.TimerHandle | None = None
        self._sending: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._client = open_client(self._config, self._key)
        for job in self._jobs.load():
            if job.ended_s is None or job.ended_s >= self._forgive_before:
                self._own(job)

    async def stop(self) -> None:
        if self._flush is not None:
            self._flush.cancel()
        running = [*self._sending, *self._results.values()]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self._client.close()
        if self._purse is not None:
            await self._purse.close()

    async def ask(self, request: TeacherRequest) -> Reply:
        name = request.digest.hex()
        said = ""
        for _ in range(self._config.limits.tries):
            try:
                reply = await self._paid(name, request)
            except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
                raise self._trouble(error) from error
            except openai.OpenAIError as error:
                return Reply(outcome="unavailable", message=redact(str(error), self._key)[:300])
            if isinstance(reply, Reply):
                return reply
            said = reply
            self._owner.pop(name, None)
        return Reply(outcome="unavailable", message=f"not answered by {self._config.limits.tries} batch jobs: {said}")

    async def _paid(self, name: str, request: TeacherRequest) -> Reply | str:
        """What became of a request in one job, its money set aside; rows of jobs that are made already are owed."""
        most = most_cost(request, self._price, batch=True)
        if self._purse is None or most is None:
            return self._read(request, await self._row(name, request))
        if name in self._owner:
            reply = self._read(request, await self._row(name, request))
            self._purse.charge(_cost(reply))
            return reply
        async with self._purse.paying(most) as payment:
            reply = self._read(request, await self._row(name, request))
            payment.settle(_cost(reply))
            return reply

    async def _row(self, name: str, request: TeacherRequest) -> dict[str, Any]:
        """The result row of a request: from a job that holds it, else from a new job."""
        job = self._owner.get(name)
        if job is None:
            job = await self._queued(name, request)
        results = await asyncio.shield(self._result_of(job))
        row: dict[str, Any] = results.get(name) or results[""]
        return row

    def _read(self, request: TeacherRequest, row: dict[str, Any]) -> Reply | str:
        """The reply in a result row, or why the request has to be asked again."""
        response = row.get("response") or {}
        status = response.get("status_code")
        if status == 200:
            try:
                reply = read_completion(request, response["body"])
            except ValueError as error:
                return str(error)
            return reply.model_copy(update={"usage": priced(reply.usage, self._price, batch=True)})
        told = row.get("error") or (response.get("body") or {}).get("error") or {}
        said = told.get("message") or told.get("code") or "no result"
        message = redact(f"{status or row.get('status')}: {said}", self._key)
        refused = status is not None and 400 <= status < 500 and status not in (408, 409, 429)
        return Reply(outcome="unavailable", message=message) if refused or row.get("final") else message

    def _queued(self, name: str, request: TeacherRequest) -> asyncio.Future[Job]:
        """Adds a line to the next job's file; the future is that job once it exists."""
        if name in self._waiting:
            return self._waiting[name]
        body = chat_body(request, self._config)
        line = orjson.dumps({"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}) + b"\n"
        full = len(self._lines) >= self._settings.max_requests or self._size + len(line) > self._settings.max_bytes
        if full and self._lines:
            self._send()
        self._lines[name] = line
        self._size += len(line)
        future: asyncio.Future[Job] = asyncio.get_running_loop().create_future()
        self._waiting[name] = future
        if self._flush is not None:
            self._flush.cancel()
        self._flush = asyncio.get_running_loop().call_later(self._settings.wait_s, self._send)
        return future

    def _send(self) -> None:
        """Starts a job with what has been collected."""
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None
        if self._lines:
            lines, self._lines, self._size = self._lines, {}, 0
            task = asyncio.ensure_future(self._submit(lines))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)

    async def _submit(self, lines: dict[str, bytes]) -> None:
        job = Job(name=uuid.uuid4().hex, created_s=time.time(), requests=tuple(lines))
        futures = [self._waiting.pop(name) for name in lines]
        try:
            self._jobs.save(job)
            failpoint("batch.upload.before")
            job = await self._create(job, b"".join(lines.values()))
            failpoint("batch.save.before")
            self._jobs.save(job)
            failpoint("batch.save.after")
        except (openai.OpenAIError, LedgerError) as error:
            if isinstance(error, _AWAY):
                self._own(job)  # it may have been made all the same: then it is found by its name
            elif isinstance(error, openai.OpenAIError):
                self._jobs.remove(job)
            for future in futures:
                future.set_exception(self._trouble(error))
            return
        self._own(job)
        for future in futures:
            future.set_result(job)

    def _trouble(self, error: Exception) -> Exception:
        """What a job that could not be made means for the run."""
        said = redact(str(error), self._key)[:300]
        name = self._config.base_url or "the endpoint"
        if isinstance(error, _REFUSED) or getattr(error, "code", None) == "insufficient_quota":
            return TeacherSetupError(f"{name} refuses this client: {said}")
        return Outage(f"{name} makes no batch job: {said}") if isinstance(error, _AWAY) else error

    async def _create(self, job: Job, data: bytes) -> Job:
        """Uploads the file and makes the provider's job, trying again where the provider is not available."""
        for attempt in range(1, self._config.limits.tries + 1):
            try:
                made = await self._find(job.name) if attempt > 1 else None
                if made is None:
                    file = await self._client.files.create(file=(f"{job.name}.jsonl", data), purpose="batch")
                    made = await self._make(job.name, file.id)
                return job.model_copy(update={"batch_id": made})
            except _AWAY as error:
                if attempt == self._config.limits.tries or getattr(error, "code", None) == "insufficient_quota":
                    raise
                await asyncio.sleep(backoff(attempt, self._config.limits, None))
        raise AssertionError("the loop returns or raises")

    async def _make(self, name: str, file_id: str) -> str:
        """The provider's id of a new job over an uploaded file."""
        made = await self._client.batches.create(
            input_file_id=file_id,
            endpoint="/v1/chat/completions",
            completion_window=self._settings.window,
            metadata={"perceive": name},
        )
        return made.id

    def _own(self, job: Job) -> None:
        for name in job.requests:
            self._owner[name] = job

    def _result_of(self, job: Job) -> asyncio.Task[dict[str, Any]]:
        if job.name not in self._results:
            self._results[job.name] = asyncio.ensure_future(self._wait_for(job))
        return self._results[job.name]

    async def _wait_for(self, job: Job) -> dict[str, Any]:
        """The rows of a job by request; under the empty name, what stands for every row that is missing.

        While the job may run, a provider that cannot be reached is asked again, and a job that it had no room for is
        made again.
        """
        away = full = 0
        while True:
            pause = self._settings.poll_s
            late = time.time() > job.created_s + self._settings.longest_s
            try:
                if job.batch_id is None:
                    job = job.model_copy(update={"batch_id": await self._find(job.name)})
                    if job.batch_id is None:
                        self._jobs.remove(job)
                        return {"": {"status": "never started"}}
                    self._jobs.save(job)
                batch = await self._client.batches.retrieve(job.batch_id)
                away = 0
                if batch.status in _ENDED and (late or not _no_room(batch)):
                    rows = await self._rows(batch)
                    self._jobs.save(job.model_copy(update={"ended_s": time.time()}))
                    return rows
                if batch.status in _ENDED:
                    full += 1
                    log.warning("no room for a batch job: %s", _first_error(batch)["message"])
                    await asyncio.sleep(min(_LONGEST_PAUSE_S, pause * 2.0 ** min(full, 20)))
                    job = await self._made_again(job, str(batch.input_file_id))
            except _AWAY:
                away += 1
                if late and away >= self._config.limits.tries:
                    raise
                pause = max(pause, backoff(away, self._config.limits, None))
            await asyncio.sleep(pause)

    async def _made_again(self, job: Job, file_id: str) -> Job:
        """The job over the same file once more; a kill in between leaves a record without an id, as for a new one."""
        self._jobs.save(job.model_copy(update={"batch_id": None}))
        job = job.model_copy(update={"batch_id": await self._make(job.name, file_id)})
        self._jobs.save(job)
        return job

    async def _find(self, name: str) -> str | None:
        """The provider's id of a job that was made but not recorded; it is found by the name that it was given.

        Of several (one that found no room, and the one after it) it is the newest that has not failed.
        """
        named = [b async for b in self._client.batches.list(limit=100) if (b.metadata or {}).get("perceive") == name]
        best = max(named, key=lambda batch: (batch.status != "failed", batch.created_at), default=None)
        return None if best is None else best.id

    async def _rows(self, batch: Any) -> dict[str, Any]:
        rows: dict[str, Any] = {"": {"status": batch.status, "error": _first_error(batch), "final": _hopeless(batch)}}
        for file in (batch.error_file_id, batch.output_file_id):
            if file:
                content = await self._client.files.content(file)
                for line in content.content.splitlines():
                    if line.strip():
                        row = json.loads(line)
                        rows[row["custom_id"]] = row
        return rows


def _cost(reply: Reply | str) -> float:
    """Rows that failed or expired are not billed."""
    return (reply.usage.cost_usd or 0.0) if isinstance(reply, Reply) else 0.0


def _first_error(batch: Any) -> dict[str, Any]:
    errors = (batch.errors.data or []) if batch.errors else []
    return {"message": errors[0].message, "code": errors[0].code} if errors else {"code": batch.status}


def _no_room(batch: Any) -> bool:
    """The provider bounds the tokens that wait in all jobs of an account; there is room when others have ended."""
    errors = (batch.errors.data or []) if batch.errors else []
    return bool(batch.status == "failed" and any(error.code == "token_limit_exceeded" for error in errors))


def _hopeless(batch: Any) -> bool:
    """A job that failed did not pass the provider's validation; sending its rows again would fail again."""
    return bool(batch.status == "failed")
