"""Makes plans and prints them."""

from __future__ import annotations

from rich.table import Table

from jobs.console import out
from pipeline.config import EngineConfig
from pipeline.engine import Corpus
from pipeline.looking import open_corpus
from pipeline.plan import ZERO, LocalPlan, Plan, Range
from pipeline.planning import plan_corpus, probe_corpus
from pipeline.settings import ConfigError
from pipeline.spending import keep_plan


def plan_run(config: EngineConfig, sample: int, probe: int = 0) -> Plan:
    """The plan of a run as it stands; of one that has read nothing yet, from its sources' published sizes.

    `probe` real requests are sent before. The plan is kept with the run, to be compared with what it will have cost.
    """
    now = open_corpus(config)
    if not now.view.commits("selection") and config.sources:
        from pipeline.expected import plan_expected

        return plan_expected(config.runtime(), sample)
    if probe:
        probe_corpus(ready(now), probe)
    made = plan_corpus(ready(now), sample)
    keep_plan(config, made)
    return made


def ready(now: Corpus) -> Corpus:
    """The corpus, if its regions are known. Raises `ConfigError` saying how to get them."""
    if not len(now.located):
        raise ConfigError(
            f"{now.config.run} has no selected regions yet: `perceive run ingest` and `perceive run select` first; "
            "both are free"
        )
    return now


def show_plan(plan: Plan) -> None:
    """Prints a plan: a row a task, then local work, disk and warnings. Ranges are low, likely, high."""
    if plan.rows:
        out.print(", ".join(f"{name}: {count:,}" for name, count in plan.rows.items()))
    table = Table(title=f"{plan.teacher} {plan.model}, prices of {plan.price_date}", header_style="bold")
    for name in ("task", "captions", "calls", "tokens in", "tokens out", "online $", "batch $"):
        table.add_column(name, justify="left" if name == "task" else "right")
    for task in plan.tasks:
        ranges = (task.calls, task.prompt_tokens, task.completion_tokens)
        money = (task.online_usd, task.batch_usd)
        table.add_row(f"{task.task} {task.language}", f"{task.captions:,}", *(_whole(r) for r in ranges),
                      *(_dollars(r) for r in money))  # fmt: skip
    hours = [task.hours for task in plan.tasks if task.hours is not None]
    table.add_row("all", "", "", "", "", _dollars(plan.online_usd), _dollars(plan.batch_usd))
    out.print(table)
    if hours and plan.teacher != "vllm":
        told, answers = sum(hours, ZERO), sum(task.answers for task in plan.tasks)
        spread = f"{told.likely:.2f} ({told.low:.2f}-{told.high:.2f})"
        out.print(f"waiting for the teacher online: {spread} hours, by {answers} answers in the ledger")
    for local in plan.local:
        out.print(f"{local.stage}: {local.items:,} {local.unit}, {_device_hours(local)}", soft_wrap=True)
    disk = plan.disk
    out.print(
        f"disk: tables {disk.tables / 1e6:.0f} MB, ledger {disk.ledger / 1e6:.0f} MB, shards {disk.shards / 1e6:.0f} MB"
    )
    if disk.sources:
        out.print(f"the data sets as published: {disk.sources / 1e9:,.0f} GB")
    for warning in plan.warnings:
        out.print(f"[yellow]note:[/] {warning}")


def _device_hours(local: LocalPlan) -> str:
    hours = local.hours
    if hours is None:
        return f"{local.device}-hours {local.assumes}"
    return f"{hours.likely:.2f} ({hours.low:.2f}-{hours.high:.2f}) {local.device}-hours ({local.assumes})"


def _whole(value: Range) -> str:
    return f"{value.likely:,.0f} ({value.low:,.0f}-{value.high:,.0f})"


def _dollars(value: Range | None) -> str:
    return "unknown" if value is None else f"{value.likely:,.2f} ({value.low:,.2f}-{value.high:,.2f})"
