"""Low-resolution logits to masks at the image's size, on the device, and their way to the CPU."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from schemas.base import Box
from stages.masks import MaskArray

STABILITY_OFFSET = 1.0
"""SAM's stability: the IoU of the mask thresholded this far above and below its threshold."""


@dataclass(frozen=True)
class Sent:
    """Masks on their way to the CPU: uint8 (n, H, W) and figures (n, 6): tight xyxy box, stability, and one given."""

    masks: Tensor
    figures: Tensor
    arrived: torch.cuda.Event | None

    def received(self) -> list[tuple[MaskArray, Box | None, float, float]]:
        """Waits for the copy; mask, its box (None where it is empty), its stability, and the figure given with it."""
        if self.arrived is not None:
            self.arrived.synchronize()
        inside = self.masks.numpy().view(np.bool_)
        return [
            (mask, (x0, y0, x1, y1) if x1 > x0 else None, stable, given)
            for mask, (x0, y0, x1, y1, stable, given) in zip(inside, self.figures.tolist(), strict=True)
        ]


def send_enlarged(logits: Tensor, given: Tensor, height: int, width: int) -> Sent:
    """Logits (n, s, s) to masks (n, height, width), and the start of their copy; `given` (n,) goes along."""
    large = F.interpolate(logits[:, None].float(), (height, width), mode="bilinear", align_corners=False)[:, 0]
    union = (large > -STABILITY_OFFSET).sum((1, 2))
    core = (large > STABILITY_OFFSET).sum((1, 2))
    stable = torch.where(union > 0, core / union.clamp(min=1), 1.0)
    masks = large > 0
    figures = torch.cat([_boxes(masks), stable[:, None], given.float()[:, None]], dim=1)
    if not masks.is_cuda:
        return Sent(masks.to(torch.uint8), figures, None)
    on_cpu = _to_pinned(masks.to(torch.uint8))
    figures_on_cpu = _to_pinned(figures)
    arrived = torch.cuda.Event()
    arrived.record()
    return Sent(on_cpu, figures_on_cpu, arrived)


def _boxes(masks: Tensor) -> Tensor:
    """Tight xyxy boxes (n, 4), maximum edges exclusive, of bool masks (n, H, W); zeros for an empty one."""
    across, down = masks.any(1).int(), masks.any(2).int()
    width, height = masks.shape[2], masks.shape[1]
    edges = torch.stack(
        [across.argmax(1), down.argmax(1), width - across.flip(1).argmax(1), height - down.flip(1).argmax(1)], dim=1
    )
    return (edges * across.any(1)[:, None]).float()


def _to_pinned(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
