"""A whole build whose run lies on an S3 server: the same accounts, the same resume, secrets written nowhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import fsspec
import pytest
from moto.server import ThreadedMotoServer

from pipeline.build import build, status
from pipeline.tables import Run
from pipeline.verify import verify

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]

SECRET = "a-secret-that-must-stay-one"


@pytest.fixture
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def test_a_run_on_an_object_store(
    make_world: Callable[..., Any], tmp_path: Any, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORE_SECRET", SECRET)
    options = {"key": "user", "secret": "${STORE_SECRET}", "client_kwargs": {"endpoint_url": endpoint}}
    store = fsspec.filesystem("s3", **{**options, "secret": SECRET})
    store.mkdir("corpora")
    world = make_world(tmp_path, images=3, storage_options=options, run="s3://corpora/runs/one")
    first = build(world.config())
    assert first.done["pack"] >= 1
    counts = status(world.config())
    assert counts["pack"].ok == counts["decide"].ok > 0
    again = build(world.config())
    assert again.rows == 0
    assert not again.started_ray
    live = world.config().runtime()
    assert verify(Run.open(live.run, live.storage_options)).ok
    for path in store.find("corpora"):
        assert SECRET.encode() not in store.cat_file(path), path
