"""Review: a sample of captions for people, and their verdicts read back; `stages.calibration` reads them."""

from __future__ import annotations

import base64
import csv
import html
import io
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from schemas.arrow import arrow_schema, conform
from schemas.caption import Caption, HumanVerdict
from schemas.geometry import Rle
from schemas.keys import KEY_BYTES, digest_value
from stages.base import UnitError, with_digest
from stages.decide import HUMAN
from stages.draws import drawn
from stages.masks import box_of, decode
from stages.score.pixels import load_frame
from stages.views.config import ViewConfig
from stages.views.encode import to_picture
from stages.views.images import render

STRATUM = ("source", "task", "language", "reason")
FIELDS = (
    "caption_key", "source", "task", "language", "source_label", "status", "reason", "weight", "text_digest", "text",
    "verdict", "correction",
)  # fmt: skip
VERDICTS = ("keep", "drop")


def review_sample(
    captions: pl.DataFrame, decisions: pl.DataFrame, per_stratum: int = 20, seed: int = 0
) -> pl.DataFrame:
    """At most `per_stratum` captions of each source, task, language and reason (kept ones have none), by a seeded draw.

    Returns the columns of `captions` with the decision's `status` and `reason` and its stratum's `weight`: how many
    captions one of the sample stands for. Captions without a column `source` are all of one.
    """
    decided = decisions.select("caption_key", "status", "reason").filter(pl.col("status").is_in(["ok", "filtered"]))
    both = captions.drop("status", "reason", strict=False).join(decided, on="caption_key").drop_nulls("text")
    stratum = [name for name in STRATUM if name in both.columns]
    draw = both.with_columns(_draw=drawn(both["caption_key"], seed)).sort("_draw", "caption_key").drop("_draw")
    sample = draw.with_columns(_all=pl.len().over(stratum))
    sample = sample.filter(pl.int_range(pl.len()).over(stratum) < per_stratum)
    return (
        sample.with_columns(weight=pl.col("_all") / pl.len().over(stratum)).drop("_all").sort(*stratum, "caption_key")
    )


def write_csv(sample: pl.DataFrame, path: Path) -> None:
    """The sample as a CSV whose last two columns are for people: `verdict` (keep, drop) and a corrected text."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, FIELDS)
        writer.writeheader()
        for row in sample.iter_rows(named=True):
            shown = {name: row.get(name) for name in FIELDS}
            known = {"caption_key": row["caption_key"].hex(), "text_digest": text_digest(row["text"])}
            writer.writerow({**shown, **known, "verdict": "", "correction": ""})


def write_page(sample: pl.DataFrame, path: Path, storage_options: Mapping[str, Any] | None = None) -> None:
    """The sample as one HTML file with masks drawn, to be labelled in a browser, which saves `verdicts.csv`.

    Uses the columns uri, kind, frame_index and mask where they are; a media that cannot be read is said so.
    """
    cards = [_card(row, storage_options or {}) for row in sample.iter_rows(named=True)]
    template = Path(__file__).with_name("review.html").read_text("utf-8")
    path.write_text(template.replace("{{cards}}", "\n".join(cards)), encoding="utf-8")


def text_digest(text: str) -> str:
    """What a sheet says of the text that was judged (hexadecimal)."""
    return digest_value(text).hex()


def read_verdicts(path: Path) -> pl.DataFrame:
    """Verdicts of people: columns caption_key, verdict (keep, drop), correction (null for none), weight, text_digest.

    Rows without a verdict or correction are left out; a correction alone means that the corrected caption is to be
    kept. `weight` is how many captions of the corpus a judged one stands for: the sheet's, shared out among those of
    its stratum that were judged, 1 in a sheet without weights. `text_digest` is null in a sheet that has none.
    Raises `ValueError` naming file, line and fix.
    """
    rows: list[dict[str, Any]] = []
    listed: Counter[tuple[str | None, ...]] = Counter()
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream)
        if missing := {"caption_key", "verdict"} - set(reader.fieldnames or ()):
            raise ValueError(f"{path}: the header lacks {', '.join(sorted(missing))}")
        for row in reader:
            stratum = tuple(row.get(name) for name in STRATUM)
            listed[stratum] += 1
            if judged := _verdict(row, f"{path}, line {reader.line_num}"):
                rows.append({**judged, "stratum": stratum})
    counts = Counter(row["stratum"] for row in rows)
    for row in rows:
        stratum = row.pop("stratum")
        row["weight"] *= listed[stratum] / counts[stratum]
    schema = {"caption_key": pl.Binary, "verdict": pl.String, "correction": pl.String, "weight": pl.Float64,
              "text_digest": pl.String}  # fmt: skip
    return pl.DataFrame(rows, schema=schema).unique("caption_key", keep="last", maintain_order=True)


def _verdict(row: Mapping[str, str | None], place: str) -> dict[str, Any] | None:
    """What a line of a sheet says, or None where nothing is filled in."""
    verdict = (row["verdict"] or "").strip().lower()
    correction = (row.get("correction") or "").strip() or None
    if not verdict and not correction:
        return None
    if verdict not in VERDICTS and not (correction and not verdict):
        raise ValueError(f"{place}: verdict {verdict!r}; write keep or drop")
    try:
        key, weight = bytes.fromhex(row["caption_key"] or ""), float(row.get("weight") or 1)
    except ValueError:
        key, weight = b"", 0.0
    if len(key) != KEY_BYTES or not weight > 0:
        raise ValueError(f"{place}: {row['caption_key']!r} is no caption key, or {row.get('weight')!r} no weight")
    digest = (row.get("text_digest") or "").strip() or None
    return {"caption_key": key, "verdict": verdict or "keep", "correction": correction, "weight": weight,
            "text_digest": digest}  # fmt: skip


def still_said(captions: pl.DataFrame, verdicts: pl.DataFrame) -> pl.DataFrame:
    """The verdicts whose captions still have the text that was judged.

    A verdict of a sheet without digests is taken to be of the text as it is now; one of a caption that is not there
    any more is left out.
    """
    now = captions.drop_nulls("text").join(verdicts, on="caption_key", how="semi").select("caption_key", "text")
    digests = pl.Series([text_digest(text) for text in now["text"]], dtype=pl.String)
    known = verdicts.join(now.select("caption_key", _now=digests), on="caption_key", maintain_order="left")
    return known.filter(pl.col("text_digest").is_null() | (pl.col("text_digest") == pl.col("_now"))).drop("_now")


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


def _card(row: dict[str, Any], storage_options: Mapping[str, Any]) -> str:
    said: Callable[[Any], str] = lambda value: html.escape(str(value if value is not None else ""))  # noqa: E731
    fate = said(row["status"]) + (f" ({said(row['reason'])})" if row.get("reason") else "")
    return (
        f'<article data-key="{row["caption_key"].hex()}" data-facts="{said(_facts(row))}">'
        f"{_picture(row, storage_options)}"
        f"<p><b>{said(row.get('source_label'))}</b> {said(row['task'])}/{said(row['language'])}, {fate}</p>"
        f"<blockquote>{said(row['text'])}</blockquote></article>"
    )


def _facts(row: dict[str, Any]) -> str:
    """What a page's verdicts carry on beside the key, as the end of a line of their CSV."""
    line = io.StringIO()
    facts = [*(row.get(name) for name in STRATUM), row.get("weight"), text_digest(row["text"])]
    csv.writer(line, lineterminator="").writerow(facts)
    return line.getvalue()


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
