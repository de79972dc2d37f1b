"""Writes the report of a run."""

from __future__ import annotations

import time
from pathlib import Path

from pipeline.build import accounts, balance
from pipeline.config import EngineConfig
from pipeline.looking import open_corpus, tables_of
from pipeline.report import report_data, write_report
from pipeline.spending import cost_rows


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
        costs=cost_rows(config),
        max_regions=samples,
        storage_options=now.config.storage_options,
    )
    target = str(to) if to else f"{config.run.rstrip('/')}/report/index.html"
    return write_report(data, target, now.config.storage_options)
