"""What an adapter is: a source's configuration, the raw region records it yields, and the errors it raises.

An adapter is one module with two functions: `media(source)` lists the media that the annotations name, and
`regions(source)` yields `RawRegions`, one entry an annotation record, good or bad. Everything else (joining media,
upright pixels, clamping, keys) is done once for all formats in `stages.ingest.finish`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, model_validator

from schemas.arrow import arrow_schema
from schemas.base import PathStr, Record
from schemas.caption import Language, Task
from schemas.geometry import Point, Rle, TrackPoint
from schemas.media import MediaKind
from schemas.region import Hint, HintKind
from stages.ingest.listing import MediaRoots
from stages.media.probe import ListedMedia

BATCH_ROWS = 8192

Coordinates = Literal["auto", "upright", "stored"]


class SourceError(ValueError):
    """The annotations cannot be read as this format; the message names the file and what to do."""


class SourceCaptions(BaseModel):
    """What is asked of this source, in place of the run's `captions`.

    `hints` are the kinds of hints that the teacher is told, in this order. Tasks and hints that are not given are those
    of the format's recipe (`configs/sources.yaml`). `imported` is a `captions.parquet` of `perceive import`: its
    captions are taken as they are, and a source that names no tasks is asked nothing beside them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tasks: tuple[Task, ...] | None = None
    languages: tuple[Language, ...] | None = None
    hints: tuple[HintKind, ...] | None = None
    imported: PathStr | None = None


_REFER_DATASET = re.compile(r"ref(?:coco(?:g|\+)?|clef)(?![a-z+])", re.IGNORECASE)


def _dataset(values: Mapping[str, Any]) -> str:
    """What a source without a name is called by: its format; of the refer family the dataset that its paths name."""
    name = str(values.get("format", ""))
    paths = values.get("annotations")
    refs = paths.get("refs") if isinstance(paths, Mapping) else paths
    found = _REFER_DATASET.findall(str(refs)) if name == "refer" else []
    return found[-1].lower() if found else name


class SourceConfig(BaseModel):
    """One entry of `sources:` in a run configuration.

    `annotations` is a file or folder, or several by role where a format has more than one (see docs/sources.md);
    `media` is a folder, an archive (`.zip`, `.tar`) or several of these. All are paths or fsspec URLs. `coordinates`
    says of which raster the boxes are where a file carries an EXIF orientation: `stored`, `upright`, or `auto` (the
    one whose size the annotations state, else upright). `options` are the format's own (docs/sources.md). `name` is by
    default `<format>_<split>`, for `refer` `refcoco_<split>`, `refcoco+_...`, `refcocog_...` where the path says so.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str
    annotations: str | dict[str, str]
    media: str | tuple[str, ...] = ()
    split: str = "train"
    licence: str | None = None
    name: str = ""
    captions: SourceCaptions = SourceCaptions()
    coordinates: Coordinates = "auto"
    options: dict[str, Any] = Field(default_factory=dict)
    storage_options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _named(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and not values.get("name"):
            return {**values, "name": f"{_dataset(values)}_{values.get('split', 'train')}"}
        return values

    @property
    def media_roots(self) -> tuple[str, ...]:
        return (self.media,) if isinstance(self.media, str) else self.media

    def annotation(self, role: str | None = None) -> str:
        """The annotation path, or the one with this role. Raises `SourceError` naming the roles that are there."""
        if isinstance(self.annotations, str):
            if role is None:
                return self.annotations
            raise SourceError(f"source {self.name}: `annotations` must name its files by role: {role}: PATH, ...")
        if role is None:
            if len(self.annotations) == 1:
                return next(iter(self.annotations.values()))
            raise SourceError(f"source {self.name}: `annotations` must be one path for format {self.format}")
        if role not in self.annotations:
            raise SourceError(f"source {self.name}: `annotations` has no {role!r}, only {sorted(self.annotations)}")
        return self.annotations[role]

    def optional_annotation(self, role: str) -> str | None:
        """The annotation path with this role, or None."""
        return None if isinstance(self.annotations, str) else self.annotations.get(role)


@dataclass(frozen=True)
class Source:
    """A configured source with its media listed."""

    config: SourceConfig
    roots: MediaRoots


class RawRegion(Record):
    """One annotation record as read, in the dataset's own pixels; the columns of `RawRegions`.

    `uri` is the media's. `box` is xyxy, in pixels, or in fractions of the image where `relative`; where `stored`, of
    the raster as the file stores it. `width` and `height` are the media's size as the annotations state it.
    `resize_mask` says that the mask has a resolution of its own. `bad` is the reason why the record makes no region.
    """

    uri: str
    kind: MediaKind = "image"
    source_id: str
    source_media_id: str
    frame_index: int = 0
    box: list[float] | None = None
    relative: bool = False
    stored: bool = False
    points: list[Point] | None = None
    polygons: list[list[float]] | None = None
    mask: Rle | None = None
    resize_mask: bool = False
    track: list[TrackPoint] | None = None
    label: str | None = None
    hints: list[Hint] | None = None
    is_crowd: bool = False
    is_group: bool = False
    is_part: bool = False
    width: float | None = None
    height: float | None = None
    fps: float | None = None
    split: str | None = None
    licence: str | None = None
    bad: str | None = None
    message: str | None = None


RAW_SCHEMA = arrow_schema(RawRegion)
_DEFAULTS: dict[str, Any] = {name: info.get_default() for name, info in RawRegion.model_fields.items()}
_REQUIRED = frozenset(name for name, info in RawRegion.model_fields.items() if info.is_required())


class RawRegions:
    """Collects raw records (structs as plain dicts) and hands them over as Arrow tables."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, row: dict[str, Any]) -> None:
        """One record: the fields of `RawRegion` that differ from their defaults."""
        self._rows.append(row)

    def tables(self) -> Iterator[pa.Table]:
        """The collected records as tables of `RAW_SCHEMA`; a record that does not fit becomes `bad_record`."""
        rows, self._rows = self._rows, []
        if rows:
            yield _table_of(rows)


