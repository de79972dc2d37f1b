"""When a track is to be doubted: it disagrees with the source, jumps in size or place, or loses its object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stages.refine.config import RefineConfig
from stages.sam2.tracker import Tracked

LEAST_AREA = 4.0
"""Logits of a smaller mask, at a quarter of the model's size, say little about its size or place."""


@dataclass(frozen=True)
class Facts:
    """One object on one frame, at the size of the logits: object score, area, centre, IoU with the source's mask where
    it has one."""

    score: float
    area: float
    x: float
    y: float
    agreement: float | None = None

    @property
    def seen(self) -> bool:
        """Whether the object is there."""
        return self.score > 0 and self.area > 0


def measured(results: Sequence[Tracked], sources: Sequence[Tensor | None]) -> Tensor:
    """Score, area, centre and IoU (n, 5; -1: no source) of tracked masks; `sources` bool masks of the logits' size."""
    logits = torch.stack([result.logits for result in results])
    score = torch.stack([result.score for result in results]).float()
    inside = (logits > 0) & (score > 0)[:, None, None]
    area = inside.sum((1, 2)).float()
    place = torch.arange(inside.shape[-1], device=inside.device, dtype=torch.float32)
    x = (inside.sum(1) * place).sum(1) / area.clamp(min=1)
    y = (inside.sum(2) * place).sum(1) / area.clamp(min=1)
    agreed = torch.full_like(score, -1.0)
    known = [index for index, source in enumerate(sources) if source is not None]
    if known:
        theirs = torch.stack([source for source in sources if source is not None])
        mine = inside[known]
        union = (mine | theirs).sum((1, 2))
        agreed[known] = torch.where(union > 0, (mine & theirs).sum((1, 2)) / union.clamp(min=1), 1.0)
    return torch.stack([score, area, x, y, agreed], dim=1)


def facts_of(row: Sequence[float]) -> Facts:
    """A row of `measured`."""
    score, area, x, y, agreed = row
    return Facts(score, area, x, y, agreed if agreed >= 0 else None)


def doubt(before: Facts | None, now: Facts, config: RefineConfig) -> str | None:
    """Why a track is to be doubted on a frame, given the frame before it; None where it is not."""
    if now.agreement is not None:
        return "disagrees with the source" if now.agreement < config.redetect else None
    if before is None or not before.seen or before.area < LEAST_AREA:
        return None
    if not now.seen:
        return "low object score"
    ratio = max(now.area, LEAST_AREA) / before.area
    if not 1 / config.jump_area <= ratio <= config.jump_area:
        return "sudden change of area"
    moved = float(np.hypot(now.x - before.x, now.y - before.y))
    return "sudden move" if moved > config.jump_move * float(np.sqrt(max(before.area, now.area))) else None
