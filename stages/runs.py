"""Many masks at once as column runs: holes, parts, areas, boxes and COCO run lengths without any pixel.

A run is a stretch of one column: `start` to `end`, positions `x * height + y` within its mask, `end` exclusive. What
`stages.masks` finds on the pixels of one mask is found here on the runs of all masks of a batch, in a few passes of
NumPy, with the same answers (tests/stages/test_runs.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from schemas.base import Box
from schemas.geometry import Rle
from stages import masks

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Runs:
    """The runs of n masks, ordered by mask, column and row: `owner`, `start`, `end` (r,); `heights`, `widths` (n,)."""

    owner: Ints
    start: Ints
    end: Ints
    heights: Ints
    widths: Ints

    def __len__(self) -> int:
        return len(self.heights)

    @property
    def column(self) -> Ints:
        """The column of each run (r,)."""
        return self.start // self.heights[self.owner]

    @property
    def top(self) -> Ints:
        """The first row of each run (r,)."""
        return self.start % self.heights[self.owner]

    @property
    def length(self) -> Ints:
        """Pixels of each run (r,)."""
        return self.end - self.start

    def areas(self) -> Ints:
        """Pixels inside each mask (n,)."""
        return _sums(self.owner, self.length, len(self))

    def boxes(self) -> Ints:
        """Tight xyxy boxes (n, 4), maximum edges exclusive; zeros for an empty mask."""
        found = np.zeros((len(self), 4), np.int64)
        some, first = np.unique(self.owner, return_index=True)
        if len(some):
            column, top = self.column, self.top
            last = np.append(first[1:], len(self.owner)) - 1
            lowest, highest = np.minimum.reduceat(top, first), np.maximum.reduceat(top + self.length, first)
            found[some] = np.stack([column[first], lowest, column[last] + 1, highest], axis=1)
        return found


@dataclass(frozen=True)
class Outline:
    """One mask's facts: its run lengths, tight box (None where it is empty), area, 8-connected parts, the largest
    part's share of the area, and how many holes were filled."""

    rle: Rle
    box: Box | None
    area: int
    parts: int
    main_part_share: float
    holes_filled: int


def from_edges(edges: Ints, heights: Ints, widths: Ints, starts: Ints) -> Runs:
    """Runs from where columns change between outside and inside.

    Each column counts height + 1 places, before its first pixel, between two, and after its last; `edges` (2r,) are
    the places of change in order, counted through all columns of all masks; `starts` (n + 1,) is where each mask
    begins in that count.
    """
    opened, closed = edges[::2], edges[1::2]
    owner = np.searchsorted(starts, opened, side="right") - 1
    column = (opened - starts[owner]) // (heights[owner] + 1)
    shift = starts[owner] + column  # one place a column is no pixel
    return Runs(owner, opened - shift, closed - shift, heights, widths)


def outlines(runs: Runs, fill: float = 0.0) -> list[Outline]:
    """The facts of each mask after holes of at most `fill` of its area were filled."""
    runs, holes = fill_holes(runs, fill)
    areas, boxes = runs.areas(), runs.boxes()
    count, largest = parts(runs)
    codes = encode(runs)
    return [
        Outline(
            rle=code,
            box=(float(b[0]), float(b[1]), float(b[2]), float(b[3])) if area else None,
            area=area,
            parts=number,
            main_part_share=float(main / area) if area else 0.0,
            holes_filled=filled,
        )
        for code, b, area, number, main, filled in zip(
            codes, boxes.tolist(), areas.tolist(), count.tolist(), largest.tolist(), holes.tolist(), strict=True
        )
    ]


def parts(runs: Runs) -> tuple[Ints, Ints]:
    """The number of 8-connected parts of each mask (n,), and the pixels of the largest (n,)."""
    labels, count = _components(runs, _lines(runs), diagonal=True)
    sizes = _sums(labels, runs.length, count)
    owners = np.zeros(count, np.int64)
    owners[labels] = runs.owner
    largest = np.zeros(len(runs), np.int64)
    np.maximum.at(largest, owners, sizes)
    return np.bincount(owners, minlength=len(runs)), largest


def fill_holes(runs: Runs, share: float) -> tuple[Runs, Ints]:
    """The masks with their holes of at most `share` of their area filled, and how many there were (n,).

    A hole is a 4-connected part of the outside that does not touch the edge of the mask's box.
    """
    filled = np.zeros(len(runs), np.int64)
    lines = _lines(runs)
    again = np.flatnonzero(lines[1:] == lines[:-1]) + 1  # not the first run of its column: there is a gap above
    if share <= 0 or not len(again):
        return runs, filled
    suspect = np.zeros(len(runs), np.bool_)
    suspect[runs.owner[again]] = True
    chosen = np.flatnonzero(suspect[runs.owner])
    some = replace(runs, **{name: getattr(runs, name)[chosen] for name in ("owner", "start", "end")})
    gaps, above, edge = _gaps(some)
    labels, count = _components(gaps, _lines(gaps), diagonal=False)
    open_labels = np.zeros(count, np.bool_)
    open_labels[labels[edge]] = True
    sizes = _sums(labels, gaps.length, count)
    owners = np.zeros(count, np.int64)
    owners[labels] = gaps.owner
    small = ~open_labels & (sizes <= (share * runs.areas()[owners]).astype(np.int64))
    np.add.at(filled, owners[small], 1)
    before = chosen[above[small[labels]]]  # the run above each gap that is filled; the one below it follows
    keep_end, keep_start = np.ones(len(runs.owner), np.bool_), np.ones(len(runs.owner), np.bool_)
    keep_end[before], keep_start[before + 1] = False, False
    return Runs(runs.owner[keep_start], runs.start[keep_start], runs.end[keep_end], runs.heights, runs.widths), filled


