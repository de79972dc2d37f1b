"""Decisions: a policy evaluated over stored scores, whole columns at a time.

A check bounds one score column; a caption whose score lies outside speaks against it. A score of null did not run or
does not apply: it passes unless the check says `on_null: fail`. Nothing here computes a score or calls a model, so
that a corpus is filtered anew in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from stages.policy import Cap, Check, Policy, PolicyError, validate_policy

SCOPE = ("source", "task", "language")
NEEDED = ("caption_key", "region_key", "digest", "status", "task", "language", "event_index")
MAX_CHECKS = 60
EARLIER_EVENT = "earlier_event"


@dataclass(frozen=True)
class Evaluation:
    """Decisions (the columns of `schemas.caption.Decision`) and, row for row, what each check said of a caption.

    `hits` has the scope columns and a nullable boolean column a check: true speaks against the caption, null says
    nothing (the check is not for this scope, its score is null, or the caption is not ok).
    """

    policy: Policy
    decisions: pl.DataFrame
    hits: pl.DataFrame


def decide(captions: pl.LazyFrame | pl.DataFrame, policy: Policy) -> pl.DataFrame:
    """The decisions of a policy on captions joined with their scores: one row a caption, in their order.

    Needs the columns caption_key, region_key, digest, status, task, language and event_index; reads reason, source
    and source_label where they are; an absent score column reads as null throughout. Returns the columns of
    `Decision`, `input_digest` being the caption's digest and `digest` left to the writer. A caption that is not ok
    keeps its status and reason. Raises `PolicyError` for score columns that no rule fills.
    """
    return evaluate(captions, policy).decisions


def evaluate(captions: pl.LazyFrame | pl.DataFrame, policy: Policy) -> Evaluation:
    """`decide`, with what each check said kept for yield tables."""
    validate_policy(policy)
    if len(policy.checks) > MAX_CHECKS:
        raise PolicyError(f"policy {policy.name} has {len(policy.checks)} checks; {MAX_CHECKS} are the most")
    frame = _complete(captions.collect() if isinstance(captions, pl.LazyFrame) else captions)
    hits = _hits(frame, policy)
    decisions = _capped(_decisions(frame, hits, policy), frame, policy)
    if policy.cut_chains:
        decisions = _cut_chains(decisions, frame)
    return Evaluation(policy, decisions, pl.concat([frame.select(SCOPE), hits], how="horizontal"))


def _complete(frame: pl.DataFrame) -> pl.DataFrame:
    if missing := [name for name in NEEDED if name not in frame.columns]:
        raise KeyError(f"captions to decide on lack the columns {', '.join(missing)}")
    absent = [name for name in ("reason", "source", "source_label") if name not in frame.columns]
    return frame.with_columns(pl.lit(None, pl.String).alias(name) for name in absent)


def _scopes(frame: pl.DataFrame) -> tuple[pl.Series, list[tuple[str | None, str, str]]]:
    """The number of each row's (source, task, language), and these."""
    codes, sizes = np.zeros(len(frame), np.int64), 1
    for name in SCOPE:
        values = frame[name].cast(pl.Categorical).to_physical().cast(pl.Int64).fill_null(-1).to_numpy() + 1
        size = int(values.max(initial=0)) + 1
        codes, sizes = codes * size + values, sizes * size
    # Few scopes among many rows: a table of those that occur is quicker than sorting the rows.
    example = np.full(sizes, -1, np.int64)
    example[codes] = np.arange(len(frame))
    present = np.flatnonzero(example >= 0)
    numbers = np.zeros(sizes, np.uint32)
    numbers[present] = np.arange(len(present))
    rows = frame.select(SCOPE)[example[present].tolist()].rows() if len(present) else []
    return pl.Series("scope", numbers[codes]), rows


def _hits(frame: pl.DataFrame, policy: Policy) -> pl.DataFrame:
    """A nullable boolean column a check, in their order."""
    numbers, scopes = _scopes(frame)
    columns = [_hit(check, [check.bounds(*scope) for scope in scopes], frame, numbers) for check in policy.checks]
    ok = frame["status"] == "ok"
    said = zip(policy.checks, columns, strict=True)
    if ok.all():
        whole = [column.alias(check.reason) for check, column in said]
    else:
        whole = [pl.when(pl.lit(ok)).then(column).alias(check.reason) for check, column in said]
    return frame.select(pl.lit(ok).alias("_ok"), *whole).drop("_ok")


def _hit(check: Check, bounds: list[dict[str, float] | None], frame: pl.DataFrame, numbers: pl.Series) -> pl.Expr:
    """Whether the check speaks against a caption; `bounds` by scope number, None where it is not for the scope."""
    silent = pl.lit(None, pl.Boolean)
    if not any(bounds):
        return silent
    if check.column not in frame.columns:
        hit = pl.repeat(None, len(frame), dtype=pl.Boolean)
    else:
        score = pl.col(check.column).cast(pl.Float64)
        if check.rank_by:
            if absent := [name for name in check.rank_by if name not in frame.columns]:
                raise PolicyError(f"check {check.reason!r} ranks by {', '.join(absent)}, which captions do not have")
            place = (score.rank("average") - 1) / (score.count() - 1)
            score = pl.when(score.is_not_null()).then(place.over(check.rank_by).fill_nan(1.0))
        tests = {"min": pl.Expr.lt, "max": pl.Expr.gt, "above": pl.Expr.le, "below": pl.Expr.ge}
        outside = []
        for name, test in tests.items():
            limits = [given.get(name) if given else None for given in bounds]
            if any(limit is not None for limit in limits):
                limit = _by_scope(limits, numbers)
                # A scope without this bound has a null limit, and a comparison with null says nothing.
                outside.append(test(score, limit).fill_null(False) if None in limits else test(score, limit))
        hit = pl.when(score.is_not_null()).then(pl.any_horizontal(outside))
    if check.on_null == "fail":
        hit = hit.fill_null(True)
    if None in bounds:
        hit = pl.when(_by_scope([given is not None for given in bounds], numbers)).then(hit)
    return hit


