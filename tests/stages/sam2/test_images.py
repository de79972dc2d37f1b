"""The fast image path against the public image predictor, and what it does with damaged inputs."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from schemas.geometry import Point
from schemas.keys import digest_value
from stages import masks
from stages.media.images import load_image
from stages.refine.config import RefineConfig
from stages.refine.images import ImageJob
from stages.refine.seeds import RefineUnit, Seed
from stages.sam2.encoder import Encoder, inference
from stages.sam2.images import FastImages
from stages.sam2.nano import NanoConfig, build_nano
from stages.sam2.predictor import Predictor
from stages.sam2.prompts import prompt_of
from stages.sam2.public import PublicImages, image_predictor


@pytest.fixture(scope="module")
def model() -> Predictor:
    torch.manual_seed(0)
    return build_nano(NanoConfig(image_size=128, embed_dim=16, stages=(1, 1, 2, 1), global_blocks=(3,)))


@pytest.fixture(scope="module")
def photos(shared_data: Path) -> list[np.ndarray]:
    files = [*sorted((shared_data / "coco_tiny/images/train2017").glob("*.jpg"))[:3], shared_data / "images/truck.jpg"]
    images = [load_image(str(file)) for file in files]
    assert len({image.shape for image in images}) > 1
    return images


def seeds_for(image: np.ndarray) -> list[Seed]:
    height, width = image.shape[:2]
    box = (0.2 * width, 0.1 * height, 0.7 * width, 0.8 * height)
    rough = masks.from_box((0.3 * width, 0.3 * height, 0.6 * width, 0.9 * height), height, width)
    inside, outside = Point(x=0.5 * width, y=0.5 * height), Point(x=3.0, y=4.0, label=0)
    return [
        Seed(box, (), None),
        Seed((0.0, 0.0, 0.4 * width, 0.3 * height), (), None),
        Seed(None, (inside,), None),
        Seed(None, (inside, outside), None),
        Seed(None, (), rough),
        Seed(box, (), rough),
        Seed(box, (outside,), rough),
    ]


@pytest.mark.parametrize("two_pass", [False, True])
@pytest.mark.parametrize("dynamic", [False, True])
def test_logits_equal_the_public_predictor_on_real_photos(
    model: Predictor, photos: list[np.ndarray], two_pass: bool, dynamic: bool
) -> None:
    model.sam_mask_decoder.dynamic_multimask_via_stability = dynamic
    fast = FastImages(model, RefineConfig(backend="sam2", two_pass=two_pass, image_batch=3, region_batch=5))
    jobs = [ImageJob(image, (), tuple(seeds_for(image))) for image in photos]
    with inference(model.device, torch.float32):
        low, predicted = fast.logits(jobs, [torch.from_numpy(image.copy()) for image in photos])
    reference = image_predictor(model)
    row = 0
    for image in photos:
        reference.set_image(image)
        for seed in seeds_for(image):
            logits, iou = _public(reference, prompt_of(seed, model.image_size // 4, True), two_pass)
            ours = F.interpolate(low[row][None, None], size=image.shape[:2], mode="bilinear", align_corners=False)
            np.testing.assert_allclose(ours[0, 0].numpy(), logits, atol=1e-4, rtol=1e-4)
            assert float(predicted[row]) == pytest.approx(float(iou), abs=1e-4)
            row += 1
    model.sam_mask_decoder.dynamic_multimask_via_stability = False


def _public(reference, prompt, two_pass):  # type: ignore[no-untyped-def]
    arguments = {
        "point_coords": prompt.points if len(prompt.points) else None,
        "point_labels": prompt.labels if len(prompt.points) else None,
        "return_logits": True,
    }
    first = None if prompt.mask is None else prompt.mask[None]
    logits, iou, low = reference.predict(mask_input=first, multimask_output=prompt.multimask, **arguments)
    best = int(iou.argmax())
    if two_pass:
        logits, iou, low = reference.predict(mask_input=low[best][None], multimask_output=False, **arguments)
        best = 0
    return logits[best], iou[best]


def test_candidates_equal_those_of_the_one_by_one_path(model: Predictor, photos: list[np.ndarray]) -> None:
    fast, slow = FastImages(model, RefineConfig(backend="sam2")), PublicImages(model, torch.float32)
    for ours, theirs in zip(
        fast.refine(photos[0], seeds_for(photos[0])), slow.refine(photos[0], seeds_for(photos[0])), strict=True
    ):
        assert masks.jaccard(ours.mask, theirs.mask) > 0.999
        assert ours.predicted_iou == pytest.approx(theirs.predicted_iou, abs=1e-4)
        assert ours.stability == pytest.approx(theirs.stability, abs=1e-3)


def test_every_region_of_every_image_comes_back_in_small_and_large_batches(model: Predictor, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    groups = []
    for number in range(7):
        image = rng.integers(0, 255, (60 + number, 80, 3), dtype=np.uint8)
        uri = str(tmp_path / f"{number}.png")
        cv2.imwrite(uri, image)
        if number == 3:
            Path(uri).write_bytes(b"no image")
        groups.append(
            [
                RefineUnit(
                    input_digest=digest_value(index), region_key=digest_value([number, index]),
                    media_key=digest_value(number), uri=uri, kind="image", height=60 + number, width=80,
                    mask=masks.encode(masks.from_box((5, 5, 30, 40), 60 + number, 80)),
                )
                for index in range(number + 1)
            ]
        )  # fmt: skip
    wanted = {unit.region_key for group in groups for unit in group}
    results = []
    for batch in (1, 3, 64):
        fast = FastImages(model, RefineConfig(backend="sam2", image_batch=batch, region_batch=2 * batch, workers=2))
        rows = {row.region_key: row for rows in fast.refine_images(groups) for row in rows}
        assert set(rows) == wanted
        assert {row.reason for row in rows.values() if row.status == "failed"} == {"unreadable_media"}
        assert sum(row.status == "failed" for row in rows.values()) == 4
        results.append({key: row.mask for key, row in rows.items()})
    assert results[0] == results[1] == results[2]


def test_a_batch_that_does_not_fit_is_halved(model: Predictor) -> None:
    images = torch.randn(7, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    encoder = Encoder(model, torch.float32, batch=8)
    with torch.inference_mode():
        whole = encoder.features(images)
        room, inner = 2, encoder._run

        def tight(batch: torch.Tensor) -> object:
            if len(batch) > room:
                raise torch.cuda.OutOfMemoryError("out of memory")
            return inner(batch)

        encoder._run = tight  # the device itself cannot be filled in a test
        parts = encoder.features(images)
    assert encoder.batch == room
    torch.testing.assert_close(parts.embed, whole.embed, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(parts.fine[0], whole.fine[0], atol=1e-5, rtol=1e-5)
