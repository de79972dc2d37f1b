"""COCO and LVIS: every annotation becomes one row, good or with a reason."""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from stages.ingest.base import SourceConfig, SourceError
from stages.ingest.plain import PlainAnnotations
from stages.ingest.sources import adapter_of, list_media, open_source, source_state

CATEGORIES = [{"id": 1, "name": "cup"}, {"id": 7, "name": "dining_table", "supercategory": "furniture"}]


def write(folder: Path, annotations: list[dict], images: list[dict] | None = None, **more: object) -> SourceConfig:
    images = images or [{"id": 5, "file_name": "a.png", "width": 64, "height": 48}]
    folder.mkdir(exist_ok=True, parents=True)
    document = {"info": {}, "images": images, "annotations": annotations, "categories": CATEGORIES, **more}
    (folder / "instances.json").write_text(json.dumps(document))
    return SourceConfig(
        format="coco", annotations=str(folder / "instances.json"), media=str(folder / "images"), licence="CC-BY-4.0"
    )


def annotation(number: int, **fields: object) -> dict:
    return {"id": number, "image_id": 5, "category_id": 1, "bbox": [4, 6, 20, 10], "iscrowd": 0} | fields


def test_every_annotation_is_one_row_with_its_fate(tmp_path, picture, rows_of):
    picture(tmp_path / "images" / "a.png")
    cases = {
        None: annotation(1, segmentation=[[4, 6, 24, 6, 24, 16]]),
        "box_outside": annotation(2, bbox=[100, 6, 20, 10]),
        "zero_area": annotation(3, bbox=[4, 6, 0, 10]),
        "box_too_small": annotation(4, bbox=[63, 6, 20, 10]),
        "unknown_category": annotation(5, category_id=99),
        "unknown_image": annotation(6, image_id=99),
        "not_finite": annotation(7, bbox=[4, float("nan"), 20, 10]),
        "bad_record": annotation(8, bbox=[4, 6, 20]),
        "empty_mask": annotation(9, segmentation={"size": [48, 64], "counts": [48 * 64]}),
        "mask_size_mismatch": annotation(10, segmentation={"size": [10, 10], "counts": [40, 20, 40]}),
    }
    rows = rows_of(write(tmp_path, list(cases.values())))
    assert {row.reason: row.source_id for row in rows} == {reason: str(case["id"]) for reason, case in cases.items()}
    assert {row.status for row in rows if row.reason} == {"failed"}
    assert all(row.message for row in rows if row.reason)
    assert len({row.region_key for row in rows}) == len(rows)


def test_a_good_annotation_keeps_its_polygons_label_and_provenance(tmp_path, picture, rows_of):
    picture(tmp_path / "images" / "a.png")
    ring = [4.0, 6.0, 24.0, 6.0, 24.0, 16.5]
    (row,) = rows_of(write(tmp_path, [annotation(1, segmentation=[ring, []], category_id=7)]))
    assert row.polygons == [ring]
    assert row.box == (4.0, 6.0, 24.0, 16.0)
    assert (row.label, row.licence, row.split, row.source) == ("dining table", "CC-BY-4.0", "train", "coco_train")
    assert [(hint.kind, hint.text) for hint in row.hints] == [("label", "dining table")]


def test_run_lengths_as_list_and_as_string_are_the_same_mask(tmp_path, picture, rows_of):
    from pycocotools import mask as coco

    picture(tmp_path / "images" / "a.png")
    counts = [48 * 10 + 5, 10, 38, 10, 48 * 64 - 48 * 10 - 63]
    compressed = coco.frPyObjects({"size": [48, 64], "counts": counts}, 48, 64)["counts"].decode()
    rows = rows_of(
        write(
            tmp_path,
            [
                annotation(1, iscrowd=1, bbox=None, segmentation={"size": [48, 64], "counts": counts}),
                annotation(2, bbox=None, segmentation={"size": [48, 64], "counts": compressed}),
            ],
        )
    )
    assert [row.status for row in rows] == ["ok", "ok"]
    assert rows[0].mask == rows[1].mask
    assert rows[0].box == (10.0, 5.0, 12.0, 15.0)
    assert [row.is_crowd for row in rows] == [True, False]


def test_boxes_are_clamped_to_the_image(tmp_path, picture, rows_of):
    picture(tmp_path / "images" / "a.png")
    (row,) = rows_of(write(tmp_path, [annotation(1, bbox=[-5, 40, 20, 20])]))
    assert row.box == (0.0, 40.0, 15.0, 48.0)


