"""The stage that writes shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, ClassVar

import fsspec
import pyarrow as pa

from schemas.arrow import to_table
from schemas.sample import Sample
from stages.base import Resources, Stage, TransientError, UnitError
from stages.pack.clips import clip_members, clip_times
from stages.pack.config import PackConfig
from stages.pack.frames import from_ipc
from stages.pack.members import Member, image_member
from stages.pack.records import MissingSample, Packed, PackUnit
from stages.pack.samples import records_of
from stages.pack.slices import BODIES
from stages.pack.tar import Written, link_or_copy, write_tar

_READ_AT_ONCE = 8
_Triple = tuple[bytes, str, bytes]
_Record = tuple[dict[str, Any], bytes, int, int]
_Read = tuple[_Record, list[Member], list[float], UnitError | None]


class _NothingReadable(Exception):
    """No sample of a shard could be read."""


class PackStage(Stage):
    """Writes one shard a unit, streaming its samples, and reports what lies in it.

    `root` is the run's folder (local path or fsspec URL). A media that cannot be read any more is left out of a joined
    shard and named in `missing`; in a media shard, and for clips in a caption shard, a `.missing.json` member keeps its
    place, so that the two halves stay aligned. Raises `TransientError` where the store fails.
    """

    name: ClassVar[str] = "pack"
    version: ClassVar[int] = 1
    table: ClassVar[str] = "packed"
    unit: ClassVar[type[PackUnit]] = PackUnit
    row: ClassVar[type[Packed]] = Packed
    unit_field: ClassVar[str] = "shard_key"
    group_by: ClassVar[tuple[str, ...]] = ("shard_key",)

    resources = Resources(num_cpus=1.0, memory_bytes=1_000_000_000)
    batch_groups = 1

    def __init__(self, config: PackConfig, root: str, storage_options: dict[str, Any] | None = None) -> None:
        self._config = config
        self._root = root.rstrip("/")
        self._options = dict(storage_options or {})

    def settings(self) -> dict[str, Any]:
        return {"layout": self._config.layout, "jpeg_quality": self._config.jpeg_quality}

    def process(self, units: pa.Table) -> Iterator[pa.Table]:
        for unit in units.to_pylist():
            yield to_table([self._shard(PackUnit.model_validate(unit))], Packed)

    def _shard(self, unit: PackUnit) -> Packed:
        shard = _Shard(unit, self._config.jpeg_quality, self._options)
        same = {name: getattr(unit, name) for name in _SAME}
        try:
            written = self._reuse(unit)
            if written is None:
                written = write_tar(f"{self._root}/{unit.shard}", shard.members(), self._options)
                bytes_written = written.num_bytes
            else:
                shard.count()
                bytes_written = 0
        except _NothingReadable:
            reason, _ = Counter(lost.reason for lost in shard.missing).most_common(1)[0]
            message = f"none of {len(shard.missing)} samples could be read; the first: {shard.missing[0].message}"
            return Packed(**same, status="failed", reason=reason, message=message, missing=shard.missing)
        except (OSError, ConnectionError) as error:
            raise TransientError(f"shard {unit.shard}: {error}") from error
        return Packed(
            **same,
            sha256=written.sha256,
            num_bytes=written.num_bytes,
            bytes_written=bytes_written,
            num_samples=shard.num_samples,
            num_regions=shard.num_regions,
            num_captions=shard.num_captions,
            missing=shard.missing,
        )

    def _reuse(self, unit: PackUnit) -> Written | None:
        """Links an earlier shard of the same content into place; None where there is none any more."""
        if unit.reuse_from is None or unit.reuse_sha256 is None or unit.reuse_bytes is None:
            return None
        source = f"{self._root}/{unit.reuse_from}"
        filesystem, path = fsspec.core.url_to_fs(source, **self._options)
        if not filesystem.exists(path) or filesystem.size(path) != unit.reuse_bytes:
            return None
        link_or_copy(source, f"{self._root}/{unit.shard}", self._options)
        return Written(unit.reuse_sha256, unit.reuse_bytes)


_SAME = ("shard_key", "input_digest", "pack_id", "split", "form", "kind", "shard")


class _Shard:
    """The members of one shard, made one sample at a time, and what has been counted on the way."""

    def __init__(self, unit: PackUnit, jpeg_quality: int, options: dict[str, Any]) -> None:
        self._unit, self._quality, self._options = unit, jpeg_quality, options
        self.missing: list[MissingSample] = []
        self.num_samples = self.num_regions = self.num_captions = 0

    def members(self) -> Iterator[_Triple]:
        for (row, text, regions, captions), pixels, times, error in self._read():
            key = row["media_key"]
            if error is not None:
                lost = MissingSample(media_key=key, reason=error.reason, message=error.message)
                self.missing.append(lost)
                if self._unit.kind != "joined":
                    yield key, "missing.json", lost.model_dump_json().encode()
                continue
            if not self.num_samples or times:
                # The first record of a shard is held against the schema; the others have the same columns.
                sample = Sample.model_validate_json(text)
                text = record(sample, times) if times else text
            self._add(regions, captions)
            for extension, data in pixels:
                yield key, extension, data
            if self._unit.kind != "media":
                yield key, "json", text
        if not self.num_samples:
            raise _NothingReadable

    def count(self) -> None:
        """Counts without reading any pixels."""
        for _, _, regions, captions in self._records():
            self._add(regions, captions)

    def _add(self, regions: int, captions: int) -> None:
        self.num_samples += 1
        self.num_regions += regions
        self.num_captions += captions

    def _records(self) -> Iterator[_Record]:
        """Media row, JSON record, regions and captions of each sample."""
        media, regions, masks, events, captions = (from_ipc(getattr(self._unit, name)) for name in BODIES)
        records = records_of(media, regions, masks, events, captions)
        for row, (text, *counts) in zip(media.to_dicts(), records.iter_rows(), strict=True):
            yield row, text.encode(), counts[0], counts[1]

    def _read(self) -> Iterator[_Read]:
        """The records with their pixels; a thread reads and verifies the next few meanwhile."""
        records = self._records()
        at_once = 1 if self._unit.form == "clip" else _READ_AT_ONCE
        with ThreadPoolExecutor(1, "read") as reading:
            coming = reading.submit(self._read_some, list(islice(records, at_once)))
            while found := coming.result():
                coming = reading.submit(self._read_some, list(islice(records, at_once)))
                yield from found

    def _read_some(self, records: list[_Record]) -> list[_Read]:
        found: list[_Read] = []
        for record in records:
            try:
                found.append((record, *self._pixels(record[0]), None))
            except UnitError as error:
                found.append((record, [], [], error))
        return found

    def _pixels(self, row: dict[str, Any]) -> tuple[list[Member], list[float]]:
        """The pixel members (none in a caption shard) and the times of a clip's frames."""
        clip = row["form"] == "clip"
        if self._unit.kind == "captions":
            return [], clip_times(row, self._options) if clip else []
        if clip:
            return clip_members(row, self._quality, self._options)
        return [image_member(row, self._quality, self._options)], []


def record(sample: Sample, times_s: list[float]) -> bytes:
    """The `.json` member: the sample with the times of its frames, keys in hexadecimal, fields in schema order."""
    media = sample.media.model_copy(update={"frame_times_s": times_s})
    return sample.model_copy(update={"media": media}).model_dump_json().encode()
