"""How fast pending units are found: `pipeline.tables.pending` against a Python set difference, in the same run.

    python benchmarks/pending.py [--units 2100000] [--done 0.95]

Keys are written as parts of a real run on disk, read back through a view and subtracted; the baseline subtracts the
same keys, held in memory already, as Python sets. Each side runs in a process of its own, whose peak memory is printed.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from pipeline.tables import Run, pending
from schemas.keys import KEY_TYPE, digest_value

ON = ["caption_key", "input_digest"]
FINGERPRINT = digest_value("benchmark")


def keys(count: int, seed: int) -> pa.Array:
    data = np.random.default_rng(seed).bytes(16 * count)
    return pa.FixedSizeBinaryArray.from_buffers(KEY_TYPE, count, [None, pa.py_buffer(data)])


def make(folder: Path, count: int, done: float) -> None:
    """Units as one parquet, and a share of them as the committed rows of a run, 20,000 a part."""
    units = pa.table({"caption_key": keys(count, 0), "input_digest": keys(count, 1)})
    pl.DataFrame(pl.from_arrow(units)).write_parquet(folder / "units.parquet")
    rows = units.take(pa.array(np.random.default_rng(2).permutation(count)[: int(count * done)]))
    rows = rows.append_column("status", pa.array(["ok"] * len(rows)))
    with Run.open(str(folder / "run")).writer("benchmark") as writer:
        for start in range(0, len(rows), 20_000):
            writer.commit_table("captions", FINGERPRINT, rows.slice(start, 20_000), "caption_key")


def engine(folder: Path) -> tuple[int, float, float]:
    start, cpu = time.perf_counter(), time.process_time()
    view = Run.open(str(folder / "run")).view()
    done = view.rows("captions", FINGERPRINT, ON)
    left = pending(pl.scan_parquet(folder / "units.parquet"), done, ON)
    return len(left), time.perf_counter() - start, time.process_time() - cpu


def baseline(folder: Path) -> tuple[int, float, float]:
    view = Run.open(str(folder / "run")).view()
    units = pl.read_parquet(folder / "units.parquet").rows()
    done = view.rows("captions", FINGERPRINT, ON).collect().rows()
    start, cpu = time.perf_counter(), time.process_time()
    left = set(units) - set(done)
    return len(left), time.perf_counter() - start, time.process_time() - cpu


def measure(side: str, folder: Path) -> tuple[int, float, float, float]:
    """Units left, seconds, CPU seconds of all threads, and the peak memory of its process in GB."""
    out = subprocess.run(
        [sys.executable, __file__, "--side", side, "--folder", folder], capture_output=True, check=True
    )
    left, seconds, cpu, peak = out.stdout.split()
    return int(left), float(seconds), float(cpu), float(peak)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--units", type=int, default=2_100_000)
    parser.add_argument("--done", type=float, default=0.95)
    parser.add_argument("--side", choices=["engine", "baseline"])
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    if args.side:
        left, seconds, cpu = {"engine": engine, "baseline": baseline}[args.side](args.folder)
        print(left, seconds, cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)
        return
    with tempfile.TemporaryDirectory() as name:
        make(Path(name), args.units, args.done)
        ours, theirs = measure("engine", Path(name)), measure("baseline", Path(name))
    if ours[0] != theirs[0]:
        sys.exit(f"the two sides disagree: {ours[0]} and {theirs[0]} units left")
    print(f"units {args.units:,}, done {args.done:.0%}, pending {ours[0]:,}")
    print(f"pending, parts on disk to units left : {ours[1]:6.2f} s   CPU {ours[2]:5.2f} s   peak {ours[3]:.2f} GB")
    print(
        f"Python sets, keys in memory already  : {theirs[1]:6.2f} s   CPU {theirs[2]:5.2f} s   peak {theirs[3]:.2f} GB"
    )
    print(f"ratio {theirs[1] / ours[1]:.1f} x in time, {theirs[3] / ours[3]:.1f} x in memory")


if __name__ == "__main__":
    main()
