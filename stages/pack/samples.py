"""Records of samples from the rows of a shard.

The JSON is made by polars, whole columns at a time: a Python object for each caption costs several times as much as
all the rest of packing. Its fields and their order are those of `schemas.sample.Sample`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import polars as pl

from schemas.base import SCHEMA_VERSION
from schemas.caption import TASKS
from schemas.sample import Sample, SampleCaption, SampleEvent, SampleRegion

_MASK_FACTS = ("predicted_iou", "stability", "seed_agreement", "mask_source")
_REGION_FACTS = ("region_key", "source", "source_id", "split", "licence", "label")
_RANK = {task: rank for rank, task in enumerate(TASKS)}

COLUMNS: dict[str, tuple[str, ...]] = {
    "media": (
        "media_key", "uri", "portable", "kind", "width", "height", "encoding", "orientation", "num_frames", "fps",
        "form", "clip_indices", "pack_split", "group_key",
    ),
    "regions": (*_REGION_FACTS, "media_key", "frame_index", "time_s", "box", "points"),
    "masks": (
        *_MASK_FACTS, "region_key", "media_key", "digest", "segment", "frame_index", "time_s", "box", "mask", "frames",
    ),
    "events": (*SampleEvent.model_fields, "region_key", "media_key"),
    "captions": (*SampleCaption.model_fields, "region_key", "media_key"),
}  # fmt: skip
"""What a shard's bodies hold of each table."""


def samples_of(
    media: pl.DataFrame, regions: pl.DataFrame, masks: pl.DataFrame, events: pl.DataFrame, captions: pl.DataFrame
) -> Iterator[tuple[dict[str, Any], Sample]]:
    """Each media row with the sample written for it, in the order of `media`.

    Regions come by key, captions by task, language and event. `frame_times_s` is left empty; whoever decodes a clip
    fills it. A media without regions here has an empty list.
    """
    rows = media.to_dicts()
    records = records_of(media, regions, masks, events, captions)["record"]
    for row, text in zip(rows, records, strict=True):
        yield row, Sample.model_validate_json(text)


def records_of(
    media: pl.DataFrame, regions: pl.DataFrame, masks: pl.DataFrame, events: pl.DataFrame, captions: pl.DataFrame
) -> pl.DataFrame:
    """The samples of `samples_of` as JSON: `record`, and the counts `num_regions` and `num_captions`, a row a media."""
    packed = _regions(regions, masks, events, captions)
    listed = packed.group_by("media_key", maintain_order=True).agg(
        regions=pl.struct(list(SampleRegion.model_fields)),
        num_regions=pl.len().cast(pl.Int64),
        num_captions=pl.col("captions").list.len().sum().cast(pl.Int64),
    )
    rows = media.join(listed, on="media_key", how="left", maintain_order="left")
    about = pl.struct(
        _hex("media_key"),
        pl.col("portable").alias("uri"),
        "kind",
        "width",
        "height",
        pl.when(pl.col("form") == "clip").then(pl.lit("jpg")).otherwise("form").alias("encoding"),
        "num_frames",
        "fps",
        pl.col("clip_indices").alias("frame_indices"),
        pl.lit([], pl.List(pl.Float64)).alias("frame_times_s"),
    )
    version = pl.lit(SCHEMA_VERSION).alias("schema_version")
    sample = pl.struct(version, about.alias("media"), pl.col("regions").fill_null([]))
    return rows.select(
        sample.struct.json_encode().alias("record"),
        pl.col("num_regions").fill_null(0),
        pl.col("num_captions").fill_null(0),
    )


def _regions(regions: pl.DataFrame, masks: pl.DataFrame, events: pl.DataFrame, captions: pl.DataFrame) -> pl.DataFrame:
    """Regions that have captions, with the fields of `SampleRegion` and `media_key`, by key.

    The prompt is the refined mask's own box and frame where there is one; the source's points stay.
    """
    joined = regions.sort("region_key")
    for part in (_captions(captions), _masks(masks)):
        how: Any = "inner" if "captions" in part.columns else "left"
        joined = joined.join(part, on="region_key", how=how, maintain_order="left")
    joined = joined.join(_events(events), on="region_key", how="left", maintain_order="left")
    refined = pl.col("mask_box").is_not_null()
    chosen = {name: pl.when(refined).then(f"mask_{name}").otherwise(name) for name in ("box", "frame_index", "time_s")}
    lists = [pl.col(name).fill_null([]) for name in ("points", "frames", "events")]
    return joined.with_columns(*lists, _hex("region_key"), **chosen)


def _captions(captions: pl.DataFrame) -> pl.DataFrame:
    order = pl.col("task").replace_strict(_RANK, return_dtype=pl.Int8)
    fields = [_hex(name) if name == "prompt_hash" else pl.col(name) for name in SampleCaption.model_fields]
    ordered = captions.sort(order, "language", "event_index", maintain_order=True)
    return ordered.group_by("region_key", maintain_order=True).agg(captions=pl.struct(fields))


def _masks(masks: pl.DataFrame) -> pl.DataFrame:
    """A row a region: the facts of its first segment with a mask, the frames of all."""
    ordered = masks.sort(pl.col("mask").is_null(), "segment", maintain_order=True)
    facts = ordered.group_by("region_key", maintain_order=True).agg(
        pl.col(*_MASK_FACTS, "mask").first(),
        pl.col("box", "frame_index", "time_s").first().name.prefix("mask_"),
    )
    tracked = masks.filter(pl.col("frames").is_not_null()).sort("segment")
    frames = tracked.group_by("region_key", maintain_order=True).agg(pl.col("frames").explode().drop_nulls())
    return facts.join(frames, on="region_key", how="left", maintain_order="left")


def _events(events: pl.DataFrame) -> pl.DataFrame:
    ordered = events.sort("event_index", maintain_order=True)
    return ordered.group_by("region_key", maintain_order=True).agg(events=pl.struct(list(SampleEvent.model_fields)))


def _hex(name: str) -> pl.Expr:
    return pl.col(name).bin.encode("hex").alias(name)
