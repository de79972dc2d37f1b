"""Fixtures that every part of the suite shares."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

REPOSITORY = Path(__file__).resolve().parents[1]


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
    """fsspec's storage options for the session's S3 server (moto's), which has a bucket `perceive`."""
    import fsspec
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = {
        "key": "test",
        "secret": "test",
        "endpoint_url": f"http://{host}:{port}",
        "client_kwargs": {"region_name": "eu-west-1"},
    }
    fsspec.filesystem("s3", **options).mkdir("perceive")
    yield options
    server.stop()


@pytest.fixture
def s3_url(s3_options: dict[str, Any]) -> str:
    """An empty folder on the S3 server."""
    return f"s3://perceive/{uuid.uuid4().hex}"
