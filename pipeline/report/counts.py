"""Counts for the report, from the tables of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from pipeline.report.data import CostRow, FunnelRow, Histogram, ReasonRow, ShardRow, YieldRow
from stages.policy import Policy

Tables = Mapping[str, pl.DataFrame]
"""Current rows by table name: media, media_refs, regions, selection, masks, events, captions, decisions, packed and
`scores/<rule group>`. What a run does not have is absent."""

STAGES: tuple[tuple[str, str], ...] = (
    ("ingest", "regions"),
    ("select", "selection"),
    ("refine", "masks"),
    ("chunk", "events"),
    ("distill", "captions"),
    ("decide", "decisions"),
    ("pack", "packed"),
)
_ORDER = ("ingest", "select", "refine", "chunk", "distill", "score", "rescue", "decide", "pack")
_STATUSES = ("ok", "filtered", "failed", "blocked")
_BINS = 20


def with_source(tables: Tables, frame: pl.DataFrame) -> pl.DataFrame:
    """The frame with `source` of its regions, and `task`, `language` of its captions, null where they do not apply."""
    if "source" not in frame.columns:
        if "region_key" in frame.columns and "regions" in tables:
            sources = tables["regions"].select("region_key", "source").unique("region_key")
            frame = frame.join(sources, on="region_key", how="left")
        else:
            frame = frame.with_columns(source=pl.lit(None, pl.String))
    if "task" not in frame.columns:
        if "caption_key" in frame.columns and "captions" in tables:
            named = tables["captions"].select("caption_key", "task", "language").unique("caption_key")
            return frame.join(named, on="caption_key", how="left")
        return frame.with_columns(task=pl.lit(None, pl.String), language=pl.lit(None, pl.String))
    return frame


def _units(stage: str, frame: pl.DataFrame) -> pl.DataFrame:
    """One row a unit: a masklet's segments and a region's events count once, the worst status wins."""
    if stage not in ("refine", "chunk"):
        return frame
    rank = pl.col("status").replace_strict({"failed": 0, "blocked": 1, "filtered": 2, "ok": 3}, return_dtype=pl.Int8)
    return frame.sort(rank).unique("region_key", keep="first", maintain_order=True)


def funnel_rows(tables: Tables, funnel: Mapping[str, Mapping[str, int]] | None = None) -> list[FunnelRow]:
    """Rows over all sources, then a row a stage and source.

    `funnel` are the runner's own counts a stage (in, ok, filtered, failed, blocked, pending) and win over what the
    tables say, since the tables do not know what is pending.
    """
    total: dict[str, FunnelRow] = {}
    by_source: list[FunnelRow] = []
    for stage, table in STAGES:
        if table not in tables or tables[table].is_empty():
            continue
        rows = with_source(tables, _units(stage, tables[table]))
        total[stage] = _funnel_row(stage, None, rows)
        if rows["source"].null_count() < len(rows):
            by_source += [
                _funnel_row(stage, str(source), part)
                for (source,), part in rows.sort("source").group_by("source", maintain_order=True)
            ]
    for stage, counts in (funnel or {}).items():
        named = {name: int(counts.get(name, 0)) for name in (*_STATUSES, "pending")}
        total[stage] = FunnelRow(stage=stage, rows_in=int(counts.get("in", sum(named.values()))), **named)
    found = [row for row in [*total.values(), *by_source] if row.rows_in]
    return sorted(found, key=lambda row: _place(row.stage))


def _place(stage: str) -> tuple[int, str]:
    """Where a stage stands in the funnel; parts of a stage (`distill/brief/en`) follow it."""
    base = stage.split("/")[0]
    return (_ORDER.index(base) if base in _ORDER else len(_ORDER)), stage


def _funnel_row(stage: str, source: str | None, rows: pl.DataFrame) -> FunnelRow:
    counts = dict(rows["status"].value_counts().iter_rows())
    named = {name: int(counts.get(name, 0)) for name in _STATUSES}
    return FunnelRow(stage=stage, source=source, rows_in=len(rows), **named)


def reason_rows(tables: Tables) -> list[ReasonRow]:
    """Why rows did not go on, the most frequent first within a stage."""
    found: list[ReasonRow] = []
    for stage, table in STAGES:
        if table not in tables:
            continue
        rows = with_source(tables, _units(stage, tables[table])).filter(pl.col("status") != "ok")
        by = ["status", "reason", "source", "task", "language"]
        rows = rows.with_columns(pl.coalesce("reason", "status").alias("reason"))
        counted = rows.group_by(by).agg(count=pl.len()).sort("count", *by, descending=[True] + [False] * len(by))
        found += [ReasonRow(stage=stage, **row) for row in counted.to_dicts()]
    return found


def yield_rows(tables: Tables) -> list[YieldRow]:
    """How often each rule spoke against a caption, by source and task."""
    if "decisions" not in tables or tables["decisions"].is_empty():
        return []
    rows = with_source(tables, tables["decisions"]).with_columns(
        pl.col("source").fill_null("?"), pl.col("task").fill_null("?")
    )
    judged = rows.group_by("source", "task").agg(judged=pl.len())
    named = pl.when(pl.col("reasons").list.len() > 0).then("reasons").otherwise(pl.concat_list("reason"))
    spoke = rows.select("source", "task", rule=named.list.unique()).explode("rule", empty_as_null=True)
    spoke = spoke.drop_nulls("rule").group_by("rule", "source", "task").agg(rejected=pl.len())
    joined = spoke.join(judged, on=["source", "task"]).sort("rule", "source", "task")
    return [YieldRow(**row) for row in joined.to_dicts()]


Limits = tuple[tuple[str, float], ...]
_Scope = tuple[str | None, str | None, str | None]


def limits_of(policy: Policy, column: str, scope: _Scope) -> Limits:
    """The limits that a policy sets to a score column for the captions of a (source, task, language), overrides
    included; not those to its rank among captions."""
    source, task, language = scope
    found = [
        (check.reason, check.bounds(source, task or "", language or "") or {})
        for check in policy.checks
        if check.column == column and not check.rank_by
    ]
    return tuple((f"{reason} ({name} {value:g})", value) for reason, given in found for name, value in given.items())


def score_histograms(tables: Tables, policy: Policy | None = None) -> list[Histogram]:
    """A histogram for every numeric score column, with the limits that a policy sets to it; one for each set of limits
    where captions differ in them, over the same range.

    Scores that nobody gave are skipped, whole numbers that no policy bounds as well.
    """
    bounded = {check.column for check in policy.checks if not check.rank_by} if policy is not None else set()
    found: list[Histogram] = []
    for table, frame in sorted(tables.items()):
        if not table.startswith("scores/"):
            continue
        for name, kind in frame.schema.items():
            counted = kind.is_float() or (kind.is_integer() and name in bounded)
            if not counted or frame[name].null_count() == len(frame):
                continue
            group = table.removeprefix("scores/")
            scoped, span = with_source(tables, frame), _span(frame[name])
            parts = _by_limits(scoped, name, policy) if policy and name in bounded else {(): scoped}
            sources = scoped["source"].drop_nulls().n_unique()
            for limits, part in parts.items():
                if not limits and part[name].null_count() == len(part):
                    continue
                told = f"{group} · {_scopes(part, sources)}" if len(parts) > 1 else group
                made = _histogram(name, told, part[name], span)
                found.append(made.model_copy(update={"bounds": list(limits)}))
    return found


def _by_limits(frame: pl.DataFrame, column: str, policy: Policy) -> dict[Limits, pl.DataFrame]:
    """The rows of a score's table (with source, task and language) that share the limits to a column."""
    by = ("source", "task", "language")
    limits: dict[Limits, list[_Scope]] = {}
    for scope in frame.select(by).unique().sort(by).iter_rows():
        limits.setdefault(limits_of(policy, column, scope), []).append(scope)
    scopes = {given: pl.DataFrame(rows, schema=frame.select(by).schema, orient="row") for given, rows in limits.items()}
    return {given: frame.join(rows, on=by, how="semi", nulls_equal=True) for given, rows in scopes.items()}


