"""The fast video path: every frame is encoded once, in batches, and the masks are those of the tracker."""

from __future__ import annotations

import numpy as np
import torch

from stages import masks
from stages.refine.config import RefineConfig
from stages.refine.videos import Start
from stages.sam2.encoder import Encoder
from stages.sam2.load import load_model
from stages.sam2.video import FastVideo
from stages.shapes.clip import draw_clip

FRAMES = 22


class Frames:
    """Drawn frames behind what the tracker asks of a video."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels
        self.height, self.width = pixels.shape[1:3]
        self.times_s = np.arange(len(pixels)) / 6

    def __len__(self) -> int:
        return len(self.pixels)

    def frames(self, indices: list[int]) -> np.ndarray:
        return self.pixels[list(indices)]


def test_frames_are_encoded_once_a_pass_in_batches_and_the_objects_are_followed() -> None:
    clip = draw_clip(3, frames=FRAMES, size=(96, 96), fps=12.0, objects=(2, 2), camera=0.0, leave=0.0)
    model = load_model("nano", torch.device("cpu"))
    batches: list[int] = []
    encoder = Encoder(model, torch.float32, batch=8)
    inner = encoder._run

    def counting(images: torch.Tensor) -> object:
        batches.append(len(images))
        return inner(images)

    encoder._run = counting
    starts = [Start(frame, clip.masks[frame, number], {}) for number, frame in ((0, 0), (1, 9))]
    follow = FastVideo(model, encoder, RefineConfig(backend="sam2", frame_batch=8))
    found = {(f.number, f.frame): f for group in follow.follow(Frames(clip.frames), starts) for f in group}  # type: ignore[arg-type]
    assert set(found) == {(number, frame) for number in range(2) for frame in range(FRAMES)}
    # two prompts, nine frames backwards, then all of them forwards
    assert batches == [1, 1, 8, 1, 8, 8, 6]
    ious = [
        masks.iou(one.outline.rle, masks.encode(clip.masks[frame, number])) if one.outline is not None else 0.0
        for (number, frame), one in found.items()
    ]
    assert np.mean(ious) > 0.85