def encode(runs: Runs) -> list[Rle]:
    """COCO's compressed run lengths of each mask."""
    size = runs.heights * runs.widths
    base = np.concatenate([[0], np.cumsum(size)])
    start, end = runs.start + base[runs.owner], runs.end + base[runs.owner]
    same = runs.owner[1:] == runs.owner[:-1]
    joined = (end[:-1] == start[1:]) & same  # over the foot of one column and the head of the next
    first, last = np.r_[True, ~joined][: len(start)], np.r_[~joined, True][: len(end)]
    owner = runs.owner[first]
    changes = np.stack([start[first], end[last]], axis=1).ravel()
    many = np.bincount(owner, minlength=len(runs))
    where = np.concatenate([[0], np.cumsum(2 * many)])
    edges = np.insert(changes, where[1:], base[1:])  # each mask's own end closes its last run
    opening = where[:-1] + np.arange(len(runs))
    counts = np.diff(edges, prepend=0)
    keep = np.ones(len(edges), np.bool_)
    closing = opening + 2 * many
    keep[closing] = (counts[closing] > 0) | (many == 0)
    lengths = _sums(np.repeat(np.arange(len(runs)), 2 * many + 1), keep.astype(np.int64), len(runs))
    texts = masks.compressed(counts[keep], lengths)
    sizes = zip(runs.heights.tolist(), runs.widths.tolist(), strict=True)
    return [Rle(size=(height, width), counts=text) for (height, width), text in zip(sizes, texts, strict=True)]


def _gaps(runs: Runs) -> tuple[Runs, Ints, Flags]:
    """What lies outside within the masks' boxes, as runs; the run above each (-1: none); which touch the box's edge."""
    boxes, heights = runs.boxes(), runs.heights
    wide = boxes[:, 2] - boxes[:, 0]
    owner = np.repeat(np.arange(len(runs)), wide)  # of each column of each box
    offset = np.cumsum(wide) - wide
    column = np.arange(len(owner)) - offset[owner] + boxes[owner, 0]
    of_run = offset[runs.owner] + runs.column - boxes[runs.owner, 0]
    first = np.searchsorted(of_run, np.arange(len(owner)))
    last = np.searchsorted(of_run, np.arange(len(owner)), side="right")
    total, numbers = len(owner) + len(runs.owner), np.arange(len(runs.owner))
    start, end, place, above = (np.empty(total, np.int64) for _ in range(4))
    heads, feet = np.arange(len(owner)) + first, np.arange(len(owner)) + last
    start[heads], start[numbers + of_run + 1] = column * heights[owner] + boxes[owner, 1], runs.end
    end[feet], end[numbers + of_run] = column * heights[owner] + boxes[owner, 3], runs.start
    place[heads], place[numbers + of_run + 1] = np.arange(len(owner)), of_run
    above[heads], above[numbers + of_run + 1] = -1, numbers
    touching = np.zeros(total, np.bool_)
    touching[heads], touching[feet] = True, True
    outer = (column == boxes[owner, 0]) | (column == boxes[owner, 2] - 1)
    touching |= outer[place]
    real = end > start
    found = Runs(owner[place][real], start[real], end[real], heights, runs.widths)
    return found, above[real], touching[real]


def _lines(runs: Runs) -> Ints:
    """A number for each run's column that is the same only within a column, and follows on only within a mask."""
    base = np.cumsum(runs.widths + 1) - runs.widths - 1
    return base[runs.owner] + runs.column


def _components(runs: Runs, lines: Ints, diagonal: bool) -> tuple[Ints, int]:
    """A label for each run (r,), the same for runs that are connected, and the number of labels."""
    if not len(runs.owner):
        return np.zeros(0, np.int64), 0
    room = int(runs.heights.max()) + 2
    top, reach = runs.top, runs.top + runs.length
    slack = int(diagonal)
    low = np.searchsorted(lines * room + reach, (lines + 1) * room + top + 1 - slack)
    high = np.searchsorted(lines * room + top, (lines + 1) * room + reach - 1 + slack, side="right")
    many = np.maximum(high - low, 0)
    left = np.repeat(np.arange(len(lines)), many)
    right = np.arange(len(left)) - np.repeat(np.cumsum(many) - many, many) + np.repeat(low, many)
    links = coo_array((np.ones(len(left), np.bool_), (left, right)), shape=(len(lines), len(lines)))
    count, labels = connected_components(links, directed=False)
    return labels.astype(np.int64), int(count)


def _sums(where: Ints, values: NDArray[Any], count: int) -> Ints:
    """The sum of the values at each place (count,)."""
    return np.bincount(where, weights=values, minlength=count).astype(np.int64)
