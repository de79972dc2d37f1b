"""SAM 2 on images: JPEG files on disk to mask rows, against the naive loop and the bare encoder, in one run.

    python -m benchmarks.sam2_images --size large --images 256 --out benchmarks/results/sam2_images.txt

Ways compared: `naive` loops over `SAM2ImagePredictor` (`set_image`, a `predict` a box, pycocotools); `encoder` runs
the image encoder alone on a batch that lies on the device; `stage` is the refine stage, files to a Parquet part.
"""

from __future__ import annotations

import argparse
import multiprocessing
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from pycocotools import mask as coco
from torch import Tensor

from benchmarks.sam2_common import boxes_for, heading, random_checkpoint, timed, with_outlines, write_photos
from schemas.arrow import to_table
from schemas.keys import digest_value
from stages.refine.config import RefineConfig
from stages.refine.images import ImageJob, conclude
from stages.refine.seeds import Candidate, RefineUnit
from stages.refine.stage import RefineStage
from stages.sam2.device import resolve_device
from stages.sam2.encoder import Encoder, inference
from stages.sam2.enlarge import send_enlarged
from stages.sam2.forward import normalise
from stages.sam2.images import FastImages, Proposed
from stages.sam2.load import load_model
from stages.sam2.predictor import Predictor
from stages.sam2.public import image_predictor

TFLOP_AN_IMAGE = {"large": 1.82}
ROOFLINE_TFLOPS = 790.0


