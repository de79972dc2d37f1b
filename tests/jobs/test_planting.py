"""Defects planted in a corpus: every kind that applies, about as often, and nowhere where they would spoil more."""

from __future__ import annotations

from collections import Counter
from typing import Any

import polars as pl

from jobs.planting import spoilt
from schemas.caption import NO_EVENT
from schemas.keys import digest_value
from stages.shapes.plant import RULES
from stages.teachers import words
from stages.teachers.measure import Facts
from stages.teachers.protocol import SubjectEvent

FACTS = Facts((("red", 0.9),), "round", "plain", "small", "top", "left", 0.04, False)
MOTIONS = ("still", "moving right", "moving up", "moving left", "turning")


def world() -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Photos of a circle and a star each, and clips of five events; captions, regions and events."""
    rows: list[dict[str, Any]] = []
    regions: list[dict[str, Any]] = []
    events: list[dict[str, Any]] = []
    for number in range(60):
        for name in ("circle", "star"):
            key = digest_value([number, name])
            regions.append({"region_key": key, "source_label": name})
            for task, text in (("label", name), ("brief", words.brief(FACTS, name, "en")),
                               ("detailed", words.detailed(FACTS, name, "en"))):  # fmt: skip
                rows.append(row(key, number, task, NO_EVENT, text))
    for number in range(100, 130):
        key, history = digest_value([number]), None
        regions.append({"region_key": key, "source_label": "ring"})
        turns = [MOTIONS[(number + place) % len(MOTIONS)] for place in range(len(MOTIONS))]
        spans = tuple(SubjectEvent(i, i, i + 1.0, False, motion) for i, motion in enumerate(turns))
        for span in spans:
            text = words.event(FACTS, "ring", span, span.event_index == 0, "en")
            rows.append(row(key, number, "stream", span.event_index, text, history))
            events.append({"region_key": key, "event_index": span.event_index, "motion": span.motion, "absent": False})
            history = text
        rows.append(row(key, number, "video", NO_EVENT, words.video(FACTS, "ring", spans, "en")))
    schema = {"history": pl.String}
    return pl.DataFrame(rows, schema_overrides=schema), pl.DataFrame(regions), pl.DataFrame(events)


def row(region: bytes, media: int, task: str, event: int, text: str, history: str | None = None) -> dict[str, Any]:
    return {"caption_key": digest_value([region, task, event]), "region_key": region, "media_key": bytes([media]) * 16,
            "task": task, "language": "en", "event_index": event, "text": text, "history": history,
            "status": "ok"}  # fmt: skip


def test_every_kind_that_applies_takes_its_turn() -> None:
    captions, regions, events = world()
    planted = list(spoilt(captions, regions, events, seed=3, share=0.2))
    counts = Counter(kind for _, kind, _ in planted)
    apart = {"broken_mask", "near_duplicate", "absence_unsaid"}
    assert set(counts) == set(RULES) - apart
    assert max(counts.values()) - min(counts.values()) <= 2
    assert len({key for key, *_ in planted}) == len(planted) == round(0.2 * (60 * 2 * 3 + 30 * 2))
    texts = dict(captions.select("caption_key", "text").iter_rows())
    assert all(new["text"] != texts[key] for key, _, new in planted)


def test_history_stays_what_the_next_event_was_told() -> None:
    captions, regions, events = world()
    spent = {key for key, *_ in spoilt(captions, regions, events, seed=3, share=1.0)}
    touched = captions.filter(pl.col("caption_key").is_in(list(spent)) & (pl.col("task") == "stream"))
    assert set(touched["event_index"]) == {len(MOTIONS) - 1}


def test_a_wrong_label_is_also_the_label_of_its_caption() -> None:
    captions, regions, events = world()
    labels = [new for _, kind, new in spoilt(captions, regions, events, seed=3, share=0.2) if kind == "wrong_label"]
    assert labels
    assert all(new["label"] == new["text"] for new in labels)


def test_the_same_seed_plants_the_same() -> None:
    captions, regions, events = world()
    shuffled = captions.sample(fraction=1.0, shuffle=True, seed=1)
    one, two = (sorted(spoilt(frame, regions, events, 3, 0.1, ("brief",)), key=lambda found: found[0])
                for frame in (captions, shuffled))  # fmt: skip
    assert one == two
