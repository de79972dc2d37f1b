"""Captions that were made elsewhere and come in with their regions: rows like a teacher's, and nobody is asked."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import fsspec
import polars as pl
import pyarrow as pa

from schemas.base import Key, Record, Row
from schemas.caption import NO_EVENT, Caption, Language, Task
from schemas.keys import digest_columns
from stages.base import Stage
from stages.ingest.base import SourceError

TEACHER = "imported"
ORIGIN = "pam-data"

CAPTIONS_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "source_id": pl.String,
    "media": pl.String,
    "task": pl.String,
    "language": pl.String,
    "event_index": pl.Int64,
    "text": pl.String,
    "history": pl.String,
    "question": pl.String,
    "start_frame": pl.Int64,
    "end_frame": pl.Int64,
    "where": pl.String,
    "extra": pl.String,
}
"""The columns of `captions.parquet`: `source_id` is the region's in `regions.jsonl`, `where` file and line, `extra` the
keys that PAM does not define, as JSON."""


class ImportedUnit(Record):
    """A caption and the region that it is about. `chain` counts the events of its region's longest stream, `events`
    those of the region as it was cut here (both null for captions of no stream)."""

    caption_key: Key
    region_key: Key
    media_key: Key
    task: Task
    language: Language
    event_index: int = NO_EVENT
    text: str
    history: str | None = None
    question: str
    extra: str | None = None
    chain: int | None = None
    events: int | None = None
    input_digest: Key


class ImportedStage(Stage):
    """One row a caption, as it came. The teacher is `imported`; `message` holds the keys that PAM does not define.

    A stream of another number of events than its region has here is `failed` (`events_differ`).
    """

    name: ClassVar[str] = "import"
    version: ClassVar[int] = 1
    table: ClassVar[str] = "captions"
    unit: ClassVar[type[Record]] = ImportedUnit
    row: ClassVar[type[Row]] = Caption
    unit_field: ClassVar[str] = "caption_key"
    group_by: ClassVar[tuple[str, ...]] = ("media_key",)
    batch_groups = 4096

    def settings(self) -> dict[str, Any]:
        return {"origin": ORIGIN}

    def process(self, units: pa.Table) -> Iterator[pa.Table]:
        frame = pl.DataFrame(pl.from_arrow(units))
        fits = pl.col("chain").eq_missing(pl.col("events"))
        told = pl.format("the stream has {} events, its region has {} here", "chain", "events")
        hashes = digest_columns({"question": frame["question"].to_arrow()})
        rows = frame.select(
            *(name for name in ImportedUnit.model_fields if name in Caption.model_fields and name != "text"),
            text=pl.when(fits).then("text"),
            label=pl.when(pl.col("task") == "label").then("text"),
            outcome=pl.when(fits).then(pl.lit("answer")),
            teacher=pl.lit(TEACHER),
            model=pl.lit(ORIGIN),
            prompt_id=pl.format("pam/{}-{}", "task", "language"),
            prompt_hash=pl.Series(hashes, dtype=pl.Binary),
            status=pl.when(fits).then(pl.lit("ok")).otherwise(pl.lit("failed")),
            reason=pl.when(~fits).then(pl.lit("events_differ")),
            message=pl.when(fits).then("extra").otherwise(told),
        )
        yield rows.to_arrow()


def read_imported(files: Mapping[str, str], storage_options: Mapping[str, Any] | None = None) -> pl.DataFrame:
    """The captions of each source's `captions.parquet`, with the name of the `source`.

    Raises `SourceError` naming a file that is not there or that `perceive import` did not write.
    """
    frames = [pl.DataFrame(schema={**CAPTIONS_SCHEMA, "source": pl.String})]
    for source, path in files.items():
        filesystem, bare = fsspec.core.url_to_fs(path, **(storage_options or {}))
        if not filesystem.exists(bare):
            raise SourceError(f"source {source}: there are no imported captions at {path}; import them again")
        frame = pl.read_parquet(io.BytesIO(filesystem.cat_file(bare)))
        if frame.schema != pl.Schema(CAPTIONS_SCHEMA):
            raise SourceError(
                f"source {source}: {path} has the columns {frame.columns}, not those of imported captions"
            )
        frames.append(frame.with_columns(source=pl.lit(source)))
    return pl.concat(frames)
