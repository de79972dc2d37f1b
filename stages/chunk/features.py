"""From masklets to the features that change points are sought in: place, size, turn, and where they can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
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


@dataclass(frozen=True)
class Timeline:
    """All frames of a masklet in order: source indices, presentation times, and whether the target has a mask there."""

    frame: Ints
    time_s: Floats
    visible: Bools


Read = tuple[Timeline, Masklet]


def read_masklets(
    frames: pa.Array | pa.ChunkedArray, widths: Sequence[int], heights: Sequence[int], max_fps: float, max_samples: int
) -> list[Read | str]:
    """Each masklet of a column of `list<FrameMask>`, measured at `max_fps` and on `max_samples` frames at most.

    One that cannot be read gives the reason why. Works on whole columns; no Python object is made for a frame.
    """
    column = frames.combine_chunks() if isinstance(frames, pa.ChunkedArray) else frames
    sizes = np.asarray(pc.fill_null(pc.list_value_length(column), 0))
    values = column.flatten()
    frame, time_s = (np.asarray(pc.struct_field(values, name)) for name in ("frame_index", "time_s"))
    masked = np.asarray(pc.is_valid(pc.struct_field(values, "mask")))
    visible = np.asarray(pc.fill_null(pc.struct_field(values, "visible"), False)).astype(bool) & masked
    rows, taken = [], []
    start = 0
    for size in sizes.tolist():
        order = start + np.argsort(frame[start : start + size], kind="stable")
        rows.append(order)
        taken.append(order[sample_places(time_s[order], max_fps, max_samples)])
        start += size
    measured = _measured(values, visible, taken, widths, heights)
    found: list[Read | str] = []
    for i, (order, columns) in enumerate(zip(rows, measured, strict=True)):
        if not len(order):
            found.append("the masklet has no frames")
        elif isinstance(columns, str):
            found.append(columns)
        else:
            part = frame[taken[i]], time_s[taken[i]]
            whole = Timeline(frame[order], time_s[order], visible[order])
            found.append((whole, Masklet(widths[i], heights[i], *part, *columns)))
    return found


def sample_places(time_s: Floats, max_fps: float, max_samples: int) -> Ints:
    """Which of a masklet's frames are measured: every k-th and the last."""
    count = len(time_s)
    length = float(time_s[-1] - time_s[0]) if count else 0.0
    wanted = min(count, max_samples, int(np.ceil(length * max_fps)) + 1)
    if wanted >= count:
        return np.arange(count)
    step = int(np.ceil((count - 1) / max(1, wanted - 1)))
    return np.unique(np.append(np.arange(0, count, step), count - 1))


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


def _measured(
    values: Any, visible: Bools, taken: list[Ints], widths: Sequence[int], heights: Sequence[int]
) -> list[list[Any] | str]:
    """The columns of each `Masklet` behind its frames and times; one by one where a mask is broken, to name whose."""
    sizes = [len(rows) for rows in taken]
    chosen = np.concatenate([*taken, np.zeros(0, np.int64)])
    try:
        columns = _measure(values, visible, chosen, np.repeat(heights, sizes), np.repeat(widths, sizes))
    except ValueError as error:
        if len(taken) == 1:
            return [str(error)]
        each = zip(taken, widths, heights, strict=True)
        return [_measured(values, visible, [rows], [width], [height])[0] for rows, width, height in each]
    cuts = np.cumsum(sizes)[:-1]
    return [list(mine) for mine in zip(*(np.split(column, cuts) for column in columns), strict=True)]


def _measure(values: Any, visible: Bools, chosen: Ints, heights: Ints, widths: Ints) -> list[Any]:
    """Visibility and moments on the chosen frames."""
    place = np.flatnonzero(visible[chosen])
    mask = pc.struct_field(values, "mask").take(pa.array(chosen[place]))
    size = np.asarray(pc.list_flatten(pc.struct_field(mask, "size"))).reshape(-1, 2)
    found = moments(pc.struct_field(mask, "counts"), size[:, 0], size[:, 1])
    # A mask may be coded at another size than the frame's (segmenters at work size): all is scaled to the frame.
    sx, sy = widths[place] / np.maximum(size[:, 1], 1), heights[place] / np.maximum(size[:, 0], 1)
    count = len(chosen)
    seen = np.zeros(count, bool)
    seen[place] = found.area > 0
    phase, strength = _orders(found)
    return [
        seen,
        _spread(found.x * sx, place, count),
        _spread(found.y * sy, place, count),
        _spread(found.box * np.stack([sx, sy, sx, sy], 1), place, count),
        _spread(found.area * sx * sy, place, count),
        _spread(phase, place, count),
        _spread(strength, place, count),
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
