"""The views of one image: pure functions from pixels and a mask to pictures.

All take `image` (H, W, 3) uint8 RGB, `mask` (H, W) bool and `box` (xyxy float pixels, exclusive maximum edges), and
return pictures (h, w, 3) uint8 RGB in the image's own resolution; `encode` scales them.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from schemas.base import Box
from stages.views.config import ViewConfig

Image = NDArray[np.uint8]
MaskArray = NDArray[np.bool_]

_LINE_COVERS = 0.04
"""The largest share of the `contour` view that its line may hide."""
_VERSIONS = {"contour": 2}
"""Views that draw otherwise than they once did."""
_HUES = (0.0, 1 / 12, 1 / 6, 1 / 3, 1 / 2, 2 / 3, 5 / 6)


def render(view: str, image: Image, mask: MaskArray, box: Box, config: ViewConfig) -> list[Image]:
    """The pictures of a view. Raises `ValueError` for an unknown view, an empty mask or shapes that do not match."""
    if view not in _RENDERERS:
        raise ValueError(f"no image view {view!r}; there are {', '.join(sorted(_RENDERERS))}")
    if mask.shape != image.shape[:2]:
        raise ValueError(f"the mask is {mask.shape}, the image {image.shape[:2]}")
    if not mask.any():
        raise ValueError("the mask is empty: there is no target to show")
    return _RENDERERS[view](image, mask, box, config)


def view_identity(view: str) -> str:
    """A view as settings name it: with its version, so that rows are made anew where what it draws has changed."""
    return f"{view}@{_VERSIONS[view]}" if view in _VERSIONS else view


def crop_window(box: Box, height: int, width: int, config: ViewConfig) -> tuple[int, int, int, int]:
    """The context crop about a box: x0, y0, x1, y1 in whole pixels inside the image, shifted rather than cut."""
    x0, x1 = _span(box[0], box[2], width, config)
    y0, y1 = _span(box[1], box[3], height, config)
    return x0, y0, x1, y1


def fade(image: Image, mask: MaskArray, config: ViewConfig) -> Image:
    """The image with everything but the target blended into `blank` by `dim`; the target's pixels are untouched."""
    blank = np.asarray(config.blank, np.float32)
    table = np.arange(256, dtype=np.float32)[:, None] * (1.0 - config.dim) + blank * config.dim
    tables = np.rint(table).astype(np.uint8)
    faded = np.stack([tables[:, c][image[..., c]] for c in range(3)], axis=-1)
    return np.where(mask[..., None], image, faded)


def crop_mask(image: Image, mask: MaskArray, box: Box, config: ViewConfig) -> list[Image]:
    """A context crop, and the same crop with everything else faded (arXiv 2504.16072: best for most teachers)."""
    crop, inside = _cropped(image, mask, box, config)
    return [crop, fade(crop, inside, config)]


def full_mask(image: Image, mask: MaskArray, box: Box, config: ViewConfig) -> list[Image]:
    """The whole image, and the whole image with everything else faded."""
    return [image, fade(image, mask, config)]


def contour(image: Image, mask: MaskArray, box: Box, config: ViewConfig) -> list[Image]:
    """A context crop with a thin line just outside the target's edge, in a colour far from the target's own.

    A target of many thin parts (a comb, a bicycle's wheel) has more edge than a picture can spare: its line is made
    thinner, then dotted, until it covers no more than 4 % of the picture.
    """
    crop, inside = _cropped(image, mask, box, config)
    return [draw_contour(crop, inside, contrast_colour(crop, inside), config.line_share, _LINE_COVERS)]


def set_of_marks(image: Image, mask: MaskArray, box: Box, config: ViewConfig) -> list[Image]:
    """The whole image with the target tinted, outlined and numbered (Set-of-Mark, arXiv 2310.11441)."""
    colour = contrast_colour(image, mask)
    tint = image.astype(np.float32) * 0.65 + np.asarray(colour, np.float32) * 0.35
    marked = np.where(mask[..., None], np.rint(tint).astype(np.uint8), image)
    marked = draw_contour(marked, mask, colour, config.line_share)
    return [_numbered(marked, mask, str(config.mark))]


