"""RefText, Rexverse and PAM-data: text with boxes, from files of their own kinds."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.ingest.base import SourceConfig, SourceError
from stages.ingest.rexverse import extract_images
from stages.ingest.sources import adapter_of, open_source


def raw(config: SourceConfig) -> list:
    return list(adapter_of(config).regions(open_source(config)))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_reftext_is_read_without_running_its_pickle(tmp_path, picture, rows_of, zipped):
    picture(tmp_path / "images" / "a.jpg")
    records = [
        ("a.jpg", 7, [4, 6, 20, 10], "the sign  saying STOP", ["r1"]),
        ("a.jpg", 8, [4, 6, 20], "x", []),
        ("gone.jpg", 9, [4, 6, 20, 10], "x", []),
        ("a.jpg", 10, [4, 6, 20, 10], "", []),
    ]
    torch.save(records, tmp_path / "reftext_train.pth", _use_new_zipfile_serialization=zipped)
    config = SourceConfig(
        format="reftext", annotations=str(tmp_path / "reftext_train.pth"), media=str(tmp_path / "images")
    )
    rows = rows_of(config)
    assert [row.reason for row in rows] == [None, "bad_record", "missing_media", "bad_record"]
    assert (rows[0].source_id, rows[0].box) == ("7", (4, 6, 24, 16))
    assert [hint.text for hint in rows[0].hints] == ["the sign saying STOP"]


def test_reftext_words_that_lie_on_the_target_are_hints(tmp_path, picture, rows_of):
    picture(tmp_path / "images" / "a.jpg")
    torch.save([("a.jpg", n, [4, 6, 20, 10], "the sign", []) for n in (7, 8, 9)], tmp_path / "r.pth")
    stop = [["STOP  here", [[6, 8, 8, 4], [8, 8, 4, 4]]], ["HOTEL", [[40, 20, 8, 4]]], ["STOP here", [[4, 6, 9, 9]]]]
    words = {"7": stop, "8": [["x"]]}
    (tmp_path / "ocr.json").write_text(json.dumps(words))
    roles = {"records": str(tmp_path / "r.pth"), "ocr": str(tmp_path / "ocr.json")}
    config = SourceConfig(format="reftext", annotations=roles, media=str(tmp_path / "images"))
    rows = rows_of(config)
    assert [row.reason for row in rows] == [None, "bad_record", None]
    assert [(hint.kind, hint.text) for hint in rows[0].hints] == [
        ("phrase", "the sign"), ("attribute", 'bears the text "STOP here"'),
    ]  # fmt: skip
    assert [hint.kind for hint in rows[2].hints] == ["phrase"]
    (tmp_path / "ocr.json").write_text("[]")
    with pytest.raises(SourceError, match="sample id"):
        rows_of(config)


def test_reftext_boxes_may_be_numpy_arrays(tmp_path):
    torch.save([("a.jpg", 7, np.array([4, 6, 20, 10]), "x", [])], tmp_path / "r.pth")
    config = SourceConfig(format="reftext", annotations=str(tmp_path / "r.pth"), media=str(tmp_path))
    (table,) = raw(config)
    assert table["box"].to_pylist() == [[4.0, 6.0, 24.0, 16.0]]


def test_rexverse_lines_follow_their_images_out_of_the_tsv(tmp_path, picture, rows_of):
    for seed in range(2):
        picture(tmp_path / f"{seed}.jpg", seed=seed)
    coded = [base64.b64encode((tmp_path / f"{seed}.jpg").read_bytes()).decode() for seed in range(2)]
    (tmp_path / "images.tsv").write_text("".join(f"{seed}\t{text}\n" for seed, text in enumerate(coded)))
    assert extract_images([str(tmp_path / "images.tsv")], tmp_path / "out") == 2
    lines = [{"boxes": [{"bbox": [4, 6, 24, 16], "phrase": "a red cup"}, {"bbox": [4, 6], "phrase": "x"}]},
             {"boxes": [{"bbox": [1, 2, 30, 40], "phrase": "a dog"}]}, {"boxes": [{"bbox": [1, 2, 3, 4]}]}]  # fmt: skip
    (tmp_path / "a.tsv").write_text("".join(f"{n}\t{json.dumps(line)}\n" for n, line in enumerate(lines)) + "3\tx\n")
    config = SourceConfig(format="rexverse", annotations=str(tmp_path / "a.tsv"), media=str(tmp_path / "out"))
    rows = rows_of(config)
    assert [(row.source_id, row.reason) for row in rows] == [
        ("0_0", None), ("0_1", "bad_record"), ("1_0", None), ("2_0", "bad_record"), ("3", "bad_record"),
    ]  # fmt: skip
    assert rows[2].hints[0].text == "a dog"


def test_rexverse_of_another_layout_is_refused_with_what_it_holds(tmp_path):
    (tmp_path / "a.tsv").write_text('0\t{"objects": []}\n')
    with pytest.raises(SourceError, match="objects"):
        raw(SourceConfig(format="rexverse", annotations=str(tmp_path / "a.tsv"), media=str(tmp_path)))


def pam(value: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": "<image>\nx"}, {"from": "gpt", "value": value}]


def write(path: Path, *records: object) -> str:
    path.write_text("\n".join(json.dumps(record, ensure_ascii=False) for record in records))
    return str(path)


def test_released_pam_records_find_their_media_by_the_tail_of_their_path(tmp_path, picture, rows_of):
    picture(tmp_path / "media" / "train2017" / "a.jpg")
    for index in range(3):
        picture(tmp_path / "media" / "clips" / "v1" / f"{index:05d}.jpg", seed=index)
    path = write(
        tmp_path / "p.jsonl",
        {"type": "image", "image": "/home/u/data/train2017/a.jpg", "bbox": [4, 6, 20, 10], "points": [[10, 10]],
         "labels": [1], "conversations": pam("a cup")},
        {"type": "image", "image": "/home/u/data/train2017/a.jpg", "bbox": None, "points": [[10, 10], [40, 40]],
         "labels": [1, 0], "conversations": pam("一只杯子")},
        {"type": "video", "image_root": "/home/u/clips/v1", "frames": ["00001.jpg", "00002.jpg"],
         "bbox": [[4, 6, 20, 10]], "points": None, "labels": None, "conversations": pam("a dog runs")},
        {"type": "video", "image_root": "/home/u/clips/v1", "frames": ["00009.jpg"], "bbox": [[4, 6, 20, 10]],
         "points": None, "labels": None, "conversations": pam("x")},
        {"type": "image", "image": "a.jpg", "bbox": None, "points": None, "labels": None, "conversations": pam("x")},
        {"type": "text", "conversations": pam("x")},
    )  # fmt: skip
    rows = rows_of(SourceConfig(format="pam_data", annotations=path, media=str(tmp_path / "media")))
    assert [row.reason for row in rows] == [None, None, None, "bad_record", "bad_record", "bad_record"]
    assert (rows[0].box, rows[0].hints[0].kind) == ((4, 6, 24, 16), "caption")
    assert rows[1].hints[0].language == "zh"
    assert [point.label for point in rows[1].points or []] == [1, 0]
    assert (rows[2].kind, rows[2].frame_index) == ("video", 1)
