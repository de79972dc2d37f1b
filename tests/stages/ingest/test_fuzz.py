"""Damaged annotation files: every adapter answers with rows or with one clear error, and loses no record.

`PERCEIVE_FUZZ=20000 python -m pytest tests/stages/ingest/test_fuzz.py` is the long run (files over all formats).
"""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import h5py
import numpy as np
import polars as pl
import pytest
from PIL import Image

from schemas.arrow import from_table
from schemas.region import Region
from stages.ingest import rle
from stages.ingest.base import SourceConfig, SourceError
from stages.ingest.preview import preview
from stages.ingest.sources import formats, ingest, list_media

FILES = int(os.environ.get("PERCEIVE_FUZZ", "0"))
FEW, MANY = 12, 60
"""Files a format and kind of damage, in the fast suite and in the slow one."""
LONG = pytest.mark.timeout(3600 if FILES else 300)
SECONDS = 1.0  # of processor time: others may hold the machine
MASK = rle.of_mask(np.pad(np.ones((10, 12), bool), ((6, 32), (4, 48)))) | {"size": [48, 64]}
ODD: list[Any] = [
    None, True, -1, 0, 1 << 62, 1 << 70, 1e308, float("nan"), float("inf"), -0.0, "", "x", "../../x", "\x00", "名", [],
    {}, [None], [[[]]], {"size": [1, 1], "counts": "0"}, [1e30] * 6, "P`]<", {"counts": None},
]  # fmt: skip


def dumped(path: Path, value: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return str(path)


def coco_document(**category: Any) -> dict[str, Any]:
    return {
        "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 48, "coco_url": "http://x/a.png"}],
        "annotations": [
            {"id": n, "image_id": 1, "category_id": 1, "bbox": [4, 6, 20, 10 + n], "iscrowd": 0, "isfake": 0,
             "segmentation": MASK if n % 2 else [[4.5, 6, 24, 6, 24, 16]], "obj_ann_id": 1, "attribute_ids": [1]}
            for n in range(4)
        ],
        "categories": [{"id": 1, "name": "cup", **category}],
        "attributes": [{"id": 1, "name": "red"}],
    }  # fmt: skip


def coco_like(name: str, **category: Any) -> Callable[[Path], dict[str, Any]]:
    return lambda folder: {"annotations": dumped(folder / f"{name}.json", coco_document(**category))}


def lines_of(name: str, *records: Any) -> Callable[[Path], dict[str, Any]]:
    def write(folder: Path) -> dict[str, Any]:
        (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))
        return {"annotations": str(folder / name)}

    return write


def refer_like(name: str) -> Callable[[Path], dict[str, Any]]:
    refs = [{"ref_id": n, "ann_id": [n, 1] if name == "grefcoco" else n, "image_id": 1, "split": "train",
             "sentences": [{"sent": "a cup"}]} for n in range(3)]  # fmt: skip
    return lambda folder: {
        "annotations": {"refs": dumped(folder / "refs.json", refs),
                        "instances": dumped(folder / "instances.json", coco_document())}
    }  # fmt: skip


def pickled(folder: Path) -> dict[str, Any]:
    path = folder / "reftext.pth"
    path.write_bytes(pickle.dumps([("a.png", n, [4, 6, 20, 10], "a sign", []) for n in range(3)], protocol=2))
    return {"annotations": str(path)}


def openimages(folder: Path) -> dict[str, Any]:
    path = folder / "boxes.csv"
    path.write_text("ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf\n" + "a,/m/1,0.0625,0.375,0.125,0.3334,0\n" * 3)
    return {"annotations": {"boxes": str(path)}}


def palette(folder: Path) -> dict[str, Any]:
    target = folder / "masks" / "clip"
    target.mkdir(parents=True)
    ids = np.zeros((48, 64), np.uint8)
    ids[6:16, 4:24] = 1
    Image.fromarray(ids, "P").save(target / "00000.png")
    return {"annotations": str(folder / "masks")}


def sav(folder: Path) -> dict[str, Any]:
    document = {"video_id": "v", "masklet": [[MASK, None]] * 3, "masklet_id": [0.0, 1.0], "video_width": 64.0}
    return {"annotations": dumped(folder / "v_manual.json", document)}


