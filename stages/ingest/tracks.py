"""Tracks: what the adapters of video formats share."""

from __future__ import annotations

import posixpath
from typing import Any

import numpy as np

from stages.ingest import rle
from stages.ingest.listing import Folder

TrackRow = dict[str, Any]


def point(frame_index: int, box: list[float] | None = None, mask: dict[str, Any] | None = None) -> TrackRow:
    """One frame of a track; without box and mask the target is absent there. Seconds follow from the media's rate."""
    return {"frame_index": frame_index, "time_s": 0.0, "box": box, "mask": mask}


def mask_point(frame_index: int, segmentation: Any, box: list[float] | None = None) -> TrackRow:
    """A frame of a track from run lengths, its box measured where none is given; nothing inside is absence.

    Raises `ValueError` for run lengths that are none.
    """
    if segmentation is None:
        return point(frame_index, box)
    runs, height, _ = rle.runs_of(segmentation)
    measured = rle.box_of_runs(runs, height)
    if measured is None:
        return point(frame_index)
    return point(frame_index, box or measured, rle.of_runs(segmentation, runs))


def first_visible(row: dict[str, Any], prefer: int | None = None) -> None:
    """Makes the first annotated frame on which the target is visible the prompt: its index, box and mask.

    `prefer` is a frame that the source names as the prompt; it counts where the target is visible on it. Raises
    `ValueError` for a track on which the target is nowhere visible.
    """
    visible = [item for item in row["track"] if item["box"] is not None or item["mask"] is not None]
    if not visible:
        raise ValueError("the target is visible on no annotated frame")
    chosen = next((item for item in visible if item["frame_index"] == prefer), visible[0])
    row["frame_index"], row["box"], row["mask"] = chosen["frame_index"], chosen["box"], chosen["mask"]


def folder_fps(folder: Folder, video_fps: float) -> float:
    """Frames a second of a folder of a video's frames: names 00000, 00005, 00010 are every fifth frame."""
    stems = [posixpath.splitext(name)[0] for name in folder.names]
    if len(stems) < 2 or not all(stem.isdigit() for stem in stems):
        return video_fps
    steps = np.diff([int(stem) for stem in stems])
    return video_fps / max(int(np.median(steps)), 1)
