"""Taking media out of shards and packs that have been written. Every step may be killed and repeated.

shards = holding(root, keys)                          # reads tar headers, no pixels
for shard in shards: strip_shard(root, shard, keys)   # rewritten without them, or deleted
for pack_id in packs: restate_pack(root, pack_id, shards, keys)
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Collection, Iterator
from typing import Any

import fsspec
import orjson
import polars as pl

from schemas.base import Record
from stages.failpoints import failpoint
from stages.pack.card import dataset_card
from stages.pack.finish import FAILED, MANIFEST, Made, count_rows, index_bytes, summary
from stages.pack.plan import MEDIA_FOLDER
from stages.pack.tar import write_bytes, write_tar

PACKS = "packs"
_INDEX = "regions.parquet"


class ShardFacts(Record):
    """What lies in a shard: its SHA-256, its bytes, the keys of its samples in order (placeholders included)."""

    sha256: str
    num_bytes: int
    keys: list[str]
    num_samples: int
    num_regions: int
    num_captions: int


def holding(root: str, media_keys: Collection[bytes], options: dict[str, Any] | None = None) -> list[str]:
    """The shards (paths in the run) of all packs, finished or not, that hold one of these media."""
    filesystem, base = fsspec.core.url_to_fs(root, **(options or {}))
    wanted = {key.hex() for key in media_keys}
    found = []
    for folder in (PACKS, MEDIA_FOLDER):
        for path in sorted(filesystem.find(f"{base}/{folder}")):
            if path.endswith(".tar"):
                with filesystem.open(path, "rb") as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
                    if any(_key(member) in wanted for member in archive):
                        found.append(path.removeprefix(base).lstrip("/"))
    return found


def packs_of(root: str, options: dict[str, Any] | None = None) -> list[str]:
    """The ids of the packs that have a manifest."""
    filesystem, base = fsspec.core.url_to_fs(root, **(options or {}))
    found = filesystem.find(f"{base}/{PACKS}")
    return sorted(path.split("/")[-2] for path in found if path.endswith(f"/{MANIFEST}"))


def strip_shard(root: str, shard: str, media_keys: Collection[bytes], options: dict[str, Any] | None = None) -> bool:
    """Rewrites a shard without these media, or deletes it where it holds nothing else. False if it holds none of them.

    The bytes of the other members do not change. Every name of a file must be given: hard links of other packs are
    names of their own.
    """
    filesystem, base = fsspec.core.url_to_fs(root, **(options or {}))
    gone, path = {key.hex() for key in media_keys}, f"{base}/{shard}"
    if not filesystem.exists(path):
        return False
    with filesystem.open(path, "rb") as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
        kept = [member for member in archive if _key(member) not in gone]
        if len(kept) == len(archive.getmembers()):
            return False
        if kept:
            triples = ((bytes.fromhex(_key(m)), m.name.split(".", 1)[1], _content(archive, m)) for m in kept)
            write_tar(f"{root.rstrip('/')}/{shard}", triples, options)
            return True
    filesystem.rm_file(path)
    return True


def restate_pack(
    root: str,
    pack_id: str,
    shards: Collection[str],
    media_keys: Collection[bytes],
    options: dict[str, Any] | None = None,
) -> None:
    """Makes a finished pack say what is in it after shards were stripped: indexes, card, and last its manifest."""
    filesystem, base = fsspec.core.url_to_fs(root, **(options or {}))
    folder, gone = f"{base}/{PACKS}/{pack_id}", {key.hex() for key in media_keys}
    manifest = orjson.loads(filesystem.cat_file(f"{folder}/{MANIFEST}"))
    index = pl.read_parquet(io.BytesIO(filesystem.cat_file(f"{folder}/{_INDEX}")))
    facts = {shard: _facts(filesystem, base, shard) for shard in shards}
    listed = [_restated(entry, facts.get(entry["shard"])) for entry in manifest["shards"] if _stays(entry, facts)]
    index = _renumbered(index.filter(~pl.col("media_key").is_in(gone)), facts)
    made = Made()
    for entry in listed:
        if entry["kind"] != "media":
            for record in _records(filesystem, f"{base}/{entry['shard']}"):
                made.add(record)
    files = {_INDEX: index_bytes(index)}
    for file in manifest["files"]:
        name = file["path"]
        if name not in (_INDEX, "README.md"):
            data = filesystem.cat_file(f"{folder}/{name}")
            files[name] = _wids(data, name, pack_id, facts) if name.rpartition("/")[2].startswith("index") else data
    manifest["failed"] = [{name: row[name] for name in FAILED} for row in manifest["failed"]]
    manifest |= summary(listed, count_rows(index), made, len(manifest["failed"]))
    files["README.md"] = dataset_card(manifest).encode()
    target = f"{root.rstrip('/')}/{PACKS}/{pack_id}"
    written = {}
    for name, data in sorted(files.items()):
        written[name] = write_bytes(f"{target}/{name}", data, options)
        failpoint("forget.pack_file")
    manifest["files"] = [{"path": name, "sha256": w.sha256, "num_bytes": w.num_bytes} for name, w in written.items()]
    write_bytes(f"{target}/{MANIFEST}", orjson.dumps(manifest, option=orjson.OPT_INDENT_2) + b"\n", options)


def _stays(entry: dict[str, Any], facts: dict[str, ShardFacts | None]) -> bool:
    return entry["shard"] not in facts or facts[entry["shard"]] is not None


def _restated(entry: dict[str, Any], facts: ShardFacts | None) -> dict[str, Any]:
    return entry if facts is None else entry | facts.model_dump(exclude={"keys"})


def _facts(filesystem: Any, base: str, shard: str) -> ShardFacts | None:
    """What a shard holds now; None if it is gone."""
    path = f"{base}/{shard}"
    if not filesystem.exists(path):
        return None
    with filesystem.open(path, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    with filesystem.open(path, "rb") as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
        members = archive.getmembers()
    keys = list(dict.fromkeys(_key(member) for member in members))
    missing = {_key(member) for member in members if member.name.endswith(".missing.json")}
    records = list(_records(filesystem, path))
    return ShardFacts(
        sha256=digest,
        num_bytes=filesystem.size(path),
        keys=keys,
        num_samples=len(keys) - len(missing),
        num_regions=sum(len(record["regions"]) for record in records),
        num_captions=sum(len(region["captions"]) for record in records for region in record["regions"]),
    )


def _records(filesystem: Any, path: str) -> Iterator[dict[str, Any]]:
    """The records of a shard's samples; pixels are passed over."""
    with filesystem.open(path, "rb") as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
        for member in archive:
            if member.name.endswith(".json") and not member.name.endswith(".missing.json"):
                yield orjson.loads(_content(archive, member))