def vidstg(folder: Path) -> dict[str, Any]:
    box = {"xmin": 4, "ymin": 6, "xmax": 24, "ymax": 16}
    dumped(folder / "vidor" / "5.json", {"trajectories": [[{"tid": 0, "bbox": box}]] * 4, "subject/objects": []})
    entry = {
        "vid": "5",
        "temporal_gt": {"begin_fid": 0, "end_fid": 3},
        "captions": [{"description": "x", "target_id": 0}],
    }
    return {"annotations": {"captions": dumped(folder / "c.json", [entry] * 2), "vidor": str(folder / "vidor")}}


def bensmot(folder: Path) -> dict[str, Any]:
    video = folder / "root" / "act" / "v"
    (video / "gt").mkdir(parents=True)
    (video / "gt" / "gt.txt").write_text("1,1,4,6,20,10,1\n2,1,6,6,20,10,1\n2,2,6,6,20,10,1\n")
    (video / "instance_captions.txt").write_text("man0: man0 waves\n")
    return {"annotations": str(folder / "root")}


def a2d(folder: Path) -> dict[str, Any]:
    (folder / "videoset.csv").write_text("v,12,0:00,0:03,48,64,12,3,0\n")
    (folder / "s.txt").write_text("video_id,instance_id,query\nv,0,a man\nv,1 (copy),a cat\n")
    masks = np.zeros((2, 64, 48), np.uint8)  # instances, columns, rows
    masks[:, 4:24, 6:16] = 1
    (folder / "h5" / "v").mkdir(parents=True)
    with h5py.File(folder / "h5" / "v" / "00001.h5", "w") as file:
        file["instance"], file["reMask"] = np.arange(2), masks
    roles = {"videos": folder / "videoset.csv", "sentences": folder / "s.txt", "instances": folder / "h5"}
    return {"annotations": {role: str(path) for role, path in roles.items()}}


def visual_genome(folder: Path) -> dict[str, Any]:
    entries = [{"image_id": 1, "regions": [{"region_id": n, "x": 4, "y": 6, "width": 20, "height": 10 + n,
                                            "phrase": "a cup"} for n in range(3)]}]  # fmt: skip
    return {"annotations": {"regions": dumped(folder / "regions.json", entries)}}


def lv_vis(folder: Path) -> dict[str, Any]:
    document = {
        "videos": [{"id": 1, "file_names": ["clip/00000.jpg", "clip/00001.jpg"], "width": 64, "height": 48}],
        "annotations": [{"id": n, "video_id": 1, "category_id": 1, "segmentations": [MASK, None], "bboxes": [None] * 2}
                        for n in range(2)],
        "categories": [{"id": 1, "name": "dog"}],
    }  # fmt: skip
    return {"annotations": dumped(folder / "i.json", document)}


HC_STVG = {f"{n}.mp4": {"bbox": [[4, 6, 20, 10]] * 2, "st_frame": 1, "caption": "x"} for n in range(3)}
GOOGLE = {
    "annotations": {
        str(n): {"annotation_id": n, "image_id": 1, "refexp_ids": [n], "bbox": [4, 6, 20, 10]} for n in (1, 2)
    },
    "images": {"1": {"image_id": 1, "width": 64, "height": 48}},
    "refexps": {str(n): {"refexp_id": n, "raw": "a cup"} for n in (1, 2)},
}
REGION = {"media": "a.png", "box": [4, 6, 24, 16], "points": [[5, 7, 1]], "label": "cup", "mask": MASK, "hints": []}
TRACK = {"media": "clip/", "track": [{"frame_index": 0, "box": [4, 6, 24, 16]}, {"frame_index": 1, "mask": MASK}]}
PAM = {"type": "image", "image": "a.png", "bbox": [4, 6, 20, 10], "points": [[5, 7]], "labels": [1],
       "conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "a cup"}]}  # fmt: skip

SAMPLES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "coco": coco_like("coco"),
    "lvis": coco_like("lvis", **{"def": "a vessel", "synonyms": ["cup"]}),
    "objects365": coco_like("objects365"),
    "v3det": coco_like("v3det", name_zh="杯", cat_info="x"),
    "paco": coco_like("paco"),
    "openimages": openimages,
    "visual_genome": visual_genome,
    "refer": refer_like("refer"),
    "grefcoco": refer_like("grefcoco"),
    "google_refexp": lambda folder: {"annotations": dumped(folder / "g.json", GOOGLE)},
    "reftext": pickled,
    "rexverse": lambda folder: lines_of("a.tsv", *[{"boxes": [{"bbox": [4, 6, 24, 16], "phrase": "x"}]}] * 3)(folder),
    "regions": lines_of("r.jsonl", REGION, TRACK, REGION),
    "sav": sav,
    "davis": palette,
    "youtube_vos": palette,
    "lv_vis": lv_vis,
    "vidstg": vidstg,
    "hc_stvg": lambda folder: {"annotations": dumped(folder / "hc.json", HC_STVG)},
    "bensmot": bensmot,
    "a2d": a2d,
    "pam_data": lines_of("p.jsonl", PAM, PAM),
}


