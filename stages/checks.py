"""What a policy's checks say of each caption, as bits, computed block by block over whole score columns.

A check bounds one score column; a caption whose score lies outside speaks against it. A score of null (or NaN) did not
run: the check is silent, unless it says `on_null: fail`. It is silent too where it is not for the caption's scope.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from stages.policy import Check, Policy, PolicyError

SCOPE = ("source", "task", "language")
_BLOCK = 1 << 16
"""Rows that are looked at together: their scores fit a core's cache."""
_THREADS = 2
_MIX = np.uint64(0x9E3779B97F4A7C15)
_LIMITS: dict[str, tuple[np.ufunc, float]] = {
    "min": (np.less, -np.inf),
    "max": (np.greater, np.inf),
    "above": (np.less_equal, -np.inf),
    "below": (np.greater_equal, np.inf),
}
"""For each bound the comparison that speaks against a score, and the limit that never does."""

Bools = np.ndarray[Any, np.dtype[np.bool_]]
Bits = np.ndarray[Any, np.dtype[np.uint64]]
Ints = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float64]]
Scope = tuple[str | None, str, str]


@dataclass(frozen=True)
class Hits:
    """Bit i % 64 of word i // 64 of a row's `spoke` says that check i spoke against it, of its `silent` that it said
    nothing; both are (words, rows).

    `scope` numbers each row's (source, task, language) in `scopes`. Captions that are not ok are silent throughout.
    """

    reasons: tuple[str, ...]
    spoke: Bits
    silent: Bits
    scope: Ints
    scopes: list[Scope]

    def column(self, reason: str) -> pl.Series:
        """What one check said: true speaks against the caption, null says nothing."""
        place = self.reasons.index(reason)
        said, silent = pl.Series(reason, _set(self.spoke, place)), pl.Series("_", _set(self.silent, place))
        return pl.select(pl.when(~silent).then(said).alias(reason)).to_series()

    def count(self, bits: Bits, place: int, also: Bools | None = None) -> Ints:
        """In each scope the rows in which bit `place` of `bits` is set (and `also` holds)."""
        chosen = _set(bits, place)
        chosen = chosen if also is None else chosen & also
        return np.bincount(self.scope[chosen], minlength=len(self.scopes))

    def alone(self) -> Bools:
        """The rows against which exactly one check spoke."""
        spoken: Bools = np.bitwise_count(self.spoke).sum(0) == 1
        return spoken

    def combinations(self) -> tuple[Ints, list[int]]:
        """A number a row for the checks that spoke against it, and what each number stands for: bit i is check i.

        Number 0 stands for none.
        """
        spoken = np.flatnonzero(self.spoke.any(0))
        mixed, masks = np.zeros(len(spoken), np.int64), [0]
        for place, word in enumerate(self.spoke):
            values = np.unique(word[spoken])
            mixed = mixed * len(values) + np.searchsorted(values, word[spoken])
            found = np.unique(mixed)
            pairs = [divmod(int(number), len(values)) for number in found]
            masks = [masks[before] | int(values[at]) << 64 * place for before, at in pairs]
            mixed = np.searchsorted(found, mixed)
        codes = np.zeros(self.spoke.shape[1], np.int64)
        codes[spoken] = mixed + 1
        return codes, [0, *masks]


