"""A billed teacher behind the ledger: asks only what has no answer yet, keeps every reply before handing it on."""

from __future__ import annotations

import asyncio
import time

from stages.teachers.ledger import Ledger
from stages.teachers.protocol import Reply, Teacher, TeacherRequest
from stages.teachers.segments import Entry


class LedgeredTeacher(Teacher):
    """`teacher`, with `ledger` in front. Two requests with one digest that are in flight together share one reply.

    The ledger is open; it is closed at the end of `stop`.
    """

    def __init__(self, teacher: Teacher, ledger: Ledger) -> None:
        self._teacher = teacher
        self._ledger = ledger
        self._asked: dict[bytes, asyncio.Task[Reply]] = {}
        self.name, self.model, self.billed, self.sees = teacher.name, teacher.model, teacher.billed, teacher.sees

    async def start(self) -> None:
        await self._teacher.start()

    async def ask(self, request: TeacherRequest) -> Reply:
        """The reply from the ledger, or a new one that is on disk before this returns.

        Raises `LedgerError` when the ledger cannot be written; what it cannot keep is not bought.
        """
        known = self._ledger.lookup(request.digest)
        if known is not None:
            return _reply(known)
        running = self._asked.get(request.digest)
        if running is None:
            running = asyncio.ensure_future(self._buy(request))
            self._asked[request.digest] = running
            running.add_done_callback(lambda _: self._asked.pop(request.digest, None))
        return await asyncio.shield(running)

    async def stop(self) -> None:
        for running in list(self._asked.values()):
            running.cancel()
        try:
            await self._teacher.stop()
        finally:
            await asyncio.to_thread(self._ledger.close)

    async def _buy(self, request: TeacherRequest) -> Reply:
        self._ledger.ready()
        began = time.monotonic()
        reply = await self._teacher.ask(request)
        if reply.outcome != "unavailable":
            entry = self._entry(request, reply, time.monotonic() - began)
            # What is bought is written to the end, whoever stops waiting for it.
            await asyncio.shield(asyncio.wrap_future(self._ledger.append(entry)))
        return reply

    def _entry(self, request: TeacherRequest, reply: Reply, seconds: float) -> Entry:
        return Entry(
            request=request.digest,
            outcome=reply.outcome,
            text=reply.text,
            finish_reason=reply.finish_reason,
            message=reply.message,
            usage=reply.usage,
            teacher=self.name,
            model=request.model,
            created_s=time.time(),
            seconds=round(seconds, 3),
            tags=dict(request.tags),
        )


def _reply(entry: Entry) -> Reply:
    return Reply(
        outcome=entry.outcome,
        text=entry.text,
        finish_reason=entry.finish_reason,
        message=entry.message,
        usage=entry.usage,
        cached=True,
    )
