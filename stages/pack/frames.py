"""The tables that packing reads, as polars frames."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, fields

import polars as pl

from schemas.arrow import arrow_schema
from schemas.base import Row
from schemas.caption import Caption, Decision
from schemas.event import Event
from schemas.mask import Mask
from schemas.media import Media
from schemas.region import Region, Selection


def empty_frame(model: type[Row]) -> pl.DataFrame:
    """A frame without rows and with the columns of a record."""
    return pl.DataFrame(pl.from_arrow(arrow_schema(model).empty_table()))


Frame = pl.DataFrame | pl.LazyFrame


@dataclass(frozen=True)
class PackFrames:
    """Current rows of a run, all statuses, with the columns of their records, in memory or to be read lazily.

    A table that the run does not have (events of an image corpus, decisions before there is a policy) is None.
    """

    media: Frame
    regions: Frame
    masks: Frame
    captions: Frame
    events: Frame | None = None
    decisions: Frame | None = None
    selection: Frame | None = None

    def rows(self, name: str) -> Frame:
        """The frame of a table, without rows where the run has none."""
        frame: Frame | None = getattr(self, name)
        return empty_frame(_MODELS[name]) if frame is None else frame

    def frame(self, name: str) -> pl.DataFrame:
        """The rows of a table in memory."""
        return self.rows(name).lazy().collect()

    def __iter__(self) -> Iterator[tuple[str, pl.DataFrame]]:
        return ((field.name, self.frame(field.name)) for field in fields(self))


_MODELS: dict[str, type[Row]] = {
    "media": Media,
    "regions": Region,
    "masks": Mask,
    "captions": Caption,
    "events": Event,
    "decisions": Decision,
    "selection": Selection,
}


def to_ipc(frame: pl.DataFrame) -> bytes:
    """A frame as one Arrow IPC stream."""
    out = io.BytesIO()
    frame.write_ipc_stream(out, compression="lz4")
    return out.getvalue()


def from_ipc(data: bytes) -> pl.DataFrame:
    """The frame of an Arrow IPC stream."""
    return pl.read_ipc_stream(io.BytesIO(data))
