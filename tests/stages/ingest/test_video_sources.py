"""Video sources: tracks on the right frames, prompts where the target is first seen."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.ingest import rle
from stages.ingest.base import SourceConfig, SourceError
from stages.ingest.sources import adapter_of, list_media, open_source

SIZE = (48, 64)


def mask_at(x: int, y: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[y : y + 10, x : x + 12] = True
    return mask


def clip(path: Path, frames: int, fps: int = 24) -> Path:
    """A short H.264 video of moving noise."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    base = rng.integers(0, 255, (48, 64, 3), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(np.roll(base, index, 1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def sav_document(tracks: list[list[np.ndarray | None]], ids: list[float]) -> dict:
    empty = {"size": list(SIZE), "counts": rle.compress(np.array([SIZE[0] * SIZE[1]]))}
    return {
        "video_id": "sav_000002",
        "video_width": 64.0,
        "video_height": 48.0,
        "video_frame_count": float(4 * len(tracks[0])),
        "masklet": [
            [empty if track[i] is None else _listed(rle.of_mask(track[i])) for track in tracks]
            for i in range(len(tracks[0]))
        ],
        "masklet_id": ids,
        "masklet_first_appeared_frame": [0.0] * len(tracks),
    }


def _listed(mask: dict) -> dict:
    return {"size": list(mask["size"]), "counts": mask["counts"]}


@pytest.fixture
def sav(tmp_path) -> SourceConfig:
    clip(tmp_path / "videos" / "sav_000002.mp4", 12)
    tracks = [[mask_at(2, 3), mask_at(6, 3), None], [None, mask_at(20, 20), mask_at(30, 20)], [None, None, None]]
    annotations = tmp_path / "annotations"
    annotations.mkdir()
    (annotations / "sav_000002_manual.json").write_text(json.dumps(sav_document(tracks, [0.0, 1.0, 5.0])))
    (annotations / "sav_000002_auto.json").write_text(json.dumps(sav_document(tracks[:1], [0])))
    (annotations / "sav_000003_manual.json").write_text("{")
    return SourceConfig(format="sav", annotations=str(annotations), media=str(tmp_path / "videos"))


def test_sav_annotation_i_is_video_frame_4i(sav, rows_of):
    rows = {row.source_id: row for row in rows_of(sav)}
    first = rows["sav_000002_manual_0"]
    assert [(point.frame_index, point.box) for point in first.track or []] == [
        (0, (2, 3, 14, 13)), (4, (6, 3, 18, 13)), (8, None),
    ]  # fmt: skip
    assert [round(point.time_s, 6) for point in first.track or []] == [0.0, round(4 / 24, 6), round(8 / 24, 6)]


def test_sav_prompts_on_the_first_frame_on_which_the_masklet_is_seen(sav, rows_of):
    rows = {row.source_id: row for row in rows_of(sav)}
    late = rows["sav_000002_manual_1"]
    assert (late.status, late.frame_index, late.box) == ("ok", 4, (20, 20, 32, 30))
    assert late.mask is not None
    assert late.time_s == pytest.approx(4 / 24)


def test_sav_accounts_for_every_masklet_and_every_file(sav, rows_of):
    fates = {row.source_id: row.reason for row in rows_of(sav)}
    assert fates == {
        "sav_000002_auto_0": None,
        "sav_000002_manual_0": None,
        "sav_000002_manual_1": None,
        "sav_000002_manual_5": "bad_record",
        "sav_000003_manual": "bad_record",
    }


def test_sav_takes_only_the_masklets_asked_for(sav, rows_of):
    rows = rows_of(sav.model_copy(update={"options": {"masklets": ["auto"]}}))
    assert [row.source_id for row in rows] == ["sav_000002_auto_0"]


def test_sav_of_another_shape_is_refused_with_the_keys_found(tmp_path):
    (tmp_path / "x_manual.json").write_text(json.dumps({"frames": []}))
    config = SourceConfig(format="sav", annotations=str(tmp_path), media=str(tmp_path))
    with pytest.raises(SourceError, match="frames"):
        list(adapter_of(config).regions(open_source(config)))


def test_real_sav_annotations_without_the_video_keep_all_14_masklets(shared_data, rows_of, tmp_path):
    rows = rows_of(SourceConfig(format="sav", annotations=str(shared_data / "sav"), media=str(tmp_path)))
    assert len(rows) == 5 + 9
    assert {row.reason for row in rows} == {"missing_media"}
    late = next(row for row in rows if row.source_id == "sav_000001_manual_3")
    assert late.frame_index == 4 * 113
    assert len(late.track or []) == 121


