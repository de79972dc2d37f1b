"""Speed and memory of each adapter on synthetic files, a process each: rows a second of processor time.

    python benchmarks/ingest_formats.py [--rows 50000] [--only openimages ...]

The best of three passes after imports, without the write. Media are empty or absent files with made-up probes; a row of
a video format carries a track of 40 frames, of `a2d` masks on 4 frames. `--only` names one format or several.
"""

from __future__ import annotations

import argparse
import json
import math
import pickle
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

PER_MEDIA, FRAMES = 10, 40
REPEATS = 3


def dumped(path: Path, value: object) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return str(path)


def mask() -> dict[str, object]:
    from stages.ingest import rle

    grid = np.hypot(*np.mgrid[-240:240, -320:320]) < 90
    return rle.of_mask(grid) | {"size": [480, 640]}


def regions(folder: Path, rows: int) -> dict[str, object]:
    with (folder / "r.jsonl").open("w") as out:
        for n in range(rows):
            out.write(
                json.dumps({"media": f"{n // PER_MEDIA}.jpg", "box": [10, 20, 110.5, 220], "label": "cup"}) + "\n"
            )
    return {"annotations": str(folder / "r.jsonl")}


def coco_like(segmentation: object = None, **more: object) -> Callable[[Path, int], dict[str, object]]:
    """A writer of one file of the COCO family; `more` are further fields of every annotation."""
    return lambda folder, rows: {"annotations": dumped(folder / "o.json", coco_document(rows, segmentation, **more))}


