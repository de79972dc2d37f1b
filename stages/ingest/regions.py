"""`regions` JSON lines: one's own data, one region a line.

    {"media": "a.jpg", "box": [x0, y0, x1, y1], "label": "cup"}
    {"media": "a.jpg", "points": [[x, y, 1], [x, y, 0]], "hints": [{"kind": "phrase", "language": "en", "text": "..."}]}
    {"media": "clip.mp4", "frame_index": 12, "mask": {"size": [h, w], "counts": "..."}}
    {"media": "clip.mp4", "track": [{"frame_index": 0, "box": [...]}, {"frame_index": 4, "box": null}]}

Boxes are xyxy pixels of the upright image. A line names its media by its path under the media root (the folder of the
file where `media` is not configured) and at least one of `box`, `points`, `polygons`, `mask`, `track`; for a video
`frame_index`, or `time_s`, is the prompt frame. `id`, `label`, `definition`, `hints`, `split`, `licence`, `is_crowd`,
`is_group`, `is_part`, `width`, `height` and `kind` (`image` or `video`) are optional. A frame folder ends with `/`.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from stages.ingest import jsonstream, rle
from stages.ingest.base import Adapter, Source, SourceError, batches, numbers
from stages.ingest.coco import bad, hint, listed
from stages.ingest.jsonstream import BadItem
from stages.ingest.tracks import first_visible, mask_point
from stages.media.probe import ListedMedia

VIDEO_ENDINGS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".gif")
_FIELDS = frozenset({
    "media", "kind", "id", "box", "points", "polygons", "mask", "track", "frame_index", "time_s", "label", "definition",
    "hints", "split", "licence", "is_crowd", "is_group", "is_part", "width", "height", "fps", "language",
})  # fmt: skip
_HINT_KINDS = frozenset({"label", "phrase", "definition", "attribute", "caption", "relation", "action"})
_COPIED = {"label": str, "split": str, "licence": str, "is_crowd": bool, "is_group": bool, "is_part": bool}


def media_kind(name: str) -> str:
    """`video` for a video file's ending or a frame folder, else `image`."""
    return "video" if name.endswith("/") or name.lower().endswith(VIDEO_ENDINGS) else "image"


def _media(source: Source) -> Iterator[ListedMedia]:
    seen = set()
    for _, record in jsonstream.lines(source.config.annotation(), source.config.storage_options):
        if isinstance(record, dict) and isinstance(record.get("media"), str):
            entry = _listed(source, record)
            if entry.uri not in seen:
                seen.add(entry.uri)
                yield entry


def _listed(source: Source, record: dict[str, Any]) -> ListedMedia:
    name = record["media"]
    fps = record.get("fps")
    rate = float(fps) if isinstance(fps, int | float) and fps > 0 else None
    if name.endswith("/"):
        folder = source.roots.folder(name)
        if folder is not None:
            return listed(source, folder.uri, name, "video", num_bytes=folder.num_bytes, etag=folder.etag, fps=rate)
        return listed(source, source.roots.missing_uri(name) + "/", name, "video", missing=True)
    kind = "video" if media_kind(name) == "video" or record.get("kind") == "video" else "image"
    found = source.roots.find(name)
    if found is None:
        return listed(source, source.roots.missing_uri(name), name, kind, missing=True)  # type: ignore[arg-type]
    return listed(source, found.uri, name, kind, num_bytes=found.num_bytes, etag=found.etag)  # type: ignore[arg-type]


def _regions(source: Source) -> Iterator[pa.Table]:
    yield from batches(_rows(source))


def _rows(source: Source) -> Iterator[dict[str, Any]]:
    path = source.config.annotation()
    first = True
    for number, record in jsonstream.lines(path, source.config.storage_options):
        place = f"{posixpath.basename(path)}:{number}"
        if isinstance(record, BadItem) or not isinstance(record, dict):
            what = record.error if isinstance(record, BadItem) else f"expected an object, found {record!r:.60}"
            yield bad(f"{path}#{number}", place, "bad_record", f"line {number}: {what}")
            continue
        if first and "media" not in record:
            raise SourceError(f"{path}: line {number} has the keys {sorted(record)}; a region needs `media` and a box")
        first = False
        yield _row(source, record, place, f"{path}#{number}")


