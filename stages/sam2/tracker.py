"""SAM 2's memory, several objects at a time: what the public video predictor computes, batched over objects.

The public predictor follows its objects one by one. Objects do not see each other, so those whose memories have the
same shape go through memory attention, the mask decoder and the memory encoder as one batch; the answers are the
same. Memories out of reach are dropped, so that a video of any length fits.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from sam2.modeling.sam2_utils import get_1d_sine_pe, select_closest_cond_frames
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from stages.sam2.graphs import Replayed
from stages.sam2.predictor import Predictor

Attend = Callable[[int], Callable[..., Any]]
KERNELS = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
"""For memory attention, the quickest first: its heads of 256 channels are slow in the usual kernel."""
PLACES_KEPT = 64


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

    def __init__(
        self, model: Predictor, num_frames: int, frames: Callable[[int], Level], attend: Attend | None = None
    ) -> None:
        if model.memory_temporal_stride_for_eval != 1:
            raise ValueError("memories with gaps (memory_temporal_stride_for_eval) are not supported")
        self.model = model
        self.num_frames = num_frames
        self.frames = frames
        self.objects: dict[int, ObjectMemory] = defaultdict(ObjectMemory)
        self._attend = attend or attender(model, replayed=False)
        self._positions: list[Tensor] | None = None
        self._places: dict[tuple[Any, ...], Tensor] = {}

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
        memory = self._remember(level, logits, out["obj_ptr"], score)[0]
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

    def forget(self, frame: int, keep: Sequence[int] = ()) -> None:
        """Drops what no frame from `frame` on can reach, in either direction; `keep` names frames whose surroundings
        another pass will need."""
        reach = max(self.model.max_obj_ptrs_in_encoder, self.model.num_maskmem)
        for memory in self.objects.values():
            for index in [i for i in memory.tracked if all(abs(i - at) >= reach for at in (frame, *keep))]:
                del memory.tracked[index]

    def _follow(self, frame: int, gathered: list[Gathered]) -> list[Memory]:
        """One frame of several objects whose memories have the same shape."""
        level = self.frames(frame)
        found = self._attend(gathered[0].pointer_tokens)(
            torch.cat([g.memory for g in gathered], dim=1),
            torch.cat([self._place(g) for g in gathered], dim=1),
            level.positions[-1],
            *level.features,
        )
        stored, pointer, low, score = (each.clone() for each in found)  # the next frame's come to the same place
        return _memories(stored, pointer, low, score)

    def _remember(self, level: Level, low: Tensor, pointer: Tensor, score: Tensor) -> list[Memory]:
        """The memories of prompted objects."""
        model, size = self.model, (self.model.image_size, self.model.image_size)
        high = F.interpolate(low, size=size, mode="bilinear", align_corners=False)
        stored, positions = _stored(model, level.features, level.sizes, high, score, prompted=True)
        if self._positions is None:  # the same for every frame and object, but for the time
            place = positions[:1].flatten(2).permute(2, 0, 1)
            self._positions = [place + model.maskmem_tpos_enc[i] for i in range(model.num_maskmem)]
        return _memories(stored, pointer, low, score)

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
            memory=torch.cat(tokens, dim=0).float(),  # stored in bf16; without pointers nothing else would cast it
            ages=tuple(age for age, _ in spatial),
            distances=tuple(distance for distance, _ in pointers),
            pointer_tokens=split * len(pointers),
        )

    def _place(self, gathered: Gathered) -> Tensor:
        """Positions of an object's memory tokens (L, 1, M): place and time of memories, time of pointers.

        Kept, since they are the same on every frame once the memory is full.
        """
        key = (gathered.ages, gathered.distances)
        if key not in self._places:
            if len(self._places) >= PLACES_KEPT:
                self._places.clear()
            self._places[key] = self._placed(gathered)
        return self._places[key]

    def _placed(self, gathered: Gathered) -> Tensor:
        model = self.model
        assert self._positions is not None
        places = torch.cat([self._positions[age] for age in gathered.ages])
        if not gathered.pointer_tokens:
            return places
        distances = torch.tensor([gathered.distances], device=model.device).T
        furthest = min(self.num_frames, model.max_obj_ptrs_in_encoder) - 1
        wide = model.hidden_dim if model.proj_tpos_enc_in_obj_ptrs else model.mem_dim
        times = model.obj_ptr_tpos_proj(get_1d_sine_pe(distances / furthest, dim=wide))
        return torch.cat([places, times.repeat_interleave(model.hidden_dim // model.mem_dim, dim=0)])


def attender(model: Predictor, replayed: bool) -> Attend:
    """What one frame of several objects costs: memory attention, mask decoder and memory encoder, by the number of
    pointer tokens. `replayed`: as a CUDA graph where the memory is full, which is the shape that recurs."""
    full = model.max_obj_ptrs_in_encoder * (model.hidden_dim // model.mem_dim)
    replay = Replayed(functools.partial(_followed, model, full), after=4, keep=3) if replayed else None

    def by_pointers(pointer_tokens: int) -> Callable[..., Any]:
        if replay is not None and pointer_tokens == full:
            return replay
        return functools.partial(_followed, model, pointer_tokens)

    return by_pointers


def _followed(
    model: Predictor, pointer_tokens: int, memory: Tensor, places: Tensor, position: Tensor, *features: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """New memories (HW, n, M), pointers (n, C), logits (n, 1, S/4, S/4) and scores (n, 1) of n objects on a frame.

    `memory` and `places` (L, n, M); `position` (HW, 1, C) of the coarsest features; `features` finest first.
    """
    count, sides = memory.shape[1], [math.isqrt(f.shape[0]) for f in features]
    sizes = [(side, side) for side in sides]
    wide = [f.expand(-1, count, -1) for f in features]
    with sdpa_kernel(KERNELS, set_priority=True):
        fused = model.memory_attention(
            curr=wide[-1:],
            curr_pos=[position.expand(-1, count, -1)],
            memory=memory,
            memory_pos=places,
            num_obj_ptr_tokens=pointer_tokens,
        )
    _, _, _, low, high, pointer, score = model._forward_sam_heads(
        backbone_features=fused.permute(1, 2, 0).reshape(count, model.hidden_dim, *sizes[-1]),
        high_res_features=[f.permute(1, 2, 0).unflatten(2, s) for f, s in zip(wide[:-1], sizes[:-1], strict=True)],
        multimask_output=model._use_multimask(False, None),
    )
    stored, _ = _stored(model, features, sizes, high, score, prompted=False)
    return stored, pointer, low, score


def _stored(
    model: Predictor, features: Sequence[Tensor], sizes: Sequence[tuple[int, int]], high: Tensor, score: Tensor,
    prompted: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What is remembered of n masks (n, 1, S, S): tokens (HW, n, M), and their positions (n, M, H, W)."""
    encoded, positions = model._encode_new_memory(
        current_vision_feats=[f.expand(-1, high.shape[0], -1) for f in features],
        feat_sizes=sizes,
        pred_masks_high_res=high,
        object_score_logits=score,
        is_mask_from_pts=prompted,
    )
    # as the public predictor stores them
    return encoded.to(torch.bfloat16).flatten(2).permute(2, 0, 1), positions[-1]


def _memories(stored: Tensor, pointer: Tensor, low: Tensor, score: Tensor) -> list[Memory]:
    return [Memory(stored[:, i : i + 1], pointer[i], low[i, 0], score[i, 0]) for i in range(low.shape[0])]


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
