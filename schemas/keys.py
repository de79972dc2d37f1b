"""Keys and digests: BLAKE2b-128 over a canonical, self-delimiting encoding.

A value is encoded as a tag and its bytes (`n` null, `t`/`f` booleans, `i` int64, `d` float64, `s` UTF-8, `b` bytes,
`l` list, `m` mapping with sorted names), so that no two different values share an encoding. Columns are encoded with
Arrow kernels, whole columns at a time; only the closing hash is one C call a row. `digest_columns` of a table equals
`digest_value` of each of its rows.
"""

from __future__ import annotations

import hashlib
import itertools
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

KEY_BYTES = 16
KEY_TYPE = pa.binary(KEY_BYTES)
_CHUNK = 1 << 20


def digest_bytes(data: bytes | memoryview) -> bytes:
    """The 16-byte BLAKE2b digest of raw bytes."""
    return hashlib.blake2b(data, digest_size=KEY_BYTES).digest()


def digest_stream(stream: IO[bytes]) -> bytes:
    """The digest of a file's content, read in pieces; this is a media key."""
    state = hashlib.blake2b(digest_size=KEY_BYTES)
    while piece := stream.read(_CHUNK):
        state.update(piece)
    return state.digest()


def encode_value(value: Any) -> bytes:
    """The canonical encoding of None, bool, int, float, str, bytes, lists, tuples and mappings of these.

    Raises `ValueError` for NaN, infinities and integers beyond 64 bits, `TypeError` for any other type.
    """
    if value is None:
        return b"n"
    if isinstance(value, bool):
        return b"t" if value else b"f"
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise ValueError(f"{value} has no canonical encoding: integers are of 64 bits")
        return b"i" + struct.pack("<q", value)
    if isinstance(value, float):
        if not np.isfinite(value):
            raise ValueError(f"{value} has no canonical encoding: a key needs finite numbers")
        return b"d" + struct.pack("<d", value + 0.0)  # -0.0 becomes 0.0
    if isinstance(value, str):
        raw = value.encode("utf-8")
        return b"s" + struct.pack("<Q", len(raw)) + raw
    if isinstance(value, bytes | bytearray | memoryview):
        return b"b" + struct.pack("<Q", len(value)) + bytes(value)
    if isinstance(value, Mapping):
        pairs = (encode_value(name) + encode_value(value[name]) for name in sorted(value))
        return b"m" + struct.pack("<Q", len(value)) + b"".join(pairs)
    if isinstance(value, Iterable):
        items = [encode_value(item) for item in value]
        return b"l" + struct.pack("<Q", len(items)) + b"".join(items)
    raise TypeError(f"{type(value).__name__} has no canonical encoding")


def digest_value(value: Any) -> bytes:
    """The 16-byte digest of one value (a configuration, a request, a row as a mapping)."""
    return digest_bytes(encode_value(value))


@dataclass(frozen=True)
class Encoded:
    """A column in its canonical encoding, for a column that more than one digest covers."""

    values: pa.Array

    def __len__(self) -> int:
        return len(self.values)


def encode_column(column: pa.Array | pa.ChunkedArray) -> Encoded:
    """The canonical encoding of each row of a column. Raises `ValueError` for non-finite floats."""
    return Encoded(_encode_array(flatten(column)))


def digest_columns(columns: Mapping[str, pa.Array | pa.ChunkedArray | Encoded]) -> pa.Array:
    """The digest of each row of equally long columns; independent of column order and of chunking.

    Returns a `fixed_size_binary(16)` array. Raises `ValueError` for non-finite floats.
    """
    if not columns:
        raise ValueError("a digest needs at least one column")
    flat = {name: col if isinstance(col, Encoded) else flatten(col) for name, col in columns.items()}
    return hash_binary(_encode_fields(flat))