def _by_scope(values: list[float | None] | list[bool], numbers: pl.Series) -> pl.Expr:
    """A value a row, by its scope's number; a literal where all scopes agree."""
    if len(set(values)) == 1:
        return pl.lit(values[0])
    return pl.lit(pl.Series(values, strict=False).gather(numbers))


def _decisions(frame: pl.DataFrame, hits: pl.DataFrame, policy: Policy) -> pl.DataFrame:
    """Decisions by checks alone. Few combinations of checks occur, so each is spelt out once and gathered by rows."""
    masks = np.zeros(len(frame), np.uint64)
    for place, check in enumerate(policy.checks):
        masks[hits[check.reason].fill_null(False).arg_true().to_numpy()] |= np.uint64(1 << place)
    spoken = np.flatnonzero(masks)
    unique, inverse = np.unique(masks[spoken], return_inverse=True)
    codes = np.zeros(len(frame), np.uint32)
    codes[spoken] = inverse + 1
    fates = [_fate(0, policy), *(_fate(int(value), policy) for value in unique)]
    rows = pl.Series(codes)
    status = pl.Series([fate[0] for fate in fates], dtype=pl.String).gather(rows)
    reason = pl.Series([fate[1] for fate in fates], dtype=pl.String).gather(rows)
    reasons = pl.Series([fate[2] for fate in fates], dtype=pl.List(pl.String)).gather(rows)
    fate = frame.select(status=status, reason=reason, reasons=reasons)
    lost = frame["status"] != "ok"
    if lost.any():
        own = frame.select("status", "reason", reasons=pl.concat_list("reason").list.drop_nulls())
        fate = pl.select(pl.when(lost).then(own[name]).otherwise(fate[name]).alias(name) for name in fate.columns)
    return frame.select(
        "caption_key",
        "region_key",
        pl.col("digest").alias("input_digest"),
        *fate,
        attempts=pl.lit(1, pl.Int64),
        policy=pl.lit(policy.name),
    )


def _fate(mask: int, policy: Policy) -> tuple[str, str | None, list[str]]:
    """Status, reason and all reasons of captions against which the checks of a bit mask speak."""
    spoke = [check for i, check in enumerate(policy.checks) if mask >> i & 1]
    dropped = [check.reason for check in spoke if check.action == "drop"]
    flagged = [check.reason for check in spoke if check.action == "flag"]
    return ("filtered" if dropped else "ok", dropped[0] if dropped else None, dropped + flagged)


def _capped(decisions: pl.DataFrame, frame: pl.DataFrame, policy: Policy) -> pl.DataFrame:
    for cap in policy.caps:
        over = _over(decisions, frame, cap)
        decisions = decisions.with_columns(
            status=pl.when(over).then(pl.lit("filtered")).otherwise("status"),
            reason=pl.when(over).then(pl.lit(cap.reason)).otherwise("reason"),
            reasons=pl.when(over).then(pl.concat_list(pl.lit(cap.reason), "reasons")).otherwise("reasons"),
        )
    return decisions


def _over(decisions: pl.DataFrame, frame: pl.DataFrame, cap: Cap) -> pl.Series:
    """Which kept captions are beyond the cap of their class, in an order drawn by the seed."""
    if absent := [name for name in cap.by if name not in frame.columns]:
        raise PolicyError(f"cap {cap.reason!r} counts by {', '.join(absent)}, which captions do not have")
    scope = pl.lit(True)
    for name, wanted in cap.only.model_dump().items():
        scope = scope & pl.col(name).is_in(wanted) if wanted else scope
    kept = frame.select({*cap.by, *SCOPE, "caption_key"}).with_row_index("_row")
    kept = kept.filter((decisions["status"] == "ok") & pl.Series(frame.select(scope.alias("s")).to_series()))
    ordered = kept.with_columns(_draw=pl.col("caption_key").hash(cap.seed)).sort("_draw", "caption_key")
    beyond = ordered.filter(pl.int_range(pl.len()).over(list(cap.by)) >= cap.max)["_row"].to_numpy()
    over = np.zeros(len(frame), np.bool_)
    over[beyond] = True
    return pl.Series("over", over)


def _cut_chains(decisions: pl.DataFrame, frame: pl.DataFrame) -> pl.DataFrame:
    """Blocks kept events of a stream that follow one which is not kept."""
    streams = frame.select("region_key", "language", "event_index", "task").with_row_index("_row")
    streams = streams.with_columns(decisions["status"]).filter(pl.col("task") == "stream")
    lost = (
        streams.filter(pl.col("status") != "ok")
        .group_by("region_key", "language")
        .agg(first=pl.col("event_index").min())
    )
    late = streams.join(lost, on=["region_key", "language"]).filter(
        (pl.col("status") == "ok") & (pl.col("event_index") > pl.col("first"))
    )
    if not len(late):
        return decisions
    cut = np.zeros(len(frame), np.bool_)
    cut[late["_row"].to_numpy()] = True
    blocked = pl.lit(pl.Series(cut))
    return decisions.with_columns(
        status=pl.when(blocked).then(pl.lit("blocked")).otherwise("status"),
        reason=pl.when(blocked).then(pl.lit(EARLIER_EVENT)).otherwise("reason"),
        reasons=pl.when(blocked).then(pl.concat_list(pl.lit(EARLIER_EVENT), "reasons")).otherwise("reasons"),
    )
