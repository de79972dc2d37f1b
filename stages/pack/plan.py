"""Planning a pack: a pure function from tables to shards. The order of calls:

plan = plan_pack(frames, config, packed=earlier_rows)      # polars, no pixels, seconds
todo = plan.pending(earlier_rows)                          # light rows of the shards still to write
for batch in todo.iter_slices(8):                          # bounded memory: bodies are filled in a batch at a time
    units = plan.fill(batch)                               # pa.Table of `PackUnit`, for `PackStage` in the workers
finish_pack(run_url, plan, all_rows_of_plan)               # driver: manifest, indexes, card
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from schemas.arrow import arrow_schema, conform
from schemas.keys import digest_columns, digest_value
from stages.pack.config import PackConfig
from stages.pack.frames import PackFrames, to_ipc
from stages.pack.records import PackUnit
from stages.pack.samples import COLUMNS
from stages.pack.select import EXCLUDED_SCHEMA, exclusions, judged_captions, kept_captions
from stages.pack.shards import cut, layout_digest, planned_media, record_bytes
from stages.pack.slices import BODIES, MEDIA_PER_SLICE, Bodies, Slices, summed

MEDIA_FOLDER = "media_shards"


@dataclass(frozen=True)
class PackPlan:
    """A pack before it is written.

    `units`: a row a shard (`PackUnit` without bodies, plus `ordinal`, `planned_bytes`). `members`: `media_key`,
    `ordinal` of its shard group, `position` in the shard. `excluded`: counts as `select.exclusions` gives them.
    `forms`: the pixels' forms with the most frames that a sample of each carries. `sources`: their names.
    `num_captions`: the captions that are to be packed. `bodies`: the rows to pack. `pack_id`: 16 hexadecimal digits
    naming what is packed, how, and by which decisions, so that equal inputs have equal names.
    """

    pack_id: str
    config: PackConfig
    units: pl.DataFrame
    members: pl.DataFrame
    excluded: pl.DataFrame
    forms: dict[str, int]
    sources: list[str]
    num_captions: int
    bodies: Bodies

    @property
    def folder(self) -> str:
        """The pack's folder inside the run."""
        return f"packs/{self.pack_id}"

    def pending(
        self, packed: pl.DataFrame | None, retry: bool = False, sizes: Mapping[str, int] | None = None
    ) -> pl.DataFrame:
        """The light rows of shards that no `ok` row of the `packed` table holds yet.

        With `retry` those that lack samples as well, with the attempts that they have had. `sizes` (bytes by path in
        the run, of the files that lie there) tells which shards are lost or cut short: their rows count no more. A
        media shard that is in place is never replaced, since other packs' manifests state its bytes: what a retry
        makes of it gets a name of its own.
        """
        if packed is None or packed.is_empty():
            return self.units
        on = ["shard_key", "input_digest"]
        latest = packed.unique(on, keep="last").with_columns(there=_there(sizes))
        whole = pl.col("there") & (~pl.lit(retry) | (pl.col("missing").list.len() == 0))
        left = self.units.join(latest.filter(whole).select(on), on=on, how="anti", maintain_order="left")
        earlier = latest.select(*on, "attempts", "there", before="shard")
        left = left.join(earlier, on=on, how="left", maintain_order="left")
        attempt = pl.format("-{}.tar", pl.col("attempts") + 1)
        fresh = pl.col("shard").str.strip_suffix(".tar") + attempt
        path = pl.when(pl.col("there")).then(fresh).otherwise(pl.coalesce("before", "shard"))
        path = pl.when(pl.col("kind") == "media").then(path).otherwise("shard")
        return left.with_columns(shard=path).drop("before", "there")

    def fill(self, units: pl.DataFrame) -> pa.Table:
        """Units with their bodies: the table that `PackStage` takes. Memory is that of these shards' records."""
        columns: dict[str, list[bytes]] = {name: [] for name in BODIES}
        for kind, ordinal in units.select("kind", "ordinal").iter_rows():
            for name, rows in self.rows(ordinal).items():
                columns[name].append(to_ipc(rows.clear() if kind == "media" and name != "media" else rows))
        filled = units.with_columns(pl.Series(name, values, pl.Binary) for name, values in columns.items())
        return conform(filled.to_arrow(), arrow_schema(PackUnit))

    def rows(self, ordinal: int) -> dict[str, pl.DataFrame]:
        """The rows of each table that go into one shard group."""
        return self.bodies.rows(self.members.filter(pl.col("ordinal") == ordinal).select("media_key"))

    def table(self, name: str) -> pl.DataFrame:
        """All rows of one table, in shard order, in memory."""
        parts = [self.rows(ordinal)[name] for ordinal in self.members["ordinal"].unique(maintain_order=True)]
        return pl.concat(parts)


