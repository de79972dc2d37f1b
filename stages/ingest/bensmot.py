"""BenSMOT (https://github.com/Nathan-Li123/SLAMOT): people tracked in clips, with a caption each.

The annotation folder holds `<action>/<video>/gt/gt.txt` (MOT: `frame,id,x,y,w,h,conf,...`, frames from 1, boxes xywh),
`imgs/001.jpg ...` and `instance_captions.txt`, whose captions are keyed `man0`, `woman0`, ...: in order of appearance,
these are the tracks 1 to n. Such names are made words again in the text. Only people are annotated. The option `fps`
is the clips' rate (30). The test split is a benchmark.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from stages.base import UnitError
from stages.ingest import jsonstream
from stages.ingest.base import Adapter, Source, SourceError, batches, whole, xywh
from stages.ingest.coco import bad, hint, listed
from stages.ingest.listing import MediaRoots
from stages.ingest.tracks import first_visible, point
from stages.media.images import read_bytes
from stages.media.probe import ListedMedia

_CAPTION = re.compile(r'^\W*([A-Za-z_]+ ?\d+)\W*?[:：]\s*["\']?(.+?)["\']?[,;]?\s*$')
_NAME = re.compile(r"\b([A-Za-z]+)_?(\d+)\b")


def _videos(source: Source) -> list[tuple[str, MediaRoots]]:
    """Folders that hold `gt/gt.txt`, in order."""
    path = source.config.annotation()
    roots = MediaRoots((path,), source.config.storage_options)
    found = sorted(name.removesuffix("/gt/gt.txt") for name in roots.files if name.endswith("/gt/gt.txt"))
    if not found:
        raise SourceError(f"{path}: no folders with gt/gt.txt")
    return [(name, roots) for name in found]


def _listed(source: Source, video: str) -> ListedMedia:
    folder = source.roots.folder(f"{video}/imgs")
    if folder is None:
        return listed(source, source.roots.missing_uri(f"{video}/imgs") + "/", video, "video", missing=True)
    fps = float(source.config.options.get("fps", 30.0))
    return listed(source, folder.uri, video, "video", num_bytes=folder.num_bytes, etag=folder.etag, fps=fps)


def _media(source: Source) -> Iterator[ListedMedia]:
    for video, _ in _videos(source):
        yield _listed(source, video)


def _regions(source: Source) -> Iterator[pa.Table]:
    yield from batches(_rows(source), 256)


def _rows(source: Source) -> Iterator[dict[str, Any]]:
    for video, roots in _videos(source):
        same = {"uri": _listed(source, video).uri, "kind": "video", "source_media_id": video}
        tracks: dict[int, list[dict[str, Any]]] = {}
        for number, line in enumerate(_text(source, roots, f"{video}/gt/gt.txt").splitlines(), 1):
            if not line.strip():
                continue
            try:
                track, item = _line(line)
                tracks.setdefault(track, []).append(item)
            except ValueError as error:
                yield bad("", f"{video}:{number}", "bad_record", f"{video}/gt/gt.txt:{number}: {error}") | same
        captions = _captions(_text(source, roots, f"{video}/instance_captions.txt"))
        for track, points in sorted(tracks.items()):
            row: dict[str, Any] = {**same, "source_id": f"{video}/{track}", "label": "person"}
            row["hints"] = [hint("label", "person")]
            if 1 <= track <= len(captions):
                row["hints"].append(hint("caption", captions[track - 1]))
            row["track"] = sorted(points, key=lambda item: item["frame_index"])
            first_visible(row)
            yield row


def _line(line: str) -> tuple[int, dict[str, Any]]:
    fields = line.split(",")
    if len(fields) < 6:
        raise ValueError(f"expected frame,id,x,y,w,h,..., found {line[:60]!r}")
    frame, track = whole(float(fields[0])), whole(float(fields[1]))
    if frame < 1:
        raise ValueError(f"frames count from 1, found {line[:60]!r}")
    return track, point(frame - 1, xywh([float(item) for item in fields[2:6]]))


def _captions(text: str) -> list[str]:
    """Captions in order of appearance, `man0` said as `man`."""
    try:
        document = jsonstream.decode(text.encode()) if text.lstrip().startswith("{") else None
    except ValueError:
        document = None
    if isinstance(document, dict):
        found = [value for value in document.values() if isinstance(value, str)]
    else:
        found = [match[2] for line in text.splitlines() if (match := _CAPTION.match(line))]
    return [" ".join(_NAME.sub(lambda match: match[1], caption).split()) for caption in found]


def _text(source: Source, roots: MediaRoots, name: str) -> str:
    listed_file = roots.files.get(posixpath.normpath(name))
    if listed_file is None:
        return ""
    try:
        return read_bytes(listed_file.uri, source.config.storage_options).decode("utf-8", "replace")
    except UnitError as error:
        raise SourceError(error.message) from error


ADAPTER = Adapter(1, _media, _regions, options=("fps",), benchmark_splits={"test": "BenSMOT test"})
