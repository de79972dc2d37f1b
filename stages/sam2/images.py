"""The fast image path: many images at a time, all their regions together, every part of the machine busy.

Threads read and decode files into pinned memory; the device resizes, encodes a fixed batch of images, decodes all
their regions in large batches, and enlarges the masks; threads judge and pack what comes back while the next batch
runs. The masks are those of the public predictor (tests/stages/sam2/test_images.py).
"""

from __future__ import annotations

import os
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from schemas.mask import Mask
from stages.refine.config import RefineConfig
from stages.refine.images import ImageJob, conclude, prepare
from stages.refine.seeds import Candidate, Pixels, RefineUnit, Seed
from stages.sam2.device import resolve_device, resolve_dtype
from stages.sam2.encoder import Encoder, inference
from stages.sam2.enlarge import Sent, send_enlarged
from stages.sam2.forward import Features, decode, normalise, single_mask
from stages.sam2.load import load_model
from stages.sam2.predictor import Predictor
from stages.sam2.prompts import Prompt, prompt_of

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Loaded:
    """An image's job, its pixels as a tensor ready to be copied to the device, and rows that failed before."""

    job: ImageJob | None
    pixels: Tensor | None
    failed: list[Mask]


@dataclass(frozen=True)
class Proposed:
    """One image's masks on their way to the CPU."""

    job: ImageJob
    sent: Sent

    def candidates(self) -> list[Candidate]:
        """Waits for the copy and hands the masks over."""
        return [Candidate(mask, iou, stable, box) for mask, box, stable, iou in self.sent.received()]


