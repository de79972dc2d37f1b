"""What the small SAM 2 learns from: drawn scenes and clips, drawn by all cores at once, augmented on the device."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from stages.shapes.clip import draw_clip
from stages.shapes.palette import KINDS
from stages.shapes.scene import draw_scene

CLIP_RATES = (3.0, 6.0, 12.0, 24.0)
MOST = 5
"""Shapes a scene has at most."""


@dataclass(frozen=True)
class Drawn:
    """`pixels` uint8 (n, t, S, S, 3) and `owner` uint8 (n, t, S, S): 0 is background, k the k-th shape.

    `kinds` (n, MOST) are the shapes' places in the table of kinds, -1 where there is no such shape.
    """

    pixels: Tensor
    owner: Tensor
    kinds: Tensor

    def __len__(self) -> int:
        return self.pixels.shape[0]

    def to(self, device: torch.device) -> Drawn:
        """The same on a device."""
        return Drawn(self.pixels.to(device), self.owner.to(device), self.kinds.to(device))


def draw_scenes(seed: int, count: int, size: int, workers: int) -> Drawn:
    """`count` still scenes as clips of one frame."""
    return _draw(partial(_scene, seed, size), count, workers)


def draw_clips(seed: int, count: int, frames: int, size: int, workers: int, rate: float | None = None) -> Drawn:
    """`count` clips of `frames` frames, at `rate` frames a second or at one drawn from `CLIP_RATES`."""
    return _draw(partial(_clip, seed, size, frames, rate), count, workers)


def _scene(seed: int, size: int, index: int) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng((seed, 1, index))
    scene = draw_scene(rng, (size, size))
    owner = np.zeros((size, size), np.uint8)
    for number, shape in enumerate(scene.instances):
        owner[shape.mask] = number + 1
    return scene.image[None], owner[None], _kinds([shape.look.kind for shape in scene.instances])


def _clip(seed: int, size: int, frames: int, rate: float | None, index: int) -> tuple[Any, Any, Any]:
    fps = rate if rate is not None else CLIP_RATES[index % len(CLIP_RATES)]
    clip = draw_clip((seed, 2, index), frames=frames, size=(size, size), fps=fps, occlusion=0.5, leave=0.8)
    numbers = np.arange(1, clip.masks.shape[1] + 1, dtype=np.uint8)
    owner = (clip.masks * numbers[None, :, None, None]).max(axis=1)
    return clip.frames, owner.astype(np.uint8), _kinds([shape.look.kind for shape in clip.objects])


def _kinds(names: list[str]) -> Any:
    table = list(KINDS)
    found = np.full(MOST, -1, np.int64)
    found[: len(names)] = [table.index(name) for name in names]
    return found


def _draw(draw: Callable[[int], tuple[Any, Any, Any]], count: int, workers: int) -> Drawn:
    if workers <= 1:
        results = [draw(index) for index in range(count)]
    else:
        context = multiprocessing.get_context("spawn")
        with context.Pool(workers, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
            results = pool.map(draw, range(count), chunksize=16)
    pixels, owner, kinds = (torch.from_numpy(np.stack([result[at] for result in results])) for at in range(3))
    return Drawn(pixels, owner, kinds)


def augmented(batch: Drawn, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pixels uint8 (n, t, 3, S, S) and owners (n, t, S, S), mirrored, turned, recoloured, reversed at random.

    The same for all of a batch, so that it costs a copy and no more.
    """
    pixels, owner = batch.pixels.movedim(-1, 2), batch.owner
    coin = torch.randint(0, 2, (4,), generator=generator).tolist()
    if coin[0]:
        pixels, owner = pixels.flip(-1), owner.flip(-1)
    if coin[1]:
        pixels, owner = pixels.flip(-2), owner.flip(-2)
    if coin[2]:
        pixels, owner = pixels.transpose(-1, -2), owner.transpose(-1, -2)
    if coin[3]:
        pixels, owner = pixels.flip(1), owner.flip(1)
    return pixels[:, :, torch.randperm(3, generator=generator).to(pixels.device)], owner


def interrupted(pixels: Tensor, owner: Tensor, generator: torch.Generator, share: float) -> tuple[Tensor, Tensor]:
    """Clips of which a `share` are cut over to another clip for some frames after the first, and mostly back again.

    There the objects are absent, however alike what is seen instead may look.
    """
    count, frames = owner.shape[:2]
    begin = torch.randint(1, frames, (count, 1), generator=generator)
    end = begin + torch.randint(1, frames, (count, 1), generator=generator)
    chosen = torch.rand((count, 1), generator=generator) < share
    frame = torch.arange(frames)[None]
    cut = (chosen & (frame >= begin) & (frame < end)).to(owner.device)
    pixels = torch.where(cut[:, :, None, None, None], pixels.roll(1, 0), pixels)
    return pixels, torch.where(cut[:, :, None, None], 0, owner)


def objects_of(owner: Tensor, frame: int = 0, least: int = 48, most: int = MOST) -> tuple[Tensor, Tensor]:
    """The shapes visible on `frame` with at least `least` pixels: which row (r,), and which number (r,), of `owner`."""
    counts = torch.stack([(owner[:, frame] == k).flatten(1).sum(1) for k in range(1, most + 1)], dim=1)
    row, number = torch.nonzero(counts >= least, as_tuple=True)
    return row, number + 1


def boxes_of(masks: Tensor) -> Tensor:
    """Tight xyxy boxes (r, 4), maximum edges exclusive, of non-empty bool masks (r, H, W)."""
    across, down = masks.any(1).int(), masks.any(2).int()
    width, height = masks.shape[2], masks.shape[1]
    return torch.stack(
        [
            across.argmax(1), down.argmax(1),
            width - across.flip(1).argmax(1), height - down.flip(1).argmax(1),
        ], dim=1,
    ).float()  # fmt: skip


def jittered(boxes: Tensor, share: float | Tensor, generator: torch.Generator) -> Tensor:
    """Boxes whose edges moved by up to `share` of the box's sides."""
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    shift = torch.rand(boxes.shape, generator=generator).to(boxes.device) * 2 - 1
    return boxes + shift * share * sides


def points_in(masks: Tensor, count: int) -> Tensor:
    """`count` random pixels (r, count, 2) as x, y inside each of the bool masks (r, H, W)."""
    flat = masks.flatten(1).float()
    noise = torch.rand_like(flat)
    index = (flat * (noise + 1e-3)).topk(count, dim=1).indices
    width = masks.shape[2]
    return torch.stack([index % width, index // width], dim=2).float()
