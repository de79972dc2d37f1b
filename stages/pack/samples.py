"""Records of samples from the rows of a shard."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import polars as pl

from schemas.base import SCHEMA_VERSION
from schemas.caption import TASKS
from schemas.sample import Sample, SampleCaption, SampleEvent, SampleMedia, SampleRegion

Rows = list[dict[str, Any]]

_MASK_FACTS = ("predicted_iou", "stability", "seed_agreement", "mask_source")
_REGION_FACTS = ("region_key", "source", "source_id", "split", "licence", "label")


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
        yield row, Sample(schema_version=SCHEMA_VERSION, media=_media(row), regions=packed)


def _by(rows: Rows, name: str) -> dict[bytes, Rows]:
    found: dict[bytes, Rows] = {}
    for row in rows:
        found.setdefault(row[name], []).append(row)
    return found


def _media(row: dict[str, Any]) -> SampleMedia:
    return SampleMedia(
        media_key=row["media_key"],
        uri=row["portable"],
        kind=row["kind"],
        width=row["width"],
        height=row["height"],
        encoding="jpg" if row["form"] == "clip" else row["form"],
        num_frames=row["num_frames"],
        fps=row["fps"],
        frame_indices=row["clip_indices"],
    )


def _region(region: dict[str, Any], masks: Rows, events: Rows, captions: Rows) -> SampleRegion:
    """The prompt is the refined mask's own box and frame where there is one; the source's points stay."""
    segments = sorted(masks, key=lambda mask: mask["segment"])
    first = next((mask for mask in segments if mask["mask"] is not None), segments[0] if segments else region)
    refined = first is not region and first["box"] is not None
    prompt = first if refined else region
    facts: dict[str, Any] = {name: region[name] for name in _REGION_FACTS}
    facts |= {name: first.get(name) for name in _MASK_FACTS}
    return SampleRegion(
        **facts,
        frame_index=prompt["frame_index"],
        time_s=prompt["time_s"],
        box=prompt["box"],
        points=region["points"] or [],
        mask=first["mask"],
        frames=[frame for segment in segments for frame in segment["frames"] or []],
        events=[_pick(SampleEvent, event) for event in sorted(events, key=lambda event: event["event_index"])],
        captions=[_pick(SampleCaption, caption) for caption in sorted(captions, key=_caption_order)],
    )


def _caption_order(caption: dict[str, Any]) -> tuple[int, str, int]:
    return TASKS.index(caption["task"]), caption["language"], caption["event_index"]


def _pick(model: type[Any], row: dict[str, Any]) -> Any:
    return model(**{name: row[name] for name in model.model_fields})
