"""Records of media that were taken down: `forgotten/<media key>.json`. What names them anywhere else is a trace."""

from __future__ import annotations

import tarfile
from collections.abc import Collection, Iterator, Sequence
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.store import Store
from schemas.base import Key, Record
from schemas.keys import digest_bytes
from stages.media.probe import TakenDown
from stages.teachers.segments import read_records

FOLDER = "forgotten"
_GROUP = "group_key"
_CHUNK = 1 << 22


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

    Parquet files are searched column by column, ledgers reply by reply, shards member by member (pixels by their
    digest), all others (indexes, manifests, pages) byte by byte for its keys. A column `group_key` is not looked at: it
    names a group of near duplicates after the first of them, and other members keep it, since their split goes by it.
    """
    if not records:
        return
    keys = {key for record in records for key in (record.media_key, *record.keys)}
    media = {record.media_key for record in records}
    requests = {request for record in records for request in record.requests}
    needles = [key.hex().encode() for key in keys] + sorted(media)
    for info in store.files(""):
        if info.path.startswith(f"{FOLDER}/"):
            continue
        with store.open(info.path) as stream:
            if info.path.endswith(".parquet"):
                found = _in_columns(stream, keys | requests)
            elif info.path.endswith(".tar"):
                found = _in_shard(stream, media)
            elif info.path.startswith("ledger/") and info.path.endswith((".seg", ".wal")):
                found = _in_replies(stream, {key.hex() for key in media}, requests)
            else:
                found = _in_bytes(stream, needles)
        if found:
            yield info.path, found


def _in_columns(stream: IO[bytes], keys: Collection[bytes]) -> str | None:
    table = pq.ParquetFile(stream).read()  # not `read_table`, which brings pandas along
    raw, texts = pa.array(sorted(keys), pa.binary()), pa.array([key.hex() for key in keys])
    for name in table.column_names:
        column = table[name]
        if name == _GROUP:
            continue
        if pa.types.is_fixed_size_binary(column.type) or pa.types.is_binary(column.type):
            held = pc.is_in(column.cast(pa.binary()), value_set=raw)
        elif pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            held = pc.is_in(column.cast(pa.string()), value_set=texts)
        else:
            continue
        if count := pc.sum(held).as_py():
            return f"{count} rows name it in column {name}"
    return None


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


def _in_bytes(stream: IO[bytes], needles: Sequence[bytes]) -> str | None:
    """Searches a file in pieces that overlap by the longest needle."""
    overlap, tail = max(map(len, needles)) - 1, b""
    while piece := stream.read(_CHUNK):
        window = tail + piece
        if any(needle in window for needle in needles):
            return "it is named there"
        tail = window[-overlap:]
    return None
