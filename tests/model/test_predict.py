"""Validation end to end on drawn shards: answers, masks beside the record's, histories, reports with pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from model import checkpoint, metrics
from model.answers import read_answers
from model.corpus import CorpusError, ShardCorpus
from model.evaluate import References, Scoring, evaluate, validate
from model.generate import GenerationConfig
from model.inference import PAM
from model.pam import Pam
from model.pam_stream import StreamCorpus
from model.practice import PracticeConfig, write_practice
from model.predict import EvalConfig, predict
from model.vision import load_sam


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("held")
    write_practice(folder, PracticeConfig(images=2, clips=1, size=128, frames=8, seed=3))
    return folder


@pytest.fixture
def pam(tiny_pam: Pam, tokenizer: Any) -> PAM:
    return PAM(tiny_pam, load_sam("nano"), tokenizer, GenerationConfig(max_new_tokens=4))


def test_answers_come_with_what_the_masks_are_worth(pam: PAM, shards: Path) -> None:
    corpus = ShardCorpus([str(shards)])
    answers = predict(pam, corpus, EvalConfig(batch=8))
    assert [a.row for a in answers] == list(range(len(corpus.index)))
    stills = [a for a in answers if a.task not in ("video", "stream")]
    clips = [a for a in answers if a.task in ("video", "stream")]
    assert stills
    assert clips
    # the nano SAM 2 knows these shapes: its masks lie on the drawn ones, and follow them
    assert np.mean([a.mask_iou for a in stills]) > 0.8
    followed = [a for a in clips if a.mask_j is not None]
    assert np.mean([a.mask_j for a in followed]) > 0.6
    assert np.mean([a.mask_f for a in followed]) > 0.6
    assert all(a.mask_iou is None for a in clips)
    alone = predict(pam, corpus, EvalConfig(batch=1, tasks=["video"]))
    together = {a.row: a for a in answers}
    for answer in alone:
        assert answer.mask_j == pytest.approx(together[answer.row].mask_j, abs=1e-3)
        assert answer.predicted == together[answer.row].predicted


@pytest.fixture
def streams(tmp_path: Path) -> StreamCorpus:
    """Two targets of three events each; event N is captioned `Event N.`"""
    names = [f"{at:05d}.jpg" for at in range(6)]
    lines = []
    for video in ("V_x", "V_y"):
        folder = tmp_path / "frames" / video
        folder.mkdir(parents=True)
        for at, name in enumerate(names):
            Image.fromarray(np.full((64, 64, 3), 40 * at, np.uint8)).save(folder / name)
        events = [
            {"event_id": at + 1, "frames": names[2 * at : 2 * at + 2], "gt": f"Event {at}.", "box": [[8, 8, 30, 30]]}
            for at in range(3)
        ]
        lines.append(json.dumps({"type": "video", "image_root": f"frames/{video}", "annotations": events}))
    file = tmp_path / "input.jsonl"
    file.write_text("\n".join(lines))
    return StreamCorpus([file], tmp_path / "frames")


@pytest.fixture
def told(pam: PAM, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What each prompt said of before, as it is asked; the model's Nth answer is `answer N`."""
    before: list[str] = []
    inner = pam.answer

    def listen(video: bool, embed: torch.Tensor, tokens: torch.Tensor, users: Any) -> list[str]:
        inner(video, embed, tokens, users)
        first = len(before) + 1
        before.extend(user.rsplit(": ", 1)[1] for user in users)
        return [f"answer {first + at}" for at in range(len(users))]

    monkeypatch.setattr(pam, "answer", listen)
    return before


def test_a_stream_is_told_the_reference_or_its_own_last_answer(
    pam: PAM, streams: StreamCorpus, told: list[str]
) -> None:
    predict(pam, streams, EvalConfig(history="own"))
    assert told == ["None", "None", "answer 1", "answer 2", "answer 3", "answer 4"]
    told.clear()
    predict(pam, streams, EvalConfig(batch=1))
    assert told == ["None", "Event 0.", "Event 1."] * 2


@pytest.mark.parametrize(("limit", "rows"), [(2, [0, 1]), (3, [0, 1, 2]), (4, [0, 1, 2, 3])])
def test_a_limit_leaves_no_event_without_its_own_history(
    pam: PAM, streams: StreamCorpus, told: list[str], limit: int, rows: list[int]
) -> None:
    answers = predict(pam, streams, EvalConfig(history="own", limit=limit, batch=1))
    assert [answer.row for answer in answers] == rows
    assert told.count("None") == len({answer.target for answer in answers})
    spread = predict(pam, streams, EvalConfig(limit=2))
    assert [answer.row for answer in spread] == [0, 3], "a reference's history needs no event before"


def test_validation_writes_answers_and_pages_and_scores_them_again(
    pam: PAM, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "has_java", lambda: False)
    folder = checkpoint.save(pam.pam, tmp_path / "model", pam.tokenizer)
    report = validate(
        folder,
        References(data=[str(shards)]),
        config=EvalConfig(limit=2),
        scoring=Scoring(similarity=False),
        output=tmp_path / "out",
        max_new_tokens=4,
        device="cpu",
    )
    assert {t.task for t in report.tasks} == {"label", "explain", "brief", "detailed", "video", "stream"}
    assert {"mask_iou", "mask_j", "mask_f", "j_and_f", "cider", "rouge_l", "bleu4"} <= set(report.overall)
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == len(report.best) + len(report.worst)
    assert "J&amp;F" in page
    saved = tmp_path / "out" / "answers.jsonl"
    assert evaluate(read_answers(saved), report.name, Scoring(similarity=False)).overall == report.overall
    again = validate(saved, scoring=Scoring(similarity=False))
    assert again.overall == report.overall
    with pytest.raises(CorpusError, match="name the references"):
        validate(folder)
    saved.write_text("{}\n")
    with pytest.raises(ValueError, match=r"answers\.jsonl, line 1: not an answer"):
        validate(saved)
