"""The tables of a pack in slices of the key space: memory is that of a slice, however many there are.

Media keys are digests, so that equal parts of the key space hold about as many media. Tables are read once, in pieces,
and their rows laid into a file a slice and table below a temporary folder; small runs stay in memory.
"""

from __future__ import annotations

import tempfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl
import pyarrow as pa

from stages.pack.frames import Frame, PackFrames
from stages.pack.samples import COLUMNS

BODIES = ("media", "regions", "masks", "events", "captions")
MEDIA_PER_SLICE = 4096
_MOST_SLICES = 64
_PIECE = 16_384
_LOADED = 2
_STATUS = ("status", "reason")
_READ: dict[str, tuple[str, ...]] = {
    "media": (*(set(COLUMNS["media"]) - {"portable", "form", "clip_indices", "pack_split"}), "num_bytes", *_STATUS),
    "regions": (*COLUMNS["regions"], *_STATUS),
    "masks": (*COLUMNS["masks"], *_STATUS),
    "events": (*COLUMNS["events"], *_STATUS),
    "captions": (*COLUMNS["captions"], "caption_key", "outcome", *_STATUS),
    "decisions": ("caption_key", "region_key", *_STATUS),
    "selection": ("source", *_STATUS),
}
"""What packing reads of each table."""


class Slices:
    """The rows of `frames`, slice by slice in the order of media keys; each slice has all that is known of its media.

    The last slice holds what belongs to no media: regions whose media could not be read, and the selection.
    """

    def __init__(self, frames: PackFrames, media_per_slice: int = MEDIA_PER_SLICE) -> None:
        count = _length(frames.rows("media"))
        self.count = min(_MOST_SLICES, 1 << max(0, (count - 1) // media_per_slice).bit_length())
        self._frames = frames
        self.folder = tempfile.TemporaryDirectory(prefix="perceive-pack-") if self.count > 1 else None
        if self.folder is not None:
            self._spill(Path(self.folder.name))

    def __iter__(self) -> Iterator[PackFrames]:
        if self.folder is None:
            yield self._frames_of({name: _collected(self._frames.rows(name).select(_READ[name])) for name in _READ})
            return
        for number in range(-1, self.count):
            yield self._frames_of({name: self._load(name, number) for name in _READ})

    def _frames_of(self, tables: dict[str, pl.DataFrame]) -> PackFrames:
        rest = {name: frame for name, frame in tables.items() if name != "decisions"}
        return PackFrames(**rest, decisions=None if self._frames.decisions is None else tables["decisions"])

    def _spill(self, folder: Path) -> None:
        regions = _collected(self._frames.rows("regions").select("region_key", self._slice_of()))
        for name in _READ:
            files = _Files(folder, name)
            for piece in _pieces(self._frames.rows(name).select(_READ[name])):
                if name == "decisions":
                    placed = piece.join(regions, on="region_key", how="left", maintain_order="left")
                elif name == "selection":
                    placed = piece.with_columns(slice=pl.lit(-1, pl.Int32))
                else:
                    placed = piece.with_columns(self._slice_of())
                files.add(placed.with_columns(pl.col("slice").fill_null(-1)))
            files.close()

    def _slice_of(self) -> pl.Expr:
        head = pl.col("media_key").bin.slice(0, 2).bin.reinterpret(dtype=pl.UInt16, endianness="big")
        return (head.cast(pl.Int32) * self.count // 65_536).alias("slice")

    def _load(self, name: str, number: int) -> pl.DataFrame:
        assert self.folder is not None
        path = _path(Path(self.folder.name), name, number)
        if not path.exists():
            return _collected(self._frames.rows(name).select(_READ[name]).clear())
        frame = pl.read_ipc_stream(path)
        path.unlink()
        return frame


class Bodies:
    """The rows to be packed, slice by slice, each table ordered as its shards are; two slices are in memory."""

    def __init__(self, folder: tempfile.TemporaryDirectory[str] | None) -> None:
        self._folder = folder  # deleted with the last plan that needs it
        self._bounds: list[tuple[bytes, bytes]] = []
        self._loaded: OrderedDict[int, dict[str, pl.DataFrame]] = OrderedDict()

    def add(self, tables: dict[str, pl.DataFrame]) -> None:
        """The next slice, whose media come after those of all slices before."""
        keys = tables["media"]["media_key"]
        if not len(keys):
            return
        number = len(self._bounds)
        self._bounds.append((keys.min(), keys.max()))  # type: ignore[arg-type]
        if self._folder is None:
            self._loaded[number] = tables
            return
        for name, frame in tables.items():
            frame.write_ipc_stream(self._path(name, number), compression="lz4")

    def rows(self, keys: pl.DataFrame) -> dict[str, pl.DataFrame]:
        """The rows of all tables about these media (`media_key`, ascending, of one shard)."""
        first, last = keys["media_key"][0], keys["media_key"][-1]
        numbers = [number for number, (low, high) in enumerate(self._bounds) if low <= last and high >= first]
        parts = [self._slice(number) for number in numbers]
        return {
            name: pl.concat(
                [part[name].join(keys, on="media_key", how="semi", maintain_order="left") for part in parts]
            )
            for name in BODIES
        }

    def _slice(self, number: int) -> dict[str, pl.DataFrame]:
        if number not in self._loaded:
            self._loaded[number] = {name: pl.read_ipc_stream(self._path(name, number)) for name in BODIES}
            if len(self._loaded) > _LOADED:
                self._loaded.popitem(last=False)
        self._loaded.move_to_end(number)
        return self._loaded[number]

    def _path(self, name: str, number: int) -> Path:
        assert self._folder is not None
        return Path(self._folder.name) / f"body-{name}-{number}.arrow"


class _Files:
    """The files of one table, one a slice that has rows."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._writers: dict[int, pa.RecordBatchStreamWriter] = {}

    def add(self, piece: pl.DataFrame) -> None:
        for (number,), part in piece.partition_by("slice", as_dict=True, include_key=False).items():
            table = part.to_arrow(compat_level=pl.CompatLevel.oldest())
            if number not in self._writers:
                options = pa.ipc.IpcWriteOptions(compression="lz4")
                path = _path(self._folder, self._name, number)
                self._writers[number] = pa.ipc.new_stream(str(path), table.schema, options=options)
            self._writers[number].write_table(table)

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


def _path(folder: Path, name: str, number: int) -> Path:
    return folder / f"{name}-{number}.arrow"


def _collected(frame: Frame) -> pl.DataFrame:
    return frame.collect() if isinstance(frame, pl.LazyFrame) else frame


def _length(frame: Frame) -> int:
    return int(frame.select(pl.len()).collect().item()) if isinstance(frame, pl.LazyFrame) else len(frame)


def _pieces(frame: Frame) -> Iterator[pl.DataFrame]:
    if isinstance(frame, pl.DataFrame):
        yield from frame.iter_slices(_PIECE)
    else:
        yield from frame.collect_batches(chunk_size=_PIECE, maintain_order=True)


def summed(parts: Sequence[pl.DataFrame], by: Sequence[str]) -> pl.DataFrame:
    """Counts of several slices added up: all columns but those of `by` are summed."""
    whole = pl.concat(parts)
    names = [name for name in whole.columns if name not in by]
    return whole.group_by(list(by)).agg(pl.col(names).sum()).sort(list(by), nulls_last=True).select(whole.columns)
