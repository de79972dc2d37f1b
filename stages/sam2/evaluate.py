"""How well a SAM 2 cuts out and follows drawn shapes that it has not seen."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.sam2.forward import decode, encode, normalise, single_mask
from stages.sam2.predictor import Predictor
from stages.sam2.tracker import EncodedFrames, Tracker
from stages.sam2.train_data import Drawn, boxes_of, draw_clips, draw_scenes, jittered, objects_of

BATCH = 32


def evaluate(model: Predictor, scenes: int, clips: int, seed: int, workers: int = 1) -> dict[str, Any]:
    """Mean IoUs on `scenes` still scenes (boxes jittered by 1 %) and `clips` clips of 16 frames at 6 frames a second.

    `box` and `copied` are the baselines: the filled box, and the first frame's true mask left where it was. The
    tracked frames are those after the first on which the object is visible; `absent` is the share of frames without
    the object on which the model says so.
    """
    size = model.image_size
    figures = _stills(model, draw_scenes(seed, scenes, size, workers), seed)
    return figures | _tracked(model, draw_clips(seed, clips, 16, size, workers, rate=6.0), seed)


@torch.inference_mode()
def _stills(model: Predictor, drawn: Drawn, seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    found, plain, guessed = [], [], []
    for start in range(0, len(drawn), BATCH):
        pixels = drawn.pixels[start : start + BATCH].to(model.device)[:, 0].permute(0, 3, 1, 2)
        owner = drawn.owner[start : start + BATCH].to(model.device)
        row, number = objects_of(owner)
        truth = owner[row, 0] == number[:, None, None]
        boxes = jittered(boxes_of(truth), 0.01, generator)
        labels = torch.tensor([2, 3], device=model.device).repeat(len(boxes), 1)
        features = encode(model, normalise(pixels, model.image_size)).take(row)
        logits, predicted = single_mask(model, decode(model, features, boxes.reshape(-1, 2, 2), labels, None))
        found.append(overlap(enlarged(logits, truth), truth))
        plain.append(overlap(_filled(boxes, model.image_size), truth))
        guessed.append((predicted - found[-1]).abs())
    ious = torch.cat(found)
    return {
        "scenes": len(drawn),
        "objects": len(ious),
        "iou": _rounded(ious.mean()),
        "iou_10th_percentile": _rounded(ious.quantile(0.1)),
        "box": _rounded(torch.cat(plain).mean()),
        "predicted_iou_error": _rounded(torch.cat(guessed).mean()),
    }


@torch.inference_mode()
def _tracked(model: Predictor, drawn: Drawn, seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    by_box: list[Tensor] = []
    by_mask: list[Tensor] = []
    copied: list[Tensor] = []
    absent: list[Tensor] = []
    for index in range(len(drawn)):
        pixels = normalise(drawn.pixels[index].to(model.device).permute(0, 3, 1, 2), model.image_size)
        owner = drawn.owner[index : index + 1].to(model.device)
        _, numbers = objects_of(owner)
        if not len(numbers):
            continue
        truth = owner[0][:, None] == numbers[None, :, None, None]
        boxes = jittered(boxes_of(truth[0]), 0.01, generator)
        seen = truth[1:].flatten(2).any(2)
        for prompts, results in ((boxes, by_box), (truth[0], by_mask)):
            masks = follow(model, pixels, prompts)
            results.append(overlap(masks[1:], truth[1:])[seen])
            absent.append((~masks[1:].flatten(2).any(2))[~seen].float())
        copied.append(overlap(truth[:1].expand_as(truth[1:]), truth[1:])[seen])
    return {
        "clips": len(drawn),
        "tracked_from_box": _rounded(torch.cat(by_box).mean()),
        "tracked_from_mask": _rounded(torch.cat(by_mask).mean()),
        "copied": _rounded(torch.cat(copied).mean()),
        "absent": _rounded(torch.cat(absent).mean()) if torch.cat(absent).numel() else None,
    }


def follow(model: Predictor, frames: Tensor, prompts: Tensor) -> Tensor:
    """Bool masks (t, k, S, S) of k objects through normalised frames (t, 3, S, S), by the tracker.

    `prompts` are boxes (k, 4) or bool masks (k, S, S) of the first frame.
    """
    tracker = Tracker(model, len(frames), EncodedFrames(model, lambda index: frames[index]))
    for number, prompt in enumerate(prompts):
        if prompt.dim() == 1:
            corners = torch.tensor([[2, 3]], dtype=torch.int32, device=prompt.device)
            tracker.prompt_points(number, 0, prompt.reshape(1, 2, 2), corners)
        else:
            tracker.prompt_mask(number, 0, prompt)
    tracks = [tracker.step(frame) for frame in range(len(frames))]
    low = torch.stack([torch.stack([at[number].logits for number in range(len(prompts))]) for at in tracks])
    inside = enlarged(low.flatten(0, 1), frames[:1, 0])
    return inside.reshape(*low.shape[:2], *inside.shape[1:])


def overlap(masks: Tensor, truth: Tensor) -> Tensor:
    """IoU over the last two axes of bool masks; 1.0 where both are empty."""
    union = (masks | truth).sum((-1, -2))
    return torch.where(union > 0, (masks & truth).sum((-1, -2)) / union.clamp(min=1), 1.0)


def enlarged(logits: Tensor, like: Tensor) -> Tensor:
    """Bool masks at the size of `like` (r, H, W) from low-resolution logits (r, s, s)."""
    large = F.interpolate(logits.float()[:, None], like.shape[-2:], mode="bilinear", align_corners=False)
    inside: Tensor = large[:, 0] > 0
    return inside


def _filled(boxes: Tensor, size: int) -> Tensor:
    centre = torch.arange(size, device=boxes.device) + 0.5
    across = (centre >= boxes[:, :1]) & (centre < boxes[:, 2:3])
    down = (centre >= boxes[:, 1:2]) & (centre < boxes[:, 3:])
    return down[:, :, None] & across[:, None, :]


def _rounded(value: Tensor) -> float:
    return round(float(value), 4)
