"""Moments of many run-length masks at once, from their compressed strings alone: no mask is ever painted.

A COCO run is a stretch of column-major pixel numbers; the sum of x^a y^b over the numbers below n has a closed form; a
mask's moment is the sum of differences at its runs' ends. All masks of a batch are decoded in one pass of NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

Ints = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float64]]

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
    ends, sizes = run_ends(counts)
    mask_of = np.repeat(np.arange(len(sizes)), sizes)
    first = np.concatenate(([0], np.cumsum(sizes)[:-1])) if len(sizes) else np.zeros(0, np.int64)
    wrong = np.flatnonzero((sizes == 0) | (ends[np.minimum(first + sizes - 1, len(ends) - 1)] != heights * widths))
    if len(wrong):
        raise ValueError(f"the run lengths of mask {int(wrong[0])} do not fill its size")
    place = np.arange(len(ends)) - first[mask_of]
    inside = np.flatnonzero(place % 2 == 1)
    inside = inside[ends[inside] > ends[inside - 1]]
    owner = mask_of[inside]
    start, stop, height = ends[inside - 1], ends[inside], heights[owner]
    low, high = _powers(start, height), _powers(stop, height)
    raw = {power: _sum_by(owner, high[power] - low[power], len(sizes)) for power in POWERS}
    return _central(raw, _boxes(start, stop, height, owner, len(sizes)))


def _sum_by(owner: Ints, values: Ints, count: int) -> Floats:
    return np.asarray(np.bincount(owner, values, count), np.float64)


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


def _powers(number: Ints, height: Ints) -> dict[tuple[int, int], Ints]:
    """Sums of x^a y^b over the pixel numbers below `number`, for all powers."""
    column, row = np.divmod(number, height)
    columns, rows, full = _sums(column), _sums(row), _sums(height)
    x_power = [np.ones_like(column), column, column * column, column * column * column]
    return {(a, b): columns[a] * full[b] + x_power[a] * rows[b] for a, b in POWERS}


def _sums(n: Ints) -> list[Ints]:
    """Sums of 1, k, k^2 and k^3 over k below n."""
    triangle = n * (n - 1) // 2
    return [n, triangle, triangle * (2 * n - 1) // 3, triangle * triangle]


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


def _boxes(start: Ints, stop: Ints, height: Ints, owner: Ints, count: int) -> Floats:
    """Boxes from runs: a run within a column spans its rows, a longer one the whole height."""
    box = np.zeros((count, 4))
    if not len(owner):
        return box
    x0, y0 = np.divmod(start, height)
    x1, y1 = np.divmod(stop - 1, height)
    one = x0 == x1
    top, bottom = np.where(one, y0, 0), np.where(one, y1, height - 1)
    firsts = np.flatnonzero(np.concatenate(([True], owner[1:] != owner[:-1])))
    box[owner[firsts]] = np.stack(
        [
            np.minimum.reduceat(x0, firsts),
            np.minimum.reduceat(top, firsts),
            np.maximum.reduceat(x1, firsts) + 1,
            np.maximum.reduceat(bottom, firsts) + 1,
        ],
        axis=1,
    )
    return box
