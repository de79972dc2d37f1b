"""Records of samples from the rows of a shard."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import polars as pl

from schemas.base import SCHEMA_VERSION
from schemas.caption import TASKS
from schemas.sample import Sample, SampleCaption, SampleEvent

Row = dict[str, Any]
Rows = list[Row]

_MASK_FACTS = ("predicted_iou", "stability", "seed_agreement", "mask_source")
_REGION_FACTS = ("region_key", "source", "source_id", "split", "licence", "label")
_EVENT_FIELDS = tuple(SampleEvent.model_fields)
_CAPTION_FIELDS = tuple(SampleCaption.model_fields)

COLUMNS: dict[str, tuple[str, ...]] = {
    "media": (
        "media_key", "uri", "portable", "kind", "width", "height", "encoding", "orientation", "num_frames", "fps",
        "form", "clip_indices", "pack_split", "group_key",
    ),
    "regions": (*_REGION_FACTS, "media_key", "frame_index", "time_s", "box", "points"),
    "masks": (
        *_MASK_FACTS, "region_key", "media_key", "digest", "segment", "frame_index", "time_s", "box", "mask", "frames",
    ),
    "events": (*_EVENT_FIELDS, "region_key", "media_key"),
    "captions": (*_CAPTION_FIELDS, "region_key", "media_key"),
}  # fmt: skip
"""What a shard's bodies hold of each table."""


def samples_of(
    media: pl.DataFrame, regions: pl.DataFrame, masks: pl.DataFrame, events: pl.DataFrame, captions: pl.DataFrame
) -> Iterator[tuple[dict[str, Any], Sample]]:
    """Each media row with the sample written for it, in the order of `media`.

    Regions come by key, captions by task, language and event. `frame_times_s` is left empty; whoever decodes a clip
    fills it. A media without regions here has an empty list.
    """
    regions_of = _by(regions.to_dicts(), "media_key")
    masks_of = _by(masks.to_dicts(), "region_key")
    events_of = _by(events.to_dicts(), "region_key")
    captions_of = _by(captions.to_dicts(), "region_key")
    for row in media.to_dicts():
        packed = [
            _region(region, masks_of.get(key, []), events_of.get(key, []), captions_of.get(key, []))
            for region in sorted(regions_of.get(row["media_key"], []), key=lambda found: bytes(found["region_key"]))
            if (key := region["region_key"]) in captions_of
        ]
        # Validated in one go: a call for each nested record costs several times as much.
        sample = {"schema_version": SCHEMA_VERSION, "media": _media(row), "regions": packed}
        yield row, Sample.model_validate(sample)


def _by(rows: Rows, name: str) -> dict[bytes, Rows]:
    found: dict[bytes, Rows] = {}
    for row in rows:
        found.setdefault(row[name], []).append(row)
    return found


def _media(row: Row) -> Row:
    return {
        "media_key": row["media_key"],
        "uri": row["portable"],
        "kind": row["kind"],
        "width": row["width"],
        "height": row["height"],
        "encoding": "jpg" if row["form"] == "clip" else row["form"],
        "num_frames": row["num_frames"],
        "fps": row["fps"],
        "frame_indices": row["clip_indices"],
    }


def _region(region: Row, masks: Rows, events: Rows, captions: Rows) -> Row:
    """The prompt is the refined mask's own box and frame where there is one; the source's points stay."""
    segments = sorted(masks, key=lambda mask: int(mask["segment"]))
    first = next((mask for mask in segments if mask["mask"] is not None), segments[0] if segments else None)
    prompt = first if first is not None and first["box"] is not None else region
    facts = {name: first[name] for name in _MASK_FACTS} if first is not None else {}
    return {
        **{name: region[name] for name in _REGION_FACTS},
        **facts,
        "frame_index": prompt["frame_index"],
        "time_s": prompt["time_s"],
        "box": prompt["box"],
        "points": region["points"] or [],
        "mask": first["mask"] if first is not None else None,
        "frames": [frame for segment in segments for frame in segment["frames"] or []],
        "events": [
            {name: event[name] for name in _EVENT_FIELDS}
            for event in sorted(events, key=lambda event: int(event["event_index"]))
        ],
        "captions": [
            {name: caption[name] for name in _CAPTION_FIELDS} for caption in sorted(captions, key=_caption_order)
        ],
    }


def _caption_order(caption: Row) -> tuple[int, str, int]:
    return TASKS.index(caption["task"]), caption["language"], caption["event_index"]
