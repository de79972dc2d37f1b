"""Parts and commits: how rows become visible, and which commits count.

A part (`tables/<table>/parts/<epoch>-<uuid>.parquet`) is durable before anybody names it. A commit record
(`tables/<table>/commits/<name>.<epoch>.json`), created only if absent, makes it visible. A checkpoint
(`checkpoints/<epoch>-<generation>.json`) lists all records that count up to a moment of an epoch. The rule, the same
for every reader:

    what counts = the records in the newest checkpoint + the commits later than it in (epoch, seq)

A driver that takes over writes the first checkpoint of its epoch before it commits anything, so a commit that an
older driver makes later is in no checkpoint and never counts (the fence). Compaction and gc are checkpoints too.
"""

from __future__ import annotations

import hashlib
import io
import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ValidationError

from pipeline.snapshot import Snapshot, read_snapshot, snapshot_files
from pipeline.store import FileInfo, Store
from schemas.base import SCHEMA_VERSION, Record
from schemas.keys import digest_columns, digest_value, set_digest
from stages.failpoints import failpoint

TABLES = "tables"
CHECKPOINTS = "checkpoints"
INPUT_DIGEST = "input_digest"
_COMMIT = re.compile(r"tables/(?P<table>.+)/commits/(?P<name>[0-9a-f]{32})\.(?P<epoch>\d{8})\.json")
_PART = re.compile(r"tables/(?P<table>.+)/parts/(?P<epoch>\d{8})-[0-9a-f]{32}\.parquet")
_CHECKPOINT = re.compile(r"(\d{8})-(\d{8})\.json")
_RETRIES = 20


class RunError(Exception):
    """A file of the run says something it cannot say; the message names it and the way out."""


class PartInfo(Record):
    """A written part: enough to commit it, small enough to send between processes.

    `identity` (hexadecimal) digests the set of its rows' (key, input digest, status, attempts); `statuses` counts its
    rows by status.
    """

    table: str
    path: str
    sha256: str
    num_bytes: int
    rows: int
    epoch: int
    key_field: str
    identity: str
    statuses: dict[str, int]
    schema_version: int


class Commit(Record):
    """A commit record: a part, the fingerprint of its rows, the digest of its units, its place in the order."""

    part: PartInfo
    fingerprint: str
    units: str
    epoch: int
    seq: int
    created: str

    @property
    def name(self) -> str:
        return digest_value([self.fingerprint, self.units, self.part.identity]).hex()

    @property
    def path(self) -> str:
        return f"{TABLES}/{self.part.table}/commits/{self.name}.{self.epoch:08d}.json"

    @property
    def order(self) -> tuple[int, int]:
        return self.epoch, self.seq


class Checkpoint(Record):
    """All that counts up to the commit `seq` of `epoch`: commit records in their order, valid snapshot numbers."""

    epoch: int
    generation: int
    seq: int
    snapshots: list[int]
    commits: list[Commit]

    @property
    def path(self) -> str:
        return f"{CHECKPOINTS}/{self.epoch:08d}-{self.generation:08d}.json"


NO_CHECKPOINT = Checkpoint(epoch=0, generation=0, seq=0, snapshots=[], commits=[])


@dataclass(frozen=True)
class Log:
    """What counts as of one moment: commits in (epoch, seq) order, numbers of valid snapshots, the newest of these.

    `loose` are the commit files that exist, those that do not count included.
    """

    checkpoint: Checkpoint
    commits: tuple[Commit, ...]
    snapshots: tuple[int, ...]
    snapshot: Snapshot | None
    loose: tuple[str, ...]


def write_part(store: Store, table: str, epoch: int, rows: pa.Table, key_field: str) -> PartInfo:
    """Writes rows durably as a part that nobody sees until the driver of `epoch` commits it. Workers call this.

    `key_field` names the 16-byte key column; with `input_digest` it identifies a row within a fingerprint. Raises
    `ValueError` if a column is missing or empty.
    """
    for column in (key_field, INPUT_DIGEST, "status"):
        if column not in rows.column_names:
            raise ValueError(f"rows of table {table!r} need a column {column!r}; they have {rows.column_names}")
        if rows[column].null_count:
            raise ValueError(f"rows of table {table!r} have nulls in {column!r}, which identifies them")
    data = encode_part(rows)
    path = f"{TABLES}/{table}/parts/{epoch:08d}-{uuid.uuid4().hex}.parquet"
    failpoint("part.before")
    store.write_durable(path, data)
    failpoint("part.after")
    statuses = {item["values"]: item["counts"] for item in pc.value_counts(rows["status"]).to_pylist()}
    metadata = rows.schema.metadata or {}
    return PartInfo(
        table=table,
        path=path,
        sha256=hashlib.sha256(data).hexdigest(),
        num_bytes=len(data),
        rows=len(rows),
        epoch=epoch,
        key_field=key_field,
        identity=identity(rows, key_field),
        statuses=statuses,
        schema_version=int(metadata.get(b"schema_version", SCHEMA_VERSION)),
    )


def encode_part(rows: pa.Table) -> bytes:
    """Parquet bytes of a table, zstd."""
    out = io.BytesIO()
    pq.write_table(rows, out, compression="zstd")
    return out.getvalue()


