"""Packing against `webdataset.ShardWriter`: tables and pictures on disk to finished shards, samples a second.

    python benchmarks/pack.py [--samples 1000] [--pairs 7] [--writers 1] [--memory]

Ours: plan, read and verify each picture, assemble and validate each record, write, SHA-256, fsync, indexes, card and
manifest. ShardWriter's: read each picture and write it with its record, a ready-made dictionary; no digest, no
validation, no index. Pairs are interleaved, so that a busy machine is busy for both, and the disk is at rest before
each half of a pair; the ratio is their median. With `--writers` several shards are written side by side, as the runner
does.
`--memory` packs growing corpora (`--sizes`), each in a process of its own that has not made it, and prints its peak
memory and time. Tables are read from parquet files, as a run gives them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import polars as pl
import pyarrow as pa
import webdataset as wds

from schemas.arrow import to_table
from schemas.caption import Caption, Decision
from schemas.geometry import Rle
from schemas.keys import digest_bytes, digest_value
from schemas.mask import Mask
from schemas.media import Media
from schemas.region import Region
from stages.base import checked, with_digest
from stages.pack import PackConfig, PackFrames, build_pack, finish_pack, plan_pack

NOTHING = bytes(16)
REGIONS, TEXTS = 4, ("label", "brief", "detailed")
SENTENCE = "A brown dog with a red collar stands on the grass beside a wooden fence and looks to the left. "


def picture(number: int, base: np.ndarray) -> bytes:
    """About 31 kB of JPEG, different for each number."""
    image = np.roll(base, number * 7, axis=1)
    cv2.putText(image, str(number), (5, 40), cv2.FONT_HERSHEY_SIMPLEX, 1, (255, 255, 255), 2)
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()


def frame(rows: list[Any], model: type[Any]) -> pl.DataFrame:
    return pl.DataFrame(pl.from_arrow(with_digest(to_table(rows, model), model)))


def corpus(folder: Path, count: int) -> PackFrames:
    """Pictures in a folder, and the tables of a run that has refined, captioned and judged them, as parquet files."""
    folder.mkdir(parents=True)
    tables = folder.with_name("tables")
    noise = np.random.default_rng(0).integers(0, 255, (36, 48, 3), np.uint8)
    base = cv2.resize(noise, (384, 288), interpolation=cv2.INTER_CUBIC)
    mask = Rle(size=(288, 384), counts="Zk0" + "3J2N2N1O1N2O0O2N1O1O1N2O1" * 12)
    for start in range(0, count, 500):
        made = rows_of(folder, range(start, min(start + 500, count)), base, mask)
        for name, model in MODELS.items():
            (tables / name).mkdir(parents=True, exist_ok=True)
            frame(made[name], model).write_parquet(tables / name / f"{start:06d}.parquet")
    return lazily(tables)


def lazily(tables: Path) -> PackFrames:
    """The tables as a run gives them: to be read."""
    return PackFrames(**{name: pl.scan_parquet(tables / name / "*.parquet") for name in MODELS})


MODELS: dict[str, type[Any]] = {
    "media": Media,
    "regions": Region,
    "masks": Mask,
    "captions": Caption,
    "decisions": Decision,
}


def rows_of(folder: Path, numbers: range, base: np.ndarray, mask: Rle) -> dict[str, list[Any]]:
    rows: dict[str, list[Any]] = {name: [] for name in MODELS}
    same: dict[str, Any] = {"input_digest": NOTHING}
    for number in numbers:
        data, path = picture(number, base), folder / f"{number:06d}.jpg"
        path.write_bytes(data)
        key = digest_bytes(data)
        place = {**same, "media_key": key, "uri": str(path), "kind": "image"}
        rows["media"].append(Media(**place, encoding="jpeg", num_bytes=len(data), width=384, height=288, group_key=key))
        for index in range(REGIONS):
            region = digest_value([key, index])
            box = (10.0 + index, 20.0, 110.5, 140.25)
            source = {"source": "coco", "source_id": str(index), "source_media_id": str(number), "split": "train"}
            rows["regions"].append(Region(**place, **source, region_key=region, box=box, label="dog"))
            about = {**same, "media_key": key, "region_key": region}
            rows["masks"].append(
                Mask(**about, mask_key=region, mask=mask, box=box, stability=0.93, seed_agreement=0.9, backend="sam2")
            )
            for times, task in enumerate(TEXTS, 1):
                caption = digest_value([region, task])
                rows["captions"].append(
                    Caption(
                        **about,
                        caption_key=caption,
                        task=task,
                        language="en",
                        text=SENTENCE * times,
                        outcome="answer",
                        teacher="openai",
                        model="m",
                        prompt_id=task,
                        prompt_hash=NOTHING,
                    )
                )
                rows["decisions"].append(Decision(**same, caption_key=caption, region_key=region, policy="default"))
    return rows


CONFIG = PackConfig(layout="joined", max_shard_bytes="50MB", validation_fraction=0)


def ours(frames: PackFrames, out: Path, writers: int = 1) -> None:
    """Plans, writes and finishes a pack; `writers` shards are written at a time, as the runner's writers do."""
    plan = plan_pack(frames, CONFIG)
    stage = build_pack(CONFIG, str(out))

    def write(units: pa.Table) -> list[pl.DataFrame]:
        return [pl.DataFrame(pl.from_arrow(table)) for table in checked(stage, units)]

    rows: list[pl.DataFrame] = []
    waiting: deque[Future[list[pl.DataFrame]]] = deque()
    with ThreadPoolExecutor(writers) as pool:
        for batch in plan.pending(None).iter_slices(1):
            if len(waiting) == writers:
                rows += waiting.popleft().result()
            waiting.append(pool.submit(write, plan.fill(batch)))
        for future in waiting:
            rows += future.result()
    finish_pack(str(out), plan, pl.concat(rows))


