"""What the driver writes once all shards of a pack are committed: sampling index, wids indexes, card, manifest."""

from __future__ import annotations

import hashlib
import io
from typing import Any

import fsspec
import orjson
import polars as pl

from schemas.base import SCHEMA_VERSION
from stages.pack.card import dataset_card
from stages.pack.features import features_of
from stages.pack.plan import MEDIA_FOLDER, PackPlan
from stages.pack.select import EXCLUDED_SCHEMA
from stages.pack.tar import sweep_unfinished, write_bytes

MANIFEST = "manifest.json"


class PackIncompleteError(Exception):
    """A pack cannot be finished: shards of its plan are not written; the message names them."""


def finish_pack(
    root: str, plan: PackPlan, packed: pl.DataFrame, options: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Writes `regions.parquet`, `features.json`, `<split>/index.json`, `README.md`, and last `manifest.json`.

    Returns the manifest.

    `root` is the run's folder, `packed` rows of the `packed` table (others than this plan's are ignored). Equal shards
    give equal files: nothing of time or machine is in them. What killed writers
    left of this plan is deleted, so nobody may be writing it any more.

    Raises `PackIncompleteError` where a planned shard has no row.
    """
    rows = _rows_of(plan, packed)
    good = rows.filter(pl.col("status") == "ok")
    base = f"{root.rstrip('/')}/{plan.folder}"
    index = sampling_index(plan, rows)
    features = features_of(plan.bodies["media"], plan.config.layout)
    files = {"regions.parquet": _parquet(index), "features.json": orjson.dumps(features, option=orjson.OPT_INDENT_2)}
    for split in good["split"].unique().sort():
        for kind, name in (("joined", "index"), ("captions", "index"), ("media", "index-media")):
            part = good.filter((pl.col("split") == split) & (pl.col("kind") == kind))
            if len(part):
                files[f"{split}/{name}.json"] = _wids_index(part, split, plan.folder)
    for folder in (plan.folder, MEDIA_FOLDER):
        sweep_unfinished(f"{root.rstrip('/')}/{folder}", options)
    manifest = _manifest(plan, rows, index)
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
    wanted = plan.units.select("shard_key", "input_digest", "ordinal", "shard")
    rows = wanted.join(latest.drop("shard"), on=["shard_key", "input_digest"], how="left", maintain_order="left")
    absent = rows.filter(pl.col("status").is_null())
    if len(absent):
        raise PackIncompleteError(
            f"pack {plan.pack_id}: {len(absent)} of {len(wanted)} shards are not written, the first is "
            f"{absent['shard'][0]}; run pack again"
        )
    return rows


def pack_effort(plan: PackPlan, packed: pl.DataFrame) -> dict[str, int]:
    """What a pack cost to write: shards and bytes written for it, and those taken over from earlier packs.

    This is history and not content, so it stays out of the manifest.
    """
    rows = _rows_of(plan, packed).filter(pl.col("status") == "ok")
    fresh = rows.filter((pl.col("pack_id") == plan.pack_id) & (pl.col("bytes_written") > 0))
    return {
        "shards_written": len(fresh),
        "bytes_written": int(fresh["bytes_written"].sum()),
        "shards_reused": len(rows) - len(fresh),
        "bytes_total": int(rows["num_bytes"].sum()),
    }


def sampling_index(plan: PackPlan, packed: pl.DataFrame) -> pl.DataFrame:
    """A row a caption that can be drawn for training, in shard order.

    Columns: shard (path in the run), sample (position in the shard), media_key and region_key (hexadecimal), split,
    source, task, language, event_index.
    """
    rows = packed.filter(pl.col("status") == "ok")
    lost = rows.explode("missing", empty_as_null=True).select(
        "ordinal", media_key=pl.col("missing").struct.field("media_key")
    )
    pixels = rows.filter(pl.col("kind") != "media").select("ordinal", "shard", "split")
    placed = plan.members.join(pixels, on="ordinal", how="inner", maintain_order="left")
    if plan.config.layout == "joined":
        placed = placed.join(lost.drop_nulls(), on=["ordinal", "media_key"], how="anti", maintain_order="left")
        placed = placed.with_columns(position=pl.int_range(pl.len()).over("ordinal"))
    else:
        placed = placed.join(lost.drop_nulls(), on=["ordinal", "media_key"], how="anti", maintain_order="left")
    captions = plan.bodies["captions"].select("media_key", "region_key", "task", "language", "event_index")
    sources = plan.bodies["regions"].select("region_key", "source")
    joined = captions.join(sources, on="region_key", how="left", maintain_order="left").join(
        placed, on="media_key", how="inner", maintain_order="left"
    )
    return joined.select(
        "shard",
        pl.col("position").alias("sample"),
        pl.col("media_key").bin.encode("hex"),
        pl.col("region_key").bin.encode("hex"),
        "split",
        "source",
        "task",
        "language",
        "event_index",
    )


def _parquet(frame: pl.DataFrame) -> bytes:
    out = io.BytesIO()
    frame.write_parquet(out, compression="zstd")
    return out.getvalue()


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
    return pl.when(pl.col("kind") == "media").then(pl.col("missing").list.len()).otherwise(0).cast(pl.Int64)


def _manifest(plan: PackPlan, rows: pl.DataFrame, index: pl.DataFrame) -> dict[str, Any]:
    good, failed = rows.filter(pl.col("status") == "ok"), rows.filter(pl.col("status") != "ok")
    samples = good.filter(pl.col("kind") != "media")
    missing = rows.explode("missing", empty_as_null=True).select(pl.col("missing").struct.field("reason").drop_nulls())
    shards = good.select(
        "shard", "kind", "split", "form", "sha256", "num_bytes", "num_samples", "num_regions", "num_captions"
    )
    counts = index.group_by("split", "source", "task", "language").agg(
        captions=pl.len(), regions=pl.col("region_key").n_unique(), media=pl.col("media_key").n_unique()
    )
    return {
        "pack_id": plan.pack_id,
        "schema_version": SCHEMA_VERSION,
        "config": plan.config.model_dump(mode="json"),
        "totals": {
            "shards": len(good),
            "bytes": int(good["num_bytes"].sum()),
            "samples": int(samples["num_samples"].sum()),
            "regions": int(samples["num_regions"].sum()),
            "captions": int(samples["num_captions"].sum()),
            "failed_shards": len(failed),
        },
        "splits": {
            split: {"samples": part["num_samples"].sum(), "captions": part["num_captions"].sum(), "shards": len(part)}
            for (split,), part in sorted(samples.group_by("split"), key=lambda found: str(found[0][0]))
        },
        "counts": counts.sort("split", "source", "task", "language").to_dicts(),
        "excluded": plan.excluded.select(list(EXCLUDED_SCHEMA)).to_dicts(),
        "missing_samples": missing.group_by("reason").len("count").sort("reason").to_dicts(),
        "shards": shards.to_dicts(),
        "failed": failed.select("shard", "reason", "message").to_dicts(),
        "licences": _licences(plan),
    }


def _licences(plan: PackPlan) -> list[dict[str, Any]]:
    regions = (
        plan.bodies["regions"].group_by("source", "licence").agg(regions=pl.len(), media=pl.col("media_key").n_unique())
    )
    return regions.sort("source", "licence", nulls_last=True).to_dicts()
