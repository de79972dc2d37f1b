"""A run under a budget: it stops before its cap, keeps what it has paid for, and goes on when there is more money."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.reporting import write_run_report
from pipeline.build import build, status
from pipeline.looking import open_corpus
from pipeline.planning import plan_corpus
from pipeline.settings import ConfigError
from pipeline.spending import cost_rows, dollars, keep_plan
from stages.teachers.pricing import price_of


def test_amounts_of_money() -> None:
    assert [dollars(text) for text in ("50USD", "0.5 usd", "$12.25", "7")] == [50.0, 0.5, 12.25, 7.0]
    with pytest.raises(ConfigError, match="50 euros"):
        dollars("50 euros")


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_a_build_stops_before_its_budget_and_a_later_one_goes_on(
    make_world: Any, teacher_server: Callable[..., Any], tmp_path: Path
) -> None:
    from pipeline.runner import BudgetReached

    server, price = teacher_server(latency_s=0.01), price_of("gpt-4o")

    def bill() -> float:
        return price.cost(server.prompt_tokens, server.completion_tokens) or 0.0

    world = make_world(tmp_path, images=12)
    world.settings["teacher"] = {"backend": "openai", "model": "gpt-4o", "base_url": server.url}
    world.settings["captions"] = {"tasks": ["label", "brief"], "languages": ["en"], "combined": False}
    world.save()
    config = world.config()
    build(config, phases=("ingest", "select", "refine"))
    keep_plan(config, plan_corpus(open_corpus(config)))
    assert not server.chats, "a plan sends nothing"
    with pytest.raises(BudgetReached, match="budget"):
        build(config, phases=("distill",), budget_usd=0.03)
    counts = status(config)["distill"]
    assert counts.pending
    assert 0.015 < bill() <= 0.03
    with pytest.raises(BudgetReached):
        build(config, phases=("distill",), budget_usd=0.03)
    assert bill() <= 0.03, "the cap is the run's, not the command's"
    build(config, phases=("distill",), budget_usd=5.0)
    counts = status(config)["distill"]
    assert (counts.pending, counts.failed) == (0, 0)
    assert max(server.billed.values()) == 1, "nothing is bought twice"
    bought, planned = cost_rows(config)
    assert bought.requests == len(server.chats) == counts.ok
    assert bought.actual_usd == pytest.approx(bill())
    assert bought.prompt_tokens == server.prompt_tokens
    assert planned.planned_usd is not None
    build(config)
    (card,) = (Path(config.run) / "packs").glob("*/README.md")
    told = f"| openai | gpt-4o | {counts.ok} | {len(server.chats)} | 0 | {server.prompt_tokens} |"
    assert told in card.read_text(encoding="utf-8"), "the card says what the captions cost"
    page = Path(write_run_report(config)).read_text(encoding="utf-8")
    assert "openai · gpt-4o" in page
    assert f"planned {time.strftime('%Y')}" in page
    assert "Rows finished over time" in page
