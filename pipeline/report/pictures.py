"""Thumbnails with outlines: the only pixels of the report."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from pipeline.report.data import Picture
from schemas.geometry import Rle
from stages.masks import decode

Pixels = np.ndarray[Any, Any]
_QUALITY = 72


def thumbnail(
    pixels: Pixels, side: int, mask: Rle | None = None, box: Sequence[float] | None = None, note: str = ""
) -> Picture:
    """RGB pixels (H, W, 3) as a JPEG of at most `side` pixels, with the outlines of a mask and a box (xyxy) beside it.

    The outlines are SVG paths in the thumbnail's pixels, so that the page can show and hide them.
    """
    height, width = pixels.shape[:2]
    scale = min(1.0, side / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA) if scale < 1 else pixels
    flags = [cv2.IMWRITE_JPEG_QUALITY, _QUALITY]
    done, data = cv2.imencode(".jpg", cv2.cvtColor(np.ascontiguousarray(small), cv2.COLOR_RGB2BGR), flags)
    if not done:
        raise ValueError(f"pixels of shape {pixels.shape} cannot be encoded as JPEG")
    uri = "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode("ascii")
    outline = _outline(mask, scale) if mask is not None else ""
    return Picture(uri=uri, width=size[0], height=size[1], mask=outline, box=_box(box, scale), note=note)


def _outline(mask: Rle, scale: float) -> str:
    pixels = decode(mask).astype(np.uint8)
    contours, _ = cv2.findContours(pixels, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    paths = []
    for contour in contours:
        smooth = cv2.approxPolyDP(contour, 0.6 / scale, True)[:, 0, :]
        points = (smooth + 0.5) * scale
        paths.append("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points.tolist()) + "Z")
    return "".join(paths)


def _box(box: Sequence[float] | None, scale: float) -> str:
    if box is None:
        return ""
    x0, y0, x1, y1 = (edge * scale for edge in box)
    return f"M{x0:.1f} {y0:.1f}H{x1:.1f}V{y1:.1f}H{x0:.1f}Z"
