"""Names inside a pack. Nothing that a source wrote ever becomes a path: keys are hexadecimal, the rest is ours."""

from __future__ import annotations

import re

from schemas.base import Key

_EXTENSION = re.compile(r"(?:\d{3,5}\.)?(?:jpg|png|webp)|(?:missing\.)?json")
_REMOTE = re.compile(r"^(?P<scheme>https?|s3|gs|gcs|hf|az|abfs|ftp)://(?:[^/@]*@)?(?P<path>[^?#]*)")

EXTENSIONS = {"jpeg": "jpg", "jpg": "jpg", "mpo": "jpg", "png": "png", "webp": "webp"}
"""Encodings whose original bytes travel as they are."""


def member_name(key: Key, extension: str) -> str:
    """`<32 hexadecimal digits>.<extension>`; raises `ValueError` for anything that is not such a name."""
    if len(key) != 16 or not _EXTENSION.fullmatch(extension):
        raise ValueError(f"no member name: key {key!r}, extension {extension!r}")
    return f"{key.hex()}.{extension}"


def form_of(kind: str, encoding: str, upright: bool) -> str:
    """What a sample's pixels are in a shard: `clip`, `jpg`, `png` or `webp`.

    Other encodings become PNG, lossless. A picture whose EXIF orientation turns it is stored upright (a JPEG as JPEG,
    others as PNG), since plain readers ignore the tag and would lay its boxes over the wrong pixels.
    """
    if kind == "video":
        return "clip"
    form = EXTENSIONS.get(encoding.lower(), "png")
    return form if upright or form == "jpg" else "png"


def portable_uri(uri: str) -> str:
    """A URI that says nothing of the machine and its owner.

    Remote URLs lose their user, query and fragment; of anything else the file's own name remains.
    """
    remote = _REMOTE.match(uri)
    if remote and "::" not in uri:
        return f"{remote['scheme']}://{remote['path']}"
    inner = uri.split("::", 1)[0].split("://", 1)[-1]
    return inner.rstrip("/").rsplit("/", 1)[-1]
