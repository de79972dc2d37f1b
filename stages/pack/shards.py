"""Who goes where: the split of a duplicate group, the frames of a clip, the shard of a key."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl
import pyarrow as pa

from schemas.keys import digest_columns, digest_value
from stages.pack.config import PackConfig
from stages.pack.names import EXTENSIONS, form_of, portable_uri

TRAIN, VALIDATION = "train", "validation"
_TAR_OVERHEAD = 2048
_RECORD_OVERHEAD = 1024
_JPEG_BYTES_A_PIXEL = 0.4


def split_of(group_keys: pl.Series, config: PackConfig) -> pl.Series:
    """The split of each group key: H(seed, key) against the fraction, so that no other row has a say in it."""
    keys = group_keys.to_arrow().cast(pa.large_binary())
    seeds = pa.array(np.full(len(keys), config.seed, np.int64))
    drawn = np.frombuffer(b"".join(digest_columns({"seed": seeds, "group_key": keys}).to_pylist()), ">u8").reshape(
        -1, 2
    )[:, 0]
    held_out = drawn < np.uint64(int(config.validation_fraction * 2**64))
    return pl.Series("pack_split", np.where(held_out, VALIDATION, TRAIN), pl.String)


def uniform(first: int, last: int, count: int) -> list[int]:
    """At most `count` distinct integers, evenly spaced from `first` to `last`, both included."""
    if count <= 0 or last < first:
        return []
    return sorted({int(i) for i in np.linspace(first, last, min(count, last - first + 1)).round()})


def clip_indices(
    num_frames: int, prompts: Sequence[int], spans: Sequence[tuple[int, int]], config: PackConfig
) -> list[int]:
    """The source frames that a clip carries: uniform ones, the prompt frames, and those of its events; ascending."""
    chosen = {*uniform(0, num_frames - 1, config.clip_frames), *prompts}
    for start, end in spans:
        chosen.update(uniform(start, end, config.event_frames))
    return sorted(index for index in chosen if 0 <= index < num_frames)


def cut(keys: Sequence[bytes], sizes: Sequence[int], max_bytes: int) -> Iterator[tuple[int, int]]:
    """Cuts ascending keys into ranges [start, end) whose sizes sum to at most `max_bytes`.

    The cuts lie on a binary tree over the key space: a range that is too large is halved at the next bit of the key.
    So a new key changes the range it falls into and no other. A single key larger than the bound stays alone.
    """
    if not len(keys):
        return
    numbers = np.array([int.from_bytes(key[:8], "big") for key in keys], np.uint64)
    totals = np.concatenate([[0], np.cumsum(np.asarray(sizes, np.int64))])
    yield from _halve(numbers, totals, 0, len(keys), 0, 63, max_bytes)


def _halve(
    numbers: np.ndarray, totals: np.ndarray, start: int, end: int, base: int, bit: int, max_bytes: int
) -> Iterator[tuple[int, int]]:
    if start == end:
        return
    if end - start == 1 or totals[end] - totals[start] <= max_bytes or bit < 0:
        yield start, end
        return
    middle = base | (1 << bit)
    cut_at = start + int(np.searchsorted(numbers[start:end], np.uint64(middle), side="left"))
    yield from _halve(numbers, totals, start, cut_at, base, bit - 1, max_bytes)
    yield from _halve(numbers, totals, cut_at, end, middle, bit - 1, max_bytes)


def planned_media(frame: pl.DataFrame, masks: pl.DataFrame, events: pl.DataFrame, config: PackConfig) -> pl.DataFrame:
    """Media with `pack_split`, `form`, `portable` (URI to write), `clip_indices`, `planned_bytes` (an estimate of
    clips and of what is encoded anew: RGB has three bytes a pixel, of which PNG may save nothing).

    Nothing of it depends on captions or decisions, so that media shards outlive a policy.
    """
    upright = pl.col("orientation").is_null() | pl.col("orientation").is_in([0, 1])
    facts = frame.select("kind", "encoding", upright).rows()
    forms = {fact: form_of(*fact) for fact in set(facts)}
    frame = frame.join(_clip_frames(frame, masks, events, config), on="media_key", how="left", maintain_order="left")
    frame = frame.with_columns(
        split_of(frame["group_key"], config),
        pl.Series("form", [forms[fact] for fact in facts], pl.String),
        _portable(frame["uri"]),
        pl.col("clip_indices").fill_null([]),
    )
    count = pl.col("clip_indices").list.len()
    clip = (pl.col("width") * pl.col("height") * _JPEG_BYTES_A_PIXEL).cast(pl.Int64) + _TAR_OVERHEAD
    pixels = pl.col("width") * pl.col("height")
    original = upright & (pl.Series([EXTENSIONS.get(encoding.lower()) for _, encoding, _ in facts]) == pl.col("form"))
    encoded = pl.when(pl.col("form") == "jpg").then((pixels * _JPEG_BYTES_A_PIXEL).cast(pl.Int64)).otherwise(pixels * 3)
    image = pl.when(original).then("num_bytes").otherwise(pl.max_horizontal(encoded, "num_bytes")) + _TAR_OVERHEAD
    size = pl.when(pl.col("form") == "clip").then(clip * count).otherwise(image)
    return frame.with_columns(planned_bytes=size.cast(pl.Int64))


def _portable(uris: pl.Series) -> pl.Series:
    """`portable_uri` of each; of plain local paths without a call each."""
    plain = ~uris.str.contains("://", literal=True) & ~uris.str.contains("::", literal=True)
    if plain.all():
        return uris.str.strip_chars_end("/").str.split("/").list.last().alias("portable")
    return pl.Series("portable", [portable_uri(uri) for uri in uris], pl.String)


def _clip_frames(frame: pl.DataFrame, masks: pl.DataFrame, events: pl.DataFrame, config: PackConfig) -> pl.DataFrame:
    """`media_key`, `clip_indices` of the videos."""
    videos = frame.filter(pl.col("kind") == "video").select("media_key", "num_frames")
    prompts: dict[bytes, list[int]] = {}
    spans: dict[bytes, list[tuple[int, int]]] = {}
    if len(videos):
        for key, index in masks.join(videos, on="media_key", how="semi").select("media_key", "frame_index").iter_rows():
            prompts.setdefault(key, []).append(index)
        seen = events.join(videos, on="media_key", how="semi").filter(pl.col("status") == "ok")
        for key, start, end in seen.select("media_key", "start_frame", "end_frame").iter_rows():
            spans.setdefault(key, []).append((start, end))
    indices = [
        clip_indices(count, prompts.get(key, []), spans.get(key, []), config) for key, count in videos.iter_rows()
    ]
    return videos.select("media_key", clip_indices=pl.Series(indices, dtype=pl.List(pl.Int64)))


def record_bytes(regions: pl.DataFrame, masks: pl.DataFrame, captions: pl.DataFrame) -> pl.DataFrame:
    """An upper estimate of the record's size a media, from the columns that grow: masks, tracks, texts."""
    track = pl.col("frames").list.eval(
        pl.element().struct.field("mask").struct.field("counts").str.len_bytes().fill_null(0) + 256
    )
    mask = (pl.col("mask").struct.field("counts").str.len_bytes().fill_null(0) + track.list.sum().fill_null(0)).cast(
        pl.Int64
    )
    text = (pl.col("text").str.len_bytes().fill_null(0) * 3 + 512).cast(pl.Int64)
    parts = [
        regions.select("media_key", size=pl.lit(_RECORD_OVERHEAD, pl.Int64)),
        masks.select("media_key", size=mask),
        captions.select("media_key", size=text),
    ]
    return pl.concat(parts).group_by("media_key").agg(record_bytes=pl.col("size").sum())


def layout_digest(config: PackConfig) -> bytes:
    """The digest of the settings on which a shard's bytes depend beside its samples."""
    return digest_value({"format": 1, "layout": config.layout, "jpeg_quality": config.jpeg_quality})
