"""GrabCut: masks from colour and edges alone, no weights. Box, points or a rough mask in, mask out.

C. Rother, V. Kolmogorov, A. Blake, "GrabCut: interactive foreground extraction using iterated graph cuts", SIGGRAPH
2004, as OpenCV has it. It works on a crop about the target, scaled to at most `side` pixels, and is deterministic.
"""

from __future__ import annotations

import cv2
import numpy as np

from schemas.base import Box
from stages import masks
from stages.masks import MaskArray
from stages.refine.seeds import Candidate, Pixels, Seed

MIN_BOX_SIDE = 6.0
"""Below this many pixels the colour models have too little to learn from: the prompt itself is the mask."""

_CONTEXT = 0.2
_SLACK = 0.06


class GrabCut:
    """Refines one image's seeds one after the other. `side`: working size in pixels, `steps`: iterations."""

    def __init__(self, side: int = 192, steps: int = 4) -> None:
        self.side = side
        self.steps = steps

    def refine(self, image: Pixels, seeds: list[Seed]) -> list[Candidate]:
        """A candidate for each seed, in order; `image` is RGB uint8 (H, W, 3)."""
        return [Candidate(self.segment(image, seed)) for seed in seeds]

    def segment(self, image: Pixels, seed: Seed) -> MaskArray:
        """The mask (H, W) of one seed; the seed's own mask or filled box where GrabCut finds nothing."""
        height, width = image.shape[:2]
        extent = seed.extent or _around(seed, height, width)
        given = seed.mask if seed.mask is not None else masks.from_box(extent, height, width)
        if min(extent[2] - extent[0], extent[3] - extent[1]) < MIN_BOX_SIDE:
            return given
        window = _window(extent, height, width)
        found = self._cut(image, seed, extent, window)
        return found if found.any() else given

    def _cut(self, image: Pixels, seed: Seed, extent: Box, window: tuple[int, int, int, int]) -> MaskArray:
        x0, y0, x1, y1 = window
        crop = image[y0:y1, x0:x1]
        scale = min(1.0, self.side / max(crop.shape[:2]))
        size = (max(round(crop.shape[1] * scale), 8), max(round(crop.shape[0] * scale), 8))
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        small = np.asarray(cv2.resize(crop, size, interpolation=how), np.uint8)
        labels = _labels(seed, extent, window, size)
        inside = self._run(small, labels)
        kept = _main_parts(inside, labels == cv2.GC_FGD)
        enlarged = cv2.resize(kept.astype(np.float32), (x1 - x0, y1 - y0), interpolation=cv2.INTER_LINEAR) > 0.5
        full = np.zeros(image.shape[:2], np.bool_)
        full[y0:y1, x0:x1] = enlarged
        return full

    def _run(self, small: Pixels, labels: Pixels) -> MaskArray:
        inside = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
        if inside.all() or not inside.any():
            return np.asarray(inside, dtype=np.bool_)
        cv2.setRNGSeed(0)
        background, foreground = np.zeros((1, 65)), np.zeros((1, 65))
        whole = (0, 0, small.shape[1], small.shape[0])  # not read when starting from a mask
        result, _, _ = cv2.grabCut(
            small, labels.copy(), whole, background, foreground, self.steps, cv2.GC_INIT_WITH_MASK
        )
        return np.asarray((result == cv2.GC_FGD) | (result == cv2.GC_PR_FGD), dtype=np.bool_)


def _labels(seed: Seed, extent: Box, window: tuple[int, int, int, int], size: tuple[int, int]) -> Pixels:
    """GrabCut's start: sure and probable inside and outside, at the working size."""
    width, height = size
    scale_x, scale_y = width / (window[2] - window[0]), height / (window[3] - window[1])
    box = (
        (extent[0] - window[0]) * scale_x, (extent[1] - window[1]) * scale_y,
        (extent[2] - window[0]) * scale_x, (extent[3] - window[1]) * scale_y,
    )  # fmt: skip
    labels = np.full((height, width), cv2.GC_BGD, np.uint8)
    labels[masks.from_box(_grown(box, _SLACK), height, width)] = cv2.GC_PR_BGD
    if seed.mask is not None:
        _paint_mask(labels, seed.mask[window[1] : window[3], window[0] : window[2]])
    else:
        labels[masks.from_box(box, height, width)] = cv2.GC_PR_FGD
    for point in seed.points:
        centre = (round((point.x - window[0]) * scale_x), round((point.y - window[1]) * scale_y))
        cv2.circle(labels, centre, 2, (cv2.GC_FGD if point.label else cv2.GC_BGD,), -1)
    return labels


def _paint_mask(labels: Pixels, crop: MaskArray) -> None:
    """A rough mask: its core is sure, a band about its edge is open."""
    height, width = labels.shape
    rough = cv2.resize(crop.astype(np.uint8), (width, height), interpolation=cv2.INTER_AREA) > 0
    reach = max(2, round(0.06 * float(np.sqrt(np.count_nonzero(rough)))))
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    solid = rough.astype(np.uint8)
    labels[:] = cv2.GC_BGD
    labels[cv2.dilate(solid, disk) > 0] = cv2.GC_PR_BGD
    labels[rough] = cv2.GC_PR_FGD
    labels[cv2.erode(solid, disk) > 0] = cv2.GC_FGD


def _main_parts(inside: MaskArray, sure: MaskArray) -> MaskArray:
    """Parts of at least a tenth of the largest, and those that hold what is sure."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(inside.astype(np.uint8), connectivity=8)
    if count <= 2:
        return inside
    sizes = stats[:, cv2.CC_STAT_AREA].copy()
    sizes[0] = 0
    keep = sizes >= 0.1 * sizes.max()
    keep[np.unique(labels[sure & inside])] = True
    keep[0] = False
    return np.asarray(keep[labels], dtype=np.bool_)


def _around(seed: Seed, height: int, width: int) -> Box:
    """Without a box: a third of the image's shorter side about the points inside."""
    inside = [point for point in seed.points if point.label] or list(seed.points)
    reach = min(height, width) / 6
    xs, ys = [point.x for point in inside], [point.y for point in inside]
    return (
        max(min(xs) - reach, 0.0), max(min(ys) - reach, 0.0),
        min(max(xs) + reach, float(width)), min(max(ys) + reach, float(height)),
    )  # fmt: skip


def _window(extent: Box, height: int, width: int) -> tuple[int, int, int, int]:
    """The crop about the target with context, whole pixels within the image."""
    x0, y0, x1, y1 = _grown(extent, _CONTEXT)
    return (
        max(int(np.floor(x0)) - 4, 0), max(int(np.floor(y0)) - 4, 0),
        min(int(np.ceil(x1)) + 4, width), min(int(np.ceil(y1)) + 4, height),
    )  # fmt: skip


def _grown(box: Box, share: float) -> Box:
    dx, dy = share * (box[2] - box[0]), share * (box[3] - box[1])
    return (box[0] - dx, box[1] - dy, box[2] + dx, box[3] + dy)
