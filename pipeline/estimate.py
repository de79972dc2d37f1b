"""What a run will ask and do, from the rows that it has now: the input of `pipeline.plan`."""

from __future__ import annotations

import numpy as np
import polars as pl

from pipeline import corpus
from pipeline.engine import Corpus
from pipeline.plan import DEFAULT_SAMPLE, Asked, Local, Plan, plan
from pipeline.settings import ConfigError
from schemas.arrow import arrow_schema
from schemas.caption import Language, Task
from schemas.event import Event
from stages.distill.stage import DistillStage
from stages.masks import encode

_PROVISIONAL = 256


def plan_of(now: Corpus, sample: int = DEFAULT_SAMPLE) -> Plan:
    """The plan of a run whose sources have been ingested and selected; sends no request and writes nothing.

    Before masks exist, a sample of the regions stands in with its boxes filled. Raises `ConfigError` for a run
    without regions.
    """
    if not len(now.located):
        raise ConfigError(
            f"{now.config.run} has no selected regions yet: `perceive run ingest` and `perceive run select` first; "
            "both are free"
        )
    asked = [_asked(now, pair) for pair in now.distill]
    return plan(now.config.teacher, [one for one in asked if one.total], _local(now), sample)


def _asked(now: Corpus, pair: tuple[Task, Language]) -> Asked:
    stage = now.stages.distill[pair]
    assert isinstance(stage, DistillStage)
    step = now.distill[pair]
    if len(step.units) and not len(now.refine.pending()):
        return Asked(stage, len(step.pending()), step.units)
    wanted = corpus.asked_of(now.located, now.config.asked(), now.config.default_asked(), *pair)
    images = _filled(wanted.filter(pl.col("kind") == "image").head(_PROVISIONAL))
    none = pl.DataFrame(pl.from_arrow(arrow_schema(Event).empty_table()))
    units = now.distill_units(pair, images, none)
    return Asked(stage, len(wanted), units, events_assumed=pair[0] == "stream")


def _filled(regions: pl.DataFrame) -> pl.DataFrame:
    """Regions as if refinement had answered with their boxes, for rendering requests before there are masks."""
    boxed = regions.filter(pl.col("box").is_not_null())
    masks = []
    for row in boxed.iter_rows(named=True):
        mask = np.zeros((row["height"], row["width"]), bool)
        x0, y0, x1, y1 = (round(value) for value in row["box"])
        mask[y0:y1, x0:x1] = True
        masks.append(encode(mask).model_dump())
    kind = pl.Struct([pl.Field("size", pl.List(pl.Int64)), pl.Field("counts", pl.String)])
    return boxed.with_columns(
        seed_box=pl.col("box"),
        mask=pl.Series(masks, dtype=kind) if masks else pl.lit(None, kind),
        frames=pl.lit(None),
        mask_digest=pl.col("region_key"),
    )


def _local(now: Corpus) -> Local:
    waiting = pl.DataFrame(pl.from_arrow(now.refine.pending().select(["region_key", "media_key", "kind"])))
    pictures = now.media.join(waiting, on="media_key", how="semi")
    frames = pictures.filter(pl.col("kind") == "video")["num_frames"].sum()
    return Local(
        images=len(pictures.filter(pl.col("kind") == "image")),
        video_frames=int(frames or 0),
        regions=len(waiting),
        media_bytes=int(now.media["num_bytes"].sum() or 0),
        refine=now.config.refine.backend,
    )
