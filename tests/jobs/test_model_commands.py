"""`perceive caption` and `perceive validate` with a small PAM of random weights on real files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner, Result

from jobs.cli import app
from model import checkpoint, metrics
from model.config import PamConfig, PerceiverConfig
from model.overlay import lines_of, overlay, write_mp4
from model.pam import Pam
from model.practice import PracticeConfig, write_practice
from model.tokenizer import train_tokenizer

Run = Callable[..., Result]


@pytest.fixture
def run() -> Run:
    runner = CliRunner()
    return lambda *args: runner.invoke(app, [str(arg) for arg in args])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with random weights and the nano SAM 2."""
    tokenizer = train_tokenizer(["a red square on the left"], vocab_size=400)
    llm = {"vocab_size": 448, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    llm |= {"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True}
    torch.manual_seed(0)
    pam = Pam(PamConfig(sam="nano", perceiver=PerceiverConfig(dim=64, mlp_dim=32, tokens=2), llm=llm, video_frames=2))
    return checkpoint.save(pam, tmp_path_factory.mktemp("pam") / "model", tokenizer)


def test_an_image_gets_its_mask_drawn_and_words(run: Run, folder: Path, shared_data: Path, tmp_path: Path) -> None:
    photo = shared_data / "images" / "groceries.jpg"
    out = tmp_path / "seen.png"
    common = (folder, photo, "--device", "cpu", "--max-tokens", 8, "--out", out)
    result = run("caption", *common, "--box", "400,300,900,800", "--task", "detailed", "--json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["overlay"] == str(out)
    assert isinstance(said["captions"][0]["text"], str)
    assert 0 <= said["captions"][0]["predicted_iou"] <= 1
    drawn, plain = np.asarray(Image.open(out)), np.asarray(Image.open(photo))
    assert drawn.shape[1] == plain.shape[1]
    marked = tmp_path / "mask.png"
    mask = np.zeros(plain.shape, np.uint8)
    mask[300:600, 400:900] = 255
    Image.fromarray(mask).save(marked)
    assert run("caption", *common, "--mask", marked).exit_code == 0
    # a mask prompt is its own answer: what is drawn is what was given
    changed = (np.asarray(Image.open(out))[: plain.shape[0]] != plain).any(axis=2)
    assert changed[320:580, 420:880].mean() > 0.95
    assert changed[:200].mean() < 0.05
    assert run("caption", *common, "--point", "600,500", "--point", "10,10,0").exit_code == 0


def test_a_clip_is_captioned_as_a_stream_into_frames_of_one_size(
    run: Run, folder: Path, shared_data: Path, tmp_path: Path
) -> None:
    import av

    frames = next(path for path in (shared_data / "davis_judo").glob("**/*.jpg")).parent
    out = tmp_path / "seen.mp4"
    where = (folder, frames, "--box", "100,100,400,400", "--device", "cpu", "--out", out, "--max-tokens", 6, "--json")
    result = run("caption", *where, "--stream")
    assert result.exit_code == 0, result.output
    captions = json.loads(result.stdout)["captions"]
    assert [(c["first_frame"], c["last_frame"]) for c in captions] == [(0, 15)]
    assert {"text", "lost"} <= set(captions[0])
    with av.open(str(out)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 16
    result = run("caption", *where, "--stream", "--sample-frames", 4, "--history-depth", 0, "--carry", "box")
    assert result.exit_code == 0, result.output
    with av.open(str(out)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 4


def test_captions_of_any_length_leave_a_clips_frames_alike(tmp_path: Path) -> None:
    picture = np.zeros((60, 200, 3), np.uint8)
    texts = ["short", "a much longer text " * 3, None, "endless " * 200]
    lines = lines_of(texts, 200)
    frames = [overlay(picture, None, text, lines) for text in texts]
    assert len({frame.shape for frame in frames}) == 1
    assert frames[0].shape[0] > 60
    assert write_mp4(tmp_path / "clip.mp4", frames, 8.0) == 4
    with pytest.raises(ValueError, match="frame 1 is"):
        write_mp4(tmp_path / "bad.mp4", [overlay(picture, None, text) for text in texts], 8.0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--box", "2000,0,2100,50"], "has no area on a picture"),
        (["--point", "-5,2"], "is not on a picture"),
        (["--point", "5,2,7"], "the third number"),
        (["--box", "1,2,3"], "3 numbers, 4 are needed"),
        ([], "exactly one of box, points and mask"),
        (["--box", "1,2,30,40", "--task", "poem"], "task"),
        (["--box", "1,2,30,40", "--carry", "box"], "only a stream has these"),
        (["--box", "1,2,30,40", "--stream", "--carry", "bag"], "carry"),
    ],
)
def test_a_bad_prompt_is_one_line(run: Run, folder: Path, shared_data: Path, arguments: list[str], said: str) -> None:
    photo = shared_data / "images" / "groceries.jpg"
    result = run("caption", folder, photo, *arguments, "--device", "cpu")
    assert result.exit_code == 1
    assert said in result.stderr
    assert "Traceback" not in result.output


def test_what_is_not_there_is_one_line(run: Run, folder: Path, tmp_path: Path) -> None:
    for arguments, said in (
        (("caption", folder, tmp_path / "none.jpg", "--box", "1,2,3,4"), "none.jpg"),
        (("caption", tmp_path, tmp_path / "none.jpg", "--box", "1,2,3,4"), "config.json"),
        (("validate", folder, tmp_path / "none"), "no *.tar shards"),
        (("validate", folder), "name the references"),
        (("validate", folder, tmp_path / "x.json", "--format", "annotation"), "kind"),
    ):
        result = run(*arguments, "--device", "cpu")
        assert result.exit_code == 1, result.output
        assert said in result.stderr
        assert "Traceback" not in result.output


@pytest.mark.parametrize("json_", [False, True])
def test_training_says_where_it_is(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture, json_: bool) -> None:
    write_practice(tmp_path / "shards", PracticeConfig(images=2, clips=0, size=64))
    llm = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    fresh = {"sam": "nano", "perceiver": {"dim": 64, "mlp_dim": 32, "tokens": 2}, "video_frames": 2}
    fresh["llm"] = llm | {"num_key_value_heads": 1, "tie_word_embeddings": True}
    config = {"output": str(tmp_path / "out"), "start": {"fresh": fresh, "vocab_size": 400}, "device": "cpu"}
    config |= {"data": {"shards": [str(tmp_path / "shards")]}, "batch": {"images": 2, "clips": 1}, "max_steps": 1}
    file = tmp_path / "train.yaml"
    file.write_text(yaml.safe_dump(config))
    result = run("train", file, *(["--json"] if json_ else []))
    assert result.exit_code == 0, result.output
    assert ("step 1  loss" in caplog.text) == (not json_)
    if json_:
        assert json.loads(result.stdout)["steps"] == 1
    changed = run("train", file, "--set", "batch.images=1")
    assert changed.exit_code == 1
    assert "of another run: batch differ" in " ".join(changed.stderr.split())


def test_validation_prints_a_table_and_scores_its_answers_again(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "has_java", lambda: False)
    monkeypatch.setattr(metrics, "semantic_similarity", lambda predicted, wanted: [0.5] * len(predicted))
    write_practice(tmp_path / "held", PracticeConfig(images=2, clips=0, size=96))
    out = tmp_path / "out"
    where = (folder, tmp_path / "held", "--limit", 2, "--device", "cpu", "--max-tokens", 4)
    result = run("validate", *where, "--out", out)
    assert result.exit_code == 0, result.output
    assert "CIDEr" in result.stdout
    assert "worst" in result.stdout
    assert {path.name for path in out.iterdir()} == {"answers.jsonl", "report.json", "report.md", "report.html"}
    again = run("validate", out / "answers.jsonl", "--json")
    made: dict[str, Any] = json.loads((out / "report.json").read_text())
    assert json.loads(again.stdout)["overall"] == made["overall"]
