"""Takes a media down in copies of a run, killed at another failpoint in each. A script, not a test.

killed_forget.py RUN COPIES KEY   prints a failpoint with its number a line
"""

from __future__ import annotations

import shutil
import signal
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import pyarrow.dataset  # noqa: F401  (what a fork would import slowly each time)
from forks import forked

from pipeline.forget import finish_forgetting, forget
from pipeline.lease import LeaseHeld
from pipeline.tables import Run
from stages.failpoints import FAILPOINT_VARIABLE, LOG_VARIABLE

STEPS = ("forget.", "ledger.rewritten", "pack.placed", "checkpoint.", "delete.", "snapshot.")


def take_down(folder: Path, key: str, resumed: bool = False) -> None:
    """Forgets the media, or only ends what was begun, as a build does."""
    run = Run.open(str(folder))
    while True:
        try:
            if resumed:
                with run.writer("test", ttl_s=0.3) as writer:
                    finish_forgetting(writer)
            else:
                forget(run, [key], ttl_s=0.3)
            return
        except LeaseHeld:
            continue


def main(run: Path, copies: Path, key: str) -> None:
    copies.mkdir()
    log = copies.parent / "hits"
    shutil.copytree(run, copies / "undisturbed")
    forked(partial(take_down, copies / "undisturbed", key), **{LOG_VARIABLE: str(log)})
    # Of each kind of step the first and the last; the writes below them are killed in tests of their own.
    hits = Counter(name for name in log.read_text().split() if name.startswith(STEPS))
    points = sorted({f"{name}:{hit}" for name, last in hits.items() for hit in (1, last)})
    for number, point in enumerate(points):
        folder = copies / f"{number:03d}"
        shutil.copytree(run, folder)
        if forked(partial(take_down, folder, key), **{FAILPOINT_VARIABLE: point}) != signal.SIGKILL:
            raise SystemExit(f"nobody was killed at {point}")
        recorded = bool(list(folder.glob("forgotten/*.json")))
        forked(partial(take_down, folder, key, resumed=recorded and number % 2 == 1))
        print(point, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
