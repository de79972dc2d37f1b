"""The algebra of runs against that of pixels: the same facts of the same masks, many at a time."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stages import masks, runs
from stages.masks import MaskArray

sizes = st.tuples(st.integers(1, 20), st.integers(1, 20))
batches = st.lists(sizes.flatmap(lambda size: arrays(np.bool_, size)), min_size=1, max_size=5)


def runs_of(batch: list[MaskArray]) -> runs.Runs:
    """The runs of masks, counted pixel by pixel."""
    owner, start, end = [], [], []
    for number, mask in enumerate(batch):
        height = mask.shape[0]
        for x in range(mask.shape[1]):
            column = [False, *mask[:, x], False]
            for y in range(height + 1):
                if column[y + 1] and not column[y]:
                    owner.append(number)
                    start.append(x * height + y)
                if column[y] and not column[y + 1]:
                    end.append(x * height + y)
    heights, widths = (np.array([mask.shape[axis] for mask in batch]) for axis in (0, 1))
    return runs.Runs(np.array(owner, np.int64), np.array(start, np.int64), np.array(end, np.int64), heights, widths)


def by_pixels(mask: MaskArray, share: float) -> runs.Outline:
    box, filled, holes = masks.box_of(mask), mask, 0
    if box is not None and share > 0:
        crop, holes = masks.fill_holes(masks.cropped(mask, box), int(share * mask.sum()))
        filled = mask.copy()
        masks.cropped(filled, box)[:] = crop
    count, main = masks.parts(filled)
    return runs.Outline(masks.encode(filled), box, masks.area(filled), count, pytest.approx(main), holes)


@settings(deadline=None, max_examples=200)
@given(batches, st.sampled_from([0.0, 0.05, 0.3, 1.0]))
def test_runs_tell_what_pixels_tell(batch: list[MaskArray], share: float) -> None:
    assert runs.outlines(runs_of(batch), share) == [by_pixels(mask, share) for mask in batch]


def test_rings_islands_and_inlets_of_larger_masks() -> None:
    rng = np.random.default_rng(0)
    batch = []
    for _ in range(12):
        canvas = np.zeros((90, 120), np.uint8)
        for _ in range(14):
            centre = (int(rng.integers(0, 120)), int(rng.integers(0, 90)))
            cv2.circle(
                canvas, centre, int(rng.integers(2, 40)), (int(rng.integers(0, 2)),), int(rng.integers(-1, 3)) or 1
            )
        batch.append(canvas > 0)
    found = runs.outlines(runs_of(batch), 0.2)
    assert found == [by_pixels(mask, 0.2) for mask in batch]
    assert sum(one.holes_filled for one in found) > 10
    assert max(one.parts for one in found) > 2


def test_a_hole_that_is_filled_swallows_its_island() -> None:
    ring = np.ones((9, 9), np.bool_)
    ring[2:7, 2:7] = False
    ring[4, 4] = True
    before, after = runs.outlines(runs_of([ring]))[0], runs.outlines(runs_of([ring]), 1.0)[0]
    assert (before.parts, before.area) == (2, 57)
    assert (after.parts, after.area, after.holes_filled) == (1, 81, 1)
