"""Selection: caps, rules and guards, each with its reason; the draw is stable as data is added."""

from __future__ import annotations

from collections import Counter
from typing import Any

import polars as pl
import pytest
from pydantic import ValidationError

from schemas.arrow import from_table
from schemas.region import Selection
from stages.select import SelectConfig, select, selection_yield


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def region(number: int, media: int = 0, **fields: Any) -> dict[str, Any]:
    return {
        "region_key": key(number), "digest": key(10_000 + number), "status": "ok", "media_key": key(media),
        "source": "coco_train", "source_media_id": str(media), "uri": f"data/{media:06d}.jpg", "label": "cup",
        "box": [10.0 + 70 * (number % 7), 10.0, 60.0 + 70 * (number % 7), 60.0], "kind": "image", "frame_index": 0,
        "is_crowd": False, "is_group": False, "is_part": False,
    } | fields  # fmt: skip


def frames(regions: list[dict[str, Any]], hashes: dict[int, int] | None = None) -> tuple[pl.DataFrame, pl.DataFrame]:
    table = pl.DataFrame(regions, schema_overrides={"label": pl.String, "box": pl.Array(pl.Float64, 4)})
    keys = sorted({row["media_key"] for row in regions if row["media_key"] is not None})
    phash = [(hashes or {}).get(int.from_bytes(item, "big"), 1 + int.from_bytes(item, "big")) for item in keys]
    media = pl.DataFrame({"media_key": keys, "group_key": keys, "phash": phash}, schema_overrides={"phash": pl.Int64})
    return table, media


def test_splits_that_are_benchmarks_do_not_go_on():
    regions = [region(1, split="train"), region(2, 1, split="val"), region(3, 2, source="mine", split="val")]
    assert fates(regions, benchmark_splits={"coco_train": ["val", "test"]}) == {1: None, 2: "benchmark", 3: None}
    assert set(fates(regions).values()) == {None}


def fates(regions: list[dict[str, Any]], **config: Any) -> dict[int, str | None]:
    rows = select(*frames(regions), SelectConfig(**config))
    return {int.from_bytes(k, "big"): reason for k, reason in rows.select("region_key", "reason").iter_rows()}


def test_every_region_has_one_row_and_each_rule_its_reason():
    regions = [
        region(1),
        region(2, box=[0, 0, 31, 100]),
        region(3, is_crowd=True),
        region(4, is_group=True),
        region(5, is_part=True, label=None),
        region(6, status="failed", media_key=None),
        region(8, box=None),
    ]
    table, media = frames(regions)
    rows = select(table, media, SelectConfig(drop_parts=True))
    assert {int.from_bytes(row.region_key, "big"): (row.status, row.reason) for row in validated(rows)} == {
        1: ("ok", None),
        2: ("filtered", "below_min_side"),
        3: ("filtered", "crowd"),
        4: ("filtered", "group"),
        5: ("filtered", "part"),
        6: ("blocked", "ingest"),
        8: ("ok", None),
    }


def validated(rows: pl.DataFrame) -> list[Selection]:
    return from_table(rows.to_arrow(), Selection)


def test_switched_off_rules_let_pass():
    reasons = fates(
        [region(1, is_crowd=True), region(2, is_group=True), region(3, is_part=True), region(4, box=[0, 0, 5, 5])],
        drop_crowd=False,
        drop_group=False,
        min_side=0,
    )
    assert set(reasons.values()) == {None}


def test_caps_hold_by_image_class_source_and_total():
    regions = [
        region(
            n,
            media=n // 50,
            label="cup" if n % 2 else "dog",
            source="a" if n % 3 else "b",
            box=[n % 50 * 60.0, 0, n % 50 * 60 + 50.0, 50],
        )
        for n in range(200)
    ]
    assert Counter(fates(regions, max_per_image=16).values()) == {None: 64, "over_image_cap": 136}
    assert Counter(fates(regions, max_per_image=None, max_per_class=10).values())[None] == 20
    kept = [n for n, reason in fates(regions, max_per_image=None, per_source={"b": 5}).items() if reason is None]
    assert sum(n % 3 == 0 for n in kept) == 5
    assert sum(n % 3 != 0 for n in kept) == 133
    assert Counter(fates(regions, max_per_image=None, total=7).values())[None] == 7
    assert None not in fates(regions, total=0).values()


def test_regions_without_a_label_are_no_class():
    assert set(fates([region(n, label=None) for n in range(7)], max_per_class=1, max_per_image=None).values()) == {None}


