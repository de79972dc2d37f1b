"""Visual Genome (https://homes.cs.washington.edu/~ranjay/visualgenome/api.html): region phrases and objects.

Annotation roles: `regions` (region_descriptions.json), `objects` (objects.json, or attributes.json, which holds the
same objects with their attributes), `images` (image_data.json: sizes, URLs; optional), `splits`
(densecap_splits.json; optional). Either `regions` or `objects` or both. Regions say `width`, `height`; objects `w`,
`h`; both spellings are read. Boxes may leave the image and are clamped. About half of the photos are COCO's. The
option `max_words` passes over longer phrases. CC BY 4.0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from stages.ingest import jsonstream
from stages.ingest.base import Adapter, Source, SourceError, batches, numbers
from stages.ingest.coco import bad, hint, listed
from stages.ingest.jsonstream import BadItem
from stages.media.probe import ListedMedia

_LISTS = {"regions": ("regions",), "objects": ("attributes", "objects")}
_IDS = {"regions": "region_id", "objects": "object_id"}


def _media(source: Source) -> Iterator[ListedMedia]:
    images = _images(source)
    seen = set()
    for role in _LISTS:
        for _, entry in _entries(source, role):
            number = _image_id(entry)
            if number is not None and number not in seen:
                seen.add(number)
                uri, size, etag, missing = _file(source, number, images)
                yield listed(source, uri, str(number), num_bytes=size, etag=etag, missing=missing)


def _regions(source: Source) -> Iterator[pa.Table]:
    if not any(source.config.optional_annotation(role) for role in _LISTS):
        raise SourceError(f"source {source.config.name}: format visual_genome needs annotations `regions` or `objects`")
    yield from batches(_rows(source))


def _rows(source: Source) -> Iterator[dict[str, Any]]:
    images, splits = _images(source), _splits(source)
    for role, names in _LISTS.items():
        path = source.config.optional_annotation(role)
        for index, entry in _entries(source, role):
            number = _image_id(entry)
            inner = next((entry[name] for name in names if isinstance(entry, dict) and name in entry), None)
            if number is None or not isinstance(inner, list):
                if index == 0:
                    found = sorted(entry) if isinstance(entry, dict) else type(entry).__name__
                    raise SourceError(f"{path}: an entry needs an image id and {names[-1]!r}, found {found}")
                yield bad(f"{path}#{index}", f"{role}#{index}", "bad_record", f"entry {index} has no image or no list")
                continue
            uri, _, _, _ = _file(source, number, images)
            facts = images.get(number, {})
            same = {
                "uri": uri, "source_media_id": str(number), "width": _size(facts.get("width")),
                "height": _size(facts.get("height")),
            }  # fmt: skip
            if splits is not None:
                same["split"] = splits.get(number, "none")
                if same["split"] != source.config.split and source.config.split != "all":
                    same |= {"bad": "other_split", "message": f"the image is of the split {same['split']}"}
            for place, record in enumerate(inner):
                yield _row(source, role, record, same, f"{number}#{place}")


def _row(source: Source, role: str, record: Any, same: dict[str, Any], place: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        return {**same, "source_id": f"{role}:{place}", "bad": "bad_record", "message": f"no object but {record!r:.60}"}
    number = record.get(_IDS[role], record.get("id"))
    row = {**same, "source_id": f"{role}:{number if isinstance(number, int | str) else place}"}
    try:
        x, y = numbers([record.get("x"), record.get("y")])
        w, h = numbers([record.get("width", record.get("w")), record.get("height", record.get("h"))])
        row["box"] = [x, y, x + w, y + h]
        if role == "regions":
            _phrase(source, record, row)
        else:
            _object(record, row)
    except ValueError as error:
        row |= {"bad": row.get("bad") or "bad_record", "message": row.get("message") or str(error)[:300]}
    return row


def _phrase(source: Source, record: Mapping[str, Any], row: dict[str, Any]) -> None:
    phrase = record.get("phrase")
    if not isinstance(phrase, str) or not phrase.strip():
        raise ValueError("the region has no phrase")
    row["hints"] = [hint("phrase", " ".join(phrase.split()))]
    limit = source.config.options.get("max_words")
    if isinstance(limit, int) and len(phrase.split()) > limit:
        row.setdefault("bad", "phrase_too_long")
        row.setdefault("message", f"the phrase has over {limit} words")


def _object(record: Mapping[str, Any], row: dict[str, Any]) -> None:
    names = [name.strip() for name in _texts(record.get("names")) or _texts([record.get("name")]) if name.strip()]
    if not names:
        raise ValueError("the object has no name")
    row["label"] = names[0]
    attributes = dict.fromkeys(text.strip().lower() for text in _texts(record.get("attributes")) if text.strip())
    row["hints"] = [*(hint("label", name) for name in names), *(hint("attribute", text) for text in attributes)]


def _texts(value: Any) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _entries(source: Source, role: str) -> Iterator[tuple[int, Any]]:
    path = source.config.optional_annotation(role)
    if path is not None:
        yield from enumerate(jsonstream.items(path, source.config.storage_options))


def _image_id(entry: Any) -> int | None:
    if isinstance(entry, BadItem) or not isinstance(entry, dict):
        return None
    number = entry.get("image_id", entry.get("id"))
    return number if isinstance(number, int) and not isinstance(number, bool) else None


def _images(source: Source) -> dict[int, Mapping[str, Any]]:
    path = source.config.optional_annotation("images")
    if path is None:
        return {}
    keep = ("width", "height", "url")
    found: dict[int, Mapping[str, Any]] = {}
    for entry in jsonstream.items(path, source.config.storage_options):
        number = _image_id(entry)
        if number is not None:
            found[number] = {name: entry.get(name) for name in keep}
    return found


def _file(
    source: Source, number: int, images: Mapping[int, Mapping[str, Any]]
) -> tuple[str, int | None, str | None, bool]:
    url = images.get(number, {}).get("url")
    names = ["/".join(url.split("/")[-2:])] if isinstance(url, str) else []
    names += [f"VG_100K/{number}.jpg", f"VG_100K_2/{number}.jpg", f"{number}.jpg"]
    found = source.roots.find(*names)
    if found is None:
        return source.roots.missing_uri(names[0]), None, None, True
    return found.uri, found.num_bytes, found.etag, False


def _splits(source: Source) -> dict[int, str] | None:
    path = source.config.optional_annotation("splits")
    if path is None:
        return None
    document = jsonstream.load(path, source.config.storage_options)
    if not isinstance(document, dict) or not all(isinstance(ids, list) for ids in document.values()):
        raise SourceError(f"{path}: expected an object of split -> image ids")
    return {number: split for split, ids in document.items() for number in ids if isinstance(number, int)}


def _size(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else None


ADAPTER = Adapter(1, _media, _regions, options=("max_words",), benchmark_splits={"test": "VG dense captioning test"})
