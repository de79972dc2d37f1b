"""Whether an endpoint works at all: when a failure is the endpoint's, and no longer a request's."""

from __future__ import annotations

from stages.base import Outage
from stages.teachers.chat import TeacherSetupError

OUTAGE_AFTER = 8


class Health:
    """What one worker has seen of an endpoint. `name` is what people know it by."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._answered = False
        self._missed = 0

    def answered(self) -> None:
        """The endpoint has dealt with a request, whatever it said to it."""
        self._answered, self._missed = True, 0

    def refused(self, said: str) -> None:
        """The endpoint refuses this client. Raises `TeacherSetupError` where it has never done anything else."""
        if not self._answered:
            raise TeacherSetupError(f"{self._name} refuses every request: {said}")
        self.missed(said)

    def missed(self, said: str) -> None:
        """A request was given up since the endpoint is away. Raises `Outage` where it was not the only one."""
        self._missed += 1
        if self._missed >= OUTAGE_AFTER:
            raise Outage(f"{self._name} has answered none of {self._missed} requests in a row: {said}")
