"""Which captions go into a pack, and why the others do not."""

from __future__ import annotations

import polars as pl

from stages.pack.frames import PackFrames

EXCLUDED_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "stage": pl.String,
    "source": pl.String,
    "task": pl.String,
    "language": pl.String,
    "reason": pl.String,
    "count": pl.Int64,
}


def kept_captions(judged: pl.DataFrame) -> pl.DataFrame:
    """The captions to pack: answered, kept by the policy, on an accepted mask, streaming chains up to their first gap.

    Columns as in `Caption`.
    """
    return judged.filter(pl.col("why").is_null()).drop("why", "where_", "source")


def judged_captions(frames: PackFrames) -> pl.DataFrame:
    """Every caption with `source`, and the stage (`where_`) and reason (`why`, null: kept) that keeps it out."""
    captions = frames.frame("captions")
    regions = frames.frame("regions").select("region_key", "source", region_status="status").unique("region_key")
    masks = frames.frame("masks").group_by("region_key").agg(mask_ok=(pl.col("status") == "ok").all())
    media = frames.frame("media").select("media_key", media_status="status").unique("media_key")
    judged = (
        captions.join(regions, on="region_key", how="left")
        .join(masks, on="region_key", how="left")
        .join(media, on="media_key", how="left")
    )
    if frames.decisions is None:
        judged = judged.with_columns(decided=pl.lit("ok"), decided_reason=pl.lit(None, pl.String))
    else:
        decided = frames.frame("decisions").select("caption_key", decided="status", decided_reason="reason")
        judged = judged.join(decided.unique("caption_key"), on="caption_key", how="left")
    faults: list[tuple[pl.Expr, str, pl.Expr]] = [
        (pl.col("media_status").fill_null("gone") != "ok", "ingest", pl.lit("media_not_available")),
        (pl.col("region_status").fill_null("gone") != "ok", "ingest", pl.lit("region_not_available")),
        (~pl.col("mask_ok").fill_null(False), "refine", pl.lit("mask_not_accepted")),
        (pl.col("status") != "ok", "distill", pl.coalesce("reason", "outcome", "status")),
        (pl.col("text").is_null(), "distill", pl.lit("no_text")),
        (pl.col("decided").is_null(), "decide", pl.lit("not_decided")),
        (pl.col("decided") != "ok", "decide", pl.coalesce("decided_reason", "decided")),
    ]
    where, why = pl.lit(None, pl.String), pl.lit(None, pl.String)
    for condition, stage, reason in reversed(faults):
        where = pl.when(condition).then(pl.lit(stage)).otherwise(where)
        why = pl.when(condition).then(reason).otherwise(why)
    judged = judged.with_columns(where_=where, why=why).select(*captions.columns, "source", "where_", "why")
    return _cut_chains(judged)


def _cut_chains(judged: pl.DataFrame) -> pl.DataFrame:
    """A streaming caption whose chain has a gap before it would tell of a history that is not in the pack."""
    if not (judged["task"] == "stream").any():
        return judged
    chain = (
        pl.col("why").is_null().cast(pl.Int64).cum_sum().over("region_key", "task", "language", order_by="event_index")
    )
    broken = (pl.col("task") == "stream") & pl.col("why").is_null() & (chain != pl.col("event_index") + 1)
    return judged.with_columns(
        where_=pl.when(broken).then(pl.lit("pack")).otherwise("where_"),
        why=pl.when(broken).then(pl.lit("chain_broken")).otherwise("why"),
    )


def exclusions(frames: PackFrames, judged: pl.DataFrame) -> pl.DataFrame:
    """Counts of what is not in the pack: stage, source, task, language (null before captions), reason, count.

    Rows of ingest, select and refine count regions, those of distill, decide and pack count the `judged_captions`.
    """
    regions = frames.frame("regions")
    sources = regions.select("region_key", "source").unique("region_key")
    parts = [_region_reasons(regions.select("source", "status", "reason"), "ingest")]
    selection = frames.frame("selection").select("source", "status", "reason")
    parts.append(_region_reasons(selection, "select"))
    masks = frames.frame("masks").select("region_key", "status", "reason").filter(pl.col("status") != "ok")
    masks = masks.unique("region_key", maintain_order=True).join(sources, on="region_key", how="left")
    parts.append(_region_reasons(masks, "refine"))
    captions = judged.filter(pl.col("where_").is_in(["distill", "decide", "pack"]))
    counted = captions.group_by(stage="where_", source="source", task="task", language="language", reason="why").agg(
        count=pl.len().cast(pl.Int64)
    )
    parts.append(counted.select(list(EXCLUDED_SCHEMA)).cast(pl.Schema(EXCLUDED_SCHEMA)))
    return pl.concat(parts).sort(list(EXCLUDED_SCHEMA), nulls_last=True)


def _region_reasons(rows: pl.DataFrame, stage: str) -> pl.DataFrame:
    bad = rows.filter(pl.col("status") != "ok")
    counted = bad.group_by("source", pl.coalesce("reason", "status").alias("reason")).agg(count=pl.len().cast(pl.Int64))
    counted = counted.with_columns(stage=pl.lit(stage), task=pl.lit(None, pl.String), language=pl.lit(None, pl.String))
    return counted.select(list(EXCLUDED_SCHEMA)).cast(pl.Schema(EXCLUDED_SCHEMA))
