"""SAM 2 on video: an MP4 with several objects to mask rows, against the naive loop, in one run.

    python -m benchmarks.sam2_video --size large --frames 192 --out benchmarks/results/sam2_video_h200.txt

Ways compared: `naive` is `SAM2VideoPredictor` on a folder of JPEG files, every object prompted with a mask, each mask
packed with pycocotools, run twice; `stage` is the refine stage's video path, from the MP4 to a Parquet part.
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
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.sam2_common import boxes_for, heading, public_precision, random_checkpoint, timed, with_outlines
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
from stages.sam2.load import load_model
from stages.sam2.predictor import Predictor
from stages.sam2.tracker import KERNELS, Level, Tracked, Tracker, attender
from stages.sam2.video import FastVideo
from stages.shapes.clip import draw_clip

TFLOP = {"encoder": 1.82, "memory attention": 0.55}
ROOFLINE_TFLOPS = 790.0
DRAWN_FRAMES = 24


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
    """The fast path, tracing ellipses instead of a random network's noise."""

    boxes: np.ndarray

    def drawn(self, results: Sequence[Tracked], places: Sequence[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
        low, scores = super().drawn(results, places)
        boxes = torch.from_numpy(self.boxes[[number for _, number in places]]).to(low.device)
        return with_outlines(low, boxes), scores.abs() + 1


def write_video(folder: Path, frames: int, width: int, height: int, with_stills: bool = False) -> tuple[Path, Path]:
    """A drawn clip, forwards and backwards in turn, as an MP4, and as a folder of JPEG files."""
    film, stills = folder / f"clip_{frames}.mp4", folder / f"clip_{frames}"
    stills.mkdir(exist_ok=True)
    drawn = draw_clip(1, frames=DRAWN_FRAMES, size=(width, height), fps=24.0, objects=(4, 4)).frames
    there_and_back = [*range(DRAWN_FRAMES), *range(DRAWN_FRAMES - 2, 0, -1)]
    writer = cv2.VideoWriter(str(film), cv2.VideoWriter.fourcc(*"mp4v"), 24.0, (width, height))
    for index in range(frames):
        turned = cv2.cvtColor(drawn[there_and_back[index % len(there_and_back)]], cv2.COLOR_RGB2BGR)
        writer.write(turned)
        if with_stills:
            cv2.imwrite(str(stills / f"{index:05d}.jpg"), turned)
    writer.release()
    return film, stills


def naive(model: Predictor, stills: Path, first: list[np.ndarray], boxes: np.ndarray, dtype: torch.dtype) -> Any:
    """The loop that users write, as a function to be timed."""

    def run() -> None:
        with public_precision(model.device, dtype), contextlib.redirect_stderr(io.StringIO()):
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
        on_gpu = model.device.type == "cuda"
        tracker = Tracker(model, 10_000, lambda index: level, attender(model, replayed=on_gpu))
        for number, mask in enumerate(first):
            tracker.prompt_mask(number, 0, torch.from_numpy(mask).to(model.device))
        for frame in range(20):
            tracker.step(frame)

        def run() -> None:
            for frame in range(20, 20 + frames):
                tracker.step(frame)
                tracker.forget(frame)

        return timed(run, model.device) / frames


def kernels(model: Predictor, objects: int) -> list[tuple[str, float]]:
    """Milliseconds of one layer's attention to full memories, by kernel."""
    side = model.image_size // 16
    tokens = side * side
    with torch.inference_mode():
        query = torch.randn(objects, 1, tokens, model.hidden_dim, device=model.device, dtype=torch.bfloat16)
        key = torch.randn(objects, 1, 7 * tokens + 64, model.hidden_dim, device=model.device, dtype=torch.bfloat16)
        found = []
        for kernel in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION):
            with sdpa_kernel(kernel):
                try:
                    F.scaled_dot_product_attention(query, key, key)
                    took = timed(
                        lambda: [F.scaled_dot_product_attention(query, key, key) for _ in range(20)], key.device
                    )
                except RuntimeError as error:
                    found.append((f"{kernel.name}: {str(error).splitlines()[0]}", float("nan")))
                    continue
            found.append((kernel.name, 1e3 * took / 20))
    return found


def peak(run: Any, device: torch.device) -> float:
    """GiB of device memory at most in use while it runs."""
    if device.type != "cuda":
        run()
        return float("nan")
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated() / 2**30


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["large", "tiny", "nano"], default="large")
    parser.add_argument("--frames", type=int, default=192)
    parser.add_argument("--naive", type=int, default=48, help="frames of the naive loop")
    parser.add_argument("--objects", type=int, default=4)
    parser.add_argument("--resolution", default="1280x720")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", choices=["auto", "on", "off"], default="auto")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "sam2_bench")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


