"""From a run's tables to the data of its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.report import counts
from pipeline.report.counts import Tables
from pipeline.report.data import CostRow, RatePoint, RegionCard, ReportData
from pipeline.report.gallery import region_cards
from stages.policy import Policy


def report_data(
    tables: Tables,
    *,
    title: str,
    run: str = "",
    made: str = "",
    funnel: Mapping[str, Mapping[str, int]] | None = None,
    policy: Policy | None = None,
    planned_usd: float | None = None,
    costs: Sequence[CostRow] | None = None,
    rates: Sequence[RatePoint] = (),
    pack: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    max_regions: int = 200,
    seed: int = 0,
    storage_options: dict[str, Any] | None = None,
) -> ReportData:
    """Gathers the report of a run.

    `tables` are current rows by table name (see `counts.Tables`); `funnel` the runner's counts a stage, where known;
    the limits of `policy` are drawn into the histograms of scores; `costs` replaces what the captions say of tokens and
    money (the ledger knows better); `pack` is the manifest of the current pack. `max_regions` regions, kept and
    rejected ones, are shown with pictures; those whose media cannot be read are shown without, with the reason.
    """
    shown: list[RegionCard] = region_cards(tables, max_regions, seed, storage_options)
    return ReportData(
        title=title,
        run=run,
        made=made,
        funnel=counts.funnel_rows(tables, funnel),
        reasons=counts.reason_rows(tables),
        yields=counts.yield_rows(tables),
        histograms=[*counts.mask_histograms(tables), *counts.score_histograms(tables, policy)],
        lengths=counts.length_histograms(tables),
        labels=counts.label_counts(tables),
        costs=list(costs) if costs is not None else counts.cost_rows(tables, planned_usd),
        rates=list(rates),
        shards=counts.shard_rows(pack) if pack is not None else [],
        regions=shown,
        notes=list(notes),
    )