def batches(rows: Iterable[dict[str, Any]], size: int = BATCH_ROWS) -> Iterator[pa.Table]:
    """Raw records as tables of about `size` rows."""
    raw = RawRegions()
    for row in rows:
        raw.add(row)
        if len(raw) >= size:
            yield from raw.tables()
    yield from raw.tables()


UNFIT = (pa.ArrowException, TypeError, ValueError, OverflowError, AttributeError)
"""What Arrow and Python raise for a value that is not of its column's type."""


def raw_table(length: int, columns: Mapping[str, pa.Array]) -> pa.Table:
    """A table of `RAW_SCHEMA` of these columns, the others at their defaults."""
    arrays = []
    for item in RAW_SCHEMA:
        if item.name in columns:
            arrays.append(columns[item.name])
            continue
        default = _DEFAULTS[item.name]
        arrays.append(pa.nulls(length, item.type) if default is None else pa.repeat(pa.scalar(default), length))
    return pa.Table.from_arrays(arrays, schema=RAW_SCHEMA)


def _table_of(rows: list[dict[str, Any]]) -> pa.Table:
    columns: dict[str, pa.Array] = {}
    for name in set().union(*rows):
        kind, default = RAW_SCHEMA.field(name).type, None if name in _REQUIRED else _DEFAULTS[name]
        values = [row.get(name, default) for row in rows]
        try:
            columns[name] = checked_array(values, kind)
        except UNFIT:
            columns[name] = _column_of_good_values(rows, name, values, kind)
    for name in ("bad", "message"):
        columns[name] = pa.array([row.get(name) for row in rows], pa.string())
    return raw_table(len(rows), columns)


def checked_array(values: list[Any], kind: pa.DataType) -> pa.Array:
    """An array of this type. Raises one of `UNFIT`, also for a null where the type has none, which Arrow lets pass."""
    array = pa.array(values, kind)
    if _has_holes(array):
        raise ValueError("a value is missing (null)")
    return array


def _has_holes(array: pa.Array) -> bool:
    kind = array.type
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        items = array.flatten()
        return bool(items.null_count and not kind.value_field.nullable) or _has_holes(items)
    if pa.types.is_struct(kind):
        given = array.drop_null()
        below = [(kind.field(at), given.field(at)) for at in range(kind.num_fields)]
        return any((item.null_count and not field.nullable) or _has_holes(item) for field, item in below)
    return False


def _column_of_good_values(rows: list[dict[str, Any]], name: str, values: list[Any], kind: pa.DataType) -> pa.Array:
    """The column value by value: those that are not of its type make their records bad."""
    default = _DEFAULTS[name] if name not in _REQUIRED else ""
    for at, value in enumerate(values):
        try:
            checked_array([value], kind)
        except UNFIT as error:
            values[at] = default
            if rows[at].get("bad") is None:
                rows[at] = {**rows[at], "bad": "bad_record", "message": f"{name}: {error}"[:300]}
    return pa.array(values, kind)


@dataclass(frozen=True)
class Adapter:
    """One format: how its media are listed and its records read. `version` changes when its rows do."""

    version: int
    media: Callable[[Source], Iterator[ListedMedia]]
    regions: Callable[[Source], Iterator[pa.Table]]
    options: tuple[str, ...] = ()
    benchmark_splits: Mapping[str, str] = field(default_factory=dict)


_NUMBERS = frozenset({int, float})  # and not bool


def numbers(value: Any, count: int | None = None) -> list[float]:
    """A list of finite numbers. Raises `ValueError` saying what is wrong (`not_finite` is found by its message)."""
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"expected a list of numbers, found {value!r:.60}")
    if count is not None and len(value) != count:
        raise ValueError(f"expected {count} numbers, found {len(value)}")
    if not _NUMBERS.issuperset(map(type, value)):
        raise ValueError(f"expected numbers, found {value!r:.60}")
    try:
        return list(map(float, value))
    except OverflowError as error:
        raise ValueError(f"a number is too large: {value!r:.60}") from error


def whole(value: Any) -> int:
    """A number that counts something: a whole number, also as a float. Raises `ValueError`."""
    (number,) = numbers([value])
    if not math.isfinite(number) or number != int(number) or abs(number) > 1 << 52:
        raise ValueError(f"expected a whole number, found {value!r:.40}")
    return int(number)


def xywh(value: Any) -> list[float]:
    """xyxy of an `[x, y, width, height]` box. Raises `ValueError`."""
    x, y, w, h = numbers(value, 4)
    return [x, y, x + w, y + h]