def plan_pack(
    frames: PackFrames,
    config: PackConfig,
    packed: pl.DataFrame | None = None,
    media_per_slice: int = MEDIA_PER_SLICE,
    decided_by: str = "",
) -> PackPlan:
    """Plans the shards of a run's current tables.

    `packed` are earlier rows of the `packed` table, all packs: shards with the same input digest are reused.
    `decided_by` names the decision set: packs of two sets have two ids, even where both keep the same captions. Reads
    the tables once, slice by slice: what stays in memory is a few numbers a media; pixels are never touched.
    """
    slices = Slices(frames, media_per_slice)
    bodies = Bodies(slices.folder)
    light, excluded, sources, captions = [], [], set[str](), 0
    for part in slices:
        judged = judged_captions(part)
        tables = _slice_bodies(part, kept_captions(judged), config)
        bodies.add(tables)
        light.append(_light(tables))
        excluded.append(exclusions(part, judged))
        sources |= set(tables["regions"]["source"])
        captions += len(tables["captions"])
    media = pl.concat(light).sort("pack_split", "form", "media_key")
    members, shards = _cut_all(media, config)
    digests = media["digest"].to_list()
    named = {"config": config.model_dump(mode="json"), "decided_by": decided_by, "samples": b"".join(digests)}
    pack_id = digest_value(named).hex()[:16]
    units = _units(shards, members, digests, media["media_digest"].to_list(), pack_id, config)
    if packed is not None and not packed.is_empty():
        units = _reusing(units, packed)
    forms = dict(media.group_by("form").agg(pl.col("frames").max()).sort("form").iter_rows())
    by = [name for name in EXCLUDED_SCHEMA if name != "count"]
    return PackPlan(pack_id, config, units, members, summed(excluded, by), forms, sorted(sources), captions, bodies)


def _slice_bodies(frames: PackFrames, captions: pl.DataFrame, config: PackConfig) -> dict[str, pl.DataFrame]:
    """The rows of a slice that are packed, each table in the order of its shards; media with `planned_bytes`."""
    regions = frames.frame("regions").filter(pl.col("status") == "ok")
    regions = regions.join(captions, on="region_key", how="semi")
    masks = frames.frame("masks").filter(pl.col("status") == "ok")
    events = frames.frame("events").filter(pl.col("status") == "ok")
    media = frames.frame("media").filter(pl.col("status") == "ok")
    # Media shards hold every media with an accepted mask, so that they do not change with a policy.
    reach = masks if config.layout == "split" else captions
    media = planned_media(media.join(reach, on="media_key", how="semi"), masks, events, config)
    bodies = {
        "regions": regions,
        "masks": masks.join(captions, on="region_key", how="semi"),
        "events": events.join(captions, on="region_key", how="semi"),
        "captions": captions,
    }
    if config.layout == "joined":
        sizes = record_bytes(bodies["regions"], bodies["masks"], captions)
        media = media.join(sizes, on="media_key", how="left").with_columns(
            planned_bytes=pl.col("planned_bytes") + pl.col("record_bytes").fill_null(0)
        )
    media = media.select(*COLUMNS["media"], "planned_bytes").sort("pack_split", "form", "media_key")
    places = media.select("media_key").with_row_index("place")
    return {"media": media, **{name: _ordered(name, frame, places) for name, frame in bodies.items()}}


