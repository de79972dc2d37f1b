"""Review and calibration: a sample for people, their verdicts read back, and what these say of each check."""

from __future__ import annotations

import base64
import csv
import html
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from schemas.arrow import arrow_schema, conform
from schemas.caption import Caption, HumanVerdict
from schemas.geometry import Rle
from stages.base import UnitError, with_digest
from stages.decide import HUMAN, Evaluation
from stages.masks import box_of, decode
from stages.policy import Check, Policy
from stages.score.pixels import load_frame
from stages.views.config import ViewConfig
from stages.views.encode import to_picture
from stages.views.images import render

FIELDS = ("caption_key", "task", "language", "source_label", "status", "reason", "text", "verdict", "correction")
VERDICTS = ("keep", "drop")


def review_sample(
    captions: pl.DataFrame, decisions: pl.DataFrame, per_stratum: int = 20, seed: int = 0
) -> pl.DataFrame:
    """At most `per_stratum` captions of each task, language and reason (kept ones have none), drawn by their keys.

    Returns the columns of `captions` with the decision's `status` and `reason` and its stratum's `weight`: how many
    captions one of the sample stands for.
    """
    decided = decisions.select("caption_key", "status", "reason").filter(pl.col("status").is_in(["ok", "filtered"]))
    both = captions.drop("status", "reason", strict=False).join(decided, on="caption_key").drop_nulls("text")
    stratum = ["task", "language", "reason"]
    drawn = both.sort(pl.col("caption_key").hash(seed)).with_columns(_all=pl.len().over(stratum))
    drawn = drawn.filter(pl.int_range(pl.len()).over(stratum) < per_stratum)
    return drawn.with_columns(weight=pl.col("_all") / pl.len().over(stratum)).drop("_all").sort(*stratum, "caption_key")


def write_csv(sample: pl.DataFrame, path: Path) -> None:
    """The sample as a CSV whose last two columns are for people: `verdict` (keep, drop) and a corrected text."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, FIELDS)
        writer.writeheader()
        for row in sample.iter_rows(named=True):
            shown = {name: row.get(name) for name in FIELDS}
            writer.writerow({**shown, "caption_key": row["caption_key"].hex(), "verdict": "", "correction": ""})


def write_page(sample: pl.DataFrame, path: Path, storage_options: Mapping[str, Any] | None = None) -> None:
    """The sample as one HTML file with masks drawn, to be labelled in a browser, which saves `verdicts.csv`.

    Uses the columns uri, kind, frame_index and mask where they are; a media that cannot be read is said so.
    """
    cards = [_card(row, storage_options or {}) for row in sample.iter_rows(named=True)]
    template = Path(__file__).with_name("review.html").read_text("utf-8")
    path.write_text(template.replace("{{cards}}", "\n".join(cards)), encoding="utf-8")


def read_verdicts(path: Path) -> pl.DataFrame:
    """Verdicts of people: columns caption_key, verdict (keep, drop) and correction (null for none).

    Rows without a verdict or correction are left out; a correction alone means keep. Raises `ValueError` naming file,
    line and fix.
    """
    rows = []
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream)
        if missing := {"caption_key", "verdict"} - set(reader.fieldnames or ()):
            raise ValueError(f"{path}: the header lacks {', '.join(sorted(missing))}")
        for row in reader:
            verdict = (row["verdict"] or "").strip().lower()
            correction = (row.get("correction") or "").strip() or None
            if not verdict and not correction:
                continue
            if verdict not in VERDICTS and not (correction and not verdict):
                raise ValueError(f"{path}, line {reader.line_num}: verdict {verdict!r}; write keep or drop")
            try:
                key = bytes.fromhex(row["caption_key"])
            except ValueError:
                key = b""
            if len(key) != 16:
                raise ValueError(f"{path}, line {reader.line_num}: {row['caption_key']!r} is no caption key")
            rows.append({"caption_key": key, "verdict": verdict or "keep", "correction": correction})
    schema = {"caption_key": pl.Binary, "verdict": pl.String, "correction": pl.String}
    return pl.DataFrame(rows, schema=schema).unique("caption_key", keep="last", maintain_order=True)


def verdict_rows(captions: pl.DataFrame, verdicts: pl.DataFrame) -> pa.Table:
    """People's words on these captions as rows (schema of `HumanVerdict`); they hold for the texts as they are now."""
    both = captions.select("caption_key", "region_key", input_digest="digest").join(
        verdicts.select("caption_key", "verdict"), on="caption_key"
    )
    rows = both.with_columns(status=pl.lit("ok"), attempts=pl.lit(1, pl.Int64))
    return conform(rows.to_arrow(), arrow_schema(HumanVerdict))


