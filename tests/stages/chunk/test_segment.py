"""Segmentation is the optimum: equal in cost to trying every division, whatever is batched beside it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.chunk.segment import Track, crossings, fit, segment


def cost(track: Track, cuts: list[int], penalty: float) -> float:
    total = penalty * (len(cuts) - 1)
    for first, last in zip(cuts, [*cuts[1:], len(track.times)], strict=True):
        for d in range(track.values.shape[1]):
            w = track.weights[first:last, d]
            design = np.stack([np.ones(last - first), track.times[first:last]], 1) * np.sqrt(w)[:, None]
            target = track.values[first:last, d] * np.sqrt(w)
            total += float(((target - design @ np.linalg.lstsq(design, target, rcond=None)[0]) ** 2).sum())
    return total


def best_cost(track: Track, penalty: float, least: int) -> float:
    n = len(track.times)
    found = []
    for count in range(n // least):
        for inner in itertools.combinations(range(least, n - least + 1), count):
            cuts = [0, *inner]
            if all(b - a >= least for a, b in itertools.pairwise([*cuts, n])):
                found.append(cost(track, cuts, penalty))
    return min(found)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.5, 60), st.integers(2, 4))
def test_no_division_is_cheaper(seed: int, penalty: float, least: int) -> None:
    rng = np.random.default_rng(seed)
    tracks = []
    for _ in range(4):
        n = int(rng.integers(least, 12))
        values = np.cumsum(rng.normal(0, 2, (n, 2)) * (rng.random((n, 1)) < 0.4), axis=0) + rng.normal(0, 0.5, (n, 2))
        weights = (rng.random((n, 2)) < 0.8).astype(float)
        tracks.append(Track(np.sort(rng.random(n)) * 5, values, weights))
    for track, cuts in zip(tracks, segment(tracks, penalty, least), strict=True):
        assert cuts[0] == 0
        assert all(b - a >= least for a, b in itertools.pairwise([*cuts, len(track.times)]))
        assert cost(track, cuts, penalty) == pytest.approx(best_cost(track, penalty, least), abs=1e-6)


def test_a_kink_is_found_between_its_samples() -> None:
    times = np.arange(20) / 6
    place = np.where(times < 1.27, 0.0, 40 * (times - 1.27))
    track = Track(times, place[:, None], np.ones((20, 1)))
    (cuts,) = segment([track], penalty=5.0, min_samples=3)
    assert len(cuts) == 2
    lines = fit(track, cuts)
    met = crossings(lines, times[np.array(cuts[1:]) - 2], times[np.array(cuts[1:]) + 1])
    assert met[0] == pytest.approx(1.27, abs=0.03)
    assert lines.slope[1, 0] == pytest.approx(40, rel=0.05)


def test_tracks_too_short_to_cut_stay_whole() -> None:
    tracks = [Track(np.arange(n) / 6, np.zeros((n, 1)), np.ones((n, 1))) for n in (1, 2, 3, 8)]
    assert segment(tracks, 10.0, 3) == [[0], [0], [0], [0]]


def test_missing_values_weigh_nothing() -> None:
    values = np.zeros((12, 1))
    values[5:7] = 1000
    weights = np.ones((12, 1))
    weights[5:7] = 0
    track = Track(np.arange(12) / 6, values, weights)
    assert segment([track], 1.0, 3) == [[0]]
