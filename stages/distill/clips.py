"""From a masklet to what its teacher gets of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from schemas.geometry import FrameMask
from stages.base import UnitError
from stages.distill.recipe import Recipe
from stages.distill.render import Pixels, cut_out
from stages.distill.units import CaptionUnit, StreamUnit, VideoUnit
from stages.masks import decode
from stages.media.video import VideoCache
from stages.teachers.protocol import Picture, Subject, SubjectEvent
from stages.views.encode import to_picture
from stages.views.storyboard import frames_wanted, keyframes, render


def prompt_frame(cache: VideoCache, unit: CaptionUnit) -> Pixels:
    """The frame (H, W, 3) of a video on which a region's mask lies. Raises `UnitError` where it cannot be read."""
    pixels: Pixels = read_frames(cache, unit, [unit.frame_index])[0]
    return pixels


def read_frames(cache: VideoCache, unit: CaptionUnit, indices: Sequence[int]) -> Pixels:
    """Frames (n, H, W, 3) by source index. Raises `UnitError` for a video that cannot be read or is too short."""
    try:
        return cache.frames(unit.uri, indices, unit.fps)
    except IndexError as error:
        raise UnitError("frame_out_of_range", str(error)) from error


def span_of(unit: VideoUnit | StreamUnit) -> list[FrameMask]:
    """The masklet's frames within the unit's span, in order. Raises `UnitError` where there is none."""
    frames = sorted(unit.frames or [], key=lambda frame: frame.frame_index)
    if isinstance(unit, StreamUnit):
        frames = [frame for frame in frames if unit.start_frame <= frame.frame_index <= unit.end_frame]
    if not frames:
        raise UnitError("no_masklet", "the region has no masklet on the frames of this caption")
    return frames


def visible(frames: Sequence[FrameMask]) -> list[FrameMask]:
    """Those frames on which the target can be seen and has a mask."""
    return [frame for frame in frames if frame.visible and frame.mask is not None]


def clip_subject(unit: VideoUnit | StreamUnit, cache: VideoCache, history: Sequence[str]) -> Subject:
    """The subject of a video or an event: the frame on which the target is largest, and the measured motion.

    Raises `UnitError` for a masklet or a video that cannot be used; a target never in view has no pixels.
    """
    seen = visible(span_of(unit))
    common: dict[str, Any] = {
        "task": unit.task,
        "language": unit.language,
        "label": unit.label,
        "hints": tuple(unit.hints),
        "width": unit.width,
        "height": unit.height,
        "events": events_of(unit),
        "event_index": unit.event_index,
        "history": tuple(history),
    }
    if not seen:
        return Subject(**common, crop=(0.0, 0.0, 0.0, 0.0))
    best = max(seen, key=lambda frame: frame.area_share)
    pixels = read_frames(cache, unit, [best.frame_index])[0]
    assert best.mask is not None
    mask = decode(best.mask)
    if mask.shape != pixels.shape[:2]:
        raise UnitError("mask_size", f"the mask is {mask.shape}, the frame {pixels.shape[:2]} (height, width)")
    if not mask.any():
        return Subject(**common, crop=(0.0, 0.0, 0.0, 0.0))
    crop, cut, inside = cut_out(pixels, mask)
    return Subject(**common, crop=crop, pixels=cut, mask=inside)


def events_of(unit: VideoUnit | StreamUnit) -> tuple[SubjectEvent, ...]:
    """The measured events that a unit is about: all of a video's, or the one of a stream unit."""
    if isinstance(unit, StreamUnit):
        return (SubjectEvent(unit.event_index, unit.start_s, unit.end_s, unit.absent, unit.motion),)
    return tuple(SubjectEvent(e.event_index, e.start_s, e.end_s, e.absent, e.motion) for e in unit.events or ())


def clip_context(unit: VideoUnit | StreamUnit, times_s: Sequence[float], history: Sequence[str]) -> Mapping[str, Any]:
    """What the video and stream templates use."""
    times = ", ".join(f"{time:.1f}" for time in times_s)
    if isinstance(unit, StreamUnit):
        return {
            "event_index": unit.event_index,
            "num_events": unit.num_events,
            "start_s": unit.start_s,
            "end_s": unit.end_s,
            "absent": unit.absent,
            "motion": unit.motion,
            "history": list(history),
            "times": times,
        }
    last = max((frame.time_s for frame in unit.frames or ()), default=0.0)
    events = [
        {"start_s": e.start_s, "end_s": e.end_s, "absent": e.absent, "motion": e.motion or "still"}
        for e in events_of(unit)
    ]
    return {"duration_s": unit.duration_s or last, "times": times, "events": events}


def clip_pictures(
    unit: VideoUnit | StreamUnit,
    cache: VideoCache,
    views: Sequence[str],
    recipe: Recipe,
    sees: Literal["encoded", "pixels"],
) -> tuple[list[Picture], list[float]]:
    """The pictures of a masklet (or of one event of it) through all views, and the times in seconds of its key frames.

    Raises `UnitError` for a masklet or a video that cannot be used.
    """
    span = span_of(unit)
    pictures: list[Picture] = []
    times: list[float] = []
    for view in views:
        shown = keyframes(span, frames_wanted(view, recipe.clips))
        pixels = read_frames(cache, unit, [frame.frame_index for frame in shown])
        masks = [decode(frame.mask) if frame.visible and frame.mask is not None else None for frame in shown]
        for mask in masks:
            if mask is not None and mask.shape != pixels.shape[1:3]:
                raise UnitError("mask_size", f"a mask is {mask.shape}, the video {pixels.shape[1:3]} (height, width)")
        times = [frame.time_s for frame in shown]
        drawn = render(view, list(pixels), masks, times, recipe.clips)
        pictures += [to_picture(picture, recipe.pictures, encoded=sees == "encoded", fitted=False) for picture in drawn]
    return pictures, times