def theirs(records: list[tuple[str, str, dict[str, Any]]], out: Path) -> None:
    out.mkdir(parents=True)
    with wds.ShardWriter(str(out / "%06d.tar"), maxsize=50e6, mtime=0, verbose=0) as sink:
        for key, path, record in records:
            sink.write({"__key__": key, "jpg": Path(path).read_bytes(), "json": record})


def ready_made(frames: PackFrames, folder: Path) -> list[tuple[str, str, dict[str, Any]]]:
    """The records that we write, as the dictionaries that ShardWriter is given."""
    ours(frames, folder)
    found = {}
    for shard in folder.rglob("*.tar"):
        for sample in wds.WebDataset(str(shard), shardshuffle=False):
            found[sample["__key__"]] = json.loads(sample["json"])
    shutil.rmtree(folder)
    paths = {key.hex(): uri for key, uri in frames.frame("media").select("media_key", "uri").iter_rows()}
    return [(key, paths[key], record) for key, record in sorted(found.items())]


def seconds(work: Callable[[], None]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def compare(samples: int, pairs: int, writers: int, folder: Path) -> None:
    frames = corpus(folder / "pictures", samples)
    records = ready_made(frames, folder / "first")
    rates: list[tuple[float, float]] = []
    for number in range(pairs):
        taken = {}
        order = (("ours", partial(ours, writers=writers), frames), ("theirs", theirs, records))
        for name, function, given in order if number % 2 else order[::-1]:
            out = folder / f"{name}-{number}"
            os.sync()  # nobody pays for what the one before has left to be written
            taken[name] = seconds(lambda f=function, g=given, o=out: f(g, o))
            shutil.rmtree(out)
        rates.append((samples / taken["ours"], samples / taken["theirs"]))
        print(f"pair {number}: ours {rates[-1][0]:.0f}/s, ShardWriter {rates[-1][1]:.0f}/s", flush=True)
    middle = [statistics.median(each) for each in zip(*rates, strict=True)]
    ratio = statistics.median(mine / other for mine, other in rates)
    print(
        f"{samples} samples of {REGIONS} regions and {REGIONS * len(TEXTS)} captions, {writers} writers at a time, "
        f"median of {pairs} pairs"
    )
    print(f"ours {middle[0]:.0f} samples/s, ShardWriter {middle[1]:.0f} samples/s, ratio {ratio:.2f}")


def measure(samples: int, folder: Path) -> None:
    """Packs the corpus of a folder in this process: peak memory before and after, and the time it took."""
    frames = lazily(folder / "tables")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    taken = seconds(lambda: ours(frames, folder / "run"))
    packed = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    held = sum(path.stat().st_size for path in (folder / "tables").rglob("*.parquet")) / 1e6
    print(
        f"{samples:6d} samples: {taken:7.2f} s ({samples / taken:.0f}/s), tables {held:.0f} MB as parquet, "
        f"peak {before:.0f} MB before, {packed:.0f} MB after",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--writers", type=int, default=1, help="shards written at a time; a run has as many as cores")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 50_000])
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="perceive-bench-") as folder:
        if given.measure:
            measure(int(given.measure[0]), Path(given.measure[1]))
        elif given.memory:
            for size in given.sizes:
                place = Path(folder) / str(size)
                corpus(place / "pictures", size)
                subprocess.run([sys.executable, __file__, "--measure", str(size), str(place)], check=True)
                shutil.rmtree(place)
        else:
            compare(given.samples, given.pairs, given.writers, Path(folder))


if __name__ == "__main__":
    main()
