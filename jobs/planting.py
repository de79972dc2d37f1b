"""Defects planted in the captions of a drawn corpus, of every kind that its rules are there to find."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import polars as pl

from schemas.caption import Language
from schemas.keys import digest_value
from stages.score.names import target_names
from stages.shapes.plant import Said, absent_colours, kinds_for, load_phrasings, plant

TASKS = ("label", "brief", "detailed", "video", "stream")


def spoilt(
    captions: pl.DataFrame,
    regions: pl.DataFrame,
    events: pl.DataFrame,
    seed: int,
    share: float,
    tasks: Sequence[str] = TASKS,
) -> Iterator[tuple[bytes, str, dict[str, Any]]]:
    """The key of each spoilt caption, its defect, and the columns that change.

    `captions` are rows of distill, `regions` have region_key and source_label, `events` region_key, event_index,
    motion and absent. Kinds take turns, the rarest first, until a `share` of the captions is spoilt, so that each that
    applies is planted about as often; the seed says where. Of a stream only the last event is spoilt, since a text
    that changes is the history of the next event.
    """
    phrasings = load_phrasings()
    told = {row["caption_key"]: said for row, said in _told(captions, regions, events, tasks)}
    fit = {key: kinds_for(said) for key, said in told.items()}
    drawn = sorted(told, key=lambda key: digest_value([seed, key]))
    possible = Counter(kind for kinds in fit.values() for kind in kinds)
    waiting = {kind: deque(key for key in drawn if kind in fit[key]) for kind in possible}
    left, spent = round(share * len(told)), set[bytes]()
    while left and any(waiting.values()):
        for kind in sorted(waiting, key=lambda kind: (possible[kind], kind)):
            while waiting[kind] and waiting[kind][0] in spent:
                waiting[kind].popleft()
            if waiting[kind] and left:
                key = waiting[kind].popleft()
                spent.add(key)
                left -= 1
                rng = np.random.default_rng(int.from_bytes(digest_value([seed, key]), "little"))
                changed = plant(told[key], kind, phrasings, rng)
                yield key, kind, changed | ({"label": changed["text"]} if kind == "wrong_label" else {})


def _told(
    captions: pl.DataFrame, regions: pl.DataFrame, events: pl.DataFrame, tasks: Sequence[str]
) -> Iterator[tuple[dict[str, Any], Said]]:
    """Captions of these tasks that name a target, and what a planter may use of each."""
    motion = pl.when("absent").then(pl.lit("absent")).otherwise("motion").alias("motion")
    moving = events.select("region_key", "event_index", motion)
    rows = (
        captions.filter((pl.col("status") == "ok") & pl.col("text").is_not_null())
        .join(regions.select("region_key", "source_label"), on="region_key", how="left", maintain_order="left")
        .join(moving, on=["region_key", "event_index"], how="left", maintain_order="left")
        .with_columns(last=pl.col("event_index") == pl.col("event_index").max().over("region_key", "task", "language"))
    )
    whole = [row for row in rows.iter_rows(named=True) if row["task"] in tasks and row["last"]]
    by_media: dict[tuple[bytes, str, str], list[dict[str, Any]]] = {}
    for row in whole:
        by_media.setdefault((row["media_key"], row["task"], row["language"]), []).append(row)
    for row in whole:
        name = _name(row["source_label"], row["language"])
        if not name:
            continue
        others = [
            (other["text"], called)
            for other in by_media[row["media_key"], row["task"], row["language"]]
            if (called := _name(other["source_label"], row["language"])) and called != name
        ]
        text, other = others[0] if others else (None, None)
        yield row, Said(task=row["task"], language=row["language"], text=row["text"], name=name, neighbour=text,
                        other_label=other, colours=absent_colours(row["text"], row["language"]),
                        history=row["history"], motion=row["motion"],
                        reordered=_reordered(row["text"]))  # fmt: skip


def _name(label: str | None, language: Language) -> str | None:
    return next(iter(target_names(label, (), language).all), None)


def _reordered(text: str) -> str | None:
    """What the measured teacher tells of a whole video in English, backwards; None where it tells too little."""
    lead, first, told = text.rstrip(".").partition("it first ")
    motions = told.split(", then ")
    if not first or len(motions) < 4 or len(set(motions)) < len(motions):
        return None
    return lead + first + ", then ".join(reversed(motions)) + "."
