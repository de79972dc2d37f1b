"""From a rendered picture to what travels to the teacher: scaled to few tokens, encoded."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from stages.teachers.protocol import Picture, picture_digest
from stages.views.config import ViewConfig

_SUFFIX = {"jpeg": ".jpg", "png": ".png", "webp": ".webp"}


def fit_size(height: int, width: int, config: ViewConfig) -> tuple[int, int]:
    """The size (height, width) in which a picture is sent: in bounds, whole patches, aspect kept to half a patch."""
    longer, shorter = max(height, width), min(height, width)
    scale = min(config.max_side / longer, max(1.0, config.min_side / shorter))
    step = config.multiple
    ceiling = max(step, config.max_side // step * step)
    sides = (min(ceiling, max(step, round(side * scale / step) * step)) for side in (height, width))
    tall, wide = sides
    return tall, wide


def fit(image: NDArray[np.uint8], config: ViewConfig) -> NDArray[np.uint8]:
    """The picture (H, W, 3) in its sent size: area-averaged down, Lanczos up."""
    height, width = fit_size(image.shape[0], image.shape[1], config)
    if (height, width) == image.shape[:2]:
        return np.ascontiguousarray(image)
    smaller = height * width < image.shape[0] * image.shape[1]
    resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LANCZOS4)
    return np.asarray(resized, np.uint8)


def to_picture(image: NDArray[np.uint8], config: ViewConfig, *, encoded: bool, fitted: bool = True) -> Picture:
    """A picture for a request: `encoded` bytes for a teacher behind HTTP, or pixels for an engine in this process.

    `fitted` false keeps the size: a storyboard is already composed in the size that it is to have.
    """
    pixels = fit(image, config) if fitted else np.ascontiguousarray(image)
    kind = f"image/{config.encoding}"
    return Picture(
        width=pixels.shape[1],
        height=pixels.shape[0],
        media_type=kind,
        digest=picture_digest(pixels, f"{kind};{config.quality}"),
        data=encode(pixels, config) if encoded else None,
        pixels=None if encoded else pixels,
    )


def encode(image: NDArray[np.uint8], config: ViewConfig) -> bytes:
    """The picture (H, W, 3) RGB as JPEG, PNG or WebP bytes, without metadata."""
    flags = {
        "jpeg": [cv2.IMWRITE_JPEG_QUALITY, config.quality],
        "webp": [cv2.IMWRITE_WEBP_QUALITY, config.quality],
        "png": [cv2.IMWRITE_PNG_COMPRESSION, 6],
    }[config.encoding]
    done, data = cv2.imencode(_SUFFIX[config.encoding], cv2.cvtColor(image, cv2.COLOR_RGB2BGR), flags)
    if not done:
        raise ValueError(f"OpenCV could not encode a picture of {image.shape} as {config.encoding}")
    return data.tobytes()
