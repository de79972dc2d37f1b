"""`regions` JSON lines: one's own data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stages.ingest.base import SourceConfig, SourceError
from stages.ingest.sources import adapter_of, list_media, open_source


def write(folder: Path, *records: object, media: bool = True) -> SourceConfig:
    path = folder / "regions.jsonl"
    path.write_text("\n".join(item if isinstance(item, str) else json.dumps(item) for item in records) + "\n")
    return SourceConfig(format="regions", annotations=str(path), media=str(folder / "images") if media else ())


def test_boxes_points_polygons_and_masks_are_prompts(tmp_path, picture, rows_of):
    picture(tmp_path / "images" / "a.png")
    mask = {"size": [48, 64], "counts": [48 * 10, 96, 48 * 52]}
    rows = rows_of(
        write(
            tmp_path,
            {"media": "a.png", "box": [4, 6, 24, 16], "label": "cup", "definition": "a small vessel", "id": "x1"},
            {"media": "a.png", "points": [[10, 12], [40, 40, 0]]},
            {"media": "a.png", "polygons": [[4, 6, 24, 6, 24, 16]]},
            "",
            {"media": "a.png", "mask": mask, "hints": [{"kind": "phrase", "language": "zh", "text": "一条线"}]},
        )
    )
    assert [row.status for row in rows] == ["ok"] * 4
    assert rows[0].box == (4, 6, 24, 16)
    assert [(hint.kind, hint.text) for hint in rows[0].hints] == [("label", "cup"), ("definition", "a small vessel")]
    assert rows[1].box is None
    assert [(point.x, point.y, point.label) for point in rows[1].points or []] == [(10, 12, 1), (40, 40, 0)]
    assert rows[2].box == (4, 6, 24, 16)
    assert rows[3].box == (10, 0, 12, 48)
    assert rows[3].hints[0].language == "zh"
    assert [row.source_id for row in rows] == ["x1", "regions.jsonl:2", "regions.jsonl:3", "regions.jsonl:5"]


def test_bad_lines_fail_one_by_one(tmp_path, picture, rows_of):
    picture(tmp_path / "images" / "a.png")
    cases = [
        ({"media": "a.png", "box": [4, 6, 24, 16]}, None),
        ('{"media": "a.png", "box": [4, 6,', "bad_record"),
        ("[1, 2]", "bad_record"),
        ({"media": "a.png"}, "no_geometry"),
        ({"media": "a.png", "box": [4, 6, 24, 16], "colour": "red"}, "bad_record"),
        ({"media": "a.png", "points": [[100, 12]]}, "point_outside"),
        ({"media": "a.png", "box": [24, 16, 4, 6]}, "zero_area"),
        ({"media": "gone.png", "box": [4, 6, 24, 16]}, "missing_media"),
        ({"media": "/etc/passwd", "box": [4, 6, 24, 16]}, "missing_media"),
        ({"media": "a.png", "box": [4, 6, 24, 16], "frame_index": 3}, "frame_outside"),
        ('{"media": "a.png", "box": [4, 6, NaN, 16]}', "not_finite"),
        ({"media": "a.png", "box": [4, 6, 24, 16], "label": 7}, "bad_record"),
    ]
    rows = rows_of(write(tmp_path, *(record for record, _ in cases)))
    assert [row.reason for row in rows] == [reason for _, reason in cases]


def test_media_lie_beside_the_file_where_no_folder_is_configured(tmp_path, picture, rows_of):
    picture(tmp_path / "photos" / "a.png")
    (row,) = rows_of(write(tmp_path, {"media": "photos/a.png", "box": [4, 6, 24, 16]}, media=False))
    assert row.status == "ok"


def test_a_video_takes_its_prompt_from_the_first_visible_frame_of_its_track(tmp_path, picture, rows_of):
    for index in range(6):
        picture(tmp_path / "images" / "clip" / f"{index:05d}.jpg", seed=index)
    track = [
        {"frame_index": 4, "box": [8, 8, 70, 20]},
        {"frame_index": 0, "box": None},
        {"frame_index": 2, "box": [4, 6, 24, 16]},
        {"frame_index": 9, "box": [4, 6, 24, 16]},
    ]
    config = write(tmp_path, {"media": "clip/", "fps": 10, "track": track, "label": "cup"})
    (row,) = rows_of(config)
    assert row.status == "ok"
    assert (row.kind, row.frame_index, row.time_s) == ("video", 2, 0.2)
    assert row.box == (4, 6, 24, 16)
    points = row.track or []
    assert [(point.frame_index, point.time_s) for point in points] == [(0, 0.0), (2, 0.2), (4, 0.4)]
    assert points[2].box == (8, 8, 64, 20)
    assert "1 annotated frames beyond" in (row.message or "")
    assert list_media(config)["kind"].to_pylist() == ["video"]


def test_a_first_line_of_another_format_is_refused_with_its_keys(tmp_path, picture):
    picture(tmp_path / "images" / "a.png")
    config = write(tmp_path, {"image": "a.png", "conversations": []})
    with pytest.raises(SourceError, match="conversations"):
        list(adapter_of(config).regions(open_source(config)))


def test_unknown_formats_and_options_are_refused_with_the_nearest_name(tmp_path):
    with pytest.raises(SourceError, match="did you mean 'regions'"):
        adapter_of(SourceConfig(format="region", annotations="x"))
    with pytest.raises(SourceError, match="no options"):
        adapter_of(SourceConfig(format="regions", annotations="x", options={"fast": True}))