def _set(bits: Bits, place: int) -> Bools:
    """The rows in which bit `place` is set."""
    chosen: Bools = (bits[place // 64] >> np.uint64(place % 64) & np.uint64(1)).astype(bool)
    return chosen


def hits_of(frame: pl.DataFrame, policy: Policy) -> Hits:
    """What each check says of each row. `frame` has the scope columns, `status`, and score columns where there are any.

    Raises `PolicyError` for a check that ranks by columns that the frame lacks.
    """
    scope, scopes = number_scopes(frame)
    lost = (frame["status"] != "ok").to_numpy()
    tests = [_Test.of(check, scopes, frame) for check in policy.checks]
    words = max(1, -(-len(tests) // 64))
    spoke, silent = np.zeros((words, len(frame)), np.uint64), np.zeros((words, len(frame)), np.uint64)

    def look(start: int) -> None:
        rows = slice(start, min(start + _BLOCK, len(frame)))
        said = np.zeros((2, 8 * words, rows.stop - rows.start), np.uint8)
        for place, test in enumerate(tests):
            for plane, bits in zip(said[:, place // 8], test.judge(rows, scope[rows]), strict=True):
                if bits is not None:
                    # A product, since numpy shifts bytes one by one.
                    plane |= bits.view(np.uint8) * np.uint8(1 << place % 8)
        said[0, :, lost[rows]], said[1, :, lost[rows]] = 0, 255
        spoke[:, rows], silent[:, rows] = (np.ascontiguousarray(part.T).view("<u8").T for part in said)

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(look, range(0, len(frame), _BLOCK)))
    return Hits(tuple(check.reason for check in policy.checks), spoke, silent, scope, scopes)


def number_scopes(frame: pl.DataFrame) -> tuple[Ints, list[Scope]]:
    """The number of each row's (source, task, language), and these."""
    mixed = np.zeros(len(frame), np.uint64)
    for name in SCOPE:  # 64 bits for a few dozen scopes: no two are taken for one
        mixed = (mixed ^ frame[name].cast(pl.String).hash().to_numpy()) * _MIX
    distinct = np.sort(pl.Series(mixed).unique().to_numpy())
    numbers: Ints = np.searchsorted(distinct, mixed)
    example = np.zeros(len(distinct), np.int64)
    example[numbers] = np.arange(len(frame))
    shown = frame.select(pl.col(name).cast(pl.String) for name in SCOPE)[example.tolist()]
    return numbers, shown.rows() if len(distinct) else []


@dataclass(frozen=True)
class _Test:
    """One check made ready: its scores (None: no rule filled them) and its limits by the number of the scope.

    `valid` is the scores' validity as Arrow keeps it, a bit a row beginning with row `offset`; None: all are.
    """

    scores: np.ndarray[Any, Any] | None
    valid: np.ndarray[Any, np.dtype[np.uint8]] | None
    offset: int
    limits: tuple[tuple[np.ufunc, Floats], ...]
    applies: Bools
    fails_on_null: bool

    @classmethod
    def of(cls, check: Check, scopes: Sequence[Scope], frame: pl.DataFrame) -> _Test:
        bounds = [check.bounds(*scope) for scope in scopes]
        limits = []
        for name, (against, never) in _LIMITS.items():
            if any(given and name in given for given in bounds):
                limits.append((against, np.array([(given or {}).get(name, never) for given in bounds])))
        applies = np.array([bool(given) for given in bounds], np.bool_)
        scores, valid, offset = None, None, 0
        if check.column in frame.columns and applies.any() and frame[check.column].dtype != pl.Null:
            scores, valid, offset = _buffers(_ranks(check, frame) if check.rank_by else frame[check.column])
        return cls(scores, valid, offset, tuple(limits), applies, check.on_null == "fail")

    def judge(self, rows: slice, scope: Ints) -> tuple[Bools | None, Bools]:
        """For a block of rows: against which this check speaks (None: against none), and on which it is silent."""
        hit: Bools | None = None
        nothing = np.ones(rows.stop - rows.start, np.bool_)
        if self.scores is not None:
            values = self.scores[rows]
            for against, limits in self.limits:
                beyond = against(values, limits[0] if (limits == limits[0]).all() else limits.take(scope))
                hit = beyond if hit is None else hit | beyond
            valid = values == values if self.valid is None else self._valid(rows) & (values == values)
            hit = None if hit is None else hit & valid
            nothing = ~valid
        if self.fails_on_null:
            hit, nothing = nothing if hit is None else hit | nothing, np.zeros_like(nothing)
        if not self.applies.all():
            inside = self.applies.take(scope)
            hit, nothing = None if hit is None else hit & inside, nothing | ~inside
        return hit, nothing

    def _valid(self, rows: slice) -> Bools:
        assert self.valid is not None
        first, last = rows.start + self.offset, rows.stop + self.offset
        bits = np.unpackbits(self.valid[first // 8 : (last + 7) // 8], bitorder="little")
        return bits[first % 8 :][: last - first].view(np.bool_)


def _buffers(scores: pl.Series) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, np.dtype[np.uint8]] | None, int]:
    """The values of a score column without a copy, its validity bits, and where these begin."""
    number = scores if scores.dtype in (pl.Float64, pl.Int64) else scores.cast(pl.Float64)
    column = number.rechunk().to_arrow()
    bitmap, values = column.buffers()
    kind = np.int64 if number.dtype == pl.Int64 else np.float64
    held = np.frombuffer(values, kind)[column.offset : column.offset + len(column)] if values else np.empty(0, kind)
    return held, None if bitmap is None else np.frombuffer(bitmap, np.uint8), column.offset


def _ranks(check: Check, frame: pl.DataFrame) -> pl.Series:
    """The place of each score among those of its class, 0 to 1; null where there is no score."""
    if absent := [name for name in check.rank_by if name not in frame.columns]:
        raise PolicyError(f"check {check.reason!r} ranks by {', '.join(absent)}, which captions do not have")
    score = pl.col(check.column).cast(pl.Float64)
    place = ((score.rank("average") - 1) / (score.count() - 1)).over(check.rank_by).fill_nan(1.0)
    return frame.select(pl.when(score.is_not_null()).then(place)).to_series()
