"""Refinement through the public image predictor, one image at a time: the reference that the fast path must equal."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sam2.sam2_image_predictor import SAM2ImagePredictor

from stages.refine.config import RefineConfig
from stages.refine.seeds import Candidate, Pixels, Seed
from stages.sam2.device import resolve_device, resolve_dtype
from stages.sam2.encoder import inference
from stages.sam2.load import load_model
from stages.sam2.predictor import Predictor
from stages.sam2.prompts import Prompt, prompt_of
from stages.sam2.trace import STABILITY_OFFSET


class PublicImages:
    """`SAM2ImagePredictor` behind the refiner's interface: `set_image`, then a `predict` a seed."""

    def __init__(self, model: Predictor, dtype: torch.dtype, two_pass: bool = False, multimask: bool = True) -> None:
        self.model = model
        self.dtype = dtype
        self.two_pass = two_pass
        self.multimask = multimask
        self.predictor = image_predictor(model)

    @classmethod
    def load(cls, config: RefineConfig) -> PublicImages:
        """The refiner of a configuration; raises `CheckpointError` where its weights are missing."""
        device = resolve_device(config.device)
        model = load_model(config.checkpoint, device)
        return cls(model, resolve_dtype(config.precision, device), config.two_pass, config.multimask)

    def refine(self, image: Pixels, seeds: list[Seed]) -> list[Candidate]:
        """A candidate for each seed, in order; `image` is RGB uint8 (H, W, 3)."""
        with inference(self.model.device, self.dtype):
            self.predictor.set_image(image)
            return [self._candidate(seed) for seed in seeds]

    def _candidate(self, seed: Seed) -> Candidate:
        prompt = prompt_of(seed, self.model.image_size // 4, self.multimask)
        logits, predicted, low = self._predict(prompt)
        best = int(predicted.argmax()) if prompt.multimask else 0
        if self.two_pass:
            again = Prompt(prompt.points, prompt.labels, low[best], multimask=False)
            logits, predicted, low = self._predict(again)
            best = 0
        mask = logits[best] > 0
        return Candidate(mask, float(predicted[best]), stability(logits[best]))

    def _predict(self, prompt: Prompt) -> tuple[Any, Any, Any]:
        return self.predictor.predict(  # type: ignore[no-any-return]
            point_coords=prompt.points if len(prompt.points) else None,
            point_labels=prompt.labels if len(prompt.points) else None,
            mask_input=prompt.mask[None] if prompt.mask is not None else None,
            multimask_output=prompt.multimask,
            return_logits=True,
        )


def image_predictor(model: Predictor) -> SAM2ImagePredictor:
    """The public image predictor over a model of any image size (the package assumes 1024 pixels)."""
    predictor = SAM2ImagePredictor(model)
    side = model.image_size // 4
    predictor._bb_feat_sizes = [(side, side), (side // 2, side // 2), (side // 4, side // 4)]
    return predictor


def stability(logits: np.ndarray[Any, Any]) -> float:
    """SAM's stability score of one mask's logits (H, W); 1.0 where even the lower threshold finds nothing."""
    union = np.count_nonzero(logits > -STABILITY_OFFSET)
    return float(np.count_nonzero(logits > STABILITY_OFFSET) / union) if union else 1.0
