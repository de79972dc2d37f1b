"""What the driver writes once all shards of a pack are committed: sampling index, wids indexes, card, manifest."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import fsspec
import orjson
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.base import SCHEMA_VERSION
from stages.pack.card import MAKERS, Story, dataset_card
from stages.pack.features import features_of
from stages.pack.plan import MEDIA_FOLDER, PackPlan
from stages.pack.select import EXCLUDED_SCHEMA
from stages.pack.slices import summed
from stages.pack.tar import sweep_unfinished, write_bytes

MANIFEST = "manifest.json"
FAILED = ("shard", "reason")
"""What a manifest says of a shard that could not be written; the message in `packed` names files of the machine."""
NO_STORY = Story()
_COUNTED = ["split", "source", "task", "language"]
_CAPTION = ["region_key", "task", "language", "event_index"]
_ROW_GROUP = 100_000


class PackIncompleteError(Exception):
    """A pack cannot be finished: shards of its plan are not written; the message names them."""


def finish_pack(
    root: str,
    plan: PackPlan,
    packed: pl.DataFrame,
    options: dict[str, Any] | None = None,
    story: Story = NO_STORY,
    details: pl.DataFrame | None = None,
) -> dict[str, Any]:
    """Writes `regions.parquet`, `features.json`, `<split>/index.json`, `README.md`, and last `manifest.json`.

    Returns the manifest.

    `root` is the run's folder, `packed` rows of the `packed` table (others than this plan's are ignored). Equal shards
    and an equal story give equal files: nothing of time or machine is in them. What killed writers
    left of this plan is deleted, so nobody may be writing it any more. `details` (`region_key`, `task`, `language`,
    `event_index`, and any columns more) go into the sampling index, beside their captions.

    Raises `PackIncompleteError` where a planned shard has no row.
    """
    rows = _with_pixels(_rows_of(plan, packed))
    good = rows.filter(pl.col("status") == "ok")
    base = f"{root.rstrip('/')}/{plan.folder}"
    indexed = _indexed(plan, rows, details)
    features = features_of(plan.forms, plan.config.layout)
    files = {"regions.parquet": indexed.parquet, "features.json": orjson.dumps(features, option=orjson.OPT_INDENT_2)}
    for split in good["split"].unique().sort():
        for kind, name in (("joined", "index"), ("captions", "index"), ("media", "index-media")):
            part = good.filter((pl.col("split") == split) & (pl.col("kind") == kind))
            if len(part):
                files[f"{split}/{name}.json"] = _wids_index(part, split, plan.folder)
    for folder in (plan.folder, MEDIA_FOLDER):
        sweep_unfinished(f"{root.rstrip('/')}/{folder}", options)
    manifest = _manifest(plan, rows, indexed, story)
    files["README.md"] = dataset_card(manifest).encode()
    written = {name: write_bytes(f"{base}/{name}", data, options) for name, data in sorted(files.items())}
    manifest["files"] = [{"path": name, "sha256": w.sha256, "num_bytes": w.num_bytes} for name, w in written.items()]
    write_bytes(f"{base}/{MANIFEST}", orjson.dumps(manifest, option=orjson.OPT_INDENT_2) + b"\n", options)
    return manifest


def verify_pack(root: str, pack_id: str, options: dict[str, Any] | None = None) -> list[str]:
    """What is wrong with a finished pack: files that its manifest names and that are gone or have another SHA-256.

    Raises `FileNotFoundError` for a pack without a manifest.
    """
    filesystem, base = fsspec.core.url_to_fs(root, **(options or {}))
    manifest = orjson.loads(filesystem.cat_file(f"{base}/packs/{pack_id}/{MANIFEST}"))
    named = [(shard["shard"], shard["sha256"]) for shard in manifest["shards"]]
    named += [(f"packs/{pack_id}/{file['path']}", file["sha256"]) for file in manifest["files"]]
    problems = []
    for path, wanted in named:
        if not filesystem.exists(f"{base}/{path}"):
            problems.append(f"{path} is gone")
            continue
        with filesystem.open(f"{base}/{path}", "rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != wanted:
                problems.append(f"{path} has another SHA-256 than its manifest says")
    return problems


def _rows_of(plan: PackPlan, packed: pl.DataFrame) -> pl.DataFrame:
    latest = packed.unique(["shard_key", "input_digest"], keep="last")
    wanted = plan.units.select("shard_key", "input_digest", "ordinal", planned="shard")
    rows = wanted.join(latest, on=["shard_key", "input_digest"], how="left", maintain_order="left")
    absent = rows.filter(pl.col("status").is_null())
    if len(absent):
        raise PackIncompleteError(
            f"pack {plan.pack_id}: {len(absent)} of {len(wanted)} shards are not written, the first is "
            f"{absent['planned'][0]}; run pack again"
        )
    return rows.drop("planned")


def _with_pixels(rows: pl.DataFrame) -> pl.DataFrame:
    """A shard whose other half failed counts as failed: halves are listed in pairs or not at all."""
    failed = pl.col("status") != "ok"
    alone = ~failed & pl.col("ordinal").is_in(rows.filter(failed)["ordinal"].implode())
    other = pl.when(pl.col("kind") == "media").then(pl.lit("caption")).otherwise(pl.lit("media"))
    return rows.with_columns(
        status=pl.when(alone).then(pl.lit("failed")).otherwise("status"),
        reason=pl.when(alone).then(pl.format("no_{}_shard", other)).otherwise("reason"),
        message=pl.when(alone).then(pl.format("its {} shard could not be written", other)).otherwise("message"),
    )


def pack_effort(plan: PackPlan, packed: pl.DataFrame, pending: pl.DataFrame) -> dict[str, int]:
    """What it took to write the `pending` shards of a pack: shards and bytes written, and those taken over.

    Media shards are counted by themselves, all others (of captions, or joined) as `caption_shards`. This is history and
    not content, so it stays out of the manifest.
    """
    rows = _rows_of(plan, packed).filter(pl.col("status") == "ok")
    mine = pending.select("shard_key", "input_digest", fresh=pl.lit(True))
    rows = rows.join(mine, on=["shard_key", "input_digest"], how="left")
    is_fresh = pl.col("fresh").fill_null(False) & (pl.col("bytes_written") > 0)
    of_media = pl.col("kind") == "media"
    counted = rows.select(
        media_shards_written=(of_media & is_fresh).sum(),
        media_shards_reused=(of_media & ~is_fresh).sum(),
        caption_shards_written=(~of_media & is_fresh).sum(),
        caption_shards_reused=(~of_media & ~is_fresh).sum(),
        bytes_written=pl.col("bytes_written").filter(is_fresh).sum(),
        bytes_total=pl.col("num_bytes").sum(),
    )
    return {name: int(value) for name, value in counted.row(0, named=True).items()}


def sampling_index(plan: PackPlan, packed: pl.DataFrame) -> pl.DataFrame:
    """A row a caption that can be drawn for training, in shard order.

    Columns: shard (path in the run), sample (position in the shard), media_key and region_key (hexadecimal), split,
    source, task, language, event_index.
    """
    empty = pl.DataFrame(schema=_INDEX_SCHEMA)
    return pl.concat([empty, *(index for index, _ in _index_parts(plan, packed))])


_INDEX_SCHEMA = {
    "shard": pl.String,
    "sample": pl.Int64,
    "media_key": pl.String,
    "region_key": pl.String,
    "split": pl.String,
    "source": pl.String,
    "task": pl.String,
    "language": pl.String,
    "event_index": pl.Int64,
}


def _index_parts(plan: PackPlan, packed: pl.DataFrame) -> Iterator[tuple[pl.DataFrame, dict[str, pl.DataFrame]]]:
    """The sampling index of each shard, with the rows from which the shard was made."""
    rows = packed.filter(pl.col("status") == "ok")
    lost = rows.explode("missing", empty_as_null=True).select(
        "ordinal", media_key=pl.col("missing").struct.field("media_key")
    )
    pixels = rows.filter(pl.col("kind") != "media").sort("ordinal").select("ordinal", "shard", "split")
    for ordinal, shard, split in pixels.iter_rows():
        tables = plan.rows(ordinal)
        gone = lost.filter(pl.col("ordinal") == ordinal).select("media_key").drop_nulls()
        placed = plan.members.filter(pl.col("ordinal") == ordinal)
        placed = placed.join(gone, on="media_key", how="anti", maintain_order="left")
        if plan.config.layout == "joined":
            placed = placed.with_columns(position=pl.int_range(pl.len()))
        sources = tables["regions"].select("region_key", "source")
        joined = (
            tables["captions"]
            .join(sources, on="region_key", how="left", maintain_order="left")
            .join(placed, on="media_key", how="inner", maintain_order="left")
        )
        yield (
            joined.select(
                pl.lit(shard).alias("shard"),
                pl.col("position").alias("sample"),
                pl.col("media_key").bin.encode("hex"),
                pl.col("region_key").bin.encode("hex"),
                pl.lit(split).alias("split"),
                "source",
                "task",
                "language",
                "event_index",
            ),
            tables,
        )


@dataclass
class _Indexed:
    """The sampling index as parquet, and what was counted on the way."""

    parquet: bytes
    counts: pl.DataFrame
    made: Made


def _indexed(plan: PackPlan, rows: pl.DataFrame, details: pl.DataFrame | None) -> _Indexed:
    """Writes the index shard by shard, so that memory is that of a shard's records."""
    out, made = io.BytesIO(), Made()
    empty = pl.DataFrame(schema=_INDEX_SCHEMA)
    counts = [count_rows(empty)]
    known = empty.select(_CAPTION) if details is None else details.with_columns(pl.col("region_key").bin.encode("hex"))
    waiting: list[pl.DataFrame] = []

    def gathered() -> pa.Table:
        whole = pl.concat([empty, *waiting]).join(known, on=_CAPTION, how="left", maintain_order="left")
        return whole.to_arrow(compat_level=pl.CompatLevel.oldest())

    with pq.ParquetWriter(out, gathered().schema, compression="zstd") as writer:
        for index, tables in _index_parts(plan, rows):
            counts.append(count_rows(index))
            made.add_rows(tables, index)
            waiting.append(index)
            if sum(map(len, waiting)) >= _ROW_GROUP:
                writer.write_table(gathered())
                waiting.clear()
        writer.write_table(gathered())
    # A media lies in one shard, so that the shards' counts add up.
    return _Indexed(out.getvalue(), summed(counts, _COUNTED), made)


