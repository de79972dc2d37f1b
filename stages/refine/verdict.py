"""From a refiner's candidate to a row's facts, and the choice between the refined and the source mask.

The rule of `prefer: auto`. Where the source gives no mask, the refined one is taken. Where it does, the refined mask
replaces it only when all of these hold, and otherwise the source's stands:

1. the refiner is sure: predicted IoU >= 0.88 and stability >= 0.92 (a back end without estimates is never sure);
2. it is a correction of the same target: IoU with the source mask >= 0.75;
3. it lies at least as well on the image's edges: the mean gradient along its boundary is no lower than the source's.

`prefer: refined` takes every non-empty refined mask, `prefer: source` every source mask. A region left without any
mask fails with `empty_mask`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from schemas.base import Box
from schemas.geometry import Rle
from schemas.mask import MaskSource
from stages import masks
from stages.base import UnitError
from stages.masks import MaskArray
from stages.refine.config import Prefer
from stages.refine.seeds import Candidate, Pixels, Seed
from stages.runs import Outline

SURE_PREDICTED_IOU = 0.88
SURE_STABILITY = 0.92
SAME_TARGET_IOU = 0.75
NO_SOURCE = "the source gives no mask"


@dataclass(frozen=True)
class Verdict:
    """The mask that was kept, as run lengths, and what is known of it; the fields are those of `schemas.mask.Mask`."""

    rle: Rle
    box: Box
    mask_source: MaskSource
    predicted_iou: float | None
    stability: float | None
    seed_agreement: float | None
    area_share: float
    parts: int
    main_part_share: float
    holes_filled: int
    verdict: str

    @property
    def mask(self) -> MaskArray:
        """The mask that was kept, decoded (H, W)."""
        return masks.decode(self.rle)


def judge(image: Pixels, seed: Seed, candidate: Candidate, prefer: Prefer, fill_holes: float) -> Verdict:
    """Cleans the candidate, chooses between it and the seed's mask, and measures the one kept.

    `image` is RGB uint8 (H, W, 3). Raises `UnitError` (`empty_mask`) where nothing is left to keep.
    """
    refined, holes = _without_small_holes(candidate.located(), fill_holes)
    source, why = choose(image, seed, refined, prefer)
    estimates = candidate.predicted_iou, candidate.stability
    outline = measure(refined.mask, refined.box, holes)
    return _verdict(seed, outline, estimates, source, why, agreement(refined, seed))


def judge_outline(
    image: Pixels, seed: Seed, outline: Outline, predicted_iou: float, stability: float, prefer: Prefer
) -> Verdict:
    """What `judge` says of a mask whose holes are filled and whose outline is measured.

    The mask's pixels are looked at only where the seed has more than a box.
    """
    if seed.mask is None and seed.box is not None and outline.box is not None:
        agreed = masks.box_iou(outline.box, seed.box)
        return _verdict(seed, outline, (predicted_iou, stability), "refined", NO_SOURCE, agreed)
    candidate = Candidate(masks.decode(outline.rle), predicted_iou, stability, outline.box)
    source, why = choose(image, seed, candidate, prefer)
    return _verdict(seed, outline, (predicted_iou, stability), source, why, agreement(candidate, seed))


def measure(mask: MaskArray, box: Box | None, holes_filled: int = 0) -> Outline:
    """The facts of one mask (H, W) with its tight box; all work is by the size of the box."""
    if box is None:
        return Outline(masks.encode(mask), None, 0, 0, 0.0, holes_filled)
    crop = masks.cropped(mask, box)
    count, main_share = masks.parts(crop)
    code = masks.encode_crop(crop, int(box[0]), int(box[1]), *mask.shape)
    return Outline(code, box, int(np.count_nonzero(crop)), count, main_share, holes_filled)


def _verdict(
    seed: Seed, refined: Outline, estimates: tuple[float | None, float | None], source: MaskSource, why: str,
    agreed: float | None,
) -> Verdict:  # fmt: skip
    kept = refined
    if source == "source" and seed.mask is not None:
        kept = measure(seed.mask, masks.box_of(seed.mask))
    if kept.box is None:
        raise UnitError("empty_mask", "the refiner found nothing at this prompt, and the source gives no mask")
    height, width = kept.rle.size
    return Verdict(
        rle=kept.rle,
        box=kept.box,
        mask_source=source,
        predicted_iou=estimates[0],
        stability=estimates[1],
        seed_agreement=agreed,
        area_share=kept.area / (height * width),
        parts=kept.parts,
        main_part_share=kept.main_part_share,
        holes_filled=kept.holes_filled,
        verdict=why,
    )


def choose(image: Pixels, seed: Seed, candidate: Candidate, prefer: Prefer) -> tuple[MaskSource, str]:
    """Which mask stands, and why, by the rule at the head of this module."""
    if seed.mask is None:
        return "refined", NO_SOURCE
    if candidate.located().box is None:
        return "source", "the refiner found nothing"
    if prefer != "auto":
        return prefer, f"prefer is {prefer}"
    if candidate.predicted_iou is None or candidate.stability is None:
        return "source", "the refiner gives no estimate of its own quality"
    if candidate.predicted_iou < SURE_PREDICTED_IOU or candidate.stability < SURE_STABILITY:
        return "source", (
            f"the refiner is unsure (predicted IoU {candidate.predicted_iou:.2f}, stability {candidate.stability:.2f})"
        )
    same = masks.jaccard(candidate.mask, seed.mask)
    if same < SAME_TARGET_IOU:
        return "source", f"the refined mask shows something else (IoU {same:.2f} with the source's)"
    ours, theirs = edge_support(image, candidate.mask, seed.mask)
    if ours < theirs:
        return "source", f"the source mask lies better on the edges ({theirs:.1f} against {ours:.1f})"
    return "refined", f"a sure correction (IoU {same:.2f}, edges {ours:.1f} against {theirs:.1f})"


def agreement(candidate: Candidate, seed: Seed) -> float | None:
    """The IoU with the seed's mask; with a box alone that of the mask's box and the box; with points alone the share
    of points on their right side. 0.0 for an empty mask."""
    mask, box = candidate.mask, candidate.located().box
    if box is None:
        return 0.0
    if seed.mask is not None:
        return masks.jaccard(mask, seed.mask)
    if seed.box is not None:
        return masks.box_iou(box, seed.box)
    if not seed.points:
        return None
    height, width = mask.shape
    right = [
        bool(mask[min(max(int(p.y), 0), height - 1), min(max(int(p.x), 0), width - 1)]) == bool(p.label)
        for p in seed.points
    ]
    return sum(right) / len(right)


def edge_support(image: Pixels, *contours: MaskArray) -> list[float]:
    """The mean image gradient (grey levels a pixel) along the boundary of each mask."""
    boxes = [box for mask in contours if (box := masks.box_of(mask)) is not None]
    x0, y0 = (max(int(min(box[i] for box in boxes)) - 3, 0) for i in (0, 1))
    x1, y1 = (int(max(box[i] for box in boxes)) + 3 for i in (2, 3))
    grey = cv2.GaussianBlur(cv2.cvtColor(image[y0:y1, x0:x1], cv2.COLOR_RGB2GRAY), (3, 3), 0)
    gradient = cv2.magnitude(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)) / 4
    support = []
    for mask in contours:
        crop = mask[y0:y1, x0:x1].astype(np.uint8)
        line = cv2.morphologyEx(crop, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8), borderValue=0) > 0
        support.append(float(gradient[line].mean()) if line.any() else 0.0)
    return support


def _without_small_holes(candidate: Candidate, share: float) -> tuple[Candidate, int]:
    """Fills holes of up to `share` of the mask's area, looking only within the mask's box."""
    if candidate.box is None or share <= 0:
        return candidate, 0
    crop = masks.cropped(candidate.mask, candidate.box)
    inside, count = masks.fill_holes(crop, int(share * np.count_nonzero(crop)))
    if not count:
        return candidate, 0
    filled = candidate.mask.copy()
    masks.cropped(filled, candidate.box)[:] = inside
    return replace(candidate, mask=filled), count
