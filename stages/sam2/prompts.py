"""Seeds as SAM 2's prompts: points with labels (a box is two points, labels 2 and 3) and low-resolution logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from stages.refine.seeds import Seed

INSIDE, OUTSIDE = 10.0, -10.0
"""Logits of a binary mask as a prompt."""


@dataclass(frozen=True)
class Prompt:
    """`points` float32 (N, 2) in pixels of the image, `labels` int32 (N,), `mask` float32 logits (S/4, S/4) or None."""

    points: np.ndarray[Any, Any]
    labels: np.ndarray[Any, Any]
    mask: np.ndarray[Any, Any] | None
    multimask: bool


def prompt_of(seed: Seed, mask_side: int, multimask: bool) -> Prompt:
    """The prompt of a seed: its box, its points, its source mask squeezed to (mask_side, mask_side), all that it has.

    Three masks are asked for only where the whole prompt is one point.
    """
    points = [[seed.box[0], seed.box[1]], [seed.box[2], seed.box[3]]] if seed.box is not None else []
    labels = [2, 3] if seed.box is not None else []
    points += [[point.x, point.y] for point in seed.points]
    labels += [point.label for point in seed.points]
    logits = None
    if seed.mask is not None:
        share = cv2.resize(seed.mask.astype(np.float32), (mask_side, mask_side), interpolation=cv2.INTER_AREA)
        logits = (INSIDE - OUTSIDE) * (share >= 0.5).astype(np.float32) + OUTSIDE
    return Prompt(
        points=np.asarray(points, np.float32).reshape(-1, 2),
        labels=np.asarray(labels, np.int32),
        mask=logits,
        multimask=multimask and len(labels) == 1 and seed.mask is None,
    )
