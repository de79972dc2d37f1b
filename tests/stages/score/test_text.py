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


@pytest.mark.parametrize(
    ("text", "doubled"),
    [("A brown brown dog lies on on a rug.", 2), ("A very, very long rug.", 0), ("He said that that dog barks.", 0)],
)
def test_a_word_written_twice(score: Score, text: str, doubled: int) -> None:
    assert one(score, text)["doubled_words"] == doubled


@pytest.mark.parametrize(
    ("text", "language", "repeats"),
    [
        ("A very, very, very long rug.", "en", False),
        ("A rug which is very very very very long.", "en", True),
        ("A rug which is very, very, very, very long.", "en", True),
        ("圆形非常非常非常非常亮。", "zh", True),
        ("It first grows, then moves to the right, then moves to the left, then moves to the right.", "en", False),
        ("It moves to the left, then moves to the left, then moves to the left, then moves to the left.", "en", True),
        ("它先是向右上方移动，然后向左上方移动，然后向左下方移动，然后保持静止。", "zh", False),
        ("圆形向左移动，然后向左移动，然后向左移动，然后向左移动。", "zh", True),
    ],
)
def test_loops_are_told_from_emphasis_and_lists_of_motions(
    score: Score, text: str, language: str, repeats: bool
) -> None:
    row = one(score, text, language=language)
    limits = {"repeated_4gram": 2, "repeated_phrase": 2, "repeated_words": 2 if language == "en" else 5}
    assert any(row[name] > limit for name, limit in limits.items()) == repeats


@pytest.mark.parametrize(
    ("text", "again"),
    [
        ("A red square sits near the right edge. There is a red square that sits very near the right edge.", 1),
        ("The large red square sits near the right edge. The red square sits near the right edge.", 1),
        ("The man in blue pushes the man in white. The man in white pushes the man in blue.", 0),
        ("The cat jumps onto the red chair by a window. The cat jumps down from the red chair by a window.", 0),
        ("It moves down left and leaves the view, comes back, then moves down left and leaves the view.", 0),
    ],
)
def test_a_clause_said_again_in_nearly_the_same_words(score: Score, text: str, again: int) -> None:
    assert one(score, text)["duplicate_sentences"] == again


def test_few_different_words(score: Score) -> None:
    assert one(score, "The dog is a dog that is a dog.")["distinct_words"] == pytest.approx(1 / 3)
    assert one(score, "A brown dog lies on a rug.")["distinct_words"] == 1.0
    assert one(score, "A dog.")["distinct_words"] is None
    assert one(score, "一只狗。", language="zh")["distinct_words"] is None


@pytest.mark.parametrize(
    "text",
    ["He walks step by step by step down the stairs.", "Up and down, up and down, up and down goes the yo-yo."],
)
def test_what_repeats_by_its_nature_counts_once(score: Score, text: str) -> None:
    row = one(score, text)
    assert (row["repeated_phrase"], row["repeated_words"]) == (1, 0)


def test_what_a_machine_left(score: Score) -> None:
    assert one(score, '{"caption": "A dog."}')["residue_hits"] > 0
    assert one(score, "A dog lies there.<|im_end|>")["residue_hits"] > 0
    assert one(score, "A dog lies there - it sleeps.")["residue_hits"] == 0


@pytest.mark.parametrize("label", ["unknown", "Object.", "none"])
def test_a_label_that_says_nothing_is_missing(score: Score, label: str) -> None:
    assert one(score, label, "label")["missing_fields"] == 1
    assert one(score, "A cup: a vessel.", "explain", label=label, definition="a vessel")["missing_fields"] == 1


def test_a_filtered_reply_is_a_refusal(score: Score) -> None:
    assert one(score, "A dog lies on a rug.", finish_reason="content_filter")["refusal_hits"] == 1
    assert one(score, "A dog lies on a rug.", outcome="refused")["refusal_hits"] == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A dog lies on a rug...", 1.0),
        ("A dog lies on a rug (its tail", 1.0),
        ('A mug with the word "Te', 1.0),
        ("A dog lies on a rug and the.", 1.0),
        ("lies on a rug with its tail curled around it.", 1.0),
        ("A dog that the man points at", 0.5),
        ("This is the chair that she was sitting in", 0.5),
    ],
)
def test_where_a_text_breaks_off(score: Score, text: str, expected: float) -> None:
    assert one(score, text)["cut_off"] == expected


def test_english_without_english_words(score: Score) -> None:
    assert one(score, "Pieni ruskea koira makaa pehmeällä matolla.")["function_words"] == 0
    assert one(score, "A small brown dog lies on a rug.")["function_words"] > 0
    assert one(score, "Brown dog.")["function_words"] is None
    assert one(score, "Malý hnědý pes leží na koberci.")["foreign_share"] > 0.5
    assert one(score, "一隻棕色的小狗趴在地毯上睡覺。", language="zh")["foreign_share"] > 0.1


def test_the_label_of_an_explanation_is_read_too(score: Score) -> None:
    row = one(score, "杯子：一种容器。", "explain", language="zh", label="cup", definition="一种容器")
    assert row["script_share"] == 0.0


def test_one_hedge_drops_a_description_and_not_an_event(score: Score) -> None:
    text = ["It might be a small dog that lies on a rug by the door."]
    assert len(rejected(score, text, "brief")) == 1
    assert rejected(score, text, "stream") == []


def test_speculation_is_flagged_and_kept(score: Score) -> None:
    text = "The man sits at a desk, waiting for his wife to come home."
    assert one(score, text)["speculation_hits"] == 1
    assert rejected(score, [text], "brief") == []


def test_words_about_the_picture_elsewhere(score: Score) -> None:
    assert one(score, "A small dog can be seen in this image.")["meta_hits"] > 0
    assert one(score, "A dog looks at a picture on the wall.")["meta_hits"] == 0


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
