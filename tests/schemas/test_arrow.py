"""Every record's way to Arrow, to parquet, and back, derived from the one model."""

from __future__ import annotations

import io
import types
import typing
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from schemas.arrow import arrow_schema, conform, from_table, to_table
from schemas.base import SCHEMA_VERSION, Key, Record, Row
from schemas.caption import Caption, Decision, Usage
from schemas.event import Event
from schemas.geometry import FrameMask, Point, Rle, TrackPoint
from schemas.mask import Mask
from schemas.media import Media, MediaRef
from schemas.region import Hint, Region, Selection
from schemas.sample import Sample

RECORDS = [
    Caption, Decision, Event, FrameMask, Hint, Mask, Media, MediaRef, Point, Region, Rle, Sample, Selection, TrackPoint,
    Usage,
]  # fmt: skip
ROWS = [model for model in RECORDS if issubclass(model, Row)]

st.register_type_strategy(float, st.floats(allow_nan=False, allow_infinity=False, width=64))
st.register_type_strategy(int, st.integers(-(2**63), 2**63 - 1))
st.register_type_strategy(str, st.text(max_size=6))


def records(model: type[BaseModel]) -> st.SearchStrategy[Any]:
    """Valid records of a model, every field drawn from its annotation."""
    fields = {name: _values(info.annotation, info.metadata) for name, info in model.model_fields.items()}
    return st.builds(model, **fields)


def _values(annotation: Any, metadata: Any = ()) -> st.SearchStrategy[Any]:
    if any(type(marker).__name__ == "FixedBytes" for marker in metadata):
        return st.binary(min_size=16, max_size=16)
    bounds = {type(marker).__name__: marker for marker in metadata}
    if annotation is int and "Ge" in bounds and "Le" in bounds:
        return st.integers(bounds["Ge"].ge, bounds["Le"].le)
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _values(args[0], args[1:])
    if origin in (typing.Union, types.UnionType):
        return st.one_of([st.none() if arg is type(None) else _values(arg) for arg in args])
    if origin is list:
        return st.lists(_values(args[0]), max_size=2)
    if origin is tuple:
        return st.tuples(*[_values(arg) for arg in args])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return records(annotation)
    return st.from_type(annotation)


few = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("model", RECORDS, ids=lambda model: model.__name__)
def test_records_come_back_from_arrow_and_parquet(model: type[BaseModel]) -> None:
    @few
    @given(st.lists(records(model), max_size=3))
    def check(rows: list[Any]) -> None:
        table = to_table(rows, model)
        assert table.schema.equals(arrow_schema(model), check_metadata=True)
        table.validate(full=True)
        assert from_table(table, model) == rows
        file = io.BytesIO()
        pq.write_table(table, file)
        assert from_table(pq.read_table(io.BytesIO(file.getvalue())), model) == rows

    check()


@pytest.mark.parametrize("model", RECORDS, ids=lambda model: model.__name__)
def test_records_survive_a_stay_in_polars(model: type[BaseModel]) -> None:
    """Polars knows no fixed binary and no required field: `conform` gives the record's own types back."""

    @few
    @given(st.lists(records(model), min_size=1, max_size=3))
    def check(rows: list[Any]) -> None:
        frame = pl.DataFrame(pl.from_arrow(to_table(rows, model)))
        table = conform(frame.to_arrow(), arrow_schema(model))
        assert table.schema.equals(arrow_schema(model), check_metadata=True)
        assert from_table(table, model) == rows
        shuffled = conform(table.select(table.column_names[::-1]), arrow_schema(model))
        assert shuffled.equals(table)

    check()


@pytest.mark.parametrize("model", RECORDS, ids=lambda model: model.__name__)
def test_records_come_back_from_json(model: type[BaseModel]) -> None:
    @few
    @given(records(model))
    def check(row: Any) -> None:
        assert model.model_validate_json(row.model_dump_json()) == row

    check()


@pytest.mark.parametrize("model", ROWS, ids=lambda model: model.__name__)
def test_rows_name_columns_that_exist(model: type[Row]) -> None:
    schema = arrow_schema(model)
    assert schema.metadata[b"record"] == model.__name__.encode()
    assert schema.metadata[b"schema_version"] == str(SCHEMA_VERSION).encode()
    assert schema.field(model.key_field).type == pa.binary(16)
    assert not schema.field(model.key_field).nullable
    assert set(model.content) <= set(schema.names)


class Small(Record):
    key: Key
    number: int
    note: str | None = None


def test_conform_fills_what_may_be_null_and_names_what_may_not() -> None:
    schema = arrow_schema(Small)
    table = pa.table({"number": pa.array([1], pa.int32()), "key": pa.array([b"k" * 16]), "extra": ["gone"]})
    assert conform(table, schema).to_pylist() == [{"key": b"k" * 16, "number": 1, "note": None}]
    with pytest.raises(KeyError, match="column 'number' is missing"):
        conform(table.drop_columns(["number"]), schema)


def test_a_bad_row_is_refused() -> None:
    table = pa.table({"key": [b"too short"], "number": [1], "note": [None]})
    with pytest.raises(ValidationError, match="at least 16"):
        from_table(table, Small)


def test_a_key_of_another_width_does_not_fit_a_column() -> None:
    with pytest.raises(pa.ArrowInvalid):
        conform(pa.table({"key": [b"too short"], "number": [1]}), arrow_schema(Small))


class Either(Record):
    value: int | str


def test_a_union_has_no_arrow_type() -> None:
    with pytest.raises(TypeError, match="may only add None"):
        arrow_schema(Either)
