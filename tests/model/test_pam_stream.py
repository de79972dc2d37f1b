"""PAM's streaming evaluation files: events as references, its script's output as answers, its scorer beside ours."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model import metrics
from model.answers import Answer
from model.corpus import CorpusError
from model.evaluate import score
from model.pam_stream import StreamCorpus, read_events, read_stream_answers


def _record(**event: Any) -> dict[str, Any]:
    first = {"event_id": 1, "frames": ["00000.jpg", "00001.jpg"], "gt": " A dog sits.", "box": [[2, 3, 10, 20]]}
    second = {"event_id": 2, "frames": ["00002.jpg"], "gt": "It runs.", "box": [[4, 3, 10.5, 20]]}
    return {"type": "video", "image_root": "/elsewhere/frames/V_x", "annotations": [first | event, second | event]}


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    folder = tmp_path / "frames" / "V_x"
    folder.mkdir(parents=True)
    for at in range(3):
        Image.fromarray(np.full((30, 40, 3), 40 * at, np.uint8)).save(folder / f"{at:05d}.jpg")
    return folder.parent


def test_events_are_captions_with_the_event_before_as_history(frames: Path, tmp_path: Path) -> None:
    file = tmp_path / "input.jsonl"
    file.write_text(json.dumps(_record()) + "\n" + json.dumps(_record()) + "\n")
    corpus = StreamCorpus([file], frames)
    assert corpus.index["region"].to_list() == ["V_x#1", "V_x#1", "V_x#2", "V_x#2"], "two records are two targets"
    first, second, other = (corpus.load(at) for at in range(3))
    assert (first.text, first.history, first.box, first.count) == ("A dog sits.", None, (2, 3, 12, 23), 2)
    assert (second.history, second.box) == ("A dog sits.", (4, 3, 14.5, 23))
    assert other.history is None
    assert first.read([1])[0].mean() == pytest.approx(40, abs=2)


def test_what_is_wrong_is_named(frames: Path, tmp_path: Path) -> None:
    file = tmp_path / "input.jsonl"
    for record, said in (
        (_record(frames=["../../secret.jpg"]), "leaves the video's folder"),
        (_record(box=[]), "needs frames and a box"),
        ({"annotations": [{"frames": []}]}, "record 1: not a record"),
    ):
        file.write_text(json.dumps(record))
        with pytest.raises(CorpusError, match=said):
            StreamCorpus([file], frames)
    file.write_text(json.dumps(_record()))
    with pytest.raises(CorpusError, match="name the frames' folder"):
        StreamCorpus([file], tmp_path / "nowhere").load(0)
    with pytest.raises(CorpusError, match="holds no answers"):
        read_stream_answers(file)


def test_the_scripts_output_is_read_pretty_printed_or_in_lines(tmp_path: Path) -> None:
    record = _record(pred="A dog sits still.")
    pretty, lines = tmp_path / "output_tmp.jsonl", tmp_path / "lines.jsonl"
    pretty.write_text(json.dumps(record, indent=4))
    lines.write_text(json.dumps(record) + "\n")
    assert [a.model_dump(exclude={"source"}) for a in read_stream_answers(pretty)] == [
        a.model_dump(exclude={"source"}) for a in read_stream_answers(lines)
    ]
    first = read_stream_answers(pretty)[0]
    assert (first.predicted, first.wanted, first.target) == ("A dog sits still.", "A dog sits.", "V_x#1")


def _answers(shared_data: Path, shift: int) -> list[Answer]:
    """The references as answers to the event `shift` places away."""
    events = read_events(shared_data / "pam_eval" / "input_full.jsonl")
    facts: dict[str, Any] = {"task": "stream", "language": "en", "source": "pam_eval", "label": ""}
    return [
        Answer(
            row=at, media=event.video, target=event.target, event_index=at, wanted=event.wanted,
            predicted=events[(at + shift) % len(events)].wanted, **facts,
        )
        for at, event in enumerate(events)
    ]  # fmt: skip


def test_all_events_of_the_public_file_are_there(shared_data: Path) -> None:
    events = read_events(shared_data / "pam_eval" / "input_full.jsonl")
    assert (len(events), len({e.target for e in events}), sum(len(e.frames) < 16 for e in events)) == (945, 334, 232)
    assert all(event.box is not None and event.wanted for event in events)


@pytest.mark.parametrize("java", [pytest.param(True, marks=pytest.mark.slow), False])
def test_references_score_perfectly_and_strangers_hardly(
    shared_data: Path, java: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if java and shutil.which("java") is None:
        pytest.skip("no Java on this machine")
    if not java:
        monkeypatch.setattr(metrics, "has_java", lambda: False)
    own = score(_answers(shared_data, 0), similarity=False)
    assert own.overall["cider"] == pytest.approx(10.0)
    assert [own.overall["bleu4"], own.overall["rouge_l"]] == pytest.approx([1.0, 1.0])
    strange = score(_answers(shared_data, 400), similarity=False)
    assert strange.overall["cider"] < 0.1
    assert strange.overall["rouge_l"] < 0.2
    assert ("meteor" in own.overall) == java
    if java:
        published = score(_answers(shared_data, 400), similarity=False, published=True)
        # without the PTB tokenizer full stops and capitals make other words of the same words
        assert published.overall["cider"] != pytest.approx(strange.overall["cider"], abs=1e-4)
        assert published.overall["meteor"] > strange.overall["meteor"]
        assert "published behaviour" in " ".join(published.notices)
