"""The batched tracker against the public video predictor: the same logits, object by object and frame by frame."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stages.sam2.nano import NanoConfig, build_nano
from stages.sam2.predictor import Predictor
from stages.sam2.tracker import EncodedFrames, Tracker

FRAMES, SIZE = 24, 64


@pytest.fixture(scope="module")
def model() -> Predictor:
    torch.manual_seed(1)
    built = build_nano(NanoConfig(image_size=SIZE, embed_dim=16, stages=(1, 1, 2, 1), global_blocks=(3,)))
    with torch.no_grad():  # random weights see no object anywhere; this one sees it now and then
        built.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(0.05)
        built.mask_downsample.weight.normal_(0, 0.3)
    return built


@pytest.fixture(scope="module")
def frames() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(3, SIZE, SIZE, generator=generator) for _ in range(FRAMES)]


Prompts = list[tuple[int, object]]
BOX = np.array([8.0, 10.0, 40.0, 50.0], np.float32)


def blob(top: int) -> np.ndarray:
    mask = np.zeros((SIZE, SIZE), np.bool_)
    mask[top : top + 20, 15:45] = True
    return mask


OBJECTS: dict[int, Prompts] = {
    0: [(0, BOX)],
    1: [(0, blob(5))],
    2: [(9, blob(30))],
    3: [(4, BOX + 4), (15, blob(12))],
    4: [(0, BOX + 9)],
}


def public(model: Predictor, frames: list[torch.Tensor], prompts: Prompts) -> dict[int, np.ndarray]:
    """One object, backwards from its first prompt and then forwards, as a user of the package would."""
    state = model.init_state_from_frames(frames, SIZE, SIZE)
    for frame, prompt in prompts:
        if np.ndim(prompt) == 1:
            model.add_new_points_or_box(state, frame, 0, box=prompt)
        else:
            model.add_new_mask(state, frame, 0, prompt)
    first = min(frame for frame, _ in prompts)
    seen = {}
    for frame, _, logits in model.propagate_in_video(state, start_frame_idx=first, reverse=True):
        seen[frame] = logits[0, 0].numpy()
    for frame, _, logits in model.propagate_in_video(state, start_frame_idx=first):
        seen[frame] = logits[0, 0].numpy()
    return seen


def ours(model: Predictor, frames: list[torch.Tensor], forget: bool) -> dict[int, dict[int, np.ndarray]]:
    with torch.inference_mode():
        tracker = Tracker(model, FRAMES, EncodedFrames(model, lambda index: frames[index]))
        starts = {number: min(f for f, _ in prompts) for number, prompts in OBJECTS.items()}
        for number, prompts in OBJECTS.items():
            for frame, prompt in prompts:
                if np.ndim(prompt) == 1:
                    box = torch.from_numpy(prompt).reshape(1, 2, 2)
                    tracker.prompt_points(number, frame, box, torch.tensor([[2, 3]]))
                else:
                    tracker.prompt_mask(number, frame, torch.from_numpy(prompt))
        seen: dict[int, dict[int, np.ndarray]] = {number: {} for number in OBJECTS}
        for reverse, order in ((True, range(FRAMES - 1, -1, -1)), (False, range(FRAMES))):
            for frame in order:
                active = [n for n, s in starts.items() if (frame <= s if reverse else frame >= s)]
                for number, tracked in tracker.step(frame, active, reverse).items():
                    large = torch.nn.functional.interpolate(
                        tracked.logits[None, None], size=(SIZE, SIZE), mode="bilinear"
                    )
                    seen[number][frame] = large[0, 0].numpy()
                if forget:
                    tracker.forget(frame, keep=sorted(starts.values()))
        return seen


@pytest.mark.parametrize("forget", [False, True])
def test_objects_tracked_together_equal_the_public_predictor_one_by_one(
    model: Predictor, frames: list[torch.Tensor], forget: bool
) -> None:
    found = ours(model, frames, forget)
    appearing = 0
    for number, prompts in OBJECTS.items():
        expected = public(model, frames, prompts)
        assert sorted(found[number]) == sorted(expected) == list(range(FRAMES))
        for frame, logits in expected.items():
            np.testing.assert_allclose(
                found[number][frame], logits, atol=1e-4, rtol=1e-4, err_msg=f"{number} at {frame}"
            )
            appearing += bool(logits.max() > -1000)
    assert appearing > 3 * len(OBJECTS)  # the comparison is not of placeholders alone


def test_memory_stays_bounded(model: Predictor, frames: list[torch.Tensor]) -> None:
    with torch.inference_mode():
        tracker = Tracker(model, 200, EncodedFrames(model, lambda index: frames[index % FRAMES]))
        tracker.prompt_mask(0, 0, torch.from_numpy(blob(5)))
        for frame in range(60):
            tracker.step(frame)
            tracker.forget(frame)
        assert len(tracker.objects[0].tracked) <= model.max_obj_ptrs_in_encoder
