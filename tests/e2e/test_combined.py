"""Combined requests in a real run: the four tasks of a region are four nodes, and one reply is bought for all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.build import build, status

TASKS = ["label", "explain", "brief", "detailed"]


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_four_tasks_that_refine_feeds_buy_one_reply_a_region(
    make_world: Any, teacher_server: Callable[..., Any], tmp_path: Path
) -> None:
    server = teacher_server(latency_s=0.05)
    world = make_world(tmp_path, images=6)
    world.settings["teacher"] = {"backend": "openai", "model": "gpt-4o", "base_url": server.url}
    world.settings["captions"] = {"tasks": TASKS, "languages": ["en"], "combined": True}
    world.save()
    config = world.config()
    build(config, phases=("ingest", "select", "refine", "chunk", "distill"))
    counts = status(config)["distill"]
    assert (counts.pending, counts.failed) == (0, 0)
    assert counts.ok == len(TASKS) * status(config)["refine"].ok
    assert len(server.chats) == counts.ok / len(TASKS)
