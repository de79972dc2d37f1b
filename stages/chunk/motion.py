"""The motion back end: change points of what a masklet does, and words for what it does between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stages.chunk.config import ChunkConfig, MotionConfig
from stages.chunk.features import Masklet, turns
from stages.chunk.segment import Lines, Track, crossings, fit, segment
from stages.chunk.spans import Span, absences, merged
from stages.chunk.words import direction

Floats = np.ndarray[Any, np.dtype[np.float64]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]

PLACE, COLOUR = slice(0, 2), slice(4, 7)
"""Of the features x, y, log size, turn and, where pixels are read, L, a, b."""
_TREND = 3.0
"""A change is told when it is this many times the spread around its line (a line tells half the variance at 3.5)."""
_MIN_SPEED = 0.01
"""Of the diagonal a second: slower is drift, not motion."""


@dataclass(frozen=True)
class Look:
    """What the pixels add, on the masklet's n sampled frames.

    `colour` (n, 3) is the target's mean CIE Lab, NaN where unknown; `camera` (n, 4) takes a pixel of frame i to the
    first frame's view: scale, angle in radians, shift x, shift y in pixels of the frame.
    """

    colour: Floats
    camera: Floats


@dataclass(frozen=True)
class _Stretch:
    """A visible stretch: its track, the noise by which it was divided, and where it begins and ends."""

    track: Track
    noise: Floats
    start_s: float
    end_s: float
    masklet: Masklet


def motion_spans(
    masklets: Sequence[Masklet], looks: Sequence[Look | None], ends_s: Sequence[float], config: ChunkConfig
) -> list[list[Span]]:
    """For each (sampled) masklet its spans in order, from its first frame to `ends_s`, absences included.

    All masklets are segmented together. Spans of the same motion are joined where `config.merge` says so.
    """
    gone = [absences(m.time_s, m.visible, end, config.min_absent_s) for m, end in zip(masklets, ends_s, strict=True)]
    stretches: list[list[_Stretch]] = []
    for masklet, look, end, absent in zip(masklets, looks, ends_s, gone, strict=True):
        stretches.append(_stretches(masklet, look, end, absent, config.motion))
    flat = [stretch for mine in stretches for stretch in mine]
    cuts = iter(_cuts(flat, config))
    found = []
    for mine, absent in zip(stretches, gone, strict=True):
        spans = [span for stretch in mine for span in _told(stretch, next(cuts), config)]
        away = [Span(a, b, absent=True, motion="absent") for a, b in absent]
        found.append(_passages(sorted([*spans, *away], key=lambda span: span.start_s), mine))
    return found


def _stretches(
    masklet: Masklet, look: Look | None, end_s: float, gone: list[tuple[float, float]], config: MotionConfig
) -> list[_Stretch]:
    edges = [float(masklet.time_s[0]), *(edge for pair in gone for edge in pair), end_s]
    out = []
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        inside = masklet.visible & (masklet.time_s >= start - 1e-9) & (masklet.time_s <= end + 1e-9)
        if end - start > 1e-9 and inside.any():
            part = masklet.take(inside)
            mine = None if look is None else Look(look.colour[inside], look.camera[inside])
            values, weights = _features(part, mine)
            noise = _noise(values, weights, config)
            out.append(_Stretch(Track(part.time_s, values / noise, weights), noise, start, end, part))
    return out


def _features(m: Masklet, look: Look | None) -> tuple[Floats, Floats]:
    """Place (fractions of the diagonal), log size, turn and colour (n, 4 or 7), and their weights."""
    clipped = _clipped(m)
    whole = np.asarray(~clipped.any(axis=1))
    x, y = _place(m, clipped, whole)
    angle, shows = turns(m)
    scale = 0.5 * np.log(np.maximum(m.area, 1))
    columns = [x, y, scale, angle]
    # Where the frame cuts off a side, the centroid slips along the cut: only the place across it can be inferred.
    across, along = ~clipped[:, [1, 3]].any(1), ~clipped[:, [0, 2]].any(1)
    weights = [across, along, whole, whole & shows]
    if look is not None:
        zoom, roll = look.camera[:, 0], look.camera[:, 1]
        cos, sin = zoom * np.cos(roll), zoom * np.sin(roll)
        columns[0], columns[1] = cos * x - sin * y + look.camera[:, 2], sin * x + cos * y + look.camera[:, 3]
        columns[2], columns[3] = scale + np.log(zoom), angle + roll
        known = np.isfinite(look.colour[:, 0])
        columns += list(np.nan_to_num(look.colour).T)
        weights += [known] * 3
    values = np.stack(columns, axis=1)
    values[:, PLACE] /= m.diagonal
    return values, np.stack(weights, axis=1).astype(np.float64)


def _clipped(m: Masklet) -> Bools:
    """Which sides of the box (left, top, right, bottom) the frame's edge cuts, (n, 4).

    A target that is cut most of the time (a person to the waist) counts as whole: there is nothing better to see.
    """
    edge = np.array([0.5, 0.5, m.width - 0.5, m.height - 0.5])
    cut = np.where([True, True, False, False], m.box <= edge, m.box >= edge)
    return np.asarray(cut & (cut.mean(0) < 0.7))


def _place(m: Masklet, clipped: Bools, whole: Bools) -> tuple[Floats, Floats]:
    """The centroid; where the frame cuts the target, inferred from its free side and its shape when last seen whole."""
    if whole.all() or not whole.any():
        return m.x, m.y
    rows = np.arange(len(whole))
    wholes = np.flatnonzero(whole)
    near = wholes[np.abs(rows[:, None] - wholes[None]).argmin(1)]
    out = []
    for low, centre in ((0, m.x), (1, m.y)):
        high = low + 2
        from_low = m.box[:, low] + (centre - m.box[:, low])[near]
        from_high = m.box[:, high] + (centre - m.box[:, high])[near]
        out.append(np.select([clipped[:, low] & clipped[:, high], clipped[:, low], clipped[:, high]],
                             [centre, from_high, from_low], centre))  # fmt: skip
    return out[0], out[1]


def _noise(values: Floats, weights: Floats, config: MotionConfig) -> Floats:
    """The noise of each feature: from second differences (median absolute deviation), at least its floor."""
    floors = np.array([config.noise_move] * 2 + [config.noise_scale, config.noise_turn] + [config.noise_colour] * 3)[
        : values.shape[1]
    ]
    if len(values) < 5:
        return floors
    bends = np.abs(values[2:] - 2 * values[1:-1] + values[:-2])
    sound = (weights[2:] > 0) & (weights[1:-1] > 0) & (weights[:-2] > 0)
    typical = np.array([np.median(b[s]) if s.sum() >= 3 else 0.0 for b, s in zip(bends.T, sound.T, strict=True)])
    noise: Floats = np.maximum(floors, 1.4826 * typical / np.sqrt(6))
    noise[PLACE] = noise[PLACE].max()
    if len(noise) > 4:
        noise[COLOUR] = noise[COLOUR].max()
    return noise


def _cuts(stretches: list[_Stretch], config: ChunkConfig) -> list[list[int]]:
    """Change points of all stretches, those with the same features and minimum length together."""
    found: list[list[int]] = [[0] for _ in stretches]
    groups: dict[tuple[int, int], list[int]] = {}
    for index, stretch in enumerate(stretches):
        times = stretch.track.times
        step = float(np.median(np.diff(times))) if len(times) > 1 else config.min_s
        least = max(3, round(config.min_s / max(step, 1e-6)))
        groups.setdefault((least, stretch.track.values.shape[1]), []).append(index)
    for (least, _), members in groups.items():
        cuts = segment([stretches[i].track for i in members], config.motion.penalty, least)
        for index, mine in zip(members, cuts, strict=True):
            found[index] = mine
    return found


def _told(stretch: _Stretch, cuts: list[int], config: ChunkConfig) -> list[Span]:
    """The stretch's spans with their words; cuts are moved to where the lines on their two sides meet."""
    lines = fit(stretch.track, cuts)
    times = stretch.track.times
    after = lines.first[1:]
    met = crossings(lines, times[np.maximum(after - 2, 0)], times[np.minimum(after + 1, len(times) - 1)])
    edges = np.concatenate(([stretch.start_s], np.maximum.accumulate(met), [stretch.end_s]))
    changes = lines.slope * stretch.noise * np.diff(edges)[:, None]
    spreads = _spreads(lines, stretch)
    spans = [
        _span(start, end, change, spread, config.motion)
        for start, end, change, spread in zip(edges.tolist(), edges[1:].tolist(), changes, spreads, strict=False)
    ]
    return merged(spans) if config.merge else spans


