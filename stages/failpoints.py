"""Failpoints: places where a test may kill the process, to show that what is on disk there is a valid state.

`PERCEIVE_FAILPOINT=name` kills the process with SIGKILL the first time `failpoint("name")` is reached, `name:n` the
n-th time. `PERCEIVE_FAILPOINT_LOG=path` writes the name of every failpoint reached, a line each, so that a test can
list them. Without these variables (read once, when the process starts) a failpoint is one comparison.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

FAILPOINT_VARIABLE = "PERCEIVE_FAILPOINT"
LOG_VARIABLE = "PERCEIVE_FAILPOINT_LOG"


def _parse(setting: str) -> tuple[str, int]:
    name, _, hit = setting.partition(":")
    return name, int(hit or 1)


_ARMED = _parse(os.environ[FAILPOINT_VARIABLE]) if FAILPOINT_VARIABLE in os.environ else None
_LOG = Path(os.environ[LOG_VARIABLE]) if LOG_VARIABLE in os.environ else None
_HITS: Counter[str] = Counter()


def failpoint(name: str) -> None:
    """Kills this process here if the environment says so."""
    if _ARMED is not None or _LOG is not None:
        _reached(name)


def _reached(name: str) -> None:
    _HITS[name] += 1
    if _LOG is not None:
        with _LOG.open("a") as log:
            log.write(name + "\n")
    if (name, _HITS[name]) == _ARMED:
        os.kill(os.getpid(), signal.SIGKILL)