def test_the_seed_decides_the_draw_and_added_data_moves_little():
    regions = [region(n, media=n // 40) for n in range(200)]
    once, again = fates(regions, max_per_image=8), fates(regions, max_per_image=8)
    other = fates(regions, max_per_image=8, seed=1)
    assert once == again
    assert once != other
    more = fates(
        [*regions, *(region(n, media=n // 40) for n in range(200, 240)), region(900, media=0)], max_per_image=8
    )
    changed = [n for n in once if more[n] != once[n]]
    assert len(changed) <= 1


def test_the_same_target_from_a_second_source_is_a_duplicate():
    regions = [
        region(1, source="a", box=[0, 0, 100, 100]),
        region(2, source="b", box=[1, 0, 100, 100]),
        region(3, source="b", box=[1, 0, 100, 100], label="saucer"),
        region(4, source="b", box=[50, 0, 150, 100]),
        region(5, source="b", box=[1, 0, 100, 100], media=1),
        region(6, source="a", box=[0, 0, 100, 101]),
    ]
    expected = {1: None, 2: "duplicate", 3: None, 4: None, 5: None, 6: None}
    assert fates(regions) == expected
    assert set(fates(regions, duplicates="keep_all").values()) == {None}


def test_unlabelled_masklets_within_a_larger_one_are_parts():
    regions = [
        region(1, label=None, box=[0, 0, 200, 200]),
        region(2, label=None, box=[10, 10, 60, 60]),
        region(3, label="button", box=[10, 10, 60, 60]),
        region(4, label=None, box=[150, 150, 300, 300]),
    ]
    assert fates(regions, drop_parts=True) == {1: None, 2: "part", 3: None, 4: None}


@pytest.mark.parametrize("entry", ["000001.jpg", "000001", "phash:00000000000000f3", key(1).hex(), "set/000001.png"])
def test_benchmark_media_are_kept_out_by_name_hash_and_key(tmp_path, entry):
    guard = tmp_path / "guard.txt"
    guard.write_text(f"# a benchmark\n{entry}  # one photo\n")
    regions = [region(1, media=1), region(2, media=2)]
    rows = select(*frames(regions, {1: 0xF1, 2: 0x0F0F0F0F}), SelectConfig(exclude=(str(guard),)))
    reasons = {int.from_bytes(k, "big"): reason for k, reason in rows.select("region_key", "reason").iter_rows()}
    assert reasons == {1: "benchmark", 2: None}


def test_a_copy_in_the_group_of_a_benchmark_photo_is_kept_out(tmp_path):
    guard = tmp_path / "guard.txt"
    guard.write_text("000001.jpg\n")
    table, media = frames([region(1, media=1), region(2, media=2)])
    media = media.with_columns(group_key=pl.lit(key(1)))
    rows = select(table, media, SelectConfig(exclude=(str(guard),)))
    assert rows["reason"].to_list() == ["benchmark", "benchmark"]


def test_a_wrong_hash_in_a_guard_file_is_named(tmp_path):
    guard = tmp_path / "guard.txt"
    guard.write_text("a.jpg\nphash:xyz\n")
    with pytest.raises(ValueError, match=r"guard\.txt:2"):
        select(*frames([region(1)]), SelectConfig(exclude=(str(guard),)))


def test_the_yield_says_how_many_went_which_way():
    table, media = frames([region(n, source="a" if n else "b", is_crowd=n == 1) for n in range(4)])
    shown = selection_yield(select(table, media, SelectConfig()))
    assert shown.select("source", "status", "reason", "rows").rows() == [
        ("a", "ok", None, 2), ("a", "filtered", "crowd", 1), ("b", "ok", None, 1),
    ]  # fmt: skip


def test_impossible_settings_are_refused():
    for wrong in ({"min_side": -1}, {"max_per_image": 0}, {"colour": "red"}, {"duplicates": "maybe"}):
        with pytest.raises(ValidationError):
            SelectConfig(**wrong)


def test_a_range_of_names_guards_all_between_its_ends(tmp_path):
    guard = tmp_path / "names.txt"
    regions = [region(n, media=n, uri=f"s3://bucket/sa_{n:06d}.jpg") for n in (8, 9, 10, 11)]
    guard.write_text("sa_000009..sa_000010.jpg  # a part of SA-1B\n")
    rows = select(*frames(regions), SelectConfig(exclude=(str(guard),))).sort("region_key")
    assert sorted(rows["reason"].to_list(), key=str) == [None, None, "benchmark", "benchmark"]
    for wrong in ("sa_000010..sa_000009.jpg", "sa_1..sb_2.jpg", "a..b"):
        guard.write_text(f"{wrong}\n")
        with pytest.raises(ValueError, match=r"names\.txt:1: .*count up"):
            select(*frames(regions), SelectConfig(exclude=(str(guard),)))
