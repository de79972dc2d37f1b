"""Training of the small SAM 2: the loss says what it should, and a short run learns and leaves its record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stages.sam2.nano import NanoConfig, build_nano
from stages.sam2.train import SamNanoConfig, mask_loss, train_sam_nano
from stages.sam2.train_data import boxes_of, draw_clips, interrupted, objects_of, points_in

SMALL = NanoConfig(image_size=64, embed_dim=16, stages=(1, 1, 2, 1), global_blocks=(3,), memory_layers=1)


def test_the_loss_prefers_right_masks_and_honest_estimates() -> None:
    truth = torch.zeros(2, 16, 16, dtype=torch.bool)
    truth[:, 4:12, 4:12] = True
    right = (20 * truth[:, None, ::4, ::4].float() - 10).repeat(1, 4, 1, 1)
    sure, there = torch.ones(2, 4), torch.full((2, 1), 8.0)
    best, iou = mask_loss(right, sure, there, truth)
    assert iou > 0.5
    assert mask_loss(-right, sure, there, truth)[0] > best + 1
    assert mask_loss(right, sure * 0, there, truth)[0] > best
    assert mask_loss(right, sure, -there, truth)[0] > best + 1


def test_where_the_object_is_absent_only_the_score_learns() -> None:
    masks = torch.randn(2, 4, 4, 4, requires_grad=True)
    absent = torch.zeros(2, 16, 16, dtype=torch.bool)
    score = torch.full((2, 1), 3.0, requires_grad=True)
    mask_loss(masks, torch.rand(2, 4), score, absent)[0].backward()
    assert masks.grad is not None
    assert not masks.grad.any()
    assert score.grad is not None
    assert (score.grad > 0).all()


def test_prompts_lie_on_their_objects() -> None:
    clips = draw_clips(0, 3, 4, 64, workers=1)
    row, number = objects_of(clips.owner, least=16)
    truth = clips.owner[row, 0] == number[:, None, None]
    for mask, (x0, y0, x1, y1) in zip(truth, boxes_of(truth).int().tolist(), strict=True):
        assert mask[y0:y1, x0:x1].sum() == mask.sum()
        assert mask[y0:y1, x0].any()
        assert mask[y1 - 1, x0:x1].any()
    points = points_in(truth, 2).long()
    for mask, places in zip(truth, points, strict=True):
        assert all(mask[y, x] for x, y in places.tolist())


def test_interruptions_hide_the_objects_and_spare_the_first_frame() -> None:
    clips = draw_clips(1, 4, 6, 64, workers=1)
    pixels, owner = interrupted(clips.pixels, clips.owner, torch.Generator().manual_seed(0), share=1.0)
    assert torch.equal(owner[:, 0], clips.owner[:, 0])
    hidden = (owner != clips.owner).flatten(2).any(2)
    assert hidden.any(1).all()
    for clip, frame in torch.nonzero(hidden).tolist():
        assert not owner[clip, frame].any()
        assert torch.equal(pixels[clip, frame], clips.pixels[clip - 1, frame])


def test_a_short_run_learns_and_leaves_weights_and_record(tmp_path: Path) -> None:
    settings = SamNanoConfig(
        out=str(tmp_path / "nano.safetensors"), device="cpu", model=SMALL, scenes=24, clips=6, clip_frames=3, steps=40,
        scene_batch=12, clip_batch=2, warmup=5, lr=2e-3, stills_first=0.8, held_out_scenes=8, held_out_clips=1,
        workers=1, attributes=0.02,
    )  # fmt: skip
    figures = train_sam_nano(settings)
    record = json.loads((tmp_path / "nano.json").read_text())
    assert record["figures"] == figures
    assert record["settings"]["seed"] == 0
    weights = load_file(tmp_path / "nano.safetensors")
    build_nano(SMALL).load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    assert figures["iou"] > 0.05  # untrained it finds nothing
    onwards = settings.model_copy(update={"start": settings.out, "out": str(tmp_path / "more.safetensors"), "steps": 2})
    train_sam_nano(onwards)
    assert json.loads((tmp_path / "more.json").read_text())["start"]["figures"] == figures


@pytest.mark.parametrize("size", [64, 128])
def test_the_small_sam_is_built_for_any_multiple_of_64(size: int) -> None:
    model = build_nano(SMALL.model_copy(update={"image_size": size}))
    with torch.inference_mode():
        out = model.forward_image(torch.zeros(1, 3, size, size))
    assert out["backbone_fpn"][-1].shape == (1, 64, size // 16, size // 16)