def _span(start_s: float, end_s: float, change: Floats, spread: Floats, config: MotionConfig) -> Span:
    """Words for what changes over a span where a straight line tells most of it: limbs wave, and nothing turns."""
    dx, dy, scale, turn = change[:4].tolist()
    distance = float(np.hypot(dx, dy))
    words = []
    if distance >= config.move and distance >= _MIN_SPEED * (end_s - start_s):
        words.append(f"moving {direction(dx, dy)}")
    elif float(np.hypot(*spread[PLACE])) >= config.move:
        words.append("moving about")
    if abs(scale) >= max(config.scale, _TREND * float(spread[2])):
        words.append("growing" if scale > 0 else "shrinking")
    if abs(turn) >= max(config.turn, _TREND * float(spread[3])):
        words.append("turning")
    if len(change) > 4 and float(np.linalg.norm(change[COLOUR])) >= config.colour:
        words.append("changing colour")
    return Span(start_s, end_s, motion=", ".join(words) or "still", displacement=distance)


def _spreads(lines: Lines, stretch: _Stretch) -> Floats:
    """For each line the root mean square distance of the features from it, (m, d), in their own units."""
    track = stretch.track
    line = np.repeat(np.arange(len(lines.first)), np.diff(np.append(lines.first, len(track.times))))
    gap = (track.values - lines.offset[line] - lines.slope[line] * track.times[:, None]) * stretch.noise
    total = np.add.reduceat(track.weights * gap**2, lines.first, axis=0)
    weight = np.add.reduceat(track.weights, lines.first, axis=0)
    spread: Floats = np.sqrt(total / np.maximum(weight, 1e-9))
    return spread


