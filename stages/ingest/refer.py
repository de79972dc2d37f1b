"""Referring expressions on COCO train2014: RefCOCO, RefCOCO+, RefCOCOg, gRefCOCO, Google Refexp.

`refer` (https://github.com/lichengunc/refer): role `refs` is `refs(unc).p`, `refs(umd).p` or `refs(google).p`, a
Python 2 pickle, or the same as JSON; role `instances` is its `instances.json`. `grefcoco` (https://github.com/henghuiding/ReLA):
role `refs` is `grefs(unc).json`; a reference may have no target (`[-1]`) or several, whose union is the region
(option `several: union | skip`). One region a reference, all its sentences as phrases. Records of another split than
the source's are passed over (`other_split`), so that test references never train; `split: all` takes every one. Photos
are found by image id: `file_name` in the references carries an annotation suffix.

`google_refexp` (https://github.com/mjhucla/Google_Refexp_toolbox): one file of mappings `images`, `annotations`,
`refexps`; the `_coco_aligned` file carries boxes and segmentations, the other needs role `instances`. CC BY 4.0.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

import numpy as np
import pyarrow as pa

from stages.ingest import jsonstream, rle, safe_pickle
from stages.ingest.base import Adapter, Source, SourceError, batches
from stages.ingest.coco import bad, geometry, hint, listed, spoken
from stages.media.probe import ListedMedia

_REF_KEYS = ("ref_id", "ann_id", "image_id", "sentences")


def _media(source: Source) -> Iterator[ListedMedia]:
    images = {ref["image_id"] for ref in _refs(source) if isinstance(ref, dict) and _is_id(ref.get("image_id"))}
    sizes = _instances(source, set(), images)[1]
    for number in sorted(images):
        yield _listed(source, number, sizes.get(number, {}))


def _listed(source: Source, number: int, entry: Mapping[str, Any]) -> ListedMedia:
    uri, size, etag, missing = _file(source, number, entry)
    return listed(source, uri, str(number), num_bytes=size, etag=etag, missing=missing)


def _file(source: Source, number: int, entry: Mapping[str, Any]) -> tuple[str, int | None, str | None, bool]:
    given = entry.get("file_name")
    names = [f"COCO_train2014_{number:012d}.jpg", f"{number:012d}.jpg"]
    if isinstance(given, str) and posixpath.basename(given) not in names:
        names.insert(0, given)
    found = source.roots.find(*names)
    if found is None:
        return source.roots.missing_uri(names[0]), None, None, True
    return found.uri, found.num_bytes, found.etag, False


def _regions(source: Source) -> Iterator[pa.Table]:
    yield from batches(_rows(source))


def _refs(source: Source) -> list[Any]:
    """The reference records. Raises `SourceError` for a file of another kind, with the keys found."""
    path = source.config.annotation("refs")
    if path.endswith((".json", ".json.gz")):
        refs = jsonstream.load(path, source.config.storage_options)
    else:
        with jsonstream.open_text(path, source.config.storage_options) as stream:
            refs = safe_pickle.load(stream.read(), path)
    if not isinstance(refs, list):
        raise SourceError(f"{path}: expected a list of references, found {type(refs).__name__}")
    first = next(iter(refs), None)
    if isinstance(first, dict) and any(name not in first for name in _REF_KEYS):
        raise SourceError(f"{path}: a reference needs {list(_REF_KEYS)}, found {sorted(map(str, first))}")
    return refs


def _instances(
    source: Source, wanted: set[Any], images: set[Any]
) -> tuple[dict[int, Mapping[str, Any]], dict[int, Mapping[str, Any]], dict[int, str]]:
    """Annotations that references name, image entries, category names, out of `instances.json`."""
    path = source.config.annotation("instances")
    annotations: dict[int, Mapping[str, Any]] = {}
    sizes: dict[int, Mapping[str, Any]] = {}
    categories: dict[int, str] = {}
    members = {"images", "categories"} | ({"annotations"} if wanted else set())
    for name, piece in jsonstream.members(path, members, source.config.storage_options):
        for entry in piece if isinstance(piece, list) else []:
            if not isinstance(entry, dict) or not _is_id(entry.get("id")):
                continue
            if name == "annotations" and entry["id"] in wanted:
                annotations[entry["id"]] = entry
            elif name == "images" and entry["id"] in images:
                sizes[entry["id"]] = entry
            elif name == "categories" and isinstance(entry.get("name"), str):
                categories[entry["id"]] = spoken(entry["name"])
    return annotations, sizes, categories


def _rows(source: Source) -> Iterator[dict[str, Any]]:
    refs = _refs(source)
    records = [ref for ref in refs if isinstance(ref, dict)]
    wanted = {number for ref in records for number in _targets(ref)}
    images = {ref["image_id"] for ref in records if _is_id(ref.get("image_id"))}
    annotations, sizes, categories = _instances(source, wanted, images)
    path = source.config.annotation("refs")
    for index, ref in enumerate(refs):
        if not isinstance(ref, dict) or not _is_id(ref.get("image_id")):
            yield bad(f"{path}#{index}", f"#{index}", "bad_record", f"reference {index} names no image")
            continue
        number = ref["image_id"]
        entry = sizes.get(number, {})
        row: dict[str, Any] = {
            "uri": _file(source, number, entry)[0],
            "source_id": str(ref.get("ref_id", f"#{index}")),
            "source_media_id": str(number),
            "width": _size(entry.get("width")),
            "height": _size(entry.get("height")),
            "hints": _phrases(ref.get("sentences")),
        }
        yield _targeted(source, ref, row, annotations, categories)


def _targeted(
    source: Source, ref: Mapping[str, Any], row: dict[str, Any], annotations: Mapping[int, Mapping[str, Any]],
    categories: Mapping[int, str],
) -> dict[str, Any]:  # fmt: skip
    split = ref.get("split")
    if isinstance(split, str):
        row["split"] = split
        if source.config.split not in (split, "all"):
            return row | {"bad": "other_split", "message": f"the reference is of the split {split}"}
    targets = _targets(ref)
    if not targets:
        return row | {"bad": "no_target", "message": "the expression refers to nothing in the image"}
    if len(targets) > 1 and source.config.options.get("several", "union") == "skip":
        return row | {"bad": "several_targets", "message": f"the expression refers to {len(targets)} objects"}
    absent = [number for number in targets if number not in annotations]
    if absent:
        return row | {"bad": "unknown_annotation", "message": f"ann_id {absent[:5]} is not among the instances"}
    try:
        union([annotations[number] for number in targets], row)
    except rle.EmptyMask as error:
        return row | {"bad": "empty_mask", "message": str(error)}
    except ValueError as error:
        return row | {"bad": "bad_record", "message": str(error)[:300]}
    names = {_category(categories, annotations[number]) for number in targets}
    label = names.pop() if len(names) == 1 else None
    if label is not None:
        row["label"] = label
        row["hints"] = [hint("label", label), *row["hints"]]
    return row


def union(annotations: list[Mapping[str, Any]], row: dict[str, Any]) -> None:
    """Box and mask of one or several COCO annotations as one region. Raises `ValueError`."""
    parts: list[dict[str, Any]] = []
    for annotation in annotations:
        part: dict[str, Any] = {}
        geometry(annotation, part)
        parts.append(part)
    boxes = [part["box"] for part in parts if part.get("box") is not None]
    if len(boxes) == len(parts):
        row["box"] = [
            min(b[0] for b in boxes),
            min(b[1] for b in boxes),
            max(b[2] for b in boxes),
            max(b[3] for b in boxes),
        ]
    if all(part.get("polygons") for part in parts):
        row["polygons"] = [ring for part in parts for ring in part["polygons"]]
    elif all(part.get("mask") for part in parts):
        row["mask"] = _union_mask([part["mask"] for part in parts])


def _union_mask(masks: list[dict[str, Any]]) -> dict[str, Any]:
    if len(masks) == 1:
        return masks[0]
    if len({tuple(mask["size"]) for mask in masks}) > 1:
        raise ValueError("the targets' masks differ in size")
    decoded = [rle.decode(*rle.runs_of(mask)) for mask in masks]
    return rle.of_mask(np.logical_or.reduce(decoded))


def _targets(ref: Mapping[str, Any]) -> list[int]:
    """The annotation ids of a reference; none for `-1`, `[-1]` and `no_target`."""
    given = ref.get("ann_id")
    numbers = given if isinstance(given, list | tuple) else [given]
    if ref.get("no_target") is True:
        return []
    return [number for number in dict.fromkeys(n for n in numbers if _is_id(n)) if number >= 0]


def _category(categories: Mapping[int, str], annotation: Mapping[str, Any]) -> str | None:
    number = annotation.get("category_id")
    return categories.get(number) if _is_id(number) else None


def _phrases(sentences: Any) -> list[dict[str, str]]:
    texts = []
    for sentence in sentences if isinstance(sentences, list | tuple) else []:
        text = sentence.get("raw") or sentence.get("sent") if isinstance(sentence, dict) else sentence
        if isinstance(text, str) and text.strip():
            texts.append(" ".join(_unmangled(text).split()))
    return [hint("phrase", text) for text in dict.fromkeys(texts)]


def _unmangled(text: str) -> str:
    """Python 2 byte strings come as latin-1; where they were UTF-8, they are read as that."""
    try:
        return text.encode("latin1").decode("utf-8")
    except (UnicodeEncodeError, UnicodeDecodeError):
        return text


def _is_id(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _size(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else None


def _google_media(source: Source) -> Iterator[ListedMedia]:
    seen: set[int] = set()
    for _, entry in _google(source, "annotations"):
        number = entry.get("image_id") if isinstance(entry, dict) else None
        if _is_id(number) and number not in seen:
            seen.add(number)
            yield _listed(source, number, {})


def _google_regions(source: Source) -> Iterator[pa.Table]:
    yield from batches(_google_rows(source))


def _google_path(source: Source) -> str:
    return source.config.annotation(None if isinstance(source.config.annotations, str) else "refs")


def _google(source: Source, member: str) -> Iterator[tuple[str, Any]]:
    path = _google_path(source)
    found = False
    for _, piece in jsonstream.members(path, {member}, source.config.storage_options):
        found = True
        if isinstance(piece, list):
            if piece and not isinstance(piece[0], tuple):
                raise SourceError(f"{path}: {member!r} must map ids to records, found a list")
            yield from piece
    if not found:
        raise jsonstream.lacks(path, member, source.config.format, source.config.storage_options)


_GOOGLE_KEYS = ("annotation_id", "image_id", "refexp_ids")


def _google_rows(source: Source) -> Iterator[dict[str, Any]]:
    images = {str(key): entry for key, entry in _google(source, "images") if isinstance(entry, dict)}
    texts = {str(key): entry.get("raw") for key, entry in _google(source, "refexps") if isinstance(entry, dict)}
    has_instances = source.config.optional_annotation("instances") is not None
    instances: Mapping[int, Mapping[str, Any]] = {}
    categories: Mapping[int, str] = {}
    if has_instances:
        wanted = {int(key) for key, _ in _google(source, "annotations") if key.isdigit()}
        instances, _, categories = _instances(source, wanted, set())
    first = True
    for key, entry in _google(source, "annotations"):
        if first and isinstance(entry, dict):
            first = False
            absent = [name for name in _GOOGLE_KEYS if name not in entry]
            if len(absent) == len(_GOOGLE_KEYS):
                path = _google_path(source)
                raise SourceError(f"{path}: an annotation needs {list(_GOOGLE_KEYS)}, {key} has {sorted(entry)}")
        number = entry.get("image_id") if isinstance(entry, dict) else None
        if not isinstance(entry, dict) or not _is_id(number):
            yield bad(f"{source.config.name}#{key}", str(key), "bad_record", f"annotation {key} names no image")
            continue
        image = images.get(str(number), {})
        given = entry.get("refexp_ids")
        raw = [texts.get(str(item)) for item in given] if isinstance(given, list) else []
        row: dict[str, Any] = {
            "uri": _file(source, number, {})[0],
            "source_id": str(entry.get("annotation_id", key)),
            "source_media_id": str(number),
            "width": _size(image.get("width")),
            "height": _size(image.get("height")),
            "hints": _phrases(raw),
        }
        target = instances.get(int(key), {}) if str(key).isdigit() else {}
        label = _category(categories, entry) or _category(categories, target)
        if label is not None:
            row["label"], row["hints"] = label, [hint("label", label), *row["hints"]]
        try:
            geometry(entry if entry.get("bbox") is not None else target, row)
        except rle.EmptyMask as error:
            row |= {"bad": "empty_mask", "message": str(error)}
        except ValueError as error:
            row |= {"bad": "bad_record", "message": f"{error}; the file that is not aligned needs role `instances`"}
        yield row


_BENCHMARKS = {
    "val": "RefCOCO/+/g val", "test": "RefCOCOg test", "testA": "RefCOCO/+ testA", "testB": "RefCOCO/+ testB",
}  # fmt: skip
REFER = Adapter(1, _media, _regions, benchmark_splits=_BENCHMARKS)
GREFCOCO = Adapter(1, _media, _regions, options=("several",), benchmark_splits=_BENCHMARKS)
GOOGLE_REFEXP = Adapter(1, _google_media, _google_regions, benchmark_splits={"val": "Google Refexp val"})
