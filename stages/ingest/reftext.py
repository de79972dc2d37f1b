"""RefText (scene text in images, 4,594 photos): `reftext_{train,val,test,...}.pth`.

A `torch.save` file of tuples `(image file, sample id, [x, y, width, height], phrase, attributes)`, read through the
restricted unpickler: neither torch nor the release's own modules are needed. One region a tuple.
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


def _records(source: Source) -> list[Any]:
    path = source.config.annotation()
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
    path = source.config.annotation()
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
        except (ValueError, TypeError) as error:
            row |= {"bad": "bad_record", "message": str(error)[:300]}
        yield row


ADAPTER = Adapter(1, _media, _regions, benchmark_splits={"val": "RefText val", "test": "RefText test"})
