"""OpenImages v7 (https://storage.googleapis.com/openimages/web/index.html): boxes and instance masks in CSV files.

Annotation roles: `boxes` (CSV), `masks` (CSV) with `mask_images` (a folder of PNGs or of zips of PNGs, or one zip),
`classes` (class-descriptions CSV), `images` (image-ids CSV, for its `Rotation`). Either `boxes` or `masks` or both.
Boxes are fractions of the image in the order XMin, XMax, YMin, YMax. Mask PNGs have a size of their own and are
resized to the image. Where `Rotation` is not zero the boxes are of the file as stored. Licence: images CC BY 2.0,
annotations CC BY 4.0.
"""

from __future__ import annotations

import csv
import io
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from stages.base import UnitError
from stages.ingest import jsonstream, rle
from stages.ingest.base import Adapter, Source, SourceError, batches
from stages.ingest.coco import bad, hint, listed
from stages.ingest.listing import MediaRoots, is_archive, list_files
from stages.media.images import read_bytes
from stages.media.probe import ListedMedia

_BOXES = ("ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax")
_MASKS = ("MaskPath", "ImageID", "LabelName", "BoxXMin", "BoxXMax", "BoxYMin", "BoxYMax")


def _media(source: Source) -> Iterator[ListedMedia]:
    seen: set[str] = set()
    for role, needed in (("boxes", _BOXES), ("masks", _MASKS)):
        for _, record in _records(source, role, needed):
            image = record.get("ImageID", "")
            if image and image not in seen:
                seen.add(image)
                found = source.roots.find(f"{image}.jpg")
                uri = found.uri if found else source.roots.missing_uri(f"{image}.jpg")
                size, etag = (found.num_bytes, found.etag) if found else (None, None)
                yield listed(source, uri, image, num_bytes=size, etag=etag, missing=found is None)


def _regions(source: Source) -> Iterator[pa.Table]:
    if not any(source.config.optional_annotation(role) for role in ("boxes", "masks")):
        raise SourceError(f"source {source.config.name}: format openimages needs annotations `boxes` or `masks`")
    yield from batches(_rows(source))


def _rows(source: Source) -> Iterator[dict[str, Any]]:
    classes, turned = _classes(source), _turned(source)
    for number, record in _records(source, "boxes", _BOXES):
        row = _common(source, record, f"boxes:{number}", classes, turned)
        if "bad" not in row:
            _box(record, row, ("XMin", "XMax", "YMin", "YMax"))
        row["is_group"] = record.get("IsGroupOf") == "1"
        if record.get("IsDepiction") == "1":
            row["hints"] = [*row.get("hints", []), hint("attribute", "a depiction (drawing, sculpture or the like)")]
        yield row
    images = _mask_images(source)
    for number, record in _records(source, "masks", _MASKS):
        name = record.get("MaskPath", "")
        row = _common(source, record, posixpath.splitext(name)[0] or f"masks:{number}", classes, turned)
        if "bad" not in row:
            _box(record, row, ("BoxXMin", "BoxXMax", "BoxYMin", "BoxYMax"))
            _mask(source, images, name, row)
        yield row


def _common(
    source: Source, record: Mapping[str, str], source_id: str, classes: Mapping[str, str] | None, turned: set[str]
) -> dict[str, Any]:
    image = record.get("ImageID", "")
    if not image:
        return bad(f"{source.config.name}#{source_id}", source_id, "bad_record", f"{source_id}: no ImageID")
    found = source.roots.find(f"{image}.jpg")
    uri = found.uri if found else source.roots.missing_uri(f"{image}.jpg")
    row: dict[str, Any] = {"uri": uri, "source_id": source_id, "source_media_id": image, "stored": image in turned}
    name = record.get("LabelName", "")
    if classes is None:
        row["label"] = name
    elif name in classes:
        row["label"] = classes[name]
        row["hints"] = [hint("label", classes[name])]
    else:
        row |= {"bad": "unknown_category", "message": f"{name!r:.60} is not among the class descriptions"}
    return row


def _box(record: Mapping[str, str], row: dict[str, Any], names: Sequence[str]) -> None:
    try:
        x0, x1, y0, y1 = (float(record[name]) for name in names)
    except (KeyError, ValueError) as error:
        row |= {"bad": "bad_record", "message": f"no box: {error}"}
        return
    row |= {"box": [x0, y0, x1, y1], "relative": True}


def _mask(source: Source, images: MediaRoots | None, name: str, row: dict[str, Any]) -> None:
    found = images.find(name) if images else None
    if found is None:
        row |= {"bad": "bad_record", "message": f"the mask {name!r:.80} is not among the mask images"}
        return
    try:
        data = read_bytes(found.uri, source.config.storage_options)
        with Image.open(io.BytesIO(data)) as image:
            mask = np.asarray(image.convert("L")) > 127
    except (UnitError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        row |= {"bad": "bad_record", "message": f"{found.uri}: {error}"[:300]}
        return
    if not mask.any():
        row |= {"bad": "empty_mask", "message": f"{found.uri}: no pixel is inside the mask"}
        return
    row |= {"mask": rle.of_mask(mask), "resize_mask": True}


def _mask_images(source: Source) -> MediaRoots | None:
    root = source.config.optional_annotation("mask_images")
    if root is None:
        return None
    if is_archive(root):
        return MediaRoots((root,), source.config.storage_options)
    archives = [item.uri for name, item in list_files(root, source.config.storage_options) if is_archive(name)]
    return MediaRoots(tuple(archives) or (root,), source.config.storage_options)


def _classes(source: Source) -> dict[str, str] | None:
    """MID -> name; the file has a header in some releases and none in others."""
    path = source.config.optional_annotation("classes")
    if path is None:
        return None
    with jsonstream.open_text(path, source.config.storage_options) as stream:
        rows = csv.reader(io.TextIOWrapper(stream, "utf-8", errors="replace", newline=""))
        return {row[0]: row[1].strip() for row in rows if len(row) >= 2 and row[0].startswith("/")}


def _turned(source: Source) -> set[str]:
    """Images whose `Rotation` says that they lie on their side."""
    path = source.config.optional_annotation("images")
    if path is None:
        return set()
    records = _csv(source, path, ("ImageID", "Rotation"))
    return {record["ImageID"] for _, record in records if record.get("Rotation") not in ("", "0", "0.0", "nan", None)}


def _records(source: Source, role: str, needed: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    path = source.config.optional_annotation(role)
    if path is not None:
        yield from _csv(source, path, needed)


def _csv(source: Source, path: str, needed: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """(row number from 1, record); rows of another length come as far as they go. Raises `SourceError`."""
    with jsonstream.open_text(path, source.config.storage_options) as stream:
        rows = csv.reader(io.TextIOWrapper(stream, "utf-8-sig", errors="replace", newline=""))
        try:
            header = next(rows, [])
            absent = [name for name in needed if name not in header]
            if absent:
                raise SourceError(f"{path}: needs the columns {list(needed)}, found {header[:20]}")
            for number, row in enumerate(rows, 1):
                if row:
                    yield number, dict(zip(header, row, strict=False))
        except (csv.Error, OSError, EOFError) as error:
            raise SourceError(f"{path}: cannot be read as CSV: {error}") from error


ADAPTER = Adapter(
    1, _media, _regions, benchmark_splits={"validation": "OpenImages validation", "test": "OpenImages test"}
)
