"""Records of batch jobs, kept where a restart finds them."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import fsspec

from schemas.base import Record
from stages.teachers.logs import LedgerError, sync_folder


class Job(Record):
    """A batch job: our name for it, the digests (hexadecimal) of its requests, the provider's id once there is one.

    `created_s` is in Unix seconds, as is `ended_s`, when its results were fetched.
    """

    name: str
    created_s: float
    requests: tuple[str, ...]
    batch_id: str | None = None
    ended_s: float | None = None


class JobFolder:
    """The job records at a local folder or any fsspec URL. A save is whole or not at all."""

    def __init__(self, url: str, storage_options: dict[str, Any] | None = None) -> None:
        self._fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False, **(storage_options or {}))
        self._root = root.rstrip("/")
        protocol = self._fs.protocol if isinstance(self._fs.protocol, str) else self._fs.protocol[0]
        self._local = Path(self._root) if protocol == "file" else None

    def save(self, job: Job) -> None:
        """Writes or replaces a record, durably. Raises `LedgerError` where it cannot be kept."""
        try:
            self._write(job)
        except OSError as error:
            raise LedgerError(f"{self._path(job)}: {error}") from error

    def _write(self, job: Job) -> None:
        data = job.model_dump_json().encode()
        if self._local is None:
            self._fs.pipe_file(self._path(job), data)
            return
        self._local.mkdir(parents=True, exist_ok=True)
        path = Path(self._path(job))
        temporary = path.with_suffix(".tmp")
        with temporary.open("wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(path)
        sync_folder(self._local)

    def load(self) -> list[Job]:
        """All records, the oldest first."""
        if not self._fs.exists(self._root):
            return []
        paths = [path for path in self._fs.ls(self._root, detail=False) if path.endswith(".json")]
        jobs = [Job.model_validate_json(self._fs.cat_file(path)) for path in paths]
        return sorted(jobs, key=lambda job: (job.created_s, job.name))

    def remove(self, job: Job) -> None:
        """Deletes a record; one that is not there is as well."""
        if self._fs.exists(self._path(job)):
            self._fs.rm_file(self._path(job))

    def forget(self, requests: Collection[bytes]) -> None:
        """Takes requests out of the records; a job that asks nothing else loses its record."""
        gone = {request.hex() for request in requests}
        for job in self.load():
            left = tuple(name for name in job.requests if name not in gone)
            if not left:
                self.remove(job)
            elif len(left) < len(job.requests):
                self.save(job.model_copy(update={"requests": left}))

    def _path(self, job: Job) -> str:
        return f"{self._root}/{job.name}.json"