def _passages(spans: list[Span], stretches: list[_Stretch]) -> list[Span]:
    """Adds `leaving` and `returning` to the spans before and after an absence."""
    out = list(spans)
    ends = {stretch.end_s: stretch for stretch in stretches}
    for i, span in enumerate(spans):
        words = [] if span.motion in (None, "still") else [str(span.motion)]
        after = i > 0 and spans[i - 1].absent and not span.absent
        before = i + 1 < len(spans) and spans[i + 1].absent and not span.absent
        if after:
            words.insert(0, "returning")
        if before and _at_edge(ends[span.end_s], span):
            words.append("leaving")
        if after or before:
            out[i] = Span(span.start_s, span.end_s, False, ", ".join(words) or "still", span.displacement)
    return out


def _at_edge(stretch: _Stretch, span: Span) -> bool:
    """Whether the target is last seen at the frame's edge, or within two steps of it at the span's speed."""
    m = stretch.masklet
    step = float(np.median(np.diff(m.time_s))) if len(m.time_s) > 1 else 0.0
    reach = 2 * step * (span.displacement or 0.0) * m.diagonal / max(span.length_s, 1e-6) + 1.0
    x0, y0, x1, y1 = m.box[-1]
    return bool(min(x0, y0, m.width - x1, m.height - y1) <= reach)
