"""Images: bytes from anywhere, upright RGB pixels, and the facts that ingest keeps of each file.

A media is named by one URI: a plain path, any fsspec URL (`s3://bucket/a.jpg`), or a member of an archive
(`zip://a.jpg::/data/x.zip`, `tar://a.jpg::s3://bucket/x.tar`).
"""

from __future__ import annotations

import functools
import io
import json
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import fsspec
import numpy as np
from fsspec.core import url_to_fs
from PIL import Image, UnidentifiedImageError

from stages.base import TransientError, UnitError

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

_ORIENTATION_TAG = 0x0112
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow's plugins raise on damaged files; anything else is a defect and may surface.
_DAMAGED = (
    UnidentifiedImageError, Image.DecompressionBombError, OSError, EOFError, ValueError, TypeError, SyntaxError,
    KeyError, IndexError, OverflowError, ZeroDivisionError, AttributeError, struct.error,
)  # fmt: skip
_HASH_SIDE = 32
_ARCHIVES = ("zip", "tar")


@dataclass(frozen=True)
class ImageInfo:
    """Facts of one image file; sizes are of the upright image, `phash` is a 64-bit DCT hash as a signed integer."""

    width: int
    height: int
    encoding: str
    orientation: int
    phash: int


def read_bytes(uri: str, storage_options: Mapping[str, Any] | None = None) -> bytes:
    """The content behind a URI.

    Raises `UnitError` (`missing_media` where there is no such file, `unreadable_media` where it cannot be read) and
    `TransientError` for a connection that failed.

    `storage_options` go to the file system that holds the file or the archive (credentials come from the environment).
    """
    try:
        protocol, _, rest = uri.partition("://")
        if protocol in _ARCHIVES and "::" in rest:
            member, _, archive = rest.partition("::")
            content: bytes = _archive(protocol, archive, _frozen(storage_options)).cat_file(member)
            return content
        fs, path = url_to_fs(uri, **dict(storage_options or {}))
        content = fs.cat_file(path)
        return content
    except (FileNotFoundError, KeyError, NotADirectoryError) as error:
        raise UnitError("missing_media", f"{uri}: no such file") from error
    except (ConnectionError, TimeoutError) as error:
        raise TransientError(f"{uri}: {error}") from error
    except (IsADirectoryError, PermissionError, ValueError, EOFError, OSError) as error:
        raise UnitError("unreadable_media", f"{uri}: {error}") from error


@functools.lru_cache(maxsize=8)
def _archive(protocol: str, archive: str, options: str) -> Any:
    """An open archive; kept, because listing its members costs more than reading one."""
    return fsspec.filesystem(protocol, fo=archive, target_options=json.loads(options) or None)


def _frozen(options: Mapping[str, Any] | None) -> str:
    return json.dumps(dict(options or {}), sort_keys=True)


def decode_image(data: bytes) -> Pixels:
    """Upright RGB pixels, uint8 (H, W, 3).

    The EXIF orientation is applied; 16-bit and 32-bit greyscale is scaled to 8 bits; transparency is laid over white;
    of an animation the first frame counts. Raises `UnitError` (`unreadable_media`), also for truncated files.
    """
    try:
        with _open(data) as image:
            return np.asarray(_upright(_rgb(image), _orientation(image)))
    except _DAMAGED as error:
        raise UnitError("unreadable_media", f"not a readable image: {error}") from error


def load_image(uri: str, storage_options: Mapping[str, Any] | None = None) -> Pixels:
    """`decode_image` of `read_bytes`, the URI named in errors."""
    data = read_bytes(uri, storage_options)
    try:
        return decode_image(data)
    except UnitError as error:
        raise UnitError(error.reason, f"{uri}: {error.message}") from error


def probe_image(data: bytes) -> ImageInfo:
    """Decodes an image once, at reduced size where the format can, and reports what it is.

    Raises `UnitError` (`unreadable_media`), also for truncated files.
    """
    try:
        with _open(data) as image:
            orientation = _orientation(image)
            width, height = image.size
            encoding = (image.format or "unknown").lower()
            image.draft("RGB", (2 * _HASH_SIDE, 2 * _HASH_SIDE))
            pixels = np.asarray(_upright(_rgb(image), orientation))
    except _DAMAGED as error:
        raise UnitError("unreadable_media", f"not a readable image: {error}") from error
    if orientation >= 5:
        width, height = height, width
    return ImageInfo(width, height, encoding, orientation, perceptual_hash(pixels))


def perceptual_hash(pixels: Pixels) -> int:
    """The 64-bit DCT hash of RGB pixels (H, W, 3) as a signed integer; near-duplicates differ in few bits.

    The 8x8 lowest frequencies of the 32x32 grey image, each against their median.
    """
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (_HASH_SIDE, _HASH_SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = cv2.dct(small)[:8, :8].ravel()
    bits = low > np.median(low[1:])
    bits[0] = False  # the mean brightness says nothing about the picture
    return int(np.packbits(bits).view(">i8")[0])


def _open(data: bytes) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", message="(Corrupt|Possibly corrupt) EXIF data.*")
        image = Image.open(io.BytesIO(data))
    image.seek(0)
    return image


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except _DAMAGED:
        return 1  # broken EXIF beside sound pixels: the picture is as it lies
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_TRANSPOSE[orientation]) if orientation in _TRANSPOSE else image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        image.load()
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        return _from_deep(np.asarray(image, np.float64))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        paper = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(paper, layer).convert("RGB")
    return image.convert("RGB")


def _from_deep(values: np.ndarray[Any, Any]) -> Image.Image:
    """Greyscale deeper than 8 bits: 16-bit range where it fits, else stretched to its own range."""
    values = np.nan_to_num(values)
    low, high = float(values.min(initial=0.0)), float(values.max(initial=0.0))
    low, high = (0.0, 65535.0) if low >= 0.0 and 255.0 < high <= 65535.0 else (min(low, 0.0), max(high, 255.0))
    grey = ((values - low) * (255.0 / (high - low))).round().astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")
