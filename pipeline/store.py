"""One small class over fsspec: durable writes, atomic creation, listings. All that a run keeps goes through it."""

from __future__ import annotations

import errno
import hashlib
import os
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any, cast

import fsspec

from stages.failpoints import failpoint

_TEMPORARY = ".tmp-"
_THREADS = 16
_CHUNK = 1 << 20


class StoreError(Exception):
    """The storage cannot do what a run needs; the message says what to use instead."""


@dataclass(frozen=True)
class FileInfo:
    """A file: its path below the store's root, its size in bytes, its modification time in Unix seconds."""

    path: str
    size: int
    mtime: float

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


class Store:
    """Files below one URL: a local path, or anything fsspec opens (`s3://`, `gs://`, `memory://`).

    Paths are relative, with forward slashes. Picklable, so that workers write parts with it. On a local disk a write
    is durable when it returns (file, rename and folder are synced); on an object store a PUT is.
    """

    def __init__(self, url: str, storage_options: dict[str, Any] | None = None) -> None:
        self.storage_options = dict(storage_options or {})
        # A cached listing would hide what another process has just committed.
        self.fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False, **self.storage_options)
        self.root: str = root.rstrip("/")
        self.protocol: str = self.fs.protocol if isinstance(self.fs.protocol, str) else self.fs.protocol[0]
        self.local = Path(self.root) if self.protocol == "file" else None
        self.url = self.root if self.local else url.rstrip("/")  # absolute: a worker has another working directory

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.url, self.storage_options)

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    def full(self, path: str) -> str:
        """The path as fsspec and pyarrow know it, without protocol."""
        return f"{self.root}/{path}"

    def address(self, path: str) -> str:
        """The path for people and for polars: local ones plain, others as a URL."""
        return self.full(path) if self.local else cast("str", self.fs.unstrip_protocol(self.full(path)))

    # Reading

    def exists(self, path: str) -> bool:
        if self.local:
            return (self.local / path).exists()
        return bool(self.fs.exists(self.full(path)))

    def read(self, path: str) -> bytes:
        """The bytes of a file. Raises `FileNotFoundError`."""
        return cast("bytes", self.fs.cat_file(self.full(path)))

    def read_many(self, paths: Sequence[str]) -> list[bytes]:
        """The bytes of several small files, read side by side. Raises `FileNotFoundError` if one is gone."""
        return cast("list[bytes]", self._each(self.read, paths))

    def open(self, path: str) -> IO[bytes]:
        """A file for reading."""
        return cast("IO[bytes]", self.fs.open(self.full(path), "rb"))

    def sha256(self, path: str) -> str:
        """The hexadecimal SHA-256 of a file, read in pieces."""
        state = hashlib.sha256()
        with self.open(path) as stream:
            while piece := stream.read(_CHUNK):
                state.update(piece)
        return state.hexdigest()

    def files(self, folder: str) -> list[FileInfo]:
        """Every file below a folder, sorted by path; none if there is no such folder. Unfinished writes are hidden."""
        return [info for info in self._all_files(folder) if not info.name.startswith(_TEMPORARY)]

    def unfinished(self, folder: str) -> list[FileInfo]:
        """Temporary files that a write has left, or is about to rename (local disks only)."""
        return [info for info in self._all_files(folder) if info.name.startswith(_TEMPORARY)]

    def _all_files(self, folder: str) -> list[FileInfo]:
        found = self._local_files(folder) if self.local else self._remote_files(folder)
        return sorted(found, key=lambda info: info.path)

    def _local_files(self, folder: str) -> Iterable[FileInfo]:
        assert self.local is not None
        for directory, _, names in os.walk(self.local / folder):
            for name in names:
                file = Path(directory, name)
                try:
                    stat = file.stat()
                except FileNotFoundError:
                    continue  # deleted since the folder was read
                yield FileInfo(file.relative_to(self.local).as_posix(), stat.st_size, stat.st_mtime)

    def _remote_files(self, folder: str) -> Iterable[FileInfo]:
        self.fs.invalidate_cache()
        for path, info in self.fs.find(self.full(folder), detail=True).items():
            relative = path.removeprefix(self.root).lstrip("/")
            yield FileInfo(relative, int(info["size"]), _modified(info))

    # Writing

    def write_durable(self, path: str, data: bytes) -> None:
        """Writes or replaces a file, at once for readers: they see the old bytes or the new ones."""
        failpoint("write.before")
        if self.local:
            temporary = self._temporary(self.local / path, data)
            failpoint("write.synced")
            temporary.replace(self.local / path)
            failpoint("write.renamed")
            _sync_folder((self.local / path).parent)
        else:
            self.fs.pipe_file(self.full(path), data)
        failpoint("write.after")

    def create_if_absent(self, path: str, data: bytes) -> bool:
        """Creates a file unless it exists; of several callers exactly one is told True.

        A file that already holds exactly these bytes counts as created by this caller (an answer lost on the network
        makes a client ask again), so callers put something of their own into `data`. Raises `StoreError` where the
        storage has no atomic creation.
        """
        failpoint("create.before")
        created = self._link(path, data) if self.local else self._put_if_absent(path, data)
        failpoint("create.after")
        return created or self._holds(path, data)

    def delete(self, paths: Iterable[str]) -> None:
        """Deletes files; those already gone are fine."""
        failpoint("delete.before")
        self._each(self._delete_one, list(paths))
        failpoint("delete.after")

    def clock(self) -> float:
        """Now by the storage's own clock, in Unix seconds; file ages are measured against it, never this machine's.

        Also proves that the storage creates atomically. Raises `StoreError` if it does not.
        """
        probe = f"lease/probe-{uuid.uuid4().hex}"
        first = self.create_if_absent(probe, b"first")
        try:
            if not first or self.create_if_absent(probe, b"second"):
                raise StoreError(
                    f"{self.url} does not create files atomically (no conditional PUT); two drivers could not be kept"
                    " apart on it: use a local disk, Amazon S3, or a server that honours If-None-Match"
                )
            return self._mtime(probe)
        finally:
            self.delete([probe])

    def _holds(self, path: str, data: bytes) -> bool:
        try:
            return self.read(path) == data
        except FileNotFoundError:
            return False

    def _temporary(self, target: Path, data: bytes) -> Path:
        _make_folder(target.parent)
        temporary = target.parent / f"{_TEMPORARY}{uuid.uuid4().hex}-{target.name}"
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        return temporary

    def _link(self, path: str, data: bytes) -> bool:
        assert self.local is not None
        target = self.local / path
        temporary = self._temporary(target, data)
        failpoint("create.synced")
        try:
            os.link(temporary, target)
            failpoint("create.linked")
            _sync_folder(target.parent)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
                raise StoreError(
                    f"the file system of {target.parent} has no hard links, which keep two drivers apart:"
                    " use a local disk, or the bucket's own URL (s3://...) instead of a mount"
                ) from error
            raise
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def _put_if_absent(self, path: str, data: bytes) -> bool:
        """A conditional PUT; a conflict with another PUT in flight (HTTP 409) is asked again."""
        for pause in (0.1, 0.2, 0.4, 0.8, None):
            try:
                self.fs.pipe_file(self.full(path), data, mode="create")
                return True
            except FileExistsError:
                return False
            except OSError as error:
                if "PreconditionFailed" in str(error) or "pre-conditions" in str(error):
                    return False
                if "ConditionalRequestConflict" not in str(error) or pause is None:
                    raise
                time.sleep(pause)
        raise AssertionError("unreachable")

    def _delete_one(self, path: str) -> None:
        try:
            if self.local:
                (self.local / path).unlink()
            else:
                self.fs.rm_file(self.full(path))
        except FileNotFoundError:
            pass

    def _mtime(self, path: str) -> float:
        if self.local:
            return (self.local / path).stat().st_mtime
        return _modified(self.fs.info(self.full(path)))

    def _each(self, function: Callable[[str], Any], paths: Sequence[str]) -> Any:
        if self.local or len(paths) < 2:
            return [function(path) for path in paths]
        with ThreadPoolExecutor(_THREADS) as pool:
            return list(pool.map(function, paths))


def _modified(info: dict[str, Any]) -> float:
    """The modification time in a file system's own listing entry, whatever it is called there."""
    for name in ("LastModified", "last_modified", "updated", "mtime", "modified", "created"):
        value = info.get(name)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, str):
            return datetime.fromisoformat(value).timestamp()
        if isinstance(value, int | float):
            return float(value)
    raise StoreError(f"the listing of {info.get('name')} has no modification time, which a lease needs")


def _make_folder(folder: Path) -> None:
    """Makes a folder and its parents durable."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for each in reversed(missing):
        each.mkdir(exist_ok=True)
        _sync_folder(each.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
