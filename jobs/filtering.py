"""The command `filter`: score what is missing, decide by a policy, show what it did and what it would change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import polars as pl
import typer

from jobs.console import ConfigOrRun, Json, Lines, Overrides, find_config, one_line_errors, only_json, out, print_json
from jobs.looking import frame_table

if TYPE_CHECKING:
    from pipeline.config import EngineConfig
    from pipeline.refilter import DecisionSet, Refiltered

_SCOPES = ("source", "task", "language")
_MOST_PAIRS = 12


def add_to(app: typer.Typer) -> None:
    app.command("filter")(filter_)
    app.command("decisions")(list_decisions)


@one_line_errors
def filter_(
    config: ConfigOrRun,
    policy: Annotated[
        str | None, typer.Option(help="Another policy than the configuration's: a file, or the name of a built-in one.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the difference only; score and write nothing.")
    ] = False,
    against: Annotated[
        str | None,
        typer.Option(help="The decision set to compare with (`perceive decisions`); the current one if none."),
    ] = None,
    pack: Annotated[bool, typer.Option("--pack", help="Write the shards as well, and say how many changed.")] = False,
    set_: Overrides = [],
    json: Json = False,
) -> None:
    """Score what is missing, decide by the policy, show the yield; never calls a teacher.

    The decisions are a new set and become the current one, which `pack` takes; older sets stay and can be named.
    """
    from jobs.building import packed
    from pipeline.build import build as build_run
    from pipeline.refilter import preview, refilter
    from stages.policy import load_policy

    settings = find_config(config, [*set_, *([f"policy={policy}"] if policy else [])])
    chosen, rows = load_policy(settings.policy), {}
    with only_json(json):
        if dry_run:
            found = preview(settings, chosen, against)
        else:
            before = against or _current(settings)
            made = refilter(settings, against)
            if made is None:
                rows = build_run(settings, ("score", "decide"), None if json else Lines(), free=True).done
                made = preview(settings, chosen, before)
            found = made
        result = build_run(settings, ("pack",), None if json else Lines()) if pack and not dry_run else None
    if json:
        effort = result.pack["effort"] if result is not None and result.pack else None
        print_json({"rows": rows, "dry_run": dry_run, "pack_effort": effort, **tables(found, settings)})
        return
    show(found, settings, dry_run)
    if result is not None:
        out.print(packed(result))


@one_line_errors
def list_decisions(config: ConfigOrRun, json: Json = False) -> None:
    """List the decision sets of a run, oldest first; each can be named in `filter --against`."""
    from pipeline.refilter import decision_sets
    from pipeline.tables import Run

    live = find_config(config, []).runtime()
    sets = decision_sets(Run.open(live.run, live.storage_options).view())
    rows = [{"name": one.name, "created": one.created, **_fates(one), "current": one.current} for one in sets]
    print_json(rows) if json else out.print(frame_table(pl.DataFrame(rows), f"decision sets of {live.run}"))


def tables(found: Refiltered, config: EngineConfig) -> dict[str, Any]:
    """What a policy did, as plain values: yields by rule and by scope, overlaps, changes, rules that did not run."""
    from stages.yields import changes, kept_shares, overlap, yield_table

    evaluation = found.evaluation
    by_check = yield_table(evaluation)
    moved = None if found.before_rows is None else changes(found.before_rows, evaluation.decisions)
    return {
        "policy": evaluation.policy.name,
        "captions": len(evaluation.decisions),
        "kept": int((evaluation.decisions["status"] == "ok").sum()),
        "unscored": found.unscored,
        "yield": by_check.to_dicts(),
        "kept_by": {scope: kept_shares(evaluation, (scope,)).to_dicts() for scope in _SCOPES},
        "overlap": overlap(evaluation).head(_MOST_PAIRS).to_dicts(),
        "before": None if found.before is None else found.before.name,
        "changes": None if moved is None else moved.to_dicts(),
        "did_not_run": did_not_run(by_check, config),
    }


def did_not_run(by_check: pl.DataFrame, config: EngineConfig) -> dict[str, str]:
    """The checks of a yield table that had no score anywhere, and why."""
    from stages.score.groups import OPTIONAL, all_columns

    groups, said = all_columns(), {}
    for reason, column in by_check.filter(pl.col("ran") == 0).select("reason", "column").iter_rows():
        group = groups[column].group
        key = "duplicates" if group == "corpus" else group
        if (group in OPTIONAL or group == "corpus") and getattr(config.score, key) is None:
            said[reason] = f"off: configure score.{key}"
        else:
            said[reason] = "no caption that it is for"
    return said


def show(found: Refiltered, config: EngineConfig, dry_run: bool) -> None:
    """Prints it for people; a dry run shows the difference only."""
    values = tables(found, config)
    if found.unscored:
        out.print(f"{found.unscored} captions lack scores; checks on these did not run")
    if not dry_run:
        table = pl.DataFrame(values["yield"])
        out.print(frame_table(table.filter(pl.col("ran") > 0), f"yield by rule, policy {values['policy']}"))
        for scope, rows in values["kept_by"].items():
            out.print(frame_table(pl.DataFrame(rows), f"kept by {scope}"))
        if values["overlap"]:
            out.print(frame_table(pl.DataFrame(values["overlap"]), "rules that spoke against the same captions"))
        for reason, why in values["did_not_run"].items():
            out.print(f"{reason} did not run: {why}")
    if values["changes"] is None:
        out.print("There is no earlier decision set to compare with.")
    elif not values["changes"]:
        out.print(f"Nothing changes against {values['before']}.")
    else:
        out.print(frame_table(pl.DataFrame(values["changes"]), f"changes against {values['before']}"))
    verb = "would be kept" if dry_run else "kept"
    out.print(f"{values['kept']} of {values['captions']} captions {verb}")


def _current(config: EngineConfig) -> str | None:
    """The name of the current decision set, before another one takes its place."""
    from pipeline.refilter import decision_sets
    from pipeline.tables import Run

    live = config.runtime()
    sets = decision_sets(Run.open(live.run, live.storage_options).view())
    return next((one.name for one in sets if one.current), None)


def _fates(one: DecisionSet) -> dict[str, int]:
    return {fate: one.counts.get(fate, 0) for fate in ("ok", "filtered", "failed", "blocked")}
