"""The image datasets: fields mapped, odd cases as their documentation has them."""

from __future__ import annotations

import csv
import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.ingest.base import SourceConfig, SourceError
from stages.ingest.sources import adapter_of, list_media, open_source


def texts(row, kind: str | None = None) -> list[str]:
    return [hint.text for hint in row.hints if kind in (None, hint.kind)]


def as_json(path: Path, value: object) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False))
    return str(path)


def as_csv(path: Path, header: list[str], *rows: list[object]) -> str:
    with path.open("w", newline="") as out:
        csv.writer(out).writerows([header, *rows])
    return str(path)


def raw(config: SourceConfig) -> list:
    return list(adapter_of(config).regions(open_source(config)))


def test_objects365_finds_photos_below_the_old_folders_and_passes_over_fakes(tmp_path, picture, rows_of):
    picture(tmp_path / "images" / "patch8" / "objects365_v1_00420917.png")
    document = {
        "images": [{"id": 420917, "file_name": "images/v1/patch8/objects365_v1_00420917.png", "width": 64,
                    "height": 48}],
        "annotations": [
            {"id": 1, "image_id": 420917, "category_id": 2, "bbox": [4.5, 6, 20, 10], "iscrowd": 0, "isfake": 0},
            {"id": 2, "image_id": 420917, "category_id": 2, "bbox": [4, 6, 20, 10], "iscrowd": 0, "isfake": 1},
            {"id": 3, "image_id": 420917, "category_id": 2, "bbox": [4, 9, 20, 10], "iscrowd": 1, "isreflected": 1},
        ],
        "categories": [{"id": 2, "name": "Wine Glass"}],
    }  # fmt: skip
    config = SourceConfig(
        format="objects365", annotations=as_json(tmp_path / "o.json", document), media=str(tmp_path / "images")
    )
    good, fake, crowd = rows_of(config)
    assert (good.status, good.box, good.polygons) == ("ok", (4.5, 6, 24.5, 16), None)
    assert (fake.status, fake.reason) == ("filtered", "fake")
    assert crowd.is_crowd
    assert texts(crowd, "attribute") == ["seen in a reflection"]


def test_v3det_gives_chinese_names_and_definitions_in_their_own_language(tmp_path, picture, rows_of):
    picture(tmp_path / "V3Det" / "images" / "n07745046" / "13_1.png")
    document = {
        "images": [{"id": 1, "file_name": "images/n07745046/13_1.png", "width": 64, "height": 48},
                   {"id": 2, "file_name": "images/n07745046/gone.png", "width": 64, "height": 48}],
        "annotations": [{"id": n, "image_id": n, "category_id": 5, "bbox": [4, 6, 20, 10]} for n in (1, 2)],
        "categories": [{"id": 5, "name": "loquat", "name_zh": "枇杷", "cat_info": "a yellow fruit",
                        "cat_info_gpt": "an evergreen tree's fruit", "novel": False}],
    }  # fmt: skip
    config = SourceConfig(
        format="v3det", annotations=as_json(tmp_path / "v.json", document), media=str(tmp_path / "V3Det")
    )
    good, gone = rows_of(config)
    assert [(hint.kind, hint.language, hint.text) for hint in good.hints] == [
        ("label", "en", "loquat"), ("label", "zh", "枇杷"), ("definition", "en", "a yellow fruit"),
        ("definition", "en", "an evergreen tree's fruit"),
    ]  # fmt: skip
    assert gone.reason == "missing_media"


def test_paco_parts_are_called_part_of_their_object_and_carry_attributes(tmp_path, picture, rows_of):
    picture(tmp_path / "train2017" / "000000000007.png")
    document = {
        "images": [{"id": 7, "file_name": "train2017/000000000007.png", "width": 64, "height": 48,
                    "coco_url": "http://images.cocodataset.org/train2017/000000000007.png"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 10, "bbox": [4, 6, 30, 30], "obj_ann_id": 1, "area": 900,
             "segmentation": {"size": [48, 64], "counts": [48 * 4 + 6, 30, 18, 30, 48 * 64 - 48 * 4 - 84]},
             "attribute_ids": [2, 3], "dom_color_ids": [2], "unknown_color": 0},
            {"id": 2, "image_id": 7, "category_id": 11, "bbox": [4, 6, 10, 10], "obj_ann_id": 1, "attribute_ids": []},
        ],
        "categories": [{"id": 10, "name": "mug", "supercategory": "OBJECT"},
                       {"id": 11, "name": "mug:drinking_rim", "supercategory": "PART"}],
        "attributes": [{"id": 2, "name": "light_blue"}, {"id": 3, "name": "ceramic"}],
    }  # fmt: skip
    config = SourceConfig(format="paco", annotations=as_json(tmp_path / "p.json", document), media=str(tmp_path))
    whole, part = rows_of(config)
    assert (whole.label, whole.is_part, texts(whole, "attribute")) == ("mug", False, ["light blue", "ceramic"])
    assert whole.mask is not None
    assert (part.label, part.is_part) == ("drinking rim of mug", True)
    assert texts(part, "relation") == ["part of mug"]


