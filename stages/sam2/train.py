"""Training of the small SAM 2 on drawn shapes: still scenes and clips by turns, from random weights.

One loop, read from top to bottom. The loss of a mask is dice + 2 binary cross-entropy on the logits at full size; the
three alternatives share the loss of the best of them; predicted IoUs and the object score learn from what came out.
Beside the masks the decoder may learn what its targets are (`stages.sam2.attributes`).
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor

from schemas.base import Record
from stages.sam2.attributes import Attributes
from stages.sam2.device import resolve_device
from stages.sam2.evaluate import evaluate
from stages.sam2.forward import decode, encode, normalise
from stages.sam2.nano import NanoConfig, build_nano
from stages.sam2.predictor import Predictor
from stages.sam2.train_data import (
    Drawn,
    augmented,
    boxes_of,
    draw_clips,
    draw_scenes,
    interrupted,
    jittered,
    objects_of,
    points_in,
)


class SamNanoConfig(Record):
    """Settings of `train_sam_nano`, for one large GPU; the weights in this package say with which they were made.

    `start` are weights to go on from (with their record beside them), else it begins from random ones.
    `minutes` bounds the training proper: the learning rate ends its cosine at `steps` or there, whichever comes first.
    `clip_share` of the steps after the first `stills_first` are on clips. `attributes` weighs the loss of what the
    targets are (`stages.sam2.attributes`) against that of their masks; by default only masks are learnt.
    """

    out: str = "nano.safetensors"
    start: str | None = None
    device: str = "auto"
    seed: int = 0
    model: NanoConfig = NanoConfig()
    scenes: int = Field(default=12000, ge=1)
    clips: int = Field(default=2400, ge=1)
    clip_frames: int = Field(default=8, ge=2)
    steps: int = Field(default=20000, ge=1)
    minutes: float = Field(default=5.0, gt=0)
    scene_batch: int = Field(default=96, ge=1)
    clip_batch: int = Field(default=64, ge=1)
    stills_first: float = Field(default=0.35, ge=0, le=1)
    clip_share: float = Field(default=0.5, ge=0, le=1)
    lr: float = Field(default=1e-3, gt=0)
    warmup: int = Field(default=200, ge=1)
    attributes: float = Field(default=0.0, ge=0)
    held_out_scenes: int = Field(default=512, ge=1)
    held_out_clips: int = Field(default=48, ge=1)
    workers: int = Field(default=0, ge=0)


def train_sam_nano(config: SamNanoConfig) -> dict[str, Any]:
    """Trains, evaluates on held-out drawings, writes the weights and beside them a JSON of settings and figures.

    Returns the figures: mean IoU of masks from boxes jittered by 1 %, the box itself, tracking over 16 frames, copying.
    """
    device = resolve_device(config.device)
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    size, workers = config.model.image_size, config.workers or os.cpu_count() or 1
    began = time.monotonic()
    scenes = draw_scenes(config.seed, config.scenes, size, workers).to(device)
    clips = draw_clips(config.seed, config.clips, config.clip_frames, size, workers).to(device)
    _say(f"drew {config.scenes} scenes and {config.clips} clips in {time.monotonic() - began:.0f} s")
    model = build_nano(config.model).to(device)
    if config.start is not None:
        model.load_state_dict({name: tensor.float() for name, tensor in load_file(config.start).items()})
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    began = time.monotonic()
    done = _fit(model, scenes, clips, config, generator)
    trained_s = time.monotonic() - began
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    out = Path(config.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.detach().half().cpu().contiguous() for name, tensor in model.state_dict().items()}, out)
    model.half().float()  # what is measured is what was written
    figures = evaluate(model, config.held_out_scenes, config.held_out_clips, seed=config.seed + 1, workers=workers)
    record = {
        "command": "perceive train sam-nano",
        "settings": config.model_dump(mode="json", exclude={"out", "workers", "start"}),
        "start": None if config.start is None else json.loads(Path(config.start).with_suffix(".json").read_text()),
        "steps": done,
        "trained_s": round(trained_s, 1),
        "hardware": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "torch": torch.__version__,
        "figures": figures,
    }
    out.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")
    return figures


def _fit(model: Predictor, scenes: Drawn, clips: Drawn, config: SamNanoConfig, generator: torch.Generator) -> int:
    reading = Attributes(config.model.d_model).to(scenes.pixels.device)
    learning = [*model.parameters(), *reading.parameters()]
    optimiser = torch.optim.AdamW(learning, lr=config.lr, weight_decay=0.01, fused=scenes.pixels.is_cuda)
    began, step, share = time.monotonic(), 0, 0.0
    while share < 1:
        share = max(step / config.steps, (time.monotonic() - began) / (60 * config.minutes))
        for group in optimiser.param_groups:
            group["lr"] = (
                config.lr * min(1.0, (step + 1) / config.warmup) * (0.5 + 0.5 * math.cos(math.pi * min(share, 1.0)))
            )
        on_clips = share > config.stills_first and torch.rand(1, generator=generator).item() < config.clip_share
        drawn, size = (clips, config.clip_batch) if on_clips else (scenes, config.scene_batch)
        batch, learn = _pick(drawn, size, generator), _clip_step if on_clips else _scene_step
        with torch.autocast(scenes.pixels.device.type, torch.bfloat16, enabled=scenes.pixels.is_cuda):
            loss, iou, told, right = learn(model, reading, batch, generator)
        if config.attributes:
            loss = loss + config.attributes * told
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimiser.step()
        step += 1
        if step % 100 == 0:
            kind = "clips" if on_clips else "scenes"
            figures = f"loss {loss.item():.3f} IoU {iou.item():.3f} kinds {right.item():.3f}"
            _say(f"step {step} {time.monotonic() - began:.0f} s {kind}: {figures}")
    return step


def _pick(drawn: Drawn, count: int, generator: torch.Generator) -> Drawn:
    index = torch.randint(0, len(drawn), (min(count, len(drawn)),), generator=generator).to(drawn.pixels.device)
    return Drawn(drawn.pixels[index], drawn.owner[index], drawn.kinds[index])


def _scene_step(
    model: Predictor, reading: Attributes, batch: Drawn, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    pixels, owner = augmented(batch, generator)
    row, number = objects_of(owner)
    truth = owner[row, 0] == number[:, None, None]
    features = encode(model, normalise(pixels[:, 0], model.image_size)).take(row)
    coords, labels, rough = _prompts(truth, generator)
    with decoder_outputs(model) as seen:
        first = decode(model, features, coords, labels, rough)
    told, right = reading.loss(seen[-1].token, seen[-1].embed, truth, pixels[row, 0], batch.kinds[row, number - 1])
    loss, iou = mask_loss(first.masks, first.ious, first.score, truth)
    if torch.rand(1, generator=generator).item() < 0.3:  # a second pass, prompted with the first pass's mask
        again = first.masks[:, :1].detach().clamp(-32, 32)
        second = decode(model, features, coords, labels, again)
        more, iou = mask_loss(second.masks, second.ious, second.score, truth)
        loss = (loss + more) / 2
    return loss, iou, told, right


def _prompts(truth: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor | None]:
    """Coordinates, labels and mask logits of one kind of prompt, drawn for the whole batch."""
    kind = torch.rand(1, generator=generator).item()
    coords, labels = truth.new_zeros((len(truth), 0, 2), dtype=torch.float32), None
    if kind < 0.7 or kind >= 0.9:
        share = 0.06 * torch.rand((len(truth), 1), generator=generator).to(truth.device) ** 2
        coords = jittered(boxes_of(truth), share, generator).reshape(-1, 2, 2)
        labels = torch.tensor([2, 3], device=truth.device).repeat(len(truth), 1)
    elif kind < 0.85:
        count = int(torch.randint(1, 4, (1,), generator=generator))
        coords = points_in(truth, count)
        labels = torch.ones(coords.shape[:2], dtype=torch.long, device=truth.device)
    if labels is None:
        labels = torch.zeros((len(truth), 0), dtype=torch.long, device=truth.device)
    return coords, labels, _rough(truth, generator) if kind >= 0.85 else None


def _rough(truth: Tensor, generator: torch.Generator) -> Tensor:
    """Prompt logits (r, 1, S/4, S/4) of the masks, grown or shrunk by up to a few pixels."""
    reach = int(torch.randint(0, 5, (1,), generator=generator))
    masks = truth[:, None].float()
    if torch.rand(1, generator=generator).item() < 0.5:
        masks = F.max_pool2d(masks, 2 * reach + 1, 1, reach)
    else:
        masks = -F.max_pool2d(-masks, 2 * reach + 1, 1, reach)
    return 20 * (F.avg_pool2d(masks, 4) >= 0.5).float() - 10


def _clip_step(
    model: Predictor, reading: Attributes, batch: Drawn, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    pixels, owner = interrupted(*augmented(batch, generator), generator, share=0.4)
    row, number = objects_of(owner)
    truth, kinds = owner[row] == number[:, None, None, None], batch.kinds[row, number - 1]
    results = []
    for index, seen in enumerate(track(model, pixels, row, truth[:, 0], generator)):
        if seen is not None:
            of_mask = mask_loss(seen.masks, seen.ious, seen.score, truth[:, index])
            results.append(
                (*of_mask, *reading.loss(seen.token, seen.embed, truth[:, index], pixels[row, index], kinds))
            )
    loss, iou, told, right = (torch.stack(each).mean() for each in zip(*results, strict=True))
    return loss, iou, told, right


def track(
    model: Predictor, pixels: Tensor, row: Tensor, first: Tensor, generator: torch.Generator
) -> Iterator[Seen | None]:
    """Follows objects through clips with gradients, prompted on the first frame by a box, a point or their mask.

    `pixels` uint8 (n, t, 3, S, S), `row` (r,) the clip of each object, `first` bool (r, S, S) its first mask. Yields
    what the decoder gave, frame by frame; None where a mask was its own answer.
    """
    frames = pixels.shape[1]
    out = model.forward_image(normalise(pixels.flatten(0, 1), model.image_size))
    _, features, positions, sizes = model._prepare_backbone_features(out)
    points, mask = _first_prompt(first, generator)
    memory: dict[str, dict[int, Any]] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
    for frame in range(frames):
        at = row * frames + frame
        with decoder_outputs(model) as seen:
            current = model.track_step(
                frame_idx=frame,
                is_init_cond_frame=frame == 0,
                current_vision_feats=[level[:, at] for level in features],
                current_vision_pos_embeds=[level[:, at] for level in positions],
                feat_sizes=sizes,
                point_inputs=points if frame == 0 else None,
                mask_inputs=mask if frame == 0 else None,
                output_dict=memory,
                num_frames=frames,
            )
        memory["cond_frame_outputs" if frame == 0 else "non_cond_frame_outputs"][frame] = current
        own_answer = frame == 0 and mask is not None
        yield None if own_answer else seen[-1]


def _first_prompt(first: Tensor, generator: torch.Generator) -> tuple[dict[str, Tensor] | None, Tensor | None]:
    kind = torch.rand(1, generator=generator).item()
    if kind < 0.4:
        return None, first[:, None].float()
    if kind < 0.9:
        coords = jittered(boxes_of(first), 0.02, generator).reshape(-1, 2, 2)
        labels = torch.tensor([2, 3], device=first.device).repeat(len(first), 1)
    else:
        coords = points_in(first, 2)
        labels = torch.ones(coords.shape[:2], dtype=torch.long, device=first.device)
    return {"point_coords": coords, "point_labels": labels.int()}, None


@dataclass(frozen=True)
class Seen:
    """One call of the mask decoder: logits (r, 4, S/4, S/4), predicted IoUs (r, 4), object score (r, 1), the single
    mask's token (r, C) and the image embedding after the prompt, (r, C, S/16, S/16)."""

    masks: Tensor
    ious: Tensor
    score: Tensor
    token: Tensor
    embed: Tensor


