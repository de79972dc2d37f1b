"""A shard as the unit of packing, and the row that tells of it."""

from __future__ import annotations

from typing import ClassVar, Literal

from schemas.base import Key, Record, Row

ShardKind = Literal["joined", "media", "captions"]


class PackUnit(Record):
    """One shard to write: its place and the slices of the tables (Arrow IPC streams) from which it is made.

    `shard` is the path inside the run's folder. `reuse_from` names an earlier shard with the same input digest, which
    is linked rather than written again if it still has `reuse_bytes` bytes. `attempts` counts what earlier runs tried.
    """

    shard_key: Key
    input_digest: Key
    pack_id: str
    split: str
    form: str
    kind: ShardKind
    shard: str
    reuse_from: str | None = None
    reuse_sha256: str | None = None
    reuse_bytes: int | None = None
    attempts: int | None = None
    media: bytes
    regions: bytes
    masks: bytes
    events: bytes
    captions: bytes


class MissingSample(Record):
    """A media that was planned into a shard and could not be read when it was written."""

    media_key: Key
    reason: str
    message: str


class Packed(Row):
    """One shard in place. `shard_key` = H(pack id, path); for media shards, which packs share, H(planned path).

    `shard` is the path at which it lies: that of a media shard ends in `-<attempt>` where an earlier attempt, which
    lacks samples and which other packs may list, has the planned one.

    `bytes_written` is 0 for a shard that was linked from an earlier pack. A shard none of whose samples could be read
    is `failed`; `missing` names the samples that it lacks otherwise.
    """

    key_field: ClassVar[str] = "shard_key"
    content: ClassVar[tuple[str, ...]] = ("shard_key", "sha256", "status", "reason")

    shard_key: Key
    pack_id: str
    split: str
    form: str
    kind: ShardKind
    shard: str
    sha256: str | None = None
    num_bytes: int = 0
    bytes_written: int = 0
    num_samples: int = 0
    num_regions: int = 0
    num_captions: int = 0
    missing: list[MissingSample] = []
    message: str | None = None
