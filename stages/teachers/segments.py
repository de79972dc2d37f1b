"""The ledger's files: append-only records, and sorted indexes that are read in place.

A record is a header (magic, payload length, CRC-32 of what follows, the request's 16-byte digest, an outcome code) and
a JSON payload. A log (`*.wal`) is records being written; a segment (`*.seg`) is a log that is closed; its index
(`*.idx`) holds one column after another, sorted by digest, so that a lookup is a binary search in a mapped file. A log
may end in a torn record: all before it counts, the rest never happened.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from schemas.base import Key, Record
from schemas.caption import Outcome, Usage

OUTCOMES: tuple[Outcome, ...] = ("answer", "refused", "truncated", "invalid", "unavailable")
ANSWER = OUTCOMES.index("answer")

_MAGIC = b"PEL1"
_HEADER = struct.Struct("<4sII16sB")
_INDEX_MAGIC = b"PELI\x01\x00\x00\x00"
_COLUMNS: tuple[tuple[str, str], ...] = (
    ("hi", "<u8"),
    ("lo", "<u8"),
    ("offset", "<u8"),
    ("cost", "<f8"),
    ("created_s", "<f8"),
    ("length", "<u4"),
    ("prompt_tokens", "<u4"),
    ("completion_tokens", "<u4"),
    ("outcome", "<u1"),
)


class Entry(Record):
    """One billed reply. `request` is the digest of the canonical request; `tags` say what it was about.

    `seconds` is how long it was waited for.
    """

    request: Key
    outcome: Outcome
    text: str | None = None
    finish_reason: str | None = None
    message: str | None = None
    usage: Usage = Usage()
    teacher: str
    model: str
    created_s: float
    seconds: float | None = None
    tags: dict[str, str] = {}


@dataclass(frozen=True)
class Place:
    """Where a record lies in a file, and what its header says."""

    offset: int
    length: int
    outcome: Outcome
    created_s: float


def pack_record(entry: Entry) -> bytes:
    """The bytes of one record."""
    payload = entry.model_dump_json().encode()
    tail = entry.request + bytes([OUTCOMES.index(entry.outcome)])
    crc = zlib.crc32(payload, zlib.crc32(tail))
    return _HEADER.pack(_MAGIC, len(payload), crc, entry.request, tail[-1]) + payload


def read_records(stream: IO[bytes]) -> Iterator[tuple[int, int, Entry]]:
    """Offset, length and entry of every whole record of a stream, from its position up to a torn tail."""
    offset = stream.tell()
    while len(head := stream.read(_HEADER.size)) == _HEADER.size:
        magic, size, crc, digest, code = _HEADER.unpack(head)
        if magic != _MAGIC or code >= len(OUTCOMES):
            return
        payload = stream.read(size)
        if len(payload) < size or zlib.crc32(payload, zlib.crc32(digest + bytes([code]))) != crc:
            return
        length = _HEADER.size + size
        yield offset, length, Entry.model_validate_json(payload)
        offset += length


def read_raw(stream: IO[bytes]) -> bytes:
    """The bytes of the record at a stream's position. Raises `ValueError` where none begins."""
    head = stream.read(_HEADER.size)
    if len(head) < _HEADER.size or head[:4] != _MAGIC:
        raise ValueError("no ledger record begins here")
    size: int = _HEADER.unpack(head)[1]
    return head + stream.read(size)


def parse_record(data: bytes) -> Entry:
    """The entry of one record's bytes. Raises `ValueError` when they are not one whole record."""
    if len(data) < _HEADER.size or data[:4] != _MAGIC:
        raise ValueError("these bytes are not a ledger record")
    return Entry.model_validate_json(data[_HEADER.size :])