def index_bytes(frame: pl.DataFrame) -> bytes:
    """A sampling index as parquet."""
    out = io.BytesIO()
    frame.write_parquet(out, compression="zstd")
    return out.getvalue()


def count_rows(index: pl.DataFrame) -> pl.DataFrame:
    """Captions, regions and media by split, source, task and language."""
    counts = index.group_by(_COUNTED).agg(
        captions=pl.len().cast(pl.Int64),
        regions=pl.col("region_key").n_unique().cast(pl.Int64),
        media=pl.col("media_key").n_unique().cast(pl.Int64),
    )
    return counts.sort(_COUNTED)


def _wids_index(rows: pl.DataFrame, split: str, folder: str) -> bytes:
    """The shard list that `wids.ShardListDataset` reads; URLs are relative to the index file."""
    up = "../../../"
    shards = [
        {
            "url": shard.removeprefix(f"{folder}/{split}/") if shard.startswith(folder) else up + shard,
            "nsamples": samples,
            "filesize": size,
        }
        for shard, samples, size in rows.select(
            "shard", pl.col("num_samples") + _placeholders(), "num_bytes"
        ).iter_rows()
    ]
    index = {"__kind__": "wids-shard-index-v1", "wids_version": 1, "name": split, "shardlist": shards}
    return orjson.dumps(index, option=orjson.OPT_INDENT_2) + b"\n"


