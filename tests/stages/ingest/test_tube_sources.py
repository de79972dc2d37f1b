"""LV-VIS, VidSTG, HC-STVG, BenSMOT, A2D: boxes and masks on the right frames of the right video."""

from __future__ import annotations

import io
import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from stages.ingest import rle
from stages.ingest.a2d import instance_masks
from stages.ingest.base import SourceConfig, SourceError
from stages.ingest.sources import adapter_of, list_media, open_source

SIZE = (48, 64)


def mask_at(x: int, y: int) -> dict:
    mask = np.zeros(SIZE, bool)
    mask[y : y + 10, x : x + 12] = True
    return rle.of_mask(mask) | {"size": list(SIZE)}


def as_json(path: Path, value: object) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False))
    return str(path)


def clip(path: Path, frames: int, fps: int = 10) -> Path:
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    base = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.roll(base, index, 1), format="rgb24")))
        container.mux(stream.encode())
    return path


def phrases(row) -> list[tuple[str, str]]:
    return [(hint.language, hint.text) for hint in row.hints if hint.kind == "phrase"]


def test_lv_vis_masks_may_be_null_lists_or_strings_and_name_frames_within_a_longer_folder(tmp_path, picture, rows_of):
    for index in range(4):
        picture(tmp_path / "JPEGImages" / "00001" / f"{index:05d}.jpg", seed=index)
    listed = rle.runs_of(mask_at(30, 20))[0].tolist()
    document = {
        "videos": [{"id": 1, "file_names": ["00001/00001.jpg", "00001/00002.jpg", "00001/00003.jpg"], "width": 64,
                    "height": 48, "length": 3}],
        "annotations": [
            {"id": 1, "video_id": 1, "category_id": 3, "iscrowd": 0, "bboxes": [None, [4, 6, 12, 10], [30, 20, 12, 10]],
             "segmentations": [None, mask_at(4, 6), {"size": list(SIZE), "counts": listed}]},
            {"id": 2, "video_id": 1, "category_id": 3, "segmentations": [None], "bboxes": [None]},
            {"id": 3, "video_id": 1, "category_id": 9, "segmentations": [None] * 3, "bboxes": [None] * 3},
            {"id": 4, "video_id": 8, "category_id": 3, "segmentations": [], "bboxes": []},
        ],
        "categories": [{"id": 3, "name": "air_conditioner"}],
    }  # fmt: skip
    config = SourceConfig(
        format="lv_vis", annotations=as_json(tmp_path / "train_instances.json", document),
        media=str(tmp_path / "JPEGImages"),
    )  # fmt: skip
    rows = rows_of(config)
    assert [row.reason for row in rows] == [None, "bad_record", "bad_record", "unknown_image"]
    assert rows[0].label == "air conditioner"
    assert (rows[0].frame_index, rows[0].box) == (2, (4, 6, 16, 16))
    assert [(point.frame_index, point.box) for point in rows[0].track or []] == [
        (1, None), (2, (4, 6, 16, 16)), (3, (30, 20, 42, 30)),
    ]  # fmt: skip


@pytest.fixture
def vidstg(tmp_path) -> SourceConfig:
    clip(tmp_path / "videos" / "0001" / "555.mp4", 12)
    box = {"xmin": 4, "ymin": 6, "xmax": 24, "ymax": 16}
    trajectories = [[{"tid": 0, "bbox": box, "generated": 0, "tracker": "none"}]] * 3 + [[]] * 2 + [
        [{"tid": 1, "bbox": box}, {"tid": 0, "bbox": box | {"xmax": 30}}]] * 7  # fmt: skip
    as_json(tmp_path / "vidor" / "training" / "0001" / "555.json", {
        "video_id": "555", "frame_count": 12, "fps": 10, "width": 64, "height": 48,
        "subject/objects": [{"tid": 0, "category": "adult"}, {"tid": 1, "category": "traffic_light"}],
        "trajectories": trajectories})  # fmt: skip
    entries = [
        {"vid": "555", "fps": 10, "used_segment": {"begin_fid": 0, "end_fid": 12}, "used_relation": {},
         "temporal_gt": {"begin_fid": 2, "end_fid": 7},
         "questions": [{"description": "who  waves?", "type": "interrogative", "target_id": 0}, {"target_id": 1}],
         "captions": [{"description": "an adult waves", "type": "declarative", "target_id": 0},
                      {"description": "a light", "type": "declarative", "target_id": 1},
                      {"description": "nobody", "type": "declarative", "target_id": 7}]},
        {"vid": "556", "temporal_gt": {"begin_fid": 0, "end_fid": 2},
         "captions": [{"description": "x", "target_id": 0}]},
    ]  # fmt: skip
    roles = {
        "captions": as_json(tmp_path / "train_annotations.json", entries), "vidor": str(tmp_path / "vidor"),
    }  # fmt: skip
    return SourceConfig(format="vidstg", annotations=roles, media=str(tmp_path / "videos"))


