"""What the driver and its workers share: nodes, pools, pieces, and the body of a worker. No Ray here."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field

from pipeline.schedule import Batch
from schemas.keys import digest_columns
from stages.base import (
    AsyncStage,
    CannotGoOn,
    Drained,
    Resources,
    Stage,
    StageContractError,
    TransientError,
    Unfinished,
    UnitError,
    checked,
)

_FLUSH_ROWS = 4096
_FLUSH_SECONDS = 15.0
_PATIENT_SLOTS = 64  # of stages whose questions are answered all at once: none may wait for the next round


class WorkerError(Exception):
    """A stage cannot start in a worker, or not go on (no checkpoint, no key, no device): nor can the run."""


class PartWriter(Protocol):
    """Writes rows as a part of the run: durable, not yet visible."""

    def __call__(self, table_name: str, rows: pa.Table, key_field: str) -> Any: ...


@dataclass(frozen=True)
class PoolSpec:
    """Workers of one kind: how many, what each occupies, how many batches each holds at a time."""

    name: str
    workers: int
    slots: int
    num_cpus: float
    num_gpus: float
    memory_bytes: int = 0


@dataclass(frozen=True)
class Capacity:
    """What the cluster has: logical CPUs, GPUs, and the cores that CPU workers may fill.

    An embedded Ray offers more logical CPUs than the machine has cores, so that pools that mostly wait fit beside.
    """

    cpus: float
    gpus: float
    cores: float


@dataclass
class Pool:
    """The workers of one kind and the batches that wait for them."""

    spec: PoolSpec
    queue: deque[Batch] = field(default_factory=deque)
    workers: dict[int, Any] = field(default_factory=dict)
    load: dict[int, int] = field(default_factory=dict)
    lanes: dict[int, int] = field(default_factory=dict)
    born: int = 0

    def pick(self, lane: int | None = None) -> int | None:
        """The worker for the next batch: an idle one, a new one, or one with a free slot; None if all are full.

        That of a `lane` (there are no more lanes than workers) is always the same while it lives.
        """
        if lane is not None:
            return self._of_lane(lane)
        least = min(self.load, key=self.load.__getitem__, default=None)
        if least is not None and self.load[least] == 0:
            return least
        if len(self.workers) < self.spec.workers:
            return self._new()
        return least if least is not None and self.load[least] < self.spec.slots else None

    def _of_lane(self, lane: int) -> int | None:
        if self.lanes.get(lane) not in self.load:
            free = self.load.keys() - self.lanes.values()
            self.lanes[lane] = min(free) if free else self._new()
        number = self.lanes[lane]
        return number if self.load[number] < self.spec.slots else None

    def _new(self) -> int:
        self.born += 1
        self.load[self.born] = 0
        return self.born

    def drop(self, number: int) -> Any:
        self.load.pop(number, None)
        return self.workers.pop(number)


@dataclass(frozen=True)
class Node:
    """A stage of a run with its pending units. `derive` makes its units from the rows of the node named `after`."""

    name: str
    stage: Stage
    table: str
    fingerprint: bytes
    units: pa.Table
    pool: str = "cpu"
    after: str | None = None
    derive: Callable[[pa.Table], pa.Table] | None = None


@dataclass(frozen=True)
class Piece:
    """A written part of a node's rows, ready to be committed."""

    part: Any
    keys: pa.Array
    units_done: pa.Array
    status: Mapping[str, int]
    reasons: Mapping[str, int]
    seconds: float = 0.0


@dataclass
class NodeCounts:
    """Live figures of one node: units waiting or in flight, rows by status, failures by reason."""

    pending: int = 0
    rows: int = 0
    status: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def add(self, piece: Piece) -> None:
        self.pending -= len(piece.units_done)
        self.rows += sum(piece.status.values())
        self.seconds += piece.seconds
        for mine, theirs in ((self.status, piece.status), (self.reasons, piece.reasons)):
            for name, count in theirs.items():
                mine[name] = mine.get(name, 0) + count


