"""The driver's side of a run: commits, snapshots, sweeping and compaction, all under the lease."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime

import polars as pl
import pyarrow as pa

from pipeline.commits import (
    TABLES,
    Checkpoint,
    Commit,
    PartInfo,
    RunError,
    by_table,
    checkpoint_files,
    orphans,
    parse_commit_path,
    read_log,
    write_part,
)
from pipeline.lease import FOLDER as LEASE
from pipeline.lease import Lease
from pipeline.snapshot import FOLDER as SNAPSHOTS
from pipeline.snapshot import (
    Snapshot,
    encode_tombstones,
    path_of,
    read_snapshot,
    read_tombstones,
    snapshot_files,
)
from pipeline.store import Store
from pipeline.view import View
from schemas.keys import set_digest
from stages.failpoints import failpoint

COMPACT_ABOVE = 1000
_STRAY_S = 60.0

log = logging.getLogger(__name__)


class Writer:
    """Commits to a run in one lease epoch. Made by `Run.writer`; safe to call from several threads.

    Every method that writes raises `LeaseLost` once another driver has taken over. What `commit` reported as committed
    stays visible even then.
    """

    def __init__(self, store: Store, lease: Lease, compact_above: int = COMPACT_ABOVE) -> None:
        self.store = store
        self.epoch = lease.epoch
        self._lease = lease
        self._compact_above = compact_above
        self._lock = threading.RLock()
        before = read_log(store)
        self._commits: list[Commit] = list(before.commits)
        self._snapshots: list[int] = list(before.snapshots)
        self._names: set[str] = set()
        self._superseded: dict[bytes, pl.Series] = {}  # shared by all views, which find it by their parts
        self._seq = 0
        self._generation = 0
        self._uncertain: str | None = None
        self._loose = len(before.loose)
        self._checkpoint()  # the fence: from here on no older driver can add anything
        self._snapshot = before.snapshot
        if self._loose > compact_above:
            self._drop_compacted()

    def commit(self, table: str, fingerprint: bytes, unit_keys: pa.Array | pa.ChunkedArray, part: PartInfo) -> bool:
        """Makes a part visible; False if the same rows of the same units are committed already (the part is deleted).

        `unit_keys` are the 16-byte keys of the units whose rows these are. Rows that come again with another status,
        attempt or input digest are committed and replace the former. Raises `ValueError` for a part of another table
        or epoch, and `RunError` once a commit has failed half-way.
        """
        if part.table != table or part.epoch != self.epoch:
            raise ValueError(
                f"{part.path} belongs to table {part.table!r} and epoch {part.epoch}, not to {table!r}, {self.epoch}"
            )
        units = set_digest(unit_keys).hex()
        with self._lock:
            record = Commit(
                part=part,
                fingerprint=fingerprint.hex(),
                units=units,
                epoch=self.epoch,
                seq=self._seq + 1,
                created=_now(),
            )
            self._check()
            if record.name in self._names:
                self._drop_repeated(part)
                return False
            self._publish(record)
            if self._loose > self._compact_above:
                self.compact()
        return True

    def commit_table(
        self,
        table: str,
        fingerprint: bytes,
        rows: pa.Table,
        key_field: str,
        unit_keys: pa.Array | pa.ChunkedArray | None = None,
    ) -> bool:
        """Writes rows as a part and commits it; the units are the rows' own keys unless given."""
        part = write_part(self.store, table, self.epoch, rows, key_field)
        return self.commit(table, fingerprint, rows[key_field] if unit_keys is None else unit_keys, part)

    def snapshot(
        self,
        fingerprints: Mapping[str, str],
        sources: Mapping[str, str] | None = None,
        tombstones: pl.DataFrame | None = None,
        pointers: Mapping[str, str] | None = None,
    ) -> Snapshot:
        """Makes these fingerprints (hexadecimal, by stage or task) current; returns the present one if nothing differs.

        `tombstones`: (table, key, input_digest) of the rows that the latest ingest dropped.
        """
        wanted = dict(fingerprints), dict(sources or {}), dict(pointers or {})
        dropped = tombstones if tombstones is not None and len(tombstones) else None
        with self._lock:
            self._check()
            now = self._snapshot
            if now is not None and now.same(*wanted) and self._same_tombstones(now, dropped):
                return now
            path = None
            if dropped is not None:
                path = f"{SNAPSHOTS}/{self.epoch:08d}-{uuid.uuid4().hex}.tombstones.parquet"
                self.store.write_durable(path, encode_tombstones(dropped))
            return self._publish_snapshot(*wanted, path)

    def current(self) -> Snapshot | None:
        """The snapshot that readers follow now."""
        return self._snapshot

    def view(self) -> View:
        """What readers see now, this driver's commits included; reads nothing."""
        with self._lock:
            return View(self.store, by_table(self._commits), self._snapshot, self._superseded)

    def sweep(self) -> list[str]:
        """Deletes what epochs before this one left and nothing names; returns the paths.

        Parts without a commit, commits and snapshots that were fenced off, temporary files, old lease files.
        """
        with self._lock:
            self._check()
            files = self.store.files(TABLES)
            known = {commit.path for commit in self._commits}
            found = orphans(files, self._commits, self.epoch)
            for info in files:
                parsed = parse_commit_path(info.path)
                if parsed and parsed[2] < self.epoch and info.path not in known:
                    found.append(info.path)
            found += self._stray_snapshots()
            # A temporary file from before this lease was begun by a driver, or a worker of one, that is no more.
            began = self._lease.claimed_at
            for folder in (TABLES, SNAPSHOTS, "checkpoints"):
                found += [info.path for info in self.store.unfinished(folder) if info.mtime < began]
            # Whoever asks for the lease now may be writing there, whatever it is worth: leave a minute.
            found += [info.path for info in self.store.unfinished(LEASE) if info.mtime < began - _STRAY_S]
            found += self._lease.sweepable()
            self.store.delete(found)
        return found

    def compact(self) -> None:
        """Folds all commit files into one checkpoint and deletes them. Readers notice nothing."""
        with self._lock:
            self._check()
            self._generation += 1
            self._checkpoint()
            self._drop_compacted()

    def forget(self, fingerprints: set[str], snapshots: set[int]) -> list[Commit]:
        """Makes the rows of these fingerprints and these snapshots not count any more (gc); returns the commits.

        The parts may be deleted when this returns: no view taken from now on names them.
        """
        with self._lock:
            self._check()
            gone = [commit for commit in self._commits if commit.fingerprint in fingerprints]
            self._commits = [commit for commit in self._commits if commit.fingerprint not in fingerprints]
            self._snapshots = [number for number in self._snapshots if number not in snapshots]
            self._names -= {commit.name for commit in gone}
            self._generation += 1
            self._checkpoint()
            self._drop_compacted()
        return gone

    def replace_parts(self, parts: Mapping[str, PartInfo | None]) -> None:
        """Makes other parts (none for None) stand in the place of these, by path, all at one moment (takedown).

        The old parts may be deleted when this returns: no view taken from now on names them. A new part keeps the
        place of the old one in the order of commits.
        """
        with self._lock:
            self._check()
            kept: list[Commit] = []
            for commit in self._commits:
                part = parts.get(commit.part.path, commit.part)
                if part is not None:
                    kept.append(commit if part is commit.part else commit.model_copy(update={"part": part}))
            self._commits = kept
            self._names = {commit.name for commit in kept if commit.epoch == self.epoch}
            self._generation += 1
            self._checkpoint()
            self._drop_compacted()

    def commits(self) -> list[Commit]:
        """The commits that count, in their order."""
        return list(self._commits)

    def snapshots(self) -> list[int]:
        """The numbers of the snapshots that count."""
        return list(self._snapshots)

    def _check(self) -> None:
        self._lease.check()
        if self._uncertain is not None:
            raise RunError(f"writing {self._uncertain} failed half-way; end this driver and build again")

    def _publish(self, record: Commit) -> None:
        failpoint("commit.before")
        self._uncertain = record.path
        data = record.model_dump_json().encode()
        if not self.store.create_if_absent(record.path, data):
            raise RunError(f"{record.path} exists, though only this driver may write epoch {self.epoch}")
        # Seen before any newer claim, the commit is in the newer driver's first checkpoint: it counts for good.
        self._lease.check()
        self._uncertain = None
        self._seq = record.seq
        self._commits.append(record)
        self._names.add(record.name)
        self._loose += 1
        failpoint("commit.after")

    def _drop_repeated(self, part: PartInfo) -> None:
        if all(commit.part.path != part.path for commit in self._commits):
            self.store.delete([part.path])

    def _publish_snapshot(
        self, fingerprints: dict[str, str], sources: dict[str, str], pointers: dict[str, str], tombstones: str | None
    ) -> Snapshot:
        failpoint("snapshot.before")
        self._uncertain = SNAPSHOTS
        number = max(snapshot_files(self.store), default=0)
        while True:  # a number may be taken by a driver that was fenced off
            number += 1
            snapshot = Snapshot(
                number=number,
                epoch=self.epoch,
                seq=self._seq,
                fingerprints=fingerprints,
                sources=sources,
                pointers=pointers,
                tombstones=tombstones,
                created=_now(),
            )
            if self.store.create_if_absent(path_of(number), snapshot.model_dump_json(indent=1).encode()):
                break
        self._lease.check()
        self._uncertain = None
        self._snapshot = snapshot
        self._snapshots.append(number)
        failpoint("snapshot.after")
        return snapshot

    def _same_tombstones(self, now: Snapshot, wanted: pl.DataFrame | None) -> bool:
        if now.tombstones is None or wanted is None:
            return now.tombstones is None and wanted is None
        order = ["table", "key", "input_digest"]
        return read_tombstones(self.store, now.tombstones).equals(wanted.unique().sort(order).select(order))

    def _checkpoint(self) -> None:
        failpoint("checkpoint.before")
        checkpoint = Checkpoint(
            epoch=self.epoch,
            generation=self._generation,
            seq=self._seq,
            snapshots=sorted(self._snapshots),
            commits=self._commits,
        )
        self._uncertain = checkpoint.path
        if not self.store.create_if_absent(checkpoint.path, checkpoint.model_dump_json().encode()):
            raise RunError(f"{checkpoint.path} exists, though only this driver may write epoch {self.epoch}")
        self._lease.check()
        self._uncertain = None
        failpoint("checkpoint.after")

    def _drop_compacted(self) -> None:
        """Deletes commit files and checkpoints that the checkpoint just written replaces."""
        here = (self.epoch, self._generation)
        old = [path for order, path in checkpoint_files(self.store).items() if order < here]
        loose = [info.path for info in self.store.files(TABLES)]
        parsed = ((path, parse_commit_path(path)) for path in loose)
        old += [path for path, each in parsed if each and each[2] <= self.epoch]
        self.store.delete(old)
        self._loose = 0

    def _stray_snapshots(self) -> list[str]:
        """Snapshots, and tombstones of such, that do not count; a later driver's are left alone, whatever they are."""
        stray, kept = [], set()
        for number, path in snapshot_files(self.store).items():
            snapshot = read_snapshot(self.store, path)
            if number in self._snapshots:
                kept.add(snapshot.tombstones)
            elif snapshot.epoch <= self.epoch:
                stray.append(path)
        for info in self.store.files(SNAPSHOTS):
            epoch = info.name.partition("-")[0]
            if info.name.endswith(".tombstones.parquet") and int(epoch) <= self.epoch and info.path not in kept:
                stray.append(info.path)
        return stray


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
