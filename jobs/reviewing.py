"""Commands of people and teachers: review, calibrate, ablate views, cache."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import polars as pl
import typer

from jobs.console import ConfigOrRun, Json, Overrides, find_config, one_line_errors, out, print_json
from jobs.looking import frame_table
from pipeline.engine import LEDGER


def add_to(app: typer.Typer) -> None:
    review = typer.Typer(help="Captions to people and their verdicts back.", no_args_is_help=True)
    review.command("export")(review_export)
    review.command("import")(review_import)
    app.add_typer(review, name="review")
    app.command("calibrate")(calibrate)
    ablate = typer.Typer(help="Compare settings on your own teacher.", no_args_is_help=True)
    ablate.command("views")(ablate_views)
    app.add_typer(ablate, name="ablate")
    cache = typer.Typer(help="The ledger of a run: every reply that was billed.", no_args_is_help=True)
    cache.command("stats")(cache_stats)
    cache.command("export")(cache_export)
    cache.command("import")(cache_import)
    cache.command("gc")(cache_gc)
    cache.command("close")(cache_close)
    app.add_typer(cache, name="cache")


@one_line_errors
def review_export(
    config: ConfigOrRun,
    to: Annotated[Path, typer.Option("--out", help="The CSV; a page with pictures is written beside it.")],
    per_stratum: Annotated[int, typer.Option(help="Captions of each source, task, language and fate.")] = 20,
    seed: int = 0,
) -> None:
    """Write a sample of captions for people to judge: keep, drop, or a correction."""
    from pipeline.looking import open_corpus
    from pipeline.output import decisions
    from stages.review import review_sample, write_csv, write_page

    now = open_corpus(find_config(config, []))
    wide = now.captions.join(
        now.masked.select("region_key", "uri", "kind", "frame_index", "mask", "source"), on="region_key", how="left"
    )
    sample = review_sample(wide, decisions(now, now.policy), per_stratum, seed)
    write_csv(sample, to)
    write_page(sample, to.with_suffix(".html"), now.config.storage_options)
    out.print(f"{len(sample)} captions: {to}, {to.with_suffix('.html')}")


@one_line_errors
def review_import(
    config: ConfigOrRun, verdicts: Annotated[Path, typer.Argument(help="The CSV, judged.")], json: Json = False
) -> None:
    """Take people's words: they override the policy; corrections become captions of their own; shards follow."""
    from pipeline.build import run_phases, session_of
    from pipeline.people import take_verdicts
    from stages.review import read_verdicts

    judged = read_verdicts(verdicts)
    with session_of(find_config(config, []), free=True) as session:
        taken = take_verdicts(session, judged)
        run_phases(session, ("score", "decide", "pack"))
    done = {
        "verdicts": taken,
        "captioned_anew": len(judged) - taken,
        "corrections": session.result.done.get("review", 0),
        "pack": session.result.pack_id,
    }
    print_json(done) if json else out.print(done)


@one_line_errors
def calibrate(
    config: ConfigOrRun,
    verdicts: Annotated[Path, typer.Argument(help="The CSV, judged.")],
    precision: Annotated[float, typer.Option(help="The precision that suggested thresholds must have.")] = 0.95,
    curves_to: Annotated[
        Path | None, typer.Option("--curves", help="A CSV of what every possible threshold would do.")
    ] = None,
    json: Json = False,
) -> None:
    """Say of each check how right it is by people's verdicts, and which threshold would be as precise as wanted."""
    from pipeline.looking import evaluation_of, open_corpus
    from stages.calibration import check_quality, curves, suggestions
    from stages.review import read_verdicts, still_said

    now, read = open_corpus(find_config(config, [])), read_verdicts(verdicts)
    judged = still_said(now.captions, read)
    quality = check_quality(evaluation_of(now), judged)
    better = suggestions(now.scored, now.policy, judged, precision)
    if curves_to is not None:
        curves(now.scored, now.policy, judged).write_csv(curves_to)
    if json:
        anew = len(read) - len(judged)
        print_json({"checks": quality.to_dicts(), "thresholds": better.to_dicts(), "captioned_anew": anew})
        return
    if len(read) > len(judged):
        out.print(f"{len(read) - len(judged)} verdicts are left out: their captions have another text by now")
    out.print(frame_table(quality.filter(pl.col("labelled") > 0), "checks against people"))
    out.print(frame_table(better, f"thresholds for a precision of {precision}"))


