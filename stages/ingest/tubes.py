"""Sentences with a tube of boxes: VidSTG on VidOR, and HC-STVG.

VidSTG (https://github.com/Guaranteer/VidSTG-Dataset): role `captions` is `{train,val,test}_annotations.json`, role
`vidor` the folder of VidOR's annotations (https://xdshang.github.io/docs/vidor.html). One region a caption: the boxes
of its `target_id` on the frames of `temporal_gt` (`end_fid` exclusive). VidOR boxes are xyxy. Questions that a target
answers are hints of the kind `relation`; a target of which there are questions alone is a region too.

HC-STVG (https://github.com/tzhhhh123/HC-STVG), v1 and v2: a JSON keyed by `<video>.mp4`; `bbox` are xywh boxes of one
person on consecutive frames from `st_frame`, which counts from 1.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from stages.ingest import jsonstream
from stages.ingest.base import Adapter, Source, SourceError, batches, numbers, whole, xywh
from stages.ingest.coco import bad, hint, listed, spoken
from stages.ingest.jsonstream import BadItem
from stages.ingest.listing import MediaRoots
from stages.ingest.tracks import first_visible, point
from stages.media.probe import ListedMedia

_BATCH_TUBES = 256
_VIDSTG_KEYS = ("vid", "temporal_gt", "captions")
_HCSTVG_KEYS = ("bbox", "st_frame")


def _video(source: Source, name: str) -> ListedMedia:
    found = source.roots.find(name)
    media_id = posixpath.splitext(name)[0]
    if found is None:
        return listed(source, source.roots.missing_uri(name), media_id, "video", missing=True)
    return listed(source, found.uri, media_id, "video", num_bytes=found.num_bytes, etag=found.etag)


def _vidstg_media(source: Source) -> Iterator[ListedMedia]:
    seen = set()
    for _, entry in _vidstg_entries(source):
        if isinstance(entry, dict) and entry.get("vid") is not None and entry["vid"] not in seen:
            seen.add(entry["vid"])
            yield _video(source, f"{entry['vid']}.mp4")


def _vidstg_entries(source: Source) -> Iterator[tuple[int, Any]]:
    path = source.config.annotation("captions")
    for index, entry in enumerate(jsonstream.items(path, source.config.storage_options)):
        if index == 0 and isinstance(entry, dict) and any(name not in entry for name in _VIDSTG_KEYS):
            raise SourceError(f"{path}: an entry needs {list(_VIDSTG_KEYS)}, found {sorted(entry)}")
        usable = isinstance(entry, dict) and isinstance(entry.get("vid"), str | int)
        yield index, entry if usable else BadItem(f"{entry!r:.80}", "no entry with a video")


def _vidstg_regions(source: Source) -> Iterator[pa.Table]:
    yield from batches(_vidstg_rows(source), _BATCH_TUBES)


def _vidstg_rows(source: Source) -> Iterator[dict[str, Any]]:
    vidor = MediaRoots((source.config.annotation("vidor"),), source.config.storage_options)
    held: tuple[str | None, Any] = (None, None)
    for index, entry in _vidstg_entries(source):
        if isinstance(entry, BadItem):
            path = source.config.annotation("captions")
            yield bad(f"{path}#{index}", f"#{index}", "bad_record", f"entry {index}: {entry.error}: {entry.raw}")
            continue
        video = str(entry["vid"])
        if held[0] != video:
            held = (video, _trajectories(source, vidor, video))
        captions = entry.get("captions")
        if not isinstance(captions, list):
            captions = [captions]
        asked = _questions(entry)
        for number, caption in enumerate(captions):
            yield _vidstg_row(source, entry, held[1], caption, f"{video}_{index}_{number}", asked)
        told = [caption.get("target_id") for caption in captions if isinstance(caption, dict)]
        for target in (target for target in asked if target not in told):
            about = {"target_id": target, "description": ""}
            yield _vidstg_row(source, entry, held[1], about, f"{video}_{index}_q{target}", asked)


def _questions(entry: Mapping[str, Any]) -> dict[int, list[str]]:
    """Target -> the questions that it answers."""
    found: dict[int, list[str]] = {}
    questions = entry.get("questions")
    for item in questions if isinstance(questions, list) else []:
        target, text = (item.get("target_id"), item.get("description")) if isinstance(item, dict) else (None, None)
        if type(target) is int and isinstance(text, str) and text.strip():
            found.setdefault(target, []).append(" ".join(text.split()))
    return found


def _trajectories(source: Source, vidor: MediaRoots, video: str) -> Mapping[str, Any] | str:
    """VidOR's annotation of a video, or what is wrong with it."""
    found = vidor.find(f"{video}.json")
    if found is None:
        return f"VidOR has no annotation {video}.json"
    try:
        document = jsonstream.load(found.uri, source.config.storage_options)
    except SourceError as error:
        return str(error)
    if not isinstance(document, dict) or not isinstance(document.get("trajectories"), list):
        return f"{found.uri}: no `trajectories`"
    return document


