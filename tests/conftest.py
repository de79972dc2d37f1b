"""Fixtures that every part of the suite shares."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def killing_tools() -> dict[str, str]:
    """The environment of scripts that use what lies in `tests/killing`."""
    paths = [str(REPOSITORY / "tests" / "killing"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


class HeldVideo:
    """Frames (n, h, w, 3) in memory behind what the tracker asks of a video."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels
        self.height, self.width = pixels.shape[1:3]

    def __len__(self) -> int:
        return len(self.pixels)

    def frames(self, indices: list[int]) -> np.ndarray:
        return self.pixels[indices]


@pytest.fixture(scope="session")
def held_video() -> type[HeldVideo]:
    return HeldVideo


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of public sample inputs beside the checkout; tests that need it skip where it is absent."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the public sample inputs are not at {folder}")
    return folder


@pytest.fixture(scope="session")
def teacher_module() -> Any:
    """The module `tests/teacher_server.py`: a scripted teacher behind real HTTP."""
    spec = importlib.util.spec_from_file_location("teacher_server", REPOSITORY / "tests" / "teacher_server.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def teacher_server(teacher_module: Any) -> Iterator[Callable[..., Any]]:
    """Starts scripted teacher servers (keyword arguments of `TeacherServer`); all stop with the test."""
    started = []

    def start(**settings: Any) -> Any:
        started.append(teacher_module.TeacherServer(**settings).start())
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture(scope="session")
def s3_options() -> Iterator[dict[str, Any]]:
    """fsspec's storage options for the session's S3 server (moto's), which has a bucket `perceive`.

    Requests are answered one at a time: moto checks `If-None-Match` and stores in two steps, S3 in one.
    """
    import fsspec
    from moto.server import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    answer, turn = DomainDispatcherApplication(create_backend_app), threading.Lock()

    def one_at_a_time(environ: dict[str, Any], start_response: Any) -> Any:
        with turn:
            return answer(environ, start_response)

    server = make_server("127.0.0.1", 0, one_at_a_time, True, request_handler=MotoRequestHandler)
    serving = threading.Thread(target=server.serve_forever, daemon=True)
    serving.start()
    options = {
        "key": "test",
        "secret": "test",
        "endpoint_url": f"http://127.0.0.1:{server.server_port}",
        "client_kwargs": {"region_name": "eu-west-1"},
    }
    fsspec.filesystem("s3", **options).mkdir("perceive")
    yield options
    server.shutdown()
    serving.join()


@pytest.fixture
def s3_url(s3_options: dict[str, Any]) -> str:
    """An empty folder on the S3 server."""
    return f"s3://perceive/{uuid.uuid4().hex}"
