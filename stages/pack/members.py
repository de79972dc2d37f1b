"""The pixels of a sample: original bytes wherever they can be kept, JPEG frames for clips."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from schemas.keys import digest_bytes
from stages.base import UnitError
from stages.media.images import decode_image, read_bytes
from stages.pack.names import EXTENSIONS

Member = tuple[str, bytes]


def image_member(row: dict[str, Any], jpeg_quality: int, options: dict[str, Any] | None = None) -> Member:
    """(extension, bytes) of an image. Raises `UnitError` where it is gone, unreadable or no longer the same."""
    data = _content(row["uri"], options)
    if digest_bytes(data) != row["media_key"]:
        raise UnitError("media_changed", f"{row['uri']} has other bytes than when it was ingested; ingest it again")
    if EXTENSIONS.get(row["encoding"].lower()) == row["form"] and row["orientation"] in (None, 0, 1):
        return row["form"], data
    pixels = decode_image(data)
    if row["form"] == "jpg":
        return "jpg", encode_jpeg(pixels, jpeg_quality)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "png")
    return "png", out.getvalue()


def _content(uri: str, options: dict[str, Any] | None) -> bytes:
    """The bytes behind a URI; plain local paths without the detour, which costs more than reading a small file."""
    if "://" not in uri:
        try:
            with Path(uri).open("rb", buffering=0) as file:
                return file.readall()
        except OSError:
            pass  # `read_bytes` says what is wrong
    return read_bytes(uri, options)


def encode_jpeg(pixels: np.ndarray[Any, Any], quality: int) -> bytes:
    """JPEG of RGB pixels (H, W, 3); equal input gives equal bytes."""
    done, data = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise UnitError("unreadable_media", f"a frame of shape {pixels.shape} cannot be encoded")
    return data.tobytes()
