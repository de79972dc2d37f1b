"""YouTube-VIS 2019 JSON, as LV-VIS publishes it (https://github.com/haochenheheda/LVVIS).

`videos[].file_names` are frames below `JPEGImages`; `annotations[].segmentations` has run lengths (list or string) or
null for each frame, `bboxes` xywh or null. The frame folder may hold more frames than the annotations name. Option
`fps` is the rate of the original video (30); folders named by original frame numbers follow from it. LV-VIS train is
not exhaustively annotated; it has categories and no captions.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from stages.ingest import jsonstream
from stages.ingest.base import Adapter, Source, SourceError, batches, xywh
from stages.ingest.coco import bad, hint, listed, spoken
from stages.ingest.jsonstream import BadItem
from stages.ingest.listing import Folder
from stages.ingest.tracks import first_visible, folder_fps, mask_point, point
from stages.media.probe import ListedMedia

_KEYS = ("id", "video_id", "category_id", "segmentations")
_BATCH_TRACKS = 64


@dataclass(frozen=True)
class Video:
    """A video entry: its frame folder, and the index in that folder of each annotated frame (None: no such file)."""

    uri: str
    media_id: str
    folder: Folder | None
    places: list[int | None]
    width: float | None
    height: float | None


def _media(source: Source) -> Iterator[ListedMedia]:
    seen = set()
    for video in _document(source)[0].values():
        if video.uri in seen:
            continue
        seen.add(video.uri)
        folder = video.folder
        if folder is None:
            yield listed(source, video.uri, video.media_id, "video", missing=True)
        else:
            rate = folder_fps(folder, float(source.config.options.get("fps", 30.0)))
            facts = {"num_bytes": folder.num_bytes, "etag": folder.etag, "fps": rate}
            yield listed(source, video.uri, video.media_id, "video", **facts)


def _regions(source: Source) -> Iterator[pa.Table]:
    yield from batches(_rows(source), _BATCH_TRACKS)


def _document(source: Source) -> tuple[dict[Any, Video], dict[Any, str]]:
    path = source.config.annotation()
    videos: dict[Any, Video] = {}
    categories: dict[Any, str] = {}
    found = set()
    for name, piece in jsonstream.members(path, None, source.config.storage_options):
        found.add(name)
        for entry in piece if name in ("videos", "categories") and isinstance(piece, list) else []:
            if not isinstance(entry, dict) or not isinstance(entry.get("id"), int | str):
                continue
            if name == "videos":
                videos[entry["id"]] = _video(source, entry)
            elif isinstance(entry.get("name"), str):
                categories[entry["id"]] = spoken(entry["name"])
    if not {"videos", "annotations", "categories"} <= found:
        raise SourceError(f"{path}: needs videos, annotations and categories, found {sorted(found)}")
    return videos, categories


def _video(source: Source, entry: Mapping[str, Any]) -> Video:
    given = entry.get("file_names")
    names = [name for name in given if isinstance(name, str)] if isinstance(given, list) else []
    base = posixpath.dirname(names[0]) if names else str(entry["id"])
    folder = source.roots.folder(base)
    order = {name: index for index, name in enumerate(folder.names)} if folder else {}
    places = [order.get(posixpath.basename(name)) if folder else index for index, name in enumerate(names)]
    uri = folder.uri if folder else source.roots.missing_uri(base) + "/"
    return Video(uri, str(entry["id"]), folder, places, _size(entry.get("width")), _size(entry.get("height")))


def _size(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else None


def _rows(source: Source) -> Iterator[dict[str, Any]]:
    path = source.config.annotation()
    videos, categories = _document(source)
    index = -1
    for _, piece in jsonstream.members(path, {"annotations"}, source.config.storage_options):
        for entry in piece if isinstance(piece, list) else []:
            index += 1
            if isinstance(entry, BadItem) or not isinstance(entry, dict):
                yield bad(f"{path}#{index}", f"#{index}", "bad_record", f"annotation {index} is no object")
                continue
            if index == 0 and any(name not in entry for name in _KEYS):
                raise SourceError(f"{path}: an annotation needs {list(_KEYS)}, found {sorted(entry)}")
            yield _row(path, index, entry, videos, categories)


def _row(
    path: str, index: int, entry: Mapping[str, Any], videos: Mapping[Any, Video], categories: Mapping[Any, str]
) -> dict[str, Any]:
    source_id = str(entry.get("id", f"#{index}"))
    key, category = entry.get("video_id"), entry.get("category_id")
    video = videos.get(key) if isinstance(key, int | str) else None
    if video is None:
        return bad(f"{path}#video_id={key!r:.40}", source_id, "unknown_image", f"video_id {key!r:.40} is not listed")
    row: dict[str, Any] = {
        "uri": video.uri, "kind": "video", "source_id": source_id, "source_media_id": video.media_id,
        "width": video.width, "height": video.height, "is_crowd": bool(entry.get("iscrowd")),
    }  # fmt: skip
    label = categories.get(category) if isinstance(category, int | str) else None
    if label is None:
        row |= {"bad": "unknown_category", "message": f"category_id {category!r:.40} is not among the categories"}
    else:
        row |= {"label": label, "hints": [hint("label", label)]}
    try:
        row["track"] = _track(entry, video)
        first_visible(row)
    except ValueError as error:
        row |= {"track": None, "bad": "bad_record", "message": str(error)[:300]}
    return row


def _track(entry: Mapping[str, Any], video: Video) -> list[dict[str, Any]]:
    masks, boxes = entry.get("segmentations"), entry.get("bboxes")
    if not isinstance(masks, list) or len(masks) != len(video.places):
        raise ValueError(f"{len(masks) if isinstance(masks, list) else 'no'} masks for {len(video.places)} frames")
    boxes = boxes if isinstance(boxes, list) and len(boxes) == len(masks) else [None] * len(masks)
    points = []
    for place, mask, box in zip(video.places, masks, boxes, strict=True):
        if place is None:
            raise ValueError("an annotated frame is not in the video's folder")
        corners = xywh(box) if box is not None else None
        points.append(mask_point(place, mask, corners) if mask is not None else point(place, corners))
    return sorted(points, key=lambda item: item["frame_index"])


ADAPTER = Adapter(1, _media, _regions, options=("fps",), benchmark_splits={"val": "LV-VIS val", "test": "LV-VIS test"})