class FastImages:
    """Refines the regions of many images with a SAM 2 model."""

    def __init__(self, model: Predictor, config: RefineConfig) -> None:
        device = model.device
        self.model = model
        self.config = config
        self.dtype = resolve_dtype(config.precision, device)
        compiled = config.compile == "on" or (config.compile == "auto" and device.type == "cuda")
        self.encoder = Encoder(model, self.dtype, config.image_batch, compiled)
        self.region_batch = config.region_batch
        self._predict = torch.compile(model.sam_mask_decoder.predict_masks, dynamic=False) if compiled else None
        self.workers = config.workers or min(16, os.cpu_count() or 1)

    @classmethod
    def load(cls, config: RefineConfig) -> FastImages:
        """The refiner of a configuration; raises `CheckpointError` where its weights are missing."""
        return cls(load_model(config.checkpoint, resolve_device(config.device)), config)

    def refine(self, image: Pixels, seeds: list[Seed]) -> list[Candidate]:
        """A candidate for each seed of one image, in order; `image` is RGB uint8 (H, W, 3)."""
        job = ImageJob(image, (), tuple(seeds))
        with inference(self.model.device, self.dtype):
            return self.propose([job], [_tensor(image)])[0].candidates()

    def refine_images(self, images: Iterable[Sequence[RefineUnit]]) -> Iterator[list[Mask]]:
        """The rows of each image's regions, images in order of their batches."""
        backend, config = self.config.backend, self.config
        with ThreadPoolExecutor(self.workers) as pool:
            loading = _ahead(pool, lambda units: self._load(units, backend), images, 4 * self.encoder.batch)
            judging: deque[Future[list[Mask]]] = deque()
            for batch in _batches(loading, self.encoder.batch):
                for loaded in batch:
                    if loaded.failed:
                        yield loaded.failed
                jobs = [
                    (loaded.job, loaded.pixels)
                    for loaded in batch
                    if loaded.job is not None and loaded.pixels is not None
                ]
                if jobs:
                    with inference(self.model.device, self.dtype):
                        proposed = self.propose([job for job, _ in jobs], [pixels for _, pixels in jobs])
                    judging += [pool.submit(_judged, one, config) for one in proposed]
                while len(judging) > 2 * self.encoder.batch:
                    yield judging.popleft().result()
            while judging:
                yield judging.popleft().result()

    def _load(self, units: Sequence[RefineUnit], backend: str) -> Loaded:
        job, failed = prepare(units, backend)
        if job is None:
            return Loaded(None, None, failed)
        pixels = _tensor(job.image)
        return Loaded(job, pixels.pin_memory() if self.model.device.type == "cuda" else pixels, failed)

    def propose(self, jobs: Sequence[ImageJob], pixels: Sequence[Tensor]) -> list[Proposed]:
        """The masks of a batch of images, started on the device but not awaited; `pixels` uint8 (H, W, 3) each."""
        logits, predicted = self.logits(jobs, pixels)
        proposed, start = [], 0
        for job in jobs:
            stop = start + len(job.seeds)
            height, width = job.image.shape[:2]
            proposed.append(Proposed(job, send_enlarged(logits[start:stop], predicted[start:stop], height, width)))
            start = stop
        return proposed

    def logits(self, jobs: Sequence[ImageJob], pixels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Low-resolution logits (r, S/4, S/4) and predicted IoUs (r,), float32, of all seeds of all images in order."""
        size, device = self.model.image_size, self.model.device
        batch = torch.cat([normalise(p.to(device, non_blocking=True).permute(2, 0, 1), size) for p in pixels])
        features = self.encoder.features(batch)
        prompts = [prompt_of(seed, size // 4, self.config.multimask) for job in jobs for seed in job.seeds]
        owners = [index for index, job in enumerate(jobs) for _ in job.seeds]
        scales = [np.array([size / job.image.shape[1], size / job.image.shape[0]], np.float32) for job in jobs]
        coords = [prompt.points * scales[owner] for prompt, owner in zip(prompts, owners, strict=True)]
        return self._decoded(features, prompts, coords, owners)

    def _decoded(
        self, features: Features, prompts: list[Prompt], coords: list[np.ndarray[Any, Any]], owners: list[int]
    ) -> tuple[Tensor, Tensor]:
        """Low-resolution logits (r, S/4, S/4) and predicted IoUs (r,) of all prompts, float32.

        Prompts of one kind (number of points, one or three masks) share a batch; padding would change the answers.
        """
        side, device = self.model.image_size // 4, self.model.device
        logits = torch.empty((len(prompts), side, side), device=device)
        predicted = torch.empty(len(prompts), device=device)
        kinds: dict[tuple[int, bool], list[int]] = defaultdict(list)
        for index, prompt in enumerate(prompts):
            kinds[len(prompt.labels), prompt.multimask].append(index)
        for (_, multimask), members in kinds.items():
            start = 0
            while start < len(members):
                part = members[start : start + self.region_batch]
                try:
                    found = self._decode_part(features, prompts, coords, owners, part, multimask)
                except torch.cuda.OutOfMemoryError:
                    if self.region_batch == 1:
                        raise
                    self.region_batch = (min(self.region_batch, len(part)) + 1) // 2
                    torch.cuda.empty_cache()
                    continue
                at = torch.tensor(part, device=device)
                logits[at], predicted[at] = found[0].float(), found[1].float()
                start += len(part)
        return logits, predicted

    def _decode_part(
        self, features: Features, prompts: list[Prompt], coords: list[np.ndarray[Any, Any]], owners: list[int],
        part: list[int], multimask: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        device, wanted = self.model.device, len(part)
        boxes = prompts[part[0]].labels.tolist() == [2, 3] and not multimask and not self.config.two_pass
        predict = self._predict if boxes else None  # compiled for the common shape alone: boxes, a full batch
        if predict is not None:
            part = part + [part[-1]] * (self.region_batch - wanted)
        mine = features.take(torch.tensor([owners[i] for i in part], device=device))
        at = torch.from_numpy(np.stack([coords[i] for i in part])).to(device)
        labels = torch.from_numpy(np.stack([prompts[i].labels for i in part])).to(device)
        masks = _mask_prompts([prompts[i] for i in part], self.model.image_size // 4, device)
        decoded = decode(self.model, mine, at, labels, masks, predict)
        if multimask:
            best = decoded.ious[:, 1:].argmax(1) + 1
            rows = torch.arange(len(part), device=device)
            found = decoded.masks[rows, best], decoded.ious[rows, best]
        else:
            found = single_mask(self.model, decoded)
        if self.config.two_pass:
            again = found[0].float().clamp(-32, 32)[:, None]
            found = single_mask(self.model, decode(self.model, mine, at, labels, again))
        return found[0][:wanted], found[1][:wanted]


def _tensor(image: Pixels) -> Tensor:
    return torch.from_numpy(np.require(image, requirements=["C", "W"]))


def _mask_prompts(prompts: list[Prompt], side: int, device: torch.device) -> Tensor | None:
    """Prompt logits (r, 1, side, side), NaN where a prompt has no mask; None where none has."""
    if all(prompt.mask is None for prompt in prompts):
        return None
    none = np.full((side, side), np.nan, np.float32)
    stacked = np.stack([none if prompt.mask is None else prompt.mask for prompt in prompts])
    return torch.from_numpy(stacked)[:, None].to(device)


def _judged(proposed: Proposed, config: RefineConfig) -> list[Mask]:
    return conclude(proposed.job, proposed.candidates(), config)


def _ahead(pool: ThreadPoolExecutor, work: Callable[[T], R], items: Iterable[T], depth: int) -> Iterator[R]:
    """Results in order, up to `depth` of them under way."""
    waiting: deque[Future[R]] = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) >= depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    batch: list[T] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
