"""Refinement of videos: each object from its prompt frame through the whole video, in segments as they are done.

On frames that the source annotates, its mask stands unless `prefer` is `refined` (people drew it, and a tracker's is
rarely better), and where the source says that the target is absent it is absent. In between, the tracker's masks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from schemas.geometry import FrameMask, TrackPoint
from schemas.mask import SEGMENT_FRAMES, Mask
from stages import masks
from stages.base import UnitError
from stages.masks import MaskArray
from stages.media.video import Video, open_video
from stages.refine.config import RefineConfig
from stages.refine.images import ImageRefiner
from stages.refine.rows import failed_row, mask_row, num_segments
from stages.refine.seeds import Pixels, RefineUnit, Seed, seed_of, source_mask
from stages.refine.verdict import Verdict, judge, measure
from stages.runs import Outline

RELIABLE_J = 0.7


@dataclass(frozen=True)
class Start:
    """An object to follow: its mask on its prompt frame, and what the source says of it on other frames."""

    frame: int
    mask: MaskArray
    known: dict[int, TrackPoint]


class Found(NamedTuple):
    """A tracker's answer for one object (its place in the list of starts) on one frame; no outline: not visible.

    `renewed` says why its track was started anew on this frame, where it was.
    """

    frame: int
    number: int
    outline: Outline | None
    score: float | None
    renewed: str | None = None


class Tracker(Protocol):
    """What a video back end does."""

    def follow(self, video: Video, starts: Sequence[Start]) -> Iterator[list[Found]]:
        """Every object on every frame of the video, once, in any order, some at a time; a prompted frame included."""


def refine_video(
    units: Sequence[RefineUnit], images: ImageRefiner, tracker: Tracker, config: RefineConfig
) -> Iterator[list[Mask]]:
    """The rows of a video's regions, a segment of all of them at a time, as each is done."""
    try:
        video = open_video(units[0].uri, fps=units[0].fps)
    except UnitError as error:
        yield [failed_row(unit, config.backend, error) for unit in units]
        return
    try:
        started, failed = _started(units, video, images, config)
        if failed:
            yield failed
        if started:
            yield from segments(started, video, tracker, config)
    finally:
        video.close()


def _started(
    units: Sequence[RefineUnit], video: Video, images: ImageRefiner, config: RefineConfig
) -> tuple[list[tuple[RefineUnit, Verdict]], list[Mask]]:
    """Each region's mask on its prompt frame; regions that have none come back as failed rows."""
    started: list[tuple[RefineUnit, Verdict]] = []
    failed: list[Mask] = []
    by_frame: dict[int, list[RefineUnit]] = defaultdict(list)
    for unit in units:
        by_frame[unit.frame_index].append(unit)
    for frame, members in sorted(by_frame.items()):
        if not 0 <= frame < len(video):
            error = UnitError("bad_frame", f"the prompt is on frame {frame}, the video has {len(video)} frames")
            failed += [failed_row(unit, config.backend, error) for unit in members]
            continue
        try:
            image = video.frames([frame])[0]
        except UnitError as error:
            failed += [failed_row(unit, config.backend, error) for unit in members]
            continue
        more, less = _judged(members, image, images, config)
        started += more
        failed += less
    return started, failed


def _judged(
    units: Sequence[RefineUnit], image: Pixels, images: ImageRefiner, config: RefineConfig
) -> tuple[list[tuple[RefineUnit, Verdict]], list[Mask]]:
    """The masks of all regions that are prompted on one frame."""
    seeds: list[tuple[RefineUnit, Seed]] = []
    started: list[tuple[RefineUnit, Verdict]] = []
    failed: list[Mask] = []
    for unit in units:
        try:
            seeds.append((unit, seed_of(_with_track(unit), image.shape[0], image.shape[1])))
        except UnitError as error:
            failed.append(failed_row(unit, config.backend, error))
    candidates = images.refine(image, [seed for _, seed in seeds]) if seeds else []
    for (unit, seed), candidate in zip(seeds, candidates, strict=True):
        try:
            started.append((unit, judge(image, seed, candidate, config.prefer, config.fill_holes)))
        except UnitError as error:
            failed.append(failed_row(unit, config.backend, error))
    return started, failed


def _with_track(unit: RefineUnit) -> RefineUnit:
    """A region without a prompt of its own is prompted by what its track says on the prompt frame."""
    if unit.box or unit.points or unit.polygons or unit.mask:
        return unit
    for point in unit.track or []:
        if point.frame_index == unit.frame_index:
            return unit.model_copy(update={"box": point.box, "mask": point.mask})
    return unit