def _light(bodies: dict[str, pl.DataFrame]) -> pl.DataFrame:
    """What a plan remembers of each media: its split, form, size and frames, the digests of its sample."""
    whole, pixels = _sample_digests(bodies)
    return bodies["media"].select(
        "media_key",
        "pack_split",
        "form",
        "planned_bytes",
        frames=pl.col("clip_indices").list.len().cast(pl.Int64),
        digest=whole,
        media_digest=pixels,
    )


def _cut_all(media: pl.DataFrame, config: PackConfig) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Members (media_key, ordinal, position) and shard groups (ordinal, split, form, number, planned_bytes)."""
    media = media.sort("pack_split", "form", "media_key")
    member_parts, shards, ordinal = [], [], 0
    for (split, form), part in media.group_by(["pack_split", "form"], maintain_order=True):
        keys, sizes = part["media_key"].to_list(), part["planned_bytes"].to_list()
        for number, (start, end) in enumerate(cut(keys, sizes, int(config.max_shard_bytes))):
            member_parts.append(
                pl.DataFrame(
                    {
                        "media_key": pl.Series(keys[start:end], dtype=pl.Binary),
                        "ordinal": pl.Series([ordinal] * (end - start), dtype=pl.Int64),
                        "position": pl.Series(range(end - start), dtype=pl.Int64),
                    }
                )
            )
            shards.append((ordinal, split, form, number, sum(sizes[start:end])))
            ordinal += 1
    schema = {"media_key": pl.Binary, "ordinal": pl.Int64, "position": pl.Int64}
    members = pl.concat(member_parts) if member_parts else pl.DataFrame(schema=schema)
    columns = ["ordinal", "split", "form", "number", "planned_bytes"]
    types = {"ordinal": pl.Int64, "split": pl.String, "form": pl.String, "number": pl.Int64, "planned_bytes": pl.Int64}
    return members, pl.DataFrame(shards, schema=types, orient="row").select(columns)


_ORDER = {
    "regions": ["region_key"],
    "masks": ["region_key", "segment"],
    "events": ["region_key", "event_index"],
    "captions": ["region_key", "task", "language", "event_index"],
}


def _ordered(name: str, frame: pl.DataFrame, places: pl.DataFrame) -> pl.DataFrame:
    """The columns of a body, in the order of their media (`media_key`, `place`)."""
    placed = frame.select(COLUMNS[name]).join(places, on="media_key", how="inner")
    return placed.sort("place", *_ORDER[name], maintain_order=True).drop("place")


def _sample_digests(bodies: dict[str, pl.DataFrame]) -> tuple[pl.Series, pl.Series]:
    """Two digests a media, in the order of the body: over all that its sample is written from, over its pixels' part.

    The rows of a media lie side by side in every body, so that each table is a list column without a copy.
    """
    places = bodies["media"].select("media_key").with_row_index("place")
    media = {column: bodies["media"][column].to_arrow() for column in _WRITTEN["media"]}
    lists: dict[str, pa.Array] = {}
    for name in BODIES[1:]:
        rows = bodies[name]
        counts = places.join(rows.group_by("media_key").len("rows"), on="media_key", how="left", maintain_order="left")
        ends = np.cumsum(counts["rows"].fill_null(0).to_numpy(), dtype=np.int64)
        columns = [rows[column].to_arrow() for column in _WRITTEN[name]]
        structs = pa.StructArray.from_arrays(columns, names=_WRITTEN[name])
        lists[name] = pa.LargeListArray.from_arrays(np.concatenate([[0], ends]), structs)
    pixels = digest_columns(media)
    whole = digest_columns({"media": pixels, **lists})
    return pl.Series("digest", whole, dtype=pl.Binary), pl.Series("media_digest", pixels, dtype=pl.Binary)


# The columns that reach a shard's bytes; `digest` stands for the geometry of masks.
_WRITTEN: dict[str, list[str]] = {
    "media": ["media_key", "kind", "width", "height", "form", "num_frames", "fps", "clip_indices", "portable"],
    "regions": [
        "region_key", "source", "source_id", "split", "licence", "label", "frame_index", "time_s",
        "box", "points",
    ],
    "masks": [
        "region_key", "segment", "digest", "frame_index", "time_s", "box",
        "predicted_iou", "stability", "seed_agreement", "mask_source",
    ],
    "events": ["region_key", "event_index", "start_frame", "end_frame", "start_s", "end_s", "absent", "motion"],
    "captions": [
        "region_key", "task", "language", "event_index", "text", "label", "definition", "function", "history",
        "teacher", "model", "prompt_id", "prompt_hash",
    ],
}  # fmt: skip


def _units(
    shards: pl.DataFrame,
    members: pl.DataFrame,
    digests: list[bytes],
    media_digests: list[bytes],
    pack_id: str,
    config: PackConfig,
) -> pl.DataFrame:
    settings = layout_digest(config)
    starts = np.searchsorted(members["ordinal"].to_numpy(), np.arange(len(shards) + 1)).tolist()
    keys = members["media_key"].to_list()
    rows: list[dict[str, Any]] = []
    for shard in shards.iter_rows(named=True):
        start, end = starts[shard["ordinal"]], starts[shard["ordinal"] + 1]
        base = {name: shard[name] for name in ("ordinal", "split", "form", "planned_bytes")}
        name = f"{shard['form']}-{shard['number']:06d}.tar"
        kind = "joined" if config.layout == "joined" else "captions"
        content = digest_value({"settings": settings, "kind": kind, "samples": b"".join(digests[start:end])})
        path = f"packs/{pack_id}/{shard['split']}/{name}"
        key = digest_value({"pack_id": pack_id, "shard": path})
        rows.append({**base, "kind": kind, "shard": path, "shard_key": key, "input_digest": content})
        if config.layout == "split":
            content = digest_value(
                {"settings": settings, "kind": "media", "samples": b"".join(media_digests[start:end])}
            )
            path = f"{MEDIA_FOLDER}/{shard['split']}/{shard['form']}-{keys[start].hex()[:8]}-{content.hex()[:16]}.tar"
            key = digest_value({"shard": path})
            rows.append({**base, "kind": "media", "shard": path, "shard_key": key, "input_digest": content})
    rows = [{"pack_id": pack_id, "reuse_from": None, "reuse_sha256": None, "reuse_bytes": None, **row} for row in rows]
    return pl.DataFrame(rows, schema=_UNIT_SCHEMA, orient="row")


def _there(sizes: Mapping[str, int] | None) -> pl.Expr:
    """Whether a row tells of a shard that lies where it says."""
    written = pl.col("status") == "ok"
    if sizes is None:
        return written
    found = pl.col("shard").replace_strict(sizes, default=None, return_dtype=pl.Int64) if sizes else pl.lit(None)
    return written & (found == pl.col("num_bytes")).fill_null(False)


_UNIT_SCHEMA = {
    "ordinal": pl.Int64,
    "planned_bytes": pl.Int64,
    "pack_id": pl.String,
    "shard_key": pl.Binary,
    "input_digest": pl.Binary,
    "split": pl.String,
    "form": pl.String,
    "kind": pl.String,
    "shard": pl.String,
    "reuse_from": pl.String,
    "reuse_sha256": pl.String,
    "reuse_bytes": pl.Int64,
}


def _reusing(units: pl.DataFrame, packed: pl.DataFrame) -> pl.DataFrame:
    whole = packed.filter((pl.col("status") == "ok") & (pl.col("missing").list.len() == 0))
    earlier = whole.select("input_digest", reuse_from="shard", reuse_sha256="sha256", reuse_bytes="num_bytes")
    units = units.drop("reuse_from", "reuse_sha256", "reuse_bytes")
    return units.join(earlier.unique("input_digest", keep="last"), on="input_digest", how="left", maintain_order="left")
