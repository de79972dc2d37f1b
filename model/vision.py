"""The frozen SAM 2 as PAM's eye: for each frame the updated image embedding, two mask tokens, the mask and its scores.

The public `sam2` package stays as it is: what PAM needs is read from its mask decoder while it runs. An image is a
one-frame video, as in the released models. Regions are batched: all prompts of a batch run through the decoder
together, and the image encoder sees each picture once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from schemas.base import Box

_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
_STABILITY_DELTA, _STABILITY_THRESHOLD = 0.05, 0.98
_BOX_CORNERS = (2, 3)
"""SAM 2 reads a box as two points with these labels."""
REACH = 16
"""SAM 2's object pointers look back this many frames; older memories are never read again. It takes the number of a
clip's frames only to shorten that reach; PAM's clips have 16 or more, so a tracker is always told 16."""


@dataclass(frozen=True)
class Prompt:
    """What marks the target on a picture: a box (xyxy), points with labels (1 inside, 0 outside), or a mask.

    Pixels of the picture; `mask` is (H, W) bool. Raises ValueError when none or several are given.
    """

    box: Box | None = None
    points: tuple[tuple[float, float], ...] = ()
    point_labels: tuple[int, ...] = ()
    mask: np.ndarray | None = None

    def __post_init__(self) -> None:
        if (self.box is not None) + bool(self.points) + (self.mask is not None) != 1:
            raise ValueError("give exactly one of box, points and mask")
        if len(self.points) != len(self.point_labels):
            raise ValueError(f"{len(self.points)} points need as many labels, not {len(self.point_labels)}")

    def check(self, size: tuple[int, int]) -> None:
        """Raises ValueError for a prompt that does not lie on a picture of this size (height, width)."""
        height, width = size
        if self.box is not None:
            x0, y0, x1, y1 = self.box
            if not (x0 < x1 and y0 < y1 and x0 < width and y0 < height and x1 > 0 and y1 > 0):
                raise ValueError(f"the box {self.box} (x0, y0, x1, y1) has no area on a picture of {width}x{height}")
        outside = [(x, y) for x, y in self.points if not (0 <= x <= width and 0 <= y <= height)]
        if outside:
            raise ValueError(f"the point {outside[0]} is not on a picture of {width}x{height}")
        if self.mask is not None and self.mask.shape != size:
            raise ValueError(f"the mask is {self.mask.shape[1]}x{self.mask.shape[0]}, the picture {width}x{height}")
        if self.mask is not None and not self.mask.any():
            raise ValueError("the mask is empty: nothing is marked")


@dataclass(frozen=True)
class Taps:
    """Of N prompted frames: embed (N, C, h, w), tokens (N, 2, C), mask_logits (N, 4h, 4w), iou (N,), score (N,).

    `iou` is SAM's own estimate; a positive `score` says that the object is on the frame.
    """

    embed: Tensor
    tokens: Tensor
    mask_logits: Tensor
    iou: Tensor
    score: Tensor

    def __getitem__(self, index: Any) -> Taps:
        return Taps(*(getattr(self, name)[index] for name in self.__dataclass_fields__))

    @staticmethod
    def cat(parts: Sequence[Taps]) -> Taps:
        """The rows of several, one after the other."""
        return Taps(*(torch.cat([getattr(p, name) for p in parts]) for name in Taps.__dataclass_fields__))


@dataclass(frozen=True)
class Features:
    """SAM 2's pyramid of n pictures, finest level first: maps (n, C_l, H_l, W_l) and their positions."""

    maps: list[Tensor]
    positions: list[Tensor]

    def take(self, index: Tensor) -> Features:
        """The pyramids of these pictures, once for each mention."""
        return Features([m[index] for m in self.maps], [p[index] for p in self.positions])