def _vidstg_row(
    source: Source, entry: Mapping[str, Any], vidor: Any, caption: Any, source_id: str, asked: Mapping[int, list[str]]
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "uri": _video(source, f"{entry['vid']}.mp4").uri, "kind": "video", "source_id": source_id,
        "source_media_id": str(entry["vid"]),
    }  # fmt: skip
    try:
        if not isinstance(caption, dict) or not isinstance(caption.get("description"), str):
            raise ValueError(f"a caption needs `description` and `target_id`, found {caption!r:.60}")
        target, told = caption.get("target_id"), " ".join(caption["description"].split())
        row["hints"] = [hint("phrase", told)] if told else []
        if type(target) is int:
            row["hints"] += [hint("relation", f"asked of it: {text}") for text in asked.get(target, [])]
        if isinstance(vidor, str):
            raise ValueError(vidor)
        row |= {"width": _size(vidor.get("width")), "height": _size(vidor.get("height"))}
        label = _category(target, vidor, entry)
        if label is not None:
            row["label"] = label
            row["hints"] = [hint("label", label), *row["hints"]]
        row["track"] = _span(vidor["trajectories"], target, entry.get("temporal_gt"))
        first_visible(row)
    except ValueError as error:
        row |= {"track": None, "bad": "bad_record", "message": str(error)[:300]}
    return row


def _span(trajectories: list[Any], target: Any, span: Any) -> list[dict[str, Any]]:
    if not isinstance(span, dict):
        raise ValueError("`temporal_gt` must be {begin_fid, end_fid}")
    begin, end = whole(span.get("begin_fid")), whole(span.get("end_fid"))
    if not 0 <= begin < end:
        raise ValueError(f"the span {begin} to {end} is empty")
    points = []
    for frame in range(begin, min(end, len(trajectories))):
        boxes = trajectories[frame] if isinstance(trajectories[frame], list) else []
        box = next((item.get("bbox") for item in boxes if isinstance(item, dict) and item.get("tid") == target), None)
        corners = None
        if isinstance(box, dict):
            corners = numbers([box.get(name) for name in ("xmin", "ymin", "xmax", "ymax")])
        points.append(point(frame, corners))
    return points


def _category(target: Any, *documents: Mapping[str, Any]) -> str | None:
    for document in documents:
        objects = document.get("subject/objects")
        for item in objects if isinstance(objects, list) else []:
            if isinstance(item, dict) and item.get("tid") == target and isinstance(item.get("category"), str):
                return spoken(item["category"])
    return None


def _size(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else None


def _hcstvg_media(source: Source) -> Iterator[ListedMedia]:
    seen = set()
    for name, _ in _hcstvg_entries(source):
        if name not in seen:
            seen.add(name)
            yield _video(source, name)


def _hcstvg_entries(source: Source) -> Iterator[tuple[str, Any]]:
    path = source.config.annotation()
    document = jsonstream.load(path, source.config.storage_options)
    if not isinstance(document, dict):
        raise SourceError(f"{path}: expected an object of VIDEO.mp4 -> record, found {type(document).__name__}")
    yield from document.items()


def _hcstvg_regions(source: Source) -> Iterator[pa.Table]:
    yield from batches(_hcstvg_rows(source), _BATCH_TUBES)


def _hcstvg_rows(source: Source) -> Iterator[dict[str, Any]]:
    path = source.config.annotation()
    for index, (name, record) in enumerate(_hcstvg_entries(source)):
        if index == 0 and not (isinstance(record, dict) and all(key in record for key in _HCSTVG_KEYS)):
            found = sorted(record) if isinstance(record, dict) else type(record).__name__
            raise SourceError(f"{path}: a record needs {list(_HCSTVG_KEYS)} and a caption, found {found}")
        row: dict[str, Any] = {
            "uri": _video(source, name).uri, "kind": "video", "source_id": posixpath.splitext(name)[0],
            "source_media_id": posixpath.splitext(name)[0], "label": "person",
        }  # fmt: skip
        try:
            _tube(record, row)
        except ValueError as error:
            row |= {"track": None, "bad": "bad_record", "message": str(error)[:300]}
        yield row


def _tube(record: Any, row: dict[str, Any]) -> None:
    if not isinstance(record, dict):
        raise ValueError("the record is no object")
    row |= {"width": _size(record.get("width")), "height": _size(record.get("height"))}
    row["hints"] = [hint("label", "person")]
    for name, language in (("caption", "en"), ("English", "en"), ("Chinese", "zh")):
        text = record.get(name)
        if isinstance(text, str) and text.strip():
            row["hints"].append(hint("phrase", " ".join(text.split()), language))
    boxes = record.get("bbox")
    if not isinstance(boxes, list) or not boxes:
        raise ValueError("the record has no boxes")
    start = whole(record.get("st_frame"))
    if start < 1:
        raise ValueError(f"st_frame counts from 1, found {start}")
    row["track"] = [point(start - 1 + i, xywh(box)) for i, box in enumerate(boxes)]
    first_visible(row)


VIDSTG = Adapter(2, _vidstg_media, _vidstg_regions, benchmark_splits={"val": "VidSTG val", "test": "VidSTG test"})
HCSTVG = Adapter(1, _hcstvg_media, _hcstvg_regions, benchmark_splits={"test": "HC-STVG test", "val": "HC-STVG v2 val"})
