"""The ledger's folder: beginning and closing logs, and reading all segments as a whole.

A log is named `<begun ns>-<host>-<pid>-<random>.wal`. Its writer holds a lock on the file, which dies with the process;
but a lock may count on one host alone while the folder is shared by several (NFS without lock daemon). So logs that
killed processes left are closed by processes of the same host only; those of a host that is gone for good are read like
all others until somebody who knows closes them (`perceive cache close`).
"""

from __future__ import annotations

import fcntl
import io
import logging
import os
import re
import socket
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

import fsspec

from stages.base import CannotGoOn
from stages.failpoints import failpoint
from stages.teachers.segments import (
    Entry,
    Index,
    index_bytes,
    index_from,
    index_of,
    merged,
    pack_record,
    read_records,
)
from stages.teachers.totals import Counting, Totals, totals_of

_SEGMENT_FILES = ("seg", "idx", "sum")

_LOG = logging.getLogger(__name__)


class LedgerError(CannotGoOn):
    """The ledger cannot be written; nothing more may be bought."""


class Segments:
    """The closed segments of a ledger, and on a local disk the logs being written, for reading as a whole."""

    def __init__(self, url: str, storage_options: dict[str, Any] | None = None) -> None:
        self._fs, root = fsspec.core.url_to_fs(url.rstrip("/"), use_listings_cache=False, **(storage_options or {}))
        self._root = root.rstrip("/")
        protocol = self._fs.protocol if isinstance(self._fs.protocol, str) else self._fs.protocol[0]
        self._local = Path(self._root) if protocol == "file" else None

    def names(self) -> list[str]:
        """Segments whose index is there, then logs; sorted by the time at which they were begun.

        What is listed may have moved on when it is opened: a log is closed by its writer at any time.
        """
        found = [path.rpartition("/")[2] for path in self._list()]
        have = set(found)
        segments = [name for name in found if name.endswith(".seg") and _beside(name, ".idx") in have]
        # A listing that is taken while a log is renamed may hold both names.
        logs = [name for name in found if name.endswith(".wal") and _beside(name, ".seg") not in have]
        failpoint("ledger.listed")
        return sorted(segments) + sorted(logs)

    def open(self, name: str) -> IO[bytes]:
        """A segment or log for reading; a log that was closed meanwhile is read as the segment that it became."""
        try:
            return self._stream(name)
        except FileNotFoundError:
            if not name.endswith(".wal"):
                raise
        try:
            return self._stream(_beside(name, ".seg"))
        except FileNotFoundError:
            return io.BytesIO()  # closed without a record: nothing is left of it

    def indexes(self) -> list[Index]:
        """The index of every segment, mapped where the disk is local; logs are scanned."""
        return [self._index(name) for name in self.names()]

    def totals(self) -> list[Totals]:
        """The totals of every segment and log; logs, and segments whose totals were never kept, are read for it."""
        names, have = self.names(), {path.rpartition("/")[2] for path in self._list()}
        files = {name: _beside(name, ".sum") for name in names if name.endswith(".seg")}
        paths = {name: f"{self._root}/{file}" for name, file in files.items() if file in have}
        kept = self._fs.cat(list(paths.values())) if paths else {}
        return [
            Totals.model_validate_json(kept[paths[name]]) if name in paths else self._counted(name) for name in names
        ]

    def size(self) -> int:
        """Bytes of all segments and logs."""
        total = 0
        for name in self.names():
            with self.open(name) as stream:
                total += stream.seek(0, io.SEEK_END)
        return total

    def close_logs_of(self, host: str | None) -> list[str]:
        """Closes the logs that were begun on a host that is gone for good, None for all hosts; returns their names.

        Only where nobody writes there any more: what a living writer adds to a log that was closed is never found.
        """
        left = [log for log in self._logs() if host is None or host_of(log.name) == log_host(host)]
        return [log.name for log in left if _seal_if_free(log)]

    def must_be_idle(self) -> None:
        """Closes what killed processes left. Raises `LedgerError` while a log is being written."""
        if self._local is not None and self._local.exists():
            adopt_logs(self._local)
        busy = [name for name in self.names() if name.endswith(".wal")]
        if not busy:
            return
        host = host_of(busy[0])
        if host in (None, log_host()):
            raise LedgerError(f"{self._root}: {busy[0]} is being written; wait for the run to end")
        raise LedgerError(
            f"{self._root}: {busy[0]} was begun on the host {host}; wait for the run to end there, let any process of "
            f"that host open the ledger, or, if it is gone for good, `perceive cache close CONFIG --host {host}`"
        )

    def replace(self, old: Iterable[str], segments: Iterable[bytes]) -> None:
        """Puts segments of these records in the place of old ones; the new ones are whole before an old one goes."""
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
            if suffix.partition(".")[0] in _SEGMENT_FILES and stem not in counting:
                self._fs.rm_file(path)
        return dropped

    def _stream(self, name: str) -> IO[bytes]:
        stream: IO[bytes] = self._fs.open(f"{self._root}/{name}", "rb")
        return stream

    def _logs(self) -> list[Path]:
        return sorted(self._local.glob("*.wal")) if self._local is not None else []

    def _index(self, name: str) -> Index:
        if not name.endswith(".wal"):
            return self._index_file(name)
        try:
            with self._stream(name) as stream:
                return index_of(read_records(stream), name)
        except FileNotFoundError:
            pass
        try:
            return self._index_file(_beside(name, ".seg"))
        except FileNotFoundError:
            return merged([])  # closed without a record

    def _index_file(self, segment: str) -> Index:
        index = _beside(segment, ".idx")
        if self._local is not None:
            return index_from(self._local / index, segment)
        return index_from(self._fs.cat_file(f"{self._root}/{index}"), segment)

    def _counted(self, name: str) -> Totals:
        """Totals by reading; those of a segment are kept beside it."""
        with self.open(name) as stream:
            totals = totals_of(read_records(stream))
        if name.endswith(".seg"):
            try:
                self._write(_beside(name, ".sum"), totals.model_dump_json().encode())
            except OSError as error:  # a ledger that may only be read is counted every time
                _LOG.info("%s: the totals of %s are not kept: %s", self._root, name, error)
        return totals

    def _put(self, records: bytes) -> None:
        """A new segment of these records."""
        stem = f"{time.time_ns():020d}-merged-{uuid.uuid4().hex[:8]}"
        counting = Counting()
        index = index_bytes(index_of(counting.over(read_records(io.BytesIO(records))), f"{stem}.seg"))
        totals = counting.totals().model_dump_json().encode()
        for suffix, data in ((".seg", records), (".sum", totals), (".idx", index)):
            self._write(f"{stem}{suffix}", data)

    def _write(self, name: str, data: bytes) -> None:
        if self._local is not None:
            write_durably(self._local / name, data)
        else:
            self._fs.pipe_file(f"{self._root}/{name}", data)

    def _remove(self, name: str) -> None:
        # The index first: a segment without one does not exist.
        for path in (_beside(name, ".idx"), name, _beside(name, ".sum")):
            if path.endswith(".sum") and not self._fs.exists(f"{self._root}/{path}"):
                continue
            self._fs.rm_file(f"{self._root}/{path}")

    def _list(self) -> list[str]:
        if not self._fs.exists(self._root):
            return []
        paths: list[str] = self._fs.ls(self._root, detail=False)
        return paths


