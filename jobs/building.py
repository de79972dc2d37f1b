"""Commands that make rows: build, run, retry-failed, pack, demo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.console import (
    Budget,
    ConfigOrRun,
    Json,
    Limit,
    Lines,
    Overrides,
    Where,
    accounts_table,
    find_config,
    one_line_errors,
    only_json,
    out,
    pairs,
    print_json,
)
from pipeline.config import EngineConfig

if TYPE_CHECKING:
    from pipeline.session import BuildResult


def add_to(app: typer.Typer) -> None:
    for name, command in (
        ("build", build),
        ("run", run),
        ("retry-failed", retry_failed),
        ("pack", pack),
        ("demo", demo),
    ):
        app.command(name)(command)


@one_line_errors
def build(
    config: ConfigOrRun,
    set_: Overrides = [],
    limit: Limit = None,
    where: Where = [],
    budget: Budget = None,
    json: Json = False,
) -> None:
    """Do everything that is pending, from annotations to shards."""
    from pipeline.build import PHASES

    _build(find_config(config, set_), PHASES, json, limit=limit, where=pairs(where, "--where"), budget=budget)


@one_line_errors
def run(
    stage: Annotated[str, typer.Argument(help="ingest, select, refine, chunk, distill, score, decide or pack")],
    config: ConfigOrRun,
    set_: Overrides = [],
    limit: Limit = None,
    where: Where = [],
    budget: Budget = None,
    json: Json = False,
) -> None:
    """Do what is pending in one stage."""
    from pipeline.build import PHASES
    from pipeline.settings import ConfigError

    if stage not in PHASES:
        raise ConfigError(f"there is no stage {stage!r}; there are {', '.join(PHASES)}")
    _build(find_config(config, set_), (stage,), json, limit=limit, where=pairs(where, "--where"), budget=budget)


@one_line_errors
def retry_failed(
    config: ConfigOrRun,
    set_: Overrides = [],
    where: Where = [],
    budget: Budget = None,
    json: Json = False,
) -> None:
    """Try failed and blocked rows once more, then go on to the shards."""
    from pipeline.build import PHASES

    _build(find_config(config, set_), PHASES, json, where=pairs(where, "--where"), retry=True, budget=budget)


@one_line_errors
def pack(
    config: ConfigOrRun,
    policy: Annotated[
        str | None, typer.Option(help="The policy whose decisions are packed; the configuration's if none.")
    ] = None,
    set_: Overrides = [],
    json: Json = False,
) -> None:
    """Write the shards that a policy's decisions ask for."""
    if policy is None:
        _build(find_config(config, set_), ("pack",), json)
    else:
        _build(find_config(config, [*set_, f"policy={policy}"]), ("decide", "pack"), json)


@one_line_errors
def demo(
    out_: Annotated[Path, typer.Option("--out", help="The folder of the demonstration.")] = Path("runs/demo"),
    images: Annotated[int, typer.Option(help="How many photos to draw.")] = 48,
    clips: Annotated[int, typer.Option(help="How many clips to draw.")] = 4,
    seed: Annotated[int, typer.Option(help="The seed of the drawn world.")] = 0,
    train_seconds: Annotated[float, typer.Option(help="Seconds to train a nano PAM for; 0 trains none.")] = 100.0,
    json: Json = False,
) -> None:
    """Draw a small world with planted defects, build its corpus end to end, and train a nano PAM on it."""
    from jobs.demo import run_demo

    run_demo(out_, images, clips, seed, train_seconds, json)


def _build(
    config: EngineConfig,
    phases: Sequence[str],
    json: bool,
    limit: int | None = None,
    where: Mapping[str, str] | None = None,
    retry: bool = False,
    budget: str | None = None,
) -> None:
    from pipeline.build import build as build_run
    from pipeline.spending import dollars

    usd = dollars(budget) if budget else None
    with only_json(json):
        result = build_run(config, phases, None if json else Lines(), limit, where, retry, budget_usd=usd)
    counts = result.stages
    if json:
        print_json(
            {
                "run": config.run,
                "rows": result.done,
                "reasons": result.reasons,
                "seconds": result.seconds,
                "pack": result.pack_id,
                "pack_effort": result.pack["effort"] if result.pack else None,
                "started_ray": result.started_ray,
                "stages": {name: count.as_dict() for name, count in counts.items()},
            }
        )
        return
    out.print(accounts_table(counts, config.run))
    out.print(summary(result))


def summary(result: BuildResult) -> str:
    """One line on what a build did."""
    if not result.rows and result.pack is None:
        return "Nothing was pending: 0 rows processed."
    made = ", ".join(f"{name} {rows}" for name, rows in result.done.items())
    line = f"{result.rows} rows processed ({made})"
    return f"{line}; {packed(result)}" if result.pack_id else line


def packed(result: BuildResult) -> str:
    """How much of a pack was written and how much taken over from the packs before."""
    if result.pack is None:
        return f"pack {result.pack_id} is as it was"
    effort = result.pack["effort"]
    kinds = [
        f"{effort[f'{kind}_shards_written']} {kind} shards written, {effort[f'{kind}_shards_reused']} taken over"
        for kind in ("media", "caption")
        if effort[f"{kind}_shards_written"] or effort[f"{kind}_shards_reused"]
    ]
    written, total = effort["bytes_written"], effort["bytes_total"]
    told = "; ".join([*kinds, f"{written:,} of {total:,} bytes written ({written / (total or 1):.1%})"])
    return f"pack {result.pack_id}: {told}"
