"""Moments from run lengths equal those of the painted masks."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stages.chunk.moments import moments
from stages.masks import box_of, encode


def painted(mask: np.ndarray) -> tuple[float, ...]:
    ys, xs = np.nonzero(mask)
    if not len(xs):
        return (0.0,) * 10
    dx, dy = xs - xs.mean(), ys - ys.mean()
    central = [(dx**a * dy**b).sum() for a, b in ((2, 0), (1, 1), (0, 2), (3, 0), (2, 1), (1, 2), (0, 3))]
    return (len(xs), xs.mean() + 0.5, ys.mean() + 0.5, *central)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(lambda shape: arrays(np.bool_, shape)),
        min_size=1,
        max_size=5,
    )
)
def test_any_masks(masks: list[np.ndarray]) -> None:
    counts = pa.array([encode(mask).counts for mask in masks])
    sizes = np.array([mask.shape for mask in masks])
    found = moments(counts, sizes[:, 0], sizes[:, 1])
    for i, mask in enumerate(masks):
        powers = ((2, 0), (1, 1), (0, 2), (3, 0), (2, 1), (1, 2), (0, 3))
        measured = (found.area[i], found.x[i], found.y[i], *(found.central[p][i] for p in powers))
        assert np.allclose(measured, painted(mask), atol=1e-6)
        assert tuple(found.box[i]) == (box_of(mask) or (0, 0, 0, 0))


def test_large_masks_and_slices() -> None:
    rng = np.random.default_rng(0)
    masks = [np.zeros((1080, 1920), bool) for _ in range(3)]
    for mask in masks:
        y, x = rng.integers(100, 500, 2)
        mask[y : y + 400, x : x + 700] = True
        mask[y + 50 : y + 90, x + 20 : x + 600] = False
    counts = pa.array(["", *[encode(mask).counts for mask in masks]]).slice(1)
    found = moments(counts, np.full(3, 1080), np.full(3, 1920))
    for i, mask in enumerate(masks):
        expected = painted(mask)
        assert np.allclose([found.area[i], found.x[i], found.y[i]], expected[:3])
        assert np.allclose(found.central[3, 0][i], expected[6], rtol=1e-4, atol=1e6)


@pytest.mark.parametrize("bad", ["", "~", "PP1Q", "o"])
def test_strings_that_are_no_masks_are_refused(bad: str) -> None:
    with pytest.raises(ValueError, match="run lengths"):
        moments(pa.array([encode(np.ones((4, 4), bool)).counts, bad]), np.array([4, 4]), np.array([4, 4]))