def log_host(host: str | None = None) -> str:
    """A host (this one by default) as it stands in the names of logs: without what would part the name."""
    return re.sub(r"[^A-Za-z0-9_]", "_", host or socket.gethostname())


def host_of(log: str) -> str | None:
    """The host on which a log was begun, from its name; None for a name without one (earlier versions)."""
    parts = log.partition(".")[0].split("-")
    return parts[1] if len(parts) == 4 else None


def writer_of(name: str) -> str:
    """Which process wrote a log or segment, from its name: the logs of one process have it in common."""
    return "-".join(name.partition(".")[0].split("-")[1:-1])


def begin_log(folder: Path) -> tuple[Path, int]:
    """A new log and a descriptor for appending, which holds the writer's lock.

    Between its creation and the lock somebody may take the log for one that a killed process left, and remove it: a
    writer must not go on with a file that has no name.
    """
    while True:
        log = folder / f"{time.time_ns():020d}-{log_host()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.wal"
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        failpoint("ledger.log.created")
        fcntl.flock(handle, fcntl.LOCK_EX)
        if _is_at(handle, log):
            sync_folder(folder)
            return log, handle
        os.close(handle)


def adopt_logs(folder: Path) -> None:
    """Closes the logs of this host whose writer is gone: the lock that a writer holds dies with it."""
    for log in sorted(folder.glob("*.wal")):
        if host_of(log.name) in (None, log_host()):
            _seal_if_free(log)


def _seal_if_free(log: Path) -> bool:
    """Closes a log that nobody has locked; whether it did."""
    try:
        handle = os.open(log, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mine = _is_at(handle, log)  # else it was closed between the two calls
        if mine:
            seal_log(log)
        return mine
    except BlockingIOError:
        return False
    finally:
        os.close(handle)


def seal_log(log: Path) -> Path | None:
    """Turns a log into a segment: cuts a torn tail, writes totals and index, renames. Repeatable at every point.

    A log without a whole record is removed (returns None). The rename comes last: what lies beside a log is not read,
    so a kill in between costs nothing.
    """
    segment, counting = log.with_suffix(".seg"), Counting()
    with log.open("r+b") as stream:
        index = index_of(counting.over(read_records(stream)), segment.name)
        if stream.seek(0, io.SEEK_END) != index.end:
            stream.truncate(index.end)
            os.fsync(stream.fileno())
    if not len(index):
        log.unlink()
        return None
    failpoint("ledger.index.before")
    write_durably(log.with_suffix(".sum"), counting.totals().model_dump_json().encode())
    write_durably(log.with_suffix(".idx"), index_bytes(index))
    failpoint("ledger.seal.before")
    log.replace(segment)
    sync_folder(log.parent)
    failpoint("ledger.seal.after")
    return segment


def _is_at(handle: int, path: Path) -> bool:
    """Whether a path still names the file that a descriptor is open on."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _beside(name: str, suffix: str) -> str:
    return name.rpartition(".")[0] + suffix


def sync_folder(folder: Path) -> None:
    """Makes creations and renames in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_durably(path: Path, data: bytes) -> None:
    """Puts a file in place whole. Two that write the same file at a time do not get into each other's way."""
    temporary = path.with_suffix(f"{path.suffix}.{uuid.uuid4().hex[:8]}.tmp")
    with temporary.open("wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(path)
    sync_folder(path.parent)
