"""The stage that cuts masklets into events."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from schemas.arrow import to_table
from schemas.base import Key, Record, Row
from schemas.event import Event
from schemas.geometry import FrameMask, Rle
from schemas.keys import digest_value
from stages.base import Stage, UnitError
from stages.chunk import spans as rules
from stages.chunk.config import ChunkConfig
from stages.chunk.features import Masklet, Read, Timeline, read_masklets
from stages.chunk.file import load_spans, spans_for
from stages.chunk.motion import Look, motion_spans
from stages.chunk.pixels import SmallFrames, look_at
from stages.chunk.shots import shot_starts
from stages.chunk.spans import Span

if TYPE_CHECKING:
    from stages.teachers.config import TeacherConfig
    from stages.teachers.source import TeacherSource


class ChunkUnit(Record):
    """One masklet: `frames` are the frames of all its segments; sizes are of the upright video in pixels."""

    region_key: Key
    media_key: Key
    source_id: str | None = None
    label: str | None = None
    uri: str
    width: int
    height: int
    fps: float | None = None
    num_frames: int = 1
    duration_s: float | None = None
    frames: list[FrameMask] | None = None
    input_digest: Key


@dataclass(frozen=True)
class Masked:
    """A unit that can be cut: its plain fields, its masklet's frames as mappings, in order, and the time they cover."""

    fields: Mapping[str, Any]
    frames: list[dict[str, Any]]
    start_s: float
    end_s: float


class ChunkStage(Stage):
    """Events of masklets. A region with its masklet is one unit; its events are as many rows.

    A masklet in which the target is never visible is `filtered` (`never_visible`), one without frames or with broken
    masks is `failed` (`empty_masklet`, `invalid_mask`), as is one whose video must be read and cannot be.
    """

    name: ClassVar[str] = "chunk"
    version: ClassVar[int] = 1
    table: ClassVar[str] = "events"
    unit: ClassVar[type[Record]] = ChunkUnit
    row: ClassVar[type[Row]] = Event
    unit_field: ClassVar[str] = "region_key"
    group_by: ClassVar[tuple[str, ...]] = ("region_key",)
    count_field: ClassVar[str | None] = "num_events"
    batch_groups: int = 64

    def __init__(self, config: ChunkConfig) -> None:
        self.config = config
        self._spans = load_spans(config.file) if config.file is not None else {}

    def settings(self) -> dict[str, Any]:
        settings = self.config.model_dump(mode="json", exclude={"file", "shots", "uniform_s"})
        if self.config.backend != "motion":
            settings["described"] = 2  # raised when `spans.described` would tell the same spans in other words
        if self.config.backend == "file":
            settings["spans"] = digest_value(self._spans).hex()
        if self.config.backend == "shots":
            settings["shots"] = self.config.shots.model_dump(mode="json")
        if self.config.backend == "uniform":
            settings["uniform_s"] = self.config.uniform_s
        return settings

    def open(self) -> None:
        self._frames = SmallFrames(self.config.motion.side)
        self._shots: dict[str, list[float]] = {}

    def process(self, units: pa.Table) -> Iterator[pa.Table]:
        plain = units.select([name for name in units.column_names if name != "frames"]).to_pylist()
        sizes = [u["width"] for u in plain], [u["height"] for u in plain]
        limits = self.config.motion.max_fps, self.config.motion.max_samples
        read = read_masklets(units["frames"], *sizes, *limits)
        events: list[Event] = []
        ready: list[int] = []
        looks: list[Look | None] = []
        whole: list[Read] = []
        for i, found in enumerate(read):
            try:
                usable = _usable(found)
                looks.append(self._look(plain[i], usable[1], units["frames"], i))
                ready.append(i)
                whole.append(usable)
            except UnitError as error:
                events.append(_refused(plain[i], self.config, error))
        if ready:
            if self.config.backend == "teacher":
                self.prepare(
                    [_masked(plain[i], units["frames"], i, found[0]) for i, found in zip(ready, whole, strict=True)]
                )
            events += self._events([plain[i] for i in ready], whole, looks)
        yield to_table(events, Event)

    def prepare(self, units: Sequence[Masked]) -> None:
        """Called with the units of a batch before `spans_of`, by back ends that ask for spans together."""

    def spans_of(self, unit: Mapping[str, Any]) -> list[tuple[float, float]]:
        """The spans that were made elsewhere. Raises `UnitError` when there are none for this unit."""
        return spans_for(self._spans, unit)

    def _look(self, unit: Mapping[str, Any], taken: Masklet, frames: pa.ChunkedArray, row: int) -> Look | None:
        """The pixels' part, where this back end and configuration read them."""
        if not self.config.motion.pixels:
            return None
        small = self._frames.get(unit["uri"], unit["fps"], taken.frame.tolist())
        wanted = set(taken.frame.tolist())
        masks = {
            frame["frame_index"]: Rle(**frame["mask"])
            for frame in frames[row].as_py()
            if frame["frame_index"] in wanted and frame["visible"] and frame["mask"] is not None
        }
        return look_at(taken, [masks.get(index) for index in taken.frame.tolist()], small)

    def _events(self, units: list[dict[str, Any]], read: list[Read], looks: list[Look | None]) -> list[Event]:
        config = self.config
        ends = [_end_s(unit, whole) for unit, (whole, _) in zip(units, read, strict=True)]
        measured = motion_spans([masklet for _, masklet in read], looks, ends, config)
        events: list[Event] = []
        for unit, (whole, _), end, spans in zip(units, read, ends, measured, strict=True):
            try:
                proposed, note = self._proposed(unit, whole, end, spans)
            except UnitError as error:
                events.append(_refused(unit, config, error))
                continue
            kept = rules.lengths(proposed, config.min_s, config.max_s)
            events += _told(unit, whole, kept, config, note)
        return events

    def _proposed(
        self, unit: Mapping[str, Any], whole: Timeline, end_s: float, measured: list[Span]
    ) -> tuple[list[Span], str | None]:
        """The back end's spans with absences and motion words, and what was mended in them."""
        backend = self.config.backend
        start_s = float(whole.time_s[0])
        notes: list[str] = []
        if backend == "motion":
            return measured, None
        if backend == "uniform":
            proposed = rules.uniform(start_s, end_s, self.config.uniform_s)
        elif backend == "shots":
            cuts = [cut for cut in self._shot_starts(unit) if start_s < cut < end_s]
            edges = [start_s, *cuts, end_s]
            proposed, notes = rules.repair(list(itertools.pairwise(edges)), start_s, end_s)
        else:
            proposed, notes = rules.repair(self.spans_of(unit), start_s, end_s)
        gone = [(span.start_s, span.end_s) for span in measured if span.absent]
        return rules.described(rules.with_absences(proposed, gone), measured), "; ".join(notes) or None

    def _shot_starts(self, unit: Mapping[str, Any]) -> list[float]:
        if unit["uri"] not in self._shots:
            self._shots = {unit["uri"]: shot_starts(unit["uri"], unit["fps"], self.config.shots)}
        return self._shots[unit["uri"]]


