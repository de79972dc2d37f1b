"""`gc`: forgets what no kept snapshot needs, and deletes it."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.commits import Commit, orphans, read_log
from pipeline.lease import DEFAULT_TTL_S
from pipeline.snapshot import Snapshot, path_of, read_snapshot
from pipeline.store import Store
from pipeline.tables import Run
from schemas.base import Record


class GcReport(Record):
    """What `gc` deleted, or with `dry_run` would delete: fingerprints (hexadecimal) by table, files, bytes."""

    dry_run: bool
    kept_snapshots: list[int]
    dropped_snapshots: list[int]
    fingerprints: dict[str, list[str]]
    rows: int
    num_bytes: int
    files: list[str]


def gc(run: Run, keep_snapshots: int = 1, dry_run: bool = False, holder: str = "perceive gc") -> GcReport:
    """Deletes rows of fingerprints that none of the newest `keep_snapshots` snapshots names, and what nothing names.

    Rows committed after the newest snapshot belong to work in progress (a build that was interrupted) and stay, as
    does everything while there is no snapshot. A view taken before may name parts that are gone afterwards. Raises
    `LeaseHeld` while a driver works on the run (a dry run needs no lease) and `ValueError` for `keep_snapshots` < 1.
    """
    if keep_snapshots < 1:
        raise ValueError("gc keeps at least one snapshot: without any, nothing of the run would be current")
    if dry_run:
        log = read_log(run.store)
        report = _plan(run.store, log.commits, log.snapshots, keep_snapshots, dry_run)
        stray = orphans(run.store.files("tables"), log.commits, log.checkpoint.epoch)
        return report.model_copy(update={"files": sorted({*report.files, *stray})})
    with run.writer(holder, DEFAULT_TTL_S) as writer:
        log = read_log(run.store)
        report = _plan(run.store, log.commits, log.snapshots, keep_snapshots, dry_run)
        forgotten = {fingerprint for each in report.fingerprints.values() for fingerprint in each}
        if forgotten or report.dropped_snapshots:
            gone = writer.forget(forgotten, set(report.dropped_snapshots))
            run.store.delete([commit.part.path for commit in gone])
        swept = writer.sweep()
        return report.model_copy(update={"files": sorted({*report.files, *swept})})


def _plan(
    store: Store, commits: Sequence[Commit], numbers: Sequence[int], keep_snapshots: int, dry_run: bool
) -> GcReport:
    snapshots = [read_snapshot(store, path_of(number)) for number in sorted(numbers)]
    kept, dropped = snapshots[-keep_snapshots:], snapshots[:-keep_snapshots]
    needed = _needed(kept, commits)
    gone = [commit for commit in commits if commit.fingerprint not in needed] if kept else []
    fingerprints: dict[str, list[str]] = {}
    for commit in gone:
        named = fingerprints.setdefault(commit.part.table, [])
        if commit.fingerprint not in named:
            named.append(commit.fingerprint)
    tombstones = {snapshot.tombstones for snapshot in dropped} - {snapshot.tombstones for snapshot in kept}
    files = [commit.part.path for commit in gone] + [path_of(snapshot.number) for snapshot in dropped]
    files += [path for path in tombstones if path is not None]
    return GcReport(
        dry_run=dry_run,
        kept_snapshots=[snapshot.number for snapshot in kept],
        dropped_snapshots=[snapshot.number for snapshot in dropped],
        fingerprints=fingerprints,
        rows=sum(commit.part.rows for commit in gone),
        num_bytes=sum(commit.part.num_bytes for commit in gone),
        files=sorted(files),
    )


def _needed(kept: Sequence[Snapshot], commits: Sequence[Commit]) -> set[str]:
    """Fingerprints that a kept snapshot names, or of which there are commits since the newest one."""
    needed = {value for snapshot in kept for value in [*snapshot.fingerprints.values(), *snapshot.pointers.values()]}
    if kept:
        position = (kept[-1].epoch, kept[-1].seq)
        needed |= {commit.fingerprint for commit in commits if commit.order > position}
    return needed
