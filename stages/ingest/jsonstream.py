"""Large JSON files in pieces: the items of an object's members, decoded a few megabytes at a time.

Brackets outside strings are found with numpy, and whole runs of items are handed to orjson, so that a 4 GB file is
read at nearly orjson's speed in the memory of one piece. An item that is no JSON comes out as `BadItem`; the others of
its piece are unharmed. `NaN` and `Infinity`, which Python writers emit, decode as floats.
"""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

import fsspec
import numpy as np
import orjson
from numpy.typing import NDArray

from stages.ingest.base import SourceError

PIECE_BYTES = 4 << 20
_NAME = re.compile(rb'\s*,?\s*"((?:[^"\\]|\\.)*)"\s*:\s*', re.DOTALL)
_SCALAR = re.compile(rb'(?:"(?:[^"\\]|\\.)*"|[^\s,\[\]{}"]+)(?=\s*[,}])', re.DOTALL)
_BETWEEN = re.compile(rb"\}\s*,\s*\{")
_TAIL_BYTES = 1 << 16
_GUESSES = 3
"""Guesses at where items end that may fail in one list before it is read without."""
_BRACKET, _QUOTE, _SLASH = 1, 2, 3
_KIND = np.zeros(256, np.uint8)
_KIND[[ord(c) for c in "[]{}"]] = _BRACKET
_KIND[ord('"')], _KIND[ord("\\")] = _QUOTE, _SLASH
_MARKED = (_KIND > 0).tobytes()


@dataclass(frozen=True)
class BadItem:
    """An item that is no JSON: its first bytes and what the parser said."""

    raw: str
    error: str


def members(
    path: str, wanted: Collection[str] | None = None, storage_options: Mapping[str, Any] | None = None
) -> Iterator[tuple[str, Any]]:
    """(member, piece) for a file that holds one object: pieces of its members named in `wanted` (None: all).

    An array's pieces are lists of items, an object's are lists of (name, value) pairs, a scalar is itself. A file
    that holds an array is the member `""`. An empty array or object yields one empty piece, so that every member that
    is there is seen. Raises `SourceError` naming the file for what is no JSON document, or ends early.
    """
    with open_text(path, storage_options) as stream:
        scanner = _Scanner(path, stream)
        try:
            yield from scanner.run(wanted)
        except (OSError, EOFError) as error:
            raise SourceError(f"{path}: cannot be read: {error}") from error


def lacks(path: str, member: str, name: str, storage_options: Mapping[str, Any] | None = None) -> SourceError:
    """The error for a document of format `name` without this member, which shows the members that it has."""
    found = sorted({found for found, _ in members(path, None, storage_options)})
    return SourceError(f"{path}: no member {member!r}, only {found}: is this {name}?")


def items(path: str, storage_options: Mapping[str, Any] | None = None) -> Iterator[Any]:
    """The items of a file that holds one array, `BadItem`s among them. Raises `SourceError` for another document."""
    for name, piece in members(path, None, storage_options):
        if name != "":
            raise SourceError(f"{path}: expected a list, found an object with the member {name!r}")
        yield from piece


def load(path: str, storage_options: Mapping[str, Any] | None = None) -> Any:
    """A whole, small document. Raises `SourceError` naming the file."""
    with open_text(path, storage_options) as stream:
        data = stream.read()
    try:
        return decode(data)
    except ValueError as error:
        raise SourceError(f"{path}: no JSON document: {error}") from error


def lines(path: str, storage_options: Mapping[str, Any] | None = None) -> Iterator[tuple[int, Any]]:
    """(line number from 1, value or `BadItem`) of a JSON-lines file; blank lines are skipped."""
    with open_text(path, storage_options) as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                yield number, _decode_item(line)


@contextmanager
def open_text(path: str, storage_options: Mapping[str, Any] | None = None) -> Iterator[IO[bytes]]:
    """An annotation file for reading bytes, decompressed by its ending. Raises `SourceError` naming a missing file."""
    try:
        # Held until the file is closed: an archive closes with its file system, and that with the last name for it.
        opened = fsspec.open(path, "rb", compression="infer", **dict(storage_options or {}))
        stream: IO[bytes] = opened.open()
    except FileNotFoundError as error:
        raise SourceError(f"{path}: no such annotation file") from error
    except (OSError, ValueError) as error:
        raise SourceError(f"{path}: cannot be opened: {error}") from error
    try:
        yield stream
    finally:
        opened.close()


