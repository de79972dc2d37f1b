"""From masklets to the features that change points are sought in: place, size, turn, and where they can be trusted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.chunk.moments import Moments, moments

Floats = np.ndarray[Any, np.dtype[np.float64]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]
Ints = np.ndarray[Any, np.dtype[np.int64]]

_ORDER_LIMIT = 0.06
"""The least relative strength at which a moment's phase says how a shape is turned."""


@dataclass(frozen=True)
class Masklet:
    """One masklet as columns over its n frames, in order of time.

    `frame` are source frame indices, `time_s` presentation times; `x`, `y` (centroid), `box` (xyxy) and `area` are in
    pixels of the `width` x `height` frame, zero where not `visible`; `turn` holds the phases (n, 3) of the moments
    c20, c21, c30, whose `strength` (n, 3) says whether they mean anything.
    """

    width: int
    height: int
    frame: Ints
    time_s: Floats
    visible: Bools
    x: Floats
    y: Floats
    box: Floats
    area: Floats
    phase: Floats
    strength: Floats

    @property
    def diagonal(self) -> float:
        """Of the frame, in pixels."""
        return float(np.hypot(self.width, self.height))

    def take(self, chosen: Ints | Bools) -> Masklet:
        """The masklet on some of its frames."""
        names = ("frame", "time_s", "visible", "x", "y", "box", "area", "phase", "strength")
        return Masklet(self.width, self.height, *(getattr(self, name)[chosen] for name in names))


def read_masklets(frames: pa.Array | pa.ChunkedArray, widths: list[int], heights: list[int]) -> list[Masklet | str]:
    """The masklets of a column of `list<FrameMask>`, or for one that cannot be read the reason why.

    Works on whole columns; no Python object is made for a frame. Frames are sorted by their index.
    """
    column = frames.combine_chunks() if isinstance(frames, pa.ChunkedArray) else frames
    sizes = np.asarray(pc.fill_null(pc.list_value_length(column), 0))
    try:
        parts = _measure(column.flatten(), np.repeat(heights, sizes), np.repeat(widths, sizes))
    except ValueError as error:
        if len(column) == 1:
            return [str(error)]
        singles = [column.slice(i, 1) for i in range(len(column))]
        return [read_masklets(one, [w], [h])[0] for one, w, h in zip(singles, widths, heights, strict=True)]
    stops = np.cumsum(sizes)
    found: list[Masklet | str] = []
    for stop, size, width, height in zip(stops.tolist(), sizes.tolist(), widths, heights, strict=True):
        if size == 0:
            found.append("the masklet has no frames")
            continue
        mine = [part[stop - size : stop] for part in parts]
        order = np.argsort(mine[0], kind="stable")
        found.append(Masklet(width, height, *(part[order] for part in mine)))
    return found


def turns(masklet: Masklet) -> tuple[Floats, bool]:
    """The orientation (n,) in radians, unwrapped, and whether the shape shows one at all.

    The phase of the complex moment of order (p, q) turns p - q times as fast as the shape; of c20, c21 and c30 the one
    is read that is strongest over the masklet.
    """
    folds = np.array([2, 1, 3])
    typical = np.median(masklet.strength, axis=0)
    order = int((typical * folds).argmax())
    if typical[order] < _ORDER_LIMIT:
        return np.zeros(len(masklet.time_s)), False
    angle: Floats = np.unwrap(masklet.phase[:, order]) / folds[order]
    return angle, True


def _measure(values: Any, heights: Ints, widths: Ints) -> list[Any]:
    """The columns of `Masklet`, over the frames of all masklets."""
    frame = np.asarray(pc.struct_field(values, "frame_index"))
    time_s = np.asarray(pc.struct_field(values, "time_s"))
    visible = np.asarray(pc.fill_null(pc.struct_field(values, "visible"), False)).astype(bool)
    mask = pc.struct_field(values, "mask")
    has = np.asarray(pc.is_valid(mask)) & visible
    rows = np.flatnonzero(has)
    coded = pc.struct_field(mask, "counts").take(pa.array(rows))
    size = np.asarray(pc.list_flatten(pc.struct_field(mask, "size").take(pa.array(rows)))).reshape(-1, 2)
    found = moments(coded, size[:, 0], size[:, 1])
    # A mask may be coded at another size than the frame's (segmenters at work size): all is scaled to the frame.
    sx, sy = widths[rows] / np.maximum(size[:, 1], 1), heights[rows] / np.maximum(size[:, 0], 1)
    count = len(frame)
    seen = np.zeros(count, bool)
    seen[rows] = found.area > 0
    phase, strength = _orders(found)
    return [
        frame,
        time_s,
        seen,
        _spread(found.x * sx, rows, count),
        _spread(found.y * sy, rows, count),
        _spread(found.box * np.stack([sx, sy, sx, sy], 1), rows, count),
        _spread(found.area * sx * sy, rows, count),
        _spread(phase, rows, count),
        _spread(strength, rows, count),
    ]


def _spread(values: Floats, rows: Ints, count: int) -> Floats:
    out = np.zeros((count, *values.shape[1:]))
    out[rows] = values
    return out


def _orders(m: Moments) -> tuple[Floats, Floats]:
    """Phases and relative strengths (m, 3) of the complex moments c20, c21 and c30."""
    c = m.central
    second = c[2, 0] + c[0, 2]
    radius3 = np.sqrt(np.maximum(second, 0) / np.maximum(m.area, 1)) ** 3 * np.maximum(m.area, 1)
    c20 = c[2, 0] - c[0, 2] + 2j * c[1, 1]
    c21 = c[3, 0] + c[1, 2] + 1j * (c[2, 1] + c[0, 3])
    c30 = c[3, 0] - 3 * c[1, 2] + 1j * (3 * c[2, 1] - c[0, 3])
    orders = np.stack([c20, c21, c30], axis=1)
    norm = np.stack([second, radius3, radius3], axis=1)
    return np.angle(orders), np.abs(orders) / np.maximum(norm, 1e-9)
