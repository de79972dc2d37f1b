"""Samples for people, verdicts read back, and what they say of a policy."""

from __future__ import annotations

import csv
import hashlib
import html
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from schemas.arrow import from_table, to_table
from schemas.caption import Caption
from stages.calibration import check_quality, curves, suggest_threshold, suggestions, threshold_curve
from stages.decide import evaluate
from stages.masks import encode
from stages.policy import Policy
from stages.review import (
    human_captions,
    read_verdicts,
    review_sample,
    still_said,
    verdict_rows,
    write_csv,
    write_page,
)

POLICY = Policy.model_validate({"name": "p", "checks": [{"reason": "stub", "column": "words", "min": 5}]})


def key(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


@pytest.fixture
def captions() -> pl.DataFrame:
    rows = [
        Caption(
            caption_key=key(f"c{i}"), region_key=key(f"r{i}"), media_key=key("m"), task="brief", language="en",
            text=f"caption {i} <b>", teacher="t", model="m", prompt_id="p", prompt_hash=key("p"),
            input_digest=key(f"i{i}"), digest=key(f"d{i}"),
        )
        for i in range(40)
    ]  # fmt: skip
    frame = pl.DataFrame(pl.from_arrow(to_table(rows, Caption)))
    return frame.with_columns(words=pl.Series(range(40)), source_label=pl.lit("dog"))


def labelled(path: Path, labels: dict[str, tuple[str, str]]) -> pl.DataFrame:
    """Reads back a file in which a person has filled in these verdicts and corrections by key."""
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        row["verdict"], row["correction"] = labels.get(row["caption_key"], ("", ""))
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return read_verdicts(path)


def test_a_sample_is_stratified_and_says_what_it_stands_for(captions: pl.DataFrame) -> None:
    decisions = evaluate(captions, POLICY).decisions
    sample = review_sample(captions, decisions, per_stratum=5)
    assert sample["reason"].value_counts().sort("reason").rows() == [(None, 5), ("stub", 5)]
    assert sample.group_by("reason").agg(pl.col("weight").sum()).sort("reason").rows() == [(None, 35.0), ("stub", 5.0)]
    assert sample.equals(review_sample(captions.reverse(), decisions, per_stratum=5).select(sample.columns))


def test_verdicts_override_the_policy(captions: pl.DataFrame, tmp_path: Path) -> None:
    decisions = evaluate(captions, POLICY).decisions
    path = tmp_path / "sample.csv"
    write_csv(review_sample(captions, decisions, per_stratum=100), path)
    verdicts = labelled(path, {key("c0").hex(): ("keep", "A better text."), key("c30").hex(): ("drop", "")})
    assert len(verdicts) == 2
    said = pl.DataFrame(pl.from_arrow(verdict_rows(captions, verdicts)))
    changed = evaluate(captions, POLICY, said).decisions
    by_key = {row["caption_key"]: row for row in changed.iter_rows(named=True)}
    assert (by_key[key("c0")]["status"], by_key[key("c0")]["reason"]) == ("ok", None)
    assert (by_key[key("c30")]["status"], by_key[key("c30")]["reason"]) == ("filtered", "human")
    assert by_key[key("c1")]["reason"] == "stub"
    (human,) = from_table(human_captions(captions, verdicts), Caption)
    assert (human.text, human.teacher, human.attempts) == ("A better text.", "human", 2)
    assert human.digest != key("d0")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("caption_key\nab\n", "header lacks verdict"),
        (f"caption_key,verdict\n{'00' * 16},maybe\n", "line 2: verdict 'maybe'"),
        ("caption_key,verdict\nxyz,keep\n", "line 2: 'xyz' is no caption key"),
    ],
)
def test_a_bad_file_names_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "verdicts.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_verdicts(path)