def draw_contour(
    image: Image, mask: MaskArray, colour: tuple[int, int, int], line_share: float, most: float = 1.0
) -> Image:
    """A copy with a line of `line_share` of the longer side (at least 1 pixel) drawn outside the mask.

    Nothing inside the mask changes, so the line hides background and never the target. The line is as thin as it must
    be to cover at most the share `most` of the picture; where one of 1 pixel covers more, it is dotted.
    """
    widest = max(1, round(line_share * max(image.shape[:2])))
    drawn = image.copy()
    for width in range(widest, 0, -1):
        line = _grown(mask, width) & ~mask
        if line.mean() <= most:
            drawn[line] = colour
            return drawn
    rows, columns = _dots(mask, int(most * mask.size))
    drawn[rows, columns] = colour
    return drawn


def _grown(mask: MaskArray, width: int) -> MaskArray:
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * width + 1, 2 * width + 1))
    return cv2.dilate(mask.astype(np.uint8), kernel).astype(bool)


def _dots(mask: MaskArray, count: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """At most `count` pixels (rows, columns) beside a mask, evenly along its edges, those of its holes included."""
    edges, _ = cv2.findContours(_grown(mask, 1).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    points = np.concatenate([edge.reshape(-1, 2) for edge in edges])
    points = points[~mask[points[:, 1], points[:, 0]]]
    picked = points[np.linspace(0, len(points) - 1, min(count, len(points))).round().astype(int)]
    return picked[:, 1].astype(np.intp), picked[:, 0].astype(np.intp)


def contrast_colour(image: Image, mask: MaskArray) -> tuple[int, int, int]:
    """Of seven saturated hues the one that is farthest, in Lab, from the target's mean colour."""
    mean = image[mask].mean(axis=0)
    candidates = [tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue, 1.0, 1.0)) for hue in _HUES]
    rows = np.asarray([mean, *candidates], np.float32).reshape(-1, 1, 3) / 255.0
    lab = cv2.cvtColor(rows.astype(np.float32), cv2.COLOR_RGB2LAB).reshape(-1, 3)
    best = int(np.argmax(np.linalg.norm(lab[1:] - lab[0], axis=1)))
    red, green, blue = candidates[best]
    return red, green, blue


def _cropped(image: Image, mask: MaskArray, box: Box, config: ViewConfig) -> tuple[Image, MaskArray]:
    x0, y0, x1, y1 = crop_window(box, image.shape[0], image.shape[1], config)
    return image[y0:y1, x0:x1], mask[y0:y1, x0:x1]


def _span(low: float, high: float, limit: int, config: ViewConfig) -> tuple[int, int]:
    side = min(limit, max(config.min_crop, math.ceil((high - low) * config.context)))
    start = round((low + high) / 2 - side / 2)
    start = min(max(start, 0), limit - side)
    return start, start + side


def _numbered(image: Image, mask: MaskArray, text: str) -> Image:
    """A copy with a number on a dark tag at the mask's innermost point."""
    distance = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5)
    y, x = np.unravel_index(int(distance.argmax()), distance.shape)
    scale = max(0.4, max(image.shape[:2]) / 1200)
    thickness = max(1, round(scale * 2))
    (width, height), baseline = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, thickness)
    left = int(min(max(x - width / 2, 2), max(2, image.shape[1] - width - 2)))
    base = int(min(max(y + height / 2, height + 2), max(height + 2, image.shape[0] - baseline)))
    marked = np.ascontiguousarray(image)
    cv2.rectangle(marked, (left - 2, base - height - 2), (left + width + 2, base + baseline), (0, 0, 0), -1)
    cv2.putText(marked, text, (left, base), cv2.FONT_HERSHEY_SIMPLEX, scale, (255, 255, 255), thickness, cv2.LINE_AA)
    return marked


_RENDERERS: dict[str, Callable[[Image, MaskArray, Box, ViewConfig], list[Image]]] = {
    "crop_mask": crop_mask,
    "full_mask": full_mask,
    "contour": contour,
    "set_of_marks": set_of_marks,
}

IMAGE_VIEWS: tuple[str, ...] = tuple(_RENDERERS)
