"""Tar files whose bytes depend on their members alone, placed durably."""

from __future__ import annotations

import hashlib
import os
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

import fsspec

from stages.failpoints import failpoint
from stages.pack.names import member_name

_UNFINISHED = ".part"
_BLOCK = 512
_RECORD = 20 * _BLOCK
_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Written:
    """A file in place: its SHA-256 (hexadecimal) and its size in bytes."""

    sha256: str
    num_bytes: int


class TarWriter:
    """Writes USTAR members with fixed owner, mode and time; a thread of its own writes and hashes them by the block.

    To be used in a `with` block that ends before the stream is closed; what the thread raises is raised by `add` or
    `finish`.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._sha256 = hashlib.sha256()
        self._parts: list[bytes] = []
        self._gathered = self._size = 0
        self._writing = ThreadPoolExecutor(1, "tar")
        self._written: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writing.shutdown()

    def add(self, key: bytes, extension: str, data: bytes) -> None:
        """One member, `<key in hexadecimal>.<extension>`. Raises `ValueError` for an extension that is no plain one."""
        self._parts += (_header(member_name(key, extension), len(data)), data, bytes(-len(data) % _BLOCK))
        self._gathered += _BLOCK + len(data) + -len(data) % _BLOCK
        if self._gathered >= _AT_ONCE:
            self._hand_over()

    def finish(self) -> Written:
        """Ends the archive; the stream stays open."""
        end = 2 * _BLOCK
        end += -(self._size + self._gathered + end) % _RECORD
        self._parts.append(bytes(end))
        self._gathered += end
        self._hand_over()
        self._wait()
        return Written(self._sha256.hexdigest(), self._size)

    def _hand_over(self) -> None:
        block = b"".join(self._parts)
        self._size += len(block)
        self._parts, self._gathered = [], 0
        self._wait()
        self._written = self._writing.submit(self._place, block)

    def _wait(self) -> None:
        if self._written is not None:
            self._written.result()

    def _place(self, block: bytes) -> None:
        self._stream.write(block)
        self._sha256.update(block)


def _header(name: str, size: int) -> bytes:
    """A USTAR header of a regular file; only name and size differ from member to member."""
    if size >= 8**11:
        raise ValueError(f"{name} has {size} bytes, a tar member holds at most 8 GiB")
    written, length = name.encode("ascii"), b"%011o" % size
    checksum = b"%06o\0 " % (_SUM + sum(written) + sum(length))
    return b"".join((written, _TEMPLATE[len(written) : 124], length, _TEMPLATE[135:148], checksum, _TEMPLATE[156:]))


def _template() -> bytes:
    info = tarfile.TarInfo("")
    info.mode, info.mtime = 0o644, 0
    head = bytearray(info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict"))
    head[124:135] = bytes(11)
    head[148:156] = b" " * 8  # the checksum counts its own field as blanks
    return bytes(head)


_TEMPLATE = _template()
_SUM = sum(_TEMPLATE)


def write_tar(url: str, members: Iterable[tuple[bytes, str, bytes]], options: dict[str, Any] | None = None) -> Written:
    """Writes (key, extension, data) members to a local path or fsspec URL; the file appears whole or not at all."""
    with placed(url, options) as stream, TarWriter(stream) as writer:
        for key, extension, data in members:
            failpoint("pack.member")
            writer.add(key, extension, data)
        return writer.finish()


def write_bytes(url: str, data: bytes, options: dict[str, Any] | None = None) -> Written:
    """Writes a small file whole or not at all."""
    with placed(url, options) as stream:
        stream.write(data)
    return Written(hashlib.sha256(data).hexdigest(), len(data))


@contextmanager
def placed(url: str, options: dict[str, Any] | None = None) -> Iterator[IO[bytes]]:
    """A stream whose content is at `url` once the block ends without an error.

    Local: temporary name beside it, fsync, rename, fsync of the folder. Object stores: a local temporary file, put
    whole at the end, since closing a half-written upload would publish it.
    """
    filesystem, path = fsspec.core.url_to_fs(url, **(options or {}))
    if "file" in filesystem.protocol:
        with _placed_locally(Path(path)) as stream:
            yield stream
        return
    with tempfile.NamedTemporaryFile(prefix="perceive-") as stream:
        yield stream
        stream.flush()
        filesystem.makedirs(filesystem._parent(path), exist_ok=True)
        filesystem.put_file(stream.name, path)


@contextmanager
def _placed_locally(path: Path) -> Iterator[IO[bytes]]:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".", suffix=_UNFINISHED, dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb", buffering=1 << 20) as stream:
            failpoint("pack.opened")
            yield stream
            failpoint("pack.written")
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        failpoint("pack.synced")
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    failpoint("pack.placed")
    sync_folder(path.parent)


def sweep_unfinished(url: str, options: dict[str, Any] | None = None) -> int:
    """Deletes what killed writers left below a local folder; returns how many files. Nobody may be writing there."""
    filesystem, path = fsspec.core.url_to_fs(url, **(options or {}))
    if "file" not in filesystem.protocol:
        return 0
    left = list(Path(path).rglob(f".*{_UNFINISHED}"))
    for file in left:
        file.unlink(missing_ok=True)
    return len(left)


def link_or_copy(source: str, target: str, options: dict[str, Any] | None = None) -> bool:
    """Puts an existing file at a second place without rewriting it (hard link, or copy inside the store).

    Returns False where the source is gone.
    """
    filesystem, path = fsspec.core.url_to_fs(source, **(options or {}))
    _, wanted = fsspec.core.url_to_fs(target, **(options or {}))
    if not filesystem.exists(path):
        return False
    if "file" not in filesystem.protocol:
        filesystem.copy(path, wanted)
        return True
    destination = Path(wanted)
    destination.parent.mkdir(parents=True, exist_ok=True)
    temporary = destination.with_name(f".{destination.name}.{os.getpid()}{_UNFINISHED}")
    temporary.unlink(missing_ok=True)
    os.link(path, temporary)
    failpoint("pack.linked")
    temporary.replace(destination)
    temporary.unlink(missing_ok=True)  # rename of two names of one file leaves both
    sync_folder(destination.parent)
    return True


def sync_folder(folder: Path) -> None:
    """Makes renames in a local folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
