"""The ledger: every billed reply, kept before its row is, so that a usable answer is never bought twice.

Each worker appends to a log of its own; a commit thread writes and fsyncs together what arrives within 50 ms or 64
replies, and only then is a reply handed on. A closed log is a segment with a sorted index beside it. On an object store
segments are uploaded (1,000 replies or 30 s) from a spool folder of this machine; logs that a killed process left are
closed by whoever opens the ledger next on the same host. Only answers are reused; other outcomes are remembered as
attempts already made, until they are forgiven (`retry-failed`).
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import OrderedDict
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import fsspec

from schemas.keys import digest_value
from stages.failpoints import failpoint
from stages.teachers.logs import LedgerError, Segments, adopt_logs, begin_log, seal_log
from stages.teachers.segments import Entry, Index, Place, index_from, merged, pack_record, parse_record

GROUP_REPLIES = 64
GROUP_SECONDS = 0.05
UPLOAD_REPLIES = 1000
UPLOAD_SECONDS = 30.0
LOCAL_SEGMENT_REPLIES = 100_000
_SMALL_INDEX = 65_536
_OPEN_FILES = 64


class Ledger:
    """One worker's hand on the ledger at `url` (a local folder or any fsspec URL). Thread-safe once open.

    `forgive_before` (Unix seconds) forgets attempts without an answer that are older.
    """

    def __init__(self, url: str, storage_options: dict[str, Any] | None = None, *, forgive_before: float = 0.0) -> None:
        self.url = url.rstrip("/")
        self.forgive_before = forgive_before
        self._storage_options = storage_options
        self._fs, root = fsspec.core.url_to_fs(self.url, use_listings_cache=False, **(storage_options or {}))
        self._root = root.rstrip("/")
        protocol = self._fs.protocol if isinstance(self._fs.protocol, str) else self._fs.protocol[0]
        self._local = Path(self._root) if protocol == "file" else None
        self._folder = self._local or spool_folder(self.url)
        self._indexes: list[Index] = []
        self._files: OrderedDict[str, int] = OrderedDict()
        self._lock = threading.RLock()
        self._writer: _Writer | None = None
        self._closing: dict[_Writer, threading.Thread] = {}

    def open(self) -> None:
        """Closes logs left by killed processes and maps the indexes of all segments."""
        self._folder.mkdir(parents=True, exist_ok=True)
        adopt_logs(self._folder)
        if self._local is None:
            self._upload_all()
        self._indexes = self._read_indexes()

    def lookup(self, request: bytes) -> Entry | None:
        """The answer to a request, else its latest attempt that is not forgiven, else None."""
        with self._lock:
            try:
                return self._found(request)
            except FileNotFoundError:  # the ledger was cleared meanwhile: what it keeps is in other segments now
                self._indexes = self._read_indexes()
                return self._found(request)

    def ready(self) -> None:
        """Opens the log for replies that are to come. Raises `LedgerError` where they could not be kept."""
        with self._lock:
            if (broken := self._log().broken) is not None:
                raise broken

    def append(self, entry: Entry) -> Future[None]:
        """Queues a reply; the future is done when the reply is on disk, and carries `LedgerError` if it is not."""
        with self._lock:
            return self._log().put(entry)

    def close(self) -> None:
        """Commits what is queued, closes the log and, for a remote ledger, uploads it."""
        with self._lock:
            if self._writer is not None:
                self._rotate()
            closing = list(self._closing.values())
        for thread in closing:
            thread.join()
        with self._lock:
            unfinished = [writer.path.name for writer in self._closing]
            for handle in self._files.values():
                os.close(handle)
            self._files.clear()
        if unfinished:
            raise LedgerError(f"{self._folder}: {', '.join(unfinished)} could not be closed; see the log")

    def _found(self, request: bytes) -> Entry | None:
        places = [found for index in self._indexes for found in index.find(request)]
        for writer in self._writers():
            places += writer.find(request)
        answers = [found for found in places if found[1].outcome == "answer"]
        others = [found for found in places if found[1].created_s >= self.forgive_before]
        if not answers and not others:
            return None
        name, place = max(answers or others, key=lambda found: found[1].created_s)
        return parse_record(self._read(name, place))

    def _writers(self) -> list[_Writer]:
        return [*self._closing, *([self._writer] if self._writer else [])]

    def _log(self) -> _Writer:
        """The log for the next reply. Raises `LedgerError` where none can be opened."""
        if self._writer is not None and self._writer.full:
            self._rotate()
        if self._writer is None:
            limits = (LOCAL_SEGMENT_REPLIES, None) if self._local else (UPLOAD_REPLIES, UPLOAD_SECONDS)
            try:
                self._writer = _Writer(self._folder, *limits)
            except OSError as error:
                raise LedgerError(f"{self._folder}: no log can be opened: {error}") from error
        return self._writer

    def _rotate(self) -> None:
        """Hands the log to a thread that closes it; until that is done its replies are found in the writer."""
        assert self._writer is not None
        writer, self._writer = self._writer, None
        thread = threading.Thread(target=self._retire, args=(writer,), name="ledger-close", daemon=True)
        self._closing[writer] = thread
        thread.start()

    def _retire(self, writer: _Writer) -> None:
        segment = writer.seal()
        added = []
        if segment is not None:
            if self._local is None:
                self._upload(segment)
            added = [self._index_at(segment.name)]
        with self._lock:
            small = [*added, *(index for index in self._indexes if len(index) < _SMALL_INDEX)]
            self._indexes = [index for index in self._indexes if len(index) >= _SMALL_INDEX] + [merged(small)]
            del self._closing[writer]

    def _index_at(self, segment: str) -> Index:
        index = segment.removesuffix(".seg") + ".idx"
        if self._local is not None:
            return index_from(self._local / index, segment)
        data: bytes = self._fs.cat_file(f"{self._root}/{index}")
        return index_from(data, segment)

    def _read_indexes(self) -> list[Index]:
        """Large indexes stay mapped; small ones and the logs of live writers are merged in memory."""
        found = Segments(self.url, self._storage_options).indexes()
        large = [index for index in found if len(index) >= _SMALL_INDEX]
        return [*large, merged([index for index in found if len(index) < _SMALL_INDEX])]

    def _read(self, name: str, place: Place) -> bytes:
        """The bytes of a record; a log may have become a segment since it was indexed, or one that was uploaded."""
        try:
            return os.pread(self._handle(name), place.length, place.offset)
        except FileNotFoundError:
            if self._local is not None:
                raise
        segment = f"{self._root}/{Path(name).with_suffix('.seg').name}"
        start, end = int(place.offset), int(place.offset + place.length)
        data: bytes = self._fs.cat_file(segment, start=start, end=end)
        return data

    def _handle(self, name: str) -> int:
        """A descriptor of a log or segment of this machine's folder. Raises `FileNotFoundError`."""
        if name in self._files:
            self._files.move_to_end(name)
            return self._files[name]
        path = self._folder / name
        try:
            self._files[name] = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            self._files[name] = os.open(path.with_suffix(".seg"), os.O_RDONLY)
        if len(self._files) > _OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])
        return self._files[name]

    def _upload_all(self) -> None:
        for segment in sorted(self._folder.glob("*.seg")):
            self._upload(segment)

    def _upload(self, segment: Path) -> None:
        """Segment first, index last: a segment without an index does not exist for readers.

        Workers of one machine share the spool: a file that is gone was uploaded by another of them.
        """
        try:
            found = [suffix for suffix in (".seg", ".sum", ".idx") if segment.with_suffix(suffix).exists()]
            parts = [(suffix, segment.with_suffix(suffix).read_bytes()) for suffix in found]
        except FileNotFoundError:
            return
        for suffix, data in parts:
            failpoint(f"ledger.upload{suffix}.before")
            self._fs.pipe_file(f"{self._root}/{segment.stem}{suffix}", data)
            failpoint(f"ledger.upload{suffix}.after")
        for suffix, _ in parts:
            segment.with_suffix(suffix).unlink(missing_ok=True)


