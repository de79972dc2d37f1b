"""The image encoder at a fixed batch: mixed precision, compiled where asked, halved when memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from stages.sam2.forward import Features
from stages.sam2.predictor import Predictor


@contextmanager
def inference(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Inference mode, under autocast where `dtype` is not fp32 (the package needs fp32 weights)."""
    with torch.inference_mode(), torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        yield


class Encoder:
    """Normalised images (n, 3, S, S) to the model's feature pyramid, `batch` at a time.

    Compiled for one shape: smaller batches are padded. When the device runs out of memory the batch is halved, for
    good, and the work goes on.
    """

    def __init__(self, model: Predictor, dtype: torch.dtype, batch: int, compiled: bool = False) -> None:
        self.model = model
        self.dtype = dtype
        self.batch = batch
        self._compiled = compiled
        self._run: Callable[[Tensor], Any] = model.image_encoder
        if compiled:
            self._run = torch.compile(model.image_encoder, dynamic=False)

    def pyramid(self, images: Tensor) -> dict[str, list[Tensor]]:
        """`backbone_fpn` and `vision_pos_enc` of the images, as the model's `forward_image` gives them."""
        parts: list[dict[str, list[Tensor]]] = []
        start = 0
        while start < len(images):
            part = self._fitting(images[start : start + self.batch])
            if part is not None:
                parts.append(part)
                start += len(part["backbone_fpn"][-1])
        names = ("backbone_fpn", "vision_pos_enc")
        if len(parts) == 1:
            return parts[0]
        return {name: [torch.cat(levels) for levels in zip(*(p[name] for p in parts), strict=True)] for name in names}

    def features(self, images: Tensor) -> Features:
        """What the mask decoder needs of the images, without memory."""
        fpn = self.pyramid(images)["backbone_fpn"]
        coarse = fpn[-1]
        if self.model.directly_add_no_mem_embed:
            coarse = coarse + self.model.no_mem_embed.reshape(1, -1, 1, 1)
        return Features(coarse, (fpn[0], fpn[1]))

    def _fitting(self, images: Tensor) -> dict[str, list[Tensor]] | None:
        """The pyramid of one batch; None after the batch was halved because it did not fit."""
        try:
            return self._forward(images)
        except torch.cuda.OutOfMemoryError:
            if self.batch == 1:
                raise
            self.batch = (min(self.batch, len(images)) + 1) // 2
        torch.cuda.empty_cache()
        return None

    def _forward(self, images: Tensor) -> dict[str, list[Tensor]]:
        count = len(images)
        if self._compiled and count < self.batch:
            images = torch.cat([images, images[:1].expand(self.batch - count, -1, -1, -1)])
        out = self._run(images)
        fpn, positions = list(out["backbone_fpn"]), list(out["vision_pos_enc"])
        decoder: Any = self.model.sam_mask_decoder
        if self.model.use_high_res_features_in_sam:
            fpn[0], fpn[1] = decoder.conv_s0(fpn[0]), decoder.conv_s1(fpn[1])
        return {"backbone_fpn": [f[:count] for f in fpn], "vision_pos_enc": [p[:count] for p in positions]}
