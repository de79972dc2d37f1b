"""Media roots: what files lie under a source's folders and archives, and how names in annotations resolve to them.

A name resolves only to a file that was listed, so that no annotation reaches outside its roots.
"""

from __future__ import annotations

import os
import posixpath
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
from fsspec.core import url_to_fs

from schemas.keys import digest_value

_TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_MAX_TAIL = 6


class Listed(NamedTuple):
    """A file under a root: its URI, its size in bytes, and its mtime, CRC or etag."""

    uri: str
    num_bytes: int | None
    etag: str


class Folder(NamedTuple):
    """A folder of frames: its URI (ends with `/`), its path within the root, its file names in order."""

    uri: str
    path: str
    names: tuple[str, ...]
    num_bytes: int
    etag: str


class MediaRoots:
    """The listed files of one or more roots; the first root that holds a name wins."""

    def __init__(self, roots: tuple[str, ...], storage_options: Mapping[str, Any] | None = None) -> None:
        self._roots = roots
        self._options = dict(storage_options or {})
        self._files: dict[str, Listed] | None = None
        self._by_name: dict[str, list[str]] | None = None
        self._folders: dict[str, list[str]] | None = None

    @property
    def files(self) -> dict[str, Listed]:
        """Path within the root -> file, listed on first use. Raises `FileNotFoundError` for an absent root."""
        if self._files is None:
            self._files = {}
            for root in self._roots:
                for path, listed in list_files(root, self._options):
                    self._files.setdefault(path, listed)
        return self._files

    def find(self, *names: str) -> Listed | None:
        """The first of the names that is a file: as a path within the root, or as the tail of exactly one path."""
        files = self.files
        for name in names:
            if name in files:  # a listed path as it stands needs no cleaning
                return files[name]
            path = clean(name)
            if path is not None and path in files:
                return files[path]
        for name in names:
            path = clean(name)
            found = self._tail(path) if path is not None else None
            if found is not None:
                return found
        return None

    def _tail(self, path: str) -> Listed | None:
        if self._by_name is None:
            self._by_name = {}
            for known in self.files:
                self._by_name.setdefault(posixpath.basename(known), []).append(known)
        ending = "/" + path
        matches = [known for known in self._by_name.get(posixpath.basename(path), ()) if known.endswith(ending)]
        return self.files[matches[0]] if len(matches) == 1 else None

    def folder(self, name: str) -> Folder | None:
        """The folder of frames of this path, or with this path as the tail of exactly one."""
        if self._folders is None:
            self._folders = {}
            for known in self.files:
                self._folders.setdefault(posixpath.dirname(known), []).append(posixpath.basename(known))
        path = clean(name)
        if path is not None and path not in self._folders:
            matches = [known for known in self._folders if known.endswith("/" + path)]
            path = matches[0] if len(matches) == 1 else None
        if path is None:
            return None
        names = sorted(self._folders[path])
        files = [self.files[posixpath.join(path, item)] for item in names]
        etag = digest_value([[item.uri, item.num_bytes, item.etag] for item in files]).hex()
        uri = files[0].uri.rpartition("/")[0] + "/"
        return Folder(uri, path, tuple(names), sum(item.num_bytes or 0 for item in files), etag)

    def missing_uri(self, name: str) -> str:
        """A URI for a file that is not there, for messages and keys; it never leaves the root."""
        root = self._roots[0] if self._roots else ""
        return join(root, clean(name) or "unnamed")

    def state(self) -> bytes:
        """A digest of all listed files, their sizes and mtimes or etags."""
        return digest_value([[item.uri, item.num_bytes, item.etag] for _, item in sorted(self.files.items())])


def clean(name: str) -> str | None:
    """A relative path in normal form; None for one that would leave its root."""
    path = posixpath.normpath(name.replace("\\", "/").strip())
    while path.startswith("./"):
        path = path[2:]
    if not name.strip() or path in (".", "..") or path.startswith(("/", "../")) or "\0" in path or "::" in path:
        return None
    return path


def tails(path: str) -> list[str]:
    """The tails of a path of another machine, the longest first; at most six names deep."""
    parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    return ["/".join(parts[-length:]) for length in range(min(len(parts), _MAX_TAIL), 0, -1)]


def is_archive(root: str) -> bool:
    """Whether a root is an archive by its name."""
    return root.lower().endswith((".zip", *_TAR_ENDINGS))


def join(root: str, path: str) -> str:
    """The URI of a path within a root."""
    if is_archive(root):
        return f"{'zip' if root.lower().endswith('.zip') else 'tar'}://{path}::{root}"
    return posixpath.join(root, path) if root else path


def list_files(root: str, storage_options: Mapping[str, Any] | None = None) -> Iterator[tuple[str, Listed]]:
    """Path within the root and file, in path order. Raises `FileNotFoundError` naming a root that is not there."""
    options = dict(storage_options or {})
    if is_archive(root):
        yield from sorted(_list_archive(root, options))
        return
    fs, path = url_to_fs(root, **options)
    if fs.protocol in ("file", "local") or "file" in fs.protocol:
        yield from _list_local(root, Path(path))
        return
    found = fs.find(path, detail=True)
    if not found:
        raise FileNotFoundError(f"{root}: no such folder, or it is empty")
    base = path.rstrip("/") + "/"
    for name, facts in sorted(found.items()):
        relative = name.removeprefix(base)
        yield relative, Listed(posixpath.join(root, relative), facts.get("size"), _etag(facts))


def _etag(facts: Mapping[str, Any]) -> str:
    for name in ("ETag", "etag", "md5Hash", "LastModified", "mtime", "last_modified"):
        if facts.get(name):
            return str(facts[name])
    return ""


def _list_local(root: str, folder: Path) -> Iterator[tuple[str, Listed]]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    waiting, seen = [""], {os.path.realpath(folder)}
    prefix = root.rstrip("/") or "/"
    while waiting:
        below = waiting.pop()
        folders = []
        with os.scandir(folder / below) as entries:
            for entry in sorted(entries, key=lambda item: item.name):
                path = posixpath.join(below, entry.name)
                if entry.is_dir():
                    real = os.path.realpath(entry.path) if entry.is_symlink() else entry.path
                    if real not in seen:
                        seen.add(real)
                        folders.append(path)
                elif entry.is_file():
                    facts = entry.stat()
                    yield path, Listed(posixpath.join(prefix, path), facts.st_size, str(facts.st_mtime_ns))
        waiting.extend(reversed(folders))


def _list_archive(root: str, options: dict[str, Any]) -> Iterator[tuple[str, Listed]]:
    try:
        with fsspec.open(root, "rb", **options) as stream:
            if root.lower().endswith(".zip"):
                with zipfile.ZipFile(stream) as archive:
                    for item in archive.infolist():
                        path = clean(item.filename)
                        if not item.is_dir() and path is not None:
                            yield path, Listed(join(root, path), item.file_size, f"{item.CRC:08x}")
                return
            with tarfile.open(fileobj=stream) as archive_file:
                for member in archive_file:
                    path = clean(member.name)
                    if member.isfile() and path is not None:
                        yield path, Listed(join(root, path), member.size, f"{member.mtime}:{member.offset_data}")
    except (zipfile.BadZipFile, tarfile.TarError) as error:
        raise FileNotFoundError(f"{root}: not a readable archive ({error})") from error
