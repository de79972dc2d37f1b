"""Videos behind one small interface: files (decord, or PyAV) and frame folders.

Frame i is the i-th in presentation order, of an upright picture; `times_s` are presentation times, so that a variable
frame rate is kept. A file that is cut off yields the frames that can be decoded and says so in `note`.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import fsspec
import numpy as np

from stages.base import TransientError, UnitError
from stages.media.decoders import (
    AvDecoder,
    Decoder,
    DecordDecoder,
    FolderDecoder,
    Index,
    Pixels,
    Seconds,
    readable,
    scan,
)

Backend = Literal["auto", "decord", "pyav"]

FOLDER_FPS = 24.0
"""The rate of a frame folder whose source does not say; DAVIS is at 24 fps."""
BLOCK_FRAMES = 16


class Video:
    """An open video. Not for two threads at once; `VideoCache` is.

    `width` and `height` are of the upright picture in pixels, `fps` is the average rate, `note` says what is wrong
    with the file in spite of which it can be used.
    """

    def __init__(
        self,
        uri: str,
        decoder: Decoder,
        times_s: Seconds,
        fps: float,
        note: str | None = None,
        spare: Path | None = None,
    ) -> None:
        self.uri, self.fps, self.times_s, self.note = uri, fps, times_s, note
        self._decoder, self._spare = decoder, spare
        first = decoder.read([0])[0]
        self.height, self.width = int(first.shape[0]), int(first.shape[1])

    def __len__(self) -> int:
        return len(self.times_s)

    def frames(self, indices: Iterable[int], max_side: int | None = None) -> Pixels:
        """Frames in the order asked for (indices may repeat), uint8 (n, H, W, 3) RGB.

        `max_side` shrinks them to that longer side while they are read. Raises `UnitError` (`unreadable_media`) for a
        frame that cannot be decoded and `IndexError` for one beyond the end.
        """
        wanted = [int(index) for index in indices]
        order = sorted(set(wanted))
        found = dict(self.iterate(order, max_side))
        if not wanted:
            return np.empty((0, self.height, self.width, 3), np.uint8)
        return np.stack([found[index] for index in wanted])

    def iterate(self, indices: Sequence[int], max_side: int | None = None) -> Iterator[tuple[int, Pixels]]:
        """Yields (index, frame) for sorted distinct indices, holding `BLOCK_FRAMES` full frames at most."""
        if indices and not 0 <= indices[0] <= indices[-1] < len(self):
            raise IndexError(f"{self.uri} has {len(self)} frames; {indices[0]} to {indices[-1]} were asked for")
        for start in range(0, len(indices), BLOCK_FRAMES):
            block = indices[start : start + BLOCK_FRAMES]
            for index, frame in zip(block, self._decoder.read(block), strict=True):
                yield index, _shrunk(frame, max_side)

    def nearest(self, time_s: float) -> int:
        """The index of the frame shown nearest to a moment."""
        return int(np.abs(self.times_s - time_s).argmin())

    def close(self) -> None:
        """Frees the decoder; a downloaded copy is deleted."""
        self._decoder.close()
        if self._spare is not None:
            self._spare.unlink(missing_ok=True)


class VideoCache:
    """The last `max_open` videos, kept open; safe for threads. One a process: readers hold decoded pictures."""

    def __init__(self, max_open: int = 2, backend: Backend = "auto") -> None:
        self._max_open, self._backend = max_open, backend
        self._open: OrderedDict[tuple[str, float | None], Video] = OrderedDict()
        self._lock = threading.RLock()

    def get(self, uri: str, fps: float | None = None) -> Video:
        """The open video of this URI; opens it, and closes the one unused longest, where needed."""
        with self._lock:
            video = self._open.pop((uri, fps), None) or open_video(uri, fps=fps, backend=self._backend)
            self._open[uri, fps] = video
            while len(self._open) > self._max_open:
                self._open.popitem(last=False)[1].close()
            return video

    def frames(self, uri: str, indices: Iterable[int], fps: float | None = None, max_side: int | None = None) -> Pixels:
        """`Video.frames` under the cache's lock."""
        with self._lock:
            return self.get(uri, fps).frames(indices, max_side)

    def close(self) -> None:
        """Closes all."""
        with self._lock:
            while self._open:
                self._open.popitem()[1].close()


