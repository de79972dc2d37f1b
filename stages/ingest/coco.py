"""The COCO family: instances JSON of COCO itself and of LVIS v0.5 and v1.

COCO (https://cocodataset.org/#format-data): `bbox` is `[x, y, width, height]` in pixels, `segmentation` a list of
polygons, or run lengths for crowds. LVIS (https://www.lvisdataset.org/dataset): images carry `coco_url` and, in v0.5
only, `file_name`; categories carry `def`, `synset` and `synonyms`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa

from schemas.keys import digest_value
from schemas.media import MediaKind
from stages.ingest import jsonstream, rle
from stages.ingest.base import BATCH_ROWS, RAW_SCHEMA, Adapter, Source, SourceError, batches, numbers, xywh
from stages.ingest.jsonstream import BadItem
from stages.ingest.listing import Listed
from stages.ingest.plain import PlainAnnotations, merged
from stages.media.probe import ListedMedia

Row = dict[str, Any]
FileNames = Callable[[Mapping[str, Any]], tuple[str, ...]]
Category = Callable[[Mapping[str, Any]], tuple[str, list[dict[str, str]]]]
Extra = Callable[[Mapping[str, Any], Row, "Document"], None]


@dataclass(frozen=True)
class Flavour:
    """Where the members of the family differ: file names of an image, label and hints of a category, extra fields.

    `extra` is asked about annotations that have one of `odd_keys`, and not empty.
    """

    names: FileNames
    category: Category
    annotation_keys: tuple[str, ...] = ("id", "image_id", "category_id", "bbox")
    extra: Extra | None = None
    odd_keys: tuple[str, ...] = ()
    members: tuple[str, ...] = ()


class Image(NamedTuple):
    """An image entry, resolved."""

    uri: str
    media_id: str
    width: float | None
    height: float | None
    licence: str | None = None


@dataclass(frozen=True)
class Document:
    """What the annotations refer to: images, and each category's label and hints."""

    images: Mapping[Any, Image]
    categories: Mapping[Any, tuple[str, list[dict[str, str]]]]
    raw: Mapping[str, list[Any]]


def hint(kind: str, text: str, language: str = "en") -> dict[str, str]:
    """A hint's fields."""
    return {"kind": kind, "language": language, "text": text}


def spoken(name: str) -> str:
    """A category name as one says it: `car_(automobile)` becomes `car (automobile)`."""
    return " ".join(name.replace("_", " ").split())


def listed(source: Source, uri: str, media_id: str, kind: MediaKind = "image", **facts: Any) -> ListedMedia:
    """A listing entry of this source; not validated, because there are millions and `list_media` types its columns."""
    config = source.config
    facts = {"split": config.split, "licence": config.licence} | facts
    return ListedMedia.model_construct(
        uri_key=digest_value({"uri": uri}), uri=uri, kind=kind, source=config.name, source_media_id=media_id, **facts
    )


