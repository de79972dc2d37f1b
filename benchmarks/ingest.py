"""Speed and memory of ingest on a COCO-train-sized file, against pycocotools loading the same file in the same run, and
of the selection among the regions that ingest has committed.

    python benchmarks/ingest.py [--images 118287] [--annotations 860001] [--folder DIR]

Each part runs in a process of its own, so that its peak memory is its own. The photos are empty files: their probes
are made up, because decoding is measured elsewhere.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from schemas.keys import digest_value

IMAGES, ANNOTATIONS = 118_287, 860_001
FINGERPRINT = digest_value("benchmark")
RUN = "run"
PARTS = ("ours", "select", "pycocotools")


def write(folder: Path, images: int, annotations: int, seed: int = 0) -> None:
    """A COCO instances file with polygons of COCO's usual length, and an empty file for each photo."""
    rng = np.random.default_rng(seed)
    media = folder / "images"
    media.mkdir(parents=True, exist_ok=True)
    with (folder / "instances.json").open("w") as out:
        out.write('{"info": {"description": "synthetic"}, "licenses": [], "images": [')
        for number in range(images):
            name = f"{number:012d}.jpg"
            (media / name).touch()
            entry = {"license": 3, "file_name": name, "coco_url": f"http://images.cocodataset.org/train2017/{name}",
                     "height": 480, "width": 640,
                     "date_captured": "2013-11-14 17:02:52", "id": number}  # fmt: skip
            out.write((", " if number else "") + json.dumps(entry))
        out.write('], "annotations": [')
        for start in range(0, annotations, 1 << 14):
            out.write((", " if start else "") + _annotations(rng, start, min(1 << 14, annotations - start), images))
        categories = [{"supercategory": "thing", "id": n, "name": f"thing {n}"} for n in range(1, 81)]
        out.write(f'], "categories": {json.dumps(categories)}}}')


def _annotations(rng: np.random.Generator, start: int, count: int, images: int) -> str:
    lengths = rng.choice([6, 10, 16, 24, 32, 48], count)
    centres = rng.uniform([40, 40], [600, 440], (count, 2))
    radii = rng.uniform(4, 120, count)
    lines = []
    for row in range(count):
        angle = np.linspace(0, 2 * np.pi, lengths[row], endpoint=False)
        ring = centres[row] + radii[row] * np.stack([np.cos(angle), np.sin(angle)], 1)
        ring = ring.clip(0, [640, 480]).round(2)
        low, high = ring.min(0), ring.max(0)
        box = [*low.tolist(), *(high - low).round(2).tolist()]
        lines.append(
            json.dumps({"segmentation": [ring.ravel().tolist()], "area": 100.5, "iscrowd": 0,
                        "image_id": int(rng.integers(images)), "bbox": box, "category_id": int(rng.integers(1, 81)),
                        "id": start + row})
        )  # fmt: skip
    return ", ".join(lines)


def measure_ours(folder: Path) -> dict[str, float]:
    """Listing, reading, finishing and committing to parts."""
    import polars as pl

    from pipeline.known import commit_new
    from pipeline.tables import Run
    from stages.ingest.base import SourceConfig
    from stages.ingest.sources import ingest, list_media

    config = SourceConfig(format="coco", annotations=f"{folder}/instances.json", media=f"{folder}/images")
    clock = time.perf_counter()
    listed = pl.DataFrame(pl.from_arrow(list_media(config)))
    listing = time.perf_counter() - clock
    probes = listed.select(
        "uri",
        pl.col("uri_key").alias("media_key"),
        status=pl.lit("ok"), reason=pl.lit(None, pl.String), message=pl.lit(None, pl.String),
        width=pl.lit(640), height=pl.lit(480), orientation=pl.lit(1), num_frames=pl.lit(1),
        fps=pl.lit(None, pl.Float64),
    )  # fmt: skip
    clock, cpu, slices = time.perf_counter(), time.process_time(), []
    with Run.open(str(folder / RUN)).writer("benchmark") as writer:
        commit_new(
            writer,
            "regions",
            FINGERPRINT,
            ingest(config, probes),
            "region_key",
            lambda rows: slices.append(len(rows)),
        )
    rows = sum(slices)
    seconds = time.perf_counter() - clock
    return {"listing_s": listing, "seconds": seconds, "rows": rows, "rows_per_s": rows / seconds, "cpu_before": cpu}


def measure_select(folder: Path) -> dict[str, float]:
    """The selection among the committed regions, of a media table with a row for each of their media."""
    import polars as pl

    from pipeline.tables import Run
    from stages.select import SelectConfig, select

    clock, cpu = time.perf_counter(), time.process_time()
    regions = Run.open(str(folder / RUN)).view().live("regions", [FINGERPRINT])
    media = regions.select(pl.col("media_key").unique()).collect()
    media = media.with_columns(group_key="media_key", phash=pl.lit(0, pl.Int64))
    rows = select(regions, media, SelectConfig(max_per_image=4, max_per_class=5000, total=200_000))
    seconds = time.perf_counter() - clock
    return {"seconds": seconds, "rows": len(rows), "rows_per_s": len(rows) / seconds, "cpu_before": cpu}


def measure_pycocotools(folder: Path) -> dict[str, float]:
    """`COCO(path)`: the whole file as Python objects, with its indexes."""
    from pycocotools.coco import COCO

    clock, cpu = time.perf_counter(), time.process_time()
    loaded = COCO(f"{folder}/instances.json")
    seconds = time.perf_counter() - clock
    return {"seconds": seconds, "rows": len(loaded.anns), "rows_per_s": len(loaded.anns) / seconds, "cpu_before": cpu}


def in_process(part: str, folder: Path) -> dict[str, float]:
    """Runs one part alone and returns what it measured, with its peak memory."""
    command = [sys.executable, __file__, "--part", part, "--folder", str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--annotations", type=int, default=ANNOTATIONS)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--part", choices=PARTS)
    asked = parser.parse_args()
    if asked.part:
        parts = {"ours": measure_ours, "select": measure_select, "pycocotools": measure_pycocotools}
        measured = parts[asked.part](asked.folder)
        measured["cpu_s"] = time.process_time() - measured.pop("cpu_before")
        measured["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(measured))
        return
    with tempfile.TemporaryDirectory() as spare:
        folder = asked.folder or Path(spare)
        if not (folder / "instances.json").exists():
            write(folder, asked.images, asked.annotations)
        size = (folder / "instances.json").stat().st_size / 1e6
        shutil.rmtree(folder / RUN, ignore_errors=True)
        ours, chosen, theirs = (in_process(part, folder) for part in PARTS)
        shutil.rmtree(folder / RUN)
    print(f"file                  {size:10.0f} MB, {ours['rows']:.0f} annotations")
    print(f"listing the photos    {ours['listing_s']:10.1f} s")
    for name, part in (("ingest to parts", ours), ("pycocotools load only", theirs), ("select", chosen)):
        rate = part["rows"] / part["cpu_s"]
        print(
            f"{name:21} {part['seconds']:10.1f} s {part['rows_per_s']:10.0f} rows/s {part['peak_mb']:8.0f} MB; "
            f"of CPU {part['cpu_s']:.1f} s, {rate:.0f} rows/s"
        )
    print(
        f"ratio of time {ours['seconds'] / theirs['seconds']:.2f}, of memory {ours['peak_mb'] / theirs['peak_mb']:.2f}"
    )


if __name__ == "__main__":
    main()
