"""The frames of a clip that a shard carries."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stages.base import UnitError
from stages.media.decoders import frame_paths
from stages.media.probe import content_digest
from stages.media.video import Video, open_video
from stages.pack.members import Member, encode_jpeg

_SLICE = 32


def clip_members(
    row: dict[str, Any], jpeg_quality: int, options: dict[str, Any] | None = None
) -> tuple[list[Member], list[float]]:
    """(`NNN.jpg`, bytes) for each source frame in `clip_indices`, and the presentation times in seconds.

    `row` is the media's row. `NNN` counts the frames that are carried, so that the members of a sample sort as the
    clip runs. JPEG frames of a frame folder travel as they are. Raises `UnitError` where the video cannot be read or
    is no longer the one that was ingested.
    """
    indices = row["clip_indices"]
    video = _opened(row, options)
    try:
        frames = _original_frames(row["uri"], indices) or _decoded_frames(video, indices, jpeg_quality)
        return [(f"{n:03d}.jpg", data) for n, data in enumerate(frames)], _times(video, indices)
    finally:
        video.close()


def _original_frames(uri: str, indices: Sequence[int]) -> list[bytes]:
    """The files of a frame folder, if they are all JPEG."""
    if not uri.endswith("/"):
        return []
    paths = frame_paths(Path(uri.removeprefix("file://")))
    chosen = [paths[index] for index in indices]
    if any(path.suffix.lower() not in (".jpg", ".jpeg") for path in chosen):
        return []
    return [path.read_bytes() for path in chosen]


def _decoded_frames(video: Video, indices: Sequence[int], jpeg_quality: int) -> list[bytes]:
    encoded: list[bytes] = []
    for start in range(0, len(indices), _SLICE):
        frames = video.frames(indices[start : start + _SLICE])
        encoded += [encode_jpeg(frame, jpeg_quality) for frame in frames]
    return encoded


def _times(video: Video, indices: Sequence[int]) -> list[float]:
    return [float(video.times_s[index]) for index in indices]


def clip_times(row: dict[str, Any], options: dict[str, Any] | None = None) -> list[float]:
    """The presentation times of `clip_indices`, from the video itself: no guess may stand in a record for good.

    Raises `UnitError` like `clip_members`.
    """
    video = _opened(row, options)
    try:
        return _times(video, row["clip_indices"])
    finally:
        video.close()


def _opened(row: dict[str, Any], options: dict[str, Any] | None) -> Video:
    """The video of a media's row. Raises `UnitError` where it is gone, another one, or too short."""
    if content_digest(row["uri"], options)[0] != row["media_key"]:
        raise UnitError("media_changed", f"{row['uri']} has other bytes than when it was ingested; ingest it again")
    indices = row["clip_indices"]
    video = open_video(row["uri"], row["fps"], storage_options=options)
    if indices and indices[-1] >= len(video):
        video.close()
        message = f"{row['uri']} has {len(video)} frames that can be read, frame {indices[-1]} is wanted"
        raise UnitError("unreadable_media", message)
    return video
