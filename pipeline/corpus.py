"""The corpus as frames, and the units that each stage takes from them: joins by column name, nothing computed twice.

All functions are pure: current rows in, units out. A unit's `input_digest` covers the columns that its stage reads
and nothing else, so that a change recomputes what depends on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import polars as pl
import pyarrow as pa

from schemas.arrow import arrow_schema, conform
from schemas.base import Record
from schemas.caption import NO_EVENT, Language, Task
from schemas.keys import digest_columns
from schemas.region import HintKind
from stages.draws import drawn

GEOMETRY = ("media_key", "kind", "frame_index", "time_s", "box", "points", "polygons", "mask", "track")
MEDIA_COLUMNS = ("media_key", "width", "height", "num_frames", "fps", "duration_s", "orientation", "group_key")
MASK_SCORES = (
    "predicted_iou", "stability", "seed_agreement", "area_share", "parts", "main_part_share",
    "holes_filled", "mask_source",
)  # fmt: skip
BOOKKEEPING = ("input_digest", "digest", "status", "reason", "attempts", "message")
SEED_NAMES = {"box": "seed_box", "points": "seed_points", "polygons": "seed_polygons", "mask": "seed_mask"}
VIDEO_TASKS: tuple[Task, ...] = ("video", "stream")
MOST_OTHERS = 32
"""Of how many captions of a media the texts are told to rules that compare a caption with what is said of others."""


@dataclass(frozen=True)
class Asked:
    """What is asked of one source: tasks (None: the run's own) and languages; of what kinds its hints are that the
    teacher is told, in this order (None: all as they come).
    """

    tasks: tuple[Task, ...] | None
    languages: tuple[Language, ...]
    hints: tuple[HintKind, ...] | None = None


def digest(frame: pl.DataFrame, columns: Iterable[str]) -> pl.Series:
    """The digest of these columns, row by row, as a binary series."""
    hashed = digest_columns({name: frame[name].to_arrow() for name in columns})
    return pl.Series("digest", hashed.cast(pa.binary()), dtype=pl.Binary)


def to_units(frame: pl.DataFrame, unit: type[Record]) -> pa.Table:
    """The columns of a unit record out of a wider frame; nullable columns that it lacks are null."""
    wanted = [name for name in unit.model_fields if name in frame.columns]
    return conform(frame.select(wanted).to_arrow(), arrow_schema(unit))


def located(regions: pl.DataFrame, media: pl.DataFrame, selection: pl.DataFrame) -> pl.DataFrame:
    """Selected regions with their media's facts, one row a region."""
    chosen = selection.filter(pl.col("status") == "ok").select("region_key")
    good = regions.filter(pl.col("status") == "ok").join(chosen, on="region_key", how="semi").drop(BOOKKEEPING)
    facts = media.filter(pl.col("status") == "ok").select(MEDIA_COLUMNS)
    return good.join(facts, on="media_key", how="inner", maintain_order="left")


def refine_units(regions: pl.DataFrame, unit: type[Record]) -> pa.Table:
    """Units of refine from `located` regions; the digest covers the geometry alone."""
    return to_units(regions.with_columns(input_digest=digest(regions, GEOMETRY)), unit)


def whole_masks(masks: pl.DataFrame) -> pl.DataFrame:
    """One row a region whose mask is complete and `ok`: scores of its first segment, frames of all, `mask_digest`."""
    good = masks.group_by("region_key").agg(
        ok=(pl.col("status") == "ok").all() & (pl.len() == pl.col("num_segments").first())
    )
    chosen = masks.join(good.filter("ok"), on="region_key", how="semi").sort("region_key", "segment")
    whole = chosen.group_by("region_key", maintain_order=True).agg(
        pl.col("mask", "box", "backend", *MASK_SCORES).first(),
        frames=pl.col("frames").explode(),
        digests=pl.col("digest"),
    )
    if not len(whole):
        return whole.with_columns(mask_digest=pl.lit(None, pl.Binary)).drop("digests")
    empty = whole["frames"].list.eval(pl.element().is_not_null()).list.any()
    frames = pl.when(empty).then(pl.col("frames")).otherwise(None)
    return whole.with_columns(frames=frames, mask_digest=digest(whole, ["digests"])).drop("digests")


def masked(regions: pl.DataFrame, masks: pl.DataFrame) -> pl.DataFrame:
    """`located` regions that have a whole mask; their own geometry under its `seed_` names."""
    return regions.rename(SEED_NAMES).join(whole_masks(masks), on="region_key", how="inner", maintain_order="left")


def chunk_units(regions: pl.DataFrame, unit: type[Record]) -> pa.Table:
    """Units of chunk from `masked` regions: the videos."""
    videos = regions.filter(pl.col("kind") == "video")
    return to_units(videos.with_columns(input_digest=digest(videos, ["region_key", "mask_digest", "fps"])), unit)


def asked_of(
    regions: pl.DataFrame, asked: Mapping[str, Asked], default: Asked, task: Task, language: Language
) -> pl.DataFrame:
    """The regions of which this task is asked in this language, with what the teacher is told of them.

    Images have no video tasks; videos have these only, unless their source names its tasks itself.
    """
    rows = []
    for source in regions["source"].unique().to_list():
        wants = asked.get(source, default)
        own = wants.tasks if source in asked else None
        tasks = {"image": default.tasks or () if own is None else own, "video": VIDEO_TASKS if own is None else own}
        for kind, of_kind in tasks.items():
            possible = kind == "video" or task not in VIDEO_TASKS
            if possible and task in of_kind and language in wants.languages:
                rows.append({"source": source, "kind": kind})
    pairs = pl.DataFrame(rows, schema={"source": pl.String, "kind": pl.String})
    wanted = regions.join(pairs, on=["source", "kind"], how="semi")
    return told(wanted, {source: wants.hints for source, wants in asked.items() if wants.hints is not None})


def told(regions: pl.DataFrame, kinds: Mapping[str, Sequence[HintKind]]) -> pl.DataFrame:
    """Regions with the hints that the teacher is told: of their source's kinds, in this order, each once.

    Without the kind `label` the region's own label is not told either. Sources that `kinds` does not name keep all.
    """
    ranks = [
        {"source": source, "_kind": kind, "_rank": rank}
        for source, listed in kinds.items()
        for rank, kind in enumerate(listed)
    ]
    named = pl.col("source").is_in(list(kinds))
    if not kinds or not regions.select(named.any()).item():
        return regions
    rows = regions.with_row_index("_row")
    each = rows.filter(named).select("_row", "source", "hints").explode("hints").drop_nulls("hints")
    each = each.with_columns(_kind=pl.col("hints").struct.field("kind"))
    schema = {"source": pl.String, "_kind": pl.String, "_rank": pl.Int64}
    kept = each.join(pl.DataFrame(ranks, schema=schema), on=["source", "_kind"])
    kept = kept.unique(["_row", "hints"], keep="first", maintain_order=True).sort("_row", "_rank", maintain_order=True)
    lists = kept.group_by("_row", maintain_order=True).agg(_hints=pl.col("hints"))
    rows = rows.join(lists, on="_row", how="left", maintain_order="left")
    silent = pl.col("source").is_in([source for source, listed in kinds.items() if "label" not in listed])
    empty = pl.lit([], dtype=regions.schema["hints"])
    return rows.with_columns(
        hints=pl.when(named).then(pl.coalesce("_hints", empty)).otherwise("hints"),
        label=pl.when(silent).then(None).otherwise("label"),
    ).select(regions.columns)


def caption_keys(frame: pl.DataFrame, task: Task, language: Language) -> pl.DataFrame:
    """The frame with `task`, `language`, `event_index` (if it has none) and `caption_key`."""
    frame = frame.with_columns(task=pl.lit(task), language=pl.lit(language))
    if "event_index" not in frame.columns:
        frame = frame.with_columns(event_index=pl.lit(NO_EVENT, pl.Int64))
    return frame.with_columns(caption_key=digest(frame, ["region_key", "task", "language", "event_index"]))


_TEXT_INPUT = ("media_key", "mask_digest", "label", "hints", "is_part", "kind", "frame_index")


def distill_units(
    regions: pl.DataFrame, events: pl.DataFrame, task: Task, language: Language, unit: type[Record]
) -> pa.Table:
    """Units of distill for one task and language from `masked` regions of which it is asked.

    A stream unit is an event; its digest chains through the events before it. A video unit waits for its events.
    """
    if task == "stream":
        frame = _chained(regions, events)
    elif task == "video":
        listed = event_lists(events)
        frame = regions.join(listed, on="region_key", how="inner", maintain_order="left")
        frame = frame.with_columns(input_digest=digest(frame, [*_TEXT_INPUT, "events_digest"]))
    else:
        frame = regions.with_columns(input_digest=digest(regions, _TEXT_INPUT))
    return to_units(caption_keys(frame, task, language), unit)


_SOURCE = {"status": "source_status", "text": "source_text"} | {
    part: f"source_{part}" for part in ("label", "definition", "function")
}


def translation_units(
    regions: pl.DataFrame, captions: pl.DataFrame, task: Task, language: Language, unit: type[Record]
) -> pa.Table:
    """Units of translation from `masked` regions of which it is asked and the English captions of the same task.

    The digest is that of the English caption: a text that stays as it is is not translated again.
    """
    told = captions.filter((pl.col("task") == task) & (pl.col("language") == "en"))
    told = told.select("region_key", "event_index", "digest", *_SOURCE).rename(_SOURCE)
    frame = regions.join(told, on="region_key", how="inner", maintain_order="left")
    frame = frame.with_columns(input_digest=digest(frame, ["digest"]))
    return to_units(caption_keys(frame, task, language), unit)


_IMPORTED = ("region_key", "task", "language", "event_index", "text", "history", "question", "extra", "chain", "events")


def imported_units(regions: pl.DataFrame, events: pl.DataFrame, captions: pl.DataFrame, unit: type[Record]) -> pa.Table:
    """Units of import from `masked` regions and the captions that their sources bring along.

    Captions of a stream wait for the events of their region. A region has as many events as its longest stream: one in
    another language may end earlier.
    """
    place, stream = ["source", "source_id"], pl.col("task") == "stream"
    longest = (pl.col("event_index").max() + 1).over(*place, "task")
    told = captions.with_columns(chain=pl.when(stream).then(longest))
    frame = told.join(regions.select(*place, "region_key", "media_key"), on=place, how="inner", maintain_order="left")
    counted = events.group_by("region_key").agg(events=pl.col("num_events").first())
    frame = frame.join(counted, on="region_key", how="left", maintain_order="left")
    frame = frame.filter(~stream | pl.col("events").is_not_null())
    frame = frame.with_columns(events=pl.when(stream).then("events"))
    frame = frame.with_columns(
        caption_key=digest(frame, ["region_key", "task", "language", "event_index"]),
        input_digest=digest(frame, _IMPORTED),
    )
    return to_units(frame.unique("caption_key", keep="first", maintain_order=True), unit)


_EVENT_COLUMNS = (
    "region_key", "event_index", "num_events", "start_frame", "end_frame", "start_s", "end_s", "visible_share",
    "absent", "motion",
)  # fmt: skip


def event_lists(events: pl.DataFrame) -> pl.DataFrame:
    """One row a region whose events are complete: `events` (list of structs, in order) and `events_digest`."""
    whole = _whole_events(events)
    fields = ("event_index", "start_frame", "end_frame", "start_s", "end_s", "absent", "motion")
    grouped = whole.group_by("region_key", maintain_order=True).agg(events=pl.struct(fields), digests=pl.col("digest"))
    return grouped.with_columns(events_digest=digest(grouped, ["digests"])).drop("digests")


def _whole_events(events: pl.DataFrame) -> pl.DataFrame:
    complete = events.group_by("region_key").agg(
        ok=(pl.col("status") == "ok").all() & (pl.len() == pl.col("num_events").first())
    )
    return events.join(complete.filter("ok"), on="region_key", how="semi").sort("region_key", "event_index")


def _chained(regions: pl.DataFrame, events: pl.DataFrame) -> pl.DataFrame:
    whole = _whole_events(events).select(*_EVENT_COLUMNS, event_digest="digest")
    frame = whole.join(regions, on="region_key", how="inner", maintain_order="left")
    own = frame.with_columns(own=digest(frame, [*_TEXT_INPUT, "event_digest"]))
    done: list[pl.DataFrame] = []
    before = pl.DataFrame(schema={"region_key": pl.Binary, "before": pl.Binary})
    for _, wave in own.group_by("event_index", maintain_order=True):
        wave = wave.join(before, on="region_key", how="left", maintain_order="left")
        wave = wave.with_columns(input_digest=digest(wave, ["own", "before"]))
        before = wave.select("region_key", before="input_digest")
        done.append(wave.drop("own", "before"))
    if not done:
        return own.drop("own").with_columns(input_digest=pl.lit(None, pl.Binary))
    return pl.concat(done).sort("region_key", "event_index")


def with_earlier(units: pa.Table, captions: pl.DataFrame, unit: type[Record]) -> pa.Table:
    """Stream units with the captions that the events before them have: a chain taken up again in its middle."""
    if not len(units) or not len(captions):
        return units
    frame, chain = pl.DataFrame(pl.from_arrow(units)), ["region_key", "language"]
    first = frame.group_by(chain).agg(first=pl.col("event_index").min())
    told = captions.filter(pl.col("status") == "ok").join(first, on=chain)
    told = told.filter(pl.col("event_index") < pl.col("first")).sort("event_index")
    earlier = told.group_by(chain).agg(earlier=pl.struct("event_index", "text"))
    joined = frame.drop("earlier", strict=False).join(earlier, on=chain, how="left", maintain_order="left")
    return conform(joined.to_arrow(), _widened(arrow_schema(unit), units.schema))


def _widened(schema: pa.Schema, given: pa.Schema) -> pa.Schema:
    """A unit's schema with the columns that the runner adds (attempts so far)."""
    extra = [field for field in given if field.name not in schema.names]
    return pa.schema([*schema, *extra])


def score_frame(
    captions: pl.DataFrame, regions: pl.DataFrame, events: pl.DataFrame, neighbour_texts: bool = False
) -> pl.DataFrame:
    """Captions that have a text, wide: their region's facts, mask scores, event, siblings and neighbours.

    With `neighbour_texts` also what is said of the other regions of their media in the same task, language and event.
    """
    told = captions.filter(pl.col("status") == "ok").rename({"digest": "text_digest"})
    told = told.drop("input_digest", *BOOKKEEPING[2:])
    facts = regions.rename({"label": "source_label"}).drop("media_key")
    wide = told.join(facts, on="region_key", how="inner", maintain_order="left")
    spans = _whole_events(events).select(*_EVENT_COLUMNS)
    wide = wide.join(spans, on=["region_key", "event_index"], how="left", maintain_order="left")
    lists = event_lists(events).select("region_key", "events")
    wide = wide.join(lists, on="region_key", how="left", maintain_order="left")
    siblings = told.group_by("region_key").agg(
        siblings=pl.struct("task", "language", "event_index", "text").sort_by("task", "language", "event_index")
    )
    around = regions.filter(pl.col("label").is_not_null()).group_by("media_key").agg(all_labels=pl.col("label").sort())
    wide = wide.join(siblings, on="region_key", how="left").join(around, on="media_key", how="left")
    if neighbour_texts:
        wide = wide.join(_said_of_others(told), on="caption_key", how="left", maintain_order="left")
    others = pl.col("all_labels").list.set_difference(pl.concat_list(pl.col("source_label"))).list.sort()
    return wide.with_columns(neighbours=others.fill_null([])).drop("all_labels")


def _said_of_others(told: pl.DataFrame) -> pl.DataFrame:
    """For each caption the texts of other regions of its media: columns caption_key and neighbour_texts.

    Of a media with many regions the texts of `MOST_OTHERS` captions stand for all (of each task, language and event),
    drawn by their keys: all pairs of a media with a thousand regions would be a million texts.
    """
    place = ["media_key", "task", "language", "event_index"]
    mine = told.select("caption_key", "region_key", "text", *place).drop_nulls("text")
    shuffled = mine.with_columns(_draw=drawn(mine["caption_key"], 0)).sort("_draw", "caption_key")
    chosen = shuffled.filter(pl.int_range(pl.len()).over(place) < MOST_OTHERS).select("region_key", "text", *place)
    pairs = mine.select("caption_key", "region_key", *place).join(chosen, on=place, suffix="_other")
    others = pairs.filter(pl.col("region_key") != pl.col("region_key_other"))
    return others.group_by("caption_key").agg(neighbour_texts=pl.col("text").unique().sort())


def score_units(frame: pl.DataFrame, unit: type[Record], reads: Sequence[str]) -> pa.Table:
    """Units of one rule group from `score_frame`; the digest covers the caption and what the group reads."""
    columns = [name for name in reads if name in frame.columns]
    light = [name for name in columns if name not in _BY_DIGEST]
    stands = ["mask_digest"] if len(light) != len(columns) else []
    covered = dict.fromkeys(["text_digest", *light, *stands])
    return to_units(frame.with_columns(input_digest=digest(frame, covered)), unit)


# Heavy columns that `mask_digest` stands for in a digest.
_BY_DIGEST = frozenset({"mask", "frames", "box", "seed_mask", "seed_polygons", "seed_points", "track"})
