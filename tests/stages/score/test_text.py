"""Rules 1 to 8 on texts that a person would sort the same way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from stages.decide import decide
from stages.policy import load_policy
from stages.score.text import TextStage

Score = Callable[..., pl.DataFrame]
POLICY = Path(__file__).resolve().parents[3] / "configs/policy/default.yaml"
DETAIL = (
    "A small red circle with a smooth surface lies in the upper left part of the meadow. Its edge is sharp and even, "
    "and a thin shadow falls to its right where the grass grows darker."
)


def unit(text: str | None, task: str = "brief", language: str = "en", **more: Any) -> dict[str, Any]:
    return {"text": text, "task": task, "language": language, **more}


def one(score: Score, text: str | None, task: str = "brief", language: str = "en", **more: Any) -> dict[str, Any]:
    return score(TextStage(), [unit(text, task, language, **more)]).row(0, named=True)


def test_missing_fields_counts_what_the_task_requires(score: Score) -> None:
    assert one(score, "A cup: a vessel.", "explain", label="cup", definition="a vessel")["missing_fields"] == 0
    assert one(score, "A cup", "explain", label="cup", definition=" ")["missing_fields"] == 1
    assert one(score, " . ", "brief")["missing_fields"] == 1
    assert one(score, None)["missing_fields"] == 1


def test_no_text_scores_null_not_zero(score: Score) -> None:
    row = one(score, None)
    names = ("mark_hits", "refusal_hits", "words", "hedges", "openers", "repeated_4gram")
    assert {row[name] for name in names} == {None}


@pytest.mark.parametrize(
    ("text", "task", "expected"),
    [
        (DETAIL, "detailed", 0.0),
        (DETAIL[:-12], "detailed", 1.0),
        ("A small red circle on the grass", "brief", 0.5),
        ("A small red circle with a", "brief", 1.0),
        ("A small red circle,", "brief", 1.0),
        ("circle", "label", None),
    ],
)
def test_cut_off(score: Score, text: str, task: str, expected: float | None) -> None:
    assert one(score, text, task)["cut_off"] == expected


def test_a_reply_at_its_token_limit_is_cut_off_whatever_its_end(score: Score) -> None:
    assert one(score, DETAIL, "detailed", finish_reason="length")["cut_off"] == 1.0


def test_marks_leak_but_a_box_may_be_called_a_box(score: Score) -> None:
    assert one(score, "A dog outlined in yellow.")["mark_hits"] == 1
    assert one(score, "A red box stands on the lawn.")["mark_hits"] == 0
    assert one(score, "The dog in the red box is asleep.")["mark_hits"] == 1
    assert one(score, "The slot in the red box is open.", source_label="mailbox")["mark_hits"] == 0
    assert one(score, "The slot in the red box is open.", label="cardboard box")["mark_hits"] == 0
    assert one(score, "The highlighted box is red.", source_label="mailbox")["mark_hits"] > 0


def test_language(score: Score) -> None:
    assert one(score, "一个红色的圆形。")["script_share"] == 0.0
    assert one(score, "A red circle.", language="zh")["script_share"] == 0.0
    assert one(score, "一个红色的圆形。", language="zh")["script_share"] == 1.0
    assert one(score, "Ein roter Kreis liegt auf dem Gras.")["foreign_share"] > 0.4
    assert one(score, "42")["script_share"] is None


def test_the_worst_field_counts_for_language(score: Score) -> None:
    row = one(score, "Cup: a vessel for drinks", "explain", label="cup", definition="一种饮水的容器")
    assert row["script_share"] == 0.0


def test_length_counts_words_in_english_and_characters_in_chinese(score: Score) -> None:
    assert one(score, "A man's well-worn hat.")["words"] == 4
    assert one(score, "一辆SUV停在路边。", language="zh")["words"] == 7
    assert one(score, "fire_hydrant", "label")["label_words"] == 2


@pytest.mark.parametrize(
    ("text", "column", "expected"),
    [
        ("It goes left and it goes left and it goes left and stops.", "repeated_4gram", 3),
        ("a cup of tea a cup of tea a cup of tea", "repeated_4gram", 3),
        ("a cup of tea a cup of tea a cup of tea", "repeated_phrase", 3),
        ("red red red red", "repeated_words", 3),
        ("He runs up and down.", "repeated_phrase", 1),
        ("The cup is red. It is small. The cup is red.", "duplicate_sentences", 1),
    ],
)
def test_repetition(score: Score, text: str, column: str, expected: int) -> None:
    assert one(score, text)[column] == expected


def test_repetition_does_not_reach_over_the_next_caption(score: Score) -> None:
    rows = score(TextStage(), [unit("a red cup")] * 5)
    assert rows["repeated_phrase"].to_list() == [1] * 5
    assert rows["repeated_4gram"].to_list() == [0] * 5


def test_distinct_2_needs_a_long_text(score: Score) -> None:
    assert one(score, "a b a b a b")["distinct_2"] is None
    assert one(score, "the cup and the cat " * 12)["distinct_2"] < 0.2


def test_hedges(score: Score) -> None:
    assert one(score, "It seems to be a dog that may be a wolf, possibly.")["hedge_density"] > 2
    assert one(score, "A man appears to sing.")["hedge_density"] == 2.0
    assert one(score, "可能是一只狗，似乎在睡觉。", language="zh")["hedges"] == 2


def test_openers_are_found_at_the_start_only(score: Score) -> None:
    row = one(score, "In this image, a small dog runs over the grass.")
    assert (row["openers"], row["words_after_opener"]) == (1, 7)
    row = one(score, "A dog looks at the image that shows a cat.")
    assert (row["openers"], row["words_after_opener"]) == (0, None)
    assert one(score, "图中是一只狗。", language="zh")["words_after_opener"] == 3


def rejected(score: Score, texts: list[str], task: str, **more: Any) -> list[str]:
    """The texts that the default policy drops by rules 1 to 8, with their reasons."""
    units = [unit(text, task, **more, definition=text if task == "explain" else None) for text in texts]
    rows = score(TextStage(), units)
    captions = rows.with_columns(
        task=pl.lit(task), language=pl.lit("en"), event_index=pl.lit(0), digest=pl.col("input_digest"),
        region_key=pl.col("caption_key"),
    )  # fmt: skip
    decided = decide(captions, load_policy(POLICY)).with_columns(text=pl.Series(texts)).filter(pl.col("status") != "ok")
    return [f"{reasons}: {text}" for reasons, text in decided.select("reasons", "text").iter_rows()]


def test_human_event_captions_pass(score: Score, shared_data: Path) -> None:
    lines = (shared_data / "pam_eval/input_full.jsonl").read_text().splitlines()
    texts = [event["gt"] for line in lines for event in json.loads(line)["annotations"]]
    lost = rejected(score, texts, "stream")
    print(f"\n{len(lost)} of {len(texts)} human event captions rejected:", *lost, sep="\n")
    assert len(texts) == 945
    assert len(lost) < 0.01 * len(texts), lost


def test_dictionary_definitions_pass(score: Score, shared_data: Path) -> None:
    categories = json.loads((shared_data / "lvis/lvis_val_100.json").read_text())["categories"]
    texts = [category["def"] for category in categories]
    lost = rejected(score, texts, "explain", label="thing")
    print(f"\n{len(lost)} of {len(texts)} definitions rejected:", *lost, sep="\n")
    assert len(lost) < 0.01 * len(texts), lost
