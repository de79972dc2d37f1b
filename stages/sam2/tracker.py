"""SAM 2's memory, several objects at a time: what the public video predictor computes, batched over objects.

The public predictor follows its objects one by one. Objects do not see each other, so those whose memories have the
same shape go through memory attention, the mask decoder and the memory encoder as one batch; the answers are the
same. Memories out of reach are dropped, so that a video of any length fits.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from sam2.modeling.sam2_utils import get_1d_sine_pe, select_closest_cond_frames
from torch import Tensor

from stages.sam2.predictor import Predictor


class Level(NamedTuple):
    """One frame's features at three scales, finest first: (HW, 1, C) each, their positions, their (H, W)."""

    features: list[Tensor]
    positions: list[Tensor]
    sizes: list[tuple[int, int]]


class Tracked(NamedTuple):
    """One object on one frame: mask `logits` (S/4, S/4), the `score` (positive: it is there), and whether the frame
    was prompted for it."""

    logits: Tensor
    score: Tensor
    prompted: bool


class Memory(NamedTuple):
    """What later frames remember of one object on one frame."""

    features: Tensor
    pointer: Tensor
    logits: Tensor
    score: Tensor


@dataclass
class ObjectMemory:
    """One object's prompted frames, which stay, and its tracked frames, which are forgotten when out of reach."""

    prompted: dict[int, Memory] = field(default_factory=dict)
    tracked: dict[int, Memory] = field(default_factory=dict)


class EncodedFrames:
    """Features of frames, encoded one at a time and kept while they are the last one asked for."""

    def __init__(self, model: Predictor, frame: Callable[[int], Tensor]) -> None:
        self.model = model
        self.frame = frame
        self._kept: tuple[int, Level] | None = None

    def __call__(self, index: int) -> Level:
        """The features of frame `index`."""
        if self._kept is None or self._kept[0] != index:
            self._kept = (index, levels(self.model, self.frame(index)[None])[0])
        return self._kept[1]


def levels(model: Predictor, batch: Tensor) -> list[Level]:
    """The features of each of n normalised frames (n, 3, S, S)."""
    _, features, positions, sizes = model._prepare_backbone_features(model.forward_image(batch))
    return [
        Level([f[:, i : i + 1] for f in features], [p[:, i : i + 1] for p in positions], sizes)
        for i in range(batch.shape[0])
    ]


