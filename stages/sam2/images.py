"""The fast image path: many images at a time, all their regions together, every part of the machine busy.

Threads read and decode files into pinned memory; the device resizes, encodes a fixed batch of images and decodes all
their regions in large batches, without the launching thread ever waiting for it; other threads have the masks
enlarged and traced beside the next batch and make rows of their runs. The masks are those of the public predictor
(tests/stages/sam2/test_images.py).
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
from stages import masks
from stages.base import UnitError
from stages.refine.config import RefineConfig
from stages.refine.images import ImageJob, prepare
from stages.refine.rows import failed_row, mask_row
from stages.refine.seeds import Candidate, Pixels, RefineUnit, Seed
from stages.refine.verdict import judge_outline
from stages.sam2.device import resolve_device, resolve_dtype
from stages.sam2.encoder import Encoder, inference
from stages.sam2.forward import Features, decode, resized, single_mask, standardised
from stages.sam2.graphs import Replayed
from stages.sam2.load import load_model
from stages.sam2.predictor import Predictor
from stages.sam2.prompts import Prompt, prompt_of
from stages.sam2.trace import Traced, Tracer

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
    """A batch of images, their masks' logits (r, S/4, S/4) and predicted IoUs (r,), there when `ready` comes."""

    jobs: Sequence[ImageJob]
    logits: Tensor
    predicted: Tensor
    ready: torch.cuda.Event | None


