"""The frames of a clip that a shard carries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stages.base import UnitError
from stages.pack.members import Member, encode_jpeg

_SLICE = 32


def clip_members(row: dict[str, Any], indices: Sequence[int], jpeg_quality: int) -> tuple[list[Member], list[float]]:
    """(`NNN.jpg`, bytes) for each source frame of `indices`, and the presentation times in seconds.

    `row` is the media's row. `NNN` counts the frames that are carried, so that the members of a sample sort as the
    clip runs. Raises `UnitError` where the video cannot be read or has fewer frames than it had.
    """
    from stages.media.video import open_video

    video: Any = open_video(row["uri"])
    try:
        if indices and indices[-1] >= len(video):
            message = f"{row['uri']} has {len(video)} frames, frame {indices[-1]} is wanted; ingest it again"
            raise UnitError("media_changed", message)
        members: list[Member] = []
        for start in range(0, len(indices), _SLICE):
            frames = video.frames(list(indices[start : start + _SLICE]))
            members += [
                (f"{start + offset:03d}.jpg", encode_jpeg(frame, jpeg_quality)) for offset, frame in enumerate(frames)
            ]
        return members, [float(video.times_s[index]) for index in indices]
    finally:
        video.close()


def clip_times(row: dict[str, Any], indices: Sequence[int]) -> list[float]:
    """The presentation times of frames; by the frame rate where the video cannot be opened any more."""
    from stages.media.video import open_video

    try:
        video: Any = open_video(row["uri"])
    except UnitError:
        return [index / row["fps"] for index in indices] if row["fps"] else []
    try:
        return [float(video.times_s[index]) for index in indices if index < len(video)]
    finally:
        video.close()
