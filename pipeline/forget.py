"""Taking media down: out of tables, ledger, shards, packs and reports, for good.

A record (`pipeline.forgotten`) is written first; it keeps the media from being ingested again and says what there is
to erase. Every step after it can be killed and repeated: `forget` again, or the next build, goes on where it ended.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Mapping, Sequence

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.commits import PartInfo, read_log, write_part
from pipeline.engine import LEDGER
from pipeline.forgotten import Forgotten, forgotten
from pipeline.lease import DEFAULT_TTL_S
from pipeline.snapshot import encode_tombstones, path_of, read_snapshot, read_tombstones
from pipeline.store import Store
from pipeline.tables import Run, View, Writer
from schemas.base import Record
from stages.failpoints import failpoint
from stages.media.probe import FORGOTTEN
from stages.pack.forget import PACKS, holding, packs_of, restate_pack, strip_shard
from stages.pack.plan import MEDIA_FOLDER
from stages.pack.tar import sweep_unfinished
from stages.teachers.cache import forget as forget_replies
from stages.teachers.jobs import JobFolder

REPORT = "report"
_PACKED = "packed"
_LINKS = ("media_key", "region_key", "caption_key")


class UnknownMediaError(LookupError):
    """Nothing in the run goes by a name; the message says which names are tried."""


class ForgetReport(Record):
    """What was erased, or with `dry_run` would be: rows by table (all fingerprints), replies, shards, packs.

    `duplicates` are other media of the run that look the same (their keys, hexadecimal); they stay.
    """

    dry_run: bool
    media: list[Forgotten]
    rows: dict[str, int]
    replies: int
    duplicates: list[str]


def forget(
    run: Run, names: Sequence[str], dry_run: bool = False, holder: str = "perceive forget", ttl_s: float = DEFAULT_TTL_S
) -> ForgetReport:
    """Takes media down, each named by its key (hexadecimal), by a URI, or by its id in a source.

    What a source itself holds (annotation files, original media) is not touched. Raises `UnknownMediaError` for a name
    that nothing goes by, `LeaseHeld` while a driver works on the run (a dry run needs no lease).
    """
    if dry_run:
        records = _records(run.store, run.view(), names)
        return _report(run.store, records, True, _rows(run.store, records), 0)
    with run.writer(holder, ttl_s) as writer:
        records = _records(writer.store, writer.view(), names)
        rows = _rows(writer.store, records)
        report = _report(writer.store, records, False, rows, 0)
        for record in records:
            writer.store.write_durable(
                record.path, record.model_copy(update={"done": False}).model_dump_json().encode()
            )
            failpoint("forget.recorded")
        return report.model_copy(update={"replies": _erase(writer, records)})


def finish_forgetting(writer: Writer) -> int:
    """Ends what a killed `forget` began; returns of how many media."""
    records = [record for record in forgotten(writer.store) if not record.done]
    if records:
        _erase(writer, records)
    return len(records)


# What there is of a media


def _records(store: Store, view: View, names: Sequence[str]) -> list[Forgotten]:
    """The records to be written; of a media that was taken down before, its old record joined with what is there."""
    earlier = {record.media_key: record for record in forgotten(store)}
    keys = list(dict.fromkeys(_resolved(view, name, earlier) for name in names))
    shards = {key: holding(store.url, [key], store.storage_options) for key in keys}
    indexed = _indexed(store, keys)
    return [_record(view, key, earlier.get(key), shards[key], indexed[key]) for key in keys]


def _resolved(view: View, name: str, earlier: Mapping[bytes, Forgotten]) -> bytes:
    """The media key that a name stands for."""
    found: set[bytes] = set()
    if len(name) >= 8 and not set(name) - set("0123456789abcdef"):
        found |= {key for key in earlier if key.hex().startswith(name)}
        media = _every(view, "media", ["media_key"])
        found |= set(media.filter(pl.col("media_key").bin.encode("hex").str.starts_with(name))["media_key"])
    refs = _every(view, "media_refs", ["media_key", "uri", "source_media_id"])
    probes = _every(view, "probes", ["media_key", "uri"])
    found |= set(refs.filter((pl.col("uri") == name) | (pl.col("source_media_id") == name))["media_key"].drop_nulls())
    found |= set(probes.filter(pl.col("uri") == name)["media_key"].drop_nulls())
    found |= {key for key, record in earlier.items() if name in record.uris}
    if not found:
        raise UnknownMediaError(f"{name}: no media of this run has this key, this URI or this id in a source")
    if len(found) > 1:
        keys = ", ".join(sorted(key.hex() for key in found)[:8])
        raise UnknownMediaError(f"{name} stands for {len(found)} media ({keys}); name them by their keys")
    return found.pop()


def _record(view: View, key: bytes, earlier: Forgotten | None, shards: list[str], packs: list[str]) -> Forgotten:
    refs = _every(view, "media_refs", ["media_key", "uri", "source"]).filter(pl.col("media_key") == key)
    probed = _every(view, "probes", ["media_key", "uri"]).filter(pl.col("media_key") == key)
    keys: set[bytes] = set()
    requests: set[bytes] = set()
    for table, key_field in (("regions", "region_key"), ("masks", "mask_key"), ("events", "event_key")):
        keys |= set(_every(view, table, ["media_key", key_field]).filter(pl.col("media_key") == key)[key_field])
    captions = _every(view, "captions", ["media_key", "caption_key", "request_digest"])
    captions = captions.filter(pl.col("media_key") == key)
    keys |= set(captions["caption_key"])
    requests |= set(captions["request_digest"].drop_nulls())
    found = Forgotten(
        media_key=key,
        uris=sorted({*refs["uri"], *probed["uri"]}),
        sources=sorted(set(refs["source"])),
        keys=sorted(keys),
        requests=sorted(requests),
        shards=shards,
        packs=sorted({*packs, *(shard.split("/")[1] for shard in shards if shard.startswith(f"{PACKS}/"))}),
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )
    if earlier is None:
        return found
    lists = ("uris", "sources", "keys", "requests", "shards", "packs")
    both = {name: sorted({*getattr(earlier, name), *getattr(found, name)}) for name in lists}
    return earlier.model_copy(update={**both, "done": False})


def _every(view: View, table: str, columns: list[str]) -> pl.DataFrame:
    """These columns of all rows of a table, whatever their fingerprint; empty where there is no such table."""
    if table not in view.tables:
        return pl.DataFrame(schema={name: pl.Binary if name.endswith(("_key", "_digest")) else pl.String
                                    for name in columns})  # fmt: skip
    return view.rows(table, None, columns).collect()


def _indexed(store: Store, keys: Sequence[bytes]) -> dict[bytes, list[str]]:
    """The finished packs whose shards or sampling index name each media."""
    found: dict[bytes, list[str]] = {key: [] for key in keys}
    for pack_id in packs_of(store.url, store.storage_options):
        data = store.read(f"{PACKS}/{pack_id}/regions.parquet")
        named = set(pl.read_parquet(io.BytesIO(data), columns=["media_key"])["media_key"].unique())
        for key in keys:
            if key.hex() in named:
                found[key].append(pack_id)
    return found


# Erasing it


def _erase(writer: Writer, records: Sequence[Forgotten]) -> int:
    """Erases what the records name; returns the replies that went. Each step finds by itself what is left to do."""
    store = writer.store
    keys = [record.media_key for record in records]
    requests = [request for record in records for request in record.requests]
    ledger = f"{store.url}/{LEDGER}"
    replies = forget_replies(ledger, keys, requests, store.storage_options)
    JobFolder(f"{ledger}/jobs", store.storage_options).forget(requests)
    failpoint("forget.ledger")
    _strip_packs(store, records)
    _drop_rows(writer, records)
    _drop_tombstones(writer, records)
    failpoint("forget.rows")
    store.delete([info.path for info in store.files(REPORT)])
    _read_again(writer, {source for record in records for source in record.sources})
    writer.sweep()
    for record in records:
        failpoint("forget.done")
        store.write_durable(record.path, record.model_copy(update={"done": True}).model_dump_json().encode())
    return replies


def _strip_packs(store: Store, records: Sequence[Forgotten]) -> None:
    keys = [record.media_key for record in records]
    shards = sorted({shard for record in records for shard in record.shards})
    for folder in (PACKS, MEDIA_FOLDER):
        sweep_unfinished(f"{store.url}/{folder}", store.storage_options)
    for shard in shards:
        strip_shard(store.url, shard, keys, store.storage_options)
        failpoint("forget.shard")
    finished = packs_of(store.url, store.storage_options)
    for pack_id in _touched(store, finished, shards, {pack for record in records for pack in record.packs}):
        restate_pack(store.url, pack_id, _shards_of(store, pack_id, shards), keys, store.storage_options)
        failpoint("forget.pack")


def _touched(store: Store, finished: Sequence[str], shards: Sequence[str], named: set[str]) -> list[str]:
    """Finished packs that held one of the media, or list a shard that did (media shards are shared by packs)."""
    return [pack for pack in finished if pack in named or _shards_of(store, pack, shards)]


def _shards_of(store: Store, pack_id: str, shards: Sequence[str]) -> list[str]:
    """Those of the shards that a pack's manifest lists."""
    listed = store.read(f"{PACKS}/{pack_id}/manifest.json")
    return [shard for shard in shards if f'"{shard}"'.encode() in listed]


