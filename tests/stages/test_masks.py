"""Mask algebra against brute force, pycocotools and cases worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco

from schemas.geometry import Rle
from stages import masks

sizes = st.tuples(st.integers(1, 24), st.integers(1, 24))
any_mask = sizes.flatmap(lambda size: arrays(np.bool_, size))
mask_pairs = sizes.flatmap(lambda size: st.tuples(arrays(np.bool_, size), arrays(np.bool_, size)))


def square(height: int, width: int, top: int, left: int, side: int) -> np.ndarray:
    mask = np.zeros((height, width), np.bool_)
    mask[top : top + side, left : left + side] = True
    return mask


@given(any_mask)
def test_a_mask_survives_the_codec_and_its_runs_count_its_pixels(mask: np.ndarray) -> None:
    rle = masks.encode(mask)
    assert np.array_equal(masks.decode(rle), mask)
    assert masks.area(rle) == masks.area(mask) == int(mask.sum())
    assert sum(masks.runs(rle)[1::2]) == mask.sum()
    assert masks.from_runs(masks.runs(rle), *rle.size) == rle


@given(any_mask)
def test_the_codec_writes_what_pycocotools_writes(mask: np.ndarray) -> None:
    theirs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert masks.encode(mask).counts == theirs["counts"].decode()


def test_the_codec_writes_what_pycocotools_writes_for_long_runs() -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        mask = np.zeros((1080, 1920), np.bool_)
        for _ in range(30):
            x, y, w, h = rng.integers(0, (1900, 1060, 900, 700))
            mask[y : y + h, x : x + w] ^= True
        theirs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert masks.encode(mask).counts == theirs["counts"].decode()


@given(any_mask)
def test_the_box_of_a_mask_is_tight_in_both_forms(mask: np.ndarray) -> None:
    box = masks.box_of(mask)
    assert masks.box_of(masks.encode(mask)) == box
    if box is None:
        assert not mask.any()
        return
    x0, y0, x1, y1 = (int(edge) for edge in box)
    inside = mask[y0:y1, x0:x1]
    assert inside.sum() == mask.sum()
    assert all(side.any() for side in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))


@given(mask_pairs)
def test_iou_is_symmetric_bounded_and_the_same_in_both_forms(pair: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = pair
    value = masks.iou(a, b)
    assert 0.0 <= value <= 1.0
    assert value == masks.iou(b, a) == pytest.approx(masks.iou(masks.encode(a), masks.encode(b)))
    assert masks.iou(a, a) == 1.0


@given(mask_pairs)
@settings(max_examples=50)
def test_boundary_f_is_symmetric_bounded_and_one_only_for_agreement(pair: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = pair
    value = masks.boundary_f(a, b)
    assert 0.0 <= value <= 1.0
    assert value == pytest.approx(masks.boundary_f(b, a))
    assert masks.boundary_f(a, a) == 1.0


@pytest.mark.parametrize("counts", ["0", "", "\x07", "ab!c", "oooo", "o"])
def test_broken_run_lengths_are_refused(counts: str) -> None:
    with pytest.raises(ValueError):
        masks.decode(Rle(size=(4, 5), counts=counts))


def test_runs_that_do_not_fill_the_image_are_refused() -> None:
    with pytest.raises(ValueError, match="6 pixels"):
        masks.from_runs([2, 4], 2, 4)
    with pytest.raises(ValueError):
        masks.from_runs([10, -2], 2, 4)


def test_polygons_are_rasterised_and_merged() -> None:
    left, right = [1.0, 1.0, 4.0, 1.0, 4.0, 5.0, 1.0, 5.0], [6.0, 2.0, 9.0, 2.0, 9.0, 4.0, 6.0, 4.0]
    rle = masks.from_polygons([left, right], 8, 12)
    assert masks.box_of(rle) == (1.0, 1.0, 9.0, 5.0)
    assert masks.area(rle) == 3 * 4 + 3 * 2
    assert masks.parts(rle) == (2, pytest.approx(12 / 18))
    assert masks.from_polygons([left, [3.0, 3.0]], 8, 12) == masks.from_polygons([left], 8, 12)
    with pytest.raises(ValueError, match="three or more points"):
        masks.from_polygons([[1.0, 1.0, 5.0, 5.0]], 8, 12)


def test_filled_boxes_cover_the_pixels_whose_centres_they_hold() -> None:
    assert masks.box_of(masks.from_box((2.0, 1.0, 5.0, 4.0), 8, 8)) == (2.0, 1.0, 5.0, 4.0)
    assert masks.box_of(masks.from_box((1.6, -3.0, 99.0, 1.4), 8, 8)) == (2.0, 0.0, 8.0, 1.0)
    assert masks.area(masks.from_box((-5.0, -5.0, -1.0, -1.0), 8, 8)) == 0


def test_box_iou_by_hand() -> None:
    assert masks.box_iou((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert masks.box_iou((0, 0, 2, 2), (2, 0, 4, 2)) == 0.0
    assert masks.box_iou((1, 1, 1, 1), (1, 1, 1, 1)) == 0.0


def test_parts_and_holes() -> None:
    ring = square(9, 9, 1, 1, 7) & ~square(9, 9, 3, 3, 3)
    ring[4, 4] = True
    assert masks.parts(ring) == (2, pytest.approx(40 / 41))
    filled, count = masks.fill_holes(ring)
    assert count == 1
    assert np.array_equal(filled, square(9, 9, 1, 1, 7))
    assert masks.fill_holes(ring, max_area=7)[1] == 0
    open_ring = ring.copy()
    open_ring[4, 0:4] = False
    assert masks.fill_holes(open_ring)[1] == 0
    assert masks.fill_holes(np.ones((3, 3), np.bool_))[1] == 0


def test_j_of_shifted_squares_by_hand() -> None:
    a, b = square(20, 20, 5, 5, 4), square(20, 20, 5, 7, 4)
    assert masks.jaccard(a, b) == pytest.approx(8 / 24)
    with pytest.raises(ValueError, match="different sizes"):
        masks.jaccard(a, square(20, 21, 5, 5, 4))


def test_f_of_shifted_bars_by_hand() -> None:
    # A bar from the top edge to the bottom: its boundary is the two columns left of its left and at its right edge.
    # 30x40 has the diagonal 50: a tolerance of 0.008 rounds up to one pixel.
    def bar(left: int, right: int) -> np.ndarray:
        mask = np.zeros((30, 40), np.bool_)
        mask[:, left:right] = True
        return mask

    truth = bar(10, 20)
    assert masks.boundary_f(bar(11, 21), truth) == 1.0
    assert masks.boundary_f(bar(12, 22), truth) == 0.0
    assert masks.boundary_f(bar(10, 25), truth) == 0.5
    assert masks.boundary_f(bar(12, 22), truth, tolerance=2) == 1.0


def test_f_without_an_object() -> None:
    empty, some = np.zeros((30, 40), np.bool_), square(30, 40, 5, 5, 9)
    assert masks.boundary_f(empty, empty) == 1.0
    assert masks.boundary_f(empty, some) == masks.boundary_f(some, empty) == 0.0


def test_j_and_f_average_over_frames() -> None:
    a, empty = square(30, 40, 5, 5, 9), np.zeros((30, 40), np.bool_)
    assert masks.j_and_f([a, empty], [a, a]) == (0.5, 0.5, 0.5)
    assert masks.j_and_f([a], [a]) == (1.0, 1.0, 1.0)
    with pytest.raises(ValueError):
        masks.j_and_f([], [])


def test_resize_repairs_a_mask_that_is_a_pixel_off() -> None:
    mask = square(10, 10, 2, 2, 5)
    assert masks.resize(mask, 10, 10) is mask
    assert masks.resize(mask, 11, 10).shape == (11, 10)
    assert masks.iou(masks.resize(mask, 20, 20), square(20, 20, 4, 4, 10)) == 1.0