def decode(data: bytes) -> Any:
    """One JSON value; `NaN`, `Infinity` and raw control characters are let through. Raises `ValueError`."""
    try:
        return _loads(data)
    except orjson.JSONDecodeError:
        try:
            return json.loads(data, strict=False)
        except RecursionError as error:
            raise ValueError("nested too deeply") from error


def _loads(data: bytes) -> Any:
    """`orjson.loads` without the garbage collector: a piece makes tens of thousands of containers and no cycle, and
    each few hundred of them would have it walk over all objects of the process.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        return orjson.loads(data)
    finally:
        if collecting:
            gc.enable()


class _Scanner:
    """One pass over a document; `_data[_at:]` always begins outside a string, between items."""

    def __init__(self, path: str, stream: IO[bytes]) -> None:
        self._path, self._stream = path, stream
        self._data, self._at, self._end = b"", 0, False
        self._offset = 0

    def run(self, wanted: Collection[str] | None) -> Iterator[tuple[str, Any]]:
        opening = self._byte()
        if self._data.startswith(b"\xef\xbb\xbf"):
            self._at = 3
            opening = self._byte()
        if opening not in (b"[", b"{"):
            raise self._error(f"expected a JSON object or list, found {self._data[self._at : self._at + 20]!r}")
        self._at += 1
        if opening == b"[":
            yield from (("", piece) for piece in self._container(False, True))
        else:
            yield from self._members(wanted)
        if self._byte() != b"":
            raise self._error("more text follows the end of the document")

    def _members(self, wanted: Collection[str] | None) -> Iterator[tuple[str, Any]]:
        while True:
            if self._byte() == b"}":
                self._at += 1
                return
            name = self._name()
            opening = self._byte()
            keep = wanted is None or name in wanted
            if opening in (b"[", b"{"):
                self._at += 1
                for piece in self._container(opening == b"{", keep):
                    if keep:
                        yield name, piece
            else:
                value = self._scalar(name)
                if keep:
                    yield name, value

    def _name(self) -> str:
        match = _NAME.match(self._data, self._at)
        while match is None and not self._end and len(self._data) - self._at < 1 << 16:
            self._more()
            match = _NAME.match(self._data, self._at)
        if match is None:
            raise self._error("expected a member name")
        try:
            name = decode(b'"' + match[1] + b'"')
        except ValueError as error:
            raise self._error(f"a member name is no JSON: {error}") from error
        self._at = match.end()
        return str(name)

    def _scalar(self, name: str) -> Any:
        match = _SCALAR.match(self._data, self._at)
        while match is None and not self._end:
            self._more()
            match = _SCALAR.match(self._data, self._at)
        if match is None:
            raise self._error(f"the value of {name!r} does not end")
        try:
            value = decode(match[0])
        except ValueError as error:
            raise self._error(f"the value of {name!r} is no JSON: {error}") from error
        self._at = match.end()
        return value

    def _container(self, pairs: bool, keep: bool) -> Iterator[list[Any]]:
        """The items up to the closing bracket, in pieces."""
        empty, guesses = True, _GUESSES if keep and not pairs else 0
        while True:
            if guesses and (piece := self._guessed()):
                empty = False
                yield piece
                self._more()
                continue
            guesses = max(0, guesses - 1)
            where, depth = _brackets(self._data, self._at)
            finish = np.flatnonzero(depth < 0)
            if len(finish):
                stop, closed = int(where[finish[0]]), True
                where, depth = where[: finish[0]], depth[: finish[0]]
            else:
                tops = where[depth == 0]
                stop, closed = (int(tops[-1]) + 1 if len(tops) else self._at), False
            if keep and stop > self._at:
                ends = where[depth == 0]
                piece = _decode_piece(self._data[self._at : stop], pairs, ends[ends < stop] - self._at)
                if piece:
                    empty = False
                    yield piece
            self._at = stop
            if closed:
                self._at += 1
                if empty:
                    yield []
                return
            if self._end:
                raise self._error("the file ends inside a list or object: it is truncated or a quote is missing")
            self._more()

    def _guessed(self) -> list[Any]:
        """The items up to the last `}, {` in sight, if what comes before it parses; none otherwise.

        Then the cut was between two items: a text that stops inside an item, or runs on after the list, is no JSON.
        It saves the search for brackets, which takes longer than parsing.
        """
        tail = max(self._at, len(self._data) - _TAIL_BYTES)
        cuts = [match.start() + 1 for match in _BETWEEN.finditer(self._data, tail)]
        if not cuts:
            return []
        try:
            piece: list[Any] = _loads(b"[" + self._data[self._at : cuts[-1]].lstrip(b", \t\r\n") + b"]")
        except orjson.JSONDecodeError:
            return []
        self._at = cuts[-1]
        return piece

    def _byte(self) -> bytes:
        """The next byte that is no white space, `b""` at the end."""
        while True:
            rest = self._data[self._at : self._at + 4096].lstrip()
            if rest:
                self._at += len(self._data[self._at : self._at + 4096]) - len(rest)
                return rest[:1]
            self._at = min(self._at + 4096, len(self._data))
            if self._at >= len(self._data):
                if self._end:
                    return b""
                self._more()

    def _more(self) -> None:
        """Drops what is done with and reads on; a piece without progress doubles, so that long items stay linear."""
        left = len(self._data) - self._at
        piece = self._stream.read(max(PIECE_BYTES, left))
        self._offset += self._at
        self._data, self._at, self._end = self._data[self._at :] + piece, 0, not piece

    def _error(self, message: str) -> SourceError:
        return SourceError(f"{self._path}: at byte {self._offset + self._at}: {message}")


def _brackets(data: bytes, start: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions of the brackets outside strings from `start`, and the depth after each (0: an item has ended)."""
    array = np.frombuffer(data, np.uint8)[start:]
    where = np.flatnonzero(np.frombuffer(data.translate(_MARKED), np.bool_)[start:])
    kinds = _KIND[array[where]]
    if (kinds == _SLASH).any():
        plain = ~_escaped(where, kinds)
        where, kinds = where[plain], kinds[plain]
    inside = (np.cumsum(kinds == _QUOTE) & 1) == 1
    where = where[(kinds == _BRACKET) & ~inside]
    signs = array[where]
    opens = (signs == ord("[")) | (signs == ord("{"))
    return where + start, np.cumsum(np.where(opens, 1, -1))


