"""Taking a media out of what has been written: which shards hold it, and which rows of which tables.

The order of calls for `perceive forget MEDIA`:

    doomed = forget_media(tables, packed, indexes, media_key)   # pure
    ... drop doomed.rows from the tables, doomed.requests from the ledger ...
    strip_media(run_url, doomed.shards, media_key)              # rewrites or deletes them, returns their new facts
    ... replace doomed.shards' rows in `packed`, then plan_pack and finish_pack as ever ...
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from typing import Any

import fsspec
import polars as pl

from schemas.base import Key, Record
from stages.pack.tar import Written, write_tar

_LINKED = ("media", "media_refs", "regions", "selection", "masks", "events", "captions", "decisions")


class Forgotten(Record):
    """What names a media: row keys by table (hexadecimal), teacher requests, shards (paths in the run)."""

    media_key: Key
    rows: dict[str, list[str]]
    requests: list[str]
    shards: list[str]


def forget_media(
    tables: Mapping[str, pl.DataFrame], packed: pl.DataFrame, members: Mapping[str, list[bytes]], media_key: bytes
) -> Forgotten:
    """Everything that a run holds of a media.

    `tables` are rows by table name (all fingerprints, `scores/<group>` included), `packed` all rows of that table,
    `members` the media keys of each shard by its path (`shard_members`). Raises `LookupError` where nothing names it.
    """
    regions = _keys(tables, "regions", "media_key", [media_key], "region_key")
    captions = tables.get("captions", pl.DataFrame())
    about = captions.filter(pl.col("region_key").is_in(regions)) if len(captions) else captions
    caption_keys = about["caption_key"].unique().to_list() if len(about) else []
    rows: dict[str, list[str]] = {}
    for name, frame in tables.items():
        base = name.split("/")[0]
        column, wanted = _link(frame, media_key, regions, caption_keys)
        if column is None or (base not in _LINKED and base != "scores"):
            continue
        key_field = frame.columns[0] if base == "scores" else _KEY_FIELDS[base]
        found = _keys(tables, name, column, wanted, key_field)
        if found:
            rows[name] = sorted(key.hex() for key in found)
    requests = [] if not len(about) else about["request_digest"].drop_nulls().unique().to_list()
    shards = sorted(shard for shard, keys in members.items() if media_key in keys)
    known = set(packed["shard"]) if len(packed) else set()
    if not rows and not shards:
        raise LookupError(f"no table and no shard of this run names the media {media_key.hex()}")
    return Forgotten(
        media_key=media_key,
        rows=rows,
        requests=sorted(request.hex() for request in requests),
        shards=[shard for shard in shards if shard in known] + [shard for shard in shards if shard not in known],
    )


_KEY_FIELDS = {
    "media": "media_key",
    "media_refs": "ref_key",
    "regions": "region_key",
    "selection": "region_key",
    "masks": "mask_key",
    "events": "event_key",
    "captions": "caption_key",
    "decisions": "caption_key",
}


def _link(
    frame: pl.DataFrame, media_key: bytes, regions: list[bytes], captions: list[bytes]
) -> tuple[str | None, list[bytes]]:
    for column, wanted in (("media_key", [media_key]), ("region_key", regions), ("caption_key", captions)):
        if column in frame.columns:
            return column, wanted
    return None, []


def _keys(tables: Mapping[str, pl.DataFrame], table: str, column: str, wanted: list[bytes], key: str) -> list[bytes]:
    if table not in tables or not wanted or tables[table].is_empty():
        return []
    found: list[bytes] = tables[table].filter(pl.col(column).is_in(wanted))[key].drop_nulls().unique().to_list()
    return found


def shard_members(root: str, shards: list[str], options: dict[str, Any] | None = None) -> dict[str, list[bytes]]:
    """The media keys in each shard, read from its member names; shards that are gone are left out."""
    filesystem, base = fsspec.core.url_to_fs(root, **(options or {}))
    found: dict[str, list[bytes]] = {}
    for shard in shards:
        if filesystem.exists(f"{base}/{shard}"):
            with filesystem.open(f"{base}/{shard}", "rb") as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
                found[shard] = list(dict.fromkeys(bytes.fromhex(member.name.split(".")[0]) for member in archive))
    return found


def strip_media(
    root: str, shards: list[str], media_key: bytes, options: dict[str, Any] | None = None
) -> dict[str, Written | None]:
    """Rewrites shards without a media; a shard that held nothing else is deleted (None). Others' bytes do not change.

    Every name of the file (hard links of other packs are names of their own) must be given.
    """
    filesystem, base = fsspec.core.url_to_fs(root, **(options or {}))
    written: dict[str, Written | None] = {}
    for shard in shards:
        data = filesystem.cat_file(f"{base}/{shard}")
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            members = [(member.name, _content(archive, member)) for member in archive]
        kept = [(name, content) for name, content in members if not name.startswith(media_key.hex())]
        if kept:
            triples = [(bytes.fromhex(name[:32]), name.split(".", 1)[1], content) for name, content in kept]
            written[shard] = write_tar(f"{root.rstrip('/')}/{shard}", triples, options)
        else:
            filesystem.rm_file(f"{base}/{shard}")
            written[shard] = None
    return written


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(member)
    return stream.read() if stream is not None else b""