def test_vidstg_captions_follow_their_target_over_the_span(vidstg, rows_of):
    rows = rows_of(vidstg)
    assert [row.reason for row in rows] == [None, None, "bad_record", "bad_record"]
    adult, light = rows[:2]
    assert [(point.frame_index, point.box) for point in adult.track or []] == [
        (2, (4, 6, 24, 16)), (3, None), (4, None), (5, (4, 6, 30, 16)), (6, (4, 6, 30, 16)),
    ]  # fmt: skip
    assert (adult.label, phrases(adult)) == ("adult", [("en", "an adult waves")])
    assert [hint.text for hint in adult.hints if hint.kind == "relation"] == ["asked of it: who waves?"]
    assert (light.label, light.frame_index, light.time_s) == ("traffic light", 5, pytest.approx(0.5))


def test_vidstg_targets_of_questions_alone_are_regions_too(vidstg, rows_of):
    path = Path(vidstg.annotation("captions"))
    entries = json.loads(path.read_text())
    entries[0]["questions"] = [{"description": "what shines?", "target_id": 1}]
    entries[0]["captions"] = entries[0]["captions"][:1]
    path.write_text(json.dumps(entries[:1]))
    adult, light = rows_of(vidstg)
    assert not [hint for hint in adult.hints if hint.kind == "relation"]
    assert (light.source_id, light.status, light.frame_index) == ("555_0_q1", "ok", 5)
    assert [(hint.kind, hint.text) for hint in light.hints] == [
        ("label", "traffic light"), ("relation", "asked of it: what shines?"),
    ]  # fmt: skip


def test_vidstg_lists_each_video_once(vidstg):
    assert list_media(vidstg)["source_media_id"].to_pylist() == ["555", "556"]


def test_hc_stvg_frames_count_from_one(tmp_path, rows_of):
    clip(tmp_path / "videos" / "a" / "12_abc.mp4", 10)
    record = {"bbox": [[4, 6, 20, 10], [6, 6, 20, 10]], "st_frame": 3, "st_time": 0.2, "ed_time": 0.4, "img_num": 10,
              "caption": "The man  waves.", "width": 64, "height": 48}  # fmt: skip
    document = {
        "12_abc.mp4": record,
        "12_abd.mp4": {"bbox": [[4, 6, 20, 10]], "st_frame": 0, "English": "She sits.", "Chinese": "她坐着。"},
    }
    config = SourceConfig(
        format="hc_stvg", annotations=as_json(tmp_path / "train.json", document), media=str(tmp_path / "videos")
    )
    good, zero = rows_of(config)
    assert [(point.frame_index, point.box) for point in good.track or []] == [(2, (4, 6, 24, 16)), (3, (6, 6, 26, 16))]
    assert phrases(good) == [("en", "The man waves.")]
    assert zero.reason == "bad_record"
    assert phrases(zero) == [("en", "She sits."), ("zh", "她坐着。")]