def test_checks_against_people_and_a_better_threshold(captions: pl.DataFrame) -> None:
    evaluation = evaluate(captions, POLICY)
    drop = [i < 10 or i == 20 for i in range(40)]
    verdicts = captions.select("caption_key", verdict=pl.Series(["drop" if bad else "keep" for bad in drop]))
    row = check_quality(evaluation, verdicts).row(0, named=True)
    assert (row["hits"], row["right"], row["precision"]) == (5, 5, 1.0)
    assert row["recall"] == pytest.approx(5 / 11)
    curve = threshold_curve(captions, "words", verdicts, high_is_bad=False)
    best = suggest_threshold(curve, precision=0.99)
    assert best is not None
    assert (best["threshold"], best["dropped"]) == (9.0, 10)
    assert best["recall"] == pytest.approx(10 / 11)
    assert suggest_threshold(threshold_curve(captions, "words", verdicts, high_is_bad=True), precision=0.99) is None


def test_the_page_draws_masks_and_escapes_texts(captions: pl.DataFrame, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    Image.fromarray(np.full((40, 60, 3), 90, np.uint8)).save(photo)
    mask = np.zeros((40, 60), bool)
    mask[5:20, 5:30] = True
    sample = review_sample(captions, evaluate(captions, POLICY).decisions, per_stratum=1)
    uris = [str(photo), str(tmp_path / "gone.png")]
    sample = sample.with_columns(
        uri=pl.Series(uris), kind=pl.lit("image"), mask=pl.Series([encode(mask).model_dump()] * 2)
    )
    write_page(sample, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count("<img src") == 1
    assert page.count("class=gone") == 1
    assert "&lt;b&gt;" in page
    assert page.count("<article data-key") == 2


def test_a_threshold_is_suggested_for_a_wanted_precision(captions: pl.DataFrame) -> None:
    drop = [i < 10 or i == 20 for i in range(40)]
    verdicts = captions.select("caption_key", verdict=pl.Series(["drop" if bad else "keep" for bad in drop]))
    (row,) = suggestions(captions, POLICY, verdicts, precision=0.95).to_dicts()
    assert (row["bound"], row["now"], row["suggested"], row["dropped"]) == ("min", 5.0, 9.0, 10)
    assert row["recall"] == pytest.approx(10 / 11)
    (loose,) = suggestions(captions, POLICY, verdicts, precision=0.5).to_dicts()
    assert (loose["suggested"], loose["recall"]) == (20.0, 1.0)
    nobody = verdicts.with_columns(verdict=pl.lit("keep"))
    assert suggestions(captions, POLICY, nobody, precision=0.95)["suggested"].to_list() == [None]
    curve = curves(captions, POLICY, verdicts)
    assert curve["reason"].unique().to_list() == ["stub"]
    assert curve["dropped"].to_list() == list(range(1, 41))


def test_a_sample_takes_some_of_every_source(captions: pl.DataFrame) -> None:
    two = captions.with_columns(source=pl.when(pl.col("words") < 37).then(pl.lit("coco")).otherwise(pl.lit("lvis")))
    sample = review_sample(two, evaluate(two, POLICY).decisions, per_stratum=3)
    assert sample.group_by("source", "reason").len().sort("source", "reason").rows() == [
        ("coco", None, 3), ("coco", "stub", 3), ("lvis", None, 3),
    ]  # fmt: skip
    assert sample["weight"].sum() == pytest.approx(len(two))


def test_a_correction_says_that_the_check_was_right(captions: pl.DataFrame, tmp_path: Path) -> None:
    evaluation, path = evaluate(captions, POLICY), tmp_path / "sample.csv"
    write_csv(review_sample(captions, evaluation.decisions, per_stratum=100), path)
    verdicts = labelled(path, {key(f"c{i}").hex(): ("keep" if i % 2 else "", "A better text.") for i in range(4)})
    row = check_quality(evaluation, verdicts).row(0, named=True)
    assert (row["hits"], row["right"], row["precision"], row["recall"]) == (4, 4, 1.0, 1.0)
    assert threshold_curve(captions, "words", verdicts, high_is_bad=False)["precision"].to_list() == [1.0] * 4


def test_shares_are_those_of_the_corpus(captions: pl.DataFrame, tmp_path: Path) -> None:
    """Five stubs, all bad; of 35 kept captions five are judged, of which one is bad: seven in the corpus."""
    evaluation, path = evaluate(captions, POLICY), tmp_path / "sample.csv"
    write_csv(review_sample(captions, evaluation.decisions, per_stratum=10), path)
    kept = [row["caption_key"] for row in csv.DictReader(path.open(encoding="utf-8")) if row["status"] == "ok"][:5]
    verdicts = labelled(
        path,
        {key(f"c{i}").hex(): ("drop", "") for i in range(5)}
        | dict.fromkeys(kept, ("keep", ""))
        | {kept[0]: ("drop", "")},
    )
    assert verdicts["weight"].sum() == pytest.approx(40)
    row = check_quality(evaluation, verdicts).row(0, named=True)
    assert (row["labelled"], row["hits"], row["right"], row["precision"]) == (10, 5, 5, 1.0)
    assert row["recall"] == pytest.approx(5 / 12)
    curve = threshold_curve(captions, "words", verdicts, high_is_bad=False)
    assert curve["precision"].to_list()[-1] == pytest.approx(12 / 40)


def test_a_verdict_on_another_text_is_not_taken(captions: pl.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "sample.csv"
    write_csv(review_sample(captions, evaluate(captions, POLICY).decisions, per_stratum=100), path)
    verdicts = labelled(path, {key(f"c{i}").hex(): ("drop", "") for i in (1, 2, 30)})
    anew = captions.with_columns(
        text=pl.when(pl.col("caption_key") == key("c2")).then(pl.lit("Another.")).otherwise("text")
    )
    assert len(still_said(captions, verdicts)) == 3
    assert set(still_said(anew, verdicts)["caption_key"]) == {key("c1"), key("c30")}
    assert set(still_said(anew.filter(pl.col("caption_key") != key("c1")), verdicts)["caption_key"]) == {key("c30")}
    path.write_text(f"caption_key,verdict\n{key('c2').hex()},drop\n")
    assert len(still_said(anew, read_verdicts(path))) == 1


def test_what_the_page_saves_is_read_like_the_sheet(captions: pl.DataFrame, tmp_path: Path) -> None:
    sample = review_sample(captions, evaluate(captions, POLICY).decisions, per_stratum=5)
    write_csv(sample, tmp_path / "sheet.csv")
    write_page(sample, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    (head,) = re.findall(r'"(caption_key,verdict[^"]*)\\n"', page)
    cards = re.findall(r'data-key="(\w+)" data-facts="([^"]*)"', page)
    lines = [f'{caption},drop,"",{html.unescape(facts)}' for caption, facts in cards]
    (tmp_path / "verdicts.csv").write_text("\n".join([head, *lines]) + "\n")
    saved = read_verdicts(tmp_path / "verdicts.csv")
    sheet = labelled(tmp_path / "sheet.csv", {caption: ("drop", "") for caption, _ in cards})
    assert saved.sort("caption_key").equals(sheet.sort("caption_key"))


def test_thresholds_are_suggested_for_each_task_language_and_side(captions: pl.DataFrame) -> None:
    """Good English has 10 to 29 words, good Chinese 20 to 39; the policy's bounds differ by language."""
    zh = captions.with_columns(language=pl.lit("zh"), caption_key=pl.col("region_key"))
    both = pl.concat([captions, zh])
    low = pl.when(pl.col("language") == "zh").then(20).otherwise(10)
    good = pl.col("words").is_between(low, low + 19)
    verdicts = both.select("caption_key", verdict=pl.when(good).then(pl.lit("keep")).otherwise(pl.lit("drop")))
    check = {"reason": "length", "column": "words", "min": 5, "max": 30,
             "overrides": [{"when": {"language": "zh"}, "min": 15}]}  # fmt: skip
    found = suggestions(both, Policy.model_validate({"name": "p", "checks": [check]}), verdicts, precision=1.0)
    assert found.select("task", "language", "bound", "now", "suggested").rows() == [
        ("brief", "en", "min", 5.0, 9.0),
        ("brief", "en", "max", 30.0, 30.0),
        ("brief", "zh", "min", 15.0, 19.0),
        ("brief", "zh", "max", 30.0, None),
    ]
    check["overrides"] = [{"when": {"language": "zh"}, "skip": True}]
    found = suggestions(both, Policy.model_validate({"name": "p", "checks": [check]}), verdicts, precision=1.0)
    assert found["language"].to_list() == ["en", "en"]