@one_line_errors
def ablate_views(
    config: ConfigOrRun,
    to: Annotated[Path, typer.Option("--out", help="The page with samples side by side.")] = Path("views.html"),
    views: Annotated[list[str], typer.Option("--view", help="A view; may be repeated.")] = [
        "crop_mask",
        "set_of_marks",
    ],
    task: Annotated[str, typer.Option()] = "brief",
    language: Annotated[str, typer.Option()] = "en",
    count: Annotated[int, typer.Option("--regions", help="How many regions each view shows.")] = 32,
    set_: Overrides = [],
    json: Json = False,
) -> None:
    """Show the same regions to the teacher through several views; agreement, leakage, length and cost of each."""
    from pipeline.looking import open_corpus
    from pipeline.plan import sample_rows
    from stages.distill.ablate import ablate_views as compare
    from stages.distill.ablate import page

    now = open_corpus(find_config(config, set_))
    steps = {f"{pair[0]}/{pair[1]}": step for pair, step in now.distill.items()}
    units = sample_rows(steps[f"{task}/{language}"].units, count)
    ledger = f"{now.config.run.rstrip('/')}/{LEDGER}"
    found = compare(now.config.teacher, now.config.captions, units, views, ledger, now.config.storage_options)
    to.write_text(page(found), encoding="utf-8")
    rows = [vars(result) for result in found.results]
    print_json(rows) if json else out.print(frame_table(pl.DataFrame(rows), f"views: {to}"))


@one_line_errors
def cache_stats(config: ConfigOrRun) -> None:
    """Count replies by outcome, model and task, with tokens and money."""
    from stages.teachers.cache import stats

    live = find_config(config, []).runtime()
    print_json(stats(_ledger(live.run), live.storage_options).model_dump(mode="json"))


@one_line_errors
def cache_export(config: ConfigOrRun, file: Path) -> None:
    """Write every reply as one JSON line."""
    from stages.teachers.cache import export

    live = find_config(config, []).runtime()
    out.print(f"{export(_ledger(live.run), file, live.storage_options)} replies: {file}")


@one_line_errors
def cache_import(config: ConfigOrRun, file: Path) -> None:
    """Add the replies of an exported file."""
    from stages.teachers.cache import load

    live = find_config(config, []).runtime()
    out.print(f"{load(_ledger(live.run), file, live.storage_options)} replies added")


@one_line_errors
def cache_gc(config: ConfigOrRun) -> None:
    """Keep the latest answer to each request and forget what else was said. Not while a build works on the run."""
    from pipeline.tables import Run
    from stages.teachers.cache import gc

    live = find_config(config, []).runtime()
    with Run.open(live.run, live.storage_options).writer("perceive cache gc"):
        before, after = gc(_ledger(live.run), 0.0, live.storage_options)
    out.print(f"{before} replies before, {after} after")


@one_line_errors
def cache_close(
    config: ConfigOrRun,
    host: Annotated[str | None, typer.Option(help="A host that is gone for good.")] = None,
    all_: Annotated[
        bool, typer.Option("--all", help="Every host: nothing that writes the ledger runs anywhere.")
    ] = False,
) -> None:
    """Close the logs of killed processes of a host that is gone. Not while a build works on the run."""
    from pipeline.settings import ConfigError
    from pipeline.tables import Run
    from stages.teachers.cache import close_logs_of

    if all_ == (host is not None):
        raise ConfigError("say whose logs are to be closed: --host NAME, or --all")
    live = find_config(config, []).runtime()
    with Run.open(live.run, live.storage_options).writer("perceive cache close"):
        closed = close_logs_of(_ledger(live.run), host, live.storage_options)
    out.print(f"{len(closed)} logs closed" + (f": {', '.join(closed)}" if closed else ""), soft_wrap=True)


def _ledger(run: str) -> str:
    return f"{run.rstrip('/')}/{LEDGER}"
