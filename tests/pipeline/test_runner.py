"""The runner under real Ray: every unit ends once, neighbours of a poison unit do not pay, work feeds the next node."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from ray import cloudpickle

from pipeline.runner import BudgetReached, Cluster, DoesNotFit, Runner, RunStalled, RunStopped
from pipeline.work import Node, Piece, RunnerConfig, Work, WorkerError
from schemas.base import Key, Record, Row
from schemas.keys import digest_value
from stages.base import AsyncStage, BudgetSpent, CannotGoOn, Outage, Stage, TransientError, WorkerLost, fingerprint

pytestmark = pytest.mark.slow


OUTAGES = 7
"""More than the tries after which a batch is split for any other fault."""


class Unit(Record):
    key: Key
    input_digest: Key
    group: str
    number: int


class Doubled(Row):
    key_field: ClassVar[str] = "key"
    content: ClassVar[tuple[str, ...]] = ("number",)

    key: Key
    group: str
    number: int
    message: str | None = None


class Double(Stage):
    """Doubles numbers; some of its numbers raise, die or fail once, as its settings say."""

    name = "double"
    version = 1
    table = "doubled"
    unit = Unit
    row = Doubled
    unit_field = "key"
    group_by = ("group",)
    batch_groups = 4

    def __init__(
        self,
        poison: int = -1,
        deadly: int = -1,
        flaky: Path | None = None,
        broken: bool = False,
        engine: Path | None = None,
        price: int | None = None,
        outages: Path | None = None,
        full: bool = False,
        patience_s: float = 0.0,
        asks: bool = False,
    ) -> None:
        self.full, self.patience, self.asks = full, patience_s, asks
        self.told: str | None = None
        self.poison, self.deadly, self.flaky, self.broken = poison, deadly, flaky, broken
        self.engine, self.price, self.outages = engine, price, outages

    def settings(self) -> dict[str, Any]:
        return {"poison": self.poison, "deadly": self.deadly}

    def share(self, workers: int) -> None:
        self.told = f"{workers} workers ask"

    def patience_s(self, units: pa.Table) -> float:
        return self.patience

    def open(self) -> None:
        if self.broken:
            raise FileNotFoundError("no checkpoint at weights.pt; pass refine.checkpoint=nano")

    def process(self, units: pa.Table) -> Iterator[pa.Table]:
        rows = units.to_pylist()
        numbers = [row["number"] for row in rows]
        if self.poison in numbers:
            raise ValueError(f"cannot double {self.poison}")
        if self.full:
            raise CannotGoOn("the disk is full")
        if self.deadly in numbers:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.flaky is not None and not self.flaky.exists():
            self.flaky.touch()
            raise TransientError("the disk was full for a moment")
        if self.outages is not None and (told := self.outages.stat().st_size) < OUTAGES:
            self.outages.write_bytes(bytes(told + 1))
            raise Outage("the server is away")
        if self.engine is not None and self._engine_is_dead(self.engine):
            raise WorkerLost("the engine died")
        paid = [row for row in rows if self.price is None or row["number"] < self.price]
        for row in paid:
            row["number"] *= 2
        told = pa.array([self.told] * len(paid), pa.string())
        yield pa.Table.from_pylist(paid, units.schema).append_column("message", told)
        if len(paid) < len(rows):
            raise BudgetSpent("no more money")

    def _engine_is_dead(self, first: Path) -> bool:
        """The engine of the process that asks first is dead for good."""
        if not first.exists():
            first.write_text(str(os.getpid()))
        return first.read_text() == str(os.getpid())


class Waiting(AsyncStage):
    """Waits a moment for each group, two at a time, and leaves a mark for each that it has begun."""

    name = "waiting"
    version = 1
    table = "doubled"
    unit = Unit
    row = Doubled
    unit_field = "key"
    group_by = ("group",)
    batch_groups = 10
    in_flight = 2

    def __init__(self, marks: Path) -> None:
        self.marks = marks

    def settings(self) -> dict[str, Any]:
        return {}

    async def process_group(self, units: pa.Table) -> pa.Table:
        (self.marks / units["key"][0].as_py().hex()).touch()
        await asyncio.sleep(0.2)
        return units


def units(count: int, per_group: int = 3) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {"key": digest_value(i), "input_digest": digest_value({"n": i}), "group": f"g{i // per_group}", "number": i}
            for i in range(count)
        ],
        pa.schema(
            [("key", pa.binary(16)), ("input_digest", pa.binary(16)), ("group", pa.string()), ("number", pa.int64())]
        ),
    )


class Parts:
    """Writes parts as plain files and remembers what was committed."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __call__(self, table_name: str, rows: pa.Table, key_field: str) -> str:
        path = f"{self.folder}/{table_name}-{os.getpid()}-{os.urandom(4).hex()}.parquet"
        pq.write_table(rows, path)
        return path


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    """A Ray of this module's own, or the one that other tests of the session have started."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    mine = not ray.is_initialized()
    if mine:
        ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    if mine:
        ray.shutdown()


def run(tmp_path: Path, nodes: list[Node], **settings: float) -> tuple[Runner, dict[str, list[dict[str, Any]]]]:
    committed: dict[str, list[dict[str, Any]]] = {node.name: [] for node in nodes}

    def commit(node: Node, piece: Piece) -> None:
        committed[node.name] += pq.read_table(piece.part).to_pylist()

    config = RunnerConfig(**{"workers": {"cpu": 2}, "retry_wait_s": 0.1, **settings})
    read = pq.read_table
    cluster = Cluster(config)
    runner = Runner(Work(nodes, Parts(tmp_path)), nodes, commit, cluster, config, lambda piece: read(piece.part))
    try:
        runner.run()
    finally:
        cluster.close()
    return runner, committed


def node(stage: Stage, table: pa.Table, name: str = "double", **more: Any) -> Node:
    return Node(name=name, stage=stage, table=name, fingerprint=fingerprint(stage), units=table, **more)


def test_every_unit_ends_once_and_feeds_the_next_node(tmp_path: Path) -> None:
    def again(rows: pa.Table) -> pa.Table:
        return rows.select(["key", "group", "number"]).append_column("input_digest", rows["digest"])

    first = node(Double(), units(50))
    second = node(Double(), units(0), "again", after="double", derive=again)
    runner, committed = run(tmp_path, [first, second])
    assert sorted(row["number"] for row in committed["double"]) == [2 * i for i in range(50)]
    assert sorted(row["number"] for row in committed["again"]) == [4 * i for i in range(50)]
    assert runner.counts["again"].status == {"ok": 50}
    assert runner.counts["double"].pending == 0


def test_poison_group_fails_alone(tmp_path: Path) -> None:
    runner, committed = run(tmp_path, [node(Double(poison=7), units(60))])
    failed = [row for row in committed["double"] if row["status"] == "failed"]
    assert sorted(row["number"] for row in failed) == [6, 7, 8]
    assert all("cannot double 7" in row["message"] for row in failed)
    assert runner.counts["double"].status == {"ok": 57, "failed": 3}


def test_unit_that_kills_its_worker_fails_alone(tmp_path: Path) -> None:
    _, committed = run(tmp_path, [node(Double(deadly=7), units(24))])
    keys = Counter(row["key"] for row in committed["double"])
    assert set(keys.values()) == {1}
    assert len(keys) == 24
    assert [row["reason"] for row in committed["double"] if row["number"] == 7] == ["worker_died"]
    assert sum(row["status"] == "ok" for row in committed["double"]) == 21


def test_transient_fault_is_waited_out(tmp_path: Path) -> None:
    runner, _ = run(tmp_path, [node(Double(flaky=tmp_path / "once"), units(9))])
    assert runner.counts["double"].status == {"ok": 9}


def test_an_outage_is_waited_out_for_as_long_as_it_lasts_and_no_row_fails(tmp_path: Path) -> None:
    (tmp_path / "outages").touch()
    runner, _ = run(tmp_path, [node(Double(outages=tmp_path / "outages"), units(3))], retry_wait_s=0.01)
    assert runner.counts["double"].status == {"ok": 3}
    assert (tmp_path / "outages").stat().st_size == OUTAGES


def test_what_no_unit_can_go_on_from_ends_the_run_at_once(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="cannot go on: the disk is full"):
        run(tmp_path, [node(Double(full=True), units(30))])


@pytest.mark.parametrize("patience_s", [0.0, 3600.0])
def test_a_stage_that_takes_long_by_its_nature_is_waited_for(tmp_path: Path, patience_s: float) -> None:
    """The clock of the first has run out before its worker has even started."""
    stage = Double(patience_s=patience_s)
    if patience_s:
        runner, _ = run(tmp_path, [node(stage, units(3))], stall_timeout_s=0.01)
        assert runner.counts["double"].status == {"ok": 3}
    else:
        with pytest.raises(RunStalled, match="double"):
            run(tmp_path, [node(stage, units(3))], stall_timeout_s=0.01)


def test_workers_that_ask_a_teacher_know_how_many_they_are(tmp_path: Path) -> None:
    nodes = [node(Double(asks=True), units(6)), node(Double(), units(6), "plain")]
    _, committed = run(tmp_path, nodes)
    assert {row["message"] for row in committed["double"]} == {"2 workers ask"}
    assert {row["message"] for row in committed["plain"]} == {None}


def test_a_run_that_is_stopped_finishes_what_it_has_begun_and_begins_no_more(tmp_path: Path) -> None:
    marks, committed = tmp_path / "marks", 0
    marks.mkdir()
    nodes = [node(Waiting(marks), units(80, per_group=1), pool="net")]
    config = RunnerConfig()
    cluster = Cluster(config)

    def commit(_node: Node, piece: Piece) -> None:
        nonlocal committed
        committed += len(piece.units_done)

    def tick(_counts: Any) -> None:
        if any(marks.iterdir()) and signal.getsignal(signal.SIGTERM) is not before:
            signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    runner = Runner(Work(nodes, Parts(tmp_path)), nodes, commit, cluster, config, lambda _p: pa.table({}), tick)
    try:
        with pytest.raises(RunStopped):
            runner.run()
    finally:
        cluster.close()
    assert 0 < committed == len(list(marks.iterdir())) < 80
    assert runner.counts["double"].pending == 80 - committed


def test_worker_whose_engine_died_is_replaced_and_no_row_fails(tmp_path: Path) -> None:
    runner, committed = run(tmp_path, [node(Double(engine=tmp_path / "pid"), units(24))])
    assert runner.counts["double"].status == {"ok": 24}
    assert {row["status"] for row in committed["double"]} == {"ok"}
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_what_the_money_does_not_pay_for_stays_pending_and_the_rest_is_done(tmp_path: Path) -> None:
    committed: list[Any] = []
    nodes = [node(Double(price=31), units(60)), node(Double(), units(30), "free")]
    config = RunnerConfig(workers={"cpu": 2})
    cluster = Cluster(config)
    work = Work(nodes, Parts(tmp_path))

    def commit(n: Node, piece: Piece) -> None:
        committed.append((n.name, piece))

    runner = Runner(work, nodes, commit, cluster, config, lambda _p: pa.table({}))
    try:
        with pytest.raises(BudgetReached, match="budget"):
            runner.run()
    finally:
        cluster.close()
    rows = {name: [row for n, piece in committed if n == name for row in pq.read_table(piece.part).to_pylist()]
            for name in ("double", "free")}  # fmt: skip
    assert len(rows["free"]) == 30
    assert {row["status"] for row in rows["double"]} == {"ok"}
    assert 0 < len(rows["double"]) <= 31
    assert runner.counts["double"].pending == 60 - len(rows["double"])


def test_stage_that_cannot_open_ends_the_run_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match=r"no checkpoint at weights\.pt"):
        run(tmp_path, [node(Double(broken=True), units(9))])


def test_workers_that_do_not_fit_are_refused_with_numbers(tmp_path: Path) -> None:
    nodes = [node(Double(), units(9))]
    config = RunnerConfig(workers={"cpu": 400})
    runner = Runner(
        Work(nodes, Parts(tmp_path)), nodes, lambda _n, _p: None, Cluster(config), config, lambda _p: pa.table({})
    )
    with pytest.raises(DoesNotFit, match=r"400 CPU wanted, \d there"):
        runner.run()
