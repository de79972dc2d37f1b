"""Packs a saved corpus into a run again and again, killed at another failpoint each time. A script, not a test.

    killed.py FRAMES RUNS LAYOUT KILLS   prints a line a kill: the failpoint and its number

Each attempt is a fork of this process, so that twenty of them cost seconds; nothing here starts threads before.
"""

from __future__ import annotations

import signal
import sys
from functools import partial
from pathlib import Path

import av  # noqa: F401  (what each fork would import anew)
import polars as pl
import pyarrow.dataset  # noqa: F401
from forks import forked

from pipeline.lease import LeaseHeld
from pipeline.tables import Run
from schemas.arrow import arrow_schema
from stages.base import checked, fingerprint
from stages.failpoints import FAILPOINT_VARIABLE, LOG_VARIABLE
from stages.pack import PackConfig, Packed, PackFrames, build_pack, finish_pack, plan_pack


def pack_once(frames_folder: Path, run_folder: Path, layout: str) -> None:
    """Plans, writes what is pending, commits it shard by shard, finishes: what the driver and its workers do."""
    frames = PackFrames(**{path.stem: pl.read_parquet(path) for path in frames_folder.glob("*.parquet")})
    config = PackConfig(layout=layout, max_shard_bytes="16kB", validation_fraction=0.3)
    run, stage = Run.open(str(run_folder)), build_pack(config, str(run_folder))
    while True:
        try:
            with run.writer("test", ttl_s=0.3) as writer:
                print_ = fingerprint(stage)
                rows = run.view().rows("packed", print_, schema=arrow_schema(Packed)).collect()
                plan = plan_pack(frames, config, rows)
                for batch in plan.pending(rows).iter_slices(1):
                    for table in checked(stage, plan.fill(batch)):
                        writer.commit_table("packed", print_, table, "shard_key")
                rows = run.view().rows("packed", print_, schema=arrow_schema(Packed)).collect()
                finish_pack(str(run_folder), plan, rows)
            return
        except LeaseHeld:
            continue


def main(frames: Path, runs: Path, layout: str, kills: int) -> None:
    log = runs / "hits"
    forked(partial(pack_once, frames, runs / "undisturbed", layout), **{LOG_VARIABLE: str(log)})
    hits = [
        name for name in log.read_text().splitlines() if name.startswith("pack.") or "commit" in name or "part" in name
    ]
    numbered: list[tuple[str, int]] = []
    for name in hits:
        numbered.append((name, 1 + sum(other == name for other, _ in numbered)))
    for number in range(kills):
        point = numbered[number * len(numbered) // kills]
        work = partial(pack_once, frames, runs / f"killed-{number:02d}", layout)
        if forked(work, **{FAILPOINT_VARIABLE: f"{point[0]}:{point[1]}"}) != signal.SIGKILL:
            raise SystemExit(f"nobody was killed at {point}")
        forked(work)
        print(point[0], point[1], flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
