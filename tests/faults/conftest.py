"""Real processes to kill, each forked from a server that has imported everything and done nothing."""

from __future__ import annotations

import importlib
import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

_JOB = Path(__file__).with_name("job.py")


@pytest.fixture(scope="session")
def job() -> ModuleType:
    """The scripted job, importable by the processes that run it."""
    sys.path.insert(0, str(_JOB.parent))
    try:
        return importlib.import_module(_JOB.stem)
    finally:
        sys.path.remove(str(_JOB.parent))


class Processes:
    """Starts functions of the job as processes of their own."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self._started: list[ForkServerProcess] = []
        self._lock = threading.Lock()

    def start(self, function: Callable[..., None], *args: Any, **environment: str) -> ForkServerProcess:
        process: ForkServerProcess = self._context.Process(target=function, args=(environment, *args))
        with self._lock:
            process.start()
            self._started.append(process)
        return process

    def run(self, function: Callable[..., None], *args: Any, **environment: str) -> int:
        """The exit code of a process, negative for a signal. May be called from several threads."""
        process = self.start(function, *args, **environment)
        multiprocessing.connection.wait([process.sentinel])
        with self._lock:  # an exit status can be read once, and starting a process reads those of all others
            assert process.exitcode is not None
            return process.exitcode

    def end(self) -> None:
        for process in self._started:
            if process.is_alive():
                assert process.pid is not None
                os.kill(process.pid, signal.SIGKILL)
            process.join()
            process.close()


@pytest.fixture(scope="session")
def _context(job: ModuleType) -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([job.__name__, "s3fs"])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(_JOB.parent)  # the server does not know this process's sys.path
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    return context


@pytest.fixture
def processes(_context: Any) -> Iterator[Processes]:
    started = Processes(_context)
    yield started
    started.end()
