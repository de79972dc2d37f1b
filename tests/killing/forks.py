"""For scripts that are killed many times over: work in a fork of the process, which costs no imports."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable

from stages.failpoints import rearm


def forked(work: Callable[[], None], **environment: str) -> int:
    """Runs `work` in a fork with these variables set; returns the signal that ended it, 0 for none.

    Raises SystemExit where the work itself failed. Nothing may have started threads before.
    """
    child = os.fork()
    if child == 0:
        os.environ.update(environment)
        rearm()
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status)
    if status:
        raise SystemExit(f"an attempt failed with status {status}")
    return 0
