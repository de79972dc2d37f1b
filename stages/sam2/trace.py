"""Low-resolution logits to outlines: masks are enlarged and traced on the device, and only their runs reach the CPU."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.runs import Outline, Runs, from_edges, outlines

STABILITY_OFFSET = 1.0
"""SAM's stability: the IoU of the mask thresholded this far above and below its threshold."""
PIXELS_AT_ONCE = 1 << 27


class Traced(NamedTuple):
    """One mask: its outline with small holes filled, its stability, and the figure that was given with it."""

    outline: Outline
    stability: float
    given: float


class Tracer:
    """Traces masks beside the device's other work, on a stream of its own; for a thread that may wait."""

    def __init__(self, device: torch.device, pixels: int = PIXELS_AT_ONCE) -> None:
        self.pixels = pixels
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def ready(self) -> torch.cuda.Event | None:
        """To be called by the thread that made the logits: the moment in the device's work when they are there."""
        if self._stream is None:
            return None
        event = torch.cuda.Event()
        event.record()
        return event

    def trace(
        self, logits: Tensor, given: Tensor, sizes: Sequence[tuple[int, int]], fill: float = 0.0,
        ready: torch.cuda.Event | None = None,
    ) -> list[Traced]:  # fmt: skip
        """Outlines of the masks (n, s, s) at their sizes (height, width), holes of up to `fill` of their area filled.

        `given` is a figure of each mask (n,) that comes back with it.
        """
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index, size in enumerate(sizes):
            groups[size].append(index)
        found: list[Traced | None] = [None] * len(sizes)
        with torch.inference_mode(), self._beside(ready):
            for (height, width), members in groups.items():
                start = 0
                while start < len(members):
                    some = members[start : start + max(1, self.pixels // (height * width))]
                    whole = len(some) == len(sizes)
                    try:
                        mine = (logits, given) if whole else (logits[some], given[some])
                        runs, figures = _traced(*mine, height, width)
                    except torch.cuda.OutOfMemoryError:
                        if len(some) == 1:
                            raise
                        self.pixels = height * width * ((len(some) + 1) // 2)
                        torch.cuda.empty_cache()
                        continue
                    for index, outline, pair in zip(some, outlines(runs, fill), figures.tolist(), strict=True):
                        found[index] = Traced(outline, *pair)
                    start += len(some)
        return [one for one in found if one is not None]

    @contextmanager
    def _beside(self, ready: torch.cuda.Event | None) -> Iterator[None]:
        if self._stream is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            if ready is not None:
                self._stream.wait_event(ready)
            yield


def _traced(logits: Tensor, given: Tensor, height: int, width: int) -> tuple[Runs, Tensor]:
    """The runs of the masks at this size, and their figures (n, 2) on the CPU: stability, and the one given."""
    large = F.interpolate(logits[:, None].float(), (height, width), mode="bilinear", align_corners=False)[:, 0]
    union = (large > -STABILITY_OFFSET).sum((1, 2))
    core = (large > STABILITY_OFFSET).sum((1, 2))
    stable = torch.where(union > 0, core / union.clamp(min=1), 1.0)
    edges = edges_of(large > 0)
    figures = torch.stack([stable, given.float()], dim=1).cpu()
    count = len(logits)
    starts = np.arange(count + 1) * (width * (height + 1))
    runs = from_edges(edges.cpu().numpy(), np.full(count, height), np.full(count, width), starts)
    return runs, figures


def edges_of(masks: Tensor) -> Tensor:
    """Where the columns of bool masks (n, H, W) change between outside and inside; see `stages.runs.from_edges`."""
    count, height, width = masks.shape
    places = torch.zeros((count, width, height + 2), dtype=torch.bool, device=masks.device)
    places[:, :, 1:-1] = masks.transpose(1, 2)
    return torch.nonzero((places[:, :, 1:] != places[:, :, :-1]).flatten())[:, 0]