@pytest.fixture
def openimages(tmp_path, picture) -> SourceConfig:
    picture(tmp_path / "train" / "abc.jpg")
    picture(tmp_path / "train" / "side.jpg", orientation=6)
    boxes = as_csv(
        tmp_path / "boxes.csv",
        ["ImageID", "Source", "LabelName", "Confidence", "XMin", "XMax", "YMin", "YMax", "IsOccluded", "IsTruncated",
         "IsGroupOf", "IsDepiction", "IsInside"],
        ["abc", "xclick", "/m/01", 1, 0.25, 0.75, 0.5, 1.0, 0, 0, 0, 0, 0],
        ["abc", "xclick", "/m/01", 1, 0.0, 1.0, 0.0, 1.0, 0, 0, 1, 1, 0],
        ["abc", "xclick", "/m/99", 1, 0.0, 1.0, 0.0, 1.0, 0, 0, 0, 0, 0],
        ["gone", "xclick", "/m/01", 1, 0.0, 1.0, 0.0, 1.0, 0, 0, 0, 0, 0],
        ["abc", "xclick", "/m/01", 1, "left", 1.0, 0.0, 1.0, 0, 0, 0, 0, 0],
        ["side", "xclick", "/m/01", 1, 0.0, 0.5, 0.0, 0.25, 0, 0, 0, 0, 0],
    )  # fmt: skip
    classes = as_csv(tmp_path / "classes.csv", ["LabelName", "DisplayName"], ["/m/01", "Wine glass"])
    images = as_csv(tmp_path / "images.csv", ["ImageID", "Rotation"], ["abc", "0.0"], ["side", "270.0"], ["x", ""])
    roles = {"boxes": boxes, "classes": classes, "images": images}
    return SourceConfig(format="openimages", annotations=roles, media=str(tmp_path / "train"))


def test_openimages_boxes_are_fractions_in_the_order_min_max(openimages, rows_of):
    rows = rows_of(openimages)
    assert [row.reason for row in rows] == [None, None, "unknown_category", "missing_media", "bad_record", None]
    assert rows[0].box == (16, 24, 48, 48)
    assert (rows[0].label, rows[0].source_media_id) == ("Wine glass", "abc")
    assert rows[1].is_group
    assert texts(rows[1], "attribute") == ["a depiction (drawing, sculpture or the like)"]


def test_openimages_boxes_of_turned_images_are_of_the_stored_raster(openimages, rows_of):
    turned = rows_of(openimages)[-1]
    assert turned.box == (36, 0, 48, 32)


def test_openimages_masks_are_resized_to_the_image(tmp_path, openimages, rows_of):
    mask = np.zeros((24, 32), np.uint8)
    mask[6:12, 8:16] = 255
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    folder = tmp_path / "masks"
    folder.mkdir()
    with zipfile.ZipFile(folder / "train-masks-a.zip", "w") as archive:
        archive.writestr("abc_m01_1.png", buffer.getvalue())
    masks = as_csv(
        tmp_path / "masks.csv",
        ["MaskPath", "ImageID", "LabelName", "BoxID", "BoxXMin", "BoxXMax", "BoxYMin", "BoxYMax", "PredictedIoU"],
        ["abc_m01_1.png", "abc", "/m/01", "1", 0.25, 0.5, 0.25, 0.5, 0.9],
        ["abc_m01_2.png", "abc", "/m/01", "2", 0.25, 0.5, 0.25, 0.5, 0.9],
    )
    roles = {"masks": masks, "mask_images": str(folder), "classes": openimages.annotation("classes")}
    good, gone = rows_of(openimages.model_copy(update={"annotations": roles}))
    assert (good.status, good.box) == ("ok", (16, 12, 32, 24))
    assert good.mask is not None
    assert good.mask.size == (48, 64)
    assert gone.reason == "bad_record"


def test_openimages_with_other_columns_shows_them(tmp_path, openimages):
    wrong = as_csv(tmp_path / "wrong.csv", ["image", "label"], ["abc", "cup"])
    with pytest.raises(SourceError, match="'image', 'label'"):
        raw(openimages.model_copy(update={"annotations": {"boxes": wrong}}))


