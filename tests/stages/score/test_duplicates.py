"""Near and exact copies among the captions of a corpus."""

from __future__ import annotations

import hashlib
from typing import Any

import polars as pl
import pytest

from stages.score.duplicates import DuplicatesConfig, corpus_scores

LONG = (
    "A large red circle with a smooth surface lies in the upper left part of the meadow next to a grey stone and "
    "throws a short shadow over the wet grass while two birds sit on the fence behind it and look towards the house"
)


def key(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def corpus(texts: list[str | None], **more: Any) -> pl.DataFrame:
    rows = [
        {"caption_key": key(f"c{i}"), "region_key": key(f"r{i}"), "digest": key(f"d{i}"), "status": "ok",
         "task": "detailed", "language": "en", "text": text, **more}
        for i, text in enumerate(texts)
    ]  # fmt: skip
    return pl.DataFrame(rows)


def scores(frame: pl.DataFrame, config: DuplicatesConfig | None = None) -> pl.DataFrame:
    rows = pl.DataFrame(pl.from_arrow(corpus_scores(frame, config or DuplicatesConfig())))
    return frame.select("caption_key").join(rows, on="caption_key", how="left", maintain_order="left")


def test_exact_copies_are_ranked_whatever_their_case_and_punctuation() -> None:
    found = scores(corpus([LONG, LONG.upper() + "!", LONG, "A dog runs over the grass."]))
    assert found["exact_copies"].to_list() == [2, 2, 2, 0]
    assert sorted(found["exact_rank"].to_list()[:3]) == [0, 1, 2]
    assert found["near_similarity"].to_list().count(1.0) == 2


def test_near_copies_join_a_group_and_others_do_not() -> None:
    other = LONG.replace("two birds", "three birds")
    different = (
        "A brown dog with a white chest runs after a tennis ball, slips on the wet stones and barks at the waves."
    )
    found = scores(corpus([LONG, other, different]), DuplicatesConfig(threshold=0.7))
    assert found["near_copies"].to_list() == [1, 1, 0]
    assert sorted(found["near_rank"].to_list()[:2]) == [0, 1]
    assert found["exact_copies"].to_list() == [0, 0, 0]
    assert max(value for value in found["near_similarity"].to_list() if value is not None) == pytest.approx(
        0.85, abs=0.13
    )


def test_languages_and_tasks_are_compared_apart_and_labels_not_at_all() -> None:
    frames = [corpus([LONG]), corpus([LONG], task="brief"), corpus(["dog"], task="label")]
    frame = pl.concat(frames).with_columns(pl.Series("caption_key", [key("a"), key("b"), key("c")]))
    found = scores(frame)
    assert found["exact_copies"].to_list() == [0, 0, None]


def test_chinese() -> None:
    text = "一个红色的圆形位于草地的左上方，表面平滑，旁边有一块灰色的石头，后面的篱笆上站着两只鸟。"
    found = scores(corpus([text, text.replace("两只", "三只"), "一只狗在草地上追着网球奔跑。"], language="zh"),
                   DuplicatesConfig(threshold=0.6))  # fmt: skip
    assert found["near_copies"].to_list() == [1, 1, 0]


def test_ranks_do_not_depend_on_the_order_of_rows() -> None:
    frame = corpus([LONG] * 6 + [LONG.replace("red", "blue")] * 3)
    found = scores(frame)
    again = scores(frame.sample(fraction=1, shuffle=True, seed=5))
    columns = ["caption_key", "exact_rank", "near_rank", "near_copies"]
    assert found.select(columns).sort("caption_key").equals(again.select(columns).sort("caption_key"))


def test_captions_that_are_not_ok_take_no_part() -> None:
    frame = corpus([LONG, LONG]).with_columns(status=pl.Series(["ok", "failed"]))
    found = scores(frame)
    assert found["exact_copies"].to_list() == [0, None]


def test_an_empty_corpus() -> None:
    assert len(corpus_scores(corpus([LONG]).clear(), DuplicatesConfig())) == 0
