"""The record of one media in a shard: readable JSON, free of the engine's own code."""

from __future__ import annotations

from schemas.base import Box, Key, Record
from schemas.caption import NO_EVENT, Language, Task
from schemas.geometry import FrameMask, Point, Rle
from schemas.media import MediaKind


class SampleMedia(Record):
    """The image, or the clip whose frames `frame_indices` (source indices) lie in the sample at `frame_times_s`."""

    media_key: Key
    uri: str
    kind: MediaKind
    width: int
    height: int
    encoding: str
    num_frames: int = 1
    fps: float | None = None
    frame_indices: list[int] = []
    frame_times_s: list[float] = []


class SampleEvent(Record):
    """One event of a region's masklet, frames inclusive."""

    event_index: int
    start_frame: int
    end_frame: int
    start_s: float
    end_s: float
    absent: bool
    motion: str | None = None


class SampleCaption(Record):
    """One kept caption with what made it.

    How it was asked for (views, decoding), what it cost and what rules measured of it lies in the pack's sampling
    index: records stay small, and a policy that names other scores rewrites none that it does not change.
    """

    task: Task
    language: Language
    text: str
    event_index: int = NO_EVENT
    label: str | None = None
    definition: str | None = None
    function: str | None = None
    history: str | None = None
    teacher: str
    model: str
    prompt_id: str
    prompt_hash: Key


class SampleRegion(Record):
    """One region: prompts (box xyxy, points), its mask, its masklet for a video, its captions, its provenance."""

    region_key: Key
    source: str
    source_id: str
    split: str
    licence: str | None = None
    label: str | None = None
    frame_index: int = 0
    time_s: float = 0.0
    box: Box | None = None
    points: list[Point] = []
    mask: Rle | None = None
    frames: list[FrameMask] = []
    predicted_iou: float | None = None
    stability: float | None = None
    seed_agreement: float | None = None
    mask_source: str | None = None
    events: list[SampleEvent] = []
    captions: list[SampleCaption] = []


class Sample(Record):
    """The `.json` member of a shard."""

    schema_version: int
    media: SampleMedia
    regions: list[SampleRegion]
