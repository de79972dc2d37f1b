"""Which regions the report shows, and how each looks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from pipeline.report.counts import Tables
from pipeline.report.data import CaptionCard, EventBar, Picture, RegionCard
from pipeline.report.pictures import thumbnail
from schemas.caption import TASKS
from schemas.geometry import Rle
from stages.base import UnitError
from stages.media.images import load_image
from stages.media.video import open_video

_SIDE = 360
_CELL = 180
_CELLS = 6
_FACTS = ("predicted_iou", "stability", "seed_agreement", "area_share", "parts", "backend", "verdict")


def region_cards(
    tables: Tables, most: int, seed: int = 0, storage_options: dict[str, Any] | None = None
) -> list[RegionCard]:
    """Up to `most` regions: half kept, half rejected, spread evenly over sources and first reasons."""
    if "regions" not in tables or "media" not in tables:
        return []
    fates = _fates(tables)
    chosen = _spread(fates, most, seed)
    regions_chosen = tables["regions"].join(chosen, on="region_key", how="semi")
    by_key = {region["region_key"]: region for region in regions_chosen.to_dicts()}
    parts = {name: _by_region(tables.get(name), chosen) for name in ("masks", "events", "captions", "decisions")}
    wanted = regions_chosen.select("media_key").drop_nulls()
    media_of = _rows_by(tables["media"].join(wanted, on="media_key", how="semi"), "media_key")
    cards = []
    for key in chosen["region_key"]:
        region = by_key[key]
        media = media_of.get(region["media_key"], [None])[0]
        cards.append(_card(region, media, {name: found.get(key, []) for name, found in parts.items()}, storage_options))
    return cards


def _fates(tables: Tables) -> pl.DataFrame:
    """Regions that reached refine: region_key, source, kept, why (the rarest of the reasons against its captions)."""
    regions = tables["regions"].select("region_key", "source", "status").unique("region_key")
    masks = tables.get("masks")
    if masks is None or masks.is_empty():
        return regions.filter(pl.col("status") == "ok").select(
            "region_key", "source", kept=pl.lit(False), why=pl.lit("not refined yet")
        )
    bad = masks.filter(pl.col("status") != "ok").select("region_key", mask_reason=pl.coalesce("reason", "status"))
    reached = regions.join(masks.select("region_key").unique(), on="region_key", how="semi")
    reached = reached.join(bad.unique("region_key"), on="region_key", how="left")
    judged = tables.get("decisions", tables.get("captions"))
    if judged is None or judged.is_empty():
        kept = pl.lit(False)
        why = pl.coalesce("mask_reason", pl.lit("not captioned yet"))
        return reached.select("region_key", "source", kept=kept, why=why)
    each = judged.group_by("region_key").agg(kept=(pl.col("status") == "ok").any())
    each = each.join(_rarest_reasons(judged), on="region_key", how="left")
    joined = reached.join(each, on="region_key", how="left")
    return joined.select(
        "region_key",
        "source",
        kept=pl.col("kept").fill_null(False),
        why=pl.coalesce("mask_reason", "why", pl.lit("")),
    )


def _rarest_reasons(judged: pl.DataFrame) -> pl.DataFrame:
    """region_key and `why`, so that a reason that always comes with a frequent one is shown as well."""
    first = pl.concat_list("reason").list.drop_nulls()
    named = pl.when(pl.col("reasons").list.len() > 0).then("reasons").otherwise(first) if "reasons" in judged else first
    given = judged.select("region_key", why=named).explode("why", empty_as_null=True).drop_nulls("why")
    counted = given.with_columns(often=pl.len().over("why")).sort("often", "why")
    return counted.group_by("region_key", maintain_order=True).agg(pl.col("why").first())


def _spread(fates: pl.DataFrame, most: int, seed: int) -> pl.DataFrame:
    """Takes turns over (source, reason) groups within kept and rejected; the order inside a group is seeded."""
    order = pl.col("region_key").hash(seed)
    turns = fates.sort(order, "region_key").with_columns(turn=pl.int_range(pl.len()).over("kept", "source", "why"))
    turns = turns.sort("turn", "source", "why", "region_key")
    kept, rejected = turns.filter(pl.col("kept")), turns.filter(~pl.col("kept"))
    half = most // 2
    from_kept = min(len(kept), max(half, most - len(rejected)))
    picked = pl.concat([kept.head(from_kept), rejected.head(most - from_kept)])
    return picked.sort("turn", "source", "why", "region_key").select("region_key")


def _by_region(frame: pl.DataFrame | None, chosen: pl.DataFrame) -> dict[bytes, list[dict[str, Any]]]:
    return {} if frame is None else _rows_by(frame.join(chosen, on="region_key", how="semi"), "region_key")


def _rows_by(frame: pl.DataFrame, name: str) -> dict[bytes, list[dict[str, Any]]]:
    found: dict[bytes, list[dict[str, Any]]] = {}
    for row in frame.to_dicts():
        found.setdefault(row[name], []).append(row)
    return found


def _card(
    region: dict[str, Any], media: dict[str, Any] | None, parts: dict[str, list[dict[str, Any]]], options: Any
) -> RegionCard:
    masks = sorted(parts["masks"], key=lambda mask: mask["segment"])
    first = masks[0] if masks else None
    decisions = {row["caption_key"]: row for row in parts["decisions"]}
    captions = [_caption(row, decisions.get(row["caption_key"])) for row in parts["captions"]]
    captions.sort(key=lambda card: (TASKS.index(card.task), card.language, card.event_index))  # type: ignore[arg-type]
    reasons = {reason for card in captions for reason in card.reasons}
    if first is not None and first["status"] != "ok":
        reasons.add(first["reason"] or first["status"])
    events = [
        EventBar(
            index=row["event_index"],
            start_s=row["start_s"],
            end_s=row["end_s"],
            absent=row["absent"],
            motion=row["motion"] or "",
        )
        for row in sorted(parts["events"], key=lambda row: row["event_index"])
    ]
    picture, storyboard, note = _pictures(region, media, masks, options)
    return RegionCard(
        region_key=region["region_key"].hex(),
        source=region["source"],
        source_id=region["source_id"],
        label=region["label"] or "",
        kind=region["kind"],
        kept=any(card.status == "ok" for card in captions),
        facts=_facts(first) | ({"picture": note} if note else {}),
        tasks=sorted({card.task for card in captions}),
        reasons=sorted(reasons),
        picture=picture,
        storyboard=storyboard,
        duration_s=(media or {}).get("duration_s") or max((event.end_s for event in events), default=0.0),
        events=events,
        captions=captions,
    )


def _facts(mask: dict[str, Any] | None) -> dict[str, str]:
    shown = {} if mask is None else {name: mask[name] for name in _FACTS if mask[name] is not None}
    return {name: f"{value:.3f}" if isinstance(value, float) else str(value) for name, value in shown.items()}


def _caption(row: dict[str, Any], decision: dict[str, Any] | None) -> CaptionCard:
    judged = row if row["status"] != "ok" or decision is None else decision
    reasons = [*(decision or {}).get("reasons", [])] or ([judged["reason"]] if judged["reason"] else [])
    return CaptionCard(
        task=row["task"],
        language=row["language"],
        event_index=row["event_index"],
        text=row["text"] or row["message"] or "",
        status=judged["status"],
        reasons=reasons,
        outcome=row["outcome"],
    )


def _pictures(
    region: dict[str, Any], media: dict[str, Any] | None, masks: Sequence[dict[str, Any]], options: Any
) -> tuple[Picture | None, list[Picture], str]:
    """The thumbnail, the storyboard of a video, and why there is none."""
    if media is None:
        return None, [], "the media is not in the run"
    first = masks[0] if masks else region
    frames = {frame["frame_index"]: frame for mask in masks for frame in mask["frames"] or []}
    seen = [index for index, frame in sorted(frames.items()) if frame["visible"]] or [first["frame_index"]]
    cells = sorted({seen[int(i)] for i in np.linspace(0, len(seen) - 1, _CELLS).round()})
    video = media["kind"] == "video"
    try:
        pixels = _frames(media, [first["frame_index"], *cells], options) if video else []
        main = pixels[0] if video else load_image(media["uri"], options)
    except UnitError as error:
        return None, [], f"{error.reason}: {error.message}"
    except Exception as error:  # stores raise what their clients raise; one of many pictures must not cost the page
        return None, [], f"{type(error).__name__}: {error}"
    note = f"{first['time_s']:.2f} s" if video else ""
    board = [_cell(frames.get(index), index, shown) for index, shown in zip(cells, pixels[1:], strict=False)]
    return thumbnail(main, _SIDE, _rle(first["mask"]), region["box"], note=note), board, ""


def _frames(media: dict[str, Any], indices: Sequence[int], options: Any) -> Sequence[Any]:
    video = open_video(media["uri"], media["fps"], storage_options=options)
    try:
        return list(video.frames(indices))
    finally:
        video.close()


def _cell(frame: dict[str, Any] | None, index: int, pixels: Any) -> Picture:
    mask = None if frame is None else frame["mask"]
    return thumbnail(pixels, _CELL, _rle(mask), note=_when(frame, index))


def _when(frame: dict[str, Any] | None, index: int) -> str:
    return f"frame {index}" if frame is None else f"{frame['time_s']:.2f} s"


def _rle(mask: dict[str, Any] | None) -> Rle | None:
    return None if mask is None else Rle.model_validate(mask)
