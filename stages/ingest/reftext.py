"""RefText (scene text in images, 4,594 photos): `reftext_{train,val,test,...}.pth`.

A `torch.save` file of tuples `(image file, sample id, [x, y, width, height], phrase, attributes)`, read through the
restricted unpickler: neither torch nor the release's own modules are needed. One region a tuple. With two roles,
`records` is that file and `ocr` the recognized text (`google_ocr_results_reftext_rank_aggr.json`: by sample id a list
of `[text, [[x, y, width, height], ...]]`, as the loader of https://github.com/Buki2/STAN reads it): what lies on the
target becomes a hint.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from stages.ingest import jsonstream, safe_pickle
from stages.ingest.base import Adapter, Source, SourceError, batches, xywh
from stages.ingest.coco import bad, hint, listed
from stages.media.probe import ListedMedia

_FIELDS = 4


_ON_TARGET = 0.5
"""The share of a recognized text's box that must lie within the target's box."""


def _path(source: Source) -> str:
    return source.config.annotation(None if isinstance(source.config.annotations, str) else "records")


def _ocr(source: Source) -> dict[str, Any]:
    path = source.config.optional_annotation("ocr")
    if path is None:
        return {}
    found = jsonstream.load(path, source.config.storage_options)
    if not isinstance(found, dict):
        raise SourceError(f"{path}: expected an object of sample id -> recognized texts, found {type(found).__name__}")
    return found


def _written_on(box: list[float], found: Any) -> Iterator[str]:
    """The recognized texts that lie on the target. Raises `ValueError` for a list of another form."""
    if not isinstance(found, list):
        raise ValueError(f"recognized text: expected a list, found {found!r:.60}")
    for item in found:
        text, places = item if isinstance(item, list) and len(item) == 2 else (None, None)
        if not isinstance(text, str) or not isinstance(places, list):
            raise ValueError(f"recognized text: expected [text, boxes], found {item!r:.60}")
        if text.strip() and any(_share_within(xywh(place), box) >= _ON_TARGET for place in places):
            yield " ".join(text.split())


def _share_within(inner: list[float], outer: list[float]) -> float:
    wide = min(inner[2], outer[2]) - max(inner[0], outer[0])
    high = min(inner[3], outer[3]) - max(inner[1], outer[1])
    area = (inner[2] - inner[0]) * (inner[3] - inner[1])
    return max(wide, 0.0) * max(high, 0.0) / area if area > 0 else 0.0


def _records(source: Source) -> list[Any]:
    path = _path(source)
    with jsonstream.open_text(path, source.config.storage_options) as stream:
        records = safe_pickle.load(stream.read(), path)
    if not isinstance(records, list):
        raise SourceError(f"{path}: expected a list of tuples, found {type(records).__name__}")
    first = next(iter(records), None)
    if records and (not isinstance(first, list | tuple) or len(first) < _FIELDS):
        raise SourceError(f"{path}: expected (image, sample id, box, phrase, attributes), found {first!r:.100}")
    return records


def _media(source: Source) -> Iterator[ListedMedia]:
    names = [item[0] for item in _records(source) if isinstance(item, list | tuple) and item]
    for name in dict.fromkeys(name for name in names if isinstance(name, str)):
        found = source.roots.find(name)
        if found is None:
            yield listed(source, source.roots.missing_uri(name), name, missing=True)
        else:
            yield listed(source, found.uri, name, num_bytes=found.num_bytes, etag=found.etag)


def _regions(source: Source) -> Iterator[pa.Table]:
    yield from batches(_rows(source))


def _rows(source: Source) -> Iterator[dict[str, Any]]:
    path, texts = _path(source), _ocr(source)
    for index, item in enumerate(_records(source)):
        if not isinstance(item, list | tuple) or len(item) < _FIELDS or not isinstance(item[0], str):
            yield bad(f"{path}#{index}", f"#{index}", "bad_record", f"record {index}: {item!r:.100}")
            continue
        name, sample, box, phrase = item[:_FIELDS]
        found = source.roots.find(name)
        row: dict[str, Any] = {
            "uri": found.uri if found else source.roots.missing_uri(name),
            "source_id": str(sample),
            "source_media_id": name,
        }
        try:
            row["box"] = xywh(box.tolist() if hasattr(box, "tolist") else list(box))
            if not isinstance(phrase, str) or not phrase.strip():
                raise ValueError("the record has no phrase")
            row["hints"] = [hint("phrase", " ".join(phrase.split()))]
            written = list(dict.fromkeys(_written_on(row["box"], texts.get(str(sample), []))))
            row["hints"] += [hint("attribute", f'bears the text "{text}"') for text in written]
        except (ValueError, TypeError) as error:
            row |= {"bad": "bad_record", "message": str(error)[:300]}
        yield row


ADAPTER = Adapter(2, _media, _regions, benchmark_splits={"val": "RefText val", "test": "RefText test"})
