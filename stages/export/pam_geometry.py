"""Boxes and points as PAM's loader wants them."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from schemas.base import Box
from schemas.geometry import Rle
from schemas.keys import digest_value
from stages.masks import decode

ENOUGH_POINTS = {"image": 4, "video": 3}
"""The loader draws 1 to this many points; with fewer (but more than one) it fails at random."""


def xywh(box: Box, width: int, height: int) -> list[float] | None:
    """A box as x, y, width, height, clipped to the image; None where it covers no whole pixel once cast to integers."""
    x0, y0 = max(0.0, box[0]), max(0.0, box[1])
    x1, y1 = min(float(width), box[2]), min(float(height), box[3])
    found = [round(value, 2) for value in (x0, y0, x1 - x0, y1 - y0)]
    return found if whole_pixels(found) else None


def whole_pixels(box: Sequence[float]) -> bool:
    """Whether an xywh box has an area after PAM's cast of its corners to integers."""
    x, y, width, height = box
    return int(x + width) > int(x) and int(y + height) > int(y)


def sample_points(mask: Rle, count: int, seed: bytes, least: int) -> list[list[int]]:
    """`count` distinct pixels [x, y] inside a mask: its innermost first, the others drawn by `seed` away from edges.

    A mask of fewer than `least` pixels gives its innermost pixel alone, an empty mask none.
    """
    pixels = decode(mask)
    if not pixels.any():
        return []
    depth = cv2.distanceTransform(np.pad(pixels, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
    centre = int(depth.argmax())
    inner = np.flatnonzero((depth >= min(2.0, depth.max() / 2)).ravel() & pixels.ravel())
    if len(inner) < count:
        inner = np.flatnonzero(pixels.ravel())
    others = inner[inner != centre]
    if 1 + len(others) < least:
        others = others[:0]
    rng = np.random.default_rng(int.from_bytes(digest_value([seed, "points"]), "big"))
    drawn = rng.choice(others, size=min(count - 1, len(others)), replace=False) if count > 1 else others[:0]
    width = pixels.shape[1]
    return [[int(at % width), int(at // width)] for at in (centre, *drawn.tolist())]
