"""The back ends that turn frame indices of a video file or a frame folder into pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import av
import cv2
import numpy as np

from stages.base import UnitError

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Seconds = np.ndarray[Any, np.dtype[np.float64]]

FRAME_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_GOP_GAP = 12
"""Reading on costs about as much as a seek when the next wanted frame is at most this many frames away."""


@dataclass(frozen=True)
class Index:
    """What a container says of its video: presentation stamps in order, and whether the file is cut off."""

    pts: np.ndarray[Any, np.dtype[np.int64]]
    time_base: Fraction
    fps: float
    declared: int
    cut: bool

    @property
    def times_s(self) -> Seconds:
        """Presentation times in seconds, the first frame at 0."""
        times: Seconds = (self.pts - self.pts[0]) * float(self.time_base)
        return times


class Decoder(Protocol):
    """Reads frames by index. `read` takes sorted distinct indices and returns uint8 (n, H, W, 3), upright RGB."""

    def read(self, indices: Sequence[int]) -> Pixels: ...

    def close(self) -> None: ...


class DecordDecoder:
    """decord, one thread, one reader. Raises `ImportError` where decord has no wheel."""

    def __init__(self, path: Path) -> None:
        import decord

        self._errors: tuple[type[Exception], ...] = (decord.DECORDError, RuntimeError, IndexError)
        try:
            self._reader = decord.VideoReader(str(path), num_threads=1)
        except self._errors as error:
            raise UnitError("unreadable_media", f"{path.name}: {_first_line(error)}") from error
        self._name = path.name

    def __len__(self) -> int:
        return len(self._reader)

    def read(self, indices: Sequence[int]) -> Pixels:
        try:
            frames: Pixels = self._reader.get_batch(list(indices)).asnumpy()
        except self._errors as error:
            raise UnitError("unreadable_media", f"{self._name}: {_first_line(error)}") from error
        return frames

    def close(self) -> None:
        self._reader = None


class AvDecoder:
    """PyAV: seeks to the key frame before each run of wanted frames and decodes forward."""

    def __init__(self, path: Path, index: Index) -> None:
        self._path, self._index = path, index
        self._container = av.open(str(path))
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "NONE"

    def read(self, indices: Sequence[int]) -> Pixels:
        frames = [frame for run in _runs(indices) for frame in self._run(run)]
        return np.stack(frames)

    def _run(self, run: Sequence[int]) -> Iterator[Pixels]:
        wanted = {int(self._index.pts[i]) for i in run}
        self._container.seek(int(self._index.pts[run[0]]), stream=self._stream, backward=True)
        try:
            for frame in self._container.decode(self._stream):
                if frame.pts in wanted:
                    wanted.discard(frame.pts)
                    yield upright(frame)
                    if not wanted:
                        return
        except av.error.FFmpegError as error:
            raise UnitError("unreadable_media", f"{self._path.name}: {error}") from error
        if wanted:
            raise UnitError("unreadable_media", f"{self._path.name}: {len(wanted)} of {len(run)} frames are not there")

    def close(self) -> None:
        self._container.close()


class FolderDecoder:
    """A directory of numbered images; index i is the i-th file by name."""

    def __init__(self, folder: Path) -> None:
        self.paths = frame_paths(folder)
        if not self.paths:
            raise UnitError("missing_media", f"{folder}: no frames ({', '.join(FRAME_SUFFIXES)}) in this folder")

    def read(self, indices: Sequence[int]) -> Pixels:
        frames = [self._load(self.paths[i]) for i in indices]
        sizes = {frame.shape for frame in frames}
        if len(sizes) > 1:
            raise UnitError("unreadable_media", f"{self.paths[0].parent}: frames of different sizes: {sorted(sizes)}")
        return np.stack(frames)

    def _load(self, path: Path) -> Pixels:
        image = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
        if image is None:
            raise UnitError("unreadable_media", f"{path}: not a readable image")
        return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)

    def close(self) -> None:
        return None


def frame_paths(folder: Path) -> list[Path]:
    """The frames of a frame folder in order, numbers in names as numbers; none for a folder that is not there."""
    if not folder.is_dir():
        return []
    paths = [path for path in folder.iterdir() if path.suffix.lower() in FRAME_SUFFIXES]
    return sorted(paths, key=lambda path: (len(path.stem) if path.stem.isdigit() else 0, path.stem))


def scan(path: Path) -> Index:
    """Reads the packets of a video file without decoding them.

    Raises `UnitError` (`unreadable_media`) when it is no video or holds no frame.
    """
    pts: list[int] = []
    cut = False
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise UnitError("unreadable_media", f"{path.name}: no video stream")
            stream = container.streams.video[0]
            time_base, declared, rate = stream.time_base, stream.frames, stream.average_rate
            try:
                for packet in container.demux(stream):
                    if packet.pts is not None and not packet.is_discard:
                        pts.append(packet.pts)
                        cut |= packet.is_corrupt
            except av.error.FFmpegError:
                cut = True
    except (av.error.FFmpegError, OSError) as error:
        raise UnitError("unreadable_media", f"{path.name}: {error}") from error
    if not pts or time_base is None:
        raise UnitError("unreadable_media", f"{path.name}: no frame could be found")
    stamps = np.unique(np.array(pts, np.int64))
    length = float(stamps[-1] - stamps[0]) * float(time_base)
    fps = float(rate) if rate else (len(stamps) - 1) / length if length else 0.0
    return Index(stamps, time_base, fps, declared or len(stamps), cut or len(stamps) < (declared or 0))


def readable(path: Path, index: Index) -> tuple[Index, int]:
    """Decodes the whole file: the index of the frames that come out, and how many of these are marked damaged."""
    pts: list[int] = []
    damaged = 0
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        try:
            for frame in container.decode(stream):
                if frame.pts is not None:
                    pts.append(frame.pts)
                    damaged += frame.is_corrupt
        except av.error.FFmpegError:
            index = Index(index.pts, index.time_base, index.fps, index.declared, True)
    if not pts:
        raise UnitError("unreadable_media", f"{path.name}: no frame of {index.declared} could be decoded")
    stamps = np.unique(np.array(pts, np.int64))
    return Index(stamps, index.time_base, index.fps, index.declared, index.cut), damaged


def upright(frame: Any) -> Pixels:
    """The RGB pixels of a PyAV frame, turned as its display matrix says."""
    pixels: Pixels = frame.to_ndarray(format="rgb24")
    turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


def _runs(indices: Sequence[int]) -> Iterator[list[int]]:
    """Sorted indices cut where the next is far enough away for a seek to be worth trying."""
    run: list[int] = []
    for index in indices:
        if run and index - run[-1] > 4 * _GOP_GAP:
            yield run
            run = []
        run.append(index)
    if run:
        yield run


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
