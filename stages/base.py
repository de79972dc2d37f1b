"""The contract of a stage: configuration plus `process(units) -> rows`, plain Python, no Ray.

A stage is given units (an Arrow table with the schema of its `unit` record; groups named by `group_by` are never
split) and returns rows (the schema of its `row` record). Every unit comes back: as one row, or as several that name
their number in `count_field`, with status `ok`, `filtered` or `failed`. `checked` is the one seam through which every
stage runs; it validates that promise and fills the rows' digests.
"""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import as_completed
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from schemas.arrow import arrow_schema, conform
from schemas.base import Record, Row
from schemas.keys import Encoded, digest_columns, digest_value

T = TypeVar("T")


class UnitError(Exception):
    """A unit cannot be processed, now or ever: its row is `failed` with this reason and message."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message


class TransientError(Exception):
    """Something outside the unit failed (a full disk, a lost connection): the batch is worth another try."""


class Outage(TransientError):
    """What every unit needs is away (a server is down): waited out, and no unit is to blame for it."""


class CannotGoOn(Exception):
    """No unit can be processed any more (a key is refused, a disk is full): the run ends with this reason."""


class WorkerLost(Exception):
    """The worker's process can do no more (its inference engine died): it is replaced, and its batch tried anew."""


class Unfinished(Exception):
    """What was begun is done, and the other units stay pending."""


class BudgetSpent(Unfinished):
    """The money that a run may spend is at its end."""


class Drained(Unfinished):
    """The run is to end: nothing new is begun."""


class Funds(Protocol):
    """Where money comes from that stages may spend on replies; travels to workers."""

    def draw(self, least: float) -> float:
        """Takes at least `least` dollars out, or nothing (0.0) where less is left."""
        ...

    def give_back(self, usd: float) -> None:
        """Puts back what was not spent."""
        ...


class StageContractError(Exception):
    """A stage lost, doubled or invented a unit. A defect of the stage, never of the data."""


@dataclass(frozen=True)
class Resources:
    """What one worker of a stage occupies on a cluster."""

    num_cpus: float = 1.0
    num_gpus: float = 0.0
    memory_bytes: int = 0


class Stage(ABC):
    """One step of the corpus, from units to rows."""

    name: ClassVar[str]
    version: ClassVar[int]
    table: ClassVar[str]
    unit: ClassVar[type[Record]]
    row: ClassVar[type[Row]]
    unit_field: ClassVar[str]
    group_by: ClassVar[tuple[str, ...]]
    count_field: ClassVar[str | None] = None

    resources: Resources = Resources()
    batch_groups: int = 16
    most_groups: int = 0
    """For a stage whose groups are answered all at once, and seldom: how many a batch may have for its own sake."""
    shares_requests: bool = False
    """Whether other stages ask the same of a group: then one worker gets it from all of them."""
    asks: bool = False
    """Whether a teacher is asked, of whose minute limits each worker has its share."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """All that the rows depend on beside their units (configuration, prompt hash, model), as plain JSON values."""

    def fund(self, funds: Funds) -> None:
        """Bounds what this stage may spend on replies, before it is opened; a stage that buys none needs no bound.

        Raises `ValueError` where the price of its replies is not known.
        """

    def share(self, workers: int) -> None:
        """Says among how many workers minute limits are divided, before it is opened."""

    def patience_s(self, units: pa.Table) -> float:
        """The seconds that these units may take before anything of them is done, where that is long; else 0."""
        return 0.0

    def open(self) -> None:
        """Called once in each worker before the first `process`: load weights, open clients."""

    @abstractmethod
    def process(self, units: pa.Table) -> Iterator[pa.Table]:
        """Yields the rows of these units, a table at a time; what has been yielded may be committed."""

    def drain(self) -> None:
        """Called from another thread when the run is to end soon: what `process` has not begun may be left out, if it
        then raises `Drained`."""

    def close(self) -> None:
        """Called once in each worker after the last `process`."""


class AsyncStage(Stage):
    """A stage that waits on a network: groups run side by side on one event loop a worker, `in_flight` at a time.

    The loop outlives a batch, so that batches handed over by several threads keep it full. Subclasses that override
    `open` or `close` call these too; their clients are made inside the loop (`on_loop_start`).
    """

    in_flight: int = 64
    waits: bool = True
    """False where the work is the CPU's after all: then it runs among the CPU stages."""
    _loop: asyncio.AbstractEventLoop
    _slots: asyncio.Semaphore
    _draining: bool = False

    @abstractmethod
    async def process_group(self, units: pa.Table) -> pa.Table:
        """The rows of one group."""

    async def on_loop_start(self) -> None:
        """Runs on the loop before any group: make clients here."""

    async def on_loop_stop(self) -> None:
        """Runs on the loop after the last group: close clients here."""

    def open(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._slots = asyncio.Semaphore(self.in_flight)
        self._draining = False
        threading.Thread(target=self._loop.run_forever, name=f"{self.name}-loop", daemon=True).start()
        asyncio.run_coroutine_threadsafe(self.on_loop_start(), self._loop).result()

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self.on_loop_stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)

    def drain(self) -> None:
        self._draining = True

    async def _one(self, group: pa.Table) -> pa.Table:
        async with self._slots:
            if self._draining:
                raise Drained("this group was not begun")
            return await self.process_group(group)

    def process(self, units: pa.Table) -> Iterator[pa.Table]:
        """Groups as they are done. Raises `Unfinished` when all others are, where some were not begun."""
        waiting = [asyncio.run_coroutine_threadsafe(self._one(g), self._loop) for g in groups(units, self.group_by)]
        left: Unfinished | None = None
        try:
            for done in as_completed(waiting):
                if isinstance(error := done.exception(), Unfinished):
                    left = error
                else:
                    yield done.result()
        finally:
            for future in waiting:
                future.cancel()
        if left is not None:
            raise left