def identity(rows: pa.Table, key_field: str) -> str:
    """Hexadecimal digest of the set of rows: key, input digest, status and, where there is one, attempts."""
    fates = pl.DataFrame(pl.from_arrow(rows.select([n for n in ("status", "attempts") if n in rows.column_names])))
    # Of millions of rows a few fates occur: each is digested once.
    distinct = fates.unique()
    digests = pl.Series("fate", digest_columns({name: distinct[name].to_arrow() for name in distinct.columns}))
    told = fates.join(
        distinct.with_columns(digests), on=distinct.columns, how="left", maintain_order="left", nulls_equal=True
    )
    return set_digest(rows[key_field], rows[INPUT_DIGEST], told["fate"].to_arrow()).hex()


def parse_commit_path(path: str) -> tuple[str, str, int] | None:
    """(table, name, epoch) of a commit file's path; None for any other file."""
    found = _COMMIT.fullmatch(path)
    return (found["table"], found["name"], int(found["epoch"])) if found else None


def parse_part_path(path: str) -> tuple[str, int] | None:
    """(table, epoch) of a part's path; None for any other file."""
    found = _PART.fullmatch(path)
    return (found["table"], int(found["epoch"])) if found else None


def checkpoint_files(store: Store) -> dict[tuple[int, int], str]:
    """The checkpoint files by (epoch, generation)."""
    found = ((_CHECKPOINT.fullmatch(info.name), info.path) for info in store.files(CHECKPOINTS))
    return {(int(match[1]), int(match[2])): path for match, path in found if match}


def read_log(store: Store) -> Log:
    """What counts now. Needs no lease: a reader that races with a takeover or a compaction starts again.

    Files are deleted only after the checkpoint that replaces them exists, so a listing is complete if the newest
    checkpoint is the same before and after it. Raises `RunError` for an unreadable record.
    """
    for _ in range(_RETRIES):
        files = checkpoint_files(store)
        newest = max(files, default=None)
        try:
            log = _read_once(store, None if newest is None else files[newest])
        except FileNotFoundError:
            continue
        if max(checkpoint_files(store), default=None) == newest:
            return log
    raise RunError(f"{store.url} changed {_RETRIES} times while it was read; try again")


def _read_once(store: Store, newest: str | None) -> Log:
    checkpoint = NO_CHECKPOINT if newest is None else read_checkpoint(store, newest)
    # Snapshots before commits: then every commit that a snapshot was written after is seen with it.
    snapshots, snapshot = _valid_snapshots(store, checkpoint)
    loose = [info.path for info in store.files(TABLES) if parse_commit_path(info.path)]
    known = {commit.path for commit in checkpoint.commits}
    later = [path for path in loose if path not in known and _epoch_of(path) >= checkpoint.epoch]
    read = [parse_commit(path, data) for path, data in zip(later, store.read_many(later), strict=True)]
    counting = [commit for commit in read if commit.order > (checkpoint.epoch, checkpoint.seq)]
    commits = sorted([*checkpoint.commits, *counting], key=lambda commit: commit.order)
    return Log(checkpoint, tuple(commits), tuple(snapshots), snapshot, tuple(loose))


def _valid_snapshots(store: Store, checkpoint: Checkpoint) -> tuple[list[int], Snapshot | None]:
    """The snapshots that count, by the rule of commits (in the checkpoint, or of its epoch on), and the newest."""
    files = snapshot_files(store)
    later = {number: read_snapshot(store, files[number]) for number in files if number not in checkpoint.snapshots}
    valid = sorted(n for n in files if n not in later or later[n].epoch >= checkpoint.epoch)
    if not valid:
        return [], None
    newest = valid[-1]
    return valid, later[newest] if newest in later else read_snapshot(store, files[newest])


def _epoch_of(path: str) -> int:
    parsed = parse_commit_path(path)
    assert parsed is not None
    return parsed[2]


def parse_commit(path: str, data: bytes) -> Commit:
    """A commit record from its file's bytes; raises `RunError` naming the file."""
    try:
        return Commit.model_validate_json(data)
    except ValidationError as error:
        raise RunError(
            f"{path} is not a commit record ({error.error_count()} faults); restore it from a backup, or delete it and"
            " build again: its rows are then made anew"
        ) from error


def read_checkpoint(store: Store, path: str) -> Checkpoint:
    """A checkpoint from its file; raises `RunError` naming the file, `FileNotFoundError` if it has been replaced."""
    data = store.read(path)
    try:
        return Checkpoint.model_validate_json(data)
    except ValidationError as error:
        raise RunError(
            f"{path} is not a checkpoint ({error.error_count()} faults); restore it from a backup"
        ) from error


def highest_epoch(store: Store) -> int:
    """The newest epoch that a checkpoint names; a new lease is always above it, even if lease files were deleted."""
    return max((epoch for epoch, _ in checkpoint_files(store)), default=0)


def by_table(commits: Iterable[Commit]) -> Mapping[str, tuple[Commit, ...]]:
    """Commits grouped by table, order kept."""
    grouped: dict[str, list[Commit]] = {}
    for commit in commits:
        grouped.setdefault(commit.part.table, []).append(commit)
    return {table: tuple(group) for table, group in grouped.items()}


def orphans(files: Iterable[FileInfo], commits: Iterable[Commit], epoch: int) -> list[str]:
    """Parts of epochs before `epoch` that none of these commits names."""
    named = {commit.part.path for commit in commits}
    found = ((info.path, parse_part_path(info.path)) for info in files)
    return [path for path, parsed in found if parsed and parsed[1] < epoch and path not in named]
