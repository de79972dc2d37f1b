"""SAM 2 on a GPU: the public predictor's answers in fp32, nearly the same masks in bf16."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stages import masks
from stages.refine.config import RefineConfig
from stages.refine.images import ImageJob
from stages.refine.seeds import Seed
from stages.sam2.encoder import inference
from stages.sam2.images import FastImages
from stages.sam2.load import load_model
from stages.sam2.predictor import Predictor
from stages.sam2.public import image_predictor
from stages.shapes.scene import draw_scene

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device"),
]


@pytest.fixture(scope="module")
def model() -> Predictor:
    return load_model("nano", torch.device("cuda"))


def test_fp32_logits_equal_the_public_predictor(model: Predictor) -> None:
    scene = draw_scene(np.random.default_rng(0), (320, 240))
    seeds = tuple(Seed(shape.box, (), None) for shape in scene.instances)
    fast = FastImages(model, RefineConfig(backend="sam2", precision="fp32", compile="off"))
    with inference(model.device, torch.float32):
        low, _ = fast.logits([ImageJob(scene.image, (), seeds)], [torch.from_numpy(scene.image.copy())])
    public = image_predictor(model)
    public.set_image(scene.image)
    for row, seed in enumerate(seeds):
        logits, _, _ = public.predict(box=np.array(seed.box), multimask_output=False, return_logits=True)
        ours = F.interpolate(low[row][None, None], size=scene.image.shape[:2], mode="bilinear")[0, 0].cpu().numpy()
        np.testing.assert_allclose(ours, logits[0], atol=1e-3, rtol=1e-4)


def test_bf16_masks_are_those_of_fp32(model: Predictor) -> None:
    exact = FastImages(model, RefineConfig(backend="sam2", precision="fp32", compile="off"))
    quick = FastImages(model, RefineConfig(backend="sam2", precision="bf16", compile="off"))
    ious = []
    for seed in range(24):
        scene = draw_scene(np.random.default_rng(seed), (256, 256))
        seeds = [Seed(shape.box, (), None) for shape in scene.instances]
        pairs = zip(exact.refine(scene.image, seeds), quick.refine(scene.image, seeds), strict=True)
        ious += [masks.jaccard(a.mask, b.mask) for a, b in pairs]
    assert np.mean(ious) > 0.99