class _DecoderTap:
    """Reads SAM's mask decoder while it runs; a context manager that leaves no trace."""

    def __init__(self, decoder: nn.Module) -> None:
        self.decoder: Any = decoder
        self.source: Tensor | None = None
        self.output: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    def __enter__(self) -> _DecoderTap:
        inner = self.decoder.predict_masks

        def predict(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            self.output = inner(*args, **kwargs)
            return self.output

        self._hook = self.decoder.transformer.register_forward_hook(self._keep)
        self.decoder.predict_masks = predict
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()
        del self.decoder.predict_masks

    def _keep(self, _module: nn.Module, _inputs: Any, output: tuple[Tensor, Tensor]) -> None:
        self.source = output[1]

    def taps(self, mask_logits: Tensor, score: Tensor, grid: tuple[int, int]) -> Taps:
        """What the last decoder call showed; the mask is the caller's, since a mask prompt is its own answer."""
        if self.source is None or self.output is None:
            raise RuntimeError("SAM's mask decoder has not run under this tap")
        masks, ious, tokens, _ = self.output
        embed = self.source.transpose(1, 2).unflatten(2, grid)
        best = _best_token(masks, ious)
        rows = torch.arange(len(tokens), device=tokens.device)
        pair = torch.stack([tokens[rows, best], tokens[:, 0]], dim=1)
        return Taps(embed, pair, mask_logits, ious[:, 0].float(), score)


def _best_token(masks: Tensor, ious: Tensor) -> Tensor:
    """Token 0 where its mask is stable, else the one of 1..3 with the highest predicted IoU: (B, 4, ..) -> (B,)."""
    single = masks[:, 0].flatten(1)
    inner = (single > _STABILITY_DELTA).sum(1).float()
    outer = (single > -_STABILITY_DELTA).sum(1).float()
    stable = torch.where(outer > 0, inner / outer, torch.ones_like(inner)) >= _STABILITY_THRESHOLD
    return torch.where(stable, torch.zeros_like(outer, dtype=torch.long), ious[:, 1:].argmax(1) + 1)


def squares(frames: Iterable[np.ndarray], side: int) -> np.ndarray:
    """RGB uint8 (H, W, 3) pictures of any size -> (n, side, side, 3), squashed, not padded."""
    return np.stack([np.asarray(Image.fromarray(frame).resize((side, side))) for frame in frames])


class FrozenSam(nn.Module):
    """A SAM 2 (`sam2.modeling.sam2_base.SAM2Base`) without gradients, set as PAM sets it: one mask a prompt.

    `half_encoder` keeps the image encoder's weights in bfloat16: half the memory; the decoder stays in float32.
    """

    sam: Any

    def __init__(self, sam: Any, half_encoder: bool = False) -> None:
        super().__init__()
        sam.eval().requires_grad_(False)
        sam.multimask_output_in_sam = False
        sam.binarize_mask_from_pts_for_mem_enc = True
        sam.sam_mask_decoder.dynamic_multimask_via_stability = False
        if half_encoder:
            sam.image_encoder.to(torch.bfloat16)
        self.sam = sam

    @property
    def image_size(self) -> int:
        """Side of the square that SAM 2 looks at."""
        return int(self.sam.image_size)

    @property
    def dim(self) -> int:
        """Width of the embedding and the tokens."""
        return int(self.sam.hidden_dim)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the embedding."""
        side = self.image_size // int(self.sam.backbone_stride)
        return side, side

    @property
    def device(self) -> torch.device:
        return next(self.sam.parameters()).device

    def preprocess(self, frames: Iterable[np.ndarray]) -> Tensor:
        """RGB uint8 (H, W, 3) pictures of any size -> (n, 3, S, S) float32; PIL resizes, as in the released model."""
        return self.normalise(squares(frames, self.image_size))

    def normalise(self, frames: np.ndarray) -> Tensor:
        """Squares (n, S, S, 3) uint8 -> (n, 3, S, S) float32 with ImageNet's mean and deviation taken out."""
        pixels = torch.from_numpy(frames).to(self.device).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(v, device=self.device).view(1, 3, 1, 1) for v in (_MEAN, _STD))
        return (pixels - mean) / std

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Features:
        """(n, 3, S, S) -> the pyramids of n pictures, in float32 whatever the encoder's own precision."""
        weights = next(self.sam.image_encoder.parameters())
        out = self.sam.image_encoder(pixels.to(weights.dtype))
        maps = [m.float() for m in out["backbone_fpn"]]
        if self.sam.use_high_res_features_in_sam:
            maps[0], maps[1] = self.sam.sam_mask_decoder.conv_s0(maps[0]), self.sam.sam_mask_decoder.conv_s1(maps[1])
        levels = self.sam.num_feature_levels
        return Features(maps[-levels:], [p.float() for p in out["vision_pos_enc"][-levels:]])

    def prompt(
        self, features: Features, pictures: Sequence[int], prompts: Sequence[Prompt], sizes: Sequence[Any]
    ) -> Taps:
        """The taps of N prompts on pictures `pictures[i]` of original size `sizes[i]` = (height, width)."""
        order, parts = [], []
        for group in _alike(prompts):
            step = features.take(torch.tensor([pictures[i] for i in group], device=self.device))
            taps, _ = self._step(step, 0, self._inputs([prompts[i] for i in group], [sizes[i] for i in group]), {}, 1)
            order += group
            parts.append(taps)
        return Taps.cat(parts)[torch.tensor(np.argsort(order), device=self.device)]

    def track(
        self, frames: Iterable[Features], count: int, prompts: Sequence[Prompt], sizes: Sequence[Any]
    ) -> Iterator[Taps]:
        """Follows B targets, alike in the kind of their prompt, through `count` frames; yields each frame's taps.

        `frames` yields the features of one frame of each of the B clips (or of one clip shown B times); prompts are on
        the first. Memory does not grow with `count`: frames that SAM 2 can no longer reach are dropped.
        """
        tracker = self.tracker(prompts, sizes, count)
        for features in frames:
            yield tracker.step(features)

    def tracker(self, prompts: Sequence[Prompt], sizes: Sequence[Any], count: int = REACH) -> Tracker:
        """The same frame by frame, for callers that hold the frames."""
        return Tracker(self, prompts, sizes, count)

    @torch.no_grad()
    def _step(
        self,
        features: Features,
        at: int,
        inputs: dict[str, Any] | None,
        memory: dict[str, Any],
        count: int,
        remember: bool = False,
    ) -> tuple[Taps, dict[str, Any]]:
        """One frame of B targets through memory attention, decoder and, on request, the memory encoder."""
        maps = [m.flatten(2).permute(2, 0, 1) for m in features.maps]
        positions = [p.flatten(2).permute(2, 0, 1) for p in features.positions]
        sizes = [(m.shape[-2], m.shape[-1]) for m in features.maps]
        given = inputs or {"point_inputs": None, "mask_inputs": None}
        with _DecoderTap(self.sam.sam_mask_decoder) as tap:
            out = self.sam.track_step(
                frame_idx=at,
                is_init_cond_frame=inputs is not None,
                current_vision_feats=maps,
                current_vision_pos_embeds=positions,
                feat_sizes=sizes,
                output_dict=memory,
                num_frames=count,
                run_mem_encoder=remember,
                **given,
            )
        taps = tap.taps(out["pred_masks"][:, 0].float(), out["object_score_logits"][:, 0].float(), sizes[-1])
        kept = {key: out[key] for key in ("maskmem_features", "maskmem_pos_enc", "obj_ptr")}
        if kept["maskmem_features"] is not None:
            # the public predictor keeps its memories in bfloat16
            kept["maskmem_features"] = kept["maskmem_features"].to(torch.bfloat16)
        return taps, kept

    def _inputs(self, prompts: Sequence[Prompt], sizes: Sequence[Any]) -> dict[str, Any]:
        """Prompts alike in kind and number of points -> SAM's inputs, scaled to its square."""
        side = self.image_size
        if prompts[0].mask is not None:
            masks = torch.stack([torch.from_numpy(np.ascontiguousarray(p.mask)).float() for p in prompts])
            square = F.interpolate(masks[:, None].to(self.device), (side, side), mode="bilinear", antialias=True)
            return {"point_inputs": None, "mask_inputs": (square >= 0.5).float()}
        coords, labels = [], []
        for prompt, (height, width) in zip(prompts, sizes, strict=True):
            xy = np.asarray(prompt.box if prompt.box is not None else prompt.points, np.float32).reshape(-1, 2)
            coords.append(xy / np.array([width, height], np.float32) * side)
            labels.append(_BOX_CORNERS if prompt.box is not None else prompt.point_labels)
        points = {
            "point_coords": torch.from_numpy(np.stack(coords)).to(self.device),
            "point_labels": torch.tensor(labels, dtype=torch.int32, device=self.device),
        }
        return {"point_inputs": points, "mask_inputs": None}

    def full_masks(self, taps: Taps, sizes: Sequence[Any]) -> list[np.ndarray]:
        """The masks (H, W) bool at the pictures' own sizes; all false where SAM says that the object is not there."""
        masks = []
        for logits, score, (height, width) in zip(taps.mask_logits, taps.score, sizes, strict=True):
            full = F.interpolate(logits[None, None], (height, width), mode="bilinear", align_corners=False)[0, 0]
            masks.append(((full > 0) & (score > 0)).cpu().numpy())
        return masks