def _placeholders() -> pl.Expr:
    return pl.when(pl.col("kind") != "joined").then(pl.col("missing").list.len()).otherwise(0).cast(pl.Int64)


def _manifest(plan: PackPlan, rows: pl.DataFrame, indexed: _Indexed, story: Story) -> dict[str, Any]:
    good, failed = rows.filter(pl.col("status") == "ok"), rows.filter(pl.col("status") != "ok")
    missing = rows.explode("missing", empty_as_null=True).select(pl.col("missing").struct.field("media_key", "reason"))
    missing = missing.drop_nulls().unique("media_key", keep="first", maintain_order=True)  # named by both halves
    shards = good.select(
        "shard", "kind", "split", "form", "sha256", "num_bytes", "num_samples", "num_regions", "num_captions"
    )
    return {
        "pack_id": plan.pack_id,
        "schema_version": SCHEMA_VERSION,
        "config": plan.config.model_dump(mode="json"),
        **summary(shards.to_dicts(), indexed.counts, indexed.made, len(failed)),
        "excluded": plan.excluded.select(list(EXCLUDED_SCHEMA)).to_dicts(),
        "missing_samples": missing.group_by("reason").len("count").sort("reason").to_dicts(),
        "failed": failed.select(FAILED).to_dicts(),
        "story": story.model_dump(mode="json"),
    }