@dataclass
class _Told:
    """What the frames of one object have told so far: J and F on annotated frames, and where its track was renewed."""

    j: list[float] = field(default_factory=list)
    f: list[float] = field(default_factory=list)
    renewed: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        said = ""
        if self.j:
            j, f = sum(self.j) / len(self.j), sum(self.f) / len(self.f)
            trust = "" if j >= RELIABLE_J else ", unreliable"
            said += f"; tracked with mean J {j:.2f}, F {f:.2f}, J&F {(j + f) / 2:.2f} on {len(self.j)} annotated frames"
            said += f" so far{trust}"
        return said + (f"; tracked anew from {', '.join(self.renewed)}" if self.renewed else "")


def segments(
    started: Sequence[tuple[RefineUnit, Verdict]], video: Video, tracker: Tracker, config: RefineConfig
) -> Iterator[list[Mask]]:
    """The rows of regions whose prompt frames are judged, a segment of all of them at a time."""
    known = [{p.frame_index: p for p in unit.track or [] if p.frame_index < len(video)} for unit, _ in started]
    starts = [Start(u.frame_index, v.mask, k) for (u, v), k in zip(started, known, strict=True)]
    count = num_segments(len(video))
    frames: list[dict[int, dict[int, FrameMask]]] = [defaultdict(dict) for _ in range(count)]
    told = [_Told() for _ in started]
    open_segments = set(range(count))
    with ThreadPoolExecutor(config.workers or 8) as pool:
        try:
            for found in tracker.follow(video, starts):
                slow = any(one.frame in known[one.number] for one in found)  # pixels are to be compared
                work = (pool.map if slow else map)(lambda one: _frame(one, starts[one.number], video, config), found)
                for one, (frame, measures) in zip(found, work, strict=True):
                    frames[one.frame // SEGMENT_FRAMES][one.number][one.frame] = frame
                    if measures is not None:
                        told[one.number].j.append(measures[0])
                        told[one.number].f.append(measures[1])
                    if one.renewed is not None:
                        told[one.number].renewed.append(f"frame {one.frame} ({one.renewed})")
                for index in sorted(open_segments):
                    expected = min(SEGMENT_FRAMES, len(video) - index * SEGMENT_FRAMES)
                    if all(len(frames[index][number]) == expected for number in range(len(started))):
                        open_segments.remove(index)
                        yield _rows(started, frames[index], told, index, count, config)
                        frames[index].clear()
        except UnitError as error:  # the video breaks off: what is done stands, the rest says why it is not
            yield [
                failed_row(unit, config.backend, error, index, count)
                for index in sorted(open_segments)
                for unit, _ in started
            ]


def _frame(
    found: Found, start: Start, video: Video, config: RefineConfig
) -> tuple[FrameMask, tuple[float, float] | None]:
    """One frame's record, and the tracked mask's J and F where the source has a mask that the tracker was not shown."""
    point = start.known.get(found.frame)
    outline, agreed = found.outline, None
    if point is not None and point.mask is not None:
        source = source_mask(point.mask, None, video.height, video.width)
        if source is not None:
            if found.frame != start.frame:
                mask = masks.decode(outline.rle) if outline is not None else np.zeros_like(source)
                agreed = masks.jaccard(mask, source), masks.boundary_f(mask, source)
            if config.prefer != "refined" or outline is None:
                outline = measure(source, masks.box_of(source))
    elif point is not None and point.box is None and config.prefer != "refined":
        outline = None
    time_s = float(video.times_s[found.frame])
    if outline is None or outline.box is None:
        return FrameMask(frame_index=found.frame, time_s=time_s, visible=False, object_score=found.score), agreed
    return (
        FrameMask(
            frame_index=found.frame,
            time_s=time_s,
            visible=True,
            box=outline.box,
            mask=outline.rle,
            area_share=outline.area / (video.height * video.width),
            object_score=found.score,
        ),
        agreed,
    )


def _rows(
    started: Sequence[tuple[RefineUnit, Verdict]], segment: dict[int, dict[int, FrameMask]],
    told: Sequence[_Told], index: int, count: int, config: RefineConfig,
) -> list[Mask]:  # fmt: skip
    rows = []
    for number, (unit, verdict) in enumerate(started):
        ordered = [segment[number][frame] for frame in sorted(segment[number])]
        row = mask_row(unit, config.backend, verdict, index, ordered)
        rows.append(row.model_copy(update={"num_segments": count, "verdict": f"{verdict.verdict}{told[number]}"}))
    return rows


def passes(starts: Sequence[Start], num_frames: int) -> Iterator[tuple[bool, int, list[int]]]:
    """(backwards?, frame, the objects to follow on it): back from each start, then forwards, each frame once."""
    for frame in range(max(s.frame for s in starts) - 1, -1, -1):
        yield True, frame, [n for n, s in enumerate(starts) if frame < s.frame]
    for frame in range(min(s.frame for s in starts), num_frames):
        yield False, frame, [n for n, s in enumerate(starts) if frame >= s.frame]