async def all_or_error(jobs: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all jobs in their order. Where one raises, the others are waited for before its error is raised:
    a reply that is on its way is paid for and has to reach its ledger."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    await asyncio.gather(*tasks, return_exceptions=True)
    return [task.result() for task in tasks]


def fingerprint(stage: Stage) -> bytes:
    """How a row was made: H(name, version, settings). It does not depend on batch sizes or resources."""
    return digest_value({"stage": stage.name, "version": stage.version, "settings": stage.settings()})


def checked(stage: Stage, units: pa.Table) -> Iterator[pa.Table]:
    """Runs a stage over units; yields its rows with schema and digests, and raises if a unit is not accounted for.

    Raises `StageContractError` when a row names no unit of this batch or a unit has no row or one too many.
    """
    schema = arrow_schema(stage.row)
    expected = pl.DataFrame(pl.from_arrow(units.select([stage.unit_field, "input_digest"])))
    seen: list[pl.DataFrame] = []
    for table in stage.process(conform(units, arrow_schema(stage.unit))):
        rows = with_digest(conform(_with_defaults(table, stage.row, schema), schema), stage.row)
        columns = [stage.unit_field, "input_digest", stage.row.key_field]
        seen.append(pl.DataFrame(pl.from_arrow(rows.select(list(dict.fromkeys(columns))))))
        yield rows
    _account(stage, expected, pl.concat(seen) if seen else None)


def with_digest(rows: pa.Table, model: type[Row], encoded: Mapping[str, Encoded] | None = None) -> pa.Table:
    """The rows with `digest` computed over the model's content columns, of which some may be `encoded` already."""
    if not model.content:
        return rows
    digest = digest_columns({name: rows[name] for name in model.content} | dict(encoded or {}))
    return rows.set_column(rows.schema.get_field_index("digest"), rows.schema.field("digest"), digest)


def _account(stage: Stage, expected: pl.DataFrame, rows: pl.DataFrame | None) -> None:
    on = [stage.unit_field, "input_digest"]
    if rows is None:
        rows = expected.clear().with_columns(pl.lit(None, pl.Binary).alias(stage.row.key_field))
    lost = expected.join(rows, on=on, how="anti")
    invented = rows.join(expected, on=on, how="anti")
    doubled = rows.filter(pl.col(stage.row.key_field).is_duplicated())
    for what, frame in (("lost", lost), ("invented", invented), ("doubled", doubled)):
        if len(frame):
            first = frame[stage.unit_field][0]
            raise StageContractError(
                f"stage {stage.name} {what} {len(frame)} of {len(expected)} units, the first {first.hex()}"
            )


def groups(units: pa.Table, by: tuple[str, ...]) -> Iterator[pa.Table]:
    """The groups of a table in order of first appearance, each as its own table."""
    if not len(units):
        return
    keyed = digest_columns({name: units[name] for name in by})
    codes = pc.dictionary_encode(keyed).indices
    ordered = units.take(pc.sort_indices(codes))
    sizes = pc.value_counts(codes)
    start = 0
    for size in sizes.field("counts").to_pylist():
        yield ordered.slice(start, size)
        start += size


def failed_rows(stage: Stage, units: pa.Table, reason: str, message: str) -> pa.Table:
    """One `failed` row for each unit of a stage that could not process them, so that none is lost.

    Columns that unit and row share are copied; the rest is null, the record's default, or empty.
    """
    schema = arrow_schema(stage.row)
    fixed = {"status": "failed", "reason": reason, "message": message, "attempts": 1, stage.count_field: 1}
    keys = units[stage.unit_field]
    if stage.row.key_field != stage.unit_field:
        keys = digest_columns({"unit": keys, "failed": pa.array([True] * len(units))})
    columns = []
    for field in schema:
        if field.name in fixed:
            columns.append(pa.array([fixed[field.name]] * len(units), field.type))
        elif field.name == stage.row.key_field:
            columns.append(keys)
        elif field.name in units.column_names and field.name != "digest":
            columns.append(units[field.name])
        else:
            columns.append(_blank(stage.row, field, len(units)))
    return with_digest(conform(pa.Table.from_arrays(columns, names=schema.names), schema), stage.row)


def _with_defaults(rows: pa.Table, model: type[Row], schema: pa.Schema) -> pa.Table:
    for field in schema:
        if field.name not in rows.column_names and not model.model_fields[field.name].is_required():
            rows = rows.append_column(field, _blank(model, field, len(rows)))
    return rows


def _blank(model: type[Row], field: pa.Field, length: int) -> pa.Array:
    if field.nullable:
        return pa.nulls(length, field.type)
    default = model.model_fields[field.name].get_default(call_default_factory=True)
    if isinstance(default, Record):
        default = default.model_dump()
    if default is None or repr(default) == "PydanticUndefined":
        empty: dict[Any, Any] = {pa.string(): "", pa.int64(): 0, pa.float64(): 0.0, pa.bool_(): False}
        default = empty.get(field.type, bytes(16))
    return pa.array([default] * length, field.type)
