"""Commands that keep a run in order: verify, gc, forget."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.console import ConfigOrRun, Json, find_config, one_line_errors, out, print_json


def add_to(app: typer.Typer) -> None:
    for name, command in (("verify", verify), ("gc", gc), ("forget", forget)):
        app.command(name)(command)


_PACK_AGAIN = "delete the file if it is there; `perceive pack` with that pack's policy and settings writes it anew"


@one_line_errors
def verify(config: ConfigOrRun, json: Json = False) -> None:
    """Hash every committed part and packed shard again, check commits, snapshots, keys; error on any problem."""
    from pipeline.looking import finished_packs
    from pipeline.tables import Run
    from pipeline.verify import verify as check
    from stages.pack.finish import verify_pack

    live = find_config(config, []).runtime()
    run = Run.open(live.run, live.storage_options)
    report = check(run)
    torn = {pack_id: verify_pack(live.run, pack_id, live.storage_options) for pack_id in finished_packs(run)}
    ok = report.ok and not any(torn.values())
    if json:
        print_json({**report.model_dump(mode="json"), "packs": torn, "ok": ok})
    else:
        for problem in report.problems:
            out.print(f"[red]{problem.file}[/]: {problem.what}\n  fix: {problem.fix}")
        for pack_id, problems in torn.items():
            for text in problems:
                out.print(f"[red]pack {pack_id}[/]: {text}\n  fix: {_PACK_AGAIN}")
        found = len(report.problems) + sum(map(len, torn.values()))
        out.print(f"{report.parts} parts, {report.rows} rows, {len(torn)} packs, {found} problems")
    if not ok:
        raise typer.Exit(1)


@one_line_errors
def gc(
    config: ConfigOrRun,
    keep: Annotated[int, typer.Option(help="How many snapshots stay readable.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")] = False,
    json: Json = False,
) -> None:
    """Delete rows made with settings that no kept snapshot names."""
    from pipeline.gc import gc as collect
    from pipeline.tables import Run

    live = find_config(config, []).runtime()
    report = collect(Run.open(live.run, live.storage_options), keep, dry_run)
    if json:
        print_json(report.model_dump(mode="json"))
        return
    verb = "would delete" if report.dry_run else "deleted"
    out.print(f"{verb} {len(report.files)} files, {report.rows} rows, {report.num_bytes / 1e6:.1f} MB")


@one_line_errors
def forget(
    config: ConfigOrRun,
    media: Annotated[list[str], typer.Argument(help="Keys (or their first 8 digits), URIs, or ids in a source.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be erased.")] = False,
    json: Json = False,
) -> None:
    """Take media down: erase them from tables, ledger, shards, packs and reports, and never ingest them again."""
    from pipeline.forget import forget as take_down
    from pipeline.tables import Run

    live = find_config(config, []).runtime()
    report = take_down(Run.open(live.run, live.storage_options), media, dry_run)
    if json:
        print_json(report.model_dump(mode="json"))
        return
    verb = "would erase" if dry_run else "erased"
    for record in report.media:
        out.print(
            f"{record.media_key.hex()}: {', '.join(record.uris)} (the original stays where it is)", soft_wrap=True
        )
        out.print(f"  {len(record.shards)} shards of {len(record.packs)} packs held it")
    rows = ", ".join(f"{table} {count}" for table, count in report.rows.items()) or "no rows"
    out.print(f"{verb} {rows}" + ("" if dry_run else f"; {report.replies} replies of the ledger"), soft_wrap=True)
    for key in report.duplicates:
        out.print(f"looks the same and stays: {key}")
    if not dry_run:
        out.print("`perceive verify` proves it; `perceive build` brings selection, decisions and pack up to date")