def test_visual_genome_reads_both_spellings_of_size_and_clamps(tmp_path, picture, rows_of):
    picture(tmp_path / "VG_100K" / "1.png")
    picture(tmp_path / "VG_100K_2" / "2.png")
    url = "https://cs.stanford.edu/people/rak248/{}/{}.png"
    roles = {
        "regions": as_json(tmp_path / "region_descriptions.json", [
            {"id": 1, "regions": [
                {"region_id": 1382, "width": 82, "height": 139, "image_id": 1, "phrase": "the clock\n is green",
                 "y": 7, "x": -4},
                {"region_id": 1383, "width": 20, "height": 10, "image_id": 1, "phrase": "one two three four five",
                 "y": 7, "x": 4},
                {"region_id": 1384, "width": 20, "height": 10, "image_id": 1, "phrase": " ", "y": 7, "x": 4}]}]),
        "objects": as_json(tmp_path / "attributes.json", [
            {"image_id": 2, "attributes": [
                {"object_id": 5, "x": 4, "y": 6, "w": 20, "h": 10, "names": ["shade", "curtain"],
                 "attributes": ["Red", "red", "long"], "synsets": []},
                {"object_id": 6, "x": 4, "y": 6, "w": 0, "h": 10, "names": ["tree"]}]},
            {"image_id": 3, "attributes": [
                {"object_id": 7, "x": 4, "y": 6, "w": 20, "h": 10, "names": ["tree"]}]}]),
        "images": as_json(tmp_path / "image_data.json", [
            {"image_id": n, "width": 64, "height": 48, "url": url.format(folder, n), "coco_id": None}
            for n, folder in ((1, "VG_100K"), (2, "VG_100K_2"), (3, "VG_100K"))]),
    }  # fmt: skip
    config = SourceConfig(format="visual_genome", annotations=roles, media=str(tmp_path), options={"max_words": 4})
    rows = {row.source_id: row for row in rows_of(config)}
    assert {name: row.reason for name, row in rows.items()} == {
        "regions:1382": None, "regions:1383": "phrase_too_long", "regions:1384": "bad_record", "objects:5": None,
        "objects:6": "zero_area", "objects:7": "missing_media",
    }  # fmt: skip
    assert rows["regions:1382"].box == (0, 7, 64, 48)
    assert texts(rows["regions:1382"], "phrase") == ["the clock is green"]
    assert rows["objects:5"].label == "shade"
    assert texts(rows["objects:5"]) == ["shade", "curtain", "red", "long"]


def test_visual_genome_splits_keep_the_benchmark_out(tmp_path, picture, rows_of):
    for number in (1, 2):
        picture(tmp_path / "VG_100K" / f"{number}.jpg")
    objects = [{"image_id": n, "objects": [{"object_id": n, "x": 4, "y": 6, "w": 20, "h": 10, "names": ["tree"]}]}
               for n in (1, 2)]  # fmt: skip
    roles = {
        "objects": as_json(tmp_path / "objects.json", objects),
        "splits": as_json(tmp_path / "splits.json", {"train": [1], "test": [2]}),
    }
    rows = rows_of(SourceConfig(format="visual_genome", annotations=roles, media=str(tmp_path)))
    assert [(row.split, row.status, row.reason) for row in rows] == [
        ("train", "ok", None), ("test", "filtered", "other_split"),
    ]  # fmt: skip


REFS = [
    {"ref_id": 11, "ann_id": 1, "image_id": 9, "category_id": 1, "split": "train",
     "file_name": "COCO_train2014_000000000009_1.jpg", "sent_ids": [0, 1],
     "sentences": [{"sent": "the left cup", "raw": "The left cup!", "tokens": ["the", "left", "cup"], "sent_id": 0},
                   {"sent": "cup", "raw": "cup", "tokens": ["cup"], "sent_id": 1}]},
    {"ref_id": 12, "ann_id": 2, "image_id": 9, "category_id": 1, "split": "testA", "sentences": [{"sent": "a"}]},
    {"ref_id": 13, "ann_id": 99, "image_id": 9, "category_id": 1, "split": "train", "sentences": [{"sent": "a"}]},
]  # fmt: skip
INSTANCES = {
    "images": [{"id": 9, "file_name": "COCO_train2014_000000000009.jpg", "width": 64, "height": 48}],
    "annotations": [
        {"id": 1, "image_id": 9, "category_id": 1, "bbox": [4, 6, 20, 10], "segmentation": [[4, 6, 24, 6, 24, 16]]},
        {"id": 2, "image_id": 9, "category_id": 1, "bbox": [30, 20, 20, 10],
         "segmentation": [[30, 20, 50, 20, 50, 30]]},
    ],
    "categories": [{"id": 1, "name": "cup"}],
}  # fmt: skip


