"""Whether captions speak of their own target: rules 9, 10, 15 and 16 by words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from schemas.caption import Language
from schemas.yaml import load_yaml
from stages.score.mentions import target_colours
from stages.score.target import TargetStage
from stages.score.words.tables import colours

Score = Callable[..., pl.DataFrame]
CASES = load_yaml((Path(__file__).parent / "target_cases.yaml").read_text("utf-8"))
LANGUAGES: tuple[Language, ...] = ("en", "zh")


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


@pytest.mark.parametrize("language", LANGUAGES)
def test_colours_are_those_said_of_the_target(language: Language) -> None:
    rows = [{"source_label": label, "text": text, "hints": None} for label, text, _ in CASES["colours"][language]]
    hints = pl.List(pl.Struct({"kind": pl.String, "language": pl.String, "text": pl.String}))
    told = target_colours(pl.DataFrame(rows, schema_overrides={"hints": hints}), language)
    names = [{name for place, name in enumerate(colours()) if bits >> place & 1} for bits in told]
    wrong = [(*case, said) for case, said in zip(CASES["colours"][language], names, strict=True)
             if set(case[2].split()) != said]  # fmt: skip
    assert wrong == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_several_are_told_from_one_of_several(score: Score, language: Language) -> None:
    cases = CASES["counts"][language]
    units = [unit(text, source_label=label, language=language) for label, text, _ in cases]
    excess = score(TargetStage(), units)["count_excess"]
    assert [case for case, found in zip(cases, excess, strict=True) if bool(found) != bool(case[2])] == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_subject_is_the_neighbour_only_where_the_first_noun_phrase_is(score: Score, language: Language) -> None:
    cases = CASES["subjects"][language]
    units = [
        unit(text, source_label=label, neighbours=near.split(", "), language=language) for label, near, text, _ in cases
    ]
    found = score(TargetStage(), units)["subject_is_neighbour"]
    assert [case for case, about in zip(cases, found, strict=True) if about != case[3]] == []


def test_a_definition_speaks_of_a_class(score: Score) -> None:
    row = one(score, "Two dogs of one litter.", task="explain")
    assert (row["target_named"], row["count_excess"]) == (1, None)


@pytest.mark.parametrize(
    ("label", "source_label", "matches", "contradicts"),
    [
        ("elephant", "dog", 0, 1),
        ("cat", "dog", 0, 1),
        ("tennis racket", "dog", 0, 1),
        ("animal", "dog", 0, None),
        ("terrier", "dog", 1, 0),
        ("cup", "mug", 1, 0),
        ("sedan", "truck", 0, 1),
        ("van", "truck", 1, 0),
        ("necklace", "jersey", 0, None),
        ("cat", "jersey", 0, 1),
        (None, "dog", None, None),
    ],
)
def test_a_label_contradicts_where_it_is_known_to_be_something_else(
    score: Score, label: str | None, source_label: str, matches: int | None, contradicts: int | None
) -> None:
    row = one(score, "A dog.", label=label, source_label=source_label)
    assert (row["label_matches"], row["label_contradicts"]) == (matches, contradicts)


@pytest.mark.parametrize(
    ("text", "others", "count", "name"),
    [
        ("A red dog runs.", ["Two dogs run.", "A dog."], 0.5, 0.0),
        ("Three dogs run.", ["Two dogs run."], 0.0, 0.0),
        ("A dog runs.", ["A cat runs.", "A puppy runs."], 0.0, 0.5),
        ("A thing runs.", ["A cat runs."], None, None),
    ],
)
def test_sibling_counts_and_names(
    score: Score, text: str, others: list[str], count: float | None, name: float | None
) -> None:
    row = one(score, text, siblings=[sibling(other) for other in others])
    assert (row["count_conflict_share"], row["name_conflict_share"]) == (count, name)


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