class RunnerConfig(BaseModel):
    """How a run uses the machine or the cluster. `workers` sets a pool's size (`cpu`, `gpu`, `net`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_cpus: int | Literal["auto"] = "auto"
    num_gpus: int | Literal["auto"] = "auto"
    workers: dict[str, int] = Field(default_factory=dict)
    most_groups: int = Field(default=256, ge=1)
    net_slots: int = Field(default=4, ge=1)
    retry_wait_s: float = Field(default=1.0, gt=0)
    stall_timeout_s: float = Field(default=1800.0, gt=0)
    stop_grace_s: float = Field(default=30.0, ge=0)
    lease_ttl_s: float = Field(default=60.0, gt=0)
    worker_logs: bool = False

    def cpus(self) -> int:
        """CPU cores that the run may use."""
        if self.num_cpus == "auto":
            return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return self.num_cpus

    def pools(self, nodes: Sequence[Node], there: Capacity) -> list[PoolSpec]:
        """The pools that these nodes need, by default as large as the cluster allows.

        CPU stages share workers: a laptop pays for few process starts. Pools with GPUs share them evenly; CPU
        workers fill the cores that the others leave.
        """
        needs = {name: _need(node.stage for node in nodes if node.pool == name) for name in (n.pool for n in nodes)}
        on_gpu = [name for name, need in needs.items() if need.num_gpus]
        size = {name: int(there.gpus / len(on_gpu) / needs[name].num_gpus + 1e-6) for name in on_gpu}
        size = {name: max(1, self.workers.get(name, size.get(name, 1))) for name in needs}
        if "cpu" in needs and "cpu" not in self.workers:
            taken = sum(size[name] * needs[name].num_cpus for name in needs if name != "cpu")
            size["cpu"] = max(1, int(min(there.cores, there.cpus - taken) / needs["cpu"].num_cpus))
        # A stage that waits (for a network, for an engine of its own) is handed the next batch before the last is done.
        slots = dict.fromkeys(needs, 1)
        for node in nodes:
            if isinstance(node.stage, AsyncStage) and node.stage.waits:
                least = _PATIENT_SLOTS if node.stage.most_groups else 1
                slots[node.pool] = max(slots[node.pool], self.net_slots, least)
        return [
            PoolSpec(
                name=name,
                workers=size[name],
                slots=slots[name],
                num_cpus=need.num_cpus,
                num_gpus=need.num_gpus,
                memory_bytes=need.memory_bytes,
            )
            for name, need in needs.items()
        ]


def _need(stages: Iterable[Stage]) -> Resources:
    """What a worker must have that runs any of these stages, one at a time."""
    each = [stage.resources for stage in stages]
    return Resources(
        num_cpus=max(need.num_cpus for need in each),
        num_gpus=max(need.num_gpus for need in each),
        memory_bytes=max(need.memory_bytes for need in each),
    )


class Work:
    """The body of a worker: opens stages as their batches come and writes their rows as parts.

    It travels to each worker by value; stages are opened there, once each.
    """

    def __init__(self, nodes: Sequence[Node], write_part: PartWriter) -> None:
        self._stages = {node.name: node.stage for node in nodes}
        self._tables = {node.name: node.table for node in nodes}
        self._write_part = write_part
        self._opened: set[str] = set()
        self._lock: threading.Lock | None = None
        self._draining = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": set(), "_lock": None, "_draining": False}

    def pieces(self, node: str, units: pa.Table) -> Iterator[Piece]:
        """Runs one batch; yields a piece whenever enough rows or seconds have gathered.

        Raises `Unfinished` after its last piece where some units were not begun (the money did not last, the run is to
        end), `WorkerError` where the stage can process no unit any more.
        """
        if self._draining:
            raise Drained("this batch was not begun")
        stage = self._open(node)
        gathered: list[pa.Table] = []
        since = time.monotonic()
        left: Unfinished | None = None
        try:
            for rows in checked(stage, units):
                gathered.append(rows)
                waited = time.monotonic() - since
                if sum(len(table) for table in gathered) >= _FLUSH_ROWS or waited > _FLUSH_SECONDS:
                    yield self.write(node, units, pa.concat_tables(gathered), waited)
                    gathered, since = [], time.monotonic()
        except Unfinished as error:
            left = error
        except CannotGoOn as error:
            raise WorkerError(f"{node} cannot go on: {error}") from error
        if any(len(table) for table in gathered):
            yield self.write(node, units, pa.concat_tables(gathered), time.monotonic() - since)
        if left is not None:
            raise left

    def write(self, node: str, units: pa.Table, rows: pa.Table, seconds: float = 0.0) -> Piece:
        """Writes rows as a part; `units` are those of the batch (they may carry the number of earlier attempts)."""
        stage = self._stages[node]
        rows = _count_attempts(stage, units, rows)
        return Piece(
            part=self._write_part(self._tables[node], rows, stage.row.key_field),
            keys=commit_keys(stage, rows),
            units_done=_units_done(stage, rows),
            status=_tally(rows["status"]),
            reasons=_tally(rows["reason"]),
            seconds=seconds,
        )

    def drain(self) -> None:
        """The run is to end: batches finish what they have begun. Called beside `pieces`, from another thread."""
        self._draining = True
        for node in list(self._opened):
            self._stages[node].drain()

    def close(self) -> None:
        for node in self._opened:
            self._stages[node].close()
        self._opened.clear()

    def _open(self, node: str) -> Stage:
        if self._lock is None:
            self._lock = threading.Lock()
        with self._lock:
            if node not in self._opened:
                try:
                    self._stages[node].open()
                except (TransientError, UnitError, StageContractError):
                    raise
                except Exception as error:
                    raise WorkerError(f"{node} cannot start: {type(error).__name__}: {error}") from error
                self._opened.add(node)
                if self._draining:
                    self._stages[node].drain()
        return self._stages[node]


def commit_keys(stage: Stage, rows: pa.Table) -> pa.Array:
    """What a commit is named by: key, input and attempt of each row, so that a second attempt is a new commit."""
    names = (stage.row.key_field, "input_digest", "attempts")
    return digest_columns({name: rows[name] for name in names})


def _units_done(stage: Stage, rows: pa.Table) -> pa.Array:
    """Units that these rows complete; of several rows a unit, the last one completes it."""
    units = rows[stage.unit_field]
    if stage.count_field is not None and "segment" in rows.column_names:
        last = pc.equal(pc.add(rows["segment"], 1), rows[stage.count_field])
        units = units.filter(last)
    done = pc.unique(units)
    return done.combine_chunks() if isinstance(done, pa.ChunkedArray) else done


def _count_attempts(stage: Stage, units: pa.Table, rows: pa.Table) -> pa.Table:
    if "attempts" not in units.column_names:
        return rows
    before = dict(zip(units[stage.unit_field].to_pylist(), units["attempts"].to_pylist(), strict=True))
    attempts = [(before[unit] or 0) + 1 for unit in rows[stage.unit_field].to_pylist()]
    index = rows.schema.get_field_index("attempts")
    return rows.set_column(index, rows.schema.field(index), pa.array(attempts, pa.int64()))


def _tally(column: pa.ChunkedArray) -> dict[str, int]:
    counts = pc.value_counts(column)
    return {item["values"]: item["counts"] for item in counts.to_pylist() if item["values"] is not None}


def uncovered(units: pa.Table, pieces: Sequence[Piece], node: Node) -> pa.Table:
    """The units of a batch that its committed pieces do not complete."""
    done = pa.concat_arrays([piece.units_done for piece in pieces]) if pieces else pa.array([], pa.binary(16))
    column = units[node.stage.unit_field]
    return units.filter(pc.invert(pc.is_in(column, value_set=done.cast(column.type))))
