"""SAM 2 on a GPU: the public predictor's answers in fp32, nearly the same masks in bf16."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stages import masks
from stages.refine.config import RefineConfig
from stages.refine.images import ImageJob
from stages.refine.seeds import Seed
from stages.refine.videos import Start
from stages.sam2.encoder import inference
from stages.sam2.forward import normalise
from stages.sam2.images import FastImages
from stages.sam2.load import load_model
from stages.sam2.predictor import Predictor
from stages.sam2.public import image_predictor
from stages.sam2.trace import Tracer
from stages.sam2.tracker import EncodedFrames, Tracker, attender
from stages.sam2.video import FastVideo
from stages.shapes.clip import draw_clip
from stages.shapes.scene import draw_scene

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device"),
]


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    """fp32 is to mean fp32: cuDNN's convolutions would use TF32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


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


def test_replayed_graphs_give_what_single_launches_give(model: Predictor) -> None:
    plain = FastImages(model, RefineConfig(backend="sam2", precision="fp32", compile="off", image_batch=4))
    quick = FastImages(
        model, RefineConfig(backend="sam2", precision="fp32", compile="on", image_batch=4, region_batch=8)
    )
    for start in range(0, 24, 4):  # compiled, captured, then replayed with other images
        scenes = [draw_scene(np.random.default_rng(start + index), (256, 256)) for index in range(4)]
        jobs = [ImageJob(s.image, (), tuple(Seed(shape.box, (), None) for shape in s.instances)) for s in scenes]
        pixels = [torch.from_numpy(scene.image.copy()) for scene in scenes]
        with inference(model.device, torch.float32):
            expected, found = (path.logits(jobs, pixels) for path in (plain, quick))
        torch.testing.assert_close(found[0], expected[0], atol=2e-2, rtol=1e-3)
        torch.testing.assert_close(found[1], expected[1], atol=1e-3, rtol=1e-3)


def test_tracks_replayed_as_graphs_are_those_of_single_launches(model: Predictor) -> None:
    clip = draw_clip(3, frames=48, size=(256, 256), fps=12.0, objects=(3, 3), camera=0.0, leave=0.0)
    frames = normalise(torch.from_numpy(clip.frames).cuda().permute(0, 3, 1, 2), model.image_size)

    def follow(replayed: bool) -> torch.Tensor:
        with inference(model.device, torch.float32):
            attend = attender(model, replayed=replayed)
            tracker = Tracker(model, len(frames), EncodedFrames(model, lambda index: frames[index]), attend)
            for number in range(clip.masks.shape[1]):
                tracker.prompt_mask(number, 0, torch.from_numpy(clip.masks[0, number]).cuda())
            steps = [tracker.step(frame) for frame in range(len(frames))]
            return torch.stack([torch.stack([step[number].logits for number in sorted(step)]) for step in steps])

    exact, replayed = follow(False), follow(True)
    agreeing = ((exact > 0) == (replayed > 0)).float().mean()
    assert agreeing > 0.999


def test_masks_traced_on_the_device_are_those_traced_on_the_cpu() -> None:
    logits = F.interpolate(torch.randn(9, 1, 12, 12, generator=torch.Generator().manual_seed(0)), (64, 64))[:, 0]
    sizes = [(48, 64), (111, 90), (48, 64)] * 3
    given = torch.arange(9.0)
    on_cpu = Tracer(torch.device("cpu")).trace(logits, given, sizes, fill=0.1)
    tracer = Tracer(torch.device("cuda"))
    on_gpu = tracer.trace(logits.cuda(), given.cuda(), sizes, fill=0.1, ready=tracer.ready())
    for ours, theirs in zip(on_gpu, on_cpu, strict=True):
        assert masks.iou(ours.outline.rle, theirs.outline.rle) > 0.999
        assert ours.given == theirs.given


def test_a_device_that_runs_full_halves_the_batch_and_loses_no_region(model: Predictor) -> None:
    scenes = [draw_scene(np.random.default_rng(index), (256, 256)) for index in range(64)]
    jobs = [ImageJob(s.image, (), tuple(Seed(shape.box, (), None) for shape in s.instances)) for s in scenes]
    pixels = [torch.from_numpy(scene.image.copy()) for scene in scenes]
    fast = FastImages(model, RefineConfig(backend="sam2", precision="fp32", compile="off", image_batch=64))
    with inference(model.device, torch.float32):
        whole, _ = fast.logits(jobs, pixels)
        total = torch.cuda.mem_get_info()[1]
        for room in (1.0, 0.7, 0.5, 0.4, 0.3, 0.2):  # GiB: less and less, until the batch does not fit
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + room * 2**30) / total)
            try:
                parts, _ = fast.logits(jobs, pixels)
            finally:
                torch.cuda.set_per_process_memory_fraction(1.0)
            if fast.encoder.batch < 64:
                break
    assert fast.encoder.batch < 64
    torch.testing.assert_close(parts, whole, atol=2e-2, rtol=1e-3)


def test_a_long_video_takes_no_more_device_memory_than_a_short_one(model: Predictor, held_video: Any) -> None:
    clip = draw_clip(4, frames=192, size=(256, 256), fps=12.0, objects=(2, 2), camera=0.0, leave=0.0)
    config = RefineConfig(backend="sam2", checkpoint="nano", compile="off")
    follow = FastVideo(model, FastImages(model, config).encoder, config)
    peaks = []
    for frames in (64, 64, 192):
        video = held_video(clip.frames[:frames])
        torch.cuda.reset_peak_memory_stats()
        starts = [Start(0, clip.masks[0, number], {}) for number in range(2)]
        found = [one for some in follow.follow(video, starts) for one in some]
        assert len(found) == 2 * frames
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[2] < 1.02 * peaks[1]