def palette(path: Path, ids: np.ndarray) -> None:
    """A palette PNG whose colours of ids 1 and 2 are the same, so that only the index tells them apart."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(ids.astype(np.uint8), "P")
    image.putpalette([0, 0, 0, 200, 0, 0, 200, 0, 0] + [9, 9, 9] * 253)
    image.save(path)


def objects(**boxes: tuple[int, int]) -> np.ndarray:
    ids = np.zeros(SIZE, np.uint8)
    for number, (x, y) in boxes.items():
        ids[mask_at(x, y)] = int(number[1:])
    return ids


def davis(folder: Path, picture) -> SourceConfig:
    for index in range(3):
        picture(folder / "JPEGImages" / "judo" / f"{index:05d}.jpg", seed=index)
    palette(folder / "Annotations" / "judo" / "00000.png", objects(o1=(2, 3)))
    palette(folder / "Annotations" / "judo" / "00001.png", objects(o1=(4, 3), o2=(30, 20), o255=(2, 30)))
    palette(folder / "Annotations" / "judo" / "00002.png", objects(o2=(32, 20))[:, :-1])
    return SourceConfig(format="davis", annotations=str(folder / "Annotations"), media=str(folder / "JPEGImages"))


def test_davis_reads_the_palette_index_and_not_the_colour(tmp_path, picture, rows_of):
    rows = {row.source_id: row for row in rows_of(davis(tmp_path, picture))}
    assert sorted(rows) == ["judo/1", "judo/2"]
    assert [point.box for point in rows["judo/1"].track or []] == [(2, 3, 14, 13), (4, 3, 16, 13), None]
    assert (rows["judo/2"].frame_index, rows["judo/2"].box) == (1, (30, 20, 42, 30))
    assert [point.time_s for point in rows["judo/2"].track or []] == pytest.approx([0, 1 / 24, 2 / 24])


def test_a_mask_a_pixel_narrower_than_its_frame_is_padded(tmp_path, picture, rows_of):
    rows = {row.source_id: row for row in rows_of(davis(tmp_path, picture))}
    last = (rows["judo/2"].track or [])[2]
    assert last.mask is not None
    assert last.mask.size == SIZE
    assert last.box == (32, 20, 44, 30)


def test_davis_masks_without_frames_or_in_true_colour_fail_by_themselves(tmp_path, picture, rows_of):
    config = davis(tmp_path, picture)
    palette(tmp_path / "Annotations" / "judo" / "00009.png", objects(o1=(2, 3)))
    Image.new("RGB", (64, 48)).save(tmp_path / "Annotations" / "judo" / "00001.png")
    palette(tmp_path / "Annotations" / "gone" / "00000.png", objects(o1=(2, 3)))
    fates = {row.source_id: row.reason for row in rows_of(config)}
    assert fates == {
        "judo/00009": "frame_outside",
        "judo/00001": "bad_record",
        "judo/1": None,
        "judo/2": None,
        "gone/1": "missing_media",
    }


def test_ref_davis_expressions_are_phrases_and_only_listed_videos_count(tmp_path, picture, rows_of):
    config = davis(tmp_path, picture)
    palette(tmp_path / "Annotations" / "other" / "00000.png", objects(o1=(2, 3)))
    (tmp_path / "train.txt").write_text("judo\n")
    (tmp_path / "ref.txt").write_text('judo 1 "a man in white"\njudo 2 "a man in blue"\n')
    roles = {
        "masks": config.annotation(),
        "videos": str(tmp_path / "train.txt"),
        "expressions": str(tmp_path / "ref.txt"),
    }
    rows = rows_of(config.model_copy(update={"annotations": roles}))
    assert {row.source_id: [hint.text for hint in row.hints] for row in rows} == {
        "judo/1": ["a man in white"], "judo/2": ["a man in blue"],
    }  # fmt: skip


def test_real_davis_frames_give_four_objects(shared_data, rows_of):
    folder = shared_data / "davis_judo"
    rows = rows_of(
        SourceConfig(
            format="davis",
            annotations=str(folder / "Annotations" / "480p"),
            media=str(folder / "JPEGImages" / "480p"),
        )
    )
    assert {row.source_id: (row.status, row.frame_index) for row in rows} == {
        "judo/1": ("ok", 0), "judo/2": ("ok", 5), "judo/3": ("ok", 8), "judo/4": ("ok", 13),
    }  # fmt: skip
    assert rows[1].mask is not None
    assert rows[1].mask.size == (480, 854)


def test_youtube_vos_frames_are_every_fifth_and_objects_start_late(tmp_path, picture, rows_of):
    for index in (0, 5, 10):
        picture(tmp_path / "JPEGImages" / "abc" / f"{index:05d}.jpg", seed=index)
    palette(tmp_path / "Annotations" / "abc" / "00000.png", objects(o1=(2, 3)))
    palette(tmp_path / "Annotations" / "abc" / "00005.png", objects(o1=(4, 3), o2=(30, 20)))
    palette(tmp_path / "Annotations" / "abc" / "00010.png", objects(o1=(4, 3), o2=(34, 20)))
    meta = {"videos": {"abc": {"objects": {
        "1": {"category": "giant_panda", "frames": ["00000", "00005", "00010"]},
        "2": {"category": "person", "frames": ["00010"]},
        "3": {"category": "dog", "frames": ["00000"]},
    }}}}  # fmt: skip
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    texts = {"videos": {"abc": {"expressions": {"0": {"exp": "a panda eating", "obj_id": "1"}}, "frames": ["00000"]}}}
    (tmp_path / "meta_expressions.json").write_text(json.dumps(texts))
    config = SourceConfig(
        format="youtube_vos",
        annotations={
            "masks": str(tmp_path / "Annotations"),
            "meta": str(tmp_path / "meta.json"),
            "expressions": str(tmp_path / "meta_expressions.json"),
        },
        media=str(tmp_path / "JPEGImages"),
    )
    rows = {row.source_id: row for row in rows_of(config)}
    assert list_media(config)["fps"].to_pylist() == [6.0]
    assert [(hint.kind, hint.text) for hint in rows["abc/1"].hints] == [
        ("label", "giant panda"), ("phrase", "a panda eating"),
    ]  # fmt: skip
    assert (rows["abc/2"].frame_index, rows["abc/2"].time_s) == (2, pytest.approx(10 / 30))
    assert rows["abc/3"].reason == "no_geometry"