def human_captions(captions: pl.DataFrame, verdicts: pl.DataFrame) -> pa.Table:
    """New attempts of the captions that people corrected: their text, teacher `human`. Schema of `Caption`."""
    corrected = verdicts.filter((pl.col("verdict") == "keep") & pl.col("correction").is_not_null())
    rows = captions.join(corrected.select("caption_key", "correction"), on="caption_key").with_columns(
        text=pl.col("correction"),
        label=pl.when(pl.col("task") == "label").then("correction").otherwise("label"),
        definition=pl.lit(None, pl.String),
        function=pl.lit(None, pl.String),
        teacher=pl.lit(HUMAN),
        model=pl.lit(HUMAN),
        attempts=pl.col("attempts") + 1,
        status=pl.lit("ok"),
        reason=pl.lit(None, pl.String),
    )
    return with_digest(conform(rows.to_arrow(), arrow_schema(Caption)), Caption)


def check_quality(evaluation: Evaluation, verdicts: pl.DataFrame) -> pl.DataFrame:
    """Each check against people: of the labelled captions it spoke against, how many a person drops too.

    Columns: reason, labelled (captions it ran on), hits, right, precision, recall (of what people drop).
    """
    said = [evaluation.hits.column(check.reason) for check in evaluation.policy.checks]
    hits = evaluation.decisions.select("caption_key", *said).join(verdicts, on="caption_key")
    bad = pl.col("verdict") == "drop"
    rows = []
    for check in evaluation.policy.checks:
        ran = hits.filter(pl.col(check.reason).is_not_null())
        spoke = ran.filter(pl.col(check.reason))
        right, wanted = len(spoke.filter(bad)), len(ran.filter(bad))
        rows.append(
            {
                "reason": check.reason,
                "labelled": len(ran),
                "hits": len(spoke),
                "right": right,
                "precision": right / len(spoke) if len(spoke) else None,
                "recall": right / wanted if wanted else None,
            }
        )
    return pl.DataFrame(rows, schema_overrides={"precision": pl.Float64, "recall": pl.Float64})


def threshold_curve(scores: pl.DataFrame, column: str, verdicts: pl.DataFrame, high_is_bad: bool) -> pl.DataFrame:
    """What each possible threshold of a score would do: columns threshold, dropped, precision, recall.

    A caption is dropped when its score is at or beyond the threshold (above it where `high_is_bad`, else below).
    """
    known = scores.select("caption_key", value=pl.col(column).cast(pl.Float64)).drop_nulls()
    both = known.join(verdicts, on="caption_key").with_columns(bad=pl.col("verdict") == "drop")
    counts = both.group_by("value").agg(pl.len().alias("n"), pl.col("bad").sum()).sort("value", descending=high_is_bad)
    curve = counts.select(threshold="value", dropped=pl.col("n").cum_sum(), right=pl.col("bad").cum_sum())
    total = int(both["bad"].sum())
    return curve.select(
        "threshold",
        "dropped",
        precision=pl.col("right") / pl.col("dropped"),
        recall=pl.col("right") / total if total else pl.lit(None, pl.Float64),
    )


