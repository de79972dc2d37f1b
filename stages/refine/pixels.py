"""Upright RGB pixels of image files, by the quickest decoder that reads them alike."""

from __future__ import annotations

import cv2
import numpy as np

from stages.base import UnitError
from stages.media.images import decode_image, read_bytes
from stages.refine.seeds import Pixels

_START_OF_FRAME = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_ALONE = {0x01, *range(0xD0, 0xD8)}
"""JPEG markers that no length follows."""


def load_pixels(uri: str) -> Pixels:
    """uint8 (H, W, 3), as `stages.media.images.load_image` gives them.

    Whole 8-bit grey and colour JPEGs go to OpenCV, which takes two thirds of the time and lets other threads run; the
    rest, and what is damaged, to the careful decoder. Raises `UnitError`.
    """
    data = read_bytes(uri)
    if plain_jpeg(data):
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        if image is not None:
            return np.asarray(image, np.uint8)
    try:
        return decode_image(data)
    except UnitError as error:
        raise UnitError(error.reason, f"{uri}: {error.message}") from error


def plain_jpeg(data: bytes) -> bool:
    """Whether this is a JPEG that is not cut off, of 8 bits a sample and one or three components."""
    if data[:2] != b"\xff\xd8" or b"\xff\xd9" not in data[-64:]:
        return False
    at = 2
    while at + 9 < len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in _START_OF_FRAME:
            return data[at + 4] == 8 and data[at + 9] in (1, 3)
        at += 2 if marker in _ALONE else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return False
