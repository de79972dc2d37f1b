"""Tracks: what adapters of video formats share."""

from __future__ import annotations

from typing import Any


def first_visible(row: dict[str, Any]) -> None:
    """Makes the first annotated frame on which the target is visible the prompt: its index, box and mask.

    Raises `ValueError` for a track on which the target is nowhere visible.
    """
    for point in row["track"]:
        if point["box"] is not None or point["mask"] is not None:
            row["frame_index"], row["box"], row["mask"] = point["frame_index"], point["box"], point["mask"]
            return
    raise ValueError("the target is visible on no annotated frame")