def _scopes(part: pl.DataFrame, sources: int) -> str:
    """What the captions of a part are, task by task: `brief en, zh; label en`, with their sources if not all."""
    languages = part.select("task", "language").drop_nulls().unique().sort("task", "language")
    grouped = languages.group_by("task", maintain_order=True).agg("language")
    told = "; ".join(f"{task} {', '.join(spoken)}" for task, spoken in grouped.iter_rows())
    named = part["source"].drop_nulls().unique().sort()
    return told + (f" of {', '.join(named)}" if len(named) < sources else "")


def mask_histograms(tables: Tables) -> list[Histogram]:
    """Histograms of the facts that refine measures."""
    masks = tables.get("masks")
    if masks is None or masks.is_empty():
        return []
    names = ("predicted_iou", "stability", "seed_agreement", "area_share", "main_part_share")
    return [_histogram(name, "masks", masks[name]) for name in names if masks[name].null_count() < len(masks)]


def length_histograms(tables: Tables) -> list[Histogram]:
    """Caption lengths by task and language: words for English, characters for Chinese."""
    captions = tables.get("captions")
    if captions is None:
        return []
    texts = captions.filter(pl.col("text").is_not_null())
    words = pl.col("text").str.count_matches(r"\S+")
    texts = texts.with_columns(
        length=pl.when(pl.col("language") == "zh")
        .then(pl.col("text").str.len_chars())
        .otherwise(words)
        .cast(pl.Float64)
    ).sort("task", "language")
    return [
        _histogram(str(task), str(language), part["length"])
        for (task, language), part in texts.group_by(["task", "language"], maintain_order=True)
    ]


