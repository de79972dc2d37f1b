"""The taps against the public predictor of the `sam2` package, on a small SAM 2 with random weights."""

from __future__ import annotations

import copy
import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from model.vision import FrozenSam, Prompt, shown_frames
from stages.sam2.nano import NanoConfig, build_nano

SIZE = (96, 160)
BOX = (20.0, 10.0, 90.0, 70.0)


@pytest.fixture(scope="module")
def sam() -> FrozenSam:
    torch.manual_seed(0)
    model: Any = build_nano(NanoConfig(image_size=128, embed_dim=16, memory_layers=1))
    with torch.no_grad():  # random weights see no object anywhere; this one sees it always
        model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(5.0)
    return FrozenSam(model)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("frames")
    rng = np.random.default_rng(0)
    for at in range(6):
        Image.fromarray(rng.integers(0, 255, (*SIZE, 3), dtype=np.uint8)).save(path / f"{at:05d}.jpg")
    return path


def _frames(folder: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(path)) for path in sorted(folder.glob("*.jpg"))]


def _track(sam: FrozenSam, frames: list[np.ndarray], prompts: list[Prompt]) -> list[Any]:
    features = sam.encode(sam.preprocess(frames))
    one = (features.take(torch.tensor([at] * len(prompts))) for at in range(len(frames)))
    return list(sam.track(one, len(frames), prompts, [SIZE] * len(prompts)))


def test_tracking_equals_the_public_video_predictor(sam: FrozenSam, folder: Path) -> None:
    ours = _track(sam, _frames(folder), [Prompt(box=BOX)])
    predictor = sam.sam
    embeds: list[torch.Tensor] = []
    hook = predictor.sam_mask_decoder.transformer.register_forward_hook(lambda _m, _i, out: embeds.append(out[1]))
    state = predictor.init_state(str(folder))
    predictor.add_new_points_or_box(state, 0, 1, box=np.array(BOX, np.float32))
    for at, _, _ in predictor.propagate_in_video(state):
        stored = state["output_dict_per_obj"][0]
        theirs = stored["cond_frame_outputs"].get(at) or stored["non_cond_frame_outputs"][at]
        torch.testing.assert_close(ours[at].mask_logits, theirs["pred_masks"][:, 0], atol=1e-4, rtol=1e-4)
    hook.remove()
    for at in range(6):
        torch.testing.assert_close(ours[at].embed.flatten(2).mT, embeds[at], atol=1e-4, rtol=1e-4)


