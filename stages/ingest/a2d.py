"""A2D-Sentences (https://kgavrilyuk.github.io/publication/actor_action): actors in clips, a sentence each.

Roles: `videos` (`Release/videoset.csv`, no header: id, label, start, end, height, width, frames, annotated, split 0 or
1), `sentences` (`a2d_annotation.txt`: `video_id,instance_id,query`), `instances` (the folder
`a2d_annotation_with_instances/<video>/%05d.h5`), optionally `missed` (`a2d_missed_videos.txt`). An HDF5 file holds
`instance` (ids), `reMask` (n, W, H: transposed) and `reBBox`; where one instance is in it the leading axis is missing.
Frames count from 1; three to five of a clip are annotated. Reading needs the package h5py.
"""

from __future__ import annotations

import csv
import io
import posixpath
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.base import UnitError
from stages.ingest import jsonstream, rle
from stages.ingest.base import Adapter, Source, SourceError, batches
from stages.ingest.coco import bad, hint, listed
from stages.ingest.listing import MediaRoots
from stages.ingest.tracks import first_visible, point
from stages.media.images import read_bytes
from stages.media.probe import ListedMedia

_SPLITS = {"0": "train", "1": "test"}
_MOST_VALUES = 1 << 28
"""A file of a frame has a few masks of its size; one that claims more values than this is damaged."""


def _video(source: Source, video: str) -> ListedMedia:
    found = source.roots.find(f"{video}.mp4", f"{video}.avi")
    if found is None:
        return listed(source, source.roots.missing_uri(f"{video}.mp4"), video, "video", missing=True)
    return listed(source, found.uri, video, "video", num_bytes=found.num_bytes, etag=found.etag)


def _media(source: Source) -> Iterator[ListedMedia]:
    for video in dict.fromkeys(fields[0].strip() for _, fields in _sentences(source) if len(fields) == 3):
        yield _video(source, video)


def _csv(source: Source, role: str) -> Iterator[list[str]]:
    with jsonstream.open_text(source.config.annotation(role), source.config.storage_options) as stream:
        text = io.TextIOWrapper(stream, "utf-8", errors="replace", newline="")
        yield from csv.reader(text)


def _sentences(source: Source) -> Iterator[tuple[int, list[str]]]:
    """(line from 1, [video, instance, sentence]): only the first two commas divide."""
    path = source.config.annotation("sentences")
    with jsonstream.open_text(path, source.config.storage_options) as stream:
        for number, line in enumerate(stream.read().decode("utf-8", "replace").splitlines(), 1):
            fields = [field.strip() for field in line.split(",", 2)]
            if number == 1 and fields[0].lower() == "video_id":
                continue
            if number == 1 and len(fields) != 3:
                raise SourceError(f"{path}: expected video_id,instance_id,query, found {line[:80]!r}")
            if line.strip():
                yield number, fields


def _regions(source: Source) -> Iterator[pa.Table]:
    yield from batches(_rows(source), 64)


def _rows(source: Source) -> Iterator[dict[str, Any]]:
    path = source.config.annotation("sentences")
    splits = {row[0].strip(): _SPLITS.get(row[8].strip(), "none") for row in _csv(source, "videos") if len(row) > 8}
    missed = source.config.optional_annotation("missed")
    gone = set()
    if missed is not None:
        with jsonstream.open_text(missed, source.config.storage_options) as stream:
            gone = set(stream.read().decode("utf-8", "replace").split())
    instances = MediaRoots((source.config.annotation("instances"),), source.config.storage_options)
    held: tuple[str, dict[int, list[dict[str, Any]]] | str] = ("", {})
    for number, fields in _sentences(source):
        if len(fields) != 3 or not fields[1].split(" ")[0].isdigit():
            yield bad(f"{path}#{number}", f"#{number}", "bad_record", f"line {number}: {','.join(fields)[:80]}")
            continue
        video, instance = fields[0], int(fields[1].split(" ")[0])  # `1 (copy)` is instance 1
        row: dict[str, Any] = {
            "uri": _video(source, video).uri, "kind": "video", "source_id": f"{video}/{fields[1]}/{number}",
            "source_media_id": video, "hints": [hint("phrase", fields[2].strip('"'))],
        }  # fmt: skip
        split = splits.get(video)
        if split is not None:
            row["split"] = split
        if split is not None and source.config.split not in (split, "all"):
            yield row | {"bad": "other_split", "message": f"the video is of the split {split}"}
            continue
        if video in gone:
            yield row | {"bad": "bad_record", "message": "listed among the missed videos"}
            continue
        if held[0] != video:
            held = (video, _tracks(source, instances, video))
        yield _tracked(row, held[1], instance)