class OutlinedImages(FastImages):
    """The fast path, packing ellipses instead of a random network's noise."""

    def logits(self, jobs: Sequence[ImageJob], pixels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        low, predicted = super().logits(jobs, pixels)
        boxes = [np.array(seed.box) / np.tile(job.image.shape[1::-1], 2) for job in jobs for seed in job.seeds]
        return with_outlines(low, torch.tensor(np.array(boxes, np.float32), device=low.device)), predicted


class OutlinedStage(RefineStage):
    """The refine stage over `OutlinedImages`."""

    def open(self) -> None:
        model = load_model(self.config.checkpoint, resolve_device(self.config.device))
        self._refiner = OutlinedImages(model, self.config)


def units_of(paths: list[str], width: int, height: int, regions: int) -> list[RefineUnit]:
    """`regions` boxes on each image."""
    scale = np.array([width, height, width, height])
    return [
        RefineUnit(
            input_digest=digest_value([path, number]), region_key=digest_value([path, number]),
            media_key=digest_value(path), uri=path, kind="image", width=width, height=height,
            box=tuple(float(edge) for edge in box * scale),
        )
        for index, path in enumerate(paths)
        for number, box in enumerate(boxes_for(index, regions))
    ]  # fmt: skip


def naive(model: Predictor, paths: list[str], units: list[RefineUnit], dtype: torch.dtype) -> float:
    """Images a second of the loop that users write."""
    predictor = image_predictor(model)
    by_path: dict[str, list[RefineUnit]] = {path: [u for u in units if u.uri == path] for path in paths}

    def loop(some: list[str]) -> None:
        for path in some:
            image = np.array(Image.open(path).convert("RGB"))
            height, width = image.shape[:2]
            predictor.set_image(image)
            for unit in by_path[path]:
                predictor.predict(box=np.array(unit.box), multimask_output=False)
                box = torch.tensor([unit.box]) / torch.tensor([width, height, width, height])
                low = with_outlines(torch.zeros(1, 256, 256), box)[0].numpy()
                mask = cv2.resize(low, (width, height), interpolation=cv2.INTER_LINEAR) > 0
                coco.encode(np.asfortranarray(mask.astype(np.uint8)))

    with inference(model.device, dtype):
        loop(paths[:2])
        return len(paths) / timed(lambda: loop(paths), model.device)


def encoder_alone(encoder: Encoder, seconds: float) -> float:
    """Images a second of the encoder on one resident batch, compilation done."""
    size, device = encoder.model.image_size, encoder.model.device
    batch = torch.randn(encoder.batch, 3, size, size, device=device)
    with inference(device, encoder.dtype):
        for _ in range(3):
            encoder.pyramid(batch)
        one = timed(lambda: encoder.pyramid(batch), device)
        rounds = max(3, int(seconds / max(one, 1e-3)))
        took = timed(lambda: [encoder.pyramid(batch) for _ in range(rounds)], device)
    return rounds * encoder.batch / took


def through_stage(stage: RefineStage, units: list[RefineUnit], folder: Path) -> float:
    """Images a second from files to a Parquet part, through `RefineStage.process`."""
    table = to_table(units, RefineUnit)
    images = len({unit.uri for unit in units})

    def once() -> None:
        writer = None
        for rows in stage.process(table):
            writer = writer or pq.ParquetWriter(folder / "part.parquet", rows.schema)
            writer.write_table(rows)
        assert writer is not None
        writer.close()

    return images / timed(once, stage._refiner.model.device)


def worker(config: RefineConfig, units: list[RefineUnit], folder: Path, barrier: Any, results: Any) -> None:
    """One of several processes that share the device, as the runner's workers do."""
    stage = OutlinedStage(config)
    stage.open()
    few = units[: 2 * config.image_batch]
    through_stage(stage, few, folder)
    barrier.wait()
    began = time.perf_counter()
    rate = through_stage(stage, units, folder)
    results.put((rate, time.perf_counter() - began))
    stage.close()


def in_processes(count: int, config: RefineConfig, units: list[RefineUnit], folder: Path, regions: int) -> float:
    """Images a second of `count` worker processes on one device, each with its share of the images."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(count), context.Queue()
    workers = []
    share = -(-len(units) // regions // count) * regions
    for number in range(count):
        mine, own = units[number * share : (number + 1) * share], folder / f"worker{number}"
        own.mkdir(exist_ok=True)
        arguments = (config, mine, own, barrier, results)
        workers.append(context.Process(target=worker, args=arguments, daemon=True))  # none may outlive the measurement
        workers[-1].start()
    longest = max(results.get(timeout=300)[1] for _ in workers)
    for process in workers:
        process.join()
    return len(units) / regions / longest


def shares(fast: OutlinedImages, units: list[RefineUnit]) -> list[tuple[str, float]]:
    """Milliseconds an image of each part, each run alone on one batch."""
    device, count = fast.model.device, fast.encoder.batch
    groups: dict[str, list[RefineUnit]] = {}
    for unit in units:
        groups.setdefault(unit.uri, []).append(unit)
    groups = dict(list(groups.items())[:count])
    loaded = [fast._load(group, "sam2") for group in groups.values()]
    jobs = [one.job for one in loaded if one.job is not None]
    pixels = [one.pixels for one in loaded if one.pixels is not None]
    size = fast.model.image_size
    with inference(device, fast.dtype):
        batch = torch.cat([normalise(p.to(device).permute(2, 0, 1), size) for p in pixels])
        low, predicted = fast.logits(jobs, pixels)
        per = len(jobs[0].seeds)

        def enlarged() -> list[list[Candidate]]:
            spans = [slice(i * per, (i + 1) * per) for i in range(len(jobs))]
            sent = [
                Proposed(job, send_enlarged(low[span], predicted[span], *job.image.shape[:2]))
                for job, span in zip(jobs, spans, strict=True)
            ]
            return [one.candidates() for one in sent]

        ready = enlarged()
        parts: list[tuple[str, Callable[[], Any]]] = [
            ("read and decode a JPEG (one core)", lambda: [fast._load(group, "sam2") for group in groups.values()]),
            ("copy and resize", lambda: [normalise(p.to(device).permute(2, 0, 1), size) for p in pixels]),
            ("encoder", lambda: fast.encoder.features(batch)),
            ("copy, resize, encoder and decoder", lambda: fast.logits(jobs, pixels)),
            ("enlarge and copy back", enlarged),
            ("judge and pack (one core)", lambda: [
                conclude(job, candidates, fast.config) for job, candidates in zip(jobs, ready, strict=True)]),
        ]  # fmt: skip
        return [(name, 1e3 * timed(part, device) / len(jobs)) for name, part in parts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["large", "tiny", "nano"], default="large")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--naive", type=int, default=12, help="images of the naive loop")
    parser.add_argument("--regions", type=int, default=8)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--workers", type=int, nargs="*", default=[2], help="worker processes that share the device")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", choices=["auto", "on", "off"], default="auto")
    parser.add_argument("--sizes", nargs="+", default=["640x480", "1920x1080"])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "sam2_bench")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that a time limit takes the workers along
    args.folder.mkdir(parents=True, exist_ok=True)
    lines = [heading(f"SAM 2.1-{args.size}, {args.regions} regions an image, random weights")]

    def say(line: str) -> None:
        print(line, flush=True)
        lines.append(line)
        if args.out:
            args.out.write_text("\n".join(lines) + "\n")

    config = RefineConfig(
        backend="sam2", checkpoint=str(random_checkpoint(args.size, args.folder)), device=args.device,
        image_batch=args.batch, compile=args.compile,
    )  # fmt: skip
    stage = OutlinedStage(config)
    stage.open()
    fast: OutlinedImages = stage._refiner
    bare = encoder_alone(fast.encoder, 4.0)
    flops = TFLOP_AN_IMAGE.get(args.size)
    reach = f" ({bare * flops:.0f} TFLOP/s, {bare * flops / ROOFLINE_TFLOPS:.0%} of the matrix rate)" if flops else ""
    say(f"encoder alone, batch {args.batch}: {bare:.1f} img/s{reach}")
    for size in args.sizes:
        width, height = (int(side) for side in size.split("x"))
        paths = write_photos(args.folder, args.images, width, height)
        units = units_of(paths, width, height, args.regions)
        slow = naive(fast.model, paths[: args.naive], units, fast.dtype)
        through_stage(stage, units[: args.regions * args.batch], args.folder)
        rate = through_stage(stage, units, args.folder)
        say(f"{size}: naive {slow:.1f} img/s; stage {rate:.1f} img/s ({rate * args.regions:.0f} regions/s)")
        say(f"{size}: {rate / slow:.1f} x naive, {rate / bare:.2f} of the encoder alone")
        for count in args.workers:
            together = in_processes(count, config, units, args.folder, args.regions)
            say(f"{size}: {count} workers on the device {together:.1f} img/s ({together * args.regions:.0f} regions/s)")
            say(f"{size}: {together / slow:.1f} x naive, {together / bare:.2f} of the encoder alone")
        for name, ms in shares(fast, units):
            say(f"    {name}: {ms:.2f} ms an image")


if __name__ == "__main__":
    main()