def hash_binary(encoded: pa.Array) -> pa.Array:
    """Hashes each element of a (large) binary array without nulls; returns `fixed_size_binary(16)`."""
    encoded = encoded.cast(pa.large_binary())
    offsets, data = _binary_buffers(encoded)
    first, last = int(offsets[0]), int(offsets[-1])
    raw, bounds, blake2b = bytes(data[first:last]), (offsets - first).tolist(), hashlib.blake2b  # bytes slice fastest
    out = b"".join(
        [blake2b(raw[start:end], digest_size=KEY_BYTES).digest() for start, end in itertools.pairwise(bounds)]
    )
    return pa.FixedSizeBinaryArray.from_buffers(KEY_TYPE, len(encoded), [None, pa.py_buffer(out)])


def flatten(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """One contiguous array of a column."""
    if isinstance(column, pa.ChunkedArray):
        return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    return column


def set_digest(*columns: pa.Array | pa.ChunkedArray) -> bytes:
    """The digest of a set of rows of fixed-width columns (keys, digests), whatever their order."""
    widths = [flatten(column).cast(KEY_TYPE) for column in columns]
    rows = np.concatenate([_fixed_bytes(array, KEY_BYTES) for array in widths], axis=1)
    if len(rows):
        words = rows.view(">u8").astype(np.uint64)
        order = np.argsort(words[:, 0])
        if (words[order[1:], 0] == words[order[:-1], 0]).any():  # the first eight bytes do not tell all rows apart
            order = np.lexsort(words.T[::-1])
        rows = rows[order]
    return digest_bytes(np.ascontiguousarray(rows).tobytes())


def _encode_fields(columns: Mapping[str, pa.Array | Encoded]) -> pa.Array:
    length = len(next(iter(columns.values())))
    parts: list[Any] = []
    same = b"m" + struct.pack("<Q", len(columns))  # what all rows have in common since the last part
    for name in sorted(columns):
        if len(columns[name]) != length:
            raise ValueError(f"column {name!r} has {len(columns[name])} rows, others have {length}")
        same += encode_value(name)
        column = columns[name]
        constant = None if isinstance(column, Encoded) else _constant(column)
        if constant is not None:
            same += constant
            continue
        encoded = column.values if isinstance(column, Encoded) else _encode_array(column)
        parts += [pa.scalar(same, pa.large_binary()), encoded]
        same = b""
    return _join([*parts, pa.scalar(same, pa.large_binary())], length)


def _constant(array: pa.Array) -> bytes | None:
    """The encoding of every element where all are null, or one plain value; None where that is not seen at once."""
    if array.null_count == len(array):
        return b"n"
    if not array.null_count and _is_plain(array.type) and array[0] == array[-1]:
        same: bool = pc.all(pc.equal(array, array[0])).as_py()
        return _encode_valid(array.slice(0, 1))[0].as_py() if same else None
    if pa.types.is_boolean(array.type) and not array.null_count:
        return {0: b"f", len(array): b"t"}.get(array.true_count)
    return None


def _is_plain(kind: pa.DataType) -> bool:
    """Whether equal values of a type have equal encodings, and comparing them is cheap."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind) or _is_binary(kind)


def _encode_array(array: pa.Array) -> pa.Array:
    """The canonical encoding of each element, as large binary without nulls."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    encoded = _encode_valid(array)
    if array.null_count:
        encoded = pc.if_else(array.is_null(), pa.scalar(b"n", pa.large_binary()), encoded)
    return encoded


def _encode_valid(array: pa.Array) -> pa.Array:
    kind, length = array.type, len(array)
    if pa.types.is_null(kind):
        return pa.array([b"n"] * length, pa.large_binary())
    if pa.types.is_boolean(kind):
        return pc.if_else(
            pc.fill_null(array, False),
            pa.scalar(b"t", pa.large_binary()),
            pa.scalar(b"f", pa.large_binary()),
        )
    if pa.types.is_integer(kind):
        return _tagged(b"i", pc.fill_null(array.cast(pa.int64()), 0).to_numpy(zero_copy_only=False).astype("<i8"))
    if pa.types.is_floating(kind):
        values = pc.fill_null(array.cast(pa.float64()), 0.0).to_numpy(zero_copy_only=False)
        if not np.isfinite(values).all():
            raise ValueError("a column holds NaN or infinity, which has no canonical encoding")
        return _tagged(b"d", (values + 0.0).astype("<f8"))
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return _sized(b"s", array.cast(pa.large_string()).cast(pa.large_binary()))
    if _is_binary(kind):
        return _sized(b"b", array.cast(pa.large_binary()))
    if pa.types.is_fixed_size_list(kind):
        array, kind = array.cast(pa.large_list(kind.value_type)), pa.large_list(kind.value_type)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _encode_list(array)
    if pa.types.is_struct(kind):
        # `flatten` gives the children the struct's own nulls, so that what lies below a null is not looked at.
        names = [kind.field(i).name for i in range(kind.num_fields)]
        return _encode_fields(dict(zip(names, array.flatten(), strict=True)))
    raise TypeError(f"a column of type {kind} has no canonical encoding")


def _is_binary(kind: pa.DataType) -> bool:
    kinds = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
    return any(is_kind(kind) for is_kind in kinds)


def _encode_list(array: pa.Array) -> pa.Array:
    """A list's bytes are its items' bytes, which lie side by side: offsets compose, nothing is copied."""
    items = _encode_array(array.flatten())  # without what lies below null lists or outside a slice
    item_offsets, data = _binary_buffers(items)
    counts = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    body = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(),
        len(array),
        [None, pa.py_buffer(np.ascontiguousarray(item_offsets[offsets])), pa.py_buffer(data)],
    )
    return _join([_tagged(b"l", counts.astype("<u8")), body], len(array))


