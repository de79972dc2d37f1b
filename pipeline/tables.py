"""The durable tables of a run: open one, read it at a moment, write it under the lease.

    run = Run.open("s3://bucket/runs/coco", storage_options)
    with run.writer(holder="perceive build") as writer:
        writer.commit_table("masks", fingerprint, rows, "mask_key")
        writer.snapshot({"refine": fingerprint.hex()})
    run.view().rows("masks", fingerprint).collect()

`pipeline.commits` has the rule by which a commit counts, `docs/reference/tables.md` the layout and the proof.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import polars as pl

from pipeline.commits import (
    Commit,
    PartInfo,
    RunError,
    by_table,
    highest_epoch,
    read_log,
    write_part,
)
from pipeline.lease import DEFAULT_TTL_S, Lease, LeaseHeld, LeaseLost, Standing, standing
from pipeline.snapshot import Snapshot, live
from pipeline.store import Store
from pipeline.view import View
from pipeline.writer import COMPACT_ABOVE, Writer

__all__ = [
    "Commit",
    "LeaseHeld",
    "LeaseLost",
    "PartInfo",
    "Run",
    "RunError",
    "Snapshot",
    "Store",
    "View",
    "Writer",
    "live",
    "pending",
    "write_part",
]


@dataclass(frozen=True)
class Run:
    """A run directory. Opening one reads and writes nothing."""

    store: Store

    @classmethod
    def open(cls, url: str, storage_options: dict[str, Any] | None = None) -> Run:
        """A run at a local path or any fsspec URL."""
        return cls(Store(url, storage_options))

    def view(self) -> View:
        """What counts now; needs no lease. Raises `RunError` for an unreadable record."""
        log = read_log(self.store)
        return View(self.store, by_table(log.commits), log.snapshot)

    @contextmanager
    def writer(self, holder: str, ttl_s: float = DEFAULT_TTL_S, compact_above: int = COMPACT_ABOVE) -> Iterator[Writer]:
        """Holds the run's lease; nobody else can write meanwhile.

        `ttl_s`: silence after which another driver may take over. Raises `LeaseHeld` naming the live holder.
        """
        lease = Lease.acquire(self.store, holder, ttl_s, at_least=highest_epoch(self.store) + 1)
        try:
            yield Writer(self.store, lease, compact_above)
        finally:
            lease.release()

    def holder(self) -> Standing | None:
        """Who holds the run, or held it last; None for a run that nobody has written."""
        return standing(self.store)


def pending(units: pl.LazyFrame, done: pl.LazyFrame, on: Sequence[str], count_field: str | None = None) -> pl.DataFrame:
    """The units without rows: a set difference on the columns `on`, all columns of `units` kept.

    With `count_field` a unit is done only when it has as many rows as that column of its rows says (video segments).
    A null in `on` matches nothing, so such a unit is always pending.
    """
    if count_field is not None:
        counted = done.group_by(on).agg(pl.len().alias("__rows"), pl.col(count_field).max().alias("__expected"))
        done = counted.filter(pl.col("__rows") >= pl.col("__expected"))
    return units.join(done.select(on), on=list(on), how="anti").collect(engine="streaming")
