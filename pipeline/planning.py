"""The plan of a run's corpus: what is pending where masks and events exist, what the sources' own marks say before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import corpus as frames
from pipeline.engine import Corpus, Stages, ledger_url
from pipeline.plan import DEFAULT_SAMPLE, Asked, Local, Plan, plan, sample_rows, shared
from pipeline.settings import ConfigError
from schemas.arrow import to_table
from schemas.base import Box, Record
from schemas.caption import Language, Task
from schemas.event import Event
from schemas.geometry import FrameMask, Rle, TrackPoint
from schemas.keys import digest_value
from schemas.mask import Mask
from stages.base import checked
from stages.distill.stage import DistillStage
from stages.distill.translation import TranslateStage
from stages.masks import area, from_polygons
from stages.teachers.cache import answered


def plan_corpus(corpus: Corpus, sample: int = DEFAULT_SAMPLE) -> Plan:
    """The plan of all captions that a run still lacks. Needs the rows of ingest and select; asks nobody.

    Before refine has run, the sources' masks, polygons and boxes stand in for the refined masks, and a masklet of which
    streaming captions are asked counts as a range of events.
    """
    asked = _pending(corpus) if _refined(corpus) else _expected(corpus, sample)
    teacher, known = corpus.config.teacher, {}
    if teacher.backend != "measured":
        known = answered(ledger_url(corpus.config), teacher.identity, corpus.config.storage_options)
    return plan(teacher, asked, _local(corpus), sample, known)


def probe_corpus(corpus: Corpus, count: int) -> int:
    """Asks about `count` pending captions, spread over tasks and regions; returns how many were answered.

    The replies go into the run's ledger, where the plan and the build find them, so that none is bought twice; no row
    is made of them. Raises `ConfigError` where masks are missing: requests about other pictures would be bought again.
    """
    if not _refined(corpus):
        raise ConfigError(
            "a probe sends the very requests of the build, which needs masks and events: `perceive run refine` and "
            "`perceive run chunk` first"
        )
    asked = [one for one in shared(_pending(corpus)) if one.shares is None]
    answers = 0
    for number, one in enumerate(asked):
        share = (count + len(asked) - 1 - number) // len(asked)
        units = one.units
        if "event_index" in units.column_names and one.stage.recipe.task == "stream":
            units = units.filter(pc.equal(units["event_index"], 0))  # later events need the answers before them
        answers += _asked(one.stage, sample_rows(units, share)) if share else 0
    return answers


def _asked(stage: DistillStage, units: pa.Table) -> int:
    if not len(units):
        return 0
    stage.open()
    try:
        return sum(rows["status"].to_pylist().count("ok") for rows in checked(stage, units))
    finally:
        stage.close()


def _refined(corpus: Corpus) -> bool:
    return not len(corpus.refine.pending()) and not len(corpus.chunk.pending())


def _pending(corpus: Corpus) -> list[Asked]:
    found = []
    for (task, language), step in corpus.distill.items():
        units, total = step.pending(), 0
        if corpus.config.captions.translates(language):
            coming = corpus.distill[task, "en"].pending()
            total = len(coming)
            units = units if len(units) or not total else translations_of(coming, task, step.stage.unit)
            total += len(step.pending())
        if len(units) and isinstance(step.stage, DistillStage):
            found.append(Asked(step.stage, total=total or len(units), units=units))
    return found


_TYPICAL_WORDS: dict[Task, int] = {"label": 2, "explain": 20, "brief": 16, "detailed": 95, "video": 70, "stream": 30}
_TYPICAL = "a small red cup with two round handles that stands on a wooden table beside an open book"


def translations_of(units: pa.Table, task: Task, unit: type[Record]) -> pa.Table:
    """Units of translation for captions that are not there yet: English texts of the usual length stand in."""
    text = " ".join((_TYPICAL.split() * 6)[: _TYPICAL_WORDS[task]])
    parts = {"source_text": text, "source_label": "red cup", "source_definition": text, "source_function": text}
    told = {name: pl.lit(part) for name, part in parts.items()}
    frame = pl.DataFrame(pl.from_arrow(units)).with_columns(source_status=pl.lit("ok"), **told)
    return frames.to_units(frame, unit)


def _expected(corpus: Corpus, sample: int) -> list[Asked]:
    default, asked = corpus.config.default_asked(), corpus.config.asked()
    found = []
    for pair, stage in corpus.stages.distill.items():
        wanted = frames.asked_of(corpus.located, asked, default, *pair)
        if len(wanted) and isinstance(stage, DistillStage):
            units = rough_units(corpus.stages, wanted, pair, sample)
            found.append(Asked(stage, total=len(wanted), units=units, events_assumed=pair[0] == "stream"))
    return found


def rough_units(stages: Stages, wanted: pl.DataFrame, pair: tuple[Task, Language], sample: int) -> pa.Table:
    """Units of a spread sample of regions, their sources' marks in place of refined masks."""
    stage = stages.distill[pair]
    if isinstance(stage, TranslateStage):
        return translations_of(rough_units(stages, wanted, (pair[0], "en"), sample), pair[0], stage.unit)
    step = max(1, len(wanted) // (2 * sample))
    some = wanted.gather_every(step)
    masks = [mask for row in some.iter_rows(named=True) if (mask := rough_mask(row)) is not None]
    events = [_whole_event(mask) for mask in masks if mask.frames]
    return frames.distill_units(
        frames.masked(some, _frame(masks, Mask)), _frame(events, Event), *pair, stages.distill[pair].unit
    )


def rough_mask(row: Mapping[str, Any]) -> Mask | None:
    """What a region's own source says of its mask, as a mask row; None where it says nothing that can be drawn.

    `row` is a region with its media's `width` and `height` in pixels.
    """
    height, width = int(row["height"]), int(row["width"])
    key = digest_value(["plan", row["region_key"]])
    common: dict[str, Any] = {
        "mask_key": key, "region_key": row["region_key"], "media_key": row["media_key"], "backend": "plan",
        "input_digest": key, "digest": key, "frame_index": row["frame_index"], "time_s": row["time_s"],
    }  # fmt: skip
    track = [TrackPoint.model_validate(point) for point in row["track"] or ()]
    mask = _drawn(row["mask"], row["polygons"], row["box"], height, width)
    if not track:
        return None if mask is None else Mask(**common, mask=mask, box=row["box"])
    shown = []
    for point in track:
        rle = point.mask or _drawn(None, None, point.box, height, width)
        share = area(rle) / (height * width) if rle else 0.0
        shown.append(
            FrameMask(
                frame_index=point.frame_index, time_s=point.time_s, visible=share > 0, box=point.box,
                mask=rle if share > 0 else None, area_share=share,
            )
        )  # fmt: skip
    first = next((frame.mask for frame in shown if frame.mask is not None), None)
    return Mask(**common, mask=mask or first, box=row["box"], frames=shown)


def _drawn(
    mask: Mapping[str, Any] | None, polygons: list[list[float]] | None, box: Box | None, height: int, width: int
) -> Rle | None:
    if mask is not None:
        return Rle.model_validate(mask)
    if polygons:
        return from_polygons(polygons, height, width)
    if box is not None:
        x0, y0, x1, y1 = box
        return from_polygons([[x0, y0, x1, y0, x1, y1, x0, y1]], height, width)
    return None


def _whole_event(mask: Mask) -> Event:
    """One event over the whole masklet: what an event's prompt looks like before there are any."""
    shown = mask.frames or []
    key = digest_value(["plan event", mask.region_key])
    return Event(
        event_key=key, region_key=mask.region_key, media_key=mask.media_key, event_index=0, num_events=1,
        start_frame=shown[0].frame_index, end_frame=shown[-1].frame_index, start_s=shown[0].time_s,
        end_s=shown[-1].time_s, visible_share=1.0, motion="still", backend="plan", input_digest=key, digest=key,
    )  # fmt: skip


def _frame(rows: list[Any], model: type[Any]) -> pl.DataFrame:
    return pl.DataFrame(pl.from_arrow(to_table(rows, model)))


def _local(corpus: Corpus) -> Local:
    media, located = corpus.media, corpus.located
    images = located.filter(pl.col("kind") == "image")["media_key"].n_unique()
    videos = located.filter(pl.col("kind") == "video").unique("media_key")
    used = media.join(located.select("media_key").unique(), on="media_key", how="semi")
    return Local(
        images=images,
        video_frames=int(videos["num_frames"].sum()),
        regions=len(located),
        media_bytes=int(used["num_bytes"].sum()),
        refine=corpus.config.refine.backend,
    )
