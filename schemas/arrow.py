"""Arrow schemas derived from the pydantic records, and the way between the two."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeVar

import pyarrow as pa
from pydantic import BaseModel, TypeAdapter

from schemas.base import SCHEMA_VERSION, FixedBytes

R = TypeVar("R", bound=BaseModel)

_SCALARS: dict[type, pa.DataType] = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
    bytes: pa.binary(),
}


def arrow_schema(model: type[BaseModel]) -> pa.Schema:
    """The Arrow schema of a record; its metadata carries the record's name and the schema version."""
    fields = [_field(name, info.annotation, info.metadata) for name, info in model.model_fields.items()]
    return pa.schema(fields, {"record": model.__name__, "schema_version": str(SCHEMA_VERSION)})


def to_table(records: Iterable[BaseModel], model: type[BaseModel]) -> pa.Table:
    """Records of one model as an Arrow table with that model's schema."""
    return pa.Table.from_pylist([record.model_dump(mode="python") for record in records], arrow_schema(model))


def from_table(table: pa.Table, model: type[R]) -> list[R]:
    """The rows of a table as validated records; raises pydantic's `ValidationError` on the first bad one."""
    return TypeAdapter(list[model]).validate_python(table.to_pylist())  # type: ignore[valid-type]


def no_rows(schema: pa.Schema) -> pa.Table:
    """An empty table. Not `schema.empty_table()`, which brings pandas along: a second of every command."""
    return pa.Table.from_batches([], schema)


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with exactly the columns of `schema`, cast to its types; absent nullable columns become null.

    Raises `KeyError` naming a required column that is missing.
    """
    columns = []
    for field in schema:
        if field.name in table.column_names:
            column = table[field.name]
            columns.append(column if column.type == field.type else _cast(column, field.type))
        elif field.nullable:
            columns.append(pa.nulls(len(table), field.type))
        else:
            raise KeyError(f"column {field.name!r} is missing; the table has {table.column_names}")
    return pa.Table.from_arrays(columns, schema=schema)


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    try:
        return column.cast(kind)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid, pa.ArrowTypeError):
        # Nested casts that Arrow has no kernel for (fixed binary in structs, lists to fixed lists with nulls).
        return pa.chunked_array([pa.array(column.to_pylist(), kind)])


def _field(name: str, annotation: Any, metadata: Sequence[Any] = ()) -> pa.Field:
    kind, nullable = _arrow_type(annotation, metadata)
    return pa.field(name, kind, nullable)


def _arrow_type(annotation: Any, metadata: Sequence[Any] = ()) -> tuple[pa.DataType, bool]:
    """The Arrow type of a Python annotation and whether None is allowed."""
    for marker in metadata:
        if isinstance(marker, FixedBytes):
            return pa.binary(marker.width), False
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _arrow_type(args[0], args[1:])
    if origin in (typing.Union, types.UnionType):
        inner = [arg for arg in args if arg is not type(None)]
        if len(inner) != 1:
            raise TypeError(f"{annotation} has no Arrow type: a union may only add None")
        kind, nullable = _arrow_type(inner[0])
        return kind, nullable or len(inner) != len(args)
    if origin is Literal:
        return _SCALARS[type(args[0])], False
    if origin is list:
        return pa.list_(_item(args[0])), False
    if origin is tuple:
        if len(args) == 2 and args[1] is Ellipsis:
            return pa.list_(_item(args[0])), False
        if len(set(args)) == 1:
            return pa.list_(_item(args[0]), len(args)), False
        raise TypeError(f"{annotation} has no Arrow type: a fixed tuple holds one type")
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        # Nullable inside: Parquet refuses a null struct whose fields may not be null.
        parts = {name: _arrow_type(info.annotation, info.metadata)[0] for name, info in annotation.model_fields.items()}
        return pa.struct(list(parts.items())), False
    if annotation in _SCALARS:
        return _SCALARS[annotation], False
    raise TypeError(f"{annotation} has no Arrow type")


def _item(annotation: Any) -> pa.Field:
    kind, nullable = _arrow_type(annotation)
    return pa.field("item", kind, nullable)