class Tracker:
    """Follows objects through a video of `num_frames` frames, whose features `frames(index)` gives.

    Prompts come first, on any frames; then `step` is called frame after frame, forwards or backwards.
    """

    def __init__(self, model: Predictor, num_frames: int, frames: Callable[[int], Level]) -> None:
        if model.memory_temporal_stride_for_eval != 1:
            raise ValueError("memories with gaps (memory_temporal_stride_for_eval) are not supported")
        self.model = model
        self.num_frames = num_frames
        self.frames = frames
        self.objects: dict[int, ObjectMemory] = defaultdict(ObjectMemory)
        self._positions: list[Tensor] | None = None

    def prompt_points(self, number: int, frame: int, coords: Tensor, labels: Tensor) -> Tensor:
        """Prompts an object on a frame: coords (1, n, 2) in pixels of the S x S input, labels (1, n), 2 and 3 a box's
        corners. Returns the mask's logits (S/4, S/4)."""
        points = {"point_coords": coords.float(), "point_labels": labels.int()}
        return self._prompt(number, frame, points, None)

    def prompt_mask(self, number: int, frame: int, mask: Tensor) -> Tensor:
        """Prompts an object on a frame with a mask (H, W) of any size, which becomes its answer there."""
        size = self.model.image_size
        whole = mask[None, None].float()
        if whole.shape[-2:] != (size, size):
            whole = F.interpolate(whole, size=(size, size), mode="bilinear", align_corners=False, antialias=True)
            whole = (whole >= 0.5).float()
        return self._prompt(number, frame, None, whole)

    def _prompt(self, number: int, frame: int, points: dict[str, Tensor] | None, mask: Tensor | None) -> Tensor:
        level = self.frames(frame)
        out = self.model.track_step(
            frame_idx=frame,
            is_init_cond_frame=True,
            current_vision_feats=level.features,
            current_vision_pos_embeds=level.positions,
            feat_sizes=level.sizes,
            point_inputs=points,
            mask_inputs=mask,
            output_dict={},
            num_frames=self.num_frames,
            run_mem_encoder=False,
        )
        logits, score = out["pred_masks"], out["object_score_logits"]
        memory = self._remember(level, logits, out["obj_ptr"], score, prompted=True)[0]
        self.objects[number].prompted[frame] = memory
        self.objects[number].tracked.pop(frame, None)
        return memory.logits

    def step(self, frame: int, active: Iterable[int] | None = None, reverse: bool = False) -> dict[int, Tracked]:
        """The active objects (all by default) on one frame; a prompted frame gives back its prompt's mask."""
        results: dict[int, Tracked] = {}
        waiting: dict[tuple[int, int], list[tuple[int, Any]]] = defaultdict(list)
        for number in sorted(self.objects if active is None else active):
            memory = self.objects[number].prompted.get(frame)
            if memory is not None:
                results[number] = Tracked(memory.logits, memory.score, True)
            else:
                gathered = self._gather(self.objects[number], frame, reverse)
                waiting[gathered.shape].append((number, gathered))
        for group in waiting.values():
            numbers = [number for number, _ in group]
            for number, memory in zip(numbers, self._follow(frame, [g for _, g in group]), strict=True):
                self.objects[number].tracked[frame] = memory
                results[number] = Tracked(memory.logits, memory.score, False)
        return results

    def restart(self, number: int, frame: int) -> None:
        """Makes an object forget everything but its prompt on `frame`."""
        self.objects[number] = ObjectMemory(prompted={frame: self.objects[number].prompted[frame]})

    def forget(self, frame: int, keep: Sequence[int] = ()) -> None:
        """Drops what no frame from `frame` on can reach, in either direction; `keep` names frames whose surroundings
        another pass will need."""
        reach = max(self.model.max_obj_ptrs_in_encoder, self.model.num_maskmem)
        for memory in self.objects.values():
            for index in [i for i in memory.tracked if all(abs(i - at) >= reach for at in (frame, *keep))]:
                del memory.tracked[index]

    def _follow(self, frame: int, gathered: list[Gathered]) -> list[Memory]:
        """One frame of several objects whose memories have the same shape."""
        model, level, count = self.model, self.frames(frame), len(gathered)
        features = [f.expand(-1, count, -1) for f in level.features]
        height, width = level.sizes[-1]
        fused = model.memory_attention(
            curr=features[-1:],
            curr_pos=[level.positions[-1].expand(-1, count, -1)],
            memory=torch.cat([g.memory for g in gathered], dim=1),
            memory_pos=self._memory_positions(gathered),
            num_obj_ptr_tokens=gathered[0].pointer_tokens,
        )
        fused = fused.permute(1, 2, 0).reshape(count, model.hidden_dim, height, width)
        fine = [f.permute(1, 2, 0).unflatten(2, size) for f, size in zip(features[:-1], level.sizes[:-1], strict=True)]
        _, _, _, low, high, pointer, score = model._forward_sam_heads(
            backbone_features=fused,
            high_res_features=fine,
            multimask_output=model._use_multimask(False, None),
        )
        return self._remember(level, low, pointer, score, prompted=False, high=high)

    def _remember(
        self, level: Level, low: Tensor, pointer: Tensor, score: Tensor, prompted: bool, high: Tensor | None = None
    ) -> list[Memory]:
        model, count = self.model, low.shape[0]
        if high is None:
            size = (model.image_size, model.image_size)
            high = F.interpolate(low, size=size, mode="bilinear", align_corners=False)
        features, positions = model._encode_new_memory(
            current_vision_feats=[f.expand(-1, count, -1) for f in level.features],
            feat_sizes=level.sizes,
            pred_masks_high_res=high,
            object_score_logits=score,
            is_mask_from_pts=prompted,
        )
        if self._positions is None:  # the same for every frame and object, but for the time
            place = positions[-1][:1].flatten(2).permute(2, 0, 1)
            self._positions = [place + model.maskmem_tpos_enc[i] for i in range(model.num_maskmem)]
        stored = features.to(torch.bfloat16).flatten(2).permute(2, 0, 1)  # as the public predictor stores them
        return [Memory(stored[:, i : i + 1], pointer[i], low[i, 0], score[i, 0]) for i in range(count)]

    def _gather(self, memory: ObjectMemory, frame: int, reverse: bool) -> Gathered:
        """What an object remembers at a frame: memories of prompted frames, of the last frames, and pointers."""
        model, sign = self.model, 1 if reverse else -1
        near, far = select_closest_cond_frames(frame, memory.prompted, model.max_cond_frames_in_attn)
        spatial = [(model.num_maskmem - 1, kept) for kept in near.values()]
        for back in range(model.num_maskmem - 1, 0, -1):
            at = frame + sign * back
            kept = memory.tracked.get(at, far.get(at))
            if kept is not None:
                spatial.append((back - 1, kept))
        pointers = []
        for at, kept in near.items():
            distance = frame - at if not reverse else at - frame
            if distance >= 0 or not model.only_obj_ptrs_in_the_past_for_eval:
                signed = model.use_signed_tpos_enc_to_obj_ptrs
                pointers.append((distance if signed else abs(distance), kept.pointer))
        for back in range(1, min(self.num_frames, model.max_obj_ptrs_in_encoder)):
            at = frame + sign * back
            if not 0 <= at < self.num_frames:
                break
            kept = memory.tracked.get(at, far.get(at))
            if kept is not None:
                pointers.append((back, kept.pointer))
        return self._gathered(spatial, pointers)

    def _gathered(self, spatial: list[tuple[int, Memory]], pointers: list[tuple[int, Tensor]]) -> Gathered:
        model = self.model
        tokens = [kept.features for _, kept in spatial]
        split = model.hidden_dim // model.mem_dim
        if pointers and model.use_obj_ptrs_in_encoder:
            stacked = torch.stack([pointer for _, pointer in pointers])
            tokens.append(stacked.reshape(-1, 1, model.mem_dim))
        return Gathered(
            memory=torch.cat(tokens, dim=0),
            ages=tuple(age for age, _ in spatial),
            distances=tuple(distance for distance, _ in pointers),
            pointer_tokens=split * len(pointers),
        )

    def _memory_positions(self, gathered: list[Gathered]) -> Tensor:
        """Positions of the memory tokens (L, B, M): place and time of memories, time of pointers."""
        model = self.model
        assert self._positions is not None
        columns = [torch.cat([self._positions[age] for age in g.ages]) for g in gathered]
        places = torch.cat(columns, dim=1)
        if not gathered[0].pointer_tokens:
            return places
        distances = torch.tensor([g.distances for g in gathered], device=model.device).T
        furthest = min(self.num_frames, model.max_obj_ptrs_in_encoder) - 1
        wide = model.hidden_dim if model.proj_tpos_enc_in_obj_ptrs else model.mem_dim
        times = model.obj_ptr_tpos_proj(get_1d_sine_pe(distances / furthest, dim=wide))
        return torch.cat([places, times.repeat_interleave(model.hidden_dim // model.mem_dim, dim=0)])


class Gathered(NamedTuple):
    """An object's memory tokens (L, 1, M), the ages of its spatial memories and the distances of its pointers."""

    memory: Tensor
    ages: tuple[int, ...]
    distances: tuple[int, ...]
    pointer_tokens: int

    @property
    def shape(self) -> tuple[int, int]:
        """Objects of one shape go through the model together."""
        return self.memory.shape[0], self.pointer_tokens
