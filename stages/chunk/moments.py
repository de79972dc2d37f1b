"""Moments of many run-length masks at once, from their compressed strings alone: no mask is ever painted.

A COCO run is a stretch of rows in a column, over which sums of powers have closed forms. All masks of a batch are
decoded in one pass of NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

Ints = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float64]]

BLOCK = 512
"""Masks worked on together: few enough for their runs to stay in a core's cache."""
POWERS = ((0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2), (3, 0), (2, 1), (1, 2), (0, 3))


@dataclass(frozen=True)
class Moments:
    """For m masks: area in pixels, centroid (pixel centres at +0.5), and central moments by the names of their powers.

    Rows of empty masks are zero. `box` is xyxy with exclusive maximum edges.
    """

    area: Floats
    x: Floats
    y: Floats
    central: dict[tuple[int, int], Floats]
    box: Floats


def run_ends(counts: pa.Array) -> tuple[Ints, Ints]:
    """The ends of all runs of compressed masks, as pixel numbers, and how many each mask has.

    `counts` are strings without nulls. Raises `ValueError` for strings that are not COCO run lengths.
    """
    strings = counts.cast(pa.large_binary())
    offsets = np.frombuffer(strings.buffers()[1], np.int64)[strings.offset : strings.offset + len(strings) + 1]
    data = np.frombuffer(strings.buffers()[2] or b"", np.uint8)[offsets[0] : offsets[-1]]
    offsets = offsets - offsets[0]
    if not len(data):
        return np.zeros(0, np.int64), np.zeros(len(strings), np.int64)
    groups = data.astype(np.int64) - 48
    if groups.min() < 0 or groups.max() > 63:
        raise ValueError("a mask's run lengths hold a character that does not occur in COCO's coding")
    last = (groups & 32) == 0
    lengths = np.diff(offsets)
    if not last[offsets[1:][lengths > 0] - 1].all():
        raise ValueError("a mask's run lengths are cut off")
    values = _varints(groups, last)
    ended = np.concatenate(([0], np.cumsum(last)))
    sizes = ended[offsets[1:]] - ended[offsets[:-1]]
    return _restore(values, sizes), sizes


def moments(counts: pa.Array, heights: Ints, widths: Ints) -> Moments:
    """Moments of compressed masks of the given sizes.

    Raises `ValueError` when the runs of a mask do not fill its size.
    """
    pieces = [
        _moments(counts.slice(start, BLOCK), heights[start : start + BLOCK], widths[start : start + BLOCK])
        for start in range(0, max(1, len(counts)), BLOCK)
    ]
    if len(pieces) == 1:
        return pieces[0]
    central = {power: np.concatenate([piece.central[power] for piece in pieces]) for power in pieces[0].central}
    area, x, y, box = (np.concatenate([getattr(p, name) for p in pieces]) for name in ("area", "x", "y", "box"))
    return Moments(area, x, y, central, box)


def _moments(counts: pa.Array, heights: Ints, widths: Ints) -> Moments:
    ends, sizes = run_ends(counts)
    mask_of = np.repeat(np.arange(len(sizes)), sizes)
    first = np.cumsum(sizes) - sizes
    wrong = np.flatnonzero((sizes == 0) | (ends[np.minimum(first + sizes - 1, len(ends) - 1)] != heights * widths))
    if len(wrong):
        raise ValueError(f"the run lengths of mask {int(wrong[0])} do not fill its size")
    place = np.arange(len(ends)) - first[mask_of]
    inside = np.flatnonzero(place & 1)
    inside = inside[ends[inside] > ends[inside - 1]]
    pieces = _columns(ends[inside - 1], ends[inside], heights[mask_of[inside]], mask_of[inside])
    return _central(_raw(*pieces, len(sizes)), _boxes(*pieces, len(sizes)))


def _columns(start: Ints, stop: Ints, height: Ints, owner: Ints) -> tuple[Ints, Ints, Ints, Ints]:
    """Runs cut at the ends of columns: column, first row, row after the last, and mask of each piece."""
    first, last = start // height, (stop - 1) // height
    if (first == last).all():
        low = start - first * height
        return first, low, low + stop - start, owner
    count = last - first + 1
    run = np.repeat(np.arange(len(start)), count)
    column = first[run] + np.arange(len(run)) - np.repeat(np.cumsum(count) - count, count)
    low = np.where(column == first[run], start[run] - first[run] * height[run], 0)
    high = np.where(column == last[run], stop[run] - last[run] * height[run], height[run])
    return column, low, high, owner[run]


