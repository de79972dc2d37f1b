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


def main() -> None:
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
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    width, height = (int(side) for side in args.resolution.split("x"))
    count = args.objects
    lines = [heading(f"SAM 2.1-{args.size} on a {args.resolution} video, {count} objects, random weights")]

    def say(line: str) -> None:
        print(line, flush=True)
        lines.append(line)
        if args.out:
            args.out.write_text("\n".join(lines) + "\n")

    checkpoint = str(random_checkpoint(args.size, args.folder))
    # Tracks of random weights would be doubted all the time.
    config = RefineConfig(backend="sam2", checkpoint=checkpoint, compile=args.compile, jump_area=1e9, jump_move=1e9)
    device = resolve_device(args.device)
    dtype = resolve_dtype("auto", device)
    model = load_model(config.checkpoint, device)
    model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.data.fill_(5.0)  # every object is there, as a rule
    boxes = boxes_for(3, count)
    first = [masks.from_box(tuple(box * [width, height, width, height]), height, width) for box in boxes]
    _, stills = write_video(args.folder, args.naive, width, height, with_stills=True)
    loop = naive(model, stills, first, boxes, dtype)
    loop()
    slow = args.naive / timed(loop, device)
    say(f"naive, warm, {args.naive} frames: {slow:.1f} frames/s")

    compiled = args.compile == "on" or (args.compile == "auto" and device.type == "cuda")
    encoder = Encoder(model, dtype, config.frame_batch, compiled)
    follow = OutlinedVideo(model, encoder, config)
    follow.boxes = boxes
    film, _ = write_video(args.folder, args.frames, width, height)
    run = fast(follow, film, first, config, args.folder / "part.parquet")
    run()
    run()
    rate = args.frames / min(timed(run, device) for _ in range(2))
    tflop = TFLOP["encoder"] + count * TFLOP["memory attention"]
    say(f"stage, MP4 to Parquet, {args.frames} frames: {rate:.1f} frames/s, {rate / slow:.1f} x naive")
    if args.size == "large":
        share = rate * tflop / ROOFLINE_TFLOPS
        say(f"    {rate * tflop:.0f} TFLOP/s at about {tflop:.1f} TFLOP a frame, {share:.0%} of the matrix rate")
    alone = tracking_alone(model, encoder, first, 60 if device.type == "cuda" else 2)
    say(f"    tracker alone, features given: {1e3 * alone:.1f} ms a frame")
    with inference(device, dtype):
        batch = torch.randn(config.frame_batch, 3, model.image_size, model.image_size, device=device)
        encoder.features(batch)
        took = min(timed(lambda: encoder.features(batch), device) for _ in range(3))
    say(f"    encoder alone: {1e3 * took / len(batch):.1f} ms a frame")
    video = Mp4(film)
    took = timed(lambda: [video.frames(range(i, i + 16)) for i in range(0, args.naive, 16)], device)
    say(f"    decode alone (one thread): {1e3 * took / args.naive:.1f} ms a frame")
    long, _ = write_video(args.folder, 3 * args.frames, width, height)
    both = (peak(run, device), peak(fast(follow, long, first, config, args.folder / "part.parquet"), device))
    say(f"    device memory: {both[0]:.2f} GiB at most for {args.frames} frames, {both[1]:.2f} for {3 * args.frames}")
    if device.type == "cuda":
        for name, ms in kernels(model, count):
            say(f"    attention of one layer to full memories, {name}: {ms:.2f} ms (first choice: {KERNELS[0].name})")


if __name__ == "__main__":
    main()
