"""A policy over stored scores: 2.1 million captions decided, against a plain Python loop over the same checks.

python -m benchmarks.filter [--rows 2100000] [--policy configs/policy/default.yaml] [--whole]

`--whole` also times the command `perceive filter --policy lenient` from its start to its end, commit included, in a
process of its own: over a run that holds the gathered scores and a set of decisions by the policy, and nothing else.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import polars as pl
import pyarrow as pa

from pipeline.config import load_config
from pipeline.engine import Corpus, build_stages
from pipeline.scored import TABLE, gathered, scored_print
from pipeline.tables import Run
from stages.decide import evaluate
from stages.policy import Policy, load_policy
from stages.score.groups import ALWAYS, all_columns
from stages.yields import kept_shares, yield_table

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = 50_000


def keys(rows: int, seed: int) -> pl.Series:
    data = np.random.default_rng(seed).bytes(16 * rows)
    return pl.Series(pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), rows, [None, pa.py_buffer(data)]))


def scored(rows: int, policy: Policy) -> pl.DataFrame:
    """Captions with the scores of the rules that always run; of each about one in a hundred is bad, a tenth null."""
    rng = np.random.default_rng(0)
    frame = pl.DataFrame(
        {
            "caption_key": keys(rows, 1),
            "region_key": keys(rows, 2),
            "digest": keys(rows, 3),
            "status": pl.repeat("ok", rows, eager=True),
            "reason": pl.repeat(None, rows, dtype=pl.String, eager=True),
            "task": pl.Series(rng.choice(["label", "explain", "brief", "detailed", "stream"], rows)),
            "language": pl.Series(rng.choice(["en", "zh"], rows)),
            "source": pl.Series(rng.choice(["coco", "lvis", "sav", "paco"], rows)),
            "source_label": pl.Series(rng.integers(0, 1200, rows)).cast(pl.String),
            "event_index": pl.Series(rng.integers(0, 3, rows)),
        }
    )
    known = all_columns()
    place = frame.select(pl.struct("task", "language").rank("dense").cast(pl.Int64) - 1).to_series().to_numpy()
    scopes = frame.select("task", "language").unique().sort("task", "language").rows()
    for column in dict.fromkeys(check.column for check in policy.checks if known[check.column].group in ALWAYS):
        good, bad = np.array([good_and_bad(policy, column, *scope) for scope in scopes]).T
        values = np.where(rng.random(rows) < 0.01, bad[place], good[place])
        frame = frame.with_columns(pl.Series(column, values, dtype=pl.Float64))
        frame = frame.with_columns(pl.when(pl.Series(rng.random(rows) > 0.1)).then(column).alias(column))
    return frame


def good_and_bad(policy: Policy, column: str, task: str, language: str) -> tuple[float, float]:
    """A score that no check speaks against for captions of a task and language, and one that some check does."""
    given = [check.bounds(None, task, language) or {} for check in policy.checks if check.column == column]
    least = [bound for each in given for bound in (each.get("min"), each.get("above")) if bound is not None]
    most = [bound for each in given for bound in (each.get("max"), each.get("below")) if bound is not None]
    low, high = max(least, default=0), min(most, default=None)
    return (2 * low + 1, -1.0) if high is None else ((low + high) / 2, 10 * high + 10)


def plain(rows: list[dict[str, Any]], policy: Policy) -> int:
    """The same checks as a person writes them first: a loop over rows. Returns how many are kept."""
    kept = 0
    for row in rows:
        reasons = []
        for check in policy.checks:
            bounds = check.bounds(row["source"], row["task"], row["language"])
            value = row.get(check.column)
            if bounds is None or value is None or check.rank_by:
                continue
            if (
                value < bounds.get("min", value)
                or value > bounds.get("max", value)
                or value <= bounds.get("above", -np.inf)
                or value >= bounds.get("below", np.inf)
            ):
                reasons.append(check.reason)
        kept += not reasons
    return kept


def write_run(folder: Path, frame: pl.DataFrame, policy: Path) -> Path:
    """A run whose gathered scores are this frame; returns its configuration."""
    path = folder / "config.yaml"
    path.write_text(f"run: run\nsources: []\npolicy: {policy.resolve()}\n")
    config = load_config(path).runtime()
    with Run.open(config.run).writer("benchmark") as writer:
        now = Corpus(config, build_stages(config), writer.view())
        table = gathered(frame.with_columns(input_digest="digest", attempts=pl.lit(1, pl.Int64)), bytes(16))
        writer.commit_table(TABLE, scored_print(now), table, "caption_key")
        writer.snapshot({TABLE: scored_print(now).hex()})
    return path


def whole(frame: pl.DataFrame, policy: Path) -> None:
    """Times the command itself: the policy for the first time, and another against it."""
    with tempfile.TemporaryDirectory() as folder:
        config = write_run(Path(folder), frame, policy)
        # As where a program was installed: its modules are compiled once, not at each start.
        compiled = {"PYTHONPYCACHEPREFIX": f"{folder}/compiled", "PYTHONDONTWRITEBYTECODE": ""}
        for name in (policy.stem, "lenient"):
            start, busy = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
            done = subprocess.run(
                [sys.executable, "-m", "jobs", "filter", str(config), "--policy", f"policy/{name}.yaml", "--json"],
                cwd=ROOT, check=True, capture_output=True, text=True, env={**os.environ, **compiled},
            )  # fmt: skip
            said = orjson.loads(done.stdout)
            wall, used = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = used.ru_utime + used.ru_stime - busy.ru_utime - busy.ru_stime
            print(f"perceive filter --policy {name}: {wall:.1f} s ({cpu:.1f} s of processor time), commit included; "
                  f"{said['kept']:,} of {said['captions']:,} kept, compared with {said['before']}")  # fmt: skip
        children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        print(f"peak memory of the command {children / 1e6:.2f} GB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2_100_000)
    parser.add_argument("--policy", type=Path, default=ROOT / "configs/policy/default.yaml")
    parser.add_argument("--whole", action="store_true", help="time the command as well")
    arguments = parser.parse_args()
    policy = load_policy(arguments.policy)
    frame = scored(arguments.rows, policy)
    print(f"{arguments.rows:,} captions, {len(policy.checks)} checks of policy {policy.name}")
    times, spent = [], []
    for _ in range(5):
        start, busy = time.perf_counter(), time.process_time()
        evaluation = evaluate(frame, policy)
        times.append(time.perf_counter() - start)
        spent.append(time.process_time() - busy)
    warm = min(times)
    print(f"evaluated in {times[0]:.2f} s cold, {warm:.2f} s warm ({warm / arguments.rows * 1e6:.2f} us a row), "
          f"{min(spent):.2f} s of processor time over two threads")  # fmt: skip
    start = time.perf_counter()
    table, shares = yield_table(evaluation), kept_shares(evaluation)
    print(f"yield tables in {time.perf_counter() - start:.2f} s")
    sample = frame.head(SAMPLE).to_dicts()
    start = time.perf_counter()
    plain(sample, policy)
    loop = (time.perf_counter() - start) / len(sample)
    print(f"plain Python loop: {loop * 1e6:.1f} us a row, {loop * arguments.rows:.0f} s for all of them")
    print(f"ratio: {loop * arguments.rows / min(times):.0f} times faster")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")
    print(shares.head(5), table.head(5), sep="\n")
    if arguments.whole:
        whole(frame, arguments.policy)


if __name__ == "__main__":
    main()
