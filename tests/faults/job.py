"""A small job of several commits, as a build makes them, to be killed anywhere and run again."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, ClassVar

import polars as pl
import pyarrow as pa

from pipeline.gc import gc
from pipeline.tables import LeaseHeld, LeaseLost, Run, Writer, pending, write_part
from schemas.arrow import arrow_schema, to_table
from schemas.base import Key, Row
from schemas.keys import digest_value
from stages import failpoints

NUMBERS = range(6)
DROPPED = 0
FIRST, SECOND = digest_value("first prompt"), digest_value("second prompt")
ON = ["thing_key", "input_digest"]
HELD, LOST = 3, 4


class Thing(Row):
    key_field: ClassVar[str] = "thing_key"

    thing_key: Key
    number: int


def things(numbers: Any) -> pa.Table:
    rows = [
        Thing(thing_key=digest_value(["thing", n]), input_digest=digest_value(["input", n]), number=n) for n in numbers
    ]
    return to_table(rows, Thing)


def begin(environment: dict[str, str]) -> None:
    os.environ.update(environment)
    failpoints.rearm()


def build(environment: dict[str, str], url: str, options: dict[str, Any] | None, journal: Path) -> None:
    """Two builds with different prompts, then gc: takeovers, commits, compactions, snapshots, tombstones, sweeps."""
    begin(environment)
    run = Run.open(url, options)
    for fingerprint in (FIRST, SECOND):
        with run.writer("job", compact_above=2) as writer:
            writer.sweep()
            _fill(writer, fingerprint, journal)
            dropped = None
            if fingerprint == SECOND:
                gone = pl.DataFrame(pl.from_arrow(things([DROPPED])))
                dropped = gone.select(pl.lit("things").alias("table"), pl.col("thing_key").alias("key"), "input_digest")
            writer.snapshot({"things": fingerprint.hex()}, tombstones=dropped)
    gc(run)


def _fill(writer: Writer, fingerprint: bytes, journal: Path) -> None:
    units = pl.DataFrame(pl.from_arrow(things(NUMBERS)))
    done = writer.view().rows("things", fingerprint, schema=arrow_schema(Thing))
    left = pending(units.lazy(), done, ON).sort("number")
    for batch in left.iter_slices(2):
        rows = things(batch["number"].to_list())
        note(journal, "made", fingerprint, rows)
        part = write_part(writer.store, "things", writer.epoch, rows, "thing_key")
        writer.commit("things", fingerprint, rows["thing_key"], part)
        note(journal, "committed", fingerprint, rows)


def note(journal: Path, what: str, fingerprint: bytes, rows: pa.Table) -> None:
    with journal.open("a") as stream:
        for number in rows["number"].to_pylist():
            stream.write(f"{what} {fingerprint.hex()} {number}\n")


def commit_one(environment: dict[str, str], url: str, ttl_s: float, number: int) -> None:
    """A driver that commits one thing; exits with HELD or LOST where another driver has the run."""
    begin(environment)
    rows = things([number])
    try:
        with Run.open(url).writer(f"driver of {number}", ttl_s) as writer:
            part = write_part(writer.store, "things", writer.epoch, rows, "thing_key")
            writer.commit("things", FIRST, rows["thing_key"], part)
    except LeaseHeld as held:
        Path(url, f"held-{number}").write_text(str(held))
        sys.exit(HELD)
    except LeaseLost:
        sys.exit(LOST)