def test_an_image_is_a_one_frame_video_and_prompts_may_be_mixed(sam: FrozenSam, folder: Path) -> None:
    frames = _frames(folder)[:2]
    features = sam.encode(sam.preprocess(frames))
    mask = np.zeros(SIZE, bool)
    mask[10:70, 20:90] = True
    point = Prompt(points=((30.0, 30.0),), point_labels=(1,))
    prompts = [Prompt(box=BOX), point, Prompt(box=BOX), Prompt(mask=mask)]
    taps = sam.prompt(features, [0, 0, 1, 1], prompts, [SIZE] * 4)
    assert taps.embed.shape == (4, 64, 8, 8)
    assert taps.tokens.shape == (4, 2, 64)
    for at, (picture, prompt) in enumerate(zip([0, 0, 1, 1], prompts, strict=True)):
        alone = _track(sam, frames[picture : picture + 1], [prompt])[0]
        torch.testing.assert_close(taps.embed[at], alone.embed[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(taps.tokens[at], alone.tokens[0], atol=1e-5, rtol=1e-4)
    back = sam.full_masks(taps[3:], [SIZE])[0]
    assert (back & mask).sum() / (back | mask).sum() > 0.9


def test_several_targets_of_a_clip_do_not_touch_each_other(sam: FrozenSam, folder: Path) -> None:
    frames = _frames(folder)[:3]
    prompts = [Prompt(box=BOX), Prompt(box=(80.0, 30.0, 150.0, 90.0))]
    together = _track(sam, frames, prompts)
    for at, prompt in enumerate(prompts):
        alone = _track(sam, frames, [prompt])
        for both, one in zip(together, alone, strict=True):
            torch.testing.assert_close(both.tokens[at], one.tokens[0], atol=1e-5, rtol=1e-4)


def test_a_long_clip_forgets_what_cannot_be_reached(sam: FrozenSam, folder: Path) -> None:
    """40 frames with old memories dropped equal 40 frames with all memories kept."""
    frames = _frames(folder)
    features = sam.encode(sam.preprocess(frames))
    ours = list(sam.track((features.take(torch.tensor([at % 6])) for at in range(40)), 40, [Prompt(box=BOX)], [SIZE]))
    memory: dict[str, dict[int, Any]] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
    inputs = sam._inputs([Prompt(box=BOX)], [SIZE])
    for at in range(40):
        one = features.take(torch.tensor([at % 6]))
        taps, out = sam._step(one, at, inputs if at == 0 else None, memory, 40, remember=True)
        memory["cond_frame_outputs" if at == 0 else "non_cond_frame_outputs"][at] = out
    torch.testing.assert_close(ours[-1].embed, taps.embed, atol=0, rtol=0)


def _held() -> int:
    """Bytes in all tensors that are alive."""
    gc.collect()
    alive = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in gc.get_objects() if type(t) is Tensor
    }
    return sum(alive.values())


def test_memory_does_not_grow_with_a_clips_length(sam: FrozenSam, folder: Path) -> None:
    features = sam.encode(sam.preprocess(_frames(folder)[:1]))
    tracker = sam.tracker([Prompt(box=BOX)], [SIZE])
    held = []
    for at in range(44):
        tracker.step(features)
        if at in (23, 43):
            held.append(_held())
    assert held[1] <= held[0]


def test_an_encoder_in_bfloat16_gives_nearly_the_same_taps_in_float32(sam: FrozenSam, folder: Path) -> None:
    half = FrozenSam(copy.deepcopy(sam.sam), half_encoder=True)
    frames = _frames(folder)[:2]
    prompts = [Prompt(box=BOX), Prompt(points=((30.0, 30.0),), point_labels=(1,))]
    whole, rough = (s.prompt(s.encode(s.preprocess(frames)), [0, 1], prompts, [SIZE] * 2) for s in (sam, half))
    for name in ("embed", "tokens", "mask_logits", "iou", "score"):
        ours, theirs = getattr(rough, name), getattr(whole, name)
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() < 0.05 * theirs.norm(), name
    with torch.autocast("cpu", torch.bfloat16):
        tracked = _track(half, frames, [Prompt(box=BOX)])
    assert all(torch.isfinite(taps.embed).all() for taps in tracked)


def test_no_hook_or_wrapper_stays_behind(sam: FrozenSam) -> None:
    decoder = sam.sam.sam_mask_decoder
    assert "predict_masks" not in vars(decoder)
    assert not decoder.transformer._forward_hooks


def test_a_lost_object_has_an_empty_mask(sam: FrozenSam, folder: Path) -> None:
    taps = sam.prompt(sam.encode(sam.preprocess(_frames(folder)[:1])), [0], [Prompt(box=BOX)], [SIZE])
    gone = type(taps)(taps.embed, taps.tokens, taps.mask_logits, taps.iou, taps.score * 0 - 1)
    assert not sam.full_masks(gone, [SIZE])[0].any()


def test_a_prompt_has_to_lie_on_the_picture() -> None:
    Prompt(box=(-5.0, 10.0, 40.0, 400.0)).check(SIZE)
    for prompt, said in (
        (Prompt(box=(40.0, 10.0, 40.0, 20.0)), "no area"),
        (Prompt(box=(160.0, 10.0, 200.0, 20.0)), "no area"),
        (Prompt(points=((5.0, 97.0),), point_labels=(1,)), "not on a picture of 160x96"),
        (Prompt(mask=np.ones((96, 96), bool)), "the mask is 96x96"),
        (Prompt(mask=np.zeros(SIZE, bool)), "empty"),
    ):
        with pytest.raises(ValueError, match=said):
            prompt.check(SIZE)


def test_prompts_are_one_kind_and_complete() -> None:
    with pytest.raises(ValueError, match="exactly one"):
        Prompt()
    with pytest.raises(ValueError, match="exactly one"):
        Prompt(box=BOX, points=((1.0, 2.0),), point_labels=(1,))
    with pytest.raises(ValueError, match="labels"):
        Prompt(points=((1.0, 2.0),))


def test_shown_frames_follow_the_published_rule() -> None:
    assert shown_frames(32, 16)[:3] == [0, 1, 3]
    assert shown_frames(32, 16)[-1] == 31
    assert shown_frames(16, 16) == list(range(16))
    assert shown_frames(1, 4) == [0, 0, 0, 0]
    assert shown_frames(3, 6) == [0, 1, 1, 1, 1, 2]