def _tracked(row: dict[str, Any], tracks: dict[int, list[dict[str, Any]]] | str, instance: int) -> dict[str, Any]:
    if isinstance(tracks, str):
        return row | {"bad": "bad_record", "message": tracks[:300]}
    row["track"] = tracks.get(instance)
    if not row["track"]:
        return row | {"bad": "no_geometry", "message": f"instance {instance} is on no annotated frame"}
    first_visible(row)
    return row


def _tracks(source: Source, instances: MediaRoots, video: str) -> dict[int, list[dict[str, Any]]] | str:
    """Instance -> its points on the annotated frames, or what is wrong with the video's files."""
    folder = instances.folder(video)
    if folder is None:
        return f"no instance annotations for {video}"
    tracks: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    for name in folder.names:
        stem = posixpath.splitext(name)[0]
        if not name.endswith(".h5") or not stem.isdigit():
            continue
        try:
            masks = read_instances(read_bytes(folder.uri + name, source.config.storage_options))
        except SourceError:
            raise
        except (ValueError, UnitError) as error:
            return f"{folder.uri}{name}: {error}"
        for number, mask in masks.items():
            if mask.any():
                coded = rle.of_mask(mask)
                runs, height, _ = rle.runs_of(coded)
                tracks[number].append(point(int(stem) - 1, rle.box_of_runs(runs, height), coded))
    return dict(tracks)


def read_instances(data: bytes) -> dict[int, NDArray[np.bool_]]:
    """Instance id -> mask (H, W) of one HDF5 file. Raises `ValueError`, and `SourceError` where h5py is not there."""
    try:
        import h5py
    except ImportError as error:
        raise SourceError("format a2d reads HDF5 files: pip install 'perceive-engine[a2d]' (or h5py)") from error
    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            for name in ("instance", "reMask"):
                size = getattr(file[name], "size", None)  # None of a group, and of a dataset without a shape
                if size is None or size > _MOST_VALUES:
                    raise ValueError(f"{name} is no array, or one of {size} values")
            ids = np.asarray(file["instance"]).ravel().astype(int)
            masks = np.asarray(file["reMask"]) > 0
    except (OSError, KeyError, TypeError, RuntimeError, OverflowError) as error:
        raise ValueError(f"no instances can be read: {error}") from error
    return instance_masks(ids, masks)


def instance_masks(ids: np.ndarray[Any, Any], masks: np.ndarray[Any, Any]) -> dict[int, NDArray[np.bool_]]:
    """Instance id -> mask (H, W) of a file's `instance` (n) and `reMask` (n, W, H), or (W, H) where n is 1.

    Raises `ValueError` where they do not fit each other.
    """
    if masks.ndim == 2:
        masks = masks[None]
    if masks.ndim != 3 or len(masks) != len(ids):
        raise ValueError(f"{len(ids)} instances, masks of the shape {masks.shape}")
    return {int(number): np.ascontiguousarray(mask.T) for number, mask in zip(ids, masks, strict=True)}


ADAPTER = Adapter(1, _media, _regions, benchmark_splits={"test": "A2D-Sentences test"})
