"""Records of media that were taken down: `forgotten/<media key>.json`. What names them anywhere else is a trace."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Collection, Iterator, Sequence
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.store import Store
from schemas.base import Key, Record
from schemas.keys import digest_bytes
from stages.media.probe import FORGOTTEN, TakenDown
from stages.teachers.segments import read_records

FOLDER = "forgotten"
_CONFIG = "config.yaml"
_GROUP = "group_key"
_CHUNK = 1 << 22
_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)


class Forgotten(Record):
    """One media that was taken down: how it is known again, and what there was to erase of it.

    `uris` and `sources` are the names under which sources gave it; `keys` those of all rows about it (regions, masks,
    events, captions) and `requests` what teachers were asked of it, so that what is left can be found after the rows
    are gone. `shards` and `packs` are those that held it. `done` says that all of it has been erased.
    """

    media_key: Key
    uris: list[str]
    sources: list[str]
    keys: list[Key]
    requests: list[Key]
    shards: list[str]
    packs: list[str]
    created: str
    done: bool = False

    @property
    def path(self) -> str:
        return f"{FOLDER}/{self.media_key.hex()}.json"


def forgotten(store: Store) -> list[Forgotten]:
    """The records of a run, by key."""
    paths = [info.path for info in store.files(FOLDER) if info.name.endswith(".json")]
    return [Forgotten.model_validate_json(data) for data in store.read_many(paths)]


def taken_down(store: Store) -> TakenDown:
    """What must not be ingested again."""
    records = forgotten(store)
    return TakenDown(
        frozenset(record.media_key for record in records), frozenset(uri for record in records for uri in record.uris)
    )


def traces(store: Store, records: Sequence[Forgotten]) -> Iterator[tuple[str, str]]:
    """(file, what it still holds) for every file of the run in which a media that was taken down can be found.

    Parquet files are searched column by column (nested ones too), ledgers reply by reply, shards member by member
    (pixels by their digest), all others (indexes, manifests, pages) byte by byte, for its keys, its requests and its
    URIs. Not looked at are: a column `group_key`, which names a group of near duplicates after the first of them, and
    which other members keep, since their split goes by it; for URIs, the configuration, which is the owner's own word,
    rows about another media that is or was found there, and what an ingest says of a media that was taken down.
    """
    if not records:
        return
    sought = _Sought(records)
    media, requests = sought.media, sought.requests
    for info in store.files(""):
        if info.path.startswith(f"{FOLDER}/"):
            continue
        with store.open(info.path) as stream:
            if info.path.endswith(".parquet"):
                found = _in_columns(stream, sought)
            elif info.path.endswith(".tar"):
                found = _in_shard(stream, media)
            elif info.path.startswith("ledger/") and info.path.endswith((".seg", ".wal")):
                found = _in_replies(stream, {key.hex() for key in media}, requests)
            else:
                found = _in_bytes(stream, sought, uris=info.path != _CONFIG)
        if found:
            yield info.path, found


class _Sought:
    """What names the media of some records: keys, requests, URIs (a pattern for each way in which they are written)."""

    def __init__(self, records: Sequence[Forgotten]) -> None:
        self.media = {record.media_key for record in records}
        self.requests = {request for record in records for request in record.requests}
        digests = {key for record in records for key in (record.media_key, *record.keys)} | self.requests
        uris = {uri for record in records for uri in record.uris}
        self.raw = pa.array(sorted(digests), pa.binary())
        self.texts = pa.array([digest.hex() for digest in sorted(digests)], pa.large_string())
        self.literals = [digest.hex().encode() for digest in sorted(digests)] + sorted(self.media)
        self.uris = _whole(uris) if uris else None
        written = uris | {json.dumps(uri)[1:-1] for uri in uris}
        self.written = re.compile(_whole(written).encode()) if uris else None
        self.longest = max([32, *(len(uri.encode()) + 3 for uri in written)])


def _whole(uris: Collection[str]) -> str:
    """A pattern of whole URIs: not the end of a longer path, nor the beginning of another name."""
    return rf"(?:^|[^\w./-])(?:{'|'.join(map(re.escape, sorted(uris)))})(?:$|[^\w./-]|\.(?:$|\W))"


def _in_columns(stream: IO[bytes], sought: _Sought) -> str | None:
    table = pq.ParquetFile(stream).read()  # not `read_table`, which brings pandas along
    about = _not_of_others(table, sought.media) if sought.uris else table.slice(0, 0)
    for name in table.column_names:
        if name == _GROUP:
            continue
        if any(_holds_key(leaf, sought) for leaf in _leaves(table[name])):
            return f"rows name it in column {name}"
        if any(_holds_uri(leaf, sought) for leaf in _leaves(about[name])):
            return f"rows name its URI in column {name}"
    return None


def _not_of_others(table: pa.Table, media: Collection[bytes]) -> pa.Table:
    """The rows in which a URI can only stand for one of the media."""
    if "media_key" in table.column_names and not pa.types.is_string(table["media_key"].type):
        keys = table["media_key"].cast(pa.binary())
        table = table.filter(pc.or_(pc.is_null(keys), pc.is_in(keys, value_set=pa.array(sorted(media), pa.binary()))))
    if "reason" in table.column_names:
        table = table.filter(pc.invert(pc.fill_null(pc.equal(table["reason"], FORGOTTEN), False)))
    return table


def _leaves(column: pa.ChunkedArray | pa.Array) -> Iterator[pa.Array]:
    """The plain arrays of a column, those inside of structs and lists too."""
    for array in column.chunks if isinstance(column, pa.ChunkedArray) else (column,):
        if pa.types.is_struct(array.type):
            for child in array.flatten():
                yield from _leaves(child)
        elif any(is_one(array.type) for is_one in _LISTS):
            yield from _leaves(array.flatten())
        elif pa.types.is_dictionary(array.type):
            yield from _leaves(array.dictionary_decode())
        else:
            yield array


def _holds_key(array: pa.Array, sought: _Sought) -> bool:
    if _is_text(array.type):
        return bool(pc.any(pc.is_in(array.cast(pa.large_string()), value_set=sought.texts)).as_py())
    if pa.types.is_fixed_size_binary(array.type) or pa.types.is_binary(array.type):
        return bool(pc.any(pc.is_in(array.cast(pa.binary()), value_set=sought.raw)).as_py())
    return False


def _holds_uri(array: pa.Array, sought: _Sought) -> bool:
    return bool(_is_text(array.type) and pc.any(pc.match_substring_regex(array, sought.uris)).as_py())


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _in_shard(stream: IO[bytes], media: Collection[bytes]) -> str | None:
    """Looks at the names, the records and the digests of a shard's members; a picture's digest is its media's key."""
    named = [key.hex() for key in media]
    with tarfile.open(fileobj=stream, mode="r:") as archive:
        for member in archive:
            content = archive.extractfile(member)
            data = content.read() if content is not None else b""
            told = member.name.endswith(".json") and any(name.encode() in data for name in named)
            if member.name.split(".")[0] in named or told or digest_bytes(data) in media:
                return f"member {member.name}"
    return None


def _in_replies(stream: IO[bytes], media: Collection[str], requests: Collection[bytes]) -> str | None:
    about = sum(entry.tags.get("media") in media or entry.request in requests for _, _, entry in read_records(stream))
    return f"{about} replies are about it" if about else None


def _in_bytes(stream: IO[bytes], sought: _Sought, uris: bool) -> str | None:
    """Searches a file in pieces that overlap by the longest needle."""
    tail = b""
    while piece := stream.read(_CHUNK):
        window = tail + piece
        if any(needle in window for needle in sought.literals):
            return "it is named there"
        if uris and sought.written and sought.written.search(window):
            return "its URI stands there"
        tail = window[-sought.longest :]
    return None
