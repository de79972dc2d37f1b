"""Exact segmentation of many tracks at once into stretches of straight-line motion.

Optimal partitioning (B. Jackson et al., IEEE Signal Processing Letters 12, 2005) with the pruning of PELT (R. Killick
et al., JASA 107, 2012), done for many tracks at once. The cost of a stretch is the weighted squared error of one
straight line in time a feature, and every stretch costs `penalty` more. Tracks are padded to one length, so that each
step of the dynamic programme is a few NumPy operations for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float64]]
Ints = np.ndarray[Any, np.dtype[np.int64]]

_BATCH_CELLS = 1 << 14
"""Samples times features that are worked on together: the sums over them stay in a core's cache."""


@dataclass(frozen=True)
class Track:
    """One track: times (n), features (n, d) in units of their noise, weights (n, d); weight 0 is a missing value."""

    times: Floats
    values: Floats
    weights: Floats


@dataclass(frozen=True)
class Lines:
    """The lines of a track's m stretches: `offset` + `slope` * time, both (m, d), from sample `first` (m) on."""

    first: Ints
    offset: Floats
    slope: Floats


def segment(tracks: list[Track], penalty: float, min_samples: int) -> list[list[int]]:
    """For each track the first samples of its stretches, beginning with 0; each stretch has at least `min_samples`."""
    found: list[list[int]] = [[0] for _ in tracks]
    order = sorted(range(len(tracks)), key=lambda i: len(tracks[i].times))
    start = 0
    while start < len(order):
        longest = max(1, len(tracks[order[start]].times)) * max(1, tracks[order[start]].values.shape[1])
        batch = order[start : start + max(1, _BATCH_CELLS // longest)]
        for index, cuts in zip(batch, _segment_batch([tracks[i] for i in batch], penalty, min_samples), strict=True):
            found[index] = cuts
        start += len(batch)
    return found


def fit(track: Track, cuts: list[int]) -> Lines:
    """The lines of a track's stretches; a feature without two weighted samples is flat at its mean, or at 0."""
    first = np.asarray(cuts, np.int64)
    times = track.times[:, None] - track.times[0]
    w, x = track.weights, track.values
    weight, wt, wtt, wx, wtx = (
        np.add.reduceat(term, first, axis=0) for term in (w, w * times, w * times * times, w * x, w * times * x)
    )
    total = np.maximum(weight, 1e-12)
    spread = wtt - wt * wt / total
    slope = np.where(spread > 1e-9, (wtx - wt * wx / total) / np.maximum(spread, 1e-9), 0.0)
    return Lines(first, (wx - slope * wt) / total - slope * track.times[0], slope)


def crossings(lines: Lines, lowest: Floats, highest: Floats) -> Floats:
    """The moments (m - 1) at which neighbouring lines meet best (least squares over the features), within bounds.

    Halfway between the bounds where no feature changes its slope: such lines do not cross.
    """
    change = np.diff(lines.slope, axis=0)
    weight = (change**2).sum(1)
    moment = -(change * np.diff(lines.offset, axis=0)).sum(1) / np.maximum(weight, 1e-9)
    met: Floats = np.where(weight < 1e-9, (lowest + highest) / 2, np.clip(moment, lowest, highest))
    return met


def _segment_batch(tracks: list[Track], penalty: float, min_samples: int) -> list[list[int]]:
    count, longest = len(tracks), max(len(track.times) for track in tracks)
    features = tracks[0].values.shape[1]
    sums = np.zeros((6, count, longest + 1, features))
    for row, track in enumerate(tracks):
        n = len(track.times)
        w, t = track.weights, track.times[:, None] - track.times[0] if n else track.times[:, None]
        x = track.values - (track.values[0] if n else 0)
        for k, term in enumerate((w, w * t, w * t * t, w * x, w * x * x, w * t * x)):
            np.cumsum(term, axis=0, out=sums[k, row, 1 : n + 1])
            sums[k, row, n + 1 :] = sums[k, row, n]
    best = np.full((count, longest + 1), np.inf)
    best[:, 0] = -penalty
    came = np.zeros((count, longest + 1), np.int64)
    lengths = np.array([len(track.times) for track in tracks])
    lowest = np.zeros(longest + min_samples + 1, np.int64)
    for end in range(min_samples, longest + 1):
        low = lowest[end] = max(lowest[end], lowest[end - 1])
        starts = slice(low, end - min_samples + 1)
        total = best[:, starts] + _line_cost(sums[:, :, end, None] - sums[:, :, starts])
        came[:, end] = total.argmin(1) + low
        best[:, end] = total.min(1) + penalty
        # PELT: a start that is already dearer than a cut here never wins once a stretch fits behind the cut.
        alive = ((total <= best[:, end, None]) & (lengths >= end)[:, None]).any(0)
        lowest[end + min_samples] = low + (int(alive.argmax()) if alive.any() else 0)
    return [_trace(came[row], len(track.times), min_samples) for row, track in enumerate(tracks)]


def _line_cost(s: Floats) -> Floats:
    """Squared error of the best lines, from the sums of w, wt, wtt, wx, wxx, wtx of each stretch (features last)."""
    w = np.maximum(s[0], 1e-12)
    tt = s[2] - s[1] * s[1] / w
    xx = s[4] - s[3] * s[3] / w
    tx = s[5] - s[1] * s[3] / w
    error = xx - np.where(tt > 1e-9, tx * tx / np.maximum(tt, 1e-9), 0.0)
    cost: Floats = np.maximum(error, 0).sum(-1)
    return cost


def _trace(came: Ints, length: int, min_samples: int) -> list[int]:
    cuts: list[int] = []
    end = length
    while end >= min_samples and end > 0:
        end = int(came[end])
        cuts.append(end)
        if end == 0:
            break
    return sorted({0, *cuts})
