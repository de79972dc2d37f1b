"""Spans: pieces of a masklet's time, and the rules that every back end's proposals go through."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float64]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class Span:
    """From `start_s` up to `end_s`. `motion` and `displacement` (fraction of the diagonal) are null if not measured."""

    start_s: float
    end_s: float
    absent: bool = False
    motion: str | None = None
    displacement: float | None = None

    @property
    def length_s(self) -> float:
        return self.end_s - self.start_s


def repair(proposed: Sequence[tuple[float, float]], start_s: float, end_s: float) -> tuple[list[Span], list[str]]:
    """Spans in order, within the masklet and without gaps or overlaps, and what had to be mended.

    An overlap ends where the next span begins; a gap goes half to each side; spans outside or reversed are left out.
    No usable span at all gives one span over everything.
    """
    notes = []
    inside = [(max(a, start_s), min(b, end_s)) for a, b in proposed if np.isfinite(a) and np.isfinite(b)]
    sound = sorted((a, b) for a, b in inside if b - a > 1e-6)
    if len(sound) < len(proposed):
        notes.append(f"{len(proposed) - len(sound)} spans left out: reversed, empty or outside {start_s:g}-{end_s:g} s")
    if not sound:
        return [Span(start_s, end_s)], [*notes, "no usable span: one event over everything"]
    if list(inside) != sorted(inside):
        notes.append("spans were out of order")
    overlaps = sum(a[1] > b[0] + 1e-6 for a, b in itertools.pairwise(sound))
    gaps = sum(a[1] < b[0] - 1e-6 for a, b in itertools.pairwise(sound))
    gaps += sound[0][0] > start_s + 1e-6
    gaps += sound[-1][1] < end_s - 1e-6
    notes += [f"{overlaps} overlaps cut"] * bool(overlaps) + [f"{gaps} gaps closed"] * bool(gaps)
    cuts = [b[0] if a[1] >= b[0] else (a[1] + b[0]) / 2 for a, b in itertools.pairwise(sound)]
    edges = sorted({start_s, *cuts, end_s})
    return [Span(a, b) for a, b in itertools.pairwise(edges)], notes


def absences(time_s: Floats, visible: Bools, end_s: float, shortest_s: float) -> list[tuple[float, float]]:
    """The stretches of at least `shortest_s` in which the target is not visible.

    Edges lie halfway between the samples on their two sides. A glimpse of under half of `shortest_s` between two
    absences does not part them.
    """
    changes = np.flatnonzero(visible[1:] != visible[:-1]) + 1
    edges = [float(time_s[0]), *((time_s[changes - 1] + time_s[changes]) / 2).tolist(), end_s]
    states = [bool(visible[i]) for i in (0, *changes.tolist())]
    gone: list[tuple[float, float]] = []
    for start, end, seen in zip(edges, edges[1:], states, strict=False):
        if seen:
            continue
        if gone and start - gone[-1][1] < shortest_s / 2:
            gone[-1] = (gone[-1][0], end)
        else:
            gone.append((start, end))
    return [(start, end) for start, end in gone if end - start >= shortest_s]


def with_absences(spans: Sequence[Span], gone: Sequence[tuple[float, float]]) -> list[Span]:
    """The spans with absences cut out of them as spans of their own."""
    out: list[Span] = []
    for span in spans:
        start = span.start_s
        for a, b in gone:
            if b <= start or a >= span.end_s:
                continue
            if a > start:
                out.append(replace(span, start_s=start, end_s=a))
            end = min(b, span.end_s)
            out.append(Span(max(a, start), end, absent=True, motion="absent"))
            start = end
        if start < span.end_s:
            out.append(replace(span, start_s=start))
    return _joined(out, lambda a, b: a.absent and b.absent)


def lengths(spans: Sequence[Span], min_s: float, max_s: float) -> list[Span]:
    """Short spans join the shorter visible neighbour that follows or precedes them directly; long ones are cut evenly.

    An absence is never joined to a visible span, however short either is.
    """
    kept = list(spans)
    while (short := _shortest(kept, min_s)) is not None:
        index, other = short
        first, second = sorted((index, other))
        a, b = kept[first], kept[second]
        longer = a if a.length_s >= b.length_s else b
        kept[first : second + 1] = [replace(longer, start_s=a.start_s, end_s=b.end_s)]
    return [piece for span in kept for piece in _cut(span, max_s)]


def merged(spans: Sequence[Span]) -> list[Span]:
    """Neighbours of the same motion as one."""
    return _joined(spans, lambda a, b: a.absent == b.absent and a.motion is not None and a.motion == b.motion)


def uniform(start_s: float, end_s: float, length_s: float) -> list[Span]:
    """Equal spans of about `length_s`."""
    return _cut(Span(start_s, end_s), length_s, up=False)


def _shortest(spans: list[Span], min_s: float) -> tuple[int, int] | None:
    """The shortest span under `min_s` that has a neighbour of its own kind, and that neighbour."""
    best: tuple[float, int, int] | None = None
    for i, span in enumerate(spans):
        near = [j for j in (i - 1, i + 1) if 0 <= j < len(spans) and spans[j].absent == span.absent]
        if span.length_s < min_s - 1e-9 and near:
            choice = min(near, key=lambda j: spans[j].length_s)
            best = min(best, (span.length_s, i, choice)) if best else (span.length_s, i, choice)
    return best[1:] if best else None


def _cut(span: Span, length_s: float, up: bool = True) -> list[Span]:
    whole = span.length_s / length_s
    count = max(1, int(np.ceil(whole - 1e-9)) if up else round(whole))
    edges = [span.start_s + span.length_s * i / count for i in range(count)] + [span.end_s]
    share = None if span.displacement is None else span.displacement / count
    return [replace(span, start_s=a, end_s=b, displacement=share) for a, b in itertools.pairwise(edges)]


def _joined(spans: Sequence[Span], same: Any) -> list[Span]:
    out: list[Span] = []
    for span in spans:
        if out and same(out[-1], span):
            moved = [d for d in (out[-1].displacement, span.displacement) if d is not None]
            out[-1] = replace(out[-1], end_s=span.end_s, displacement=sum(moved) if moved else None)
        else:
            out.append(span)
    return out


def described(spans: Sequence[Span], measured: Sequence[Span]) -> list[Span]:
    """Spans of another back end with the motion that was measured during them: the words of the longest stretches.

    Words of stretches that fill at least a quarter of a span are told, in order of time. Where these tell of nothing
    but stillness, those of the longest that lies by half or more within the span are: two steps in a long span are
    motion all the same.
    """
    return [span if span.absent else _described(span, measured) for span in spans]


def _described(span: Span, measured: Sequence[Span]) -> Span:
    words: list[str] = []
    brief: tuple[float, list[str]] = (0.0, [])
    moved = 0.0
    for stretch in measured:
        shared = min(span.end_s, stretch.end_s) - max(span.start_s, stretch.start_s)
        if shared <= 0 or stretch.absent:
            continue
        moved += (stretch.displacement or 0.0) * shared / stretch.length_s
        told = [word for word in (stretch.motion or "").split(", ") if word and word != "still"]
        if shared >= 0.25 * span.length_s:
            words += [word for word in told if word not in words]
        elif told and shared >= 0.5 * stretch.length_s and shared > brief[0]:
            brief = (shared, told)
    return replace(span, motion=", ".join(words or brief[1] or ["still"]), displacement=moved)