@contextmanager
def decoder_outputs(model: Predictor) -> Iterator[list[Seen]]:
    """Collects what the mask decoder's calls give."""
    decoder: Any = model.sam_mask_decoder
    inner = decoder.predict_masks
    seen: list[Seen] = []
    sources: list[Tensor] = []

    def predict(*args: Any, **kwargs: Any) -> Any:
        masks, ious, tokens, score = inner(*args, **kwargs)
        grid = masks.shape[-1] // 4
        embed = sources.pop().transpose(1, 2).unflatten(2, (grid, grid))
        seen.append(Seen(masks, ious, score, tokens[:, 0], embed))
        return masks, ious, tokens, score

    hook = decoder.transformer.register_forward_hook(lambda _module, _inputs, output: sources.append(output[1]))
    decoder.predict_masks = predict
    try:
        yield seen
    finally:
        hook.remove()
        del decoder.predict_masks


def mask_loss(masks: Tensor, predicted: Tensor, score: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of (r, 4, s, s) logits against bool truth (r, S, S), and the mean IoU of the single mask.

    Where the truth is empty only the object score learns.
    """
    there = truth.flatten(1).any(1)
    # at half size: four times fewer numbers, and the logits are at a quarter
    truth = F.avg_pool2d(truth[:, None].float(), 2)[:, 0] >= 0.5
    scored = F.binary_cross_entropy_with_logits(score[:, 0].float(), there.float())
    if not bool(there.any()):
        return scored + 0 * masks.sum(), scored.detach() * 0
    truth, masks, predicted = truth[there].float()[:, None], masks[there].float(), predicted[there].float()
    logits = F.interpolate(masks, size=truth.shape[-2:], mode="bilinear", align_corners=False)
    chance = logits.sigmoid()
    shared, total = (chance * truth).sum((2, 3)), chance.sum((2, 3)) + truth.sum((2, 3))
    dice = 1 - (2 * shared + 1) / (total + 1)
    entropy = F.binary_cross_entropy_with_logits(logits, truth.expand_as(logits), reduction="none").mean((2, 3))
    each = dice + 2 * entropy
    inside = logits.detach() > 0
    overlap = (inside & (truth > 0)).sum((2, 3)) / (inside | (truth > 0)).sum((2, 3)).clamp(min=1)
    quality = F.l1_loss(predicted, overlap)
    loss = each[:, 0].mean() + 0.3 * each[:, 1:].min(1).values.mean() + 0.3 * quality + 0.5 * scored
    return loss, overlap[:, 0].mean()


def _say(text: str) -> None:
    print(text, flush=True)