def coco_document(rows: int, segmentation: object, **more: object) -> dict[str, object]:
    if segmentation is not None:
        more = {"segmentation": segmentation, **more}
    return {
        "images": [{"id": n, "file_name": f"{n}.jpg", "width": 640, "height": 480} for n in range(rows // PER_MEDIA)],
        "annotations": [{"id": n, "image_id": n // PER_MEDIA, "category_id": n % 300, "bbox": [10, 20, 100.5, 200],
                         "iscrowd": 0, "isfake": 0, **more} for n in range(rows)],
        "categories": [{"id": n, "name": f"thing {n}", "name_zh": "物", "cat_info": "what it is", "def": "what it is"}
                       for n in range(300)],
        "attributes": [{"id": 1, "name": "red"}],
    }  # fmt: skip


def refer(folder: Path, rows: int) -> dict[str, object]:
    refs = [{"ref_id": n, "ann_id": n, "image_id": n // PER_MEDIA, "category_id": n % 300, "split": "train",
             "sentences": [{"sent": f"the cup number {n}", "raw": "x", "tokens": ["x"]}] * 3}
            for n in range(rows)]  # fmt: skip
    (folder / "refs.p").write_bytes(pickle.dumps(refs, protocol=2))
    instances = dumped(folder / "instances.json", coco_document(rows, [RING]))
    return {"annotations": {"refs": str(folder / "refs.p"), "instances": instances}}


def grefcoco(folder: Path, rows: int) -> dict[str, object]:
    refs = [{"ref_id": n, "ann_id": [n], "image_id": n // PER_MEDIA, "category_id": [1], "split": "train",
             "sentences": [{"sent": f"the cup number {n}"}] * 3} for n in range(rows)]  # fmt: skip
    instances = dumped(folder / "instances.json", coco_document(rows, [RING]))
    return {"annotations": {"refs": dumped(folder / "grefs.json", refs), "instances": instances}}


def google_refexp(folder: Path, rows: int) -> dict[str, object]:
    media = range(rows // PER_MEDIA)
    document = {
        "annotations": {str(n): {"annotation_id": n, "image_id": n // PER_MEDIA, "refexp_ids": [n],
                                 "bbox": [10, 20, 100.5, 200], "segmentation": [RING]} for n in range(rows)},
        "images": {str(n): {"image_id": n, "width": 640, "height": 480} for n in media},
        "refexps": {str(n): {"refexp_id": n, "raw": f"the cup number {n}"} for n in range(rows)},
    }  # fmt: skip
    return {"annotations": dumped(folder / "g.json", document)}


def reftext(folder: Path, rows: int) -> dict[str, object]:
    records = [(f"{n // PER_MEDIA}.jpg", n, [10, 20, 100, 200], f"the sign number {n}", []) for n in range(rows)]
    (folder / "r.pth").write_bytes(pickle.dumps(records, protocol=2))
    return {"annotations": str(folder / "r.pth")}


def rexverse(folder: Path, rows: int) -> dict[str, object]:
    line = json.dumps({"boxes": [{"bbox": [10, 20, 110.5, 220], "phrase": f"cup {k}"} for k in range(PER_MEDIA)]})
    (folder / "a.tsv").write_text("".join(f"{n}\t{line}\n" for n in range(rows // PER_MEDIA)))
    return {"annotations": str(folder / "a.tsv")}


def pam_data(folder: Path, rows: int) -> dict[str, object]:
    with (folder / "p.jsonl").open("w") as out:
        for n in range(rows):
            answer = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": f"A cup, number {n}."}]
            record = {"type": "image", "image": f"/data/x/{n // PER_MEDIA}.jpg", "bbox": [10, 20, 100, 200],
                      "conversations": answer}  # fmt: skip
            out.write(json.dumps(record) + "\n")
    return {"annotations": str(folder / "p.jsonl")}


def palette(folder: Path, rows: int) -> dict[str, object]:
    from PIL import Image

    ids = np.zeros((480, 640), np.uint8)
    for k in range(PER_MEDIA):
        ids[40 * k + 10 : 40 * k + 40, 50 * k + 20 : 50 * k + 100] = k + 1
    picture = Image.fromarray(ids, "P")
    picture.putpalette([value for value in range(256) for _ in range(3)])
    for n in range(rows // PER_MEDIA):
        for part in ("masks", "media"):
            (folder / part / f"v{n}").mkdir(parents=True)
        for frame in range(FRAMES):
            picture.save(folder / "masks" / f"v{n}" / f"{frame:05d}.png")
            (folder / "media" / f"v{n}" / f"{frame:05d}.jpg").touch()
    return {"annotations": str(folder / "masks")}


def vidstg(folder: Path, rows: int) -> dict[str, object]:
    boxes = [{"tid": k, "bbox": {"xmin": 10, "ymin": 20, "xmax": 110, "ymax": 220}} for k in range(PER_MEDIA)]
    entries = []
    for n in range(rows // PER_MEDIA):
        things = [{"tid": k, "category": "adult"} for k in range(PER_MEDIA)]
        dumped(folder / "vidor" / f"{n}.json", {"trajectories": [boxes] * FRAMES, "subject/objects": things})
        captions = [{"description": "the adult waves", "target_id": k} for k in range(PER_MEDIA)]
        entries.append({"vid": str(n), "temporal_gt": {"begin_fid": 0, "end_fid": FRAMES}, "captions": captions})
    return {"annotations": {"captions": dumped(folder / "c.json", entries), "vidor": str(folder / "vidor")}}


def bensmot(folder: Path, rows: int) -> dict[str, object]:
    lines = [f"{frame + 1},{k + 1},10,20,100,200,1\n" for k in range(PER_MEDIA) for frame in range(FRAMES)]
    for n in range(rows // PER_MEDIA):
        video = folder / "media" / "walk" / f"v{n}"
        (video / "gt").mkdir(parents=True)
        (video / "imgs").mkdir()
        (video / "imgs" / "001.jpg").touch()
        (video / "gt" / "gt.txt").write_text("".join(lines))
        (video / "instance_captions.txt").write_text("".join(f"man{k}: man{k} walks.\n" for k in range(PER_MEDIA)))
    return {"annotations": str(folder / "media")}


def a2d(folder: Path, rows: int) -> dict[str, object]:
    import h5py

    masks = np.zeros((PER_MEDIA, 640, 480), np.uint8)  # instances, columns, rows
    masks[:, 20:110, 40:240] = 1
    videos = range(rows // PER_MEDIA)
    for n in videos:
        (folder / "h5" / f"v{n}").mkdir(parents=True)
        for frame in (1, 11, 21, 31):
            with h5py.File(folder / "h5" / f"v{n}" / f"{frame:05d}.h5", "w") as file:
                file["instance"], file["reMask"] = np.arange(PER_MEDIA), masks
    (folder / "videoset.csv").write_text("".join(f"v{n},12,0:00,0:03,480,640,40,4,0\n" for n in videos))
    lines = "".join(f"v{n},{k},the man number {k} waves\n" for n in videos for k in range(PER_MEDIA))
    (folder / "sentences.txt").write_text("video_id,instance_id,query\n" + lines)
    files = {"videos": "videoset.csv", "sentences": "sentences.txt", "instances": "h5"}
    return {"annotations": {role: str(folder / name) for role, name in files.items()}}


def openimages(folder: Path, rows: int) -> dict[str, object]:
    with (folder / "boxes.csv").open("w") as out:
        out.write("ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf\n")
        for n in range(rows):
            out.write(f"{n // PER_MEDIA},xclick,/m/{n % 600},1,0.012500,0.195312,0.148438,0.587500,0,1,0\n")
    (folder / "classes.csv").write_text("".join(f"/m/{n},Thing {n}\n" for n in range(600)))
    return {"annotations": {"boxes": str(folder / "boxes.csv"), "classes": str(folder / "classes.csv")}}


def visual_genome(folder: Path, rows: int) -> dict[str, object]:
    entries = [
        {"id": m, "regions": [{"region_id": m * PER_MEDIA + k, "width": 82, "height": 139, "image_id": m, "x": 421,
                               "y": 57, "phrase": f"the clock number {k} is green in colour"}
                              for k in range(PER_MEDIA)]}
        for m in range(rows // PER_MEDIA)
    ]  # fmt: skip
    return {"annotations": {"regions": dumped(folder / "region_descriptions.json", entries)}}


def sav(folder: Path, rows: int) -> dict[str, object]:
    coded = mask()
    document = {"video_id": "v", "masklet": [[coded] * PER_MEDIA] * FRAMES, "masklet_id": list(range(PER_MEDIA))}
    for n in range(rows // PER_MEDIA):
        dumped(folder / "sav" / f"v{n}_auto.json", document)
    return {"annotations": str(folder / "sav")}


def lv_vis(folder: Path, rows: int) -> dict[str, object]:
    coded = mask()
    document = {
        "videos": [{"id": n, "file_names": [f"c{n}/{k:05d}.jpg" for k in range(FRAMES)], "width": 640, "height": 480}
                   for n in range(rows // PER_MEDIA)],
        "categories": [{"id": 1, "name": "dog"}],
        "annotations": [{"id": n, "video_id": n // PER_MEDIA, "category_id": 1, "segmentations": [coded] * FRAMES,
                         "bboxes": [[230, 150, 180, 180]] * FRAMES} for n in range(rows)],
    }  # fmt: skip
    return {"annotations": dumped(folder / "i.json", document)}


def hc_stvg(folder: Path, rows: int) -> dict[str, object]:
    record = {"bbox": [[10, 20, 100, 200]] * FRAMES, "st_frame": 1, "caption": "The man waves.", "img_num": 400}
    return {"annotations": dumped(folder / "h.json", {f"{n}.mp4": record for n in range(rows)})}


RING = [10.5, 20, 60, 24, 111, 30, 108, 120, 101, 220, 40, 210, 12, 100, 11, 60]
WRITERS: dict[str, tuple[Callable[[Path, int], dict[str, object]], float]] = {
    "coco": (coco_like([RING]), 1.0), "lvis": (coco_like([RING, RING]), 1.0), "objects365": (coco_like(), 1.0),
    "v3det": (coco_like(), 1.0), "paco": (coco_like([RING], obj_ann_id=0, attribute_ids=[1]), 1.0),
    "openimages": (openimages, 1.0), "visual_genome": (visual_genome, 1.0), "refer": (refer, 1.0),
    "grefcoco": (grefcoco, 1.0), "google_refexp": (google_refexp, 1.0), "reftext": (reftext, 1.0),
    "rexverse": (rexverse, 1.0), "regions": (regions, 1.0), "sav": (sav, 0.01), "davis": (palette, 0.01),
    "youtube_vos": (palette, 0.01), "lv_vis": (lv_vis, 0.01), "vidstg": (vidstg, 0.04), "hc_stvg": (hc_stvg, 0.04),
    "bensmot": (bensmot, 0.04), "a2d": (a2d, 0.02), "pam_data": (pam_data, 1.0),
}  # fmt: skip


def measure(name: str, rows: int) -> dict[str, float]:
    """Ingests one synthetic file of about this many rows (video formats: fewer, each with its track)."""
    import polars as pl

    from stages.ingest.base import SourceConfig
    from stages.ingest.sources import ingest, list_media

    writer, share = WRITERS[name]
    with tempfile.TemporaryDirectory() as spare:
        (Path(spare) / "media").mkdir()
        made = writer(Path(spare), max(PER_MEDIA, int(rows * share)))
        config = SourceConfig(format=name, media=f"{spare}/media", **made)
        listed = pl.DataFrame(pl.from_arrow(list_media(config)))
        probes = listed.select(
            "uri", pl.col("uri_key").alias("media_key"), status=pl.lit("ok"), reason=pl.lit(None, pl.String),
            message=pl.lit(None, pl.String), width=pl.lit(640), height=pl.lit(480), orientation=pl.lit(1),
            num_frames=pl.lit(1000), fps=pl.lit(24.0),
        )  # fmt: skip
        import pandas  # noqa: F401  (pyarrow would import it at the first conversion)

        seconds = math.inf
        for _ in range(REPEATS):
            clock = time.process_time()
            counts = [(len(table), table["status"].to_pylist().count("ok")) for table in ingest(config, probes)]
            seconds = min(seconds, time.process_time() - clock)
    made_rows, good = (sum(column) for column in zip(*counts, strict=True))
    return {"rows": made_rows, "good": good, "cpu_s": seconds, "rows_per_s": made_rows / seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--only", choices=sorted(WRITERS), nargs="+")
    parser.add_argument("--part", choices=sorted(WRITERS))
    asked = parser.parse_args()
    if asked.part:
        measured = measure(asked.part, asked.rows)
        measured["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(measured))
        return
    for name in asked.only or WRITERS:
        command = [sys.executable, __file__, "--part", name, "--rows", str(asked.rows)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        part = json.loads(done.stdout.splitlines()[-1])
        print(f"{name:14} {part['rows']:8.0f} rows {part['rows_per_s']:9.0f} rows/s {part['peak_mb']:6.0f} MB")


if __name__ == "__main__":
    main()
