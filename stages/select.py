"""Selection: which regions go on, decided before any money is spent.

One Selection row a region: `ok`, `filtered` with a reason code, or `blocked` where ingest had failed. Reasons, in the
order in which they are tested: `below_min_side`, `crowd`, `group`, `part`, `benchmark`, `duplicate`, `over_image_cap`,
`over_class_cap`, `over_source_target`, `over_total`. Caps take a seeded sample in the order of H(seed, region key), so
that a region's place in the draw does not depend on what else there is: adding data changes as little as it can.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Literal

import fsspec
import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from schemas.arrow import arrow_schema, conform
from schemas.keys import digest_columns
from schemas.region import Selection
from stages.base import with_digest

_HEX_KEY = 32
_HASH_DISTANCE = 4
_RANGE = re.compile(r"[^/.]\.\.[^/.]")
_COUNTED = re.compile(r"(?P<stem>.*?)(?P<count>\d+)")


class SelectConfig(BaseModel):
    """The `select:` part of a run configuration.

    `max_per_class` and `per_source` count regions of one source label, and of one source; None is no limit.
    `duplicates` decides what becomes of the same media and label with nearly the same box (IoU >= `duplicate_iou`)
    from two sources. Where `drop_parts` is set, regions that the source calls parts go, and those without a label whose
    box lies at least `part_containment` within another of its frame and covers at most `part_area` of it: SA-V's part
    masklets. `exclude` names files with
    one media a line (a media key, a perceptual hash `phash:<16 hex>`, a file name, a range of names that count up like
    `sa_000000..sa_000999.jpg`, or a source media id): the benchmarks.
    `benchmark_splits` are splits of sources that are benchmarks themselves, by default those that the
    sources' formats know; `{}` takes all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_side: float = Field(32, ge=0)
    max_per_image: int | None = Field(16, ge=1)
    max_per_class: int | None = Field(None, ge=1)
    total: int | None = Field(None, ge=0)
    per_source: dict[str, int] | None = None
    seed: int = 0
    drop_crowd: bool = True
    drop_group: bool = True
    drop_parts: bool = False
    part_containment: float = Field(0.9, gt=0, le=1)
    part_area: float = Field(0.5, gt=0, le=1)
    duplicates: Literal["keep_first", "keep_all"] = "keep_first"
    duplicate_iou: float = Field(0.9, gt=0, le=1)
    exclude: tuple[str, ...] = ()
    benchmark_splits: dict[str, tuple[str, ...]] | None = None


def select(regions: pl.LazyFrame | pl.DataFrame, media: pl.DataFrame, config: SelectConfig) -> pl.DataFrame:
    """Selection rows (status, reason, digests) of all regions; of a lazy frame only the columns that it needs are read.

    `regions` needs `region_key`, `digest`, `status`, `media_key`, `source`, `source_media_id`, `uri`, `label`, `box`,
    `is_crowd`, `is_group`, `is_part`, `kind`, `frame_index`, and `split` with `benchmark_splits`; `media` needs
    `media_key`, `group_key`, `phash`.
    """
    frame = _prepared(regions.lazy(), media, config)
    frame = frame.with_columns(_rules(config).alias("reason"))
    if config.benchmark_splits:
        frame = _strike(frame, _of_splits(frame.lazy(), config.benchmark_splits), "benchmark")
    if config.exclude:
        guard = Guard.read(config.exclude)
        frame = _strike(frame, guard.hits(frame), "benchmark")
    if config.drop_parts:
        frame = _strike(frame, _parts(frame, config), "part")
    if config.duplicates == "keep_first":
        frame = _strike(frame, _duplicates(frame, config.duplicate_iou), "duplicate")
    frame = _cap(frame, "media_key", config.max_per_image, "over_image_cap")
    frame = _cap(frame, "_class", config.max_per_class, "over_class_cap")
    for source, target in sorted((config.per_source or {}).items()):
        frame = _cap(frame, "source", target, "over_source_target", pl.col("source") == source)
    frame = _cap(frame.with_columns(pl.lit(0).alias("_all")), "_all", config.total, "over_total")
    return _rows(frame)