def _histogram(name: str, group: str, values: pl.Series, span: tuple[float, float] | None = None) -> Histogram:
    numbers = _numbers(values)
    counts, edges = np.histogram(numbers, bins=_BINS, range=span or _span(values))
    return Histogram(
        name=name, group=group, edges=edges.tolist(), counts=counts.tolist(), missing=len(values) - len(numbers)
    )


def _numbers(values: pl.Series) -> np.ndarray[Any, Any]:
    numbers: np.ndarray[Any, Any] = values.drop_nulls().cast(pl.Float64).to_numpy()
    found: np.ndarray[Any, Any] = numbers[np.isfinite(numbers)]
    return found


def _span(values: pl.Series) -> tuple[float, float]:
    numbers = _numbers(values)
    low, high = (float(numbers.min()), float(numbers.max())) if len(numbers) else (0.0, 1.0)
    return low, high if high > low else low + 1.0


def label_counts(tables: Tables, most: int = 40) -> list[tuple[str, int]]:
    """The most frequent labels of packed or selected regions, as their sources give them."""
    if "regions" not in tables:
        return []
    regions = tables["regions"].filter(pl.col("status") == "ok").drop_nulls("label")
    counts = regions["label"].value_counts().sort("count", "label", descending=[True, False])
    return [(str(label), int(count)) for label, count in counts.head(most).iter_rows()]


def cost_rows(tables: Tables, planned_usd: float | None = None) -> list[CostRow]:
    """Tokens and money behind the captions, by teacher and model; the plan's sum in a row of its own."""
    rows: list[CostRow] = []
    captions = tables.get("captions")
    if captions is not None and len(captions):
        usage = captions.select("teacher", "model", "usage", "attempts").unnest("usage")
        summed = usage.group_by("teacher", "model").agg(
            requests=pl.col("attempts").sum(),
            prompt_tokens=pl.col("prompt_tokens").sum(),
            completion_tokens=pl.col("completion_tokens").sum(),
            actual_usd=pl.col("cost_usd").sum(),
            priced=pl.col("cost_usd").count(),
        )
        for row in summed.sort("teacher", "model").to_dicts():
            actual = row["actual_usd"] if row.pop("priced") else None
            name = f"{row.pop('teacher')} · {row.pop('model')}"
            rows.append(CostRow(name=name, **(row | {"actual_usd": actual})))
    if planned_usd is not None:
        rows.append(CostRow(name="planned", planned_usd=planned_usd))
    return rows


def shard_rows(manifest: Mapping[str, Any]) -> list[ShardRow]:
    """The shards that a pack's manifest lists, in the order of their names."""
    shards = sorted(manifest["shards"], key=lambda shard: str(shard["shard"]))
    return [ShardRow(**{name: shard[name] for name in ShardRow.model_fields}) for shard in shards]
