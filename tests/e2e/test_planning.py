"""A run's plan before its masks exist and after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.build import build
from pipeline.looking import open_corpus
from pipeline.planning import plan_corpus


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_a_plan_before_refine_agrees_with_the_plan_after_it(make_world: Any, tmp_path: Path) -> None:
    world = make_world(tmp_path, images=4)
    world.settings["teacher"] = {"backend": "openai", "model": "gpt-4o", "base_url": "http://127.0.0.1:9/v1"}
    world.save()
    build(world.config(), phases=("ingest", "select"))
    before = plan_corpus(open_corpus(world.config()))
    regions = len(open_corpus(world.config()).located)
    assert {(task.task, task.captions) for task in before.tasks} == {("label", regions), ("brief", regions)}
    assert before.online_usd is not None
    assert 0 < before.online_usd.low < before.online_usd.likely < before.online_usd.high
    assert before.disk.shards > 0
    assert before.local[0].items == 4
    build(world.config(), phases=("refine", "chunk"))
    after = plan_corpus(open_corpus(world.config()))
    assert after.online_usd is not None
    assert after.online_usd.likely == pytest.approx(before.online_usd.likely, rel=0.15)