def selection_yield(rows: pl.DataFrame) -> pl.DataFrame:
    """How many regions went which way: columns source, status, reason, rows, share (of the source)."""
    counted = rows.group_by("source", "status", "reason").agg(pl.len().alias("rows"))
    share = (pl.col("rows") / pl.col("rows").sum().over("source")).alias("share")
    return counted.with_columns(share).sort("source", "status", "rows", "reason", descending=[False, True, True, False])


def _prepared(regions: pl.LazyFrame, media: pl.DataFrame, config: SelectConfig) -> pl.DataFrame:
    columns = [
        "region_key", "digest", "status", "media_key", "source", "source_media_id", "uri", "label", "box", "kind",
        "frame_index", "is_crowd", "is_group", "is_part", *(["split"] if config.benchmark_splits else []),
    ]  # fmt: skip
    frame = regions.select(columns).rename({"status": "_ingest"}).collect()
    frame = frame.join(
        media.select("media_key", "group_key", "phash"), on="media_key", how="left", maintain_order="left"
    )
    box = pl.col("box")
    corner = {name: box.arr.get(at) if frame["box"].dtype == pl.Array(pl.Float64, 4) else box.list.get(at)
              for at, name in enumerate(("_x0", "_y0", "_x1", "_y1"))}  # fmt: skip
    frame = frame.with_columns(**corner)
    draw = digest_columns({"seed": pa.repeat(config.seed, len(frame)), "key": frame["region_key"].to_arrow()})
    return frame.with_columns(
        pl.Series("_draw", np.frombuffer(draw.buffers()[1], np.uint64)[::2][: len(frame)]),
        pl.coalesce("label", pl.lit("")).str.to_lowercase().alias("_class"),
    )


def _rules(config: SelectConfig) -> pl.Expr:
    """The first reason that a region gives by itself; failed ones are `blocked` later."""
    side = pl.min_horizontal(pl.col("_x1") - pl.col("_x0"), pl.col("_y1") - pl.col("_y0"))
    expression = pl.when(pl.col("_ingest") != "ok").then(pl.lit("ingest"))
    expression = expression.when(side < config.min_side).then(pl.lit("below_min_side"))  # type: ignore[assignment]
    for wanted, column, reason in (
        (config.drop_crowd, "is_crowd", "crowd"),
        (config.drop_group, "is_group", "group"),
        (config.drop_parts, "is_part", "part"),
    ):
        if wanted:
            expression = expression.when(pl.col(column)).then(pl.lit(reason))  # type: ignore[assignment]
    return expression.otherwise(pl.lit(None, pl.String))


def _strike(frame: pl.DataFrame, keys: pl.Series, reason: str) -> pl.DataFrame:
    """Gives the reason to the regions with these keys that had none."""
    hit = pl.col("reason").is_null() & pl.col("region_key").is_in(keys.implode())
    return frame.with_columns(pl.when(hit).then(pl.lit(reason)).otherwise("reason").alias("reason"))


def _of_splits(regions: pl.LazyFrame, splits: Mapping[str, Sequence[str]]) -> pl.Series:
    """Keys of the regions whose source gives their split as one of these."""
    pairs = pl.LazyFrame(
        [{"source": source, "split": split} for source, listed in splits.items() for split in listed],
        schema={"source": pl.String, "split": pl.String},
    )
    named = regions.select("region_key", "source", "split").join(pairs, on=["source", "split"], how="semi")
    return named.collect()["region_key"]


