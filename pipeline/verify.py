"""`verify`: does everything that the run vouches for still hold? Reads every committed byte; writes nothing."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from pipeline.commits import (
    INPUT_DIGEST,
    Commit,
    Log,
    RunError,
    by_table,
    identity,
    orphans,
    parse_commit,
    parse_commit_path,
    read_log,
)
from pipeline.forgotten import forgotten, traces
from pipeline.snapshot import FOLDER as SNAPSHOTS
from pipeline.snapshot import Snapshot, path_of, read_snapshot, read_tombstones, snapshot_files
from pipeline.store import Store
from pipeline.tables import Run
from pipeline.view import View
from schemas.base import SCHEMA_VERSION, Record


class Problem(Record):
    """A file that is not as it was committed: what is wrong, and what to do."""

    file: str
    what: str
    fix: str


class VerifyReport(Record):
    """What was checked and found. `orphans` are files that nothing names: harmless, swept by the next build."""

    parts: int
    num_bytes: int
    rows: int
    commits: int
    snapshots: int
    orphans: int
    problems: list[Problem]

    @property
    def ok(self) -> bool:
        return not self.problems


_REBUILD = "restore it from a backup; or delete the commit that names it and build again: its rows are then made anew"


def verify(run: Run) -> VerifyReport:
    """Re-hashes every committed part; checks commit names, snapshots, and that each view has every key once.

    Where media were taken down, every file of the run is searched for them as well.

    Raises `RunError` only where the run cannot be read at all (a broken checkpoint).
    """
    store = run.store
    broken = [*_broken_commits(store), *_broken_snapshots(store)]
    if broken:  # nothing can be said of what counts while a record is unreadable
        return VerifyReport(parts=0, num_bytes=0, rows=0, commits=0, snapshots=0, orphans=0, problems=broken)
    log = read_log(store)
    problems: list[Problem] = []
    for commit in log.commits:
        problems += _part_problems(store, commit)
    problems += _record_problems(store, log)
    for number in log.snapshots:
        problems += _snapshot_problems(store, read_snapshot(store, path_of(number)))
    problems += _forgotten_problems(store)
    if not problems:
        problems += _repeated_keys(View(store, by_table(log.commits), log.snapshot))
    return VerifyReport(
        parts=len(log.commits),
        num_bytes=sum(commit.part.num_bytes for commit in log.commits),
        rows=sum(commit.part.rows for commit in log.commits),
        commits=len(log.commits),
        snapshots=len(log.snapshots),
        orphans=_orphans(store, log),
        problems=problems,
    )


def _forgotten_problems(store: Store) -> Iterator[Problem]:
    """Media that were taken down and can still be found somewhere."""
    records = forgotten(store)
    fix = "run `perceive forget` with its key again"
    for record in records:
        if not record.done:
            yield Problem(file=record.path, what="the media is not taken down to the end", fix=fix)
    for file, what in traces(store, records):
        yield Problem(file=file, what=f"a media that was taken down is still in it: {what}", fix=fix)


def _broken_commits(store: Store) -> Iterator[Problem]:
    paths = [info.path for info in store.files("tables") if parse_commit_path(info.path)]
    for path in paths:
        try:
            parse_commit(path, store.read(path))
        except RunError as error:
            yield Problem(file=path, what=str(error).split(";")[0], fix=str(error).split("; ")[1])
        except FileNotFoundError:
            continue  # compacted meanwhile


def _broken_snapshots(store: Store) -> Iterator[Problem]:
    for path in snapshot_files(store).values():
        try:
            read_snapshot(store, path)
        except ValidationError as error:
            what = f"not a snapshot ({error.error_count()} faults)"
            yield Problem(file=path, what=what, fix="restore it from a backup, or delete it and build again")
        except FileNotFoundError:
            continue


def _part_problems(store: Store, commit: Commit) -> Iterator[Problem]:
    part = commit.part
    try:
        data = store.read(part.path)
    except FileNotFoundError:
        yield Problem(file=part.path, what=f"missing; commit {commit.name} names it", fix=_REBUILD)
        return
    if hashlib.sha256(data).hexdigest() != part.sha256:
        what = f"its bytes changed after it was committed ({len(data)} bytes now, {part.num_bytes} then)"
        yield Problem(file=part.path, what=what, fix=_REBUILD)
        return
    rows = pq.read_table(io.BytesIO(data), columns=_identifying(pq.read_schema(io.BytesIO(data)), part.key_field))
    if len(rows) != part.rows or identity(rows, part.key_field) != part.identity:
        yield Problem(file=part.path, what=f"does not hold the rows that commit {commit.name} says", fix=_REBUILD)
    if part.schema_version > SCHEMA_VERSION:
        what = f"schema version {part.schema_version}, this perceive-engine knows {SCHEMA_VERSION}"
        yield Problem(file=part.path, what=what, fix="upgrade perceive-engine")


def _identifying(schema: pa.Schema, key_field: str) -> list[str]:
    return [name for name in (key_field, INPUT_DIGEST, "status", "attempts") if name in schema.names]


def _record_problems(store: Store, log: Log) -> Iterator[Problem]:
    """Commit records whose name is not the digest of what they say, or that two parts or positions share."""
    loose = set(log.loose)
    for path in loose:
        parsed = parse_commit_path(path)
        record = parse_commit(path, store.read(path))
        if parsed != (record.part.table, record.name, record.epoch):
            yield Problem(file=path, what="its name is not the digest of its content", fix=_REBUILD)
    orders, parts = set(), set()
    for commit in log.commits:
        if commit.order in orders:
            what = f"shares its place {commit.order} with another commit"
            yield Problem(file=commit.path, what=what, fix=_REBUILD)
        if commit.part.path in parts:
            yield Problem(file=commit.path, what=f"names {commit.part.path}, as another commit does", fix=_REBUILD)
        orders.add(commit.order)
        parts.add(commit.part.path)


def _snapshot_problems(store: Store, snapshot: Snapshot) -> Iterator[Problem]:
    file = path_of(snapshot.number)
    for name, fingerprint in snapshot.fingerprints.items():
        if len(fingerprint) != 32 or set(fingerprint) - set("0123456789abcdef"):
            what = f"its fingerprint of {name} is {fingerprint!r}, not 32 hexadecimal digits"
            yield Problem(file=file, what=what, fix="build again: that writes a new snapshot")
    try:
        read_tombstones(store, snapshot.tombstones)
    except FileNotFoundError:
        what = f"its tombstones {snapshot.tombstones} are missing"
        yield Problem(file=file, what=what, fix="build again: that reads the sources and writes a new snapshot")
    except (pl.exceptions.PolarsError, OSError) as error:
        what = f"its tombstones {snapshot.tombstones} are unreadable: {error}"
        yield Problem(file=file, what=what, fix="delete that file and build again")


def _repeated_keys(view: View) -> Iterator[Problem]:
    for table in view.tables:
        on = [view.key_field(table), INPUT_DIGEST]
        for fingerprint in view.fingerprints(table):
            keys = view.rows(table, fingerprint, on)
            repeated = keys.group_by(on).len().filter(pl.col("len") > 1).select(pl.len()).collect().item()
            if repeated:
                yield Problem(
                    file=f"tables/{table}",
                    what=f"{repeated} keys of fingerprint {fingerprint.hex()} are seen more than once",
                    fix="report this: the view must show the newest row of each key only",
                )


def _orphans(store: Store, log: Log) -> int:
    """Files that nothing names, of epochs that have ended; those of the newest epoch may be in the making."""
    epoch = max([log.checkpoint.epoch, *(commit.epoch for commit in log.commits)], default=0)
    files = store.files("tables")
    counting = {commit.path for commit in log.commits}
    void = [path for path in log.loose if path not in counting]
    stray = [path for number, path in snapshot_files(store).items() if number not in log.snapshots]
    tombstones = {read_snapshot(store, path_of(number)).tombstones for number in log.snapshots}
    stray += [
        info.path for info in store.files(SNAPSHOTS) if info.name.endswith(".parquet") and info.path not in tombstones
    ]
    return len(orphans(files, log.commits, epoch)) + len(void) + len(stray) + len(store.unfinished("tables"))
