"""The plan of a run whose files are not here: published sizes of its sources, requests rendered over drawn media.

What a source holds is `configs/sources.yaml`'s (as its authors publish it), what is taken of it is `select.per_source`
and `select.total`. Of every source one drawn region with the kinds of hints that its recipe tells is rendered into the
requests of each task, so that tokens are counted by the same rules as in the plan of real rows.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import polars as pl

from pipeline import corpus as frames
from pipeline.config import EngineConfig
from pipeline.engine import Stages, build_stages
from pipeline.plan import DEFAULT_SAMPLE, Asked, Local, Plan, plan
from pipeline.planning import rough_units
from pipeline.settings import ConfigError
from schemas.arrow import arrow_schema
from schemas.region import HintKind, Selection
from stages.base import checked
from stages.distill.stage import DistillStage
from stages.ingest.base import SourceConfig
from stages.ingest.recipes import Recipe, recipes
from stages.ingest.sources import ingest, list_media
from stages.media.probe import ProbeStage, media_rows, probe_units
from stages.shapes.scene import draw_scene

_PICTURE, _CLIP, _CLIP_FRAMES = (640, 480), (640, 360), 24
_TEXTS: dict[HintKind, str] = {
    "label": "coffee cup",
    "phrase": "the white cup on the left, next to the laptop",
    "definition": "a small open container of earthenware or glass, usually with a handle, from which one drinks",
    "attribute": "white and round",
    "caption": "A white coffee cup stands on a wooden table beside an open laptop, half full, its handle to the right.",
    "relation": "part of a place setting",
    "action": "being lifted",
}


@dataclass(frozen=True)
class Size:
    """What is expected of one source: records read, regions taken, the media and video frames under them, bytes."""

    read: int
    regions: int
    media: int
    frames: int
    num_bytes: int


def expected_size(source: SourceConfig, recipe: Recipe, config: EngineConfig) -> Size:
    """The size of a source after selection. Raises `ConfigError` where neither table nor configuration knows it."""
    wanted = (config.select.per_source or {}).get(source.name)
    regions = min((n for n in (wanted, recipe.regions) if n is not None), default=None)
    if regions is None:
        raise ConfigError(
            f"how many regions source {source.name} has is not known: set select.per_source.{source.name}, or run "
            "`perceive run ingest` and `perceive run select` first"
        )
    of = recipe.media or regions
    media = round(of * -math.expm1(-regions / of)) if of else 0
    share = media / of if of else 0.0
    return Size(
        read=recipe.regions or regions,
        regions=regions,
        media=media,
        frames=media * (recipe.frames or 0),
        num_bytes=round((recipe.gigabytes or 0.0) * 1e9 * share),
    )


def plan_expected(config: EngineConfig, sample: int = DEFAULT_SAMPLE) -> Plan:
    """The plan of a whole run before anything is read; asks nobody. Raises `ConfigError` for a size not known."""
    table = recipes()
    sizes = {source.name: expected_size(source, table[source.format], config) for source in config.sources}
    sizes = _capped(sizes, config.select.total)
    stages = build_stages(config)
    with tempfile.TemporaryDirectory() as folder:
        located = drawn_regions(config, Path(folder))
        asked = list(_asked(config, stages, located, sizes, sample))
        made = plan(config.teacher, asked, _local(config, sizes, table), sample)
    events = sum(task.captions for task in made.tasks if task.task == "stream")
    rows = {
        "regions read": sum(size.read for size in sizes.values()),
        "media": sum(size.media for size in sizes.values()),
        "regions selected": sum(size.regions for size in sizes.values()),
        "events": events // max(1, len({task.language for task in made.tasks if task.task == "stream"})),
        "captions": sum(task.captions for task in made.tasks),
    }
    note = (
        "nothing is ingested yet: sizes are the published ones of configs/sources.yaml; run ingest and select for a "
        "plan of your files"
    )
    return made.model_copy(update={"rows": rows, "warnings": [note, *made.warnings]})


def drawn_regions(config: EngineConfig, folder: Path) -> pl.DataFrame:
    """One `located` region a source, on a drawn photo or clip in `folder`, with the kinds of hints that it tells."""
    scene = draw_scene(np.random.default_rng(0), _PICTURE)
    _write(folder / "photo.jpg", scene.image)
    clip = draw_scene(np.random.default_rng(1), _CLIP)
    (folder / "clip").mkdir()
    for index in range(_CLIP_FRAMES):
        _write(folder / "clip" / f"{index:05d}.jpg", clip.image)
    table, lines = recipes(), []
    for source in config.sources:
        recipe = table[source.format]
        kinds = source.captions.hints if source.captions.hints is not None else recipe.hints
        hints = [{"kind": kind, "language": "en", "text": _TEXTS[kind]} for kind in kinds]
        about: dict[str, Any] = {"id": source.name, "hints": hints}
        if "label" in kinds:
            about["label"] = _TEXTS["label"]
        if recipe.kind == "image":
            lines.append({**about, "media": "photo.jpg", "box": list(scene.instances[-1].box)})
        else:
            box = list(clip.instances[-1].box)
            track = [{"frame_index": index, "box": box} for index in range(_CLIP_FRAMES)]
            lines.append({**about, "media": "clip/", "track": track})
    (folder / "regions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return _located(SourceConfig(format="regions", annotations=str(folder / "regions.jsonl"), media=str(folder)))


def _located(source: SourceConfig) -> pl.DataFrame:
    probes = pl.concat(_frames(checked(ProbeStage(), probe_units(list_media(source)))))
    regions = pl.concat(_frames(ingest(source, probes))).with_columns(source=pl.col("source_id"))
    media = pl.DataFrame(pl.from_arrow(media_rows(probes)))
    chosen = pl.DataFrame(pl.from_arrow(arrow_schema(Selection).empty_table()))
    chosen = pl.concat([chosen.select("region_key", "status"), regions.select("region_key", "status")])
    return frames.located(regions, media, chosen)


def _asked(
    config: EngineConfig, stages: Stages, located: pl.DataFrame, sizes: dict[str, Size], sample: int
) -> Iterable[Asked]:
    default, asked = config.default_asked(), config.asked()
    for pair, stage in stages.distill.items():
        wanted = frames.asked_of(located, asked, default, *pair)
        if len(wanted) and isinstance(stage, DistillStage):
            total = sum(sizes[name].regions for name in wanted["source"])
            units = rough_units(stages, wanted, pair, sample)
            yield Asked(stage, total=total, units=units, events_assumed=pair[0] == "stream")


def _local(config: EngineConfig, sizes: dict[str, Size], table: dict[str, Recipe]) -> Local:
    images = sum(sizes[source.name].media for source in config.sources if table[source.format].kind == "image")
    return Local(
        images=images,
        video_frames=sum(size.frames for size in sizes.values()),
        regions=sum(size.regions for size in sizes.values()),
        media_bytes=sum(size.num_bytes for size in sizes.values()),
        refine=config.refine.backend,
        regions_read=sum(size.read for size in sizes.values()),
        source_bytes=round(1e9 * sum({s.format: table[s.format].gigabytes or 0.0 for s in config.sources}.values())),
    )


def _capped(sizes: dict[str, Size], total: int | None) -> dict[str, Size]:
    """Sizes under `select.total`, which draws from all sources alike."""
    regions = sum(size.regions for size in sizes.values())
    if total is None or regions <= total:
        return sizes
    share = total / regions
    return {
        name: Size(
            size.read, round(size.regions * share), round(size.media * share), round(size.frames * share),
            round(size.num_bytes * share),
        )
        for name, size in sizes.items()
    }  # fmt: skip


def _write(path: Path, pixels: np.ndarray[Any, Any]) -> None:
    cv2.imwrite(str(path), cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))


def _frames(tables: Iterable[Any]) -> list[pl.DataFrame]:
    return [pl.DataFrame(pl.from_arrow(table)) for table in tables]
