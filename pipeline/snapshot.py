"""Snapshots: which fingerprint is current for each stage and task, as of one moment. Readers follow the newest."""

from __future__ import annotations

import io

import polars as pl

from pipeline.store import Store
from schemas.base import Record

FOLDER = "snapshots"


class Snapshot(Record):
    """`snapshots/<number>.json`, written under the lease and never changed.

    `fingerprints` maps a stage or task (`refine`, `distill/brief/en`) to the hexadecimal fingerprint whose rows are
    current; `sources` what was known of each source at ingest; `tombstones` names a parquet of (table, key,
    input_digest) beside it; `pointers` are further facts of the moment, free in form (a pack id, a policy).
    `epoch` and `seq` say up to which commit it was written: a commit after it belongs to work in progress.
    """

    number: int
    epoch: int
    seq: int
    fingerprints: dict[str, str] = {}
    sources: dict[str, str] = {}
    pointers: dict[str, str] = {}
    tombstones: str | None = None
    created: str

    def same(self, fingerprints: dict[str, str], sources: dict[str, str], pointers: dict[str, str]) -> bool:
        return (self.fingerprints, self.sources, self.pointers) == (fingerprints, sources, pointers)


def path_of(number: int) -> str:
    return f"{FOLDER}/{number:08d}.json"


def snapshot_files(store: Store) -> dict[int, str]:
    """The snapshot files of a run by number, valid or not."""
    stems = {info.name.removesuffix(".json"): info.path for info in store.files(FOLDER)}
    return {int(stem): path for stem, path in stems.items() if stem.isdigit()}


def read_snapshot(store: Store, path: str) -> Snapshot:
    return Snapshot.model_validate_json(store.read(path))


TOMBSTONE_SCHEMA = {"table": pl.String, "key": pl.Binary, "input_digest": pl.Binary}


def encode_tombstones(rows: pl.DataFrame) -> bytes:
    """Sorted parquet bytes of a (table, key, input_digest) frame; raises `ValueError` for other columns."""
    if dict(rows.schema) != TOMBSTONE_SCHEMA:
        raise ValueError(f"tombstones have the columns {TOMBSTONE_SCHEMA}, not {dict(rows.schema)}")
    out = io.BytesIO()
    rows.unique().sort("table", "key", "input_digest").write_parquet(out)
    return out.getvalue()


def read_tombstones(store: Store, path: str | None) -> pl.DataFrame:
    """The dropped rows of a snapshot; an empty frame where there are none."""
    if path is None:
        return pl.DataFrame(schema=TOMBSTONE_SCHEMA)
    return pl.read_parquet(io.BytesIO(store.read(path)))


def live(rows: pl.LazyFrame, tombstones: pl.DataFrame, table: str, key_field: str) -> pl.LazyFrame:
    """The rows of a table that the latest ingest still has: without those in `tombstones`."""
    dead = tombstones.lazy().filter(pl.col("table") == table).select(pl.col("key").alias(key_field), "input_digest")
    return rows.join(dead, on=[key_field, "input_digest"], how="anti")
