"""Failpoints: places where a test may kill the process, to show that what is on disk there is a valid state.

`PERCEIVE_FAILPOINT=name` kills the process with SIGKILL the first time `failpoint("name")` is reached, `name:n` the
n-th time; `name:n:stop` puts it to sleep with SIGSTOP instead. `PERCEIVE_FAILPOINT_LOG=path` writes the name of every
failpoint reached, a line each, so that a test can list them. Without these variables (read once, when the process
starts) a failpoint is one comparison.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

FAILPOINT_VARIABLE = "PERCEIVE_FAILPOINT"
LOG_VARIABLE = "PERCEIVE_FAILPOINT_LOG"


@dataclass
class _Failpoints:
    """What this process was asked to do, and how often each failpoint was reached so far."""

    name: str = ""
    hit: int = 1
    action: int = signal.SIGKILL
    log: Path | None = None
    hits: Counter[str] = field(default_factory=Counter)

    def reached(self, name: str) -> None:
        self.hits[name] += 1
        if self.log is not None:
            with self.log.open("a") as log:
                log.write(name + "\n")
        if name == self.name and self.hits[name] == self.hit:
            os.kill(os.getpid(), self.action)


def _from_environment() -> _Failpoints | None:
    setting, log = os.environ.get(FAILPOINT_VARIABLE), os.environ.get(LOG_VARIABLE)
    if not setting and not log:
        return None
    name, hit, action = [*(setting or "").split(":"), "", ""][:3]
    return _Failpoints(
        name=name,
        hit=int(hit or 1),
        action=signal.SIGSTOP if action == "stop" else signal.SIGKILL,
        log=Path(log) if log else None,
    )


_ARMED = _from_environment()


def failpoint(name: str) -> None:
    """Kills (or stops) this process here if its environment says so."""
    if _ARMED is not None:
        _ARMED.reached(name)


def rearm() -> None:
    """Reads the environment again: for a process forked from one that had imported this module."""
    global _ARMED
    _ARMED = _from_environment()
