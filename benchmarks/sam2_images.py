"""SAM 2 on images: JPEG files to committed mask rows, through the runner, against the naive loop and the encoder.

    python -m benchmarks.sam2_images --size large --images 1536 --workers 1 3 --out benchmarks/results/sam2_images.txt

`naive` loops over `SAM2ImagePredictor` (`set_image`, a `predict` a box, pycocotools); `encoder` runs the image encoder
alone on a batch that lies on the device; `runner` is the refine stage in worker processes of Ray, rows committed to a
run. Weights are random, masks are ellipses in the boxes, drawn in place of a random network's noise.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco
from torch import Tensor

from benchmarks.sam2_common import boxes_for, heading, public_precision, random_checkpoint, timed, with_outlines
from benchmarks.sam2_common import write_photos as photos_of
from benchmarks.through_runner import commit_all
from schemas.arrow import to_table
from schemas.keys import digest_value
from stages.refine.config import RefineConfig
from stages.refine.images import ImageJob
from stages.refine.seeds import RefineUnit
from stages.refine.stage import RefineStage
from stages.sam2.device import resolve_device
from stages.sam2.encoder import Encoder, inference
from stages.sam2.forward import resized, standardised
from stages.sam2.images import FastImages
from stages.sam2.load import load_model
from stages.sam2.predictor import Predictor
from stages.sam2.public import image_predictor

TFLOP_AN_IMAGE = {"large": 1.82}
ROOFLINE_TFLOPS = 790.0


class OutlinedImages(FastImages):
    """The fast path, tracing ellipses instead of a random network's noise."""

    def logits(self, jobs: Sequence[ImageJob], pixels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        low, predicted = super().logits(jobs, pixels)
        boxes = [np.array(seed.box) / np.tile(job.image.shape[1::-1], 2) for job in jobs for seed in job.seeds]
        return with_outlines(low, self._sent(np.array(boxes, np.float32))), predicted


class OutlinedStage(RefineStage):
    """The refine stage over `OutlinedImages`; compiled and warm, all workers of a run begin at once."""

    def __init__(self, config: RefineConfig, warm: list[RefineUnit], workers: int, folder: Path) -> None:
        super().__init__(config)
        self.warm, self.workers, self.folder = warm, workers, folder

    def open(self) -> None:
        model = load_model(self.config.checkpoint, resolve_device(self.config.device))
        self._refiner = OutlinedImages(model, self.config)
        for _ in range(5):  # compilation, then capture of the graphs
            for _ in self.process(to_table(self.warm, RefineUnit)):
                pass
        (self.folder / f"ready-{os.getpid()}").touch()
        while len(list(self.folder.glob("ready-*"))) < self.workers:
            time.sleep(0.01)


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


def many_photos(folder: Path, distinct: int, count: int, width: int, height: int) -> list[str]:
    """`count` JPEG files, each of its own name, of `distinct` contents."""
    originals = photos_of(folder, distinct, width, height)
    paths = []
    for index in range(count):
        path = folder / f"{width}x{height}_copy{index}.jpg"
        if not path.exists():
            shutil.copyfile(originals[index % distinct], path)
        paths.append(str(path))
    return paths


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

    with public_precision(model.device, dtype):
        loop(paths[:2])
        return len(paths) / timed(lambda: loop(paths), model.device)


def encoder_alone(encoder: Encoder, seconds: float) -> float:
    """Images a second of the encoder on one resident batch, compilation done."""
    size, device = encoder.model.image_size, encoder.model.device
    with inference(device, encoder.dtype):
        batch = torch.randn(encoder.batch, 3, size, size, device=device)
        for _ in range(5):
            encoder.features(batch)
        one = timed(lambda: encoder.features(batch), device)
        rounds = max(3, int(seconds / max(one, 1e-3)))
        took = timed(lambda: [encoder.features(batch) for _ in range(rounds)], device)
    return rounds * encoder.batch / took


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

        def copied() -> Tensor:
            return standardised(torch.cat([resized(p.to(device).permute(2, 0, 1), size) for p in pixels]))

        batch = copied()
        proposed = fast.propose(jobs, pixels)
        traced = fast.traced(proposed, 0.002)
        per = len(jobs[0].seeds)
        spans = [traced[i * per : (i + 1) * per] for i in range(len(jobs))]
        rows = [fast._rows(job, span) for job, span in zip(jobs, spans, strict=True)]
        flat = [row for some in rows for row in some]
        parts: list[tuple[str, Callable[[], Any]]] = [
            ("read and decode a JPEG (one core)", lambda: [fast._load(group, "sam2") for group in groups.values()]),
            ("copy and resize", copied),
            ("encoder", lambda: fast.encoder.features(batch)),
            ("copy, resize, encoder and decoder", lambda: fast.logits(jobs, pixels)),
            ("enlarge, trace, runs (one core)", lambda: fast.traced(proposed, 0.002)),
            ("judge, rows (one core)", lambda: [fast._rows(j, s) for j, s in zip(jobs, spans, strict=True)]),
            ("rows to a table (one core)", lambda: to_table(flat, type(flat[0]))),
        ]
        return [(name, 1e3 * min(timed(part, device) for _ in range(3)) / len(jobs)) for name, part in parts]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["large", "tiny", "nano"], default="large")
    parser.add_argument("--images", type=int, default=1536, help="images of 640x480; half as many of other sizes")
    parser.add_argument("--distinct", type=int, default=96, help="contents that differ")
    parser.add_argument("--naive", type=int, default=12, help="images of the naive loop")
    parser.add_argument("--regions", type=int, default=8)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--workers", type=int, nargs="*", default=[3], help="worker processes that share the device")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", choices=["auto", "on", "off"], default="auto")
    parser.add_argument("--sizes", nargs="+", default=["640x480", "1920x1080"])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "sam2_bench")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    args.folder.mkdir(parents=True, exist_ok=True)
    lines = [heading(f"SAM 2.1-{args.size}, {args.regions} regions an image, random weights")]

    def say(line: str) -> None:
        print(line, flush=True)
        lines.append(line)
        if args.out:
            args.out.write_text("\n".join(lines) + "\n")

    checkpoint = str(random_checkpoint(args.size, args.folder))
    config = RefineConfig(
        backend="sam2", checkpoint=checkpoint, device=args.device, image_batch=args.batch, compile=args.compile
    )
    fast = OutlinedImages(load_model(checkpoint, resolve_device(args.device)), config)
    bare = encoder_alone(fast.encoder, 4.0)
    flops = TFLOP_AN_IMAGE.get(args.size)
    reach = f" ({bare * flops:.0f} TFLOP/s, {bare * flops / ROOFLINE_TFLOPS:.0%} of the matrix rate)" if flops else ""
    say(f"encoder alone, batch {args.batch}: {bare:.1f} img/s{reach}")
    sets: dict[str, tuple[list[RefineUnit], float]] = {}
    for size in args.sizes:
        width, height = (int(side) for side in size.split("x"))
        count = args.images if size == args.sizes[0] else args.images // 2
        paths = many_photos(args.folder, min(args.distinct, count), count, width, height)
        units = units_of(paths, width, height, args.regions)
        slow = naive(fast.model, paths[: args.naive], units, fast.dtype)
        say(f"{size}: naive {slow:.1f} img/s")
        for name, ms in shares(fast, units):
            say(f"    {name}: {ms:.2f} ms an image")
        sets[size] = units, slow
    del fast
    torch.cuda.empty_cache()
    for count in args.workers:
        for size, (units, slow) in sets.items():
            warm = units[: args.regions * args.batch]

            def stage(folder: Path, count: int = count, warm: list[RefineUnit] = warm) -> RefineStage:
                shared = config.model_copy(update={"gpu_share": count})
                return OutlinedStage(shared, warm, count, folder)

            rate = commit_all(stage, to_table(units, RefineUnit), args.folder, count) / args.regions
            say(
                f"{size}: {count} workers through the runner {rate:.1f} img/s ({rate * args.regions:.0f} regions/s), "
                f"{rate / slow:.1f} x naive, {rate / bare:.2f} of the encoder alone"
            )


if __name__ == "__main__":
    main()
