"""Media: one image or video by its content, and the references by which sources name it."""

from __future__ import annotations

from typing import ClassVar, Literal

from schemas.base import Key, Row

MediaKind = Literal["image", "video"]


class Media(Row):
    """One image or video. `media_key` is the digest of its bytes, so that one photo in three datasets is one media.

    Sizes are of the upright image (after the EXIF orientation, or the rotation of a video). `group_key` is the media
    key of the first member of its perceptual-duplicate group; splits and benchmark guards go by group.
    """

    key_field: ClassVar[str] = "media_key"
    content: ClassVar[tuple[str, ...]] = ("media_key", "width", "height", "num_frames")

    media_key: Key
    uri: str
    kind: MediaKind
    encoding: str
    num_bytes: int
    width: int
    height: int
    orientation: int = 1
    phash: int | None = None
    group_key: Key
    num_frames: int = 1
    fps: float | None = None
    duration_s: float | None = None
    note: str | None = None


class MediaRef(Row):
    """How a source names a media. `ref_key` = H(source, uri); `input_digest` = H(uri, size, mtime or etag)."""

    key_field: ClassVar[str] = "ref_key"
    content: ClassVar[tuple[str, ...]] = ("media_key", "status", "reason")

    ref_key: Key
    media_key: Key | None
    uri: str
    kind: MediaKind
    source: str
    source_media_id: str
    split: str
    licence: str | None = None


class Probe(Row):
    """What was found behind one URI. `uri_key` = H(uri); `input_digest` = H(uri, size, mtime or etag).

    A file that is missing or damaged has no media key and status `failed`. A file named by four sources is probed
    once; media are the distinct `media_key`s of the probes, references join probes by `uri_key`.
    """

    key_field: ClassVar[str] = "uri_key"
    content: ClassVar[tuple[str, ...]] = (
        "media_key", "uri", "kind", "width", "height", "orientation", "num_frames", "fps", "status", "reason",
    )  # fmt: skip

    uri_key: Key
    uri: str
    kind: MediaKind
    media_key: Key | None = None
    encoding: str | None = None
    num_bytes: int | None = None
    width: int | None = None
    height: int | None = None
    orientation: int | None = None
    phash: int | None = None
    num_frames: int | None = None
    fps: float | None = None
    duration_s: float | None = None
    note: str | None = None
    message: str | None = None
