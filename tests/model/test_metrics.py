"""Scores of captions, by hand-computed cases."""

from __future__ import annotations

import pytest

from model import metrics
from model.evaluate import Answer, score
from model.render import as_html, as_markdown, table


def test_cleaning_and_semantic_iou_follow_their_definition() -> None:
    assert metrics.clean("A_Red: star, (big).") == "a red star big"
    assert metrics.semantic_iou("A red star.", "a red, square") == 2 / 4
    assert metrics.semantic_iou("", "") == 1.0


def test_a_longer_entry_hides_the_shorter_one_inside_it() -> None:
    text = "The star moves up left for 2 seconds, then moves up."
    assert metrics.words_of(text, metrics.MOTIONS, "en") == {"moves up left", "moves up"}
    assert metrics.words_of("moves up left", metrics.MOTIONS, "en") == {"moves up left"}
    assert metrics.words_of("位于左上方", metrics.LEXICONS["position"]["zh"], "zh") == {"左上方"}
    assert metrics.words_of("a reddish thing", metrics.COLOURS, "en") == frozenset()


def test_word_hits_judge_only_what_the_reference_says() -> None:
    hits = metrics.word_hits(["a red star", "blue", "green"], ["red", "red and blue", "a star"], metrics.COLOURS, "en")
    assert hits == [1.0, 0.0, None]
    assert metrics.mean(hits) == 0.5
    assert metrics.mean([None]) is None


@pytest.mark.parametrize("java", [True, False])
def test_perfect_captions_score_perfectly_with_and_without_java(java: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if java and not metrics.has_java():
        pytest.skip("no Java on this machine")
    if not java:
        monkeypatch.setattr(metrics, "has_java", lambda: False)
    texts = ["A small red star in the upper left.", "A large blue ring in the centre."]
    good = metrics.caption_scores(texts, [[t] for t in texts])
    bad = metrics.caption_scores(["", texts[0]], [[t] for t in texts])
    assert good.values["bleu4"] == pytest.approx(1.0, abs=1e-6)
    assert good.values["rouge_l"] == pytest.approx(1.0, abs=1e-6)
    assert good.values["cider"] == pytest.approx(10.0, abs=1e-6)
    assert ("meteor" in good.values) == java
    assert bool(good.notices) != java
    assert bad.values["cider"] < good.values["cider"] / 2
    assert len(good.each["cider"]) == 2


@pytest.mark.skipif(not metrics.has_java(), reason="no Java on this machine")
def test_an_odd_answer_changes_neither_the_tokenizer_nor_the_scores_of_the_others() -> None:
    texts = ["A small red star.", "...", "A large blue\u2028ring\x85in the\rcentre.", "A green square."]
    found = metrics.caption_scores(
        ["A small red 星 star.", *texts[1:]], [[t] for t in ["A small red star.", "A dog.", *texts[2:]]]
    )
    assert found.notices == []
    assert found.each["meteor"][1:] == pytest.approx([0.0, 1.0, 1.0])
    assert found.each["rouge_l"][1:] == pytest.approx([0.0, 1.0, 1.0])
    assert found.each["meteor"][0] > 0.4


def test_captions_asked_in_chinese_are_scored_without_ptb_and_meteor() -> None:
    found = metrics.caption_scores(["A small star."], [["A small red star."]], ["zh"])
    assert set(found.values) == {"bleu4", "rouge_l", "cider"}
    assert "plain tokenizer" in found.notices[0]


def _answer(row: int, task: str, wanted: str, predicted: str, language: str = "en") -> Answer:
    facts = {"media": "m", "language": language, "source": "s", "label": "star"}
    return Answer(row=row, task=task, wanted=wanted, predicted=predicted, **facts)


def test_the_whole_is_scored_as_one_set_of_captions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "has_java", lambda: False)
    said = [
        ("label", "star", "star"),
        ("label", "ring", "star"),
        ("brief", "A red star in the upper left corner.", "A red star in the lower left corner."),
        ("brief", "A large blue ring in the centre.", "A blue ring in the centre of it all."),
    ]
    answers = [_answer(at, *texts) for at, texts in enumerate(said)]
    one = score(answers[2:], similarity=False)
    assert one.overall == one.tasks[0].scores
    both = score(answers, similarity=False)
    whole = metrics.caption_scores([a.predicted for a in answers], [a.references for a in answers])
    assert {name: both.overall[name] for name in whole.values} == whole.values
    # BLEU@4 of a set pools its n-grams: no mean over captions gives it
    assert both.overall["bleu4"] != pytest.approx(metrics.mean(whole.each["bleu4"]), abs=1e-3)
    assert both.overall["semantic_iou"] == pytest.approx(
        (2 * both.tasks[0].scores["semantic_iou"] + 2 * both.tasks[1].scores["semantic_iou"]) / 4
    )
    mixed = score([*answers, _answer(4, "brief", "一个红色的星形", "一个红色的圆形", "zh")], similarity=False)
    assert 0 < mixed.overall["bleu4"] < 1
    assert score([]).overall == {}


def test_a_report_has_each_task_the_whole_and_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "has_java", lambda: False)
    answers = [
        _answer(0, "label", "star", "Star."),
        _answer(1, "label", "ring", "star"),
        _answer(2, "brief", "A red star in the upper left.", "A red <star> in the lower left."),
        _answer(3, "stream", "The star moves up.", "The star moves up."),
    ]
    report = score(answers, similarity=False)
    by_task = {t.task: t.scores for t in report.tasks}
    assert by_task["label"]["label_accuracy"] == 0.5
    assert by_task["brief"]["colour_words"] == 1.0
    assert by_task["brief"]["position_words"] == 0.0
    assert by_task["stream"]["motion_words"] == 1.0
    assert "position_words" not in by_task["stream"]
    assert report.worst[0].row == 1
    head, rows = table([report])
    assert rows[0][:3] == ["pam", "all", "4"]
    assert head[3] == "label accuracy"
    assert "plain tokenizer" in as_markdown([report])
    assert "&lt;star&gt;" in as_html([report])
