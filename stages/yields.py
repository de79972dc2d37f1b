"""What a policy did: tables over an evaluation, and its precision and recall where the truth is known."""

from __future__ import annotations

import numpy as np
import polars as pl

from stages.checks import SCOPE
from stages.decide import Evaluation

TOTALS = ("kept", "filtered", "failed", "blocked")


def yield_table(evaluation: Evaluation, by: tuple[str, ...] = ()) -> pl.DataFrame:
    """A row a check (and value of the columns `by`, out of source, task and language).

    Columns: `reason`, `column`, `captions` (in scope of the row), `ran`, `not_run` (no score, or not for these
    captions), `hits`, `sole_hits` (only this check spoke against the caption), `hit_share` of those that ran.
    """
    hits = evaluation.hits
    if not evaluation.policy.checks:
        return pl.DataFrame(schema={"reason": pl.String, "column": pl.String, "captions": pl.Int64})
    alone = hits.alone()
    captions = np.bincount(hits.scope, minlength=len(hits.scopes))
    scopes = pl.DataFrame(hits.scopes, schema=dict.fromkeys(SCOPE, pl.String), orient="row")
    rows = []
    for place, check in enumerate(evaluation.policy.checks):
        counts = {
            "captions": captions,
            "not_run": hits.count(hits.silent, place),
            "hits": hits.count(hits.spoke, place),
            "sole_hits": hits.count(hits.spoke, place, alone),
        }
        wide = scopes.with_columns(pl.Series(name, values, dtype=pl.Int64) for name, values in counts.items())
        sums = [pl.col(name).sum() for name in counts]
        summed = wide.group_by(list(by)).agg(sums).sort(list(by)) if by else wide.select(sums)
        rows.append(summed.select(*by, pl.all().exclude(by), reason=pl.lit(check.reason), column=pl.lit(check.column)))
    ran = pl.col("captions") - pl.col("not_run")
    return pl.concat(rows).select(
        *by, "reason", "column", "captions", ran.alias("ran"), "not_run", "hits", "sole_hits",
        hit_share=pl.when(ran > 0).then(pl.col("hits") / ran),
    )  # fmt: skip


def overlap(evaluation: Evaluation) -> pl.DataFrame:
    """How many captions two checks spoke against together, for every pair that did. Columns: `a`, `b`, `both`."""
    pairs = (
        evaluation.decisions.select(pl.col("reasons").alias("a"), pl.col("reasons").alias("b"))
        .filter(pl.col("a").list.len() > 1)
        .explode("a")
        .explode("b")
        .filter(pl.col("a") < pl.col("b"))
    )
    return (
        pairs.group_by("a", "b")
        .agg(both=pl.len().cast(pl.Int64))
        .sort("both", "a", "b", descending=[True, False, False])
    )


def kept_shares(evaluation: Evaluation, by: tuple[str, ...] = SCOPE) -> pl.DataFrame:
    """Captions and their fates for each value of the scope columns `by`.

    Columns: `captions`, `kept`, `filtered`, `failed`, `blocked`, `kept_share`; the four fates add up to `captions`.
    """
    hits, status = evaluation.hits, evaluation.decisions["status"]
    scopes = pl.DataFrame(hits.scopes, schema=dict.fromkeys(SCOPE, pl.String), orient="row")
    fates = {"kept": "ok"} | {name: name for name in TOTALS[1:]}
    counts = [
        pl.Series(total, np.bincount(hits.scope[(status == fate).to_numpy()], minlength=len(scopes)), dtype=pl.Int64)
        for total, fate in fates.items()
    ]
    table = scopes.with_columns(counts).group_by(list(by)).agg(pl.col(TOTALS).sum()).sort(list(by))
    table = table.select(*by, pl.sum_horizontal(TOTALS).alias("captions"), *TOTALS)
    return table.with_columns(kept_share=pl.col("kept") / pl.col("captions"))


def changes(before: pl.DataFrame, after: pl.DataFrame) -> pl.DataFrame:
    """Captions whose fate differs between two decision sets, counted by what it was and what it is.

    Columns: `before`, `before_reason`, `after`, `after_reason`, `captions`; null before a caption that is new.
    """
    was = before.select("caption_key", before="status", before_reason="reason")
    now = after.select("caption_key", after="status", after_reason="reason")
    if was["caption_key"].equals(now["caption_key"]):  # two policies over the same captions: nothing to look up
        both = pl.concat([was, now.drop("caption_key")], how="horizontal")
    else:
        both = was.join(now, on="caption_key", how="full", coalesce=True)
    moved = both.filter(
        pl.col("before").ne_missing(pl.col("after")) | pl.col("before_reason").ne_missing(pl.col("after_reason"))
    )
    columns = ["before", "before_reason", "after", "after_reason"]
    counts = moved.group_by(columns).agg(captions=pl.len().cast(pl.Int64))
    return counts.sort("captions", *columns, descending=[True, *[False] * len(columns)])


def precision_recall(decisions: pl.DataFrame, truth: pl.DataFrame) -> pl.DataFrame:
    """How well a policy finds known defects.

    `truth` has `caption_key` and `defect` (its kind), a row a defective caption; captions that it does not name are
    good. A caption that failed or was blocked was not judged and is left out, unless its own defect is named: then it
    counts as found, since it is not kept. Columns: `defect` (`overall` first), `planted`, `found`, `recall`, and for
    overall `dropped` (captions filtered) and `precision` (the share of these that is defective).
    """
    known = truth.select("caption_key", "defect").unique()
    judged = decisions.select("caption_key", "status").join(known, on="caption_key", how="left")
    lost = pl.col("status") != "ok"
    planted = judged.filter(pl.col("defect").is_not_null())
    kinds = planted.group_by("defect").agg(planted=pl.len().cast(pl.Int64), found=lost.sum().cast(pl.Int64))
    keys = planted.unique("caption_key")
    dropped = judged.filter(pl.col("status") == "filtered").unique("caption_key")
    right = len(dropped.filter(pl.col("defect").is_not_null()))
    overall = pl.DataFrame(
        {
            "defect": ["overall"],
            "planted": [len(keys)],
            "found": [len(keys.filter(lost))],
            "dropped": [len(dropped)],
            "precision": [right / len(dropped) if len(dropped) else None],
        },
        schema_overrides={"precision": pl.Float64},
    )
    table = pl.concat([overall, kinds.sort("defect")], how="diagonal")
    return table.with_columns(recall=pl.when(pl.col("planted") > 0).then(pl.col("found") / pl.col("planted")))
