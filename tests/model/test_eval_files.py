"""Published evaluation files as references: RefCOCOg, Visual Genome, LVIS and PACO in their own layouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.corpus import CorpusError
from model.eval_files import AnnotationCorpus
from stages import masks

SIZE = (40, 60)


@pytest.fixture
def media(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("000000000007.jpg", "12.jpg", "a.jpg"):
        Image.fromarray(np.full((*SIZE, 3), 120, np.uint8)).save(folder / name)
    return folder


def _write(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


def _mask() -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[5:25, 10:30] = True
    return mask


def test_refcocog_expressions_of_one_box_are_references_of_one_target(media: Path, tmp_path: Path) -> None:
    image = {"file_name": "COCO_train2014_000000000007.jpg", "height": 40, "width": 60}
    box = {"bbox": [10, 5, 20, 20], "segmentation": [[10, 5, 30, 5, 30, 25, 10, 25]], "category_id": 1}
    file = _write(
        tmp_path / "refcocog.json",
        {
            "images": [image | {"id": 1, "caption": "the left dog"}, image | {"id": 2, "caption": "a dog lying down"}],
            "annotations": [box | {"id": 5, "image_id": 1}, box | {"id": 6, "image_id": 2}],
            "categories": [{"id": 1, "name": "object"}],
        },
    )
    corpus = AnnotationCorpus([file], media)
    assert corpus.index.select("task", "label", "region").rows() == [("brief", "object", "5")]
    example = corpus.load(0)
    assert (example.text, example.others) == ("the left dog", ("a dog lying down",))
    assert example.box == (10, 5, 30, 25)
    assert masks.iou(masks.decode(example.mask), _mask()) > 0.9
    assert example.read([0])[0].shape == (*SIZE, 3)
    # the target's pixels, not the file's name, are what a prompt is drawn from
    assert example.size == SIZE


def test_visual_genome_captions_and_region_descriptions(media: Path, tmp_path: Path) -> None:
    grit = _write(
        tmp_path / "test_caption.json",
        {
            "images": [{"id": 3, "file_name": "12.jpg"}],
            "annotations": [{"id": 1, "image_id": 3, "bbox": [1, 2, 3, 4], "caption": " a red   door "}],
        },
    )
    own = _write(
        tmp_path / "region_descriptions.json",
        [{"id": 12, "regions": [{"region_id": 9, "phrase": "a  door", "x": 1, "y": 2, "width": 5, "height": 6}]}],
    )
    corpus = AnnotationCorpus([grit, own], media)
    assert [corpus.load(at).text for at in range(2)] == ["a red   door", "a door"]
    assert [corpus.load(at).box for at in range(2)] == [(1, 2, 4, 6), (1, 2, 6, 8)]
    assert corpus.index["task"].to_list() == ["brief", "brief"]


def test_osprey_lists_of_lvis_and_paco_ask_for_the_category(media: Path, tmp_path: Path) -> None:
    rle = masks.encode(_mask())
    entry = {
        "file_name": "a.jpg", "height": 40, "width": 60, "categories": ["traffic_light:lamp", "dog"],
        "annotations": [
            {"segmentation": {"size": list(rle.size), "counts": rle.counts}},
            {"segmentation": {"size": [40, 60], "counts": [2400 - 40, 40]}, "bbox": [59, 0, 1, 40]},
        ],
    }  # fmt: skip
    corpus = AnnotationCorpus([_write(tmp_path / "paco_val_1k_category.json", [entry])], media)
    assert corpus.index.select("task", "label").rows() == [("label", "traffic light lamp"), ("label", "dog")]
    first, second = corpus.load(0), corpus.load(1)
    assert first.text == "traffic light lamp"
    assert first.box == (10, 5, 30, 25), "a mask without a box has one"
    assert second.box == (59, 0, 60, 40)
    assert masks.area(second.mask) == 40
    detailed = AnnotationCorpus([tmp_path / "paco_val_1k_category.json"], media, task="detailed")
    assert detailed.load(0).text == "", "a category is no reference for a description"


def test_lvis_categories_with_synonyms(shared_data: Path, tmp_path: Path) -> None:
    corpus = AnnotationCorpus([shared_data / "lvis" / "lvis_val_100.json"], tmp_path)
    assert len(corpus.index) == 977
    assert set(corpus.index["task"]) == {"label"}
    first = corpus.index["media"][0]
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(tmp_path / Path(first).name)
    example = corpus.load(0)
    assert example.text == example.label
    assert all("_" not in text for text in (example.text, *example.others))


def test_coco_photos_are_found_and_masks_fit(shared_data: Path) -> None:
    file = next((shared_data / "coco_tiny").glob("**/*.json"))
    corpus = AnnotationCorpus([file], shared_data / "coco_tiny" / "images" / "train2017")
    example = corpus.load(3)
    assert example.mask is not None
    assert example.mask.size == example.size


def test_what_is_not_readable_is_named(media: Path, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"x\.json: neither COCO-style.*found \['rows'\]"):
        AnnotationCorpus([_write(tmp_path / "x.json", {"rows": []})], media)
    with pytest.raises(CorpusError, match=r"behind target 0.*image_id"):
        AnnotationCorpus([_write(tmp_path / "y.json", {"images": [], "annotations": [{"id": 1}]})], media)
    with pytest.raises(CorpusError, match="no target"):
        AnnotationCorpus([_write(tmp_path / "e.json", {"images": [], "annotations": []})], media)
    secret = tmp_path / "secret.jpg"
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(secret)
    image = {"id": 1, "file_name": "../secret.jpg", "caption": "x"}
    given = {"images": [image], "annotations": [{"id": 1, "image_id": 1, "bbox": [0, 0, 2, 2]}]}
    corpus = AnnotationCorpus([_write(tmp_path / "up.json", given)], media)
    with pytest.raises(CorpusError, match="no such image below"):
        corpus.load(0)