def _drop_rows(writer: Writer, records: Sequence[Forgotten]) -> None:
    """Writes the parts that hold rows of the media anew without them, and makes them count all at one moment."""
    replaced: dict[str, PartInfo | None] = {}
    for commit in writer.commits():
        part = commit.part
        rows = _read(writer.store, part.path)
        kept = rows.filter(pc.invert(_about(part.table, rows, records)))
        if len(kept) == len(rows):
            continue
        replaced[part.path] = (
            write_part(writer.store, part.table, writer.epoch, kept, part.key_field) if len(kept) else None
        )
        failpoint("forget.part")
    if replaced:
        writer.replace_parts(replaced)
        writer.store.delete(replaced)


def _read(store: Store, path: str) -> pa.Table:
    # Not `read_table`, which brings pandas along.
    return pq.ParquetFile(io.BytesIO(store.read(path))).read()


def _about(table: str, rows: pa.Table, records: Sequence[Forgotten]) -> pa.Array:
    """Which rows of a part are about one of the media; of `packed`, the shards that held one.

    A row without a media key is about the media whose URI it names (it could not be read then), unless it is what an
    ingest says of a media that was taken down.
    """
    keys = pa.array(sorted({key for record in records for key in (record.media_key, *record.keys)}), pa.binary())
    about = pa.array([False] * len(rows))
    for name in _LINKS:
        if name in rows.column_names:
            held = pc.is_in(rows[name].cast(pa.binary()), value_set=keys)
            about = pc.or_(about, held.combine_chunks() if isinstance(held, pa.ChunkedArray) else held)
    if "uri" in rows.column_names and "media_key" in rows.column_names:
        uris = pa.array(sorted({uri for record in records for uri in record.uris}), pa.string())
        named = pc.and_(pc.is_in(rows["uri"].cast(pa.string()), value_set=uris), pc.is_null(rows["media_key"]))
        said = pc.fill_null(pc.equal(rows["reason"], FORGOTTEN), False) if "reason" in rows.column_names else False
        about = pc.or_(about, pc.and_(named, pc.invert(said)).combine_chunks())
    if table == _PACKED:
        shards = pa.array(sorted({shard for record in records for shard in record.shards}), pa.string())
        media = {record.media_key for record in records}
        lost = [any(each["media_key"] in media for each in row or []) for row in rows["missing"].to_pylist()]
        about = pc.or_(pc.is_in(rows["shard"].combine_chunks(), value_set=shards), pa.array(lost, pa.bool_()))
    return about