class Tracker:
    """Follows B targets through a clip of about `count` frames, one `step` a frame; the prompts are on the first.

    Frames that SAM 2 can no longer reach are forgotten, so that a clip may be of any length.
    """

    def __init__(self, sam: FrozenSam, prompts: Sequence[Prompt], sizes: Sequence[Any], count: int) -> None:
        self._sam, self._count, self._at = sam, count, 0
        self._inputs: dict[str, Any] | None = sam._inputs(prompts, sizes)
        self._memory: dict[str, dict[int, Any]] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}

    def step(self, features: Features) -> Taps:
        """The taps of the next frame; `features` has one picture a target."""
        taps, out = self._sam._step(features, self._at, self._inputs, self._memory, self._count, remember=True)
        self._memory["non_cond_frame_outputs" if self._at else "cond_frame_outputs"][self._at] = out
        self._memory["non_cond_frame_outputs"].pop(self._at - REACH, None)
        self._inputs = None
        self._at += 1
        return taps


def load_sam(name: str, device: torch.device | str = "cpu", half_encoder: bool = False) -> FrozenSam:
    """The SAM 2 that a configuration names: `nano`, a Hugging Face id or a file. Raises its `CheckpointError`."""
    from stages.sam2.load import load_model

    return FrozenSam(load_model(name, torch.device(device)), half_encoder)


def _alike(prompts: Sequence[Prompt]) -> list[list[int]]:
    """Indices grouped by kind, number of points and mask size: SAM 2 attends to padding points, so none are added."""
    kinds: dict[Any, list[int]] = {}
    for at, prompt in enumerate(prompts):
        shape = prompt.mask.shape if prompt.mask is not None else None
        kinds.setdefault((prompt.box is not None, len(prompt.points), shape), []).append(at)
    return list(kinds.values())


def shown_frames(count: int, wanted: int) -> list[int]:
    """Which of a clip's `count` frames the language model sees: the first and `wanted - 1` spread over the others.

    A clip shorter than `wanted` shows frames several times. PAM's rule: `linspace(1, count - 1)` in whole numbers.
    """
    if count <= 1:
        return [0] * wanted
    return [0, *np.linspace(1, count - 1, wanted - 1).astype(int).tolist()]