class Index:
    """Digests of one or more files, sorted; columns are arrays in memory or mapped from a file."""

    def __init__(self, columns: dict[str, NDArray[Any]], files: Sequence[str], file: NDArray[np.uint32] | None) -> None:
        self.columns = columns
        self.files = list(files)
        self._file = file

    def __len__(self) -> int:
        return len(self.columns["hi"])

    @property
    def end(self) -> int:
        """Where the last record of an index of one file ends, in bytes; 0 without records."""
        return int((self.columns["offset"] + self.columns["length"]).max()) if len(self) else 0

    def best(self, attempts_from: float) -> dict[str, NDArray[np.int64]]:
        """Of each request the one record that counts, as offsets by file in ascending order.

        That is its latest answer, else its latest attempt that was made at `attempts_from` (Unix seconds) or later.
        """
        columns = self.columns
        answer = columns["outcome"] == ANSWER
        order = np.lexsort((columns["created_s"], answer, columns["lo"], columns["hi"]))
        hi, lo = columns["hi"][order], columns["lo"][order]
        last = np.append((hi[1:] != hi[:-1]) | (lo[1:] != lo[:-1]), np.ones(min(len(hi), 1), bool))
        chosen = order[last]
        chosen = chosen[answer[chosen] | (columns["created_s"][chosen] >= attempts_from)]
        file = np.zeros(len(chosen), np.uint32) if self._file is None else self._file[chosen]
        offsets = columns["offset"][chosen].astype(np.int64)
        return {name: np.sort(offsets[file == at]) for at, name in enumerate(self.files)}

    def find(self, digest: bytes) -> list[tuple[str, Place]]:
        """File and place of every record of a request."""
        hi, lo = _halves(digest)
        column = self.columns["hi"]
        row, found = int(column.searchsorted(np.uint64(hi))), []
        while row < len(column) and column[row] == hi:
            if self.columns["lo"][row] == lo:
                found.append(self._at(row))
            row += 1
        return found

    def _at(self, row: int) -> tuple[str, Place]:
        name = self.files[0 if self._file is None else int(self._file[row])]
        columns = self.columns
        place = Place(
            offset=int(columns["offset"][row]),
            length=int(columns["length"][row]),
            outcome=OUTCOMES[int(columns["outcome"][row])],
            created_s=float(columns["created_s"][row]),
        )
        return name, place


def index_of(records: Iterable[tuple[int, int, Entry]], name: str) -> Index:
    """The index of one file's records, which are held no longer than it takes to index them."""
    rows = np.fromiter((_row(offset, length, entry) for offset, length, entry in records), np.dtype(list(_COLUMNS)))
    order = np.lexsort((rows["lo"], rows["hi"]))
    return Index({column: rows[column][order] for column, _ in _COLUMNS}, [name], None)


def merged(indexes: Sequence[Index]) -> Index:
    """Several indexes as one in memory."""
    files = [name for index in indexes for name in index.files]
    if not indexes:
        return Index({column: np.zeros(0, np.dtype(kind)) for column, kind in _COLUMNS}, [], None)
    owner = np.concatenate([np.full(len(index), i, np.uint32) for i, index in enumerate(indexes)])
    columns = {column: np.concatenate([index.columns[column] for index in indexes]) for column, _ in _COLUMNS}
    order = np.lexsort((columns["lo"], columns["hi"]))
    return Index({column: values[order] for column, values in columns.items()}, files, owner[order])


def index_bytes(index: Index) -> bytes:
    """An index of one file as the bytes of an `.idx` file."""
    parts = [index.columns[column].astype(kind).tobytes() for column, kind in _COLUMNS]
    return _INDEX_MAGIC + struct.pack("<Q", len(index)) + b"".join(parts)


def index_from(source: Path | bytes, name: str) -> Index:
    """An index from an `.idx` file (mapped, not read) or from its bytes. Raises `ValueError` when it is damaged."""
    # A plain array over the mapped file: a memmap's own slices are slow to make.
    raw = np.frombuffer(source if isinstance(source, bytes) else np.memmap(source, np.uint8, "r"), np.uint8)
    if len(raw) < 16 or bytes(raw[:8]) != _INDEX_MAGIC:
        raise ValueError(f"{name}: not a ledger index")
    count = struct.unpack("<Q", bytes(raw[8:16]))[0]
    columns, at = {}, 16
    for column, kind in _COLUMNS:
        size = count * np.dtype(kind).itemsize
        columns[column] = raw[at : at + size].view(np.dtype(kind))
        at += size
    if at != len(raw):
        raise ValueError(f"{name}: a ledger index of {count} rows has {at} bytes, this one has {len(raw)}")
    return Index(columns, [name], None)


def _halves(digest: bytes) -> tuple[int, int]:
    hi, lo = struct.unpack(">QQ", digest)
    return hi, lo


def _row(offset: int, length: int, entry: Entry) -> tuple[Any, ...]:
    hi, lo = _halves(entry.request)
    usage = entry.usage
    return (
        hi,
        lo,
        offset,
        usage.cost_usd or 0.0,
        entry.created_s,
        length,
        usage.prompt_tokens,
        usage.completion_tokens,
        OUTCOMES.index(entry.outcome),
    )