def image_names(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """`file_name` as written, then without the folders that some releases put before it."""
    name = entry.get("file_name")
    if not isinstance(name, str):
        return ()
    return (name, name.rpartition("/")[2])


def lvis_names(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """The path in `coco_url` (`train2017/000000391895.jpg`: validation images partly lie there), then its name."""
    url = entry.get("coco_url")
    names = image_names(entry)
    if not isinstance(url, str):
        return names
    parts = url.split("/")
    return ("/".join(parts[-2:]), parts[-1], *names)


def plain_category(entry: Mapping[str, Any]) -> tuple[str, list[dict[str, str]]]:
    """COCO: the name."""
    name = spoken(str(entry["name"]))
    return name, [hint("label", name)]


def lvis_category(entry: Mapping[str, Any]) -> tuple[str, list[dict[str, str]]]:
    """LVIS: the name, its synonyms, its definition."""
    name = spoken(str(entry["name"]))
    hints = [hint("label", name)]
    synonyms = entry.get("synonyms")
    for synonym in synonyms if isinstance(synonyms, list) else []:
        if isinstance(synonym, str) and spoken(synonym) != name:
            hints.append(hint("label", spoken(synonym)))
    if isinstance(entry.get("def"), str) and entry["def"].strip():
        hints.append(hint("definition", entry["def"].strip()))
    return name, hints


COCO = Flavour(image_names, plain_category)
LVIS = Flavour(lvis_names, lvis_category)


def adapter(flavour: Flavour, version: int = 1, benchmark_splits: Mapping[str, str] | None = None) -> Adapter:
    """The adapter of one member of the family."""

    def media(source: Source) -> Iterator[ListedMedia]:
        seen = set()
        for entry in itertools.chain.from_iterable(_pieces(source, flavour, "images")):
            image, found = _image(source, flavour, entry)
            if image is not None and image.uri not in seen:
                seen.add(image.uri)
                yield listed(
                    source,
                    image.uri,
                    image.media_id,
                    num_bytes=found.num_bytes if found else None,
                    etag=found.etag if found else None,
                    missing=found is None,
                )

    def regions(source: Source) -> Iterator[pa.Table]:
        document = read_document(source, flavour)
        yield from _tables(source, flavour, document)

    return Adapter(version, media, regions, benchmark_splits=benchmark_splits or {})


def read_document(source: Source, flavour: Flavour) -> Document:
    """Images and categories of the file, annotations passed over. Raises `SourceError` where they are not there."""
    path = source.config.annotation()
    raw: dict[str, list[Any]] = {}
    for name, piece in jsonstream.members(
        path, {"images", "categories", *flavour.members}, source.config.storage_options
    ):
        raw.setdefault(name, []).extend(piece if isinstance(piece, list) else [])
    for name in ("images", "categories"):
        if name not in raw:
            raise jsonstream.lacks(path, name, source.config.format, source.config.storage_options)
    images = {}
    for entry in raw.pop("images"):
        image, _ = _image(source, flavour, entry)
        if image is not None and isinstance(entry["id"], int | str):
            images[entry["id"]] = image
    categories = {}
    for entry in raw["categories"]:
        if isinstance(entry, dict) and isinstance(entry.get("id"), int | str) and isinstance(entry.get("name"), str):
            categories[entry["id"]] = flavour.category(entry)
    return Document(images, categories, raw)


def _pieces(source: Source, flavour: Flavour, member: str) -> Iterator[list[Any]]:
    path = source.config.annotation()
    found = False
    for _, piece in jsonstream.members(path, {member}, source.config.storage_options):
        found = True
        yield piece if isinstance(piece, list) else []
    if not found:
        raise jsonstream.lacks(path, member, source.config.format, source.config.storage_options)


def _image(source: Source, flavour: Flavour, entry: Any) -> tuple[Image | None, Listed | None]:
    """An entry's image and file; no image for an entry that names none: its annotations will say `unknown_image`."""
    if not isinstance(entry, dict) or "id" not in entry:
        return None, None
    names = flavour.names(entry)
    if not names:
        return None, None
    found = source.roots.find(*names)
    uri = found.uri if found else source.roots.missing_uri(names[0])
    return Image(uri, str(entry["id"]), _size(entry.get("width")), _size(entry.get("height"))), found


def _size(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) and value > 0 else None


def _tables(source: Source, flavour: Flavour, document: Document) -> Iterator[pa.Table]:
    """All annotations in order: plain ones by whole columns, the others one by one."""
    path, start = source.config.annotation(), 0
    columns = PlainAnnotations(document.images, document.categories, flavour.odd_keys)
    for piece in _pieces(source, flavour, "annotations"):
        if start == 0:
            _check_first(path, piece, flavour, source.config.format)
        for begin, end in _batches(len(piece)):
            entries = piece[begin:end]
            is_plain = [columns.plain(entry) for entry in entries]
            plain = columns.table([entry for entry, good in zip(entries, is_plain, strict=True) if good])
            if plain is None:
                plain, is_plain = RAW_SCHEMA.empty_table(), [False] * len(entries)
            numbered = zip(itertools.count(start + begin), entries, is_plain)
            odd = (annotation_row(path, at, entry, document, flavour) for at, entry, good in numbered if not good)
            yield merged(plain, batches(odd), is_plain)
        start += len(piece)


def _batches(length: int) -> Iterator[tuple[int, int]]:
    """Spans of `BATCH_ROWS`; a rest of less than half of that goes with the batch before it."""
    begin = 0
    while begin < length:
        end = length if length - begin < BATCH_ROWS + BATCH_ROWS // 2 else begin + BATCH_ROWS
        yield begin, end
        begin = end


def _check_first(path: str, piece: list[Any], flavour: Flavour, name: str) -> None:
    """Raises `SourceError` where the first annotation is not of the family."""
    first = next((entry for entry in piece if isinstance(entry, dict)), None)
    absent = [key for key in flavour.annotation_keys if first is not None and key not in first]
    if first is not None and len(absent) > 1:
        raise SourceError(
            f"{path}: the first annotation has the keys {sorted(first)}, {name} needs {list(flavour.annotation_keys)}"
        )


def annotation_row(path: str, index: int, entry: Any, document: Document, flavour: Flavour) -> Row:
    """One annotation as a raw region, good or bad."""
    if type(entry) is not dict:
        what = (
            f"{entry.error}: {entry.raw}" if isinstance(entry, BadItem) else f"expected an object, found {entry!r:.80}"
        )
        return bad(f"{path}#{index}", f"#{index}", "bad_record", f"annotation {index}: {what}")
    source_id = str(entry["id"]) if "id" in entry else f"#{index}"
    image = _lookup(document.images, entry.get("image_id"))
    if image is None:
        return bad(
            f"{path}#image_id={entry.get('image_id')!r:.40}",
            source_id,
            "unknown_image",
            f"annotation {source_id}: image_id {entry.get('image_id')!r:.40} is not among the images",
        )
    row: Row = {
        "uri": image.uri,
        "source_id": source_id,
        "source_media_id": image.media_id,
        "width": image.width,
        "height": image.height,
    }
    if entry.get("iscrowd"):
        row["is_crowd"] = True
    category = _lookup(document.categories, entry.get("category_id"))
    if category is None:
        row["bad"] = "unknown_category"
        row["message"] = f"category_id {entry.get('category_id')!r:.40} is not among the categories"
    else:
        row["label"], row["hints"] = category
    try:
        if "id" not in entry:
            raise ValueError("the annotation has no id")
        geometry(entry, row)
        if flavour.extra is not None:
            flavour.extra(entry, row, document)
    except rle.EmptyMask as error:
        row["bad"], row["message"] = "empty_mask", str(error)
    except ValueError as error:
        row["bad"], row["message"] = "bad_record", str(error)[:300]
    return row


def geometry(entry: Mapping[str, Any], row: Row) -> None:
    """Box, polygons or mask of a COCO annotation. Raises `ValueError`."""
    if entry.get("bbox") is not None:
        row["box"] = xywh(entry["bbox"])
    segmentation = entry.get("segmentation")
    if isinstance(segmentation, dict):
        row["mask"] = rle.record(segmentation)
    elif isinstance(segmentation, list) and segmentation:
        first = segmentation[0]
        if len(segmentation) == 1 and type(first) is list and len(first) >= 6 and not len(first) % 2:
            row["polygons"] = segmentation
            return
        rings = segmentation if isinstance(segmentation[0], list) else [segmentation]
        rings = [ring for ring in rings if ring]
        if any(len(ring) % 2 or len(ring) < 6 for ring in rings if isinstance(ring, list)):
            rings = [numbers(ring) for ring in rings if isinstance(ring, list) and not len(ring) % 2 and len(ring) >= 6]
        row["polygons"] = rings or None
    elif segmentation is not None and segmentation != []:
        raise ValueError(f"segmentation must be polygons or run lengths, found {segmentation!r:.60}")
    if row.get("box") is None and row.get("polygons") is None and row.get("mask") is None:
        raise ValueError("neither a bbox nor a segmentation")


def bad(uri: str, source_id: str, reason: str, message: str) -> Row:
    """A record that names no media or cannot be read."""
    return {"uri": uri, "source_id": source_id, "source_media_id": "", "bad": reason, "message": message[:300]}


def _lookup(table: Mapping[Any, Any], key: Any) -> Any:
    return table.get(key) if type(key) is int or type(key) is str else None