class FastImages:
    """Refines the regions of many images with a SAM 2 model."""

    def __init__(self, model: Predictor, config: RefineConfig) -> None:
        device = model.device
        self.model = model
        self.config = config
        self.dtype = resolve_dtype(config.precision, device)
        compiled = config.compile == "on" or (config.compile == "auto" and device.type == "cuda")
        self.encoder = Encoder(model, self.dtype, config.image_batch, compiled)
        self.tracer = Tracer(device)
        self.region_batch = config.region_batch
        predict = torch.compile(model.sam_mask_decoder.predict_masks, dynamic=False) if compiled else None
        self._boxes = Replayed(self._boxes_of(predict), resident=3) if compiled else None
        self.workers = config.workers or min(16, os.cpu_count() or 1)

    @classmethod
    def load(cls, config: RefineConfig) -> FastImages:
        """The refiner of a configuration; raises `CheckpointError` where its weights are missing."""
        return cls(load_model(config.checkpoint, resolve_device(config.device)), config)

    def refine(self, image: Pixels, seeds: list[Seed]) -> list[Candidate]:
        """A candidate for each seed of one image, in order; `image` is RGB uint8 (H, W, 3)."""
        with inference(self.model.device, self.dtype):
            proposed = self.propose([ImageJob(image, (), tuple(seeds))], [_tensor(image)])
        return [
            Candidate(masks.decode(one.outline.rle), one.given, one.stability, one.outline.box)
            for one in self.traced(proposed, fill=0.0)
        ]

    def refine_images(self, images: Iterable[Sequence[RefineUnit]]) -> Iterator[list[Mask]]:
        """The rows of the images' regions, a batch of images at a time."""
        backend = self.config.backend
        with ThreadPoolExecutor(self.workers) as pool, ThreadPoolExecutor(2) as tracing:
            loading = _ahead(pool, lambda units: self._load(units, backend), images, 4 * self.encoder.batch)
            finishing: deque[Future[list[Mask]]] = deque()
            for batch in _batches(loading, self.encoder.batch):
                failed = [row for loaded in batch for row in loaded.failed]
                if failed:
                    yield failed
                ready = [(one.job, one.pixels) for one in batch if one.job is not None and one.pixels is not None]
                if ready:
                    with inference(self.model.device, self.dtype):
                        proposed = self.propose([job for job, _ in ready], [pixels for _, pixels in ready])
                    finishing.append(tracing.submit(self._finished, proposed, pool))
                while len(finishing) > 2:
                    yield finishing.popleft().result()
            while finishing:
                yield finishing.popleft().result()

    def _load(self, units: Sequence[RefineUnit], backend: str) -> Loaded:
        job, failed = prepare(units, backend)
        if job is None:
            return Loaded(None, None, failed)
        pixels = _tensor(job.image)
        return Loaded(job, pixels.pin_memory() if self.model.device.type == "cuda" else pixels, failed)

    def propose(self, jobs: Sequence[ImageJob], pixels: Sequence[Tensor]) -> Proposed:
        """The masks of a batch of images, started on the device but not awaited; `pixels` uint8 (H, W, 3) each."""
        logits, predicted = self.logits(jobs, pixels)
        return Proposed(jobs, logits, predicted, self.tracer.ready())

    def traced(self, proposed: Proposed, fill: float) -> list[Traced]:
        """The outlines of all masks of a batch, with their stability and predicted IoU; waits for them."""
        sizes = [(job.image.shape[0], job.image.shape[1]) for job in proposed.jobs for _ in job.seeds]
        return self.tracer.trace(proposed.logits, proposed.predicted, sizes, fill, proposed.ready)

    def _finished(self, proposed: Proposed, pool: ThreadPoolExecutor) -> list[Mask]:
        found = iter(self.traced(proposed, self.config.fill_holes))
        work = [(job, [next(found) for _ in job.seeds]) for job in proposed.jobs]
        slow = any(seed.mask is not None for job in proposed.jobs for seed in job.seeds)  # pixels are to be looked at
        rows = pool.map(self._rows, *zip(*work, strict=True)) if slow else map(self._rows, *zip(*work, strict=True))
        return [row for some in rows for row in some]

    def _rows(self, job: ImageJob, found: Sequence[Traced]) -> list[Mask]:
        config, rows = self.config, []
        for unit, seed, one in zip(job.units, job.seeds, found, strict=True):
            try:
                verdict = judge_outline(job.image, seed, one.outline, one.given, one.stability, config.prefer)
                rows.append(mask_row(unit, config.backend, verdict))
            except UnitError as error:
                rows.append(failed_row(unit, config.backend, error))
        return rows

    def logits(self, jobs: Sequence[ImageJob], pixels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Low-resolution logits (r, S/4, S/4) and predicted IoUs (r,), float32, of all seeds of all images in order."""
        size, device = self.model.image_size, self.model.device
        batch = torch.cat([resized(p.to(device, non_blocking=True).permute(2, 0, 1), size) for p in pixels])
        features = self.encoder.features(standardised(batch))
        prompts = [prompt_of(seed, size // 4, self.config.multimask) for job in jobs for seed in job.seeds]
        owners = [index for index, job in enumerate(jobs) for _ in job.seeds]
        scales = [np.array([size / job.image.shape[1], size / job.image.shape[0]], np.float32) for job in jobs]
        coords = [prompt.points * scales[owner] for prompt, owner in zip(prompts, owners, strict=True)]
        return self._decoded(features, prompts, coords, owners)

    def _decoded(
        self, features: Features, prompts: list[Prompt], coords: list[np.ndarray[Any, Any]], owners: list[int]
    ) -> tuple[Tensor, Tensor]:
        """Low-resolution logits (r, S/4, S/4) and predicted IoUs (r,) of all prompts, float32.

        Prompts of one kind (number of points, with a mask or not, one or three masks) share a batch; padding would
        change the answers.
        """
        side, device = self.model.image_size // 4, self.model.device
        logits = torch.empty((len(prompts), side, side), device=device)
        predicted = torch.empty(len(prompts), device=device)
        kinds: dict[tuple[int, bool, bool], list[int]] = defaultdict(list)
        for index, prompt in enumerate(prompts):
            kinds[len(prompt.labels), prompt.multimask, prompt.mask is not None].append(index)
        for (_, multimask, _), members in kinds.items():
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
                at = self._sent(np.array(part))
                logits[at], predicted[at] = found[0].float(), found[1].float()
                start += len(part)
        return logits, predicted

    def _decode_part(
        self, features: Features, prompts: list[Prompt], coords: list[np.ndarray[Any, Any]], owners: list[int],
        part: list[int], multimask: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        wanted, first = len(part), prompts[part[0]]
        plain = first.labels.tolist() == [2, 3] and first.mask is None and not self.config.two_pass
        if self._boxes is not None and plain:  # compiled for the common shape alone: boxes, a full batch
            part = part + [part[-1]] * (self.region_batch - wanted)
        owner = self._sent(np.array([owners[i] for i in part]))
        at = self._sent(np.stack([coords[i] for i in part]))
        if self._boxes is not None and plain:
            low, ious = self._boxes(features.embed, *features.fine, owner, at)
            return low[:wanted], ious[:wanted]
        labels = self._sent(np.stack([prompts[i].labels for i in part]))
        mask_prompts = None
        if first.mask is not None:
            given = [mask for i in part if (mask := prompts[i].mask) is not None]
            mask_prompts = self._sent(np.stack(given)[:, None])
        mine = features.take(owner)
        decoded = decode(self.model, mine, at, labels, mask_prompts)
        if multimask:
            best = decoded.ious[:, 1:].argmax(1) + 1
            rows = torch.arange(len(part), device=self.model.device)
            found = decoded.masks[rows, best], decoded.ious[rows, best]
        else:
            found = single_mask(self.model, decoded)
        if self.config.two_pass:
            again = found[0].float().clamp(-32, 32)[:, None]
            found = single_mask(self.model, decode(self.model, mine, at, labels, again))
        return found

    def _boxes_of(self, predict: Callable[..., Any] | None) -> Callable[..., tuple[Tensor, Tensor]]:
        """The mask and predicted IoU of a batch of boxes: (embed, fine, middle, owner (r,), corners (r, 2, 2))."""

        def boxes(embed: Tensor, fine: Tensor, middle: Tensor, owner: Tensor, corners: Tensor) -> tuple[Tensor, Tensor]:
            labels = torch.arange(2, 4, device=corners.device).expand(len(corners), 2)
            features = Features(embed, (fine, middle)).take(owner)
            return single_mask(self.model, decode(self.model, features, corners, labels, None, predict))

        return boxes

    def _sent(self, array: np.ndarray[Any, Any]) -> Tensor:
        """On the device, without waiting for what it is doing."""
        tensor = torch.from_numpy(array)
        if self.model.device.type != "cuda":
            return tensor
        return tensor.pin_memory().to(self.model.device, non_blocking=True)


def _tensor(image: Pixels) -> Tensor:
    return torch.from_numpy(np.require(image, requirements=["C", "W"]))


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
