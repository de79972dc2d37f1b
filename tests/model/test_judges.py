"""Judges against a scripted teacher behind real HTTP: what they are asked, what their verdicts become."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model.answers import Answer
from model.evaluate import Scoring, evaluate
from model.judges import JudgeConfig, JudgeError, run_judges
from stages.teachers.config import LimitsConfig, RetryConfig, TeacherConfig

FAST = LimitsConfig(in_flight=8, tries=3, first_wait_s=0.01, longest_wait_s=0.05, timeout_s=5.0)


def _answer(row: int, predicted: str, wanted: str = "A dog.", **facts: Any) -> Answer:
    base = {"media": "v", "language": "en", "source": "s", "label": "", "task": "stream", "event_index": row}
    return Answer(row=row, predicted=predicted, wanted=wanted, **base | facts)


def _config(server: Any, *benches: str, **more: Any) -> JudgeConfig:
    teacher = TeacherConfig(
        backend="openai", model="judge", base_url=server.url, limits=FAST, retry=RetryConfig(invalid=1)
    )
    return JudgeConfig(teacher=teacher, benches=benches, **more)


def test_continuity_is_judged_once_a_target_over_its_events_in_order(
    teacher_server: Callable[..., Any], tmp_path: Path
) -> None:
    server = teacher_server(answer=lambda chat: {"score": 4.5 if "1. sits" in chat.text else 2, "reason": "so"})
    answers = [
        _answer(1, "runs", target="a"),
        _answer(0, "sits", target="a"),
        _answer(2, "barks", target="b", wanted="The dog barks {{ loudly }}."),
        _answer(3, "no stream", task="brief"),
    ]
    judged = run_judges(_config(server, "g_stdc"), answers, tmp_path)
    assert judged.values == {"g_stdc": pytest.approx((4.5 + 2) / 2)}
    asked = sorted(chat.text for chat in server.chats)
    assert len(asked) == 2
    assert any("1. sits\n2. runs" in text for text in asked)
    assert any("The dog barks {{ loudly }}." in text for text in asked), "a caption is no template"
    assert {verdict["item"] for verdict in judged.details} == {"a en", "b en"}
    before = sum(server.billed.values())
    again = run_judges(_config(server, "g_stdc"), answers, tmp_path)
    assert again.values == judged.values
    assert sum(server.billed.values()) == before, "the ledger pays once"


def test_the_published_scorer_takes_all_videos_for_one(teacher_server: Callable[..., Any], tmp_path: Path) -> None:
    server = teacher_server(answer=lambda chat: {"score": 1, "reason": "one series"})
    answers = [_answer(0, "sits", target="a"), _answer(1, "barks", target="b")]
    judged = run_judges(_config(server, "g_stdc"), answers, tmp_path, published=True)
    assert [verdict["item"] for verdict in judged.details] == ["unknown"]
    assert "1. sits\n2. barks" in server.chats[0].text


def test_videorefer_is_the_mean_of_four_aspects(teacher_server: Callable[..., Any], tmp_path: Path) -> None:
    said = {"subject_correspondence": 5, "appearance_description": 4, "temporal_description": 2}
    server = teacher_server(answer=lambda chat: said | {"hallucination_detection": 1})
    answers = [
        _answer(0, "A dog runs."),
        _answer(1, "never asked", task="brief"),
        _answer(2, "no reference", wanted=""),
    ]
    judged = run_judges(_config(server, "videorefer_d"), answers, tmp_path)
    assert judged.values["videorefer_d"] == pytest.approx(3.0)
    assert judged.values["videorefer_temporal_description"] == 2.0
    assert len(server.chats) == 1


def test_an_answer_that_does_not_fit_is_asked_for_again_and_never_counts_as_zero(
    teacher_server: Callable[..., Any], tmp_path: Path
) -> None:
    def answer(chat: Any) -> dict[str, Any]:
        if "barks" in chat.text:
            return {"score": 9, "reason": "out of range, always"}
        return {"score": 7 if "could not be used" not in chat.text else 3, "reason": "mended"}

    server = teacher_server(answer=answer)
    judged = run_judges(
        _config(server, "g_stdc"), [_answer(0, "sits", target="a"), _answer(1, "barks", target="b")], tmp_path
    )
    assert judged.values == {"g_stdc": 3.0}
    assert "1 without an answer" in judged.notices[0]
    assert sum("unanswered" in verdict for verdict in judged.details) == 1


@pytest.fixture
def dlc(tmp_path: Path) -> dict[str, Path]:
    """Two regions in the layout of DLC-Bench: positive points 1 / 0.5 / 0 / -1, negative 1 / -1."""
    positive = {"type": "positive", "question": "What colour?"}
    positive |= {"choices": [["red", 1], ["reddish", 0.5], ["not said", 0], ["blue", -1]]}
    negative = {"type": "negative", "question": "Is a saddle mentioned?", "choices": [["yes", -1], ["no", 1]]}
    questions = {"10": [positive, negative], "11": [positive]}
    files = {"questions": tmp_path / "qa.json", "class_names": tmp_path / "class_names.json"}
    files["questions"].write_text(json.dumps(questions))
    files["class_names"].write_text(json.dumps({"10": "horse", "11": "truck"}))
    return files


def _reads(chat: Any) -> dict[str, str]:
    """A judge that reads: recognises horses, knows colours, hears of no saddle."""
    description = chat.text.split("Description", 1)[1].split("Question")[0]
    if "horse" in chat.text.split("Question: ")[1] or "truck" in chat.text.split("Question: ")[1]:
        return {"choice": "A" if "horse" in description else "B"}
    if "saddle" in chat.text.split("Question: ")[1]:
        return {"choice": "B"}
    return {"choice": "A" if "red" in description else "D"}


def test_dlc_points_count_only_for_what_is_recognised(
    teacher_server: Callable[..., Any], tmp_path: Path, dlc: dict[str, Path]
) -> None:
    server = teacher_server(answer=_reads)
    answers = [
        _answer(0, "A red horse.", "", task="detailed", target="10"),
        _answer(1, "A red thing.", "", task="detailed", target="11"),
        _answer(2, "Not of the bench.", "", task="detailed", target="12"),
    ]
    judged = run_judges(_config(server, "dlc", **dlc), answers, tmp_path / "ledger")
    # region 11 is not recognised: its point falls to 0; region 10 gets 1 and 1; 11 has no negative question
    assert judged.values == pytest.approx({"dlc_positive": 0.5, "dlc_negative": 1.0, "dlc": 0.75})
    assert len(server.chats) == 5
    fewer = run_judges(_config(server, "dlc", **dlc), answers[:1], tmp_path / "ledger")
    assert fewer.values["dlc_positive"] == 1.0
    assert "1 of 2 regions were not described" in fewer.notices[0]
    assert "A. red\nB. reddish\nC. not said\nD. blue" in "\n".join(chat.text for chat in server.chats)


def test_a_dlc_question_without_an_answer_is_in_no_mean(
    teacher_server: Callable[..., Any], tmp_path: Path, dlc: dict[str, Path]
) -> None:
    answers = [
        _answer(0, "A red horse.", "", task="detailed", target="10"),
        _answer(1, "A red truck.", "", task="detailed", target="11"),
    ]

    def saddle_unsaid(chat: Any) -> dict[str, str]:
        asked = chat.text.split("Question: ")[1]
        if "saddle" in asked:
            return {"choice": "E"}  # a letter that the question does not have
        return {"choice": "A"} if "truck" in asked else _reads(chat)

    judged = run_judges(_config(teacher_server(answer=saddle_unsaid), "dlc", **dlc), answers, tmp_path / "a")
    assert judged.values == {"dlc_positive": 1.0}, "no negative question was answered"
    assert "; 1 questions without an answer are left out" in judged.notices[0]

    def truck_unsaid(chat: Any) -> dict[str, str]:
        return {"choice": "none"} if "truck" in chat.text.split("Question: ")[1] else _reads(chat)

    judged = run_judges(_config(teacher_server(answer=truck_unsaid), "dlc", **dlc), answers, tmp_path / "b")
    assert judged.values == {"dlc_positive": 1.0, "dlc_negative": 1.0, "dlc": 1.0}, "region 11 is skipped"
    assert "; 1 regions are skipped" in judged.notices[0]
    assert "1 without an answer" in judged.notices[0]


def test_a_judge_is_cold_unless_told_otherwise(teacher_server: Callable[..., Any], tmp_path: Path) -> None:
    server = teacher_server(answer=lambda chat: {"score": 1, "reason": "so"})
    config = _config(server, "g_stdc")
    run_judges(config, [_answer(0, "sits", target="a")], tmp_path / "cold")
    warm = config.teacher.model_dump() | {"decoding": {"temperature": 0.7}}
    told = JudgeConfig(teacher=TeacherConfig.model_validate(warm), benches=("g_stdc",))
    run_judges(told, [_answer(0, "sits", target="a")], tmp_path / "warm")
    assert [chat.body["temperature"] for chat in server.chats] == [0.0, 0.7]


def test_what_cannot_be_judged_is_said(
    teacher_server: Callable[..., Any], tmp_path: Path, dlc: dict[str, Path]
) -> None:
    server = teacher_server()
    with pytest.raises(JudgeError, match=r"qa\.json"):
        run_judges(_config(server, "dlc"), [], tmp_path)
    dlc["class_names"].write_text("[]")
    with pytest.raises(JudgeError, match="not DLC-Bench's files"):
        run_judges(_config(server, "dlc", **dlc), [], tmp_path)
    measured = JudgeConfig(teacher=TeacherConfig())
    with pytest.raises(JudgeError, match="cannot judge"):
        run_judges(measured, [_answer(0, "x")], tmp_path)
    with pytest.raises(JudgeError, match="folder"):
        evaluate([_answer(0, "x")], "m", Scoring(similarity=False, judge=_config(server, "g_stdc")))


def test_a_report_holds_the_judges_word(
    teacher_server: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.metrics.has_java", lambda: False)
    server = teacher_server(answer=lambda chat: {"score": 2.5, "reason": "half"})
    scoring = Scoring(similarity=False, judge=_config(server, "g_stdc"))
    report = evaluate([_answer(0, "sits", target="a")], "m", scoring, tmp_path)
    assert report.overall["g_stdc"] == 2.5
    assert "1 questions to judge" in " ".join(report.notices)
    assert json.loads((tmp_path / "verdicts.jsonl").read_text())["reason"] == "half"
    assert "G-STDC" in (tmp_path / "report.md").read_text()
