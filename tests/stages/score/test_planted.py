"""Rules 1 to 8 and the default policy against planted defects: those of the shapes world, and phrasings kept apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from schemas.caption import Language
from stages.decide import decide
from stages.policy import load_policy
from stages.score.text import TextStage
from stages.shapes.spoil import CAPTION_DEFECTS, plant_caption_defects
from stages.teachers import words
from stages.teachers.measure import Facts
from stages.teachers.protocol import SubjectEvent
from stages.yields import precision_recall

Score = Callable[..., pl.DataFrame]
Unit = dict[str, Any]
POLICY = load_policy(Path(__file__).resolve().parents[3] / "configs/policy/default.yaml")
HELD_OUT = yaml.safe_load((Path(__file__).parent / "phrasings.yaml").read_text("utf-8"))
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "brown", "white", "grey", "black")
NAMES: dict[Language, tuple[str, ...]] = {
    "en": ("circle", "square", "triangle", "ring", "star", "traffic light", "dog", "cardboard box"),
    "zh": ("圆形", "正方形", "三角形", "圆环", "星形", "红绿灯", "狗", "纸箱"),
}


def facts(rng: np.random.Generator) -> Facts:
    picked = rng.choice(COLOURS, size=int(rng.integers(1, 4)), replace=False)
    return Facts(
        colours=tuple((str(colour), 0.5 / (place + 1)) for place, colour in enumerate(picked)),
        shape=str(rng.choice(["round", "oval", "square", "rectangular", "triangular", "compact", "irregular"])),
        texture=str(rng.choice(["plain", "striped", "patterned", "textured"])),
        size=str(rng.choice(["small", "medium", "large"])),
        row=str(rng.choice(["top", "middle", "bottom"])),
        column=str(rng.choice(["left", "centre", "right"])),
        area_share=float(rng.uniform(0.01, 0.3)),
        touches_edge=bool(rng.random() < 0.3),
    )


def told(seen: Facts, name: str, spans: tuple[SubjectEvent, ...], first: bool, task: str, language: Language) -> str:
    if task == "brief":
        return words.brief(seen, name, language)
    if task == "detailed":
        return words.detailed(seen, name, language)
    if task == "video":
        return words.video(seen, name, spans, language)
    return words.event(seen, name, spans[0], first, language)


def measured(seed: int, count: int) -> Iterator[Unit]:
    """Captions of the measured teacher in all sentence tasks and both languages."""
    rng = np.random.default_rng(seed)
    motions = ["still", "moving right", "moving up left", "turning", "growing", "changing colour", "absent"]
    for _ in range(count):
        seen, language = facts(rng), ("en", "zh")[rng.integers(2)]
        name = NAMES[language][rng.integers(len(NAMES[language]))]
        picked = [str(motion) for motion in rng.choice(motions, 3, replace=False)]
        spans = tuple(
            SubjectEvent(i, 1.5 * i, 1.5 * i + 1.5, motion == "absent", motion) for i, motion in enumerate(picked)
        )
        task = ("brief", "detailed", "video", "stream")[rng.integers(4)]
        first = bool(rng.random() < 0.5)
        text = told(seen, name, spans, first, task, language)
        yield {"text": text, "task": task, "language": language, "source_label": name}


def decided(score: Score, units: list[Unit]) -> pl.DataFrame:
    rows = score(TextStage(), units).with_columns(
        task=pl.Series([unit["task"] for unit in units]),
        language=pl.Series([unit["language"] for unit in units]),
        event_index=pl.lit(-1),
        digest=pl.col("input_digest"),
        region_key=pl.col("caption_key"),
    )
    return decide(rows, POLICY).with_columns(text=pl.Series([unit["text"] for unit in units]))


def explain(decisions: pl.DataFrame, truth: pl.DataFrame) -> list[Any]:
    """What was decided wrongly, for the message of a failing test."""
    both = decisions.join(truth, on="caption_key", how="left")
    wrong = both.filter((pl.col("status") == "ok") == pl.col("defect").is_not_null())
    return wrong.select("defect", "reasons", "text").head(20).rows()


def test_measured_captions_pass_as_they_are(score: Score) -> None:
    units = list(measured(seed=1, count=1500))
    rows = decided(score, units)
    lost = rows.filter(pl.col("status") != "ok").select("reasons", "text")
    assert lost.rows() == []


@pytest.mark.parametrize("seed", [7, 20261122])
def test_planted_defects_are_found_and_nothing_else(score: Score, seed: int) -> None:
    units = list(measured(seed, count=1500))
    languages = [unit["language"] for unit in units]
    texts, kinds = plant_caption_defects([unit["text"] for unit in units], languages, seed=seed, share=0.35)
    rows = decided(score, [{**unit, "text": text} for unit, text in zip(units, texts, strict=True)])
    truth = rows.select("caption_key", defect=pl.Series(kinds, dtype=pl.String)).drop_nulls()
    table = precision_recall(rows, truth)
    overall = table.row(0, named=True)
    wrong = explain(rows, truth)
    assert set(table["defect"]) == {"overall", *CAPTION_DEFECTS}
    assert overall["precision"] >= 0.98, wrong
    assert overall["recall"] >= 0.98, wrong
    assert table["recall"].min() >= 0.95, wrong


def test_phrasings_that_no_list_was_made_from(score: Score) -> None:
    units, kinds = [], []
    for language, groups in HELD_OUT.items():
        for defect, texts in groups.items():
            units += [{"text": text, "task": "stream", "language": language} for text in texts]
            kinds += [None if defect == "clean" else defect] * len(texts)
    rows = decided(score, units)
    truth = rows.select("caption_key", defect=pl.Series(kinds, dtype=pl.String)).drop_nulls()
    table = precision_recall(rows, truth)
    overall = table.row(0, named=True)
    assert overall["precision"] >= 0.98, explain(rows, truth)
    assert overall["recall"] >= 0.98, explain(rows, truth)
