"""What can be measured in the pixels under a mask: colours, shape, texture, size, place. Pure functions.

Colours are clustered in CIE Lab and named by the nearest of a few anchors of the eleven basic colour terms (B. Berlin,
P. Kay, "Basic Color Terms", 1969) and cyan.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from schemas.base import Box

_ANCHORS: tuple[tuple[str, tuple[int, int, int]], ...] = (
    ("red", (208, 32, 36)), ("red", (150, 20, 28)), ("red", (235, 60, 60)),
    ("orange", (244, 138, 24)), ("orange", (226, 106, 28)),
    ("yellow", (244, 224, 52)), ("yellow", (212, 192, 24)), ("yellow", (236, 216, 120)),
    ("green", (44, 150, 58)), ("green", (26, 100, 40)), ("green", (120, 180, 80)), ("green", (96, 110, 60)),
    ("cyan", (70, 208, 214)), ("cyan", (44, 160, 168)),
    ("blue", (36, 76, 208)), ("blue", (24, 50, 140)), ("blue", (110, 160, 225)), ("blue", (60, 100, 150)),
    ("purple", (128, 48, 168)), ("purple", (90, 40, 120)), ("purple", (165, 120, 195)),
    ("pink", (246, 148, 190)), ("pink", (235, 110, 150)), ("pink", (250, 200, 210)),
    ("brown", (118, 70, 34)), ("brown", (90, 52, 26)), ("brown", (150, 105, 70)), ("brown", (72, 48, 34)),
    ("beige", (205, 185, 150)), ("beige", (225, 210, 180)),
    ("white", (244, 244, 242)), ("white", (222, 222, 220)),
    ("grey", (128, 128, 128)), ("grey", (165, 165, 165)), ("grey", (85, 85, 88)),
    ("black", (24, 24, 26)), ("black", (48, 48, 50)),
)  # fmt: skip

_SAMPLE = 1024
_CLUSTERS = 4
_ROUNDS = 12
_LEAST_SHARE = 0.15


@dataclass(frozen=True)
class Facts:
    """Measurements of one target on one frame; `colours` are names with their shares, the largest first."""

    colours: tuple[tuple[str, float], ...]
    shape: str
    texture: str
    size: str
    row: str
    column: str
    area_share: float
    touches_edge: bool


def measure(pixels: NDArray[np.uint8], mask: NDArray[np.bool_], crop: Box, width: int, height: int) -> Facts:
    """All facts of a target: `pixels` (h, w, 3) and `mask` (h, w) are the crop at `crop` of a `width` x `height` frame.

    Raises `ValueError` for an empty mask.
    """
    if not mask.any():
        raise ValueError("the mask is empty: there is nothing to measure")
    ys, xs = np.nonzero(mask)
    x, y = crop[0] + float(xs.mean()) + 0.5, crop[1] + float(ys.mean()) + 0.5
    share = float(mask.sum()) / (width * height)
    edge = (
        crop[0] + xs.min() <= 0
        or crop[1] + ys.min() <= 0
        or crop[0] + xs.max() >= width - 1
        or crop[1] + ys.max() >= height - 1
    )
    return Facts(
        colours=named_colours(pixels, mask),
        shape=shape_word(mask),
        texture=texture_word(pixels, mask),
        size="small" if share < 0.02 else "large" if share >= 0.08 else "medium",
        row=("top", "middle", "bottom")[min(int(3 * y / height), 2)],
        column=("left", "centre", "right")[min(int(3 * x / width), 2)],
        area_share=share,
        touches_edge=bool(edge),
    )


def named_colours(pixels: NDArray[np.uint8], mask: NDArray[np.bool_]) -> tuple[tuple[str, float], ...]:
    """The names of the target's dominant colours with their shares: at most three, each at least 15 %."""
    inside = _core(mask)
    rows = pixels[inside]
    step = max(1, len(rows) // _SAMPLE)
    lab = _lab(rows[::step])
    centres, owner = _clusters(lab)
    shares: dict[str, float] = {}
    for index, centre in enumerate(centres):
        name = _nearest(centre)
        shares[name] = shares.get(name, 0.0) + float((owner == index).mean())
    ordered = sorted(shares.items(), key=lambda item: (-item[1], item[0]))
    kept = [item for item in ordered if item[1] >= _LEAST_SHARE][:3]
    return tuple(kept or ordered[:1])


def shape_word(mask: NDArray[np.bool_]) -> str:
    """`round`, `oval`, `square`, `rectangular`, `triangular`, `elongated`, `compact`, `branched` or `irregular`."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    contour = max(contours, key=cv2.contourArea)
    area, around = float(cv2.contourArea(contour)), float(cv2.arcLength(contour, True))
    if area < 9 or around == 0:
        return "compact"
    hull = float(cv2.contourArea(cv2.convexHull(contour)))
    (_, (a, b), _) = cv2.minAreaRect(contour)
    longer, shorter = max(a, b), max(min(a, b), 1.0)
    solidity, roundness, fill = area / hull, 4 * np.pi * area / around**2, area / (longer * shorter)
    corners = len(cv2.approxPolyDP(contour, 0.04 * around, True))
    if solidity < 0.7:
        return "branched"
    if longer / shorter > 3:
        return "elongated"
    if corners == 3 and 0.4 < fill < 0.65:
        return "triangular"
    if fill > 0.88 and corners == 4:
        return "square" if longer / shorter < 1.15 else "rectangular"
    if roundness > 0.78 and longer / shorter < 1.2:
        return "round"
    if solidity > 0.92:
        return "oval" if longer / shorter > 1.3 and roundness > 0.6 else "compact"
    return "irregular"


def texture_word(pixels: NDArray[np.uint8], mask: NDArray[np.bool_]) -> str:
    """`plain`, `striped`, `patterned` or `textured`: by the contrast inside the target and its main direction."""
    inside = _core(mask)
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)
    spread = float(np.std(cv2.GaussianBlur(grey, (3, 3), 0)[inside]))
    if spread < 9.0:
        return "plain"
    gx, gy = cv2.Sobel(grey, cv2.CV_32F, 1, 0)[inside], cv2.Sobel(grey, cv2.CV_32F, 0, 1)[inside]
    xx, yy, xy = float((gx * gx).mean()), float((gy * gy).mean()), float((gx * gy).mean())
    coherence = float(np.hypot(xx - yy, 2 * xy)) / max(xx + yy, 1e-6)
    strength = float(np.sqrt(xx + yy))
    if coherence > 0.55 and strength > 40:
        return "striped"
    return "patterned" if strength > 60 else "textured"


def _core(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask without its edge pixels, where background bleeds in; the mask itself where nothing would be left."""
    thin = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=0).astype(bool)
    return thin if thin.sum() >= 16 else mask


