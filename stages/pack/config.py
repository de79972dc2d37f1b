"""Settings of packing."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ByteSize, Field, PlainSerializer

from schemas.base import Record

Layout = Literal["joined", "split"]


class PackConfig(Record):
    """How shards are cut and written.

    `split` writes immutable media shards once and small caption shards that are aligned with them, so that a new policy
    rewrites records and no pixels. `joined` puts pixels and record into one sample, for release.
    `max_shard_bytes` bounds a shard (`500MB`, `2GiB` or a number); one larger sample has a shard of its own.
    `validation_fraction` of the duplicate groups go to validation, chosen by `seed` and the group's key alone. A clip
    carries `clip_frames` uniform frames, the prompt frames of its regions and `event_frames` of each event, as JPEG of
    `jpeg_quality` where the source has no JPEG frames of its own.
    """

    layout: Layout = "split"
    max_shard_bytes: Annotated[ByteSize, Field(gt=0), PlainSerializer(int)] = ByteSize(500_000_000)
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.05
    seed: int = 0
    clip_frames: Annotated[int, Field(ge=1, le=512)] = 32
    event_frames: Annotated[int, Field(ge=0, le=64)] = 16
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] = 92
