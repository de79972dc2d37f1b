"""The two halves of SAM 2 on tensors: images to features, features and prompts to mask logits, whole batches at a time.

What `SAM2ImagePredictor` does image by image and prompt by prompt, without its copies to and from the CPU. Used by
the fast image path and by the training of the small SAM 2.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.sam2.predictor import MEAN, STD, Predictor


@dataclass(frozen=True)
class Features:
    """Of n images: `embed` (n, C, S/16, S/16) and the two finer maps (n, C/8, S/4, S/4) and (n, C/4, S/8, S/8)."""

    embed: Tensor
    fine: tuple[Tensor, Tensor]

    def take(self, index: Tensor) -> Features:
        """The features of these images, once for each mention."""
        return Features(self.embed[index], (self.fine[0][index], self.fine[1][index]))


@dataclass(frozen=True)
class Decoded:
    """Of r prompts: `masks` logits (r, 4, S/4, S/4) of the single mask and the three alternatives, their predicted
    `ious` (r, 4), and `score` (r, 1), positive where the object is there."""

    masks: Tensor
    ious: Tensor
    score: Tensor


def normalise(pixels: Tensor, size: int) -> Tensor:
    """uint8 (3, H, W) or (n, 3, H, W) to the model's float input (n, 3, size, size), as the public predictor does."""
    return standardised(resized(pixels, size))


def resized(pixels: Tensor, size: int) -> Tensor:
    """uint8 (3, H, W) or (n, 3, H, W) to float (n, 3, size, size) between 0 and 1."""
    batch = pixels if pixels.dim() == 4 else pixels[None]
    batch = batch.float().div_(255)
    if batch.shape[-2:] != (size, size):
        batch = F.interpolate(batch, size=(size, size), mode="bilinear", align_corners=False, antialias=True)
    return batch


def standardised(batch: Tensor) -> Tensor:
    """Pictures between 0 and 1 (n, 3, S, S) less the mean, by the deviation."""
    mean, std = _statistics(batch.device)
    return (batch - mean) / std


@functools.lru_cache(maxsize=16)
def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """Kept on the device: to send them there would wait for all that it is doing."""
    with torch.inference_mode(False):
        mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (MEAN, STD))
    return mean, std


def encode(model: Predictor, batch: Tensor) -> Features:
    """Features of normalised images (n, 3, S, S), without memory."""
    out = model.forward_image(batch)
    coarse = out["backbone_fpn"][-1]
    if model.directly_add_no_mem_embed:
        coarse = coarse + model.no_mem_embed.reshape(1, -1, 1, 1)
    return Features(coarse, (out["backbone_fpn"][0], out["backbone_fpn"][1]))


def decode(
    model: Predictor, features: Features, coords: Tensor, labels: Tensor, masks: Tensor | None,
    predict: Callable[..., Any] | None = None,
) -> Decoded:  # fmt: skip
    """Mask logits of one prompt for each row of `features`.

    `coords` float (r, n, 2) in pixels of the model's S x S input, `labels` int (r, n) (1 inside, 0 outside, 2 and 3 the
    corners of a box); n may be 0. `masks` are prompt logits (r, 1, S/4, S/4); None, or NaN in a row, for no mask.
    `predict` stands in for the decoder's `predict_masks` (a compiled one).
    """
    sparse, dense = _embed(model, coords, labels, masks)
    decoder: Any = model.sam_mask_decoder
    logits, ious, _, score = (predict or decoder.predict_masks)(
        image_embeddings=features.embed,
        image_pe=model.sam_prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        repeat_image=False,
        high_res_features=list(features.fine),
    )
    return Decoded(logits, ious, score)


def _embed(model: Predictor, coords: Tensor, labels: Tensor, masks: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sparse and dense prompt embeddings; a row without a mask gets the learned `no mask`."""
    encoder: Any = model.sam_prompt_encoder
    rows = coords.shape[0]
    points = (coords, labels) if coords.shape[1] else None
    sparse, dense = encoder(points=points, boxes=None, masks=None)
    if points is None:
        sparse, dense = sparse.expand(rows, -1, -1), dense.expand(rows, -1, -1, -1)
    if masks is None:
        return sparse, dense
    given = ~torch.isnan(masks[:, 0, 0, 0])
    embedded = encoder.mask_downscaling(torch.nan_to_num(masks))
    return sparse, torch.where(given[:, None, None, None], embedded, dense.to(embedded.dtype))


def single_mask(model: Predictor, decoded: Decoded) -> tuple[Tensor, Tensor]:
    """The one mask of each prompt and its predicted IoU: (r, S/4, S/4), (r,), by the model's own stability rule."""
    decoder: Any = model.sam_mask_decoder
    if decoder.dynamic_multimask_via_stability:
        masks, ious = decoder._dynamic_multimask_via_stability(decoded.masks, decoded.ious)
        return masks[:, 0], ious[:, 0]
    return decoded.masks[:, 0], decoded.ious[:, 0]