def test_bensmot_captions_go_by_order_of_appearance_and_lose_their_numbers(tmp_path, picture, rows_of):
    video = tmp_path / "train" / "dance" / "v1"
    for index in range(1, 4):
        picture(video / "imgs" / f"{index:03d}.jpg", seed=index)
    (video / "gt").mkdir()
    (video / "gt" / "gt.txt").write_text(
        "1,1,4,6,20,10,1,1,1\n2,1,6,6,20,10,1,1,1\n2,2,30,20,20,10,1\n0,1,1,1,1,1\nx\n"
    )
    (video / "instance_captions.txt").write_text("man0: man0 dances with woman0.\nwoman0: She turns.\n")
    config = SourceConfig(format="bensmot", annotations=str(tmp_path / "train"), media=str(tmp_path / "train"))
    rows = {row.source_id: row for row in rows_of(config)}
    assert {name: row.reason for name, row in rows.items()} == {
        "dance/v1:4": "bad_record", "dance/v1:5": "bad_record", "dance/v1/1": None, "dance/v1/2": None,
    }  # fmt: skip
    first, second = rows["dance/v1/1"], rows["dance/v1/2"]
    assert [hint.text for hint in first.hints] == ["person", "man dances with woman."]
    assert [(point.frame_index, point.box) for point in first.track or []] == [(0, (4, 6, 24, 16)), (1, (6, 6, 26, 16))]
    assert (second.frame_index, second.time_s) == (1, pytest.approx(1 / 30))


def a2d(tmp_path: Path) -> SourceConfig:
    clip(tmp_path / "clips" / "vid1.mp4", 12)
    (tmp_path / "videoset.csv").write_text("vid1,12,0:00,0:03,48,64,12,3,0\nvid2,12,0:00,0:03,48,64,12,3,1\n")
    (tmp_path / "a2d_annotation.txt").write_text(
        "video_id,instance_id,query\nvid1,0,a man, standing\nvid1,1 (copy),a cat\nvid2,0,a dog\nvid1,5,a bird\n"
    )
    roles = {
        "videos": str(tmp_path / "videoset.csv"), "sentences": str(tmp_path / "a2d_annotation.txt"),
        "instances": str(tmp_path / "instances"),
    }  # fmt: skip
    (tmp_path / "instances" / "vid1").mkdir(parents=True)
    return SourceConfig(format="a2d", annotations=roles, media=str(tmp_path / "clips"))


def test_a2d_masks_are_transposed_and_frames_count_from_one(tmp_path, rows_of):
    config = a2d(tmp_path)
    masks = np.zeros((2, 64, 48), np.uint8)
    masks[0, 4:16, 6:16] = 1
    masks[1, 30:42, 20:30] = 1
    for name, ids, values in (("00003.h5", [0, 1], masks), ("00006.h5", [1], masks[1])):
        buffer = io.BytesIO()
        with h5py.File(buffer, "w") as file:
            file["instance"], file["reMask"] = np.array(ids), values
        (tmp_path / "instances" / "vid1" / name).write_bytes(buffer.getvalue())
    rows = rows_of(config)
    assert [row.reason for row in rows] == [None, None, "other_split", "no_geometry"]
    assert (rows[0].box, rows[0].frame_index, phrases(rows[0])) == ((4, 6, 16, 16), 2, [("en", "a man, standing")])
    assert [point.frame_index for point in rows[1].track or []] == [2, 5]


def test_a2d_masks_are_turned_and_one_instance_may_lack_its_axis():
    standing = np.zeros((2, 64, 48), bool)  # instances, columns, rows
    standing[1, 4:16, 6:16] = True
    first, second = instance_masks(np.array([3, 5]), standing).values()
    assert (first.shape, first.any()) == ((48, 64), False)
    assert second[6:16, 4:16].all()
    assert second.sum() == 120
    (alone,) = instance_masks(np.array([5]), standing[1]).values()
    assert (alone == second).all()
    with pytest.raises(ValueError, match="2 instances"):
        instance_masks(np.array([3, 5]), standing[:1])


def test_a2d_without_h5py_says_what_to_install(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "h5py", None)
    config = a2d(tmp_path)
    (tmp_path / "instances" / "vid1" / "00003.h5").write_bytes(b"x")
    with pytest.raises(SourceError, match="h5py"):
        list(adapter_of(config).regions(open_source(config)))