def _renumbered(index: pl.DataFrame, facts: dict[str, ShardFacts | None]) -> pl.DataFrame:
    """The sampling index with the samples' new places in the shards that were stripped."""
    rows = [
        (shard, key, place) for shard, held in facts.items() if held is not None for place, key in enumerate(held.keys)
    ]
    types = {"shard": pl.String, "media_key": pl.String, "place": pl.Int64}
    places = pl.DataFrame(rows, schema=types, orient="row")
    joined = index.join(places, on=["shard", "media_key"], how="left", maintain_order="left")
    return joined.with_columns(sample=pl.coalesce("place", "sample")).drop("place").select(index.columns)


def _wids(data: bytes, name: str, pack_id: str, facts: dict[str, ShardFacts | None]) -> bytes:
    """A wids index with the new sizes of its shards."""
    index = orjson.loads(data)
    here = f"{PACKS}/{pack_id}/{name.rpartition('/')[0]}/"
    kept = []
    for entry in index["shardlist"]:
        up = "../../../"
        shard = entry["url"].removeprefix(up) if entry["url"].startswith(up) else here + entry["url"]
        held = facts.get(shard)
        if shard not in facts:
            kept.append(entry)
        elif held is not None:
            kept.append(entry | {"nsamples": len(held.keys), "filesize": held.num_bytes})
    return orjson.dumps(index | {"shardlist": kept}, option=orjson.OPT_INDENT_2) + b"\n"


def _key(member: tarfile.TarInfo) -> str:
    return member.name.split(".")[0]


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(member)
    return stream.read() if stream is not None else b""