def suggest_threshold(curve: pl.DataFrame, precision: float) -> dict[str, Any] | None:
    """The row of a curve with the highest recall at this precision or better (of these the one that drops least)."""
    good = curve.filter(pl.col("precision") >= precision).sort(
        "recall", "dropped", descending=[True, False], nulls_last=True
    )
    return good.row(0, named=True) if len(good) else None


def curves(scores: pl.DataFrame, policy: Policy, verdicts: pl.DataFrame) -> pl.DataFrame:
    """`threshold_curve` of every check of a policy whose scores people have judged, with `reason` and `column`."""
    parts = []
    for check in policy.checks:
        if check.column not in scores.columns:
            continue
        only = [pl.col(name).is_in(list(wanted)) for name, wanted in check.only.model_dump().items() if wanted]
        mine = scores.filter(only) if only else scores
        curve = threshold_curve(mine, check.column, verdicts, high_is_bad(check))
        parts.append(curve.select(pl.lit(check.reason).alias("reason"), pl.lit(check.column).alias("column"), pl.all()))
    return pl.concat(parts) if parts else pl.DataFrame()


def suggestions(scores: pl.DataFrame, policy: Policy, verdicts: pl.DataFrame, precision: float) -> pl.DataFrame:
    """For each check the threshold with the highest recall at this precision or better, beside the policy's own.

    Columns: reason, column, bound (the policy's), now, suggested (null where no threshold is as precise), precision,
    recall, dropped. A suggested threshold drops what is at or beyond it.
    """
    rows: list[dict[str, Any]] = []
    found = curves(scores, policy, verdicts)
    for check in policy.checks:
        mine = found.filter(pl.col("reason") == check.reason) if len(found) else found
        if not len(mine):
            continue
        best = suggest_threshold(mine.drop("reason", "column"), precision) or {}
        ((bound, now), *_) = check.given().items() or [(None, None)]
        rows.append({"reason": check.reason, "column": check.column, "bound": bound, "now": now,
                     "suggested": best.get("threshold"), "precision": best.get("precision"),
                     "recall": best.get("recall"), "dropped": best.get("dropped")})  # fmt: skip
    kinds = {"now": pl.Float64, "suggested": pl.Float64, "precision": pl.Float64, "recall": pl.Float64}
    return pl.DataFrame(rows, schema_overrides={**kinds, "dropped": pl.Int64, "bound": pl.String})


def high_is_bad(check: Check) -> bool:
    """Whether a check speaks against high scores."""
    bounds = set(check.given()) | {name for override in check.overrides for name in override.given()}
    return bool(bounds & {"max", "below"}) and not bounds & {"min", "above"}


def _card(row: dict[str, Any], storage_options: Mapping[str, Any]) -> str:
    said: Callable[[Any], str] = lambda value: html.escape(str(value if value is not None else ""))  # noqa: E731
    fate = said(row["status"]) + (f" ({said(row['reason'])})" if row.get("reason") else "")
    return (
        f'<article data-key="{row["caption_key"].hex()}">{_picture(row, storage_options)}'
        f"<p><b>{said(row.get('source_label'))}</b> {said(row['task'])}/{said(row['language'])}, {fate}</p>"
        f"<blockquote>{said(row['text'])}</blockquote></article>"
    )


def _picture(row: dict[str, Any], storage_options: Mapping[str, Any]) -> str:
    if not row.get("uri") or not row.get("mask"):
        return ""
    try:
        frame = load_frame(row["uri"], row.get("kind") or "image", row.get("frame_index") or 0, None, storage_options)
        mask = decode(Rle.model_validate(row["mask"]))
        box = box_of(mask)
        if box is None or mask.shape != frame.shape[:2]:
            return "<p class=gone>the mask does not fit its frame</p>"
        picture = to_picture(render("contour", frame, mask, box, ViewConfig())[0], ViewConfig(), encoded=True)
    except UnitError as error:
        return f"<p class=gone>{html.escape(error.message)}</p>"
    data = base64.b64encode(picture.data or b"").decode("ascii")
    return f'<img src="data:{picture.media_type};base64,{data}" alt="">'
