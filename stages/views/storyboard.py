"""The views of a video: a storyboard of key frames, separate frames, and a time-stamped contact sheet.

Pure functions from frames (H, W, 3) uint8 RGB and masks (H, W) bool, or None where the target is not visible, to
pictures (h, w, 3) uint8 RGB. The target is drawn around, never drawn over; numbers and times stand in margins outside
the frames. A 2 x 3 storyboard of six key frames at high resolution is the view of Perceive Anything (arXiv 2506.05302,
section 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import cv2
import numpy as np
from pydantic import Field

from schemas.base import Record
from schemas.geometry import FrameMask
from stages.views.images import Image, MaskArray, contrast_colour, draw_contour

Highlight = Literal["contour", "box"]
Colour = tuple[int, int, int]
T = TypeVar("T")

_PAPER: Colour = (255, 255, 255)
_INK: Colour = (20, 20, 20)
_WINDOW = 1.6
"""A target window is this many times the box around all of the target's masks, on each side at most the frame."""


class ClipViewConfig(Record):
    """How videos are shown. Sizes are of the picture that the teacher gets, in pixels.

    A storyboard has `rows` x `columns` cells, each `cell_side` on its longer side; `clip_frames` are `frames` pictures
    of `frame_side`. `window` target shows the part of the frames in which the target ever is, enlarged; frame shows
    all. `line_share` is the line's width as a share of the cell's longer side. `times` writes the time beside each
    number.
    """

    rows: int = Field(default=2, ge=1, le=6)
    columns: int = Field(default=3, ge=1, le=6)
    cell_side: int = Field(default=448, ge=64, le=2048)
    frames: int = Field(default=8, ge=1, le=32)
    frame_side: int = Field(default=512, ge=64, le=2048)
    window: Literal["frame", "target"] = "frame"
    highlight: Highlight = "contour"
    line_share: float = Field(default=0.006, gt=0, le=0.03)
    times: bool = True


def keyframes(frames: Sequence[FrameMask], count: int) -> list[FrameMask]:
    """At most `count` frames, uniform over those on which the target is visible; over all where it never is.

    Raises `ValueError` for no frames.
    """
    ordered = sorted(frames, key=lambda frame: frame.frame_index)
    seen = [frame for frame in ordered if frame.visible and frame.mask is not None] or ordered
    if not seen:
        raise ValueError("there are no frames to show")
    return uniform(seen, count)


def uniform(items: Sequence[T], count: int) -> list[T]:
    """At most `count` items, uniform over all, first and last included, each once."""
    picked = np.unique(np.round(np.linspace(0, len(items) - 1, min(count, len(items)))).astype(int))
    return [items[int(index)] for index in picked]


def frames_wanted(view: str, config: ClipViewConfig) -> int:
    """How many key frames a view shows. Raises `ValueError` for an unknown view."""
    counts = {"storyboard": config.rows * config.columns, "clip_frames": config.frames}
    if view not in counts:
        raise ValueError(f"no video view {view!r}; there are {', '.join(sorted(counts))}")
    return counts[view]


def render(
    view: str,
    frames: Sequence[Image],
    masks: Sequence[MaskArray | None],
    times_s: Sequence[float],
    config: ClipViewConfig,
) -> list[Image]:
    """The pictures of a video view of the given key frames, all of one size.

    Raises `ValueError` for an unknown view, no frames, more frames than the view shows, or shapes that do not match.
    """
    if not 0 < len(frames) <= frames_wanted(view, config):
        raise ValueError(f"the view {view} shows 1 to {frames_wanted(view, config)} frames, not {len(frames)}")
    if not len(frames) == len(masks) == len(times_s):
        raise ValueError(f"{len(frames)} frames, {len(masks)} masks and {len(times_s)} times do not belong together")
    for mask in masks:
        if mask is not None and mask.shape != frames[0].shape[:2]:
            raise ValueError(f"the mask is {mask.shape}, the frame {frames[0].shape[:2]}")
    side = config.cell_side if view == "storyboard" else config.frame_side
    pictures = highlighted(frames, masks, side, config)
    if view == "clip_frames":
        return pictures
    columns = min(config.columns, len(pictures))
    notes = [_note(number, time, config.times) for number, time in enumerate(times_s, 1)]
    return [_sheet(pictures, notes, columns)]


def contact_sheet(frames: Sequence[Image], times_s: Sequence[float], columns: int = 6, side: int = 224) -> Image:
    """Frames in reading order, each under its time in seconds, nothing drawn on them. Raises `ValueError` for none."""
    if not frames or len(frames) != len(times_s):
        raise ValueError(f"{len(frames)} frames and {len(times_s)} times make no contact sheet")
    small = [_resized(frame, _fitted(frame.shape[0], frame.shape[1], side)) for frame in frames]
    return _sheet(small, [f"{time:.1f} s" for time in times_s], min(columns, len(frames)))