class _Writer:
    """One log and the thread that commits groups of replies to it. Holds an exclusive lock on the file while alive."""

    def __init__(self, folder: Path, max_replies: int, max_seconds: float | None) -> None:
        self.path, self._file = begin_log(folder)
        self._max_replies, self._max_seconds = max_replies, max_seconds
        self._born, self._queued, self._offset = time.monotonic(), 0, 0
        self._places: dict[bytes, list[Place]] = {}
        self._queue: queue.SimpleQueue[tuple[Entry, Future[None]] | None] = queue.SimpleQueue()
        self.broken: LedgerError | None = None
        self._thread = threading.Thread(target=self._run, name="ledger-commit", daemon=True)
        self._thread.start()

    @property
    def full(self) -> bool:
        """Whether the log has as many replies, or is as old, as one segment may be."""
        old = self._max_seconds is not None and time.monotonic() - self._born >= self._max_seconds
        return self._queued >= self._max_replies or (old and self._queued > 0)

    def put(self, entry: Entry) -> Future[None]:
        done: Future[None] = Future()
        self._queued += 1
        self._queue.put((entry, done))
        return done

    def find(self, request: bytes) -> list[tuple[str, Place]]:
        return [(self.path.name, place) for place in self._places.get(request, ())]

    def seal(self) -> Path | None:
        """Commits the rest and turns the log into a segment; returns its path, or None for an empty log."""
        self._queue.put(None)
        self._thread.join()
        segment = seal_log(self.path)
        os.close(self._file)
        return segment

    def _run(self) -> None:
        going = True
        while going:
            group, going = self._collect()
            if not group:
                continue
            try:
                self._commit(group)
            except OSError as error:
                self.broken = LedgerError(f"{self.path}: {error}")
            for _, done in group:
                if self.broken is None:
                    done.set_result(None)
                else:
                    done.set_exception(self.broken)

    def _collect(self) -> tuple[list[tuple[Entry, Future[None]]], bool]:
        """The next group, and whether to go on after it."""
        first = self._queue.get()
        if first is None:
            return [], False
        group, until = [first], time.monotonic() + GROUP_SECONDS
        while len(group) < GROUP_REPLIES:
            try:
                item = self._queue.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if item is None:
                return group, False
            group.append(item)
        return group, True

    def _commit(self, group: list[tuple[Entry, Future[None]]]) -> None:
        if self.broken is not None:
            return
        records = [pack_record(entry) for entry, _ in group]
        failpoint("ledger.append.before")
        _write_all(self._file, b"".join(records))
        failpoint("ledger.append.after")
        os.fsync(self._file)
        failpoint("ledger.fsync.after")
        for record, (entry, _) in zip(records, group, strict=True):
            place = Place(self._offset, len(record), entry.outcome, entry.created_s)
            self._places.setdefault(entry.request, []).append(place)
            self._offset += len(record)


def spool_folder(url: str) -> Path:
    """Where this machine keeps the open logs of a remote ledger until they are uploaded."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "perceive" / "ledger" / digest_value(url).hex()


def _write_all(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]
