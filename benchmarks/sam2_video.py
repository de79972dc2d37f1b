"""SAM 2 on video: an MP4 with several objects to mask rows, against the naive loop, in one run.

    python -m benchmarks.sam2_video --size large --frames 96 --objects 4 --out benchmarks/results/sam2_video.txt

Ways compared: `naive` is `SAM2VideoPredictor` on a folder of JPEG files, every object prompted with a mask, each mask
packed with pycocotools; `stage` is the refine stage's video path, from the MP4 to a Parquet part.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from pycocotools import mask as coco

from benchmarks.sam2_common import boxes_for, heading, random_checkpoint, timed, with_outlines
from schemas.arrow import to_table
from schemas.keys import digest_value
from schemas.mask import Mask
from stages import masks
from stages.refine.config import RefineConfig
from stages.refine.seeds import Candidate, RefineUnit, Seed
from stages.refine.verdict import judge
from stages.refine.videos import segments
from stages.sam2.device import resolve_device, resolve_dtype
from stages.sam2.encoder import Encoder, inference
from stages.sam2.enlarge import Sent, send_enlarged
from stages.sam2.load import load_model
from stages.sam2.predictor import Predictor
from stages.sam2.tracker import Level, Tracked, Tracker
from stages.sam2.video import FastVideo
from stages.shapes.clip import draw_clip

TFLOP = {"encoder": 1.82, "memory attention": 0.55}


class Mp4:
    """A video file behind what the tracker asks of a video."""

    def __init__(self, path: Path) -> None:
        import decord

        self._reader = decord.VideoReader(str(path), num_threads=1)
        self.height, self.width = self._reader[0].shape[:2]
        self.times_s = np.arange(len(self._reader)) / 24

    def __len__(self) -> int:
        return len(self._reader)

    def frames(self, indices: Sequence[int]) -> np.ndarray:
        """uint8 (n, H, W, 3)."""
        return self._reader.get_batch(list(indices)).asnumpy()


class OutlinedVideo(FastVideo):
    """The fast path, packing ellipses instead of a random network's noise."""

    boxes: np.ndarray

    def send(self, results: Sequence[Tracked], places: Sequence[tuple[int, int]], video: Any) -> Sent:
        low = torch.stack([result.logits for result in results])
        scores = torch.stack([result.score for result in results])
        boxes = torch.tensor(self.boxes[[number for _, number in places]], device=low.device)
        return send_enlarged(with_outlines(low, boxes), scores.abs() + 1, video.height, video.width)


def write_video(folder: Path, frames: int, width: int, height: int) -> tuple[Path, Path]:
    """A drawn clip as an MP4 and as a folder of JPEG files."""
    film, stills = folder / f"clip_{frames}.mp4", folder / f"clip_{frames}"
    stills.mkdir(exist_ok=True)
    pixels = draw_clip(1, frames=frames, size=(width, height), fps=24.0, objects=(4, 4)).frames
    writer = cv2.VideoWriter(str(film), cv2.VideoWriter.fourcc(*"mp4v"), 24.0, (width, height))
    for index, frame in enumerate(pixels):
        turned = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
        writer.write(turned)
        cv2.imwrite(str(stills / f"{index:05d}.jpg"), turned)
    writer.release()
    return film, stills


def naive(model: Predictor, stills: Path, first: list[np.ndarray], boxes: np.ndarray, dtype: torch.dtype) -> Any:
    """The loop that users write, as a function to be timed."""

    def run() -> None:
        with inference(model.device, dtype), contextlib.redirect_stderr(io.StringIO()):
            state = model.init_state(str(stills))
            for number, mask in enumerate(first):
                model.add_new_mask(state, 0, number, mask)
            height, width = first[0].shape
            small = with_outlines(torch.zeros(len(first), 256, 256), torch.tensor(boxes))
            large = (F.interpolate(small[:, None], (height, width), mode="bilinear")[:, 0] > 0).numpy()
            for _, _, logits in model.propagate_in_video(state):
                (logits > 0).cpu().numpy()
                for mask in large:
                    coco.encode(np.asfortranarray(mask.astype(np.uint8)))

    return run