def _escaped(where: NDArray[np.int64], kinds: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which quotes follow an odd run of backslashes."""
    slashes = where[kinds == _SLASH]
    breaks = np.concatenate([[True], np.diff(slashes) != 1])
    run = np.arange(len(slashes)) - np.maximum.accumulate(np.where(breaks, np.arange(len(slashes)), 0)) + 1
    at = np.searchsorted(slashes, where - 1)
    at = np.minimum(at, len(slashes) - 1)
    behind = slashes[at] == where - 1
    escaped: NDArray[np.bool_] = (kinds == _QUOTE) & behind & (run[at] % 2 == 1)
    return escaped


def _decode_piece(data: bytes, pairs: bool, ends: NDArray[np.int64]) -> list[Any]:
    body = data.strip().lstrip(b",")
    if not body.strip():
        return []
    try:
        value = _loads(b"{" + body + b"}" if pairs else b"[" + body + b"]")
        if not pairs:
            return list(value)
        if len(value) == len(ends) and all(isinstance(item, dict | list) for item in value.values()):
            return list(value.items())
    except orjson.JSONDecodeError:
        pass  # the items one by one: the good ones pass, the bad ones are named
    return _decode_each(data, pairs, ends)


def _decode_each(data: bytes, pairs: bool, ends: NDArray[np.int64]) -> list[Any]:
    out: list[Any] = []
    start = 0
    for end in [*(int(item) + 1 for item in ends), len(data)]:
        raw = data[start:end].strip().lstrip(b",").strip()
        start = end
        if not raw:
            continue
        if not pairs:
            scalars = _decode_item(b"[" + raw + b"]")
            out.extend(scalars if isinstance(scalars, list) else [_decode_item(raw)])
            continue
        value = _decode_item(b"{" + raw + b"}")
        out.extend(value.items() if isinstance(value, dict) else [("", value)])
    return out


def _decode_item(raw: bytes) -> Any:
    try:
        return decode(raw)
    except ValueError as error:
        return BadItem(raw[:200].decode("utf-8", "replace"), str(error)[:200])
