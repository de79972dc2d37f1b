"""The image encoder at a fixed batch: mixed precision, compiled where asked, halved when memory runs out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from stages.sam2.forward import Features
from stages.sam2.graphs import Replayed
from stages.sam2.predictor import Predictor


@contextmanager
def inference(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Inference mode, under autocast where `dtype` is not fp32 (the package needs fp32 weights).

    Weights that autocast has cast are not kept, since a captured graph would find them gone.
    """
    mixed = torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32, cache_enabled=False)
    with torch.inference_mode(), mixed:
        yield


class Encoder:
    """Normalised images (n, 3, S, S) to the model's feature pyramid, `batch` at a time.

    In bf16 the whole encoder is cast, the residual stream too, which autocast would keep in fp32. Compiled for one
    shape and replayed as a CUDA graph: smaller batches are padded, those under half a batch run as they are. When the
    device runs out of memory the batch is halved, for good, and the work goes on.
    """

    def __init__(self, model: Predictor, dtype: torch.dtype, batch: int, compiled: bool = False) -> None:
        self.model = model
        self.dtype = dtype
        self.batch = batch
        self._compiled = compiled
        self._positions: list[Tensor] = []
        with torch.inference_mode(False):
            inner: Any = model.image_encoder
            self._module: Any = inner if dtype == torch.float32 else copy.deepcopy(inner).to(dtype)
        self._eager: Callable[[Tensor], tuple[Tensor, ...]] = self._levels
        self._run = Replayed(torch.compile(self._levels, dynamic=False)) if compiled else self._eager

    def pyramid(self, images: Tensor) -> dict[str, list[Tensor]]:
        """`backbone_fpn` and `vision_pos_enc` of the images, as the model's `forward_image` gives them."""
        levels = self._all(images)[:-1]
        if not self._positions:
            place: Any = self.model.image_encoder.neck.position_encoding  # type: ignore[union-attr]
            self._positions = [place(level[:1].float()) for level in levels]
        positions = [p.expand(len(images), -1, -1, -1) for p in self._positions]
        return {"backbone_fpn": [level.clone() for level in levels], "vision_pos_enc": positions}

    def features(self, images: Tensor) -> Features:
        """What the mask decoder needs of the images, without memory; valid until the next call."""
        fine, middle, _, embed = self._all(images)
        return Features(embed, (fine, middle))

    def _all(self, images: Tensor) -> tuple[Tensor, ...]:
        parts: list[tuple[Tensor, ...]] = []
        start = 0
        while start < len(images):
            part = self._fitting(images[start : start + self.batch])
            if part is not None:
                start += len(part[0])
                last = start >= len(images)
                parts.append(part if last else tuple(level.clone() for level in part))
        return parts[0] if len(parts) == 1 else tuple(torch.cat(levels) for levels in zip(*parts, strict=True))

    def _fitting(self, images: Tensor) -> tuple[Tensor, ...] | None:
        """The levels of one batch; None after the batch was halved because it did not fit."""
        try:
            return self._forward(images)
        except torch.cuda.OutOfMemoryError:
            if self.batch == 1:
                raise
            self.batch = (min(self.batch, len(images)) + 1) // 2
        torch.cuda.empty_cache()
        return None

    def _forward(self, images: Tensor) -> tuple[Tensor, ...]:
        count = len(images)
        if not self._compiled or count == self.batch:
            return self._run(images)
        if 2 * count <= self.batch:
            return self._eager(images)
        padded = torch.cat([images, images[:1].expand(self.batch - count, -1, -1, -1)])
        return tuple(level[:count] for level in self._run(padded))

    def _levels(self, images: Tensor) -> tuple[Tensor, ...]:
        """Three levels, finest first, and the coarsest as it is without memory."""
        if self.dtype != torch.float32:
            with torch.autocast(images.device.type, enabled=False):
                fine, middle, coarse = self._module(images.to(self.dtype))["backbone_fpn"]
        else:
            fine, middle, coarse = self._module(images)["backbone_fpn"]
        decoder: Any = self.model.sam_mask_decoder
        if self.model.use_high_res_features_in_sam:
            fine, middle = decoder.conv_s0(fine), decoder.conv_s1(middle)
        embed = coarse
        if self.model.directly_add_no_mem_embed:
            embed = coarse + self.model.no_mem_embed.reshape(1, -1, 1, 1)
        return fine, middle, coarse, embed
