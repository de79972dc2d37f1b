"""Decisions: a policy evaluated over stored scores, whole columns at a time.

What each check says of each caption comes from `stages.checks`; here it becomes a decision, caps are applied and chains
cut. Nothing here computes a score or calls a model, so that a corpus is filtered anew in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from stages.checks import SCOPE, Hits, hits_of
from stages.draws import drawn
from stages.policy import Cap, Policy, PolicyError, validate_policy

NEEDED = ("caption_key", "region_key", "digest", "status", "task", "language", "event_index")
EARLIER_EVENT = "earlier_event"
HUMAN = "human"


@dataclass(frozen=True)
class Evaluation:
    """Decisions (the columns of `schemas.caption.Decision`) and, row for row, what each check said of a caption."""

    policy: Policy
    decisions: pl.DataFrame
    hits: Hits


def decide(captions: pl.LazyFrame | pl.DataFrame, policy: Policy, verdicts: pl.DataFrame | None = None) -> pl.DataFrame:
    """The decisions of a policy on captions joined with their scores: one row a caption, in their order.

    Needs the columns caption_key, region_key, digest, status, task, language and event_index; reads reason, source
    and source_label where they are; an absent score column reads as null throughout. Returns the columns of
    `Decision`, `input_digest` being the caption's digest and `digest` left to the writer. A caption that is not ok
    keeps its status and reason. `verdicts` are people's (`schemas.caption.HumanVerdict`): they override the policy.
    Raises `PolicyError` for score columns that no rule fills.
    """
    return evaluate(captions, policy, verdicts).decisions


def evaluate(captions: pl.LazyFrame | pl.DataFrame, policy: Policy, verdicts: pl.DataFrame | None = None) -> Evaluation:
    """`decide`, with what each check said kept for yield tables."""
    validate_policy(policy)
    frame = _complete(captions.collect() if isinstance(captions, pl.LazyFrame) else captions)
    hits = hits_of(frame, policy)
    decisions = _capped(_decisions(frame, hits, policy), frame, policy)
    if verdicts is not None and len(verdicts):
        decisions = _overridden(decisions, verdicts)
    if policy.cut_chains:
        decisions = _cut_chains(decisions, frame)
    return Evaluation(policy, decisions, hits)


def _complete(frame: pl.DataFrame) -> pl.DataFrame:
    if missing := [name for name in NEEDED if name not in frame.columns]:
        raise KeyError(f"captions to decide on lack the columns {', '.join(missing)}")
    absent = [name for name in ("reason", "source", "source_label") if name not in frame.columns]
    return frame.with_columns(pl.lit(None, pl.String).alias(name) for name in absent)


def _decisions(frame: pl.DataFrame, hits: Hits, policy: Policy) -> pl.DataFrame:
    """Decisions by checks alone. Few combinations of checks occur, so each is spelt out once and gathered by rows."""
    codes, masks = hits.combinations()
    fates = [_fate(mask, policy) for mask in masks]
    kinds = {"status": pl.String(), "reason": pl.String(), "reasons": pl.List(pl.String)}
    fate = pl.DataFrame([*zip(*fates, strict=True)], schema=kinds).select(pl.all().gather(pl.Series(codes)))
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
    dropped: list[str] = []
    flagged: list[str] = []
    while mask:
        check = policy.checks[(mask & -mask).bit_length() - 1]
        (dropped if check.action == "drop" else flagged).append(check.reason)
        mask &= mask - 1
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
    """Which kept captions are beyond the cap of their class, in an order drawn by the seed. Null is no class."""
    if absent := [name for name in cap.by if name not in frame.columns]:
        raise PolicyError(f"cap {cap.reason!r} counts by {', '.join(absent)}, which captions do not have")
    scope = pl.lit(True)
    for name, wanted in cap.only.model_dump().items():
        scope = scope & pl.col(name).is_in(wanted) if wanted else scope
    kept = frame.select({*cap.by, *SCOPE, "caption_key"}).with_row_index("_row")
    kept = kept.filter((decisions["status"] == "ok") & pl.Series(frame.select(scope.alias("s")).to_series()))
    kept = kept.drop_nulls(list(cap.by))
    ordered = kept.with_columns(_draw=drawn(kept["caption_key"], cap.seed)).sort("_draw", "caption_key")
    beyond = ordered.filter(pl.int_range(pl.len()).over(list(cap.by)) >= cap.max)["_row"].to_numpy()
    over = np.zeros(len(frame), np.bool_)
    over[beyond] = True
    return pl.Series("over", over)


def _overridden(decisions: pl.DataFrame, verdicts: pl.DataFrame) -> pl.DataFrame:
    """Decisions in which a person's word stands above the checks'; the checks' reasons stay listed.

    A dropped caption is `filtered (human)`, a kept one `ok`; what failed or was blocked stays so.
    """
    on = ["caption_key", "input_digest"]
    both = decisions.join(verdicts.select(*on, "verdict"), on=on, how="left", maintain_order="left")
    judged = pl.col("status").is_in(["ok", "filtered"])
    keep, drop = judged & (pl.col("verdict") == "keep"), judged & (pl.col("verdict") == "drop")
    return both.with_columns(
        status=pl.when(keep).then(pl.lit("ok")).when(drop).then(pl.lit("filtered")).otherwise("status"),
        reason=pl.when(keep).then(None).when(drop).then(pl.lit(HUMAN)).otherwise("reason"),
        reasons=pl.when(drop).then(pl.concat_list(pl.lit(HUMAN), "reasons")).otherwise("reasons"),
    ).drop("verdict")


def _cut_chains(decisions: pl.DataFrame, frame: pl.DataFrame) -> pl.DataFrame:
    """Blocks kept events of a stream that follow one which is not kept."""
    streams = frame.select("region_key", "language", "event_index", lost=decisions["status"] != "ok").with_row_index(
        "_row"
    )
    streams = streams.filter(frame["task"] == "stream")
    # Most chains have nothing to cut: hashes of their keys rule them out before the keys themselves are looked at.
    chain, event = pl.col("region_key").hash() ^ pl.col("language").hash(), pl.col("event_index")
    known = streams.select("lost", "event_index", chain=chain).with_row_index("_place")
    first = known.filter("lost").group_by("chain").agg(first=event.min())
    late = known.filter(~pl.col("lost") & (event > 0)).join(first, on="chain").filter(event > pl.col("first"))
    if not len(late):
        return decisions
    chains = streams[late["_place"]].select("region_key", "language").unique()
    streams = streams.join(chains, on=["region_key", "language"], how="semi")
    first = streams.filter("lost").group_by("region_key", "language").agg(first=event.min())
    late = streams.join(first, on=["region_key", "language"]).filter(~pl.col("lost") & (event > pl.col("first")))
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
