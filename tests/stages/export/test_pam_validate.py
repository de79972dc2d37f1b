"""The validator finds each broken rule, and nothing in a good file."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from jobs.cli import app
from prompts.pam import user_text
from stages.export import validate_pam


def image_record(folder: Path) -> dict:
    return {
        "id": "1",
        "type": "image",
        "image": str(folder / "a.jpg"),
        "conversations": [{"from": "human", "value": user_text("brief", "en")}, {"from": "gpt", "value": "A cup."}],
        "bbox": [4, 5, 20.5, 10],
        "points": [[5, 6], [7, 8], [9, 10], [11, 12]],
        "labels": [1, 1, 0, 1],
    }


def video_record(folder: Path) -> dict:
    return {
        "type": "video",
        "image_root": str(folder / "clip"),
        "frames": [f"{index:05d}.jpg" for index in range(16)],
        "conversations": [{"from": "human", "value": user_text("stream", "zh", "前")}, {"from": "gpt", "value": "杯"}],
        "bbox": [[4, 5, 20, 10]],
        "points": [[[5, 6], [7, 8], [9, 10]]],
        "labels": [[1, 1, 1]],
    }


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "clip").mkdir()
    picture = Image.new("RGB", (64, 48), (10, 200, 30))
    picture.save(tmp_path / "a.jpg")
    for index in range(16):
        picture.save(tmp_path / "clip" / f"{index:05d}.jpg")
    return tmp_path


def check(folder: Path, *records: object, name: str = "f.jsonl", **options) -> list[tuple[int, str]]:
    path = folder / name
    path.write_text("\n".join(json.dumps(record, ensure_ascii=False) for record in records) + "\n", "utf-8")
    return [(problem.line, problem.rule) for problem in validate_pam(path, **options) if problem.severity == "error"]


def test_good_records_have_no_problem(folder):
    assert check(folder, image_record(folder)) == []
    assert check(folder, video_record(folder)) == []
    path = folder / "list.json"
    path.write_text(json.dumps([image_record(folder)]), "utf-8")
    assert validate_pam(path) == []


IMAGE_FAULTS = {
    "bbox": [
        lambda r: r.pop("bbox"),
        lambda r: r.update(bbox=[]),
        lambda r: r.update(bbox=[1, 2, 3]),
        lambda r: r.update(bbox=[1, 2, 0.5, 10]),
        lambda r: r.update(bbox=[1, 2, -4, 10]),
        lambda r: r.update(bbox=[1, 2, float("nan"), 10]),
        lambda r: r.update(bbox=[-5, 2, 20, 10]),
        lambda r: r.update(bbox=[[4, 5, 20, 10]]),
        lambda r: r.update(bbox=[50, 5, 40, 10]),
    ],
    "points": [
        lambda r: r.pop("points"),
        lambda r: r.update(points=[], labels=[]),
        lambda r: r.update(points=r["points"][:2], labels=[1, 1]),
        lambda r: r.update(points=r["points"][:3], labels=[1, 1, 1]),
        lambda r: r.update(points=[[1, 2, 3]] * 4),
        lambda r: r.update(points=[[70, 2]] * 4),
    ],
    "labels": [
        lambda r: r.pop("labels"),
        lambda r: r.update(labels=None),
        lambda r: r.update(labels=[1, 1]),
        lambda r: r.update(labels=[1, 2, 1, 1]),
        lambda r: r.update(labels=[0, 0, 0, 0]),
        lambda r: r.update(labels=[True, True, True, True]),
    ],
    "prompt": [lambda r: r.update(bbox=None, points=None, labels=None)],
    "type": [lambda r: r.update(type="text"), lambda r: r.pop("type")],
    "image": [lambda r: r.pop("image"), lambda r: r.update(image=["a.jpg"])],
    "media": [lambda r: r.update(image="/nowhere/x.jpg")],
    "conversations": [
        lambda r: r.pop("conversations"),
        lambda r: r.update(conversations=r["conversations"][:1]),
        lambda r: r["conversations"][0].pop("from"),
    ],
    "roles": [lambda r: r["conversations"].reverse(), lambda r: r["conversations"][1].update({"from": "assistant"})],
    "value": [lambda r: r["conversations"][1].update(value=" ")],
    "image_mark": [
        lambda r: r["conversations"][0].update(value="What?"),
        lambda r: r["conversations"][1].update(value="<image> twice"),
    ],
}
VIDEO_FAULTS = {
    "frames": [
        lambda r: r.pop("frames"),
        lambda r: r.update(frames=r["frames"][:15]),
        lambda r: r.update(frames=[1] * 16),
    ],
    "image_root": [lambda r: r.pop("image_root")],
    "media": [lambda r: r.update(frames=[*r["frames"][:15], "99999.jpg"])],
    "bbox": [lambda r: r.update(bbox=[4, 5, 20, 10])],
    "points": [
        lambda r: r.update(points=[r["points"][0][:2]], labels=[[1, 1]]),
        lambda r: r.update(points=r["points"][0]),
    ],
}


@pytest.mark.parametrize(("rule", "number"), [(r, n) for r, faults in IMAGE_FAULTS.items() for n in range(len(faults))])
def test_each_rule_for_images(folder, rule, number):
    record = image_record(folder)
    IMAGE_FAULTS[rule][number](record)
    assert (2, rule) in check(folder, image_record(folder), record)


@pytest.mark.parametrize(("rule", "number"), [(r, n) for r, faults in VIDEO_FAULTS.items() for n in range(len(faults))])
def test_each_rule_for_videos(folder, rule, number):
    record = video_record(folder)
    VIDEO_FAULTS[rule][number](record)
    assert (2, rule) in check(folder, video_record(folder), record)


def test_one_point_is_enough(folder):
    record = image_record(folder) | {"points": [[5, 6]], "labels": [1], "bbox": None}
    assert check(folder, record) == []


def test_a_broken_line_is_named_and_the_others_are_read(folder):
    path = folder / "broken.jsonl"
    good = json.dumps(image_record(folder)).encode()
    path.write_bytes(good + b'\n{"type": \n' + b"\xff\xfe\n" + b"[1]\n" + good + b"\n")
    assert [(problem.line, problem.rule) for problem in validate_pam(path)] == [(2, "json"), (3, "json"), (4, "record")]


def test_doubts_are_warnings(folder):
    strange = copy.deepcopy(image_record(folder))
    strange["conversations"][0]["value"] = "<image>\nWhat is this?"
    strange["conversations"][1]["value"] = "long " * 12_000
    strange["extra"] = 1
    path = folder / "doubts.jsonl"
    path.write_text("\n".join(json.dumps(record) for record in (strange, video_record(folder))), "utf-8")
    found = {(problem.rule, problem.severity) for problem in validate_pam(path)}
    assert found == {(rule, "warning") for rule in ("prompt_text", "length", "unknown_keys", "mixed_types")}


def test_every_listed_frame_is_opened_and_is_of_one_size(folder):
    record = video_record(folder)
    frame = folder / "clip" / "00009.jpg"
    whole = frame.read_bytes()
    frame.write_bytes(whole[: len(whole) // 2])
    assert check(folder, record) == [(1, "media")]
    frame.write_bytes(b"")
    assert check(folder, record, record | {"frames": record["frames"][:9] * 2}) == [(1, "media")]
    Image.new("RGB", (48, 64)).save(frame)
    assert check(folder, record) == [(1, "frame_sizes")]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "\n" + text + "\n\n",
        lambda text: text.replace("\n", "", 1),
        lambda text: text.replace("<image>\n", "") + "\n<image>",
    ],
)
@pytest.mark.parametrize("record", [image_record, video_record])
def test_a_question_that_is_not_byte_exact_is_doubted(folder, record, change):
    asked = record(folder)
    asked["conversations"][0]["value"] = change(asked["conversations"][0]["value"])
    path = folder / "asked.jsonl"
    path.write_text(json.dumps(asked), "utf-8")
    assert [(problem.rule, problem.severity) for problem in validate_pam(path)] == [("prompt_text", "warning")]


def test_paths_written_for_elsewhere_are_found_under_the_root(folder):
    there = image_record(folder) | {"image": "/there/a.jpg"}
    clip = video_record(folder) | {"image_root": "/there/clip"}
    assert check(folder, there, clip, root=folder, path_prefix="/there") == []
    assert check(folder, there, root=folder, path_prefix="/the") == [(1, "media")]
    (folder / "a.jpg").unlink()
    assert check(folder, there, clip, root=folder, path_prefix="/there/") == [(1, "media")]


def test_the_command_checks_a_file_that_was_written_for_elsewhere(folder):
    path = folder / "there.jsonl"
    path.write_text(json.dumps(image_record(folder) | {"image": "/there/a.jpg"}), "utf-8")
    command = ["validate-pam", str(path), "--root", str(folder), "--json"]
    found = CliRunner().invoke(app, [*command, "--path-prefix", "/there"])
    assert (found.exit_code, json.loads(found.stdout)) == (0, [])
    found = CliRunner().invoke(app, command)
    assert (found.exit_code, [problem["rule"] for problem in json.loads(found.stdout)]) == (1, ["media"])


def test_paths_are_taken_from_the_given_root(folder):
    record = image_record(folder) | {"image": "a.jpg"}
    assert check(folder, record, root=folder) == []
    assert check(folder, record, root=folder / "clip") == [(1, "media")]
    assert check(folder, record, check_media=False) == []