def _raw(column: Ints, low: Ints, high: Ints, owner: Ints, count: int) -> dict[tuple[int, int], Floats]:
    """The sums of x^a y^b over each mask, from its pieces."""
    starts = np.flatnonzero(np.concatenate(([True], owner[1:] != owner[:-1]))) if len(owner) else owner
    x = column.astype(np.float64)
    a, b = low.astype(np.float64), high.astype(np.float64)
    # Sums of 1, y, y^2 and y^3 over the rows from a up to b.
    s1a, s1b = a * (a - 1) / 2, b * (b - 1) / 2
    rows = [b - a, s1b - s1a, (s1b * (2 * b - 1) - s1a * (2 * a - 1)) / 3, s1b * s1b - s1a * s1a]
    raw = {}
    for power in POWERS:
        term = rows[power[1]]
        for _ in range(power[0]):
            term = term * x
        raw[power] = np.zeros(count)
        if len(starts):
            raw[power][owner[starts]] = np.add.reduceat(term, starts)
    return raw


def _varints(groups: Ints, last: np.ndarray[Any, np.dtype[np.bool_]]) -> Ints:
    """Little-endian groups of five bits as signed numbers."""
    stops = np.flatnonzero(last)
    starts = np.concatenate(([0], stops[:-1] + 1))
    lengths = stops - starts + 1
    if lengths.max() > 12:
        raise ValueError("a mask's run lengths hold a number that no image has")
    place = np.arange(len(groups)) - np.repeat(starts, lengths)
    values: Ints = np.add.reduceat((groups & 31) << (5 * place), starts)
    return np.where(groups[stops] & 16, values - (np.int64(1) << (5 * lengths)), values)


def _restore(values: Ints, sizes: Ints) -> Ints:
    """Undoes COCO's differences (from the fourth run on, to the run two before) and adds the runs up within a mask."""
    mask_of = np.repeat(np.arange(len(sizes)), sizes)
    first = np.concatenate(([0], np.cumsum(sizes)[:-1]))
    place = np.arange(len(values)) - first[mask_of]
    counts = values.copy()
    for parity in (0, 1):
        chain = np.flatnonzero((place % 2 == parity) & (place > 0))
        if len(chain):
            counts[chain] = _cumsum_within(values[chain], mask_of[chain])
    if len(counts) and counts.min() < 0:
        raise ValueError("a mask's run lengths hold a negative run")
    return _cumsum_within(counts, mask_of)


def _cumsum_within(values: Ints, group: Ints) -> Ints:
    total = np.cumsum(values)
    starts = np.flatnonzero(np.concatenate(([True], group[1:] != group[:-1])))
    before = np.concatenate(([0], total))[starts]
    sums: Ints = total - np.repeat(before, np.diff(np.append(starts, len(values))))
    return sums


def _central(raw: dict[tuple[int, int], Floats], box: Floats) -> Moments:
    area = raw[0, 0]
    safe = np.maximum(area, 1)
    x, y = raw[1, 0] / safe, raw[0, 1] / safe
    m20, m11, m02 = raw[2, 0] - x * raw[1, 0], raw[1, 1] - x * raw[0, 1], raw[0, 2] - y * raw[0, 1]
    central = {
        (2, 0): m20,
        (1, 1): m11,
        (0, 2): m02,
        (3, 0): raw[3, 0] - 3 * x * raw[2, 0] + 2 * x * x * raw[1, 0],
        (2, 1): raw[2, 1] - 2 * x * raw[1, 1] - y * raw[2, 0] + 2 * x * x * raw[0, 1],
        (1, 2): raw[1, 2] - 2 * y * raw[1, 1] - x * raw[0, 2] + 2 * y * y * raw[1, 0],
        (0, 3): raw[0, 3] - 3 * y * raw[0, 2] + 2 * y * y * raw[0, 1],
    }
    full = area > 0
    return Moments(area, np.where(full, x + 0.5, 0), np.where(full, y + 0.5, 0), central, box)


def _boxes(column: Ints, low: Ints, high: Ints, owner: Ints, count: int) -> Floats:
    """Boxes (count, 4) from the pieces of runs; zeros for masks without any."""
    box = np.zeros((count, 4))
    if len(owner):
        starts = np.flatnonzero(np.concatenate(([True], owner[1:] != owner[:-1])))
        edges = [
            np.minimum.reduceat(column, starts),
            np.minimum.reduceat(low, starts),
            np.maximum.reduceat(column, starts) + 1,
            np.maximum.reduceat(high, starts),
        ]
        box[owner[starts]] = np.stack(edges, axis=1)
    return box