def build_chunk(
    config: ChunkConfig,
    teacher: TeacherConfig | None = None,
    ledger: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    source: TeacherSource | None = None,
) -> ChunkStage:
    """The chunk stage of a configuration; the back end `teacher` needs the run's teacher and its ledger.

    `source` is where that teacher comes from, where other stages ask it as well. Raises `ValueError` for a spans file
    that cannot be read and for a teacher that cannot see.
    """
    if config.backend != "teacher":
        return ChunkStage(config)
    if teacher is None:
        raise ValueError("chunk backend 'teacher' needs a teacher")
    from stages.chunk.teacher import TeacherChunkStage  # brings in all of distil: only where it is used
    from stages.teachers.source import TeacherSource as Source

    source = source or Source(teacher, ledger, dict(storage_options or {}))
    return TeacherChunkStage(config, teacher, source)


def _masked(unit: Mapping[str, Any], frames: pa.ChunkedArray, row: int, whole: Timeline) -> Masked:
    ordered = sorted(frames[row].as_py(), key=lambda frame: frame["frame_index"])
    return Masked(unit, ordered, float(whole.time_s[0]), _end_s(unit, whole))


def _usable(found: Read | str) -> Read:
    if isinstance(found, str):
        reason = "empty_masklet" if found.endswith("no frames") else "invalid_mask"
        raise UnitError(reason, found)
    if not found[1].visible.any():
        raise UnitError("never_visible", "the target is visible on no frame of its masklet")
    return found


def _end_s(unit: Mapping[str, Any], masklet: Timeline) -> float:
    """The masklet's end: one step after its last frame, within the video's duration where that is known."""
    times = masklet.time_s
    step = float(np.median(np.diff(times))) if len(times) > 1 else 1.0 / (unit["fps"] or 1.0)
    end = float(times[-1]) + step
    duration = unit["duration_s"]
    return min(end, duration) if duration and duration > float(times[-1]) else end


def _told(
    unit: Mapping[str, Any], masklet: Timeline, spans: list[Span], config: ChunkConfig, note: str | None
) -> list[Event]:
    """The rows of a unit's spans; frames inclusive at both ends, from the first shown at or after a span's start."""
    edges = np.array([span.start_s for span in spans])
    starts = np.ceil(np.interp(edges, masklet.time_s, masklet.frame) - 1e-6).astype(int)
    ends = np.maximum(starts, np.append(starts[1:] - 1, masklet.frame[-1]))
    low, high = np.searchsorted(masklet.frame, starts, "left"), np.searchsorted(masklet.frame, ends, "right")
    seen = np.concatenate(([0], np.cumsum(masklet.visible)))
    shares = [
        float(seen[b] - seen[a]) / float(b - a) if b > a else float(not span.absent)
        for span, a, b in zip(spans, low, high, strict=True)
    ]
    return [
        Event(
            event_key=_event_key(unit["region_key"], index),
            region_key=unit["region_key"],
            media_key=unit["media_key"],
            event_index=index,
            num_events=len(spans),
            start_frame=start,
            end_frame=end,
            start_s=span.start_s,
            end_s=span.end_s,
            visible_share=share,
            absent=span.absent,
            motion=span.motion,
            displacement=span.displacement,
            backend=config.backend,
            message=note,
            input_digest=unit["input_digest"],
        )
        for index, (span, start, end, share) in enumerate(
            zip(spans, starts.tolist(), ends.tolist(), shares, strict=True)
        )
    ]


def _refused(unit: Mapping[str, Any], config: ChunkConfig, error: UnitError) -> Event:
    """The one row of a unit that has no events."""
    return Event(
        event_key=_event_key(unit["region_key"], 0),
        region_key=unit["region_key"],
        media_key=unit["media_key"],
        event_index=0,
        num_events=1,
        start_frame=0,
        end_frame=0,
        start_s=0.0,
        end_s=0.0,
        visible_share=0.0,
        absent=True,
        backend=config.backend,
        message=error.message,
        status="filtered" if error.reason == "never_visible" else "failed",
        reason=error.reason,
        input_digest=unit["input_digest"],
    )


def _event_key(region_key: bytes, index: int) -> bytes:
    return digest_value({"region_key": region_key, "event_index": index})
