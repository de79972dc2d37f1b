"""Where the stages of a process ask one teacher: started once, on an event loop of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Literal

from stages.teachers.protocol import Reply, Teacher, TeacherRequest


class Desk:
    """A teacher that several stages ask, each from its own event loop: what one has asked is not asked by another.

    The first that joins starts it, the last that leaves stops it. Travels to workers unused, whatever it was before.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._loop: asyncio.AbstractEventLoop
        self._teacher: Teacher

    def __reduce__(self) -> tuple[type[Desk], tuple[()]]:
        return Desk, ()

    def join(self, make: Callable[[], Teacher]) -> None:
        """Returns when the teacher is started; `make` makes it where nobody has. Raises what it and `start` raise."""
        with self._lock:
            if not self._users:
                self._open(make)
            self._users += 1

    async def ask(self, request: TeacherRequest) -> Reply:
        """The teacher's reply. May be called on any event loop between `join` and `leave`."""
        asking = asyncio.run_coroutine_threadsafe(self._teacher.ask(request), self._loop)
        return await asyncio.wrap_future(asking)

    def leave(self) -> None:
        """Stops the teacher where nobody else uses it."""
        with self._lock:
            self._users -= 1
            if not self._users:
                try:
                    asyncio.run_coroutine_threadsafe(self._teacher.stop(), self._loop).result()
                finally:
                    self._loop.call_soon_threadsafe(self._loop.stop)

    def _open(self, make: Callable[[], Teacher]) -> None:
        teacher, loop = make(), asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, name="teacher", daemon=True).start()
        try:
            asyncio.run_coroutine_threadsafe(teacher.start(), loop).result()
        except BaseException:
            loop.call_soon_threadsafe(loop.stop)
            raise
        self._teacher, self._loop = teacher, loop


class DeskTeacher(Teacher):
    """One user of a desk."""

    billed = True

    def __init__(
        self,
        desk: Desk,
        make: Callable[[], Teacher],
        name: str,
        model: str,
        sees: Literal["encoded", "pixels", "subject"],
    ) -> None:
        self._desk, self._make = desk, make
        self.name, self.model, self.sees = name, model, sees

    async def start(self) -> None:
        await asyncio.to_thread(self._desk.join, self._make)

    async def ask(self, request: TeacherRequest) -> Reply:
        return await self._desk.ask(request)

    async def stop(self) -> None:
        await asyncio.to_thread(self._desk.leave)
