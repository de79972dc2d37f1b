"""Spans come out in order, without gaps, within bounds, whoever proposed them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.chunk.spans import Span, absences, described, lengths, merged, repair, uniform, with_absences

numbers = st.floats(-5, 30, allow_nan=False) | st.just(float("nan")) | st.just(float("inf"))


def covers(spans: list[Span], start: float, end: float) -> bool:
    joined = all(a.end_s == pytest.approx(b.start_s) for a, b in itertools.pairwise(spans))
    return joined and spans[0].start_s == pytest.approx(start) and spans[-1].end_s == pytest.approx(end)


@given(st.lists(st.tuples(numbers, numbers), max_size=8))
def test_any_proposal_is_mended(proposed: list[tuple[float, float]]) -> None:
    spans, notes = repair(proposed, 0.0, 20.0)
    assert covers(spans, 0.0, 20.0)
    assert all(span.length_s > 0 for span in spans)
    exact = [(span.start_s, span.end_s) for span in spans]
    assert bool(notes) or exact == proposed


def test_a_sound_proposal_is_left_alone() -> None:
    spans, notes = repair([(0, 4), (4, 9), (9, 20)], 0, 20)
    assert [(s.start_s, s.end_s) for s in spans] == [(0, 4), (4, 9), (9, 20)]
    assert notes == []


@given(st.lists(st.floats(0.05, 8), min_size=1, max_size=12), st.lists(st.booleans(), min_size=12, max_size=12))
def test_lengths_keep_their_bounds(parts: list[float], absent: list[bool]) -> None:
    edges = [0.0, *itertools.accumulate(parts)]
    spans = [Span(a, b, absent=gone) for (a, b), gone in zip(itertools.pairwise(edges), absent, strict=False)]
    kept = lengths(spans, 0.6, 3.0)
    assert covers(kept, 0.0, edges[-1])
    assert all(span.length_s <= 3.0 + 1e-6 for span in kept)
    for i, span in enumerate(kept):
        neighbours = [kept[j] for j in (i - 1, i + 1) if 0 <= j < len(kept)]
        if any(other.absent == span.absent for other in neighbours):
            assert span.length_s >= 0.6 - 1e-6
    away = sum(s.length_s for s in spans if s.absent)
    assert sum(s.length_s for s in kept if s.absent) == pytest.approx(away)


def test_absences_lie_between_samples_and_ignore_glimpses() -> None:
    times = np.arange(30) / 6
    visible = np.ones(30, bool)
    visible[6:12] = False
    visible[20] = False  # a flicker
    visible[24:] = False
    visible[27] = True  # a glimpse
    found = absences(times, visible, 5.0, 0.4)
    assert found == [(pytest.approx(5.5 / 6), pytest.approx(11.5 / 6)), (pytest.approx(23.5 / 6), pytest.approx(5.0))]


def test_absences_become_spans_of_their_own() -> None:
    spans = with_absences([Span(0, 3), Span(3, 8)], [(2, 4), (6, 8)])
    assert [(s.start_s, s.end_s, s.absent) for s in spans] == [(0, 2, False), (2, 4, True), (4, 6, False), (6, 8, True)]


def test_the_same_motion_is_one_event() -> None:
    spans = [Span(0, 1, motion="still", displacement=0.01), Span(1, 2, motion="still", displacement=0.02)]
    assert merged([*spans, Span(2, 3, motion="growing")]) == [
        Span(0, 2, motion="still", displacement=pytest.approx(0.03)),
        Span(2, 3, motion="growing"),
    ]
    assert len(merged([Span(0, 1), Span(1, 2)])) == 2


def test_uniform_spans_have_about_their_length() -> None:
    assert [s.length_s for s in uniform(1.0, 11.0, 4.0)] == [5.0, 5.0]
    assert [s.length_s for s in uniform(0.0, 1.0, 4.0)] == [1.0]


def test_words_of_long_stretches_are_told() -> None:
    measured = [
        Span(0, 2, motion="moving left", displacement=0.2),
        Span(2, 2.4, motion="turning"),
        Span(2.4, 5, motion="still", displacement=0.0),
    ]
    (told,) = described([Span(0, 5)], measured)
    assert told.motion == "moving left"
    assert told.displacement == pytest.approx(0.2)
    assert described([Span(2.5, 4)], measured)[0].motion == "still"


def test_a_short_motion_in_a_long_span_is_not_called_stillness() -> None:
    measured = [
        Span(0, 9, motion="still", displacement=0.0),
        Span(9, 10, motion="moving right", displacement=0.1),
        Span(10, 20, motion="still", displacement=0.0),
    ]
    (told,) = described([Span(0, 20)], measured)
    assert told.motion == "moving right"
    one, two = described([Span(0, 9.2), Span(9.2, 20)], measured)
    assert (one.motion, two.motion) == ("still", "moving right")