def _tagged(tag: bytes, words: np.ndarray[Any, Any]) -> pa.Array:
    rows = np.empty((len(words), 9), np.uint8)
    rows[:, 0] = tag[0]
    rows[:, 1:] = np.ascontiguousarray(words).view(np.uint8).reshape(-1, 8)
    offsets = np.arange(0, 9 * len(words) + 1, 9, dtype=np.int64)
    return pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(words), [None, pa.py_buffer(offsets), pa.py_buffer(rows)]
    )


def _sized(tag: bytes, raw: pa.Array) -> pa.Array:
    raw = pc.fill_null(raw, b"")
    lengths = np.diff(_binary_buffers(raw)[0])
    return _join([_tagged(tag, lengths.astype("<u8")), raw], len(raw))


def _join(parts: list[Any], length: int) -> pa.Array:
    if length == 0:
        return pa.array([], pa.large_binary())
    if all(isinstance(part, pa.Scalar) for part in parts):
        return pa.repeat(pa.scalar(b"".join(part.as_py() for part in parts), pa.large_binary()), length)
    return pc.binary_join_element_wise(*parts, pa.scalar(b"", pa.large_binary()))


def _binary_buffers(array: pa.Array) -> tuple[np.ndarray[Any, Any], memoryview]:
    """Offsets (length + 1, int64) and the data they point into, of a large binary array, sliced or not."""
    _, offsets, data = array.buffers()
    if offsets is None or len(array) == 0:
        return np.zeros(len(array) + 1, np.int64), memoryview(b"")
    all_offsets = np.frombuffer(offsets, np.int64)
    return all_offsets[array.offset : array.offset + len(array) + 1], memoryview(data or b"")


def _fixed_bytes(array: pa.Array, width: int) -> np.ndarray[Any, Any]:
    if array.null_count:
        raise ValueError("a set digest needs keys without nulls")
    if len(array) == 0:
        return np.zeros((0, width), np.uint8)
    data = np.frombuffer(array.buffers()[1], np.uint8)
    return data[array.offset * width : (array.offset + len(array)) * width].reshape(-1, width)
