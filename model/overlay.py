"""Pictures and clips with the mask drawn on them and the caption beneath."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

_COLOUR = np.array([0, 190, 255], np.float32)
MOST_LINES = 6
"""Of a caption below a picture; the whole text is in what the command prints."""


def overlay(
    image: np.ndarray, mask: np.ndarray | None, text: str | None = None, lines: int | None = None
) -> np.ndarray:
    """The picture (H, W, 3) uint8 with the mask tinted and outlined, and the text in a band below (a taller picture).

    The band has as many `lines` as asked for (for clips, whose frames must be alike; see `lines_of`), else as many as
    the text needs; a text that needs more ends in an ellipsis. Raises ValueError when the mask's size is not the
    picture's.
    """
    out = image.copy()
    if mask is not None and mask.any():
        if mask.shape != image.shape[:2]:
            raise ValueError(f"the mask is {mask.shape}, the picture {image.shape[:2]}")
        out[mask] = (0.6 * out[mask] + 0.4 * _COLOUR).astype(np.uint8)
        outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        out = np.ascontiguousarray(out)
        cv2.drawContours(out, outlines, -1, _COLOUR.tolist(), max(1, max(image.shape) // 400))
    count = lines_of([text], image.shape[1]) if lines is None else lines
    return np.concatenate([out, _band(text or "", image.shape[1], count)]) if count else out


def lines_of(texts: Sequence[str | None], width: int) -> int:
    """How many lines the longest of these texts takes below a picture of this width; at most `MOST_LINES`."""
    return min(MOST_LINES, max((len(_wrapped(text, width)) for text in texts if text), default=0))


def _font(width: int) -> Any:
    return ImageFont.load_default(size=max(12, width // 45))


def _wrapped(text: str, width: int) -> list[str]:
    letters = max(10, int(width / (_font(width).getlength("n") + 0.5)))
    return [line for part in text.splitlines() or [""] for line in textwrap.wrap(part, letters) or [""]]


def _band(text: str, width: int, count: int) -> np.ndarray:
    lines = _wrapped(text, width)
    if len(lines) > count:
        lines = [*lines[: count - 1], lines[count - 1][:-1] + "…"]
    font = _font(width)
    step = int(font.size * 1.4)
    height = step * count + step // 2
    band = Image.new("RGB", (width, height + height % 2), "white")
    draw = ImageDraw.Draw(band)
    for at, line in enumerate(lines):
        draw.text((6, step // 4 + at * step), line, fill="black", font=font)
    return np.asarray(band)


def write_png(path: Path, picture: np.ndarray) -> None:
    """Saves an RGB picture, losslessly."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, format="PNG")


def write_mp4(path: Path, pictures: Iterable[np.ndarray], fps: float) -> int:
    """Saves RGB pictures as an H.264 clip; odd sides lose a line. Returns the number of frames.

    Raises ValueError when there are none, or when they differ in size.
    """
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    count, stream = 0, None
    with av.open(str(path), "w") as container:
        for picture in pictures:
            height, width = (side - side % 2 for side in picture.shape[:2])
            if stream is None:
                stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            if (stream.height, stream.width) != (height, width):
                raise ValueError(f"frame {count} is {width}x{height}, the clip {stream.width}x{stream.height}")
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[:height, :width]), format="rgb24")
            container.mux(stream.encode(frame))
            count += 1
        if stream is None:
            raise ValueError("a clip needs at least one frame")
        container.mux(stream.encode(None))
    return count
