"""Previews: a picture of the first regions, whatever else is in the file."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from stages.ingest.base import SourceConfig, SourceError
from stages.ingest.preview import preview


def test_the_target_is_tinted_where_its_mask_lies(tmp_path):
    Image.new("RGB", (320, 320), (0, 0, 255)).save(tmp_path / "a.png")
    records = [
        {"media": "a.png", "polygons": [[80, 80, 240, 80, 240, 240, 80, 240]], "label": "square"},
        {"media": "gone.png", "box": [1, 1, 90, 90]},
    ]
    (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, records)))
    data = preview(SourceConfig(format="regions", annotations=str(tmp_path / "r.jsonl")))
    pixels = np.asarray(Image.open(io.BytesIO(data)))
    assert pixels[160, 160].tolist() == [127, 32, 143]
    assert pixels[20, 20].tolist() == [0, 0, 255]


def test_the_first_sixteen_good_regions_are_shown(shared_data):
    folder = shared_data / "coco_tiny"
    config = SourceConfig(
        format="coco",
        annotations=str(folder / "annotations" / "instances_train2017.json"),
        media=str(folder / "images"),
    )
    image = Image.open(io.BytesIO(preview(config)))
    assert image.size == (4 * 320, 4 * 364 + 22)


def test_a_file_of_another_format_is_an_error(tmp_path):
    (tmp_path / "r.jsonl").write_text("{}")
    with pytest.raises(SourceError):
        preview(SourceConfig(format="coco", annotations=str(tmp_path / "r.jsonl")))