class Bench:
    """The model, what it follows on which machine, and the lines said so far."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.width, self.height = (int(side) for side in args.resolution.split("x"))
        title = f"SAM 2.1-{args.size} on a {args.resolution} video, {args.objects} objects, random weights"
        self.lines = [heading(title)]
        # Tracks of random weights would be doubted all the time.
        self.config = RefineConfig(
            backend="sam2",
            checkpoint=str(random_checkpoint(args.size, args.folder)),
            compile=args.compile,
            jump_area=1e9,
            jump_move=1e9,
        )
        self.device = resolve_device(args.device)
        self.dtype = resolve_dtype("auto", self.device)
        self.model = load_model(self.config.checkpoint, self.device)
        self.model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.data.fill_(5.0)  # every object is there
        self.boxes = boxes_for(3, args.objects)
        size = [self.width, self.height, self.width, self.height]
        self.first = [masks.from_box(tuple(box * size), self.height, self.width) for box in self.boxes]
        compiled = args.compile == "on" or (args.compile == "auto" and self.device.type == "cuda")
        self.encoder = Encoder(self.model, self.dtype, self.config.frame_batch, compiled)

    def say(self, line: str) -> None:
        """Prints a line and writes the result as far as it is known."""
        print(line, flush=True)
        self.lines.append(line)
        if self.args.out:
            self.args.out.write_text("\n".join(self.lines) + "\n")

    def film(self, frames: int) -> Path:
        return write_video(self.args.folder, frames, self.width, self.height)[0]


def compare(bench: Bench) -> None:
    """The naive loop and the stage, and the stage's memory for a video three times as long."""
    args = bench.args
    _, stills = write_video(args.folder, args.naive, bench.width, bench.height, with_stills=True)
    loop = naive(bench.model, stills, bench.first, bench.boxes, bench.dtype)
    loop()
    slow = args.naive / timed(loop, bench.device)
    bench.say(f"naive, warm, {args.naive} frames: {slow:.1f} frames/s")
    follow = OutlinedVideo(bench.model, bench.encoder, bench.config)
    follow.boxes = bench.boxes
    out = args.folder / "part.parquet"
    run = fast(follow, bench.film(args.frames), bench.first, bench.config, out)
    run()
    run()
    rate = args.frames / min(timed(run, bench.device) for _ in range(2))
    bench.say(f"stage, MP4 to Parquet, {args.frames} frames: {rate:.1f} frames/s, {rate / slow:.1f} x naive")
    if args.size == "large":
        tflop = TFLOP["encoder"] + args.objects * TFLOP["memory attention"]
        share = rate * tflop / ROOFLINE_TFLOPS
        bench.say(f"    {rate * tflop:.0f} TFLOP/s at about {tflop:.1f} TFLOP a frame, {share:.0%} of the matrix rate")
    longer = fast(follow, bench.film(3 * args.frames), bench.first, bench.config, out)
    both = (peak(run, bench.device), peak(longer, bench.device))
    bench.say(
        f"    device memory: {both[0]:.2f} GiB at most for {args.frames} frames, {both[1]:.2f} for {3 * args.frames}"
    )


def take_apart(bench: Bench) -> None:
    """What tracker, encoder and decoding take alone, and the kernels of memory attention on a GPU."""
    args, device = bench.args, bench.device
    alone = tracking_alone(bench.model, bench.encoder, bench.first, 60 if device.type == "cuda" else 2)
    bench.say(f"    tracker alone, features given: {1e3 * alone:.1f} ms a frame")
    with inference(device, bench.dtype):
        batch = torch.randn(bench.config.frame_batch, 3, bench.model.image_size, bench.model.image_size, device=device)
        bench.encoder.features(batch)
        took = min(timed(lambda: bench.encoder.features(batch), device) for _ in range(3))
    bench.say(f"    encoder alone: {1e3 * took / len(batch):.1f} ms a frame")
    video = Mp4(bench.film(args.frames))
    count = min(args.naive, args.frames)
    took = timed(lambda: [video.frames(range(i, min(i + 16, count))) for i in range(0, count, 16)], device)
    bench.say(f"    decode alone (one thread): {1e3 * took / count:.1f} ms a frame")
    if device.type == "cuda":
        for name, ms in kernels(bench.model, args.objects):
            bench.say(
                f"    attention of one layer to full memories, {name}: {ms:.2f} ms (first choice: {KERNELS[0].name})"
            )


def main() -> None:
    args = arguments()
    args.folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(args)
    compare(bench)
    take_apart(bench)


if __name__ == "__main__":
    main()
