"""Teachers in real runs: what combined tasks buy, jobs that take their time, endpoints that refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.build import build, status
from pipeline.work import WorkerError

TASKS = ["label", "explain", "brief", "detailed"]


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("workers", [1, 2])
def test_four_tasks_that_refine_feeds_buy_one_reply_a_region(
    make_world: Any, teacher_server: Callable[..., Any], tmp_path: Path, workers: int
) -> None:
    server = teacher_server(latency_s=0.05)
    world = make_world(tmp_path, images=6)
    world.settings["teacher"] = {"backend": "openai", "model": "gpt-4o", "base_url": server.url}
    world.settings["runner"] = {"workers": {"net": workers}}
    world.settings["captions"] = {"tasks": TASKS, "languages": ["en"], "combined": True}
    world.save()
    config = world.config()
    build(config, phases=("ingest", "select", "refine", "chunk", "distill"))
    counts = status(config)["distill"]
    assert (counts.pending, counts.failed) == (0, 0)
    assert counts.ok == len(TASKS) * status(config)["refine"].ok
    assert len(server.chats) == counts.ok / len(TASKS)


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_tasks_share_a_batch_job_and_a_run_has_the_patience_for_it(
    make_world: Any, teacher_server: Callable[..., Any], tmp_path: Path
) -> None:
    server = teacher_server(batch_polls=40)
    world = make_world(tmp_path, images=6)
    batch = {"wait_s": 3.0, "poll_s": 0.1}
    world.settings["teacher"] = {"backend": "openai_batch", "model": "gpt-4o", "base_url": server.url, "batch": batch}
    world.save()
    build(world.config(), phases=("ingest", "select", "refine", "chunk"))
    config = world.config("runner.stall_timeout_s=0.5")
    build(config, phases=("distill",))
    counts = status(config)["distill"]
    assert (counts.pending, counts.failed) == (0, 0)
    assert len(server.chats) == counts.ok > 0
    assert len(server.batches) == 1, "the tasks wait for one job, not for one after another"


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_an_endpoint_that_refuses_ends_the_run_and_leaves_its_units_pending(
    make_world: Any, teacher_server: Callable[..., Any], tmp_path: Path
) -> None:
    server = teacher_server(verdict=lambda chat: "reject")
    world = make_world(tmp_path, images=3)
    world.settings["teacher"] = {"backend": "openai", "model": "gpt-4o", "base_url": server.url}
    world.save()
    build(world.config(), phases=("ingest", "select", "refine", "chunk"))
    with pytest.raises(WorkerError, match=r"refuses every request: 401.*api_key_env"):
        build(world.config(), phases=("distill",))
    assert status(world.config())["distill"].failed == 0
    server.verdict = lambda chat: "answer"
    build(world.config(), phases=("distill",))
    counts = status(world.config())["distill"]
    assert (counts.pending, counts.failed) == (0, 0)