def _clusters(lab: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """k-means with farthest-first starts, without a random number; returns centres and each row's cluster."""
    centres = [lab[int(np.linalg.norm(lab - np.median(lab, axis=0), axis=1).argmin())]]
    while len(centres) < min(_CLUSTERS, len(lab)):
        gap = np.min([np.linalg.norm(lab - centre, axis=1) for centre in centres], axis=0)
        if gap.max() < 8.0:
            break
        # The 95th percentile, not the farthest: a single odd pixel is no colour of the target.
        centres.append(lab[int(np.abs(gap - np.quantile(gap, 0.95)).argmin())])
    current = np.stack(centres)
    owner = np.zeros(len(lab), np.int64)
    for _ in range(_ROUNDS):
        owner = np.linalg.norm(lab[:, None] - current[None], axis=2).argmin(axis=1)
        means = [lab[owner == i].mean(axis=0) if (owner == i).any() else current[i] for i in range(len(current))]
        moved = np.asarray(means, np.float32)
        if np.allclose(moved, current, atol=0.1):
            break
        current = moved
    return current, owner


def _nearest(centre: NDArray[np.float32]) -> str:
    gaps = np.linalg.norm(_ANCHOR_LAB - centre, axis=1)
    return _ANCHORS[int(gaps.argmin())][0]


def _lab(rows: NDArray[Any]) -> NDArray[np.float32]:
    flat = np.ascontiguousarray(rows, np.uint8).reshape(-1, 1, 3).astype(np.float32) / 255.0
    return np.asarray(cv2.cvtColor(flat, cv2.COLOR_RGB2LAB), np.float32).reshape(-1, 3)


_ANCHOR_LAB = _lab(np.asarray([rgb for _, rgb in _ANCHORS]))
