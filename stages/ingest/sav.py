"""SA-V: `<video>_manual.json` and `<video>_auto.json` beside `<video>.mp4` (https://ai.meta.com/datasets/segment-anything-video).

`masklet[i][k]` are the run lengths of masklet `masklet_id[k]` on annotated frame i. Annotations are at 6 frames a
second of videos at 24: annotated frame i is video frame 4 i. All numbers may be floats; a masklet that has not
appeared yet has empty run lengths. There is no text, and many automatic masklets are parts of objects
(`select.drop_parts`). CC BY 4.0.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from stages.ingest import jsonstream
from stages.ingest.base import Adapter, Source, SourceError, batches, whole
from stages.ingest.coco import bad, listed
from stages.ingest.listing import list_files
from stages.ingest.tracks import first_visible, mask_point
from stages.media.probe import ListedMedia

FRAMES_PER_ANNOTATION = 4
_KINDS = ("manual", "auto")
_KEYS = ("video_id", "masklet", "masklet_id")
_BATCH_MASKLETS = 64  # a masklet carries some hundred masks


def _files(source: Source) -> list[tuple[str, str, str]]:
    """(annotation file, video id, kind), in name order. Raises `SourceError` where there are none."""
    config = source.config
    path = config.annotation()
    wanted = config.options.get("masklets", list(_KINDS))
    if not isinstance(wanted, list | tuple) or not set(wanted) <= set(_KINDS):
        raise SourceError(f"source {config.name}: option `masklets` is a list of {list(_KINDS)}, found {wanted!r}")
    if path.endswith((".json", ".json.gz")):
        names = [path]
    else:
        names = [item.uri for name, item in list_files(path, config.storage_options) if name.endswith(".json")]
    found = []
    for name in names:
        stem = posixpath.basename(name.partition("::")[0]).partition(".json")[0]
        video, _, kind = stem.rpartition("_")
        if kind in wanted and video:
            found.append((name, video, kind))
    if not found:
        raise SourceError(f"{path}: no files named VIDEO_manual.json or VIDEO_auto.json")
    return found


def _video(source: Source, video: str) -> ListedMedia:
    file = source.roots.find(f"{video}.mp4")
    if file is None:
        return listed(source, source.roots.missing_uri(f"{video}.mp4"), video, "video", missing=True)
    return listed(source, file.uri, video, "video", num_bytes=file.num_bytes, etag=file.etag)


def _media(source: Source) -> Iterator[ListedMedia]:
    for video in dict.fromkeys(video for _, video, _ in _files(source)):
        yield _video(source, video)


def _regions(source: Source) -> Iterator[pa.Table]:
    yield from batches(_rows(source), _BATCH_MASKLETS)


def _rows(source: Source) -> Iterator[dict[str, Any]]:
    for index, (path, video, kind) in enumerate(_files(source)):
        uri = _video(source, video).uri
        try:
            document = jsonstream.load(path, source.config.storage_options)
        except SourceError as error:
            yield bad(uri, f"{video}_{kind}", "bad_record", str(error)) | {"source_media_id": video, "kind": "video"}
            continue
        absent = [name for name in _KEYS if not isinstance(document, dict) or name not in document]
        if absent:
            found = sorted(document) if isinstance(document, dict) else type(document).__name__
            message = f"{path}: needs {list(_KEYS)}, found {found}"
            if index == 0:
                raise SourceError(message)
            yield bad(uri, f"{video}_{kind}", "bad_record", message) | {"source_media_id": video, "kind": "video"}
            continue
        yield from _masklets(document, uri, video, kind)


def _masklets(document: dict[str, Any], uri: str, video: str, kind: str) -> Iterator[dict[str, Any]]:
    frames, ids = document["masklet"], document["masklet_id"]
    if not isinstance(ids, list):
        ids = []
    width, height = document.get("video_width"), document.get("video_height")
    widest = (
        max((len(frame) for frame in frames if isinstance(frame, list)), default=0) if isinstance(frames, list) else 0
    )
    for k in range(max(len(ids), widest)):
        row: dict[str, Any] = {
            "uri": uri,
            "kind": "video",
            "source_id": f"{video}_{kind}_{_name(ids[k] if k < len(ids) else f'unnamed{k}')}",
            "source_media_id": video,
            "width": width if isinstance(width, int | float) and width > 0 else None,
            "height": height if isinstance(height, int | float) and height > 0 else None,
        }
        try:
            if k >= len(ids):
                raise ValueError(f"masklet {k} has no entry in masklet_id")
            row["track"] = _track(frames, k)
            first_visible(row)
        except ValueError as error:
            row |= {"track": None, "bad": "bad_record", "message": str(error)[:300]}
        yield row


def _track(frames: Any, k: int) -> list[dict[str, Any]]:
    if not isinstance(frames, list):
        raise ValueError("`masklet` must be a list of frames")
    points = []
    for i, frame in enumerate(frames):
        if not isinstance(frame, list):
            raise ValueError(f"annotated frame {i} is no list of masks")
        mask = frame[k] if k < len(frame) else None
        if isinstance(mask, dict) and not mask.get("counts"):
            mask = None  # not there yet, or gone
        points.append(mask_point(FRAMES_PER_ANNOTATION * i, mask))
    return points


def _name(value: Any) -> str:
    try:
        return str(whole(value))
    except ValueError:
        return str(value)


ADAPTER = Adapter(1, _media, _regions, options=("masklets",), benchmark_splits={"val": "SA-V val", "test": "SA-V test"})
