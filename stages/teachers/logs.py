"""The ledger's folder: closing logs, and reading all segments as a whole."""

from __future__ import annotations

import fcntl
import io
import os
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

import fsspec

from stages.failpoints import failpoint
from stages.teachers.segments import Entry, Index, index_bytes, index_from, index_of, pack_record, read_records

_SEGMENT_FILES = ("seg", "idx", "seg.tmp", "idx.tmp")


class LedgerError(Exception):
    """The ledger cannot be written; nothing more may be bought."""


class Segments:
    """The closed segments of a ledger, and on a local disk the logs being written, for reading as a whole."""

    def __init__(self, url: str, storage_options: dict[str, Any] | None = None) -> None:
        self._fs, root = fsspec.core.url_to_fs(url.rstrip("/"), use_listings_cache=False, **(storage_options or {}))
        self._root = root.rstrip("/")
        protocol = self._fs.protocol if isinstance(self._fs.protocol, str) else self._fs.protocol[0]
        self._local = Path(self._root) if protocol == "file" else None

    def names(self) -> list[str]:
        """Segments whose index is there, then logs; sorted by the time at which they were begun."""
        found = [path.rpartition("/")[2] for path in self._list()]
        have = set(found)
        segments = [name for name in found if name.endswith(".seg") and name[: -len(".seg")] + ".idx" in have]
        return sorted(segments) + sorted(name for name in found if name.endswith(".wal"))

    def open(self, name: str) -> IO[bytes]:
        """A segment or log for reading."""
        stream: IO[bytes] = self._fs.open(f"{self._root}/{name}", "rb")
        return stream

    def indexes(self) -> list[Index]:
        """The index of every segment, mapped where the disk is local; logs are scanned."""
        found = []
        for name in self.names():
            index = name[: -len(".seg")] + ".idx"
            if name.endswith(".wal"):
                with self.open(name) as stream:
                    found.append(index_of(read_records(stream), name))
            elif self._local is not None:
                found.append(index_from(self._local / index, name))
            else:
                found.append(index_from(self._fs.cat_file(f"{self._root}/{index}"), name))
        return found

    def size(self) -> int:
        """Bytes of all segments and logs."""
        return sum(int(self._fs.size(f"{self._root}/{name}")) for name in self.names())

    def must_be_idle(self) -> None:
        """Closes what killed processes left. Raises `LedgerError` while a log is being written."""
        if self._local is not None and self._local.exists():
            adopt_logs(self._local)
        busy = [name for name in self.names() if name.endswith(".wal")]
        if busy:
            raise LedgerError(f"{self._root}: {busy[0]} is being written; wait for the run to end")

    def replace_all(self, segments: Iterable[bytes]) -> None:
        """Puts segments of these records in the place of all; the new ones are whole before an old one goes."""
        old = self.names()
        for records in segments:
            self._put(records)
        for name in old:
            self._remove(name)

    def rewrite(self, keep: Callable[[Entry], bool]) -> int:
        """Drops the replies of closed segments that are not to be kept; returns how many.

        A segment's remainder is whole before the segment goes; twice the same reply counts once. Files of segments that
        do not count (killed while they were uploaded or deleted) go as well. Only for a ledger that is idle.
        """
        dropped = 0
        for name in [name for name in self.names() if name.endswith(".seg")]:
            with self.open(name) as stream:
                entries = [entry for _, _, entry in read_records(stream)]
            kept = [entry for entry in entries if keep(entry)]
            if len(kept) < len(entries):
                dropped += len(entries) - len(kept)
                if kept:
                    self._put(b"".join(pack_record(entry) for entry in kept))
                failpoint("ledger.rewritten")
                self._remove(name)
        counting = {stem for name in self.names() for stem in [name.rpartition(".")[0]]}
        for path in self._list():
            stem, _, suffix = path.rpartition("/")[2].partition(".")
            if suffix in _SEGMENT_FILES and stem not in counting:
                self._fs.rm_file(path)
        return dropped

    def _put(self, records: bytes) -> None:
        """A new segment of these records."""
        stem = f"{time.time_ns():020d}-merged-{uuid.uuid4().hex[:8]}"
        index = index_bytes(index_of(read_records(io.BytesIO(records)), f"{stem}.seg"))
        for suffix, data in ((".seg", records), (".idx", index)):
            if self._local is not None:
                write_durably(self._local / f"{stem}{suffix}", data)
            else:
                self._fs.pipe_file(f"{self._root}/{stem}{suffix}", data)

    def _remove(self, name: str) -> None:
        # The index first: a segment without one does not exist.
        for path in (name[: -len(".seg")] + ".idx", name):
            self._fs.rm_file(f"{self._root}/{path}")

    def _list(self) -> list[str]:
        if not self._fs.exists(self._root):
            return []
        paths: list[str] = self._fs.ls(self._root, detail=False)
        return paths


def adopt_logs(folder: Path) -> None:
    """Closes every log in a folder whose writer is gone: the lock that a writer holds dies with it."""
    for log in sorted(folder.glob("*.wal")):
        try:
            handle = os.open(log, os.O_RDWR)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if log.exists():
                seal_log(log)
        except BlockingIOError:
            continue
        finally:
            os.close(handle)


def seal_log(log: Path) -> Path | None:
    """Turns a log into a segment: cuts a torn tail, writes the index, renames. Repeatable at every point.

    A log without a whole record is removed (returns None). The rename comes last: an index beside a log is not read, so
    a kill in between costs nothing.
    """
    segment = log.with_suffix(".seg")
    with log.open("r+b") as stream:
        index = index_of(read_records(stream), segment.name)
        if stream.seek(0, io.SEEK_END) != index.end:
            stream.truncate(index.end)
            os.fsync(stream.fileno())
    if not len(index):
        log.unlink()
        return None
    failpoint("ledger.index.before")
    write_durably(log.with_suffix(".idx"), index_bytes(index))
    failpoint("ledger.seal.before")
    log.replace(segment)
    sync_folder(log.parent)
    failpoint("ledger.seal.after")
    return segment


def sync_folder(folder: Path) -> None:
    """Makes creations and renames in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_durably(path: Path, data: bytes) -> None:
    temporary = path.with_suffix(path.suffix + ".tmp")
    with temporary.open("wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(path)
    sync_folder(path.parent)