def fast(follow: OutlinedVideo, film: Path, first: list[np.ndarray], config: RefineConfig, out: Path) -> Any:
    """The stage's video path from the file to a Parquet part, as a function to be timed."""

    def run() -> None:
        video = Mp4(film)
        image = video.frames([0])[0]
        units = [
            RefineUnit(
                input_digest=digest_value(n), region_key=digest_value(n), media_key=digest_value("film"), uri=str(film),
                kind="video", width=video.width, height=video.height, num_frames=len(video), mask=masks.encode(mask),
            )
            for n, mask in enumerate(first)
        ]  # fmt: skip
        started = [
            (unit, judge(image, Seed(None, (), mask), Candidate(mask), "auto", 0.002))
            for unit, mask in zip(units, first, strict=True)
        ]
        writer = None
        for rows in segments(started, video, follow, config):  # type: ignore[arg-type]
            table = to_table(rows, Mask)
            writer = writer or pq.ParquetWriter(out, table.schema)
            writer.write_table(table)
        assert writer is not None
        writer.close()

    return run


def tracking_alone(model: Predictor, encoder: Encoder, first: list[np.ndarray], frames: int) -> float:
    """Seconds a frame of the tracker with the features given: memory attention, decoder, memory encoder."""
    size = model.image_size
    with inference(model.device, encoder.dtype):
        pyramid = encoder.pyramid(torch.randn(1, 3, size, size, device=model.device))
        _, features, positions, sizes = model._prepare_backbone_features(pyramid)
        level = Level(features, positions, sizes)
        tracker = Tracker(model, 10_000, lambda index: level)
        for number, mask in enumerate(first):
            tracker.prompt_mask(number, 0, torch.from_numpy(mask).to(model.device))
        for frame in range(20):
            tracker.step(frame)

        def run() -> None:
            for frame in range(20, 20 + frames):
                tracker.step(frame)
                tracker.forget(frame)

        return timed(run, model.device) / frames


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["large", "tiny", "nano"], default="large")
    parser.add_argument("--frames", type=int, default=96)
    parser.add_argument("--naive", type=int, default=32, help="frames of the naive loop")
    parser.add_argument("--objects", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--resolution", default="1280x720")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", choices=["auto", "on", "off"], default="auto")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "sam2_bench")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    width, height = (int(side) for side in args.resolution.split("x"))
    lines = [heading(f"SAM 2.1-{args.size} on a {args.resolution} video, random weights")]

    def say(line: str) -> None:
        print(line, flush=True)
        lines.append(line)
        if args.out:
            args.out.write_text("\n".join(lines) + "\n")

    config = RefineConfig(backend="sam2", checkpoint=str(random_checkpoint(args.size, args.folder)))
    device = resolve_device(args.device)
    dtype = resolve_dtype("auto", device)
    model = load_model(config.checkpoint, device)
    model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.data.fill_(5.0)  # every object is there, as a rule
    compiled = args.compile == "on" or (args.compile == "auto" and device.type == "cuda")
    encoder = Encoder(model, dtype, config.frame_batch, compiled)
    film, _ = write_video(args.folder, args.frames, width, height)
    _, stills = write_video(args.folder, args.naive, width, height)
    for count in args.objects:
        boxes = boxes_for(3, count)
        first = [masks.from_box(tuple(box * [width, height, width, height]), height, width) for box in boxes]
        slow = args.naive / timed(naive(model, stills, first, boxes, dtype), device)
        follow = OutlinedVideo(model, encoder, config)
        follow.boxes = boxes
        run = fast(follow, film, first, config, args.folder / "part.parquet")
        run()
        rate = args.frames / timed(run, device)
        tflop = TFLOP["encoder"] + count * TFLOP["memory attention"]
        reach = f"; {rate * tflop:.0f} TFLOP/s of about {tflop:.1f} TFLOP a frame" if args.size == "large" else ""
        say(f"{count} objects: naive {slow:.1f} frames/s; stage {rate:.1f} frames/s, {rate / slow:.1f} x naive{reach}")
        alone = tracking_alone(model, encoder, first, 40 if device.type == "cuda" else 2)
        say(f"    tracker alone, features given: {1e3 * alone:.1f} ms a frame")
    with inference(device, dtype):
        batch = torch.randn(config.frame_batch, 3, model.image_size, model.image_size, device=device)
        encoder.pyramid(batch)
        say(f"    encoder alone: {1e3 * timed(lambda: encoder.pyramid(batch), device) / len(batch):.1f} ms a frame")
    video = Mp4(film)
    say(f"    decode alone: {1e3 * timed(lambda: video.frames(range(args.naive)), device) / args.naive:.1f} ms a frame")


if __name__ == "__main__":
    main()