def _row(source: Source, record: dict[str, Any], place: str, where: str) -> dict[str, Any]:
    source_id = str(record.get("id", place))
    if not isinstance(record.get("media"), str):
        return bad(where, source_id, "bad_record", "`media` must be a path")
    entry = _listed(source, record)
    row: dict[str, Any] = {
        "uri": entry.uri, "kind": entry.kind, "source_id": source_id, "source_media_id": record["media"],
    }  # fmt: skip
    try:
        unknown = sorted(set(record) - _FIELDS)
        if unknown:
            raise ValueError(f"unknown fields {unknown}; known are {sorted(_FIELDS)}")
        for name, kind in _COPIED.items():
            if record.get(name) is not None:
                if not isinstance(record[name], kind):
                    raise ValueError(f"{name} must be of type {kind.__name__}")
                row[name] = record[name]
        for name in ("width", "height"):
            if record.get(name) is not None:
                row[name] = numbers([record[name]])[0]
        row["hints"] = _hints(record)
        _geometry(record, row)
    except rle.EmptyMask as error:
        row |= {"bad": "empty_mask", "message": str(error)}
    except ValueError as error:
        row |= {"bad": "bad_record", "message": str(error)[:300]}
    return row


def _geometry(record: dict[str, Any], row: dict[str, Any]) -> None:
    if record.get("box") is not None:
        row["box"] = numbers(record["box"], 4)
    if record.get("points") is not None:
        row["points"] = [_point(item) for item in _list(record["points"], "points")]
    if record.get("polygons") is not None:
        row["polygons"] = [_ring(item) for item in _list(record["polygons"], "polygons")]
    if record.get("mask") is not None:
        row["mask"] = rle.record(record["mask"])
    if record.get("track") is not None:
        row["track"] = sorted(
            (_track_point(item) for item in _list(record["track"], "track")), key=lambda item: item["frame_index"]
        )
    row["frame_index"] = _frame_index(record)
    if row.get("track") and record.get("frame_index") is None and record.get("time_s") is None:
        first_visible(row)


def _frame_index(record: dict[str, Any]) -> int:
    index = record.get("frame_index")
    if index is not None:
        return _index(index)
    if record.get("time_s") is not None:
        fps = record.get("fps")
        if not isinstance(fps, int | float) or fps <= 0:
            raise ValueError("`time_s` needs `fps`; or give `frame_index`")
        return round(numbers([record["time_s"]])[0] * float(fps))
    return 0


def _index(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 40:
        raise ValueError(f"frame_index must be a number of frames from 0, found {value!r:.40}")
    return value


def _track_point(item: Any) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise ValueError("a track is a list of {frame_index, box, mask}")
    box = numbers(item["box"], 4) if item.get("box") is not None else None
    return mask_point(_index(item.get("frame_index")), item.get("mask"), box)


def _point(item: Any) -> dict[str, Any]:
    if isinstance(item, dict):
        item = [item.get("x"), item.get("y"), item.get("label", 1)]
    values = numbers(item)
    if len(values) not in (2, 3) or (len(values) == 3 and values[2] not in (0.0, 1.0)):
        raise ValueError(f"a point is [x, y] or [x, y, label] with label 0 or 1, found {item!r:.60}")
    return {"x": values[0], "y": values[1], "label": int(values[2]) if len(values) == 3 else 1}


def _ring(item: Any) -> list[float]:
    values = numbers(item)
    if len(values) < 6 or len(values) % 2:
        raise ValueError("a polygon is a flat list x0, y0, x1, y1, ... of at least three points")
    return values


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"`{name}` must be a list that is not empty")
    return value


def _hints(record: dict[str, Any]) -> list[dict[str, str]]:
    language = record.get("language", "en")
    hints = []
    if isinstance(record.get("label"), str):
        hints.append(hint("label", record["label"], language))
    if record.get("definition") is not None:
        hints.append(hint("definition", record["definition"], language))
    for item in record.get("hints") or []:
        if not isinstance(item, dict) or item.get("kind") not in _HINT_KINDS or not isinstance(item.get("text"), str):
            raise ValueError(f"a hint is {{kind, language, text}} with kind one of {sorted(_HINT_KINDS)}")
        hints.append(hint(item["kind"], item["text"], item.get("language", language)))
    if not all(isinstance(item["text"], str) and isinstance(item["language"], str) for item in hints):
        raise ValueError("texts and languages of hints must be strings")
    return hints


ADAPTER = Adapter(1, _media, _regions)
