"""Units of a stage through the runner with Ray, timed from the moment all workers are ready to the last commit."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.flow import pool_of
from pipeline.runner import Cluster, Runner
from pipeline.session import PartSink
from pipeline.tables import Run
from pipeline.work import Node, Piece, RunnerConfig, Work
from stages.base import Stage, fingerprint


def commit_all(make: Callable[[Path], Stage], units: pa.Table, folder: Path, workers: int) -> float:
    """Rows a second. `make` is given an empty folder in which each worker is to leave a `ready-*` file when warm."""
    place = folder / "through_runner"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    stage = make(place)
    pool = pool_of(stage, stage.name)
    config = RunnerConfig(workers={pool: workers})
    node = Node(stage.name, stage, stage.table, fingerprint(stage), units, pool)
    run = Run.open(str(place / "run"))
    committed = 0
    with run.writer("benchmark") as writer:
        sink = PartSink(writer.store, writer.epoch)
        ended = 0.0

        def commit(node: Node, piece: Piece) -> None:
            nonlocal committed, ended
            writer.commit(node.table, node.fingerprint, piece.keys, piece.part)
            committed, ended = committed + sum(piece.status.values()), time.time()

        def read(piece: Piece) -> pa.Table:
            return pq.read_table(place / "run" / piece.part.path)

        cluster = Cluster(config)
        try:
            Runner(Work([node], sink), [node], commit, cluster, config, read).run()
        finally:
            cluster.close()
    assert committed == len(units), f"{committed} rows of {len(units)} units"
    began = max(path.stat().st_mtime for path in place.glob("ready-*"))
    return committed / (ended - began)
