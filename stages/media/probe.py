"""Probing: what lies behind each URI, and how media and their references follow from it.

The way of a file: a source lists its media (`stages.ingest.list_media`: URI, size, mtime or etag, nothing opened);
`probe_units` names what has not been probed yet or has changed; `ProbeStage` opens those files; `media_rows` makes one
row of each distinct content, in perceptual-duplicate groups; `ref_rows` joins the listing back.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import fsspec
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from fsspec.core import url_to_fs

from schemas.arrow import arrow_schema, conform, to_table
from schemas.base import Key, Record
from schemas.keys import KEY_BYTES, digest_bytes, digest_columns, digest_stream
from schemas.media import Media, MediaKind, MediaRef, Probe
from stages.base import Stage, TransientError, UnitError, with_digest
from stages.media.groups import DISTANCE, assign_groups
from stages.media.images import perceptual_hash, probe_image, read_bytes

_FACTS = ("encoding", "num_bytes", "width", "height", "orientation", "phash", "num_frames", "fps", "duration_s", "note")


class ListedMedia(Record):
    """A media as a source names it, before anything is opened. `uri_key` = H(uri).

    `num_bytes` and `etag` (or the mtime) are of the listing; `fps` is given for frame folders, which have no clock.
    `missing` says that the source names a file that its media root does not hold.
    """

    uri_key: Key
    uri: str
    kind: MediaKind
    source: str
    source_media_id: str
    split: str
    licence: str | None = None
    num_bytes: int | None = None
    etag: str | None = None
    fps: float | None = None
    missing: bool = False


FORGOTTEN = "forgotten"
"""The reason of a media that was taken down."""


@dataclass(frozen=True)
class TakenDown:
    """Media that must not come in again: by content, and by the names under which they were known."""

    media_keys: frozenset[bytes] = frozenset()
    uris: frozenset[str] = frozenset()


NOTHING_TAKEN_DOWN = TakenDown()


class ProbeUnit(Record):
    """One file to open."""

    uri_key: Key
    uri: str
    kind: MediaKind
    num_bytes: int | None = None
    fps: float | None = None
    missing: bool = False
    input_digest: Key


def probe_units(listed: pa.Table, probes: pl.DataFrame | None = None) -> pa.Table:
    """The units of `ProbeStage` for listed media (several sources' listings concatenated), one a URI.

    `probes` are the rows that exist (`uri_key`, `input_digest`): a file whose size and mtime are as they were is left
    out.
    """
    digest = digest_columns({name: listed[name] for name in ("uri", "num_bytes", "etag", "fps", "missing")})
    frame = _frame(listed.append_column("input_digest", digest)).unique("uri_key", keep="first", maintain_order=True)
    if probes is not None and len(probes):
        frame = frame.join(probes, on=["uri_key", "input_digest"], how="anti", maintain_order="left")
    return conform(frame.to_arrow(), arrow_schema(ProbeUnit))


class ProbeStage(Stage):
    """Opens each file once: its content's digest, its size, its orientation, its perceptual hash.

    Images are decoded to the end, so that a truncated file fails here and nowhere later. What was taken down is
    `filtered`, without its key or anything else of it.
    """

    name: ClassVar[str] = "probe"
    version: ClassVar[int] = 1
    table: ClassVar[str] = "probes"
    unit: ClassVar[type[Record]] = ProbeUnit
    row: ClassVar[type[Probe]] = Probe
    unit_field: ClassVar[str] = "uri_key"
    group_by: ClassVar[tuple[str, ...]] = ("uri_key",)

    batch_groups = 64

    def __init__(
        self, storage_options: Mapping[str, Any] | None = None, taken_down: TakenDown = NOTHING_TAKEN_DOWN
    ) -> None:
        self._storage_options = dict(storage_options or {})
        self._taken_down = taken_down

    def settings(self) -> dict[str, Any]:
        return {}

    def process(self, units: pa.Table) -> Iterator[pa.Table]:
        yield to_table([self._row(unit) for unit in units.to_pylist()], Probe)

    def _row(self, unit: dict[str, Any]) -> Probe:
        same = {name: unit[name] for name in ("uri_key", "uri", "kind", "input_digest")}
        gone = Probe(**same, status="filtered", reason=FORGOTTEN, message="this media was taken down")
        if unit["uri"] in self._taken_down.uris:
            return gone
        try:
            if unit["missing"]:
                raise UnitError("missing_media", f"{unit['uri']}: no such file under the source's media root")
            if unit["kind"] == "video":
                facts = _probe_video(unit["uri"], unit["fps"], self._storage_options)
            else:
                facts = _probe_image(unit["uri"], self._storage_options)
        except UnitError as error:
            return Probe(**same, status="failed", reason=error.reason, message=error.message[:500])
        return gone if facts["media_key"] in self._taken_down.media_keys else Probe(**same, **facts)


def missing_rows(units: pa.Table) -> pa.Table:
    """The rows of units that are marked `missing`: nothing is there to be opened, so no worker is asked."""
    message = pc.binary_join_element_wise(units["uri"], "no such file under the source's media root", ": ")
    columns = {name: units[name] for name in ("uri_key", "uri", "kind", "input_digest")}
    columns |= {"status": pa.repeat("failed", len(units)), "reason": pa.repeat("missing_media", len(units))}
    columns |= {"message": pc.utf8_slice_codeunits(message, 0, 500), "attempts": pa.repeat(1, len(units))}
    return with_digest(conform(pa.table(columns), arrow_schema(Probe)), Probe)


def _probe_image(uri: str, storage_options: Mapping[str, Any]) -> dict[str, Any]:
    data = read_bytes(uri, storage_options)
    try:
        info = probe_image(data)
    except UnitError as error:
        raise UnitError(error.reason, f"{uri}: {error.message}") from error
    return {
        "media_key": digest_bytes(data),
        "num_bytes": len(data),
        "encoding": info.encoding,
        "width": info.width,
        "height": info.height,
        "orientation": info.orientation,
        "phash": info.phash,
        "num_frames": 1,
    }


def _probe_video(uri: str, fps: float | None, storage_options: Mapping[str, Any]) -> dict[str, Any]:
    """Facts of a video file or of a frame folder (URI ends with `/`); the hash is of its middle frame."""
    from stages.media.video import open_video

    key, size = content_digest(uri, storage_options)
    video = open_video(uri, fps, storage_options=storage_options)
    try:
        count = len(video)
        rate = video.fps
        middle = video.frames([count // 2])[0]
        folder = uri.endswith("/")
        return {
            "media_key": key,
            "num_bytes": size,
            "encoding": "frames" if folder else posixpath.splitext(uri)[1].lstrip(".").lower() or "video",
            "width": int(middle.shape[1]),
            "height": int(middle.shape[0]),
            "orientation": 1,
            "phash": perceptual_hash(middle),
            "num_frames": count,
            "fps": rate,
            "duration_s": count / rate if rate else None,
            "note": video.note,
        }
    finally:
        video.close()


def content_digest(uri: str, storage_options: Mapping[str, Any] | None = None) -> tuple[bytes, int]:
    """The digest and size of a file's bytes; of a frame folder, of its frames' names and bytes in name order.

    Raises `UnitError` (`missing_media`, `unreadable_media`) and `TransientError`.
    """
    try:
        if not uri.endswith("/"):
            with fsspec.open(uri, "rb", **dict(storage_options or {})) as stream:
                key = digest_stream(stream)
                return key, stream.tell()
        fs, root = url_to_fs(uri, **dict(storage_options or {}))
        state, size = hashlib.blake2b(digest_size=KEY_BYTES), 0
        for path in sorted(fs.ls(root.rstrip("/"), detail=False)):
            data = fs.cat_file(path)
            size += len(data)
            state.update(posixpath.basename(path).encode() + b"\0" + digest_bytes(data))
        return state.digest(), size
    except (FileNotFoundError, NotADirectoryError, KeyError) as error:
        raise UnitError("missing_media", f"{uri}: no such file") from error
    except (ConnectionError, TimeoutError) as error:
        raise TransientError(f"{uri}: {error}") from error
    except (OSError, ValueError) as error:
        raise UnitError("unreadable_media", f"{uri}: {error}") from error


def media_rows(probes: pl.DataFrame, known: pl.DataFrame | None = None, distance: int = DISTANCE) -> pa.Table:
    """Media rows, one for each distinct content among the probes that are `ok`; the first URI by name stands for it.

    `known` are the media rows that exist (`media_key`, `group_key`): groups that were given once never change.
    """
    frame = probes.filter(pl.col("status") == "ok").sort("uri").unique("media_key", keep="first", maintain_order=True)
    frame = frame.with_columns(pl.lit(None, pl.Binary).alias("group_key"))
    if known is not None and len(known):
        old = known.select("media_key", pl.col("group_key").alias("_old"))
        frame = frame.join(old, on="media_key", how="left", maintain_order="left")
        frame = frame.with_columns(pl.col("_old").alias("group_key")).drop("_old")
        gone = known.join(frame, on="media_key", how="anti").select("media_key", "phash", "group_key")
        grouped = assign_groups(pl.concat([frame.select("media_key", "phash", "group_key"), gone]), distance)
    else:
        grouped = assign_groups(frame.select("media_key", "phash", "group_key"), distance)
    frame = frame.drop("group_key").join(grouped.unique("media_key"), on="media_key", how="left", maintain_order="left")
    frame = frame.with_columns(pl.col("media_key").alias("input_digest"), pl.lit(1).alias("attempts"))
    keep = ["media_key", "uri", "kind", *_FACTS, "group_key", "input_digest", "status", "attempts"]
    return with_digest(conform(frame.select(keep).to_arrow(), arrow_schema(Media)), Media)


def ref_rows(listed: pa.Table, probes: pl.DataFrame) -> pa.Table:
    """Reference rows: each listed media of each source with what its probe found. `ref_key` = H(source, uri)."""
    keys = digest_columns({"source": listed["source"], "uri": listed["uri"]})
    frame = _frame(listed.append_column("ref_key", keys)).unique("ref_key", keep="first", maintain_order=True)
    found = probes.select("uri_key", "media_key", "status", "reason", "attempts", "input_digest")
    joined = frame.join(found, on="uri_key", how="inner", maintain_order="left")
    return with_digest(conform(joined.to_arrow(), arrow_schema(MediaRef)), MediaRef)


def _frame(table: pa.Table) -> pl.DataFrame:
    return pl.DataFrame(pl.from_arrow(table))
