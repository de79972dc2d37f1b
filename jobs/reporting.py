"""Writes the report of a run."""

from __future__ import annotations

import itertools
import time
from datetime import datetime
from pathlib import Path

from pipeline.build import accounts, balance
from pipeline.config import EngineConfig
from pipeline.looking import open_corpus, pack_manifest, tables_of
from pipeline.report import report_data, write_report
from pipeline.report.data import RatePoint
from pipeline.spending import cost_rows
from pipeline.tables import View

_PACED = {"refine": "masks", "chunk": "events", "distill": "captions"}
_MOST_POINTS = 200


def pace(view: View) -> list[RatePoint]:
    """Rows committed over time by the stages that take longest, seconds since the first commit of each."""
    points = []
    for stage, table in _PACED.items():
        commits = sorted(view.commits(table), key=lambda commit: commit.created)
        times = [datetime.fromisoformat(commit.created) for commit in commits]
        totals = list(itertools.accumulate(commit.part.rows for commit in commits))
        curve = [
            RatePoint(stage=stage, seconds=(time - times[0]).total_seconds(), rows=rows)
            for time, rows in zip(times, totals, strict=True)
        ]
        step = max(1, len(curve) // _MOST_POINTS)
        points += [*curve[:-1:step], *curve[-1:]]
    return points


def write_run_report(config: EngineConfig, to: Path | None = None, samples: int = 200) -> str:
    """Writes `<run>/report/index.html` (or `to`) and returns its path or URL."""
    now = open_corpus(config)
    funnel = {name: count.as_dict() for name, count in balance(accounts(now)).items()}
    data = report_data(
        tables_of(now),
        title=f"perceive-engine: {Path(config.run.rstrip('/')).name}",
        run=config.run,
        made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        funnel=funnel,
        policy=now.policy,
        costs=cost_rows(config),
        rates=pace(now.view),
        pack=pack_manifest(now.view),
        max_regions=samples,
        storage_options=now.config.storage_options,
    )
    target = str(to) if to else f"{config.run.rstrip('/')}/report/index.html"
    return write_report(data, target, now.config.storage_options)
