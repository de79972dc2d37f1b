"""Commands that exchange data with others: export pam, import pam, validate-pam, preview, prompts show."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.console import (
    ConfigOrRun,
    Json,
    Lines,
    Overrides,
    accounts_table,
    find_config,
    one_line_errors,
    only_json,
    out,
    print_json,
)
from stages.export.pam_validate import Problem

if TYPE_CHECKING:
    from pipeline.session import BuildResult

_SHOWN = 20


def add_to(app: typer.Typer) -> None:
    exports = typer.Typer(help="Write the corpus in other formats.", no_args_is_help=True)
    exports.command("pam")(export_pam)
    imports = typer.Typer(help="Read other formats into sources.", no_args_is_help=True)
    imports.command("pam")(import_pam)
    app.add_typer(exports, name="export")
    app.add_typer(imports, name="import")
    app.command("validate-pam")(validate_pam)


@one_line_errors
def export_pam(
    config: ConfigOrRun,
    to: Annotated[Path, typer.Option("--out", help="The folder of the JSONL files and pictures.")],
    prompt: Annotated[
        str, typer.Option(help="box, point or boxNpoint (both; PAM takes either, at random)")
    ] = "boxNpoint",
    path_prefix: Annotated[str | None, typer.Option(help="Paths in the records, for training elsewhere.")] = None,
    set_: Overrides = [],
    json: Json = False,
) -> None:
    """Write the kept captions as the JSONL that PAM's own training code reads, and validate every record."""
    from pipeline.looking import open_corpus
    from pipeline.packing import pack_frames
    from stages.export.pam_export import PamExportConfig
    from stages.export.pam_export import export_pam as export
    from stages.pack import plan_pack

    settings = PamExportConfig.model_validate({"prompt": prompt, "path_prefix": path_prefix})
    now = open_corpus(find_config(config, set_))
    plan = plan_pack(pack_frames(now, now.policy), now.config.pack)
    done = export(plan, to, settings, now.config.storage_options)
    if json:
        print_json(done.model_dump(mode="json"))
    else:
        for name, records in done.files.items():
            out.print(f"{name}: {records} records")
        for left in done.excluded:
            out.print(f"left out: {left.source} {left.task} {left.language}: {left.reason} ({left.count})")
        if done.removed:
            out.print(f"removed {done.removed} files of an earlier export into {to}")
        if done.strange:
            more = f" and {len(done.strange) - 1} more" if done.strange[1:] else ""
            out.print(f"left alone, since no export wrote them: {done.strange[0]}{more}")
        for name, problems in done.problems.items():
            _print_problems(name, problems)
    if any(problem.severity == "error" for problems in done.problems.values() for problem in problems):
        raise typer.Exit(1)


@one_line_errors
def import_pam(
    files: Annotated[list[Path], typer.Argument(help="Annotation files as PAM released them.")],
    to: Annotated[Path, typer.Option("--out", help="The folder of the source that is written.")],
    media: Annotated[
        list[str],
        typer.Option(help="A folder or archive of the pictures; may be repeated. Without it no run is made."),
    ] = [],
    run: Annotated[str, typer.Option(help="The run that the captions come into; relative to --out.")] = "run",
    fps: Annotated[float, typer.Option(help="The rate of frame folders.")] = 24.0,
    json: Json = False,
) -> None:
    """Read PAM's annotation files into a source and, with --media, its regions and captions into a run.

    No teacher is asked. `corpus.yaml`, written beside the source unless it is there, is the run's configuration.
    """
    from pipeline.settings import resolve_path
    from stages.export.pam_import import CONFIG, import_config
    from stages.export.pam_import import import_pam as read

    roots = [resolve_path(root, Path.cwd()) for root in media]
    done = read(files, to, roots, fps)
    result = None
    if media:
        if not (to / CONFIG).exists():
            (to / CONFIG).write_text(import_config(to, roots, run), "utf-8")
        with only_json(json):
            result = _commit(to / CONFIG, json)
    if json:
        rows = {} if result is None else {"rows": result.done, "reasons": result.reasons}
        stages = {} if result is None else {name: count.as_dict() for name, count in result.stages.items()}
        print_json({**done.model_dump(mode="json"), **rows, "stages": stages})
        return
    out.print(f"{done.records} records: {done.regions} regions, {done.captions} captions in {to}")
    for reason, count in {**done.skipped, **{f"unknown key {k}": n for k, n in done.unknown_keys.items()}}.items():
        out.print(f"  {reason}: {count}")
    if result is None:
        out.print("No row was made; --media FOLDER_OF_THE_PICTURES brings them into a run.")
        return
    out.print(accounts_table(result.stages, str(to / CONFIG)))
    out.print(f"score, filter and pack them: perceive build {to / CONFIG}")


def _commit(config: Path, json: bool) -> BuildResult:
    """Regions, masks and events by the usual stages, then the captions as they are."""
    from pipeline.build import run_phases, session_of
    from pipeline.flow import commit_imported

    with session_of(find_config(config, []), None if json else Lines()) as session:
        run_phases(session, ("ingest", "select", "refine", "chunk"))
        commit_imported(session)
    return session.result


@one_line_errors
def validate_pam(
    file: Annotated[Path, typer.Argument(help="A .jsonl or .json file of PAM records.")],
    root: Annotated[Path, typer.Option(help="Where relative paths begin.")] = Path(),
    path_prefix: Annotated[
        str | None, typer.Option(help="What stands in the paths for --root, if the file was written for elsewhere.")
    ] = None,
    media: Annotated[bool, typer.Option(help="Open every picture as well.")] = True,
    json: Json = False,
) -> None:
    """Check a file against every rule that PAM's loader imposes; exits with an error if it would stumble."""
    from stages.export.pam_validate import validate_pam as check

    problems = check(file, media, root, path_prefix)
    if json:
        print_json([problem.model_dump() for problem in problems])
    else:
        _print_problems(str(file), problems)
        out.print(f"{len(problems)} problems")
    if any(problem.severity == "error" for problem in problems):
        raise typer.Exit(1)


def _print_problems(name: str, problems: list[Problem]) -> None:
    for problem in problems[:_SHOWN]:
        out.print(f"{name}:{problem.line}: {problem.severity} {problem.rule}: {problem.message}")
    if len(problems) > _SHOWN:
        out.print(f"{name}: and {len(problems) - _SHOWN} more")