@pytest.fixture
def photos(tmp_path, picture) -> str:
    picture(tmp_path / "train2014" / "COCO_train2014_000000000009.jpg")
    return str(tmp_path / "train2014")


def test_refcoco_pickles_give_one_region_a_reference_with_all_its_sentences(tmp_path, photos, rows_of):
    path = tmp_path / "refs(unc).p"
    path.write_bytes(pickle.dumps(REFS, protocol=2))
    roles = {"refs": str(path), "instances": as_json(tmp_path / "instances.json", INSTANCES)}
    rows = rows_of(SourceConfig(format="refer", annotations=roles, media=photos))
    assert [(row.source_id, row.reason) for row in rows] == [
        ("11", None), ("12", "other_split"), ("13", "unknown_annotation"),
    ]  # fmt: skip
    assert texts(rows[0], "phrase") == ["The left cup!", "cup"]
    assert (rows[0].label, rows[0].box, rows[0].polygons) == ("cup", (4, 6, 24, 16), [[4, 6, 24, 6, 24, 16]])


def test_a_pickle_that_names_code_is_refused_and_runs_nothing(tmp_path, photos):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    path = tmp_path / "refs.p"
    path.write_bytes(pickle.dumps([Trap()], protocol=2))
    roles = {"refs": str(path), "instances": as_json(tmp_path / "instances.json", INSTANCES)}
    with pytest.raises(SourceError, match="refused"):
        raw(SourceConfig(format="refer", annotations=roles, media=photos))
    assert not (tmp_path / "ran").exists()


def test_grefcoco_unites_several_targets_and_passes_over_none(tmp_path, photos, rows_of):
    refs = [
        {"ref_id": 1, "ann_id": [1, 2], "image_id": 9, "category_id": [1, 1], "split": "train", "no_target": False,
         "sentences": [{"sent": "both cups"}]},
        {"ref_id": 2, "ann_id": [-1], "image_id": 9, "category_id": [-1], "split": "train", "no_target": True,
         "sentences": [{"sent": "a dog"}]},
    ]  # fmt: skip
    roles = {
        "refs": as_json(tmp_path / "grefs(unc).json", refs),
        "instances": as_json(tmp_path / "instances.json", INSTANCES),
    }
    config = SourceConfig(format="grefcoco", annotations=roles, media=photos)
    both, none = rows_of(config)
    assert both.box == (4, 6, 50, 30)
    assert len(both.polygons or []) == 2
    assert (none.status, none.reason) == ("filtered", "no_target")
    skipped = rows_of(config.model_copy(update={"options": {"several": "skip"}}))
    assert [row.reason for row in skipped] == ["several_targets", "no_target"]


def test_google_refexp_has_ids_as_strings_and_takes_the_aligned_boxes(tmp_path, photos, rows_of):
    document = {
        "annotations": {"1": {"annotation_id": 1, "image_id": 9, "refexp_ids": [5, 6], "category_id": 1,
                              "bbox": [4, 6, 20, 10], "segmentation": [[4, 6, 24, 6, 24, 16]]},
                        "2": {"annotation_id": 2, "image_id": 9, "refexp_ids": []}},
        "images": {"9": {"image_id": 9, "width": 64, "height": 48,
                         "region_candidates": [{"bounding_box": [0, 0, 9, 9], "predicted_object_name": "dog"}]}},
        "refexps": {"5": {"refexp_id": 5, "raw": "A white cup.", "tokens": []}, "6": {"refexp_id": 6, "raw": "cup"}},
    }  # fmt: skip
    path = as_json(tmp_path / "google_refexp_train_201511_coco_aligned.json", document)
    config = SourceConfig(format="google_refexp", annotations=path, media=photos)
    good, boxless = rows_of(config)
    assert (good.source_id, good.box, texts(good, "phrase")) == ("1", (4, 6, 24, 16), ["A white cup.", "cup"])
    assert boxless.reason == "bad_record"
    roles = {"refs": path, "instances": as_json(tmp_path / "instances.json", INSTANCES)}
    joined = rows_of(config.model_copy(update={"annotations": roles}))
    assert [row.reason for row in joined] == [None, None]
    assert joined[1].box == (30, 20, 50, 30)
    assert {row.label for row in joined} == {"cup"}


def test_the_photo_of_a_reference_is_listed_once(tmp_path, photos):
    roles = {"refs": as_json(tmp_path / "r.json", REFS), "instances": as_json(tmp_path / "instances.json", INSTANCES)}
    listed = list_media(SourceConfig(format="refer", annotations=roles, media=photos))
    assert listed["source_media_id"].to_pylist() == ["9"]