def video_cache(max_open: int = 2, backend: Backend = "auto") -> VideoCache:
    """A cache of open videos for a stage to own."""
    return VideoCache(max_open, backend)


def open_video(
    uri: str,
    fps: float | None = None,
    backend: Backend = "auto",
    storage_options: Mapping[str, Any] | None = None,
    check: bool = False,
) -> Video:
    """Opens a video: a local path, any fsspec URL (copied to a temporary file), or a frame folder (URI ends with `/`).

    `fps` is the rate of a frame folder; a file has its own clock. `backend` auto takes decord where it is installed
    and agrees with the container, else PyAV. `check` decodes the whole file once and notes damaged frames. Raises
    `UnitError` (`missing_media`, `unreadable_media`) and `TransientError`.
    """
    if uri.endswith("/"):
        return _open_folder(uri, fps or FOLDER_FPS)
    path, spare = _local(uri, storage_options or {})
    try:
        return _open_file(uri, path, spare, backend, check)
    except Exception:
        if spare is not None:
            spare.unlink(missing_ok=True)
        raise


def uniform_indices(first: int, last: int, count: int) -> list[int]:
    """`count` frame indices uniform over first..last, both included; frames repeat (nearest) where there are fewer."""
    if last < first or count < 1:
        raise ValueError(f"no {count} frames lie between {first} and {last}")
    return [int(i) for i in np.round(np.linspace(first, last, count)).astype(int)]


def sample_frames(video: Video, count: int, first: int = 0, last: int | None = None) -> tuple[list[int], Pixels]:
    """`count` uniform frames of a span: their indices and pixels (n, H, W, 3)."""
    indices = uniform_indices(first, len(video) - 1 if last is None else last, count)
    return indices, video.frames(indices)


def _open_file(uri: str, path: Path, spare: Path | None, backend: Backend, check: bool) -> Video:
    index = scan(path)
    damaged = 0
    if index.cut or check:
        index, damaged = readable(path, index)
    note = _note(index, damaged)
    decoder = None if index.cut or backend == "pyav" else _decord(path, index, required=backend == "decord")
    return Video(uri, decoder or AvDecoder(path, index), index.times_s, index.fps, note, spare)


def _decord(path: Path, index: Index, required: bool) -> Decoder | None:
    """decord where it is installed and counts the frames as the container does."""
    try:
        decoder = DecordDecoder(path)
    except (ImportError, UnitError):
        if required:
            raise
        return None
    if len(decoder) == len(index.pts):
        return decoder
    decoder.close()
    return None


def _note(index: Index, damaged: int) -> str | None:
    said = []
    if index.cut:
        said.append(f"cut off: {len(index.pts)} of {index.declared} frames can be read")
    if damaged:
        said.append(f"{damaged} frames are damaged")
    return "; ".join(said) or None


def _open_folder(uri: str, fps: float) -> Video:
    folder = Path(uri.removeprefix("file://"))
    decoder = FolderDecoder(folder)
    return Video(uri, decoder, np.arange(len(decoder.paths)) / fps, fps)


def _local(uri: str, storage_options: Mapping[str, Any]) -> tuple[Path, Path | None]:
    """The file on this machine, and the same path again when it is a copy to be deleted."""
    if "://" not in uri or uri.startswith("file://"):
        path = Path(uri.removeprefix("file://"))
        if not path.is_file():
            raise UnitError("missing_media", f"{uri}: no such file")
        return path, None
    copy = Path(tempfile.mkstemp(suffix=Path(uri.split("::")[0]).suffix)[1])
    try:
        with fsspec.open(uri, "rb", **dict(storage_options)) as source, copy.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
    except BaseException as error:
        copy.unlink(missing_ok=True)
        if isinstance(error, FileNotFoundError | KeyError):
            raise UnitError("missing_media", f"{uri}: no such file") from error
        if isinstance(error, ConnectionError | TimeoutError):
            raise TransientError(f"{uri}: {error}") from error
        raise
    return copy, copy


def _shrunk(frame: Pixels, max_side: int | None) -> Pixels:
    height, width = frame.shape[:2]
    if max_side is None or max(height, width) <= max_side:
        return frame
    scale = max_side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), np.uint8)
