"""Calibration: what people's verdicts on a sample say of each check, and which thresholds would do better.

A caption is bad where a person dropped it, or corrected it: its text was not good enough to stay. Each judged caption
counts as many times as it stands for captions of the corpus (`weight`, 1 where verdicts have none), so that shares are
those of the corpus and not of a sample that is stratified by fate.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import polars as pl

from stages.decide import Evaluation
from stages.policy import BOUNDS, Check, Policy

HIGH_IS_BAD: Final = {"min": False, "above": False, "max": True, "below": True}
"""For each bound whether it speaks against high scores."""

_SCHEMA: Final = {
    "reason": pl.String, "column": pl.String, "source": pl.String, "task": pl.String, "language": pl.String,
    "bound": pl.String,
}  # fmt: skip


def check_quality(evaluation: Evaluation, verdicts: pl.DataFrame) -> pl.DataFrame:
    """Each check against people: of the labelled captions it spoke against, how many people find bad too.

    Columns: reason, labelled (captions it ran on), hits, right, precision, recall (of what people find bad). Counts are
    of the sample, shares of the corpus.
    """
    said = [evaluation.hits.column(check.reason) for check in evaluation.policy.checks]
    hits = evaluation.decisions.select("caption_key", *said).join(judged(verdicts), on="caption_key")
    rows = []
    for check in evaluation.policy.checks:
        ran = hits.filter(pl.col(check.reason).is_not_null())
        spoke = ran.filter(pl.col(check.reason))
        right, all_bad, against = _weight(spoke.filter("bad")), _weight(ran.filter("bad")), _weight(spoke)
        rows.append(
            {
                "reason": check.reason,
                "labelled": len(ran),
                "hits": len(spoke),
                "right": int(spoke["bad"].sum()),
                "precision": right / against if against else None,
                "recall": right / all_bad if all_bad else None,
            }
        )
    return pl.DataFrame(rows, schema_overrides={"precision": pl.Float64, "recall": pl.Float64})


def judged(verdicts: pl.DataFrame) -> pl.DataFrame:
    """Verdicts as columns caption_key, bad and weight."""
    given = verdicts.columns
    corrected = pl.col("correction").is_not_null() if "correction" in given else pl.lit(False)
    weight = pl.col("weight") if "weight" in given else pl.lit(1.0)
    return verdicts.select("caption_key", bad=(pl.col("verdict") == "drop") | corrected, weight=weight)


def _weight(rows: pl.DataFrame) -> float:
    return float(rows["weight"].sum())


def threshold_curve(scores: pl.DataFrame, column: str, verdicts: pl.DataFrame, high_is_bad: bool) -> pl.DataFrame:
    """What each possible threshold of a score would do: columns threshold, dropped, precision, recall.

    A caption is dropped when its score is at or beyond the threshold (above it where `high_is_bad`, else below).
    `dropped` counts captions of the sample.
    """
    known = scores.select("caption_key", value=pl.col(column).cast(pl.Float64).fill_nan(None)).drop_nulls()
    both = known.join(judged(verdicts), on="caption_key").with_columns(right=pl.col("bad") * pl.col("weight"))
    counts = both.group_by("value").agg(pl.len().alias("n"), pl.col("weight", "right").sum())
    curve = counts.sort("value", descending=high_is_bad).with_columns(pl.col("n", "weight", "right").cum_sum())
    total = float(both["right"].sum())
    return curve.select(
        threshold="value",
        dropped="n",
        precision=pl.col("right") / pl.col("weight"),
        recall=pl.col("right") / total if total else pl.lit(None, pl.Float64),
    )


def suggest_threshold(curve: pl.DataFrame, precision: float) -> dict[str, Any] | None:
    """The row of a curve with the highest recall at this precision or better (of these the one that drops least)."""
    good = curve.filter(pl.col("precision") >= precision - 1e-9).sort(
        "recall", "dropped", descending=[True, False], nulls_last=True
    )
    return good.row(0, named=True) if len(good) else None


def curves(scores: pl.DataFrame, policy: Policy, verdicts: pl.DataFrame) -> pl.DataFrame:
    """`threshold_curve` of every bound of every check whose scores people have judged, by task and language.

    Columns: reason, column, source (null: all), task, language, bound, and those of the curve.
    """
    parts = [curve.select(*(pl.lit(place[name], kind).alias(name) for name, kind in _SCHEMA.items()), pl.all())
             for place, _, curve in _curves(scores, policy, verdicts)]  # fmt: skip
    return pl.concat(parts) if parts else pl.DataFrame()


def suggestions(scores: pl.DataFrame, policy: Policy, verdicts: pl.DataFrame, precision: float) -> pl.DataFrame:
    """For each check's bounds the threshold with the highest recall at this precision or better, beside the policy's.

    A row for each task and language that people have judged (and source, where the check names sources), and each bound
    that the policy sets there, overrides included. Columns: reason, column, source, task, language, bound, now,
    suggested (null where no threshold is as precise), precision, recall, dropped. A suggested threshold drops what is
    at or beyond it. Checks that bound a rank have none: their scores mean nothing across classes.
    """
    rows: list[dict[str, Any]] = []
    for place, now, curve in _curves(scores, policy, verdicts):
        best = suggest_threshold(curve, precision) or {}
        rows.append({**place, "now": now, "suggested": best.get("threshold"), "precision": best.get("precision"),
                     "recall": best.get("recall"), "dropped": best.get("dropped")})  # fmt: skip
    kinds = {"now": pl.Float64, "suggested": pl.Float64, "precision": pl.Float64, "recall": pl.Float64}
    return pl.DataFrame(rows, schema={**_SCHEMA, **kinds, "dropped": pl.Int64})


def _curves(
    scores: pl.DataFrame, policy: Policy, verdicts: pl.DataFrame
) -> Iterator[tuple[dict[str, Any], float, pl.DataFrame]]:
    """For each check, scope and bound: what and where it is, the bound that the policy sets, and its curve."""
    mine = scores.join(verdicts, on="caption_key", how="semi")
    for check in policy.checks:
        if check.column not in mine.columns or check.rank_by:
            continue
        by = (
            ["source", "task", "language"]
            if _names_sources(check) and "source" in mine.columns
            else ["task", "language"]
        )
        for values, part in sorted(mine.group_by(by), key=lambda pair: [str(value) for value in pair[0]]):
            scope: dict[str, Any] = {"source": None} | dict(zip(by, values, strict=True))
            bounds = check.bounds(scope["source"], scope["task"], scope["language"]) or {}
            for bound in (name for name in BOUNDS if name in bounds):
                curve = threshold_curve(part, check.column, verdicts, HIGH_IS_BAD[bound])
                if len(curve):
                    place = {"reason": check.reason, "column": check.column, **scope, "bound": bound}
                    yield place, bounds[bound], curve


def _names_sources(check: Check) -> bool:
    return bool(check.only.source) or any(override.when.source for override in check.overrides)