def _cap(frame: pl.DataFrame, by: str, limit: int | None, reason: str, among: pl.Expr | None = None) -> pl.DataFrame:
    """Of the regions that are still in, the first `limit` of each group in the order of the draw stay."""
    if limit is None:
        return frame
    alive = pl.col("reason").is_null() & (among if among is not None else pl.lit(True))
    if by == "_class":
        alive = alive & (pl.col("_class") != "")
    rank = pl.struct("_draw", "region_key").rank("ordinal").over(by)
    ranked = frame.filter(alive).select("region_key", rank.alias("_rank"))
    return _strike(frame, ranked.filter(pl.col("_rank") > limit)["region_key"], reason)


def _pairs(frame: pl.DataFrame) -> pl.DataFrame:
    """Pairs of live regions on the same frame of the same media, with the areas of both and of what they share."""
    live = frame.filter(pl.col("reason").is_null() & pl.col("_x0").is_not_null())
    live = live.select("region_key", "media_key", "frame_index", "source", "_class", "_x0", "_y0", "_x1", "_y1")
    crowded = live.group_by("media_key", "frame_index").len().filter(pl.col("len") > 1)
    live = live.join(crowded.drop("len"), on=["media_key", "frame_index"], how="semi")
    pairs = live.join(live, on=["media_key", "frame_index"], suffix="_b").filter(
        pl.col("region_key") != pl.col("region_key_b")
    )
    wide = pl.min_horizontal("_x1", "_x1_b") - pl.max_horizontal("_x0", "_x0_b")
    high = pl.min_horizontal("_y1", "_y1_b") - pl.max_horizontal("_y0", "_y0_b")
    return pairs.with_columns(
        ((pl.col("_x1") - pl.col("_x0")) * (pl.col("_y1") - pl.col("_y0"))).alias("_area"),
        ((pl.col("_x1_b") - pl.col("_x0_b")) * (pl.col("_y1_b") - pl.col("_y0_b"))).alias("_area_b"),
        (wide.clip(0.0) * high.clip(0.0)).alias("_shared"),
    )


def _duplicates(frame: pl.DataFrame, iou: float) -> pl.Series:
    """Keys of regions that repeat one of an earlier source (by name) with the same label."""
    if frame["source"].n_unique() < 2:
        return pl.Series([], dtype=pl.Binary)
    shared = frame.group_by("media_key").agg(pl.col("source").n_unique().alias("n")).filter(pl.col("n") > 1)
    pairs = _pairs(frame.join(shared, on="media_key", how="semi"))
    same = pairs.filter(
        (pl.col("source_b") < pl.col("source"))
        & (pl.col("_class") == pl.col("_class_b"))
        & (pl.col("_shared") >= iou * (pl.col("_area") + pl.col("_area_b") - pl.col("_shared")))
    )
    return same["region_key"].unique()


def _parts(frame: pl.DataFrame, config: SelectConfig) -> pl.Series:
    """Keys of unlabelled regions that lie within a clearly larger one of the same frame and source."""
    pairs = _pairs(frame).filter(
        (pl.col("source") == pl.col("source_b"))
        & (pl.col("_class") == "")
        & (pl.col("_shared") >= config.part_containment * pl.col("_area"))
        & (pl.col("_area") <= config.part_area * pl.col("_area_b"))
    )
    return pairs["region_key"].unique()


