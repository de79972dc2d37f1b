"""Doubts about a track: worked by hand, and on a clip that is cut over to another for some frames."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from schemas.geometry import TrackPoint
from stages import masks
from stages.refine.config import RefineConfig
from stages.refine.videos import Found, Start
from stages.sam2.drift import Facts, doubt, measured
from stages.sam2.encoder import Encoder
from stages.sam2.load import load_model
from stages.sam2.tracker import Tracked
from stages.sam2.video import FastVideo
from stages.shapes.clip import draw_clip

CONFIG = RefineConfig(redetect=0.5, jump_area=4.0, jump_move=1.5)
BEFORE = Facts(score=3.0, area=100.0, x=20.0, y=20.0)


@pytest.mark.parametrize(
    ("now", "why"),
    [
        (Facts(3.0, 100.0, 21.0, 20.0), None),
        (Facts(3.0, 390.0, 20.0, 20.0), None),
        (Facts(3.0, 410.0, 20.0, 20.0), "sudden change of area"),
        (Facts(3.0, 24.0, 20.0, 20.0), "sudden change of area"),
        (Facts(3.0, 100.0, 34.0, 20.0), None),
        (Facts(3.0, 100.0, 36.0, 20.0), "sudden move"),
        (Facts(-1.0, 0.0, 0.0, 0.0), "low object score"),
        (Facts(3.0, 100.0, 20.0, 20.0, agreement=0.4), "disagrees with the source"),
        (Facts(3.0, 900.0, 60.0, 20.0, agreement=0.6), None),  # the source says that it is so
    ],
)
def test_a_track_is_doubted_for_what_it_does_from_one_frame_to_the_next(now: Facts, why: str | None) -> None:
    assert doubt(BEFORE, now, CONFIG) == why


def test_nothing_is_expected_of_an_object_that_was_not_there() -> None:
    assert doubt(None, BEFORE, CONFIG) is None
    assert doubt(Facts(-1.0, 0.0, 0.0, 0.0), BEFORE, CONFIG) is None


def test_area_place_and_agreement_are_measured_on_the_logits() -> None:
    logits = torch.full((2, 8, 8), -1.0)
    logits[0, 2:4, 1:5] = 1.0
    logits[1, 0:2, 0:2] = 1.0
    results = [Tracked(logits[0], torch.tensor(2.0), False), Tracked(logits[1], torch.tensor(-2.0), False)]
    source = torch.zeros((8, 8), dtype=torch.bool)
    source[2:4, 1:3] = True
    assert measured(results, [source, None]).tolist() == [[2.0, 8.0, 2.5, 2.5, 0.5], [-2.0, 0.0, 0.0, 0.0, -1.0]]


def follow(video: Any, start: Start, config: RefineConfig) -> list[Found]:
    model = load_model("nano", torch.device("cpu"))
    path = FastVideo(model, Encoder(model, torch.float32, batch=8), config)
    found = [one for some in path.follow(video, [start]) for one in some]
    return sorted(found, key=lambda one: one.frame)


def test_a_track_that_jumps_is_tried_anew_from_the_nearest_annotated_frame(held_video: Any) -> None:
    clip = draw_clip(3, frames=14, size=(128, 128), fps=12.0, objects=(2, 2), camera=0.0, leave=0.0)
    # Prompted with the other object; the true one is annotated late, and any move at all is a jump.
    late = TrackPoint(frame_index=12, time_s=1.0, mask=masks.encode(clip.masks[12, 0]))
    start = Start(0, clip.masks[0, 1], {12: late})
    config = RefineConfig(backend="sam2", checkpoint="nano", device="cpu", redetect=0.5, frame_batch=8)
    found = follow(held_video(clip.frames), start, config)
    assert [one.frame for one in found] == list(range(14))
    renewed = {one.frame: one.renewed for one in found if one.renewed}
    assert renewed.get(12) == "disagrees with the source"
    last = found[13].outline
    assert last is not None
    assert masks.iou(last.rle, masks.encode(clip.masks[13, 0])) > 0.7


def test_an_object_whose_score_drops_is_found_again_with_a_nearer_prompt(held_video: Any) -> None:
    clip = draw_clip(3, frames=14, size=(128, 128), fps=12.0, objects=(2, 2), camera=0.0, leave=0.0)
    clip.frames[:7] = np.random.default_rng(0).integers(0, 255, clip.frames[:7].shape, np.uint8)  # nothing to see
    point = TrackPoint(frame_index=9, time_s=0.75, mask=masks.encode(clip.masks[9, 0]))
    start = Start(0, clip.masks[0, 0], {9: point})
    config = RefineConfig(backend="sam2", checkpoint="nano", device="cpu", jump_area=1e3, jump_move=1e3)
    found = follow(held_video(clip.frames), start, config)
    assert found[7].renewed == "low object score"
    ious = [masks.iou(one.outline.rle, masks.encode(clip.masks[one.frame, 0])) for one in found[7:] if one.outline]
    assert len(ious) == 7
    assert np.mean(ious) > 0.7
