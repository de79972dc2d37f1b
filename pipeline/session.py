"""A build in progress: the configuration, the lease, what has been done; and the one way in which stages are run."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.config import EngineConfig
from pipeline.engine import Corpus, Counts, Stages, Step, build_stages, fingerprints_of
from pipeline.forgotten import taken_down
from pipeline.schedule import cut
from pipeline.settings import ConfigError
from pipeline.spending import spent
from pipeline.tables import PartInfo, Store, Writer, write_part
from pipeline.work import Node, NodeCounts, Piece, Work
from stages.base import Stage

log = logging.getLogger("perceive.build")


class Progress(Protocol):
    """Is told what goes on: a phase begins, counts move."""

    def phase(self, name: str) -> None: ...

    def tick(self, counts: Mapping[str, NodeCounts]) -> None: ...


class Silent:
    """Progress for machines: the log alone."""

    def phase(self, name: str) -> None:
        log.info("phase %s", name)

    def tick(self, counts: Mapping[str, NodeCounts]) -> None:
        return None


@dataclass
class BuildResult:
    """What a build did: rows made by step, their reasons, seconds by phase, the pack, the run's accounts at its end."""

    done: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, dict[str, int]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    pack_id: str | None = None
    pack: dict[str, Any] | None = None
    started_ray: bool = False
    stages: dict[str, Counts] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Rows made by this build, of all stages."""
        return sum(self.done.values())


@dataclass(frozen=True)
class PartSink:
    """Writes parts of one epoch; travels to the workers."""

    store: Store
    epoch: int

    def __call__(self, table_name: str, rows: pa.Table, key_field: str) -> PartInfo:
        return write_part(self.store, table_name, self.epoch, rows, key_field)


@dataclass
class Session:
    """One build under the lease.

    `free` asks no teacher, not even to score; `budget_usd` is the most that the replies in the run's ledger may have
    cost at its end, those of earlier builds included.
    """

    config: EngineConfig
    writer: Writer
    progress: Progress = field(default_factory=Silent)
    limit: int | None = None
    where: Mapping[str, str] = field(default_factory=dict)
    retry: bool = False
    free: bool = False
    budget_usd: float | None = None
    result: BuildResult = field(default_factory=BuildResult)

    def __post_init__(self) -> None:
        self.stages: Stages = build_stages(
            self.config, time.time() if self.retry else 0.0, taken_down(self.writer.store)
        )
        self._cluster: Any = None

    def corpus(self) -> Corpus:
        """The current rows, of all that is committed up to now."""
        return Corpus(self.config, self.stages, self.writer.view(), self.where)

    def snapshot(
        self,
        sources: Mapping[str, str] | None = None,
        tombstones: pl.DataFrame | None = None,
        fingerprints: Mapping[str, str] | None = None,
        pointers: Mapping[str, str] | None = None,
    ) -> None:
        """Makes this configuration's fingerprints current; what is not given stays as the last snapshot has it."""
        before = self.writer.current()
        kept = dict(before.fingerprints) if before else {}
        whole = ("select", "decide", "pack", "score/corpus", "scored", "verdicts")
        steady: dict[str, str] = {name: print_ for name, print_ in kept.items() if name in whole}
        self.writer.snapshot(
            {**steady, **fingerprints_of(self.config, self.stages), **(fingerprints or {})},
            sources if sources is not None else (before.sources if before else {}),
            tombstones if tombstones is not None else self.writer.view().tombstones(),
            {**(before.pointers if before else {}), **(pointers or {})},
        )

    def limited(self, units: pa.Table, stage: Stage) -> pa.Table:
        """The first `limit` units, to whole groups; all of them without a limit."""
        if self.limit is None or len(units) <= self.limit:
            return units
        taken: list[pa.Table] = []
        for group in cut(units, stage.group_by, 1):
            if sum(map(len, taken)) >= self.limit:
                break
            taken.append(group)
        return pa.concat_tables(taken)

    def run_nodes(self, nodes: Sequence[Node]) -> None:
        """Runs nodes on Ray; starts none where nothing is pending."""
        if not any(len(node.units) for node in nodes):
            return
        from pipeline.runner import (  # Ray takes seconds to import: only a build with work pays for it
            BudgetReached,
            Cluster,
            Runner,
        )

        if self._cluster is None:
            self._cluster = Cluster(self.config.runner)
        self.result.started_ray = True
        self._fund(nodes)
        work = Work(nodes, PartSink(self.writer.store, self.writer.epoch))
        runner = Runner(work, nodes, self._commit, self._cluster, self.config.runner, self._read, self.progress.tick)
        try:
            runner.run()
        except BudgetReached as error:
            bought = spent(self.config).cost_usd or 0.0
            raise BudgetReached(
                f"{error}, ${bought:.4f} of ${self.budget_usd or 0:.4f} spent; "
                "the same command with a higher --budget goes on"
            ) from error
        finally:
            for name, counts in runner.counts.items():
                self.tally(name, counts.rows, counts.reasons)

    def _fund(self, nodes: Sequence[Node]) -> None:
        if self.budget_usd is None:
            return
        bought = spent(self.config).cost_usd or 0.0
        funds = self._cluster.funds(self.budget_usd - bought)
        for node in nodes:
            try:
                node.stage.fund(funds)
            except ValueError as error:
                raise ConfigError(f"--budget: {error}") from error

    def close(self) -> None:
        """Lets go of Ray, where it was started."""
        if self._cluster is not None:
            self._cluster.close()

    def tally(self, name: str, rows: int, reasons: Mapping[str, int] | None = None) -> None:
        """Counts rows made by a step."""
        if rows:
            self.result.done[name] = self.result.done.get(name, 0) + rows
        mine = self.result.reasons.setdefault(name, {})
        for reason, count in (reasons or {}).items():
            mine[reason] = mine.get(reason, 0) + count

    def tally_rows(self, name: str, rows: pa.Table) -> None:
        """Counts the rows of a table that the driver has made."""
        pairs = pc.value_counts(rows["reason"]).to_pylist()
        self.tally(name, len(rows), {pair["values"]: pair["counts"] for pair in pairs if pair["values"] is not None})

    def commit_attempts(self, name: str, step: Step, rows: pa.Table) -> None:
        """Commits further attempts at rows of a step, made here and not by its stage, and counts them under `name`."""
        if len(rows):
            self.writer.commit_table(step.stage.table, step.fingerprint, rows, step.stage.row.key_field)
            self.tally_rows(name, rows)

    def _commit(self, node: Node, piece: Piece) -> None:
        self.writer.commit(node.table, node.fingerprint, piece.keys, piece.part)

    def _read(self, piece: Piece) -> pa.Table:
        with self.writer.store.open(piece.part.path) as stream:
            return pq.read_table(stream)
