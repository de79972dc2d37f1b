"""What the pixels add to a masklet: the target's colour, and the camera's motion from the background around it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import cv2
import numpy as np

from stages.chunk.features import Masklet
from stages.chunk.motion import Look
from stages.masks import decode
from stages.media.video import open_video

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Floats = np.ndarray[Any, np.dtype[np.float64]]
Masks = Mapping[int, Any]

_CELLS = (4, 6)
_CORNERS = 7
"""Rows and columns into which a picture is cut, and the corners of each that are followed."""
_LEAST_MATCHES = 8


class SmallFrames:
    """Shrunk frames of the last videos, so that the masklets of one video share its decoding. Not for two threads."""

    def __init__(self, side: int, max_videos: int = 2) -> None:
        self._side, self._max_videos = side, max_videos
        self._kept: OrderedDict[str, dict[int, Pixels]] = OrderedDict()

    def get(self, uri: str, fps: float | None, indices: Sequence[int]) -> list[Pixels]:
        """The frames (h, w, 3) uint8 RGB, longer side `side` at most. Raises `UnitError` as `open_video` does."""
        kept = self._kept.pop(uri, {})
        missing = sorted(set(indices) - kept.keys())
        if missing:
            video = open_video(uri, fps)
            try:
                missing = [min(index, len(video) - 1) for index in missing]
                kept |= dict(video.iterate(sorted(set(missing)), self._side))
            finally:
                video.close()
        self._kept[uri] = kept
        while len(self._kept) > self._max_videos:
            self._kept.popitem(last=False)
        last = max(kept)
        return [kept[min(index, last)] for index in indices]


def look_at(masklet: Masklet, masks: Sequence[Any], frames: Sequence[Pixels]) -> Look:
    """Colour and camera on the masklet's n frames: `masks` are its RLE records (None where absent), `frames` small."""
    shape = frames[0].shape[:2]
    small = [None if mask is None else _small(mask, shape) for mask in masks]
    colour = np.full((len(frames), 3), np.nan)
    for i, (frame, mask) in enumerate(zip(frames, small, strict=True)):
        if mask is not None and mask.any():
            colour[i] = _mean_lab(frame, mask)
    scale = masklet.width / shape[1]
    return Look(colour, camera_path(frames, small, scale))


def camera_path(frames: Sequence[Pixels], masks: Sequence[Pixels | None], scale: float) -> Floats:
    """For each frame the similarity that takes its pixels to the first frame's view: (n, 4) scale, angle, shift x, y.

    Corners of the background (outside the masks) are followed from frame to frame (Lucas-Kanade, forth and back), and
    a similarity is fitted that most of them share (RANSAC), so that other moving things do not count as camera. They
    come from all over the picture: a thing with many corners has no more say than a plain wall of its size. Where too
    few corners agree, the camera is taken to stand still. `scale` is frame pixels per small pixel.
    """
    path = np.zeros((len(frames), 4))
    path[:, 0] = 1.0
    total = np.eye(3)
    before = _grey(frames[0])
    for i in range(1, len(frames)):
        after = _grey(frames[i])
        step = _step(before, after, masks[i - 1])
        total = total @ step
        zoom, roll = float(np.hypot(total[0, 0], total[1, 0])), float(np.arctan2(total[1, 0], total[0, 0]))
        path[i] = zoom, roll, total[0, 2] * scale, total[1, 2] * scale
        before = after
    return path


def _step(before: Pixels, after: Pixels, mask: Pixels | None) -> Floats:
    """The 3x3 similarity from `after` to `before`; the identity where the background does not tell."""
    still = np.eye(3)
    target = np.zeros_like(before) if mask is None else cv2.dilate(mask, np.ones((7, 7), np.uint8))
    corners = _spread_corners(before, (target == 0).astype(np.uint8))
    if len(corners) < _LEAST_MATCHES:
        return still
    moved, found = _follow(before, after, corners)
    back, again = _follow(after, before, moved)
    sound = found & again & (np.linalg.norm(back - corners, axis=-1)[:, 0] < 0.5)
    if sound.sum() < _LEAST_MATCHES:
        return still
    fitted, agreed = cv2.estimateAffinePartial2D(
        moved[sound], corners[sound], method=cv2.RANSAC, ransacReprojThreshold=0.6, confidence=0.995
    )
    if fitted is None or agreed.sum() < max(_LEAST_MATCHES, 0.3 * sound.sum()):
        return still
    return np.vstack([fitted, [0, 0, 1]])


def _spread_corners(grey: Pixels, allowed: Pixels) -> Any:
    """The best corners (n, 1, 2) of each cell of the picture, where `allowed` is 1."""
    rows, columns = (
        np.linspace(0, side, parts + 1).astype(int) for side, parts in zip(grey.shape, _CELLS, strict=True)
    )
    found: list[Any] = [np.zeros((0, 1, 2), np.float32)]
    for top, bottom in pairwise(rows):
        for left, right in pairwise(columns):
            cell = np.s_[top:bottom, left:right]
            corners = cv2.goodFeaturesToTrack(
                np.ascontiguousarray(grey[cell]), _CORNERS, 0.05, 4, mask=np.ascontiguousarray(allowed[cell])
            )
            if corners is not None:
                found.append(corners + np.array([left, top], np.float32))
    return np.concatenate(found)


def _follow(before: Pixels, after: Pixels, points: Any) -> tuple[Any, Any]:
    """Where points (n, 1, 2) of one picture are in the next, and which were found (n)."""
    flow: Any = cv2.calcOpticalFlowPyrLK
    moved, found, _ = flow(before, after, points, None, winSize=(15, 15), maxLevel=3)
    return moved, found[:, 0] == 1


def _grey(frame: Pixels) -> Pixels:
    return np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), np.uint8)


def _small(mask: Any, shape: tuple[int, int]) -> Pixels:
    full = decode(mask).astype(np.uint8)
    return np.asarray(cv2.resize(full, (shape[1], shape[0]), interpolation=cv2.INTER_AREA), np.uint8)


def _mean_lab(frame: Pixels, mask: Pixels) -> Floats:
    core = cv2.erode(mask, np.ones((3, 3), np.uint8), borderValue=0)
    pixels = frame[(core if core.sum() >= 12 else mask) > 0].astype(np.float32)[None] / 255
    mean: Floats = cv2.cvtColor(pixels, cv2.COLOR_RGB2LAB)[0].mean(0).astype(np.float64)
    return mean