def highlighted(
    frames: Sequence[Image], masks: Sequence[MaskArray | None], side: int, config: ClipViewConfig
) -> list[Image]:
    """The frames in their shown size with a line around the target, of one colour throughout that differs from its own.

    The line lies outside the target's pixels. Frames without a mask are left as they are.
    """
    rows, columns = _window(masks, frames[0].shape[:2]) if config.window == "target" else (slice(None), slice(None))
    height, width = frames[0][rows, columns].shape[:2]
    size = _fitted(height, width, side)
    small = [_resized(frame[rows, columns], size) for frame in frames]
    inside = [None if mask is None else _resized_mask(mask[rows, columns], size) for mask in masks]
    pixels = [image[mask] for image, mask in zip(small, inside, strict=True) if mask is not None and mask.any()]
    if not pixels:
        return small
    target = np.concatenate(pixels)[None]
    colour = contrast_colour(target, np.ones(target.shape[:2], bool))
    draw = _draw_box if config.highlight == "box" else draw_contour
    return [
        image if mask is None or not mask.any() else draw(image, mask, colour, config.line_share)
        for image, mask in zip(small, inside, strict=True)
    ]


def _sheet(pictures: Sequence[Image], notes: Sequence[str], columns: int) -> Image:
    """Pictures of one size on white paper, each under its note."""
    height, width = pictures[0].shape[:2]
    scale = max(0.5, max(height, width) / 520)
    strip, gap = round(34 * scale), max(2, round(8 * scale))
    rows = -(-len(pictures) // columns)
    paper = np.full((gap + rows * (strip + height + gap), gap + columns * (width + gap), 3), _PAPER, np.uint8)
    for i, (picture, note) in enumerate(zip(pictures, notes, strict=True)):
        top = gap + (i // columns) * (strip + height + gap)
        left = gap + (i % columns) * (width + gap)
        paper[top + strip : top + strip + height, left : left + width] = picture
        origin = (left + 2, top + strip - max(4, round(9 * scale)))
        cv2.putText(
            paper, note, origin, cv2.FONT_HERSHEY_SIMPLEX, 0.9 * scale, _INK, max(1, round(2 * scale)), cv2.LINE_AA
        )
    return paper


def _note(number: int, time_s: float, times: bool) -> str:
    return f"{number}   {time_s:.1f} s" if times else str(number)


def _draw_box(image: Image, mask: MaskArray, colour: Colour, line_share: float) -> Image:
    """A copy with a rectangle around the mask's box, outside it."""
    width = max(1, round(line_share * max(image.shape[:2])))
    ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    grown = np.zeros_like(mask)
    y0, x0 = max(int(ys[0]) - 2 * width, 0), max(int(xs[0]) - 2 * width, 0)
    grown[y0 : int(ys[-1]) + 1 + 2 * width, x0 : int(xs[-1]) + 1 + 2 * width] = True
    inner = np.zeros_like(mask)
    inner[
        max(int(ys[0]) - width, 0) : int(ys[-1]) + 1 + width, max(int(xs[0]) - width, 0) : int(xs[-1]) + 1 + width
    ] = True
    drawn = image.copy()
    drawn[grown & ~inner] = colour
    return drawn


def _window(masks: Sequence[MaskArray | None], shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Rows and columns of the frame in which the target ever is, with surroundings; the frame where it never is."""
    seen = [mask for mask in masks if mask is not None and mask.any()]
    if not seen:
        return slice(None), slice(None)
    union = np.logical_or.reduce(seen)
    return _span(union.any(axis=1), shape[0]), _span(union.any(axis=0), shape[1])


def _span(occupied: MaskArray, limit: int) -> slice:
    where = np.flatnonzero(occupied)
    length = min(limit, max(96, round((int(where[-1]) + 1 - int(where[0])) * _WINDOW)))
    start = min(max(0, (int(where[0]) + int(where[-1]) + 1 - length) // 2), limit - length)
    return slice(start, start + length)


def _fitted(height: int, width: int, side: int) -> tuple[int, int]:
    scale = side / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _resized(image: Image, size: tuple[int, int]) -> Image:
    smaller = size[0] < image.shape[0]
    method = cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
    return np.ascontiguousarray(cv2.resize(image, (size[1], size[0]), interpolation=method), np.uint8)


def _resized_mask(mask: MaskArray, size: tuple[int, int]) -> MaskArray:
    """The mask in the shown size: a target of less than a pixel keeps one."""
    share: Any = cv2.resize(mask.astype(np.float32), (size[1], size[0]), interpolation=cv2.INTER_AREA)
    half: MaskArray = share >= 0.5
    return half if half.any() else np.asarray(share > 0.0)