RECORDS = sorted(set(SAMPLES) - {"openimages", "reftext", "davis", "youtube_vos", "bensmot", "a2d"})
"""Formats whose records are JSON."""


def sample(name: str, folder: Path, picture: Callable[..., Path]) -> SourceConfig:
    picture(folder / "media" / "a.png")
    picture(folder / "media" / "a.jpg")
    for index in range(2):
        picture(folder / "media" / "clip" / f"{index:05d}.jpg", seed=index)
    annotations = folder / "annotations"
    annotations.mkdir()
    return SourceConfig(format=name, media=str(folder / "media"), **SAMPLES[name](annotations))


def outcome(config: SourceConfig, probes: pl.DataFrame) -> int | None:
    """The number of rows, checked; None where the file is refused."""
    began = time.process_time()
    try:
        list_media(config)
        rows = [row for table in ingest(config, probes) for row in from_table(table, Region)]
    except SourceError:
        rows = None
    assert time.process_time() - began < SECONDS
    if rows is None:
        return None
    assert len({row.region_key for row in rows}) == len(rows)
    for row in rows:
        assert (row.reason is None) == (row.status == "ok")
        if row.status == "ok":
            assert row.media_key is not None
            assert row.box or row.points
    return len(rows)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all scalars."""
    if isinstance(value, dict):
        return [leaf for key, item in value.items() for leaf in leaves(item, (*path, key))]
    if isinstance(value, list):
        return [leaf for index, item in enumerate(value) for leaf in leaves(item, (*path, index))]
    return [path]


def with_odd_leaf(document: Any, rng: random.Random) -> Any:
    document = json.loads(json.dumps(document))
    records = document
    if isinstance(document, dict) and "annotations" in document:
        records = document["annotations"]
    elif isinstance(document, dict) and "masklet" in document:
        records = document["masklet"]
    path = rng.choice(leaves(records))
    for step in path[:-1]:
        records = records[step]
    records[path[-1]] = rng.choice(ODD)
    return document


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Bytes flipped, cut out, doubled or cut off."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        at = rng.randrange(len(out) + 1)
        kind = rng.randrange(4)
        if kind == 0 and at < len(out):
            out[at] = rng.choice([*b'{}[]",:\\-eE0\x00\xff\n\t', rng.randrange(256)])
        elif kind == 1:
            del out[at : at + rng.choice([1, 5, 40])]
        elif kind == 2:
            out[at:at] = out[max(0, at - rng.choice([1, 10, 60])) : at]
        else:
            del out[at if rng.random() < 0.2 else len(out) :]
    return bytes(out)


def bright_target(path: Path, **_: Any) -> Path:
    """A picture with its target where the samples say: yellow on blue, from (4, 6) to (24, 16)."""
    pixels = np.full((48, 64, 3), (30, 40, 90), np.uint8)
    pixels[6:16, 4:24] = (240, 220, 60)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=95)
    return path


def film(path: Path) -> None:
    pixels = np.asarray(Image.open(bright_target(path.with_suffix(".png"))))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv444p"
        for _ in range(12):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_a_preview_shows_the_target_of_every_format(name, tmp_path):
    config = sample(name, tmp_path, bright_target)
    for video in ("v", "5", "0"):
        film(tmp_path / "media" / f"{video}.mp4")
    for photo in ("000000000.jpg", "1.jpg", "COCO_train2014_000000000001.jpg", "act/v/imgs/001.jpg"):
        bright_target(tmp_path / "media" / photo)
    pixels = np.asarray(Image.open(io.BytesIO(preview(config, limit=1)))).astype(int)  # 5 pixels a pixel
    outline, inside, outside = pixels[11 * 5, 4 * 5 + 2], pixels[10 * 5, 10 * 5], pixels[40 * 5, 60 * 5]
    assert abs(outline - (255, 64, 32)).max() < 60
    assert abs(inside - (240, 220, 60)).max() < 25 or abs(inside - (248, 142, 46)).max() < 25
    assert abs(outside - (30, 40, 90)).max() < 25


def renamed(value: Any, keep: frozenset[str]) -> Any:
    """The value with every key but these changed."""
    if isinstance(value, dict):
        return {key if key in keep else f"{key}_of_old": renamed(item, keep) for key, item in value.items()}
    return [renamed(item, keep) for item in value] if isinstance(value, list) else value


MEMBERS = frozenset({"images", "annotations", "categories", "videos", "refexps", *HC_STVG})


@pytest.mark.parametrize("keep", [frozenset(), MEMBERS], ids=["all keys", "keys of records"])
@pytest.mark.parametrize("name", sorted(set(SAMPLES) - {"davis", "youtube_vos", "bensmot"}))  # masks, lines of numbers
def test_a_file_of_another_format_is_refused_with_what_was_found(name, keep, tmp_path, picture, probe_all):
    config = sample(name, tmp_path, picture)
    probes = probe_all(list_media(config))
    for path in [path for path in (tmp_path / "annotations").rglob("*") if path.is_file() and path.suffix != ".h5"]:
        if path.suffix == ".json":
            path.write_text(json.dumps(renamed(json.loads(path.read_text()), keep)))
        elif path.suffix in (".jsonl", ".tsv"):
            lines = [renamed(json.loads(line), keep) for line in path.read_text().splitlines()]
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        elif path.suffix == ".pth":
            path.write_bytes(pickle.dumps([{"box_of_old": 1}], protocol=2))
        else:
            path.write_text(path.read_text().replace(",", ";of_old;"))
    with pytest.raises(SourceError, match="of_old"):
        list(ingest(config, probes))


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_the_same_files_give_the_same_rows_in_the_same_order(name, tmp_path, picture, probe_all):
    config = sample(name, tmp_path, picture)
    listed = list_media(config)
    probes = probe_all(listed)
    first, second = ([table.to_pylist() for table in ingest(config, probes)] for _ in range(2))
    assert first == second
    assert list_media(config).equals(listed)


def test_every_format_has_a_sample():
    assert set(SAMPLES) == set(formats())


def amounts() -> list[Any]:
    """How many files, each with the seed of its damage; the long run instead of both where it is asked for."""
    if FILES:
        return [-(-FILES // (len(SAMPLES) + len(RECORDS)))]
    return [FEW, pytest.param(MANY, marks=pytest.mark.slow)]


@LONG
@pytest.mark.parametrize("files", amounts())
@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_damaged_bytes_give_rows_or_one_clear_error(name, files, tmp_path, picture, probe_all):
    config = sample(name, tmp_path, picture)
    probes = probe_all(list_media(config))
    assert outcome(config, probes)
    there = [path for path in (tmp_path / "annotations").rglob("*") if path.is_file() and path.stat().st_size]
    rng = random.Random(f"{name}{files}")
    for _ in range(files):
        path = rng.choice(there)
        sound = path.read_bytes()
        path.write_bytes(damaged(sound, rng))
        outcome(config, probes)
        path.write_bytes(sound)


@LONG
@pytest.mark.parametrize("files", amounts())
@pytest.mark.parametrize("name", RECORDS)
def test_an_odd_value_in_a_record_loses_no_record(name, files, tmp_path, picture, probe_all):
    config = sample(name, tmp_path, picture)
    probes = probe_all(list_media(config))
    expected = outcome(config, probes)
    given = config.annotations
    path = Path(given if isinstance(given, str) else next(iter(given.values())))
    sound = path.read_text()
    rng = random.Random(f"{name}{files}")
    refused = 0
    for _ in range(files):
        if path.suffix in (".jsonl", ".tsv"):
            lines = [json.loads(line) for line in sound.splitlines()]
            at = rng.randrange(len(lines))
            lines[at] = with_odd_leaf(lines[at], rng)
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        else:
            path.write_text(json.dumps(with_odd_leaf(json.loads(sound), rng)))
        rows = outcome(config, probes)
        refused += rows is None
        assert rows is None or rows == expected
    assert refused < files