class Guard:
    """The media that must not be trained on: by key, by perceptual hash, by file name, by source media id."""

    def __init__(self, keys: set[bytes], hashes: list[int], names: set[str]) -> None:
        self._keys, self._hashes, self._names = keys, hashes, names

    @classmethod
    def read(cls, files: tuple[str, ...]) -> Guard:
        """Reads exclusion files: one entry a line, `#` begins a comment. Raises `ValueError` naming file and line."""
        keys: set[bytes] = set()
        hashes: list[int] = []
        names: set[str] = set()
        for path in files:
            with fsspec.open(path, "rt", encoding="utf-8", compression="infer") as stream:
                for number, line in enumerate(stream, 1):
                    entry = line.partition("#")[0].strip()
                    if entry.startswith("phash:"):
                        hashes.append(_hash_of(entry.removeprefix("phash:"), f"{path}:{number}"))
                    elif len(entry) == _HEX_KEY and set(entry) <= set("0123456789abcdef"):
                        keys.add(bytes.fromhex(entry))
                    elif _RANGE.search(entry):
                        names.update(_names_between(entry, f"{path}:{number}"))
                    elif entry:
                        names.add(entry)
        return cls(keys, hashes, names)

    def hits(self, frame: pl.DataFrame) -> pl.Series:
        """Keys of the regions on guarded media, or on media of a guarded one's perceptual group."""
        by_media = frame.unique("media_key").filter(pl.col("media_key").is_not_null())
        base = pl.col("uri").str.split("::").list.first().str.strip_chars_end("/").str.split("/").list.last()
        names = pl.Series(sorted(self._names | {PurePosixPath(name).name for name in self._names}), dtype=pl.String)
        stems = pl.Series([PurePosixPath(name).stem for name in names], dtype=pl.String)
        keys = pl.Series(sorted(self._keys), dtype=pl.Binary)
        named = (
            base.is_in(names.implode())
            | base.str.replace(r"\.[^.]*$", "").is_in(stems.implode())
            | pl.col("source_media_id").is_in(names.implode())
        )
        near = pl.Series("_near", self._near(by_media["phash"]))
        hit = by_media.with_columns(near).filter(named | pl.col("media_key").is_in(keys.implode()) | pl.col("_near"))
        groups = hit["group_key"].drop_nulls().unique()
        guarded = pl.col("group_key").is_in(groups.implode()) | pl.col("media_key").is_in(hit["media_key"].implode())
        return frame.filter(guarded)["region_key"]

    def _near(self, hashes: pl.Series) -> NDArray[np.bool_]:
        values = hashes.fill_null(0).to_numpy().view(np.uint64)
        near = np.zeros(len(values), bool)
        for value in self._hashes:
            near |= np.bitwise_count(values ^ np.uint64(value)) <= _HASH_DISTANCE
        known: NDArray[np.bool_] = near & hashes.is_not_null().to_numpy()
        return known


def _names_between(entry: str, place: str) -> list[str]:
    """The names of a range, both ends included: `sa_000000..sa_000999.jpg` counts its last digits up."""
    first, _, last = entry.partition("..")
    one, two = _COUNTED.fullmatch(PurePosixPath(first).stem), _COUNTED.fullmatch(PurePosixPath(last).stem)
    if not one or not two or one["stem"] != two["stem"] or int(one["count"]) > int(two["count"]):
        raise ValueError(f"{place}: `{entry}` is no range of names that count up, like sa_000000..sa_000999.jpg")
    width, suffix = len(one["count"]), PurePosixPath(last).suffix
    return [f"{one['stem']}{n:0{width}d}{suffix}" for n in range(int(one["count"]), int(two["count"]) + 1)]


def _hash_of(text: str, place: str) -> int:
    try:
        value = int(text, 16)
    except ValueError:
        value = -1
    if not 0 <= value < 1 << 64:
        raise ValueError(f"{place}: `phash:` must be followed by 16 hexadecimal digits")
    return value


def _rows(frame: pl.DataFrame) -> pl.DataFrame:
    status = (
        pl.when(pl.col("reason").is_null()).then(pl.lit("ok"))
        .when(pl.col("reason") == "ingest").then(pl.lit("blocked"))
        .otherwise(pl.lit("filtered"))
    )  # fmt: skip
    rows = frame.select(
        "region_key", "source", pl.col("digest").alias("input_digest"), status.alias("status"), "reason",
        pl.lit(1).alias("attempts"),
    )  # fmt: skip
    table = with_digest(conform(rows.to_arrow(), arrow_schema(Selection)), Selection)
    return pl.DataFrame(pl.from_arrow(table))
