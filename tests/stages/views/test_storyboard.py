"""Views of videos: what is drawn, what is left alone, and pictures that stay as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from schemas.geometry import FrameMask
from stages.masks import encode
from stages.shapes.clip import Clip, draw_clip
from stages.shapes.palette import lab
from stages.views.storyboard import ClipViewConfig, contact_sheet, highlighted, keyframes, render

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def clip() -> Clip:
    return draw_clip(11, frames=42, size=(256, 192))


def chosen(clip: Clip, indices: list[int]) -> tuple[list[Any], list[Any], list[float]]:
    masks = [clip.masks[i, 0] if clip.masks[i, 0].any() else None for i in indices]
    return [clip.frames[i] for i in indices], masks, [float(clip.times_s[i]) for i in indices]


def place_of(picture: Any, sheet: Any) -> tuple[int, int]:
    """Where in a sheet a picture lies unchanged, as x and y."""
    _, _, (x, y), _ = cv2.minMaxLoc(cv2.matchTemplate(sheet, picture, cv2.TM_SQDIFF))
    assert np.array_equal(sheet[y : y + picture.shape[0], x : x + picture.shape[1]], picture)
    return x, y


def frames_of(visible: list[bool]) -> list[FrameMask]:
    mask = encode(np.ones((4, 4), bool))
    return [
        FrameMask(frame_index=4 * i, time_s=i / 6, visible=v, mask=mask if v else None) for i, v in enumerate(visible)
    ]


def test_key_frames_are_uniform_over_the_visible_ones() -> None:
    frames = frames_of([False] * 5 + [True] * 11 + [False] * 20 + [True] * 10)
    picked = [frame.frame_index // 4 for frame in keyframes(list(reversed(frames)), 6)]
    assert picked == [5, 9, 13, 37, 41, 45]
    assert [f.frame_index for f in keyframes(frames_of([True, True]), 6)] == [0, 4]
    assert len(keyframes(frames_of([False] * 9), 6)) == 6
    with pytest.raises(ValueError, match="no frames"):
        keyframes([], 6)


@pytest.mark.parametrize("highlight", ["contour", "box"])
def test_the_line_is_outside_the_target_and_stands_out_from_it(clip: Clip, highlight: Any) -> None:
    frames, masks, _ = chosen(clip, [0, 8, 16])
    config = ClipViewConfig(highlight=highlight)
    for frame, mask, drawn in zip(frames, masks, highlighted(frames, masks, 256, config), strict=True):
        changed = (frame != drawn).any(-1)
        assert mask is not None
        assert not (changed & mask).any()
        line = np.unique(drawn[changed], axis=0)
        assert len(line) == 1
        own = lab(np.median(frame[mask], axis=0).astype(np.uint8))
        assert np.linalg.norm(lab(line[0]) - own) > 60
        near = cv2.dilate(mask.astype(np.uint8), np.ones((25, 25), np.uint8)).astype(bool)
        assert (changed & near).sum() > 100
        assert highlight == "box" or not (changed & ~near).any()


def test_frames_without_the_target_are_left_as_they_are(clip: Clip) -> None:
    frames, masks, _ = chosen(clip, [0, 40])
    assert masks[1] is None
    assert np.array_equal(highlighted(frames, masks, 256, ClipViewConfig())[1], frames[1])
    assert np.array_equal(highlighted(frames, [None, None], 256, ClipViewConfig())[0], frames[0])


def test_a_storyboard_has_its_cells_in_order_and_its_notes_outside_them(clip: Clip) -> None:
    frames, masks, times = chosen(clip, [0, 4, 8, 12, 16, 20])
    config = ClipViewConfig(cell_side=256)
    (sheet,) = render("storyboard", frames, masks, times, config)
    cells = highlighted(frames, masks, 256, config)
    tops = []
    for cell in cells:
        tops.append(place_of(cell, sheet))
    assert [y for _, y in tops[:3]] == [tops[0][1]] * 3
    assert [x for x, _ in tops[:3]] == [x for x, _ in tops[3:]]
    assert tops[0][0] < tops[1][0] < tops[2][0]
    assert tops[0][1] < tops[3][1]
    paper = np.ones(sheet.shape[:2], bool)
    for x, y in tops:
        paper[y : y + 192, x : x + 256] = False
    margins = sheet[paper]
    assert (np.ptp(margins.astype(int), axis=1) == 0).all()  # black on white, no colour
    assert (margins < 100).any()
    silent = render("storyboard", frames, masks, times, config.model_copy(update={"times": False}))[0]
    assert (silent[paper] < 100).sum() < (margins < 100).sum()


def test_fewer_frames_make_a_smaller_sheet(clip: Clip) -> None:
    frames, masks, times = chosen(clip, [0, 4])
    config = ClipViewConfig(cell_side=256)
    small = render("storyboard", frames, masks, times, config)[0]
    large = render("storyboard", frames * 3, masks * 3, times * 3, config)[0]
    assert small.shape[0] < 0.6 * large.shape[0]
    assert small.shape[1] < 0.8 * large.shape[1]


def test_the_target_window_enlarges_a_small_target(clip: Clip) -> None:
    frames, masks, times = chosen(clip, [0, 2])
    whole, near = (
        render("clip_frames", frames, masks, times, ClipViewConfig(window=w, frame_side=256))[0]
        for w in ("frame", "target")
    )
    colour = np.median(frames[0][masks[0]], axis=0)
    shares = [(np.abs(picture.astype(int) - colour).max(-1) < 30).mean() for picture in (whole, near)]
    assert shares[1] > 2 * shares[0]
    assert max(near.shape[:2]) == 256


def test_a_target_of_less_than_a_pixel_is_still_marked() -> None:
    frame = np.full((1000, 1000, 3), 120, np.uint8)
    mask = np.zeros((1000, 1000), bool)
    mask[500, 500] = True
    frame[mask] = (200, 0, 0)
    (shown,) = render("clip_frames", [frame], [mask], [0.0], ClipViewConfig(frame_side=100))
    assert (shown != 120).any()


def test_clip_frames_are_separate_pictures_of_one_size(clip: Clip) -> None:
    frames, masks, times = chosen(clip, [0, 10, 20, 30])
    shown = render("clip_frames", frames, masks, times, ClipViewConfig(frame_side=128))
    assert [picture.shape for picture in shown] == [(96, 128, 3)] * 4


def test_a_contact_sheet_shows_frames_as_they_are(clip: Clip) -> None:
    frames, _, times = chosen(clip, list(range(8)))
    sheet = contact_sheet(frames, times, columns=4, side=256)
    for frame in frames:
        place_of(frame, sheet)


@pytest.mark.parametrize(
    ("view", "frames", "masks", "message"),
    [
        ("panorama", 1, [(8, 8)], "no video view"),
        ("storyboard", 0, [], "1 to 6 frames"),
        ("storyboard", 7, [(8, 8)] * 7, "1 to 6 frames"),
        ("storyboard", 2, [(8, 8)], "do not belong together"),
        ("storyboard", 1, [(8, 9)], "the mask is"),
    ],
)
def test_what_cannot_be_shown_is_refused(view: str, frames: int, masks: list[Any], message: str) -> None:
    pictures = [np.zeros((8, 8, 3), np.uint8)] * frames
    with pytest.raises(ValueError, match=message):
        render(view, pictures, [np.ones(m, bool) for m in masks], [0.0] * frames, ClipViewConfig())


@pytest.mark.parametrize("name", ["contour", "box"])
def test_the_golden_storyboards(clip: Clip, name: Any) -> None:
    """Compared after shrinking, so that another OpenCV's rounding passes and another layout does not."""
    frames, masks, times = chosen(clip, [0, 8, 16, 24, 32, 40])
    config = ClipViewConfig(cell_side=256, highlight=name, window="frame" if name == "contour" else "target")
    sheet = render("storyboard", frames, masks, times, config)[0]
    expected = cv2.imread(str(GOLDEN / f"storyboard_{name}.png"))[..., ::-1]
    small = cv2.resize(sheet, (expected.shape[1], expected.shape[0]), interpolation=cv2.INTER_AREA)
    assert abs(sheet.shape[0] / sheet.shape[1] - expected.shape[0] / expected.shape[1]) < 0.01
    difference = np.abs(small.astype(int) - expected.astype(int))
    assert difference.mean() < 3
    assert np.quantile(difference, 0.999) < 60
