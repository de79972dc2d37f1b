"""Image views: what each renderer may change, and what it may not."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.masks import box_of
from stages.shapes.scene import draw_scene
from stages.views.config import ViewConfig
from stages.views.encode import encode, fit_size, to_picture
from stages.views.images import IMAGE_VIEWS, contrast_colour, crop_window, draw_contour, render

CONFIG = ViewConfig()


def scene(seed: int = 0):  # type: ignore[no-untyped-def]
    drawn = draw_scene(np.random.default_rng(seed), (320, 240))
    instance = drawn.instances[0]
    return drawn.image, instance.mask, instance.box


@pytest.mark.parametrize("view", ["crop_mask", "full_mask"])
def test_the_targets_pixels_are_untouched_and_the_rest_is_faded(view: str) -> None:
    for seed in range(8):
        image, mask, box = scene(seed)
        plain, faded = render(view, image, mask, box, CONFIG)
        x0, y0, x1, y1 = crop_window(box, *mask.shape, CONFIG) if view == "crop_mask" else (0, 0, 320, 240)
        inside = mask[y0:y1, x0:x1]
        assert (plain == image[y0:y1, x0:x1]).all()
        assert inside.sum() == mask.sum(), "the crop holds the whole target"
        assert (faded[inside] == plain[inside]).all()
        gap = np.abs(faded[~inside].astype(int) - 255)
        assert (gap <= np.ceil(0.2 * (255 - plain[~inside].astype(int))) + 1).all()


def test_a_contour_hides_no_target_and_little_else() -> None:
    for seed in range(8):
        image, mask, box = scene(seed)
        (drawn,) = render("contour", image, mask, box, CONFIG)
        x0, y0, x1, y1 = crop_window(box, *mask.shape, CONFIG)
        changed = (drawn != image[y0:y1, x0:x1]).any(axis=2)
        assert changed.any()
        assert not changed[mask[y0:y1, x0:x1]].any()
        assert changed.mean() <= 0.04


def thin_target(kind: str, side: int, parts: int) -> np.ndarray:
    """A target of many thin parts about the middle of an image of twice its side: mask (2 side, 2 side) bool."""
    drawn = np.zeros((2 * side, 2 * side), np.uint8)
    low, high = side // 2, side // 2 + side - 1
    middle = side
    places = [low + round(part * (side - 1) / parts) for part in range(parts + 1)]
    if kind == "comb":
        drawn[low : low + 2, low : high + 1] = 1
        drawn[low : high + 1, places] = 1
    elif kind == "grid":
        drawn[low : high + 1, places] = 1
        drawn[places, low : high + 1] = 1
    elif kind == "spokes":
        for part in range(parts):
            angle = np.pi * part / parts
            away = (round(side / 2 * np.cos(angle)), round(side / 2 * np.sin(angle)))
            cv2.line(drawn, (middle - away[0], middle - away[1]), (middle + away[0], middle + away[1]), 1)
    else:
        drawn[places[::2], places[::2]] = 1
        drawn[low : high + 1 : 2, low : high + 1 : 2] = 1
    return drawn.astype(bool)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["comb", "grid", "spokes", "dust"]), st.integers(24, 160), st.integers(2, 40))
def test_a_contour_covers_little_of_any_shape(kind: str, side: int, parts: int) -> None:
    mask = thin_target(kind, side, parts)
    image = np.full((*mask.shape, 3), 128, np.uint8)
    box = box_of(mask)
    assert box is not None
    (drawn,) = render("contour", image, mask, box, CONFIG)
    x0, y0, x1, y1 = crop_window(box, *mask.shape, CONFIG)
    crop, inside = image[y0:y1, x0:x1], mask[y0:y1, x0:x1]
    changed = (drawn != crop).any(axis=2)
    assert 0.0 < changed.mean() <= 0.04
    assert not changed[inside].any()
    whole = draw_contour(crop, inside, contrast_colour(crop, inside), CONFIG.line_share)
    line = (whole != crop).any(axis=2)
    assert not changed[~line].any()
    assert line.mean() > 0.04 or (drawn == whole).all(), "what covers little is drawn as ever"


def test_a_dotted_contour_goes_all_around() -> None:
    mask = thin_target("comb", 100, 20)
    image = np.full((*mask.shape, 3), 128, np.uint8)
    box = box_of(mask)
    assert box is not None
    (drawn,) = render("contour", image, mask, box, CONFIG)
    changed = (drawn != 128).any(axis=2)
    assert 0.03 < changed.mean() <= 0.04
    reached = cv2.dilate(changed.astype(np.uint8), np.ones((15, 15), np.uint8)).astype(bool)
    x0, y0, x1, y1 = crop_window(box, *mask.shape, CONFIG)
    assert reached[mask[y0:y1, x0:x1]].all(), "no part of the target is far from a dot"


def test_set_of_marks_tints_the_target_and_keeps_the_rest() -> None:
    for seed in range(8):
        image, mask, box = scene(seed)
        (drawn,) = render("set_of_marks", image, mask, box, CONFIG)
        changed = (drawn != image).any(axis=2)
        near = cv2.dilate(mask.astype(np.uint8), np.ones((41, 41), np.uint8)).astype(bool)
        assert changed[mask].mean() > 0.95
        assert not changed[~near].any()


def test_rendering_is_pure_and_refuses_what_cannot_be_shown() -> None:
    image, mask, box = scene()
    before = image.copy()
    for view in IMAGE_VIEWS:
        first, second = render(view, image, mask, box, CONFIG), render(view, image, mask, box, CONFIG)
        assert all((one == two).all() for one, two in zip(first, second, strict=True))
    assert (image == before).all()
    with pytest.raises(ValueError, match="no image view 'blur'"):
        render("blur", image, mask, box, CONFIG)
    with pytest.raises(ValueError, match="empty"):
        render("contour", image, np.zeros_like(mask), box, CONFIG)
    with pytest.raises(ValueError, match="mask is"):
        render("contour", image, mask[1:], box, CONFIG)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 6000), st.integers(1, 6000), st.sampled_from([1, 14, 28, 32]), st.integers(32, 1024))
def test_sent_sizes_stay_in_bounds_and_on_whole_patches(height: int, width: int, multiple: int, side: int) -> None:
    config = ViewConfig(max_side=side, multiple=multiple)
    tall, wide = fit_size(height, width, config)
    assert tall % multiple == 0
    assert wide % multiple == 0
    assert multiple <= min(tall, wide)
    assert max(tall, wide) <= max(side, multiple)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_crop_holds_its_box_and_stays_in_the_image(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 500)), data.draw(st.integers(1, 500))
    x0 = data.draw(st.floats(0, width - 1))
    y0 = data.draw(st.floats(0, height - 1))
    box = (x0, y0, data.draw(st.floats(x0 + 0.5, width)), data.draw(st.floats(y0 + 0.5, height)))
    left, top, right, bottom = crop_window(box, height, width, CONFIG)
    assert 0 <= left <= box[0] + 1
    assert box[2] - 1 <= right <= width
    assert 0 <= top <= box[1] + 1
    assert box[3] - 1 <= bottom <= height


@pytest.mark.parametrize("encoding", ["jpeg", "png", "webp"])
def test_encoded_pictures_decode_to_the_same_scene(encoding: str) -> None:
    image, mask, box = scene()
    config = ViewConfig(encoding=encoding)
    for picture in render("crop_mask", image, mask, box, config):
        sent = to_picture(picture, config, encoded=True)
        assert sent.data is not None
        back = cv2.imdecode(np.frombuffer(sent.data, np.uint8), cv2.IMREAD_COLOR_RGB)
        assert back.shape == (sent.height, sent.width, 3)
        raw = to_picture(picture, config, encoded=False)
        assert raw.digest == sent.digest
        assert raw.pixels is not None
        assert np.abs(back.astype(int) - raw.pixels).mean() < 6
    assert box_of(mask) is not None
    assert encode(image, ViewConfig(encoding="png")) == encode(image, ViewConfig(encoding="png"))


GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("view", IMAGE_VIEWS)
def test_views_look_as_they_did(view: str) -> None:
    """Compared as the eye would: a shifted edge of another OpenCV passes, another colour or place does not.

    To accept a change on purpose, delete the picture, run the test (it fails and writes the new one) and look at it.
    """
    drawn = draw_scene(np.random.default_rng(11), (160, 120))
    instance = max(drawn.instances, key=lambda one: one.area_share)
    pictures = render(view, drawn.image, instance.mask, instance.box, CONFIG)
    sheet = np.concatenate([np.asarray(picture) for picture in pictures], axis=1)
    path = GOLDEN / f"{view}.png"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
        pytest.fail(f"{path.name} was not there; look at the new one")
    golden = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    assert golden.shape == sheet.shape
    blurred = [cv2.GaussianBlur(one, (5, 5), 0).astype(int) for one in (golden, sheet)]
    gap = np.abs(blurred[0] - blurred[1])
    assert gap.mean() < 1.0
    assert (gap.max(axis=2) > 40).mean() < 0.005