class Made:
    """Counts over the samples of a pack: regions and media by source and licence, captions by what they were made with.

    A media is in one sample, so that counts of samples add up.
    """

    def __init__(self) -> None:
        self.licences: dict[tuple[str, str | None], list[int]] = {}
        self.captions: Counter[tuple[str, ...]] = Counter()

    def add(self, sample: dict[str, Any]) -> None:
        """Counts one sample's record."""
        seen: set[tuple[str, str | None]] = set()
        for region in sample["regions"]:
            place = region["source"], region["licence"]
            counts = self.licences.setdefault(place, [0, 0])
            counts[0] += 1
            counts[1] += place not in seen
            seen.add(place)
            self.captions.update(tuple(caption[name] for name in MAKERS) for caption in region["captions"])

    def add_rows(self, tables: dict[str, pl.DataFrame], index: pl.DataFrame) -> None:
        """Counts the samples of a shard, from the rows that they are made from and the shard's sampling index."""
        packed = index.select(pl.col("region_key").str.decode("hex")).unique()
        regions = tables["regions"].join(packed, on="region_key", how="semi")
        counted = regions.group_by("source", "licence").agg(pl.len(), pl.col("media_key").n_unique().alias("media"))
        for source, licence, *counts in counted.iter_rows():
            before = self.licences.setdefault((source, licence), [0, 0])
            self.licences[source, licence] = [old + new for old, new in zip(before, counts, strict=True)]
        captions = tables["captions"].join(packed, on="region_key", how="semi")
        named = captions.with_columns(pl.col("prompt_hash").bin.encode("hex")).group_by(MAKERS).len()
        self.captions.update({tuple(row[:-1]): row[-1] for row in named.iter_rows()})

    def licence_rows(self) -> list[dict[str, Any]]:
        """Source, licence, regions, media."""
        order = sorted(self.licences, key=lambda place: (place[0], place[1] is None, place[1] or ""))
        return [
            {"source": source, "licence": licence, "regions": regions, "media": media}
            for source, licence in order
            for regions, media in [self.licences[source, licence]]
        ]

    def caption_rows(self) -> list[dict[str, Any]]:
        """Teacher, model, task, language, prompt and its hash, captions."""
        return [
            {**dict(zip(MAKERS, made, strict=True)), "captions": count} for made, count in sorted(self.captions.items())
        ]


def summary(shards: list[dict[str, Any]], counts: pl.DataFrame, made: Made, failed_shards: int) -> dict[str, Any]:
    """The counts of a manifest, from its shards, its sampling index (`count_rows`) and its samples."""
    samples = [shard for shard in shards if shard["kind"] != "media"]
    splits: dict[str, dict[str, int]] = {}
    for shard in sorted(samples, key=lambda shard: str(shard["split"])):
        split = splits.setdefault(shard["split"], {"samples": 0, "captions": 0, "shards": 0})
        split["samples"] += shard["num_samples"]
        split["captions"] += shard["num_captions"]
        split["shards"] += 1
    return {
        "totals": {
            "shards": len(shards),
            "bytes": sum(shard["num_bytes"] for shard in shards),
            "samples": sum(shard["num_samples"] for shard in samples),
            "regions": sum(shard["num_regions"] for shard in samples),
            "captions": sum(shard["num_captions"] for shard in samples),
            "failed_shards": failed_shards,
        },
        "splits": splits,
        "counts": counts.to_dicts(),
        "made_by": made.caption_rows(),
        "licences": made.licence_rows(),
        "shards": shards,
    }
