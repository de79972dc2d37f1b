"""Commands that look: status, inspect, report, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import polars as pl
import typer
from rich.table import Table

from jobs.console import ConfigOrRun, Json, Overrides, accounts_table, find_config, one_line_errors, out, print_json


def add_to(app: typer.Typer) -> None:
    for name, command in (("status", status), ("inspect", inspect), ("report", report), ("doctor", doctor)):
        app.command(name)(command)


@one_line_errors
def status(config: ConfigOrRun, set_: Overrides = [], json: Json = False) -> None:
    """Show what became of every row of every stage; exits with an error if the accounts do not add up."""
    from pipeline.build import status as accounts

    settings = find_config(config, set_)
    counts = accounts(settings)
    if json:
        print_json({"run": settings.run, "stages": {name: count.as_dict() for name, count in counts.items()}})
        return
    from pipeline.looking import open_corpus, reasons_of, tables_of

    out.print(accounts_table(counts, settings.run))
    reasons = reasons_of(tables_of(open_corpus(settings)))
    if len(reasons):
        out.print(frame_table(reasons, "why rows did not go on"))


@one_line_errors
def inspect(
    config: ConfigOrRun,
    key: Annotated[str, typer.Argument(help="A region, caption or media key in hexadecimal, or its first digits.")],
    json: Json = False,
) -> None:
    """Show one region's whole life, from its source record to its shard."""
    from pipeline.inspect import inspect as look
    from pipeline.inspect import render
    from pipeline.looking import open_corpus, sampling_indexes, tables_of

    now = open_corpus(find_config(config, []))
    found = look(tables_of(now), key, sampling_indexes(now))
    if json:
        print_json(found.model_dump(mode="json"))
    else:
        out.print(render(found))


@one_line_errors
def report(
    config: ConfigOrRun,
    to: Annotated[Path | None, typer.Option("--out", help="Where to write the page.")] = None,
    samples: Annotated[int, typer.Option(help="How many regions the page shows.")] = 200,
    json: Json = False,
) -> None:
    """Write one self-contained HTML page: funnel, yields, distributions, cost, samples with masks."""
    from jobs.reporting import write_run_report

    path = write_run_report(find_config(config, []), to, samples)
    if json:
        print_json({"report": path})
    else:
        out.print(f"report: {path}")


@one_line_errors
def doctor(
    config: Annotated[Path | None, typer.Argument(help="A configuration to check as well.")] = None,
    json: Json = False,
) -> None:
    """Say what this machine has and what a configuration would use; exits with an error where something is missing."""
    from jobs.doctor import examine

    findings = examine(find_config(config, []) if config else None)
    if json:
        print_json([finding.model_dump() for finding in findings])
    else:
        table = Table(header_style="bold")
        for column in ("", "what", "found"):
            table.add_column(column)
        for finding in findings:
            table.add_row({"ok": "[green]ok[/]", "note": "[yellow]note[/]"}.get(finding.state, "[red]missing[/]"),
                          finding.what, finding.found)  # fmt: skip
        out.print(table)
    if any(finding.state == "missing" for finding in findings):
        raise typer.Exit(1)


def frame_table(frame: pl.DataFrame, title: str) -> Table:
    """A frame as a table for people; floats with three digits."""
    table = Table(title=title, header_style="bold", title_justify="left")
    for name, kind in frame.schema.items():
        table.add_column(name, justify="right" if kind.is_numeric() else "left")
    for row in frame.iter_rows():
        table.add_row(*("-" if v is None else f"{v:.3f}" if isinstance(v, float) else str(v) for v in row))
    return table
