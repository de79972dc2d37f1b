"""Rexverse-2M (https://github.com/IDEA-Research/ChatRex): phrases with boxes in TSV files, images in TSV files.

An annotation line is tab-separated, its last column JSON with a list of boxes (xyxy pixels) and a phrase each; line i
is image i, counted on through the parts (`option first: the number of the file's first image`). Images come base64
coded in TSV parts of some 20 GB: `extract_images` writes them as `<number>.jpg` files into the folder that `media`
names. The layout is known from listings only: the first line is checked, and refused with what it holds.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from stages.ingest import jsonstream
from stages.ingest.base import Adapter, Source, SourceError, batches, numbers
from stages.ingest.coco import bad, hint, listed
from stages.media.probe import ListedMedia

_LISTS = ("boxes", "annotations", "regions")
_BOXES = ("bbox", "box", "xyxy")
_PHRASES = ("phrase", "caption", "text", "description")


def image_name(number: int) -> str:
    """The file name of an extracted image."""
    return f"{number:09d}.jpg"


def extract_images(parts: Sequence[str], folder: str | Path) -> int:
    """Writes the images of TSV parts, in order, as numbered files; returns how many. Existing files are kept.

    Raises `SourceError` naming the line of one whose last column is no base64.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    number = 0
    for part in parts:
        with jsonstream.open_text(part) as stream:
            for line in stream:
                path = target / image_name(number)
                if not path.exists():
                    try:
                        path.write_bytes(base64.b64decode(line.rstrip(b"\r\n").rpartition(b"\t")[2], validate=True))
                    except binascii.Error as error:
                        raise SourceError(f"{part}: image {number} is no base64: {error}") from error
                number += 1
    return number


def _lines(source: Source) -> Iterator[tuple[int, Any]]:
    path = source.config.annotation()
    first = source.config.options.get("first", 0)
    if not isinstance(first, int) or first < 0:
        raise SourceError(f"source {source.config.name}: option `first` must be the number of the first image")
    with jsonstream.open_text(path, source.config.storage_options) as stream:
        for index, line in enumerate(stream):
            try:
                value = jsonstream.decode(line.rstrip(b"\r\n").rpartition(b"\t")[2])
            except ValueError:
                value = None
            boxes = _boxes(value)
            if index == 0 and boxes is None:
                found = sorted(value) if isinstance(value, dict) else line[:80]
                raise SourceError(f"{path}: the last column must be JSON with one of {list(_LISTS)}, found {found!r}")
            yield first + index, boxes


def _boxes(value: Any) -> list[Any] | None:
    if isinstance(value, dict):
        value = next((value[name] for name in _LISTS if name in value), None)
    return value if isinstance(value, list) else None


def _media(source: Source) -> Iterator[ListedMedia]:
    for number, _ in _lines(source):
        found = source.roots.find(image_name(number))
        if found is None:
            yield listed(source, source.roots.missing_uri(image_name(number)), str(number), missing=True)
        else:
            yield listed(source, found.uri, str(number), num_bytes=found.num_bytes, etag=found.etag)


def _regions(source: Source) -> Iterator[pa.Table]:
    yield from batches(_rows(source))


def _rows(source: Source) -> Iterator[dict[str, Any]]:
    for number, boxes in _lines(source):
        found = source.roots.find(image_name(number))
        uri = found.uri if found else source.roots.missing_uri(image_name(number))
        if boxes is None:
            yield bad(uri, f"{number}", "bad_record", f"line of image {number}: no list of boxes") | {
                "source_media_id": str(number)
            }
            continue
        for place, item in enumerate(boxes):
            row: dict[str, Any] = {"uri": uri, "source_id": f"{number}_{place}", "source_media_id": str(number)}
            try:
                if not isinstance(item, dict):
                    raise ValueError(f"no object but {item!r:.60}")
                row["box"] = numbers(next((item[name] for name in _BOXES if name in item), None), 4)
                phrase = next((item[name] for name in _PHRASES if isinstance(item.get(name), str)), None)
                if phrase is None or not phrase.strip():
                    raise ValueError("the box has no phrase")
                row["hints"] = [hint("phrase", " ".join(phrase.split()))]
            except ValueError as error:
                row |= {"bad": "bad_record", "message": str(error)[:300]}
            yield row


ADAPTER = Adapter(1, _media, _regions, options=("first",))