@pytest.mark.parametrize(
    ("stated", "expected"),
    [((64, 48), (38.0, 4.0, 48.0 - 6.0, 24.0)), ((48, 64), (4.0, 6.0, 8.0, 26.0))],
    ids=["stored raster", "as shown"],
)
def test_boxes_of_a_rotated_photo_are_upright_whichever_raster_they_were_of(
    tmp_path, picture, rows_of, stated, expected
):
    picture(tmp_path / "images" / "a.jpg", 64, 48, orientation=6)
    images = [{"id": 5, "file_name": "a.jpg", "width": stated[0], "height": stated[1]}]
    box = [4, 6, 20, 4] if stated == (64, 48) else [4, 6, 4, 20]
    (row,) = rows_of(write(tmp_path, [annotation(1, bbox=box)], images))
    assert row.status == "ok"
    assert row.box == expected


def test_sizes_that_do_not_agree_fail_instead_of_pointing_beside_the_target(tmp_path, picture, rows_of):
    picture(tmp_path / "images" / "a.png")
    images = [{"id": 5, "file_name": "a.png", "width": 640, "height": 480}]
    (row,) = rows_of(write(tmp_path, [annotation(1)], images))
    assert row.reason == "size_mismatch"
    assert "640x480" in (row.message or "")


def test_missing_and_damaged_photos_fail_their_regions_only(tmp_path, picture, rows_of):
    picture(tmp_path / "images" / "a.png")
    whole = picture(tmp_path / "images" / "cut.png", seed=1).read_bytes()
    (tmp_path / "images" / "cut.png").write_bytes(whole[: len(whole) // 2])
    images = [
        {"id": 5, "file_name": "a.png", "width": 64, "height": 48},
        {"id": 6, "file_name": "cut.png", "width": 64, "height": 48},
        {"id": 7, "file_name": "gone.png", "width": 64, "height": 48},
        {"id": 8, "file_name": "../../outside.png", "width": 64, "height": 48},
    ]
    rows = rows_of(write(tmp_path, [annotation(i, image_id=i) for i in (5, 6, 7, 8)], images))
    assert [row.reason for row in rows] == [None, "unreadable_media", "missing_media", "missing_media"]
    assert [row.media_key is None for row in rows] == [False, True, True, True]


def test_a_record_given_twice_fails_the_second_time(tmp_path, picture, rows_of):
    picture(tmp_path / "images" / "a.png")
    rows = rows_of(write(tmp_path, [annotation(1), annotation(1), annotation(1), annotation(2)]))
    assert [row.reason for row in rows] == [None, "duplicate_record", "duplicate_record", None]
    assert len({row.region_key for row in rows}) == 4


def test_one_photo_in_two_sources_is_one_media(tmp_path, picture, rows_of):
    for name in ("one", "two"):
        picture(tmp_path / name / "images" / "a.png")
    one, two = (rows_of(write(tmp_path / name, [annotation(1)])) for name in ("one", "two"))
    assert one[0].media_key == two[0].media_key
    assert one[0].uri != two[0].uri


def test_photos_are_read_from_a_zip(tmp_path, picture, rows_of):
    picture(tmp_path / "a.png")
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.write(tmp_path / "a.png", "train2017/a.png")
    config = write(tmp_path, [annotation(1)]).model_copy(update={"media": str(tmp_path / "images.zip")})
    (row,) = rows_of(config)
    assert row.status == "ok"
    assert row.uri.startswith("zip://train2017/a.png::")


def test_another_format_is_named_with_the_keys_found(tmp_path, picture):
    picture(tmp_path / "images" / "a.png")
    config = write(tmp_path, [{"shapes": [], "label": "cup"}])
    with pytest.raises(SourceError, match=r"label.*shapes"):
        list(_raw(config))


def _raw(config):
    from stages.ingest.sources import adapter_of, open_source

    yield from adapter_of(config).regions(open_source(config))


def test_a_file_that_ends_early_is_an_error_that_names_it(tmp_path, picture):
    picture(tmp_path / "images" / "a.png")
    config = write(tmp_path, [annotation(1)])
    text = Path(config.annotation()).read_text()
    Path(config.annotation()).write_text(text[: len(text) - 60])
    with pytest.raises(SourceError, match=r"instances\.json"):
        list(_raw(config))


def test_the_state_changes_with_what_the_rows_depend_on_and_with_nothing_else(tmp_path, picture):
    picture(tmp_path / "images" / "a.png")
    config = write(tmp_path, [annotation(1)])
    before = source_state(config)
    assert source_state(config) == before
    assert source_state(config.model_copy(update={"licence": "other"})) != before
    picture(tmp_path / "images" / "b.png")
    assert source_state(config) != before


def test_real_coco_photos_account_for_all_288_regions(shared_data, rows_of):
    folder = shared_data / "coco_tiny"
    config = SourceConfig(
        format="coco",
        annotations=str(folder / "annotations" / "instances_train2017.json"),
        media=str(folder / "images"),
    )
    rows = rows_of(config)
    assert Counter(row.status for row in rows) == {"ok": 287, "failed": 1}
    assert [row.reason for row in rows if row.reason] == ["box_too_small"]
    assert len({row.media_key for row in rows}) == 30  # two of the 32 photos have no annotation
    assert all(row.polygons or row.mask for row in rows)


def test_lvis_without_photos_keeps_977_rows_with_their_definitions(shared_data, rows_of, tmp_path):
    config = SourceConfig(
        format="lvis", annotations=str(shared_data / "lvis" / "lvis_val_100.json"), media=str(tmp_path), split="val"
    )
    rows = rows_of(config)
    assert Counter(row.reason for row in rows) == {"missing_media": 977}
    assert all(any(hint.kind == "definition" for hint in row.hints) for row in rows)
    assert len(list_media(config)) == 100


def test_lvis_v1_finds_photos_by_coco_url(tmp_path, picture, rows_of):
    picture(tmp_path / "images" / "val2017" / "000000000009.png")
    document = {
        "images": [{"id": 9, "width": 64, "height": 48,
                    "coco_url": "http://images.cocodataset.org/val2017/000000000009.png"}],
        "annotations": [annotation(1, image_id=9, segmentation=[[4, 6, 24, 6, 24, 16]])],
        "categories": [{"id": 1, "name": "car_(automobile)", "def": "a motor vehicle", "synset": "car.n.01",
                        "synonyms": ["car_(automobile)", "auto_(automobile)"], "frequency": "f"}],
    }  # fmt: skip
    (tmp_path / "lvis_v1.json").write_text(json.dumps(document))
    config = SourceConfig(format="lvis", annotations=str(tmp_path / "lvis_v1.json"), media=str(tmp_path / "images"))
    (row,) = rows_of(config)
    assert row.status == "ok"
    assert row.label == "car (automobile)"
    assert [(hint.kind, hint.text) for hint in row.hints] == [
        ("label", "car (automobile)"), ("label", "auto (automobile)"), ("definition", "a motor vehicle"),
    ]  # fmt: skip


def test_annotations_and_photos_may_lie_on_a_remote_store(tmp_path, picture, rows_of):
    import fsspec

    store = fsspec.filesystem("memory")
    store.pipe("/bucket/images/a.png", picture(tmp_path / "a.png").read_bytes())
    store.pipe("/bucket/instances.json", Path(write(tmp_path, [annotation(1)]).annotation()).read_bytes())
    config = SourceConfig(format="coco", annotations="memory://bucket/instances.json", media="memory://bucket/images")
    (row,) = rows_of(config)
    assert (row.status, row.uri) == ("ok", "memory://bucket/images/a.png")
    assert source_state(config) == source_state(config)


def test_plain_annotations_by_column_are_what_they_are_one_by_one(tmp_path, picture, monkeypatch, shared_data):
    picture(tmp_path / "a.png", 64, 48)
    square = [4.5, 6, 24, 6, 24, 16]
    odd = [
        {}, {"segmentation": [square, square]}, {"segmentation": []}, {"segmentation": None}, {"iscrowd": 1},
        {"segmentation": [square, []]}, {"segmentation": square}, {"segmentation": {"size": [48, 64], "counts": "x"}},
        {"bbox": [4, 6, float("nan"), 10]}, {"bbox": None}, {"id": "seven"}, {"image_id": 9}, {"category_id": None},
        {"isfake": 1}, {"isreflected": 1}, {"bbox": [-5, 6, 20, 10]}, {"id": 0},
    ]  # fmt: skip
    base = {"image_id": 1, "category_id": 1, "bbox": [4, 6, 20, 10], "segmentation": [square], "iscrowd": 0}
    document = {
        "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 48}],
        "categories": [{"id": 1, "name": "cup"}],
        "annotations": [{"id": n, **base, **more} for n, more in enumerate(odd)],
    }
    real = shared_data / "coco_tiny"
    for extra in ([], [{"id": 99, **base, "segmentation": [[*square[:-1], "16"]]}]):
        (tmp_path / "i.json").write_text(json.dumps({**document, "annotations": document["annotations"] + extra}))
        for name in ("coco", "objects365"):
            config = SourceConfig(format=name, annotations=str(tmp_path / "i.json"), media=str(tmp_path))
            assert_same_with_and_without_columns(config, monkeypatch)
    annotations = str(real / "annotations" / "instances_train2017.json")
    assert_same_with_and_without_columns(
        SourceConfig(format="coco", annotations=annotations, media=str(real / "images")), monkeypatch
    )


def assert_same_with_and_without_columns(config, monkeypatch):
    by_column = pa.concat_tables(adapter_of(config).regions(open_source(config)))
    with monkeypatch.context() as patch:
        patch.setattr(PlainAnnotations, "plain", lambda self, entry: False)
        one_by_one = pa.concat_tables(adapter_of(config).regions(open_source(config)))
    assert [repr(row) for row in by_column.to_pylist()] == [repr(row) for row in one_by_one.to_pylist()]
