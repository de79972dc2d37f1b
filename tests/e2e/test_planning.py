"""A run's plan before its masks exist and after."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from jobs.cli import app
from jobs.planning import plan_run
from pipeline.build import build, status
from pipeline.looking import open_corpus
from pipeline.planning import plan_corpus
from pipeline.settings import ConfigError
from pipeline.spending import kept_plan


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


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_a_probe_sends_so_many_requests_and_the_build_does_not_repeat_them(
    make_world: Any, teacher_server: Callable[..., Any], tmp_path: Path
) -> None:
    server = teacher_server(latency_s=0.02)
    world = make_world(tmp_path, images=4)
    world.settings["teacher"] = {"backend": "openai", "model": "gpt-4o", "base_url": server.url}
    world.save()
    build(world.config(), phases=("ingest", "select"))
    with pytest.raises(ConfigError, match="perceive run refine"):
        plan_run(world.config(), sample=4, probe=5)
    build(world.config(), phases=("refine", "chunk"))
    blind = plan_run(world.config(), sample=4)
    assert not server.chats, "without a probe no request is sent"
    told = plan_run(world.config(), sample=4, probe=5)
    assert len(server.chats) == 5
    assert sum(task.answers for task in told.tasks) == 5
    assert all(
        task.hours is not None and not before.answers for task, before in zip(told.tasks, blind.tasks, strict=True)
    )
    assert kept_plan(world.config()) == told
    build(world.config(), phases=("distill",))
    captions = status(world.config())["distill"].ok
    assert len(server.chats) == captions, "what the probe bought is not bought again"
    planned = sum(task.completion_tokens.likely / 1.03 for task in told.tasks)
    assert planned == pytest.approx(server.completion_tokens, rel=0.1)
    _requests_are_shown_as_they_were_sent(world, server, tmp_path / "shown")


def _requests_are_shown_as_they_were_sent(world: Any, server: Any, folder: Path) -> None:
    def show(prompt: str, *options: str) -> str:
        done = CliRunner().invoke(app, ["prompts", "show", prompt, str(world.path), *options])
        assert done.exit_code == 0, done.stderr
        return done.stdout

    region = open_corpus(world.config()).located["region_key"][0].hex()
    shown = show("brief.en", "--key", region, "--out", str(folder))
    for part in (
        "model gpt-4o",
        "## system",
        "[picture 2: ",
        "## schema",
        '"caption"',
        "prompt tokens",
        "picture_2.jpeg",
    ):
        assert part in shown
    sent = [data for chat in server.chats for data in chat.images]
    assert all((folder / f"picture_{number}.jpeg").read_bytes() in sent for number in (1, 2))
    assert any(all(part in chat.text for part in _turns(folder / "request.md")) for chat in server.chats)
    assert '"definition"' in show("combined.en", "--set", "captions.combined=true")
    both = ("--set", "captions.languages=[en,zh]")
    assert "## user" in show("translate.zh", *both, "--set", "captions.zh=translate")
    assert "## user" in show("brief.zh", *both)
    unknown = CliRunner().invoke(app, ["prompts", "show", "translate.zh", str(world.path)])
    assert "asks nothing by translate.zh; it asks" in unknown.stderr


def _turns(request: Path) -> list[str]:
    """The paragraphs of a request's turns as it was written, without its headings and pictures."""
    turns = request.read_text().partition("## system")[2].partition("## schema")[0]
    return [part for part in turns.split("\n\n") if part.strip() and not part.startswith(("## ", "[picture"))]
