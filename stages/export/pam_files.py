"""What an export wrote into its folder, so that the next one into the same folder takes away what it no longer has."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO, Self

from stages.pack.tar import write_bytes

LISTING = "files.txt"
_FOLDERS = ("annotations", "images", "frames")
_BESIDE = ("provenance.parquet", "finetune.yaml")


class ExportFiles:
    """The files of one export, relative to its folder, listed in `files.txt` there.

        with ExportFiles(out) as files:
            write(files.add("images/a.jpg"))
            files.sweep()

    Each file is listed before it is written, so that the listing of a run that was killed names all that it wrote.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / LISTING
        lines = path.read_text("utf-8").splitlines() if path.is_file() else []
        self._earlier = {line for line in lines if _is_ours(line)}
        self._written: set[str] = set()
        self._stream: IO[str] | None = None

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._stream = (self.folder / LISTING).open("a", encoding="utf-8")
        self._stream.write("\n")  # the last line of an export that was killed may have no end
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._stream is not None:
            self._stream.close()

    def add(self, name: str) -> Path:
        """Lists a file of this export; where it goes. Raises `ValueError` outside the block."""
        if self._stream is None:
            raise ValueError("files are added inside the block")
        if name not in self._written:
            self._written.add(name)
            self._stream.write(name + "\n")
            self._stream.flush()
        return self.folder / name

    def sweep(self) -> int:
        """Removes what the listing names and this export did not write, and folders left empty; how many files."""
        gone = sorted(name for name in self._earlier - self._written if (self.folder / name).is_file())
        for name in gone:
            (self.folder / name).unlink()
        emptied = {parent for name in gone for parent in PurePosixPath(name).parents if parent.name}
        for folder in sorted(emptied, key=lambda each: len(each.parts), reverse=True):
            if not any((self.folder / folder).iterdir()):
                (self.folder / folder).rmdir()
        write_bytes(str(self.folder / LISTING), "".join(name + "\n" for name in sorted(self._written)).encode())
        return len(gone)

    def strange(self) -> list[str]:
        """Files among those of this export that no export is known to have written, in order."""
        found = (path for name in _FOLDERS for path in (self.folder / name).rglob("*") if path.is_file())
        return sorted({path.relative_to(self.folder).as_posix() for path in found} - self._written)


def _is_ours(name: str) -> bool:
    """A listing may have been edited: only what an export writes is ever removed."""
    parts = PurePosixPath(name).parts
    return name in _BESIDE or (len(parts) > 1 and parts[0] in _FOLDERS and ".." not in parts)
