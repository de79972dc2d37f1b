"""PAM-data (https://huggingface.co/datasets/Perceive-Anything/PAM-data): the released captions as sources.

JSON lines of `{"type": "image", "image": path, "bbox": [x, y, w, h] | null, "points": [[x, y], ...] | null, "labels",
"conversations"}`, or for a video `image_root`, `frames`, and the prompt of its first listed frame. One region a line;
the answers are caption hints. Paths are of the machine on which the release was made: they are found under the media
root by their longest tail. Apache-2.0.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from stages.ingest import jsonstream
from stages.ingest.base import Adapter, Source, SourceError, batches, numbers, xywh
from stages.ingest.coco import bad, hint, listed
from stages.ingest.jsonstream import BadItem
from stages.ingest.listing import Folder, tails
from stages.media.probe import ListedMedia

_FIRST_CJK, _LAST_CJK = "\u4e00", "\u9fff"


def _media(source: Source) -> Iterator[ListedMedia]:
    seen = set()
    for _, record in jsonstream.lines(source.config.annotation(), source.config.storage_options):
        entry = _listed(source, record)
        if entry is not None and entry.uri not in seen:
            seen.add(entry.uri)
            yield entry


def _folder(source: Source, path: str) -> Folder | None:
    return next((found for tail in tails(path) if (found := source.roots.folder(tail)) is not None), None)


def _listed(source: Source, record: Any) -> ListedMedia | None:
    if not isinstance(record, dict):
        return None
    if record.get("type") == "video" and isinstance(record.get("image_root"), str):
        path = record["image_root"]
        folder = _folder(source, path)
        if folder is None:
            return listed(source, source.roots.missing_uri(posixpath.basename(path)) + "/", path, "video", missing=True)
        fps = float(source.config.options.get("fps", 24.0))
        return listed(source, folder.uri, path, "video", num_bytes=folder.num_bytes, etag=folder.etag, fps=fps)
    path = record.get("image")
    if not isinstance(path, str) or not tails(path):
        return None
    found = source.roots.find(*tails(path))
    if found is None:
        return listed(source, source.roots.missing_uri(posixpath.basename(path)), path, missing=True)
    return listed(source, found.uri, path, num_bytes=found.num_bytes, etag=found.etag)


def _regions(source: Source) -> Iterator[pa.Table]:
    yield from batches(_rows(source))


def _rows(source: Source) -> Iterator[dict[str, Any]]:
    path = source.config.annotation()
    first = True
    for number, record in jsonstream.lines(path, source.config.storage_options):
        if first and isinstance(record, dict) and "conversations" not in record:
            raise SourceError(
                f"{path}: line {number} needs type, image or image_root, conversations; found {sorted(record)}"
            )
        first = False
        entry = _listed(source, record)
        place = f"{posixpath.basename(path)}:{number}"
        if entry is None or isinstance(record, BadItem):
            yield bad(f"{path}#{number}", place, "bad_record", f"line {number} names no image or video")
            continue
        given = record.get("id")
        row: dict[str, Any] = {
            "uri": entry.uri, "kind": entry.kind, "source_media_id": entry.source_media_id,
            "source_id": f"{given}:{number}" if isinstance(given, str | int) else place,
        }  # fmt: skip
        try:
            if entry.kind == "video":
                row["frame_index"] = _first_frame(source, record)
            _prompt(record, row, entry.kind == "video")
            row["hints"] = _answers(record.get("conversations"))
        except ValueError as error:
            row |= {"bad": "bad_record", "message": str(error)[:300]}
        yield row


def _first_frame(source: Source, record: dict[str, Any]) -> int:
    frames = record.get("frames")
    if not isinstance(frames, list) or not frames or not isinstance(frames[0], str):
        raise ValueError("a video record lists its frames")
    folder = _folder(source, record["image_root"])
    if folder is None:
        return 0
    name = posixpath.basename(frames[0])
    if name not in folder.names:
        raise ValueError(f"the frame {name!r:.60} is not in the folder")
    return folder.names.index(name)


def _prompt(record: dict[str, Any], row: dict[str, Any], video: bool) -> None:
    box, points, labels = record.get("bbox"), record.get("points"), record.get("labels")
    if video:
        box, points, labels = (item[0] if isinstance(item, list) and item else None for item in (box, points, labels))
    if box is None and not points:
        raise ValueError("neither bbox nor points")
    if box is not None:
        row["box"] = xywh(box)
    if points:
        if not isinstance(points, list):
            raise ValueError("points must be a list")
        given = labels if isinstance(labels, list) and len(labels) == len(points) else [1] * len(points)
        row["points"] = []
        for point, label in zip(points, given, strict=True):
            x, y = numbers(point, 2)
            row["points"].append({"x": x, "y": y, "label": 1 if label else 0})


def _answers(conversations: Any) -> list[dict[str, str]]:
    if not isinstance(conversations, list):
        raise ValueError("conversations must be a list of turns")
    texts = [turn.get("value") for turn in conversations if isinstance(turn, dict) and turn.get("from") == "gpt"]
    answers = [text.strip() for text in texts if isinstance(text, str) and text.strip()]
    if not answers:
        raise ValueError("the record has no answer")
    return [hint("caption", text, "zh" if _is_chinese(text) else "en") for text in answers]


def _is_chinese(text: str) -> bool:
    return any(_FIRST_CJK <= character <= _LAST_CJK for character in text)


ADAPTER = Adapter(1, _media, _regions, options=("fps",))
