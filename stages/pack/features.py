"""The types of a pack's columns, as Hugging Face `datasets` writes them (`Features.from_dict`).

`load_dataset` otherwise guesses the types from five samples, and fails on a field that is null in all of these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from schemas.arrow import arrow_schema
from schemas.sample import Sample

_DTYPES = {pa.int64(): "int64", pa.float64(): "float64", pa.bool_(): "bool", pa.string(): "string"}


def features_of(forms: Mapping[str, int], layout: str) -> dict[str, dict[str, Any]]:
    """Columns by form: `json`, `__key__`, `__url__` and, in the joined layout, the pictures.

    `forms` are the forms of the samples with the most frames that one of them carries.
    """
    found: dict[str, dict[str, Any]] = {}
    for form, frames in forms.items():
        names = [f"{n:03d}.jpg" for n in range(frames)] if form == "clip" else [form]
        pictures = {name: {"_type": "Image"} for name in names} if layout == "joined" else {}
        text = {"dtype": "string", "_type": "Value"}
        record = _feature(pa.struct(list(arrow_schema(Sample))))
        found[form] = {**pictures, "json": record, "__key__": text, "__url__": text}
    return found


def _feature(kind: pa.DataType) -> Any:
    if pa.types.is_struct(kind):
        return {field.name: _feature(field.type) for field in kind}
    if pa.types.is_fixed_size_list(kind):
        return {"feature": _feature(kind.value_type), "length": kind.list_size, "_type": "List"}
    if pa.types.is_list(kind):
        return {"feature": _feature(kind.value_type), "_type": "List"}
    # Keys are hexadecimal text in JSON.
    return {"dtype": _DTYPES.get(kind, "string"), "_type": "Value"}
