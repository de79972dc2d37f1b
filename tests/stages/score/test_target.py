"""Whether captions speak of their own target: rules 9, 10, 15 and 16 by words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import polars as pl
import pytest

from stages.score.target import TargetStage

Score = Callable[..., pl.DataFrame]


def unit(text: str | None, **more: Any) -> dict[str, Any]:
    return {"text": text, "task": "brief", "source_label": "dog", "neighbours": ["cat", "tennis_racket"], **more}


def one(score: Score, text: str | None, **more: Any) -> dict[str, Any]:
    return score(TargetStage(), [unit(text, **more)]).row(0, named=True)


@pytest.mark.parametrize(
    ("label", "source_label", "expected"),
    [
        ("dog", "dog", 1),
        ("Brown puppy", "dog", 1),
        ("police car", "car_(automobile)", 1),
        ("signal", "traffic light", 1),
        ("red light", "traffic light", 1),
        ("cat", "dog", 0),
        ("carpet", "car", 0),
        ("dog", None, None),
    ],
)
def test_label_matches(score: Score, label: str, source_label: str | None, expected: int | None) -> None:
    row = one(score, label, task="label", source_label=source_label)
    assert row["label_matches"] == expected


def test_synonyms_of_the_source_count(score: Score) -> None:
    hints = [{"kind": "label", "language": "en", "text": "hound"}]
    assert one(score, "Hound", task="label", source_label="wolfhound", hints=hints)["label_matches"] == 1


def test_chinese_names(score: Score) -> None:
    assert one(score, "小狗", language="zh", task="label")["label_matches"] == 1
    assert one(score, "汽车", language="zh", task="label")["label_matches"] == 0
    assert one(score, "某物", language="zh", task="label", source_label="unheard of")["label_matches"] is None


@pytest.mark.parametrize(
    ("text", "own", "near", "share"),
    [
        ("A brown dog runs.", 1, 0, 0.0),
        ("Two cats sleep on a rug.", 0, 1, 1.0),
        ("A dog beside a cat.", 1, 1, 0.5),
        ("A tennis racket leans on the wall.", 0, 1, 1.0),
        ("A catalogue on a desk.", 0, 0, None),
    ],
)
def test_neighbours(score: Score, text: str, own: int, near: int, share: float | None) -> None:
    row = one(score, text)
    assert (row["target_named"], row["neighbours_named"], row["neighbour_share"]) == (own, near, share)


def test_a_neighbour_of_the_same_name_is_no_neighbour(score: Score) -> None:
    assert one(score, "A puppy runs.", neighbours=["puppy", "cat"])["neighbours_named"] == 0


def test_no_label_no_score(score: Score) -> None:
    row = one(score, "A cat.", source_label=None)
    assert (row["target_named"], row["neighbour_share"]) == (None, None)


def sibling(text: str, task: str = "detailed", language: str = "en") -> dict[str, Any]:
    return {"task": task, "language": language, "event_index": -1, "text": text}


@pytest.mark.parametrize(
    ("text", "others", "share"),
    [
        ("A red dog runs.", ["A large blue dog runs.", "The dog is red."], 0.5),
        ("A red and white dog runs.", ["A white dog runs."], 0.0),
        ("A crimson dog runs.", ["A red dog runs."], 0.0),
        ("A red dog runs.", ["A dog runs over green grass."], None),
        ("A dog runs.", ["A red dog runs."], None),
        ("A dog next to a red wall.", ["A blue dog."], None),
    ],
)
def test_sibling_colours(score: Score, text: str, others: list[str], share: float | None) -> None:
    row = one(score, text, siblings=[sibling(other) for other in others])
    assert row["colour_conflict_share"] == share


def test_siblings_in_another_language_and_the_text_itself_do_not_count(score: Score) -> None:
    siblings = [sibling("一只蓝色的狗。", language="zh"), sibling("A blue dog.", task="brief")]
    assert one(score, "A red dog runs.", siblings=siblings)["colour_conflict_share"] is None


def test_a_batch_without_siblings_keeps_all_its_rows(score: Score) -> None:
    rows = score(TargetStage(), [unit("A red dog runs.", siblings=[]) for _ in range(3)])
    assert rows["colour_conflict_share"].to_list() == [None, None, None]


@pytest.mark.parametrize(
    ("text", "language", "excess"),
    [
        ("A dog runs.", "en", 0),
        ("Two brown dogs run.", "en", 1),
        ("A group of dogs.", "en", 2),
        ("A dog and two cats.", "en", 0),
        ("一只狗。", "zh", 0),
        ("三只棕色的狗。", "zh", 2),
        ("A cat.", "en", None),
    ],
)
def test_counts(score: Score, text: str, language: str, excess: int | None) -> None:
    assert one(score, text, language=language)["count_excess"] == excess


def test_crowds_and_plural_labels_may_be_many(score: Score) -> None:
    assert one(score, "Two dogs.", is_crowd=True)["count_excess"] is None
    assert one(score, "Two skis.", source_label="skis")["count_excess"] is None