def _rows(store: Store, records: Sequence[Forgotten]) -> dict[str, int]:
    """How many rows of each table are about the media."""
    found: dict[str, int] = {}
    for commit in read_log(store).commits:
        rows = _read(store, commit.part.path)
        count = pc.sum(_about(commit.part.table, rows, records)).as_py() or 0
        if count:
            found[commit.part.table] = found.get(commit.part.table, 0) + count
    return dict(sorted(found.items()))


def _drop_tombstones(writer: Writer, records: Sequence[Forgotten]) -> None:
    """Tombstones of rows that are gone hide nothing; the files of all snapshots are replaced without them."""
    keys = [key for record in records for key in (record.media_key, *record.keys)]
    paths = {read_snapshot(writer.store, path_of(number)).tombstones for number in writer.snapshots()}
    for path in sorted(path for path in paths if path is not None):
        before = read_tombstones(writer.store, path)
        after = before.filter(~pl.col("key").is_in(keys))
        if len(after) < len(before):
            writer.store.write_durable(path, encode_tombstones(after))


def _read_again(writer: Writer, sources: set[str]) -> None:
    """Makes the next build read these sources again, so that its accounts say what became of the media."""
    now = writer.current()
    if now is not None and sources & set(now.sources):
        left = {name: state for name, state in now.sources.items() if name not in sources}
        writer.snapshot(now.fingerprints, left, writer.view().tombstones(), now.pointers)


def _report(store: Store, records: list[Forgotten], dry_run: bool, rows: dict[str, int], replies: int) -> ForgetReport:
    return ForgetReport(
        dry_run=dry_run, media=records, rows=rows, replies=replies, duplicates=list(_duplicates(store, records))
    )


def _duplicates(store: Store, records: Sequence[Forgotten]) -> Iterator[str]:
    """Other media of the same near-duplicate groups."""
    keys = [record.media_key for record in records]
    media = _every(Run(store).view(), "media", ["media_key", "group_key"]).unique("media_key")
    groups = media.filter(pl.col("media_key").is_in(keys))["group_key"].to_list()
    others = media.filter(pl.col("group_key").is_in(groups) & ~pl.col("media_key").is_in(keys))
    yield from sorted(key.hex() for key in others["media_key"])
