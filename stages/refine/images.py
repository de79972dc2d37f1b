"""Refinement of still images: load, propose, judge; the regions of one image together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from schemas.mask import Mask
from stages.base import UnitError
from stages.refine.config import RefineConfig
from stages.refine.pixels import load_pixels
from stages.refine.rows import failed_row, mask_row
from stages.refine.seeds import Candidate, Pixels, RefineUnit, Seed, seed_of
from stages.refine.verdict import judge


@dataclass(frozen=True)
class ImageJob:
    """An image with those of its regions that have a usable seed, in the order of `units`."""

    image: Pixels
    units: tuple[RefineUnit, ...]
    seeds: tuple[Seed, ...]


class ImageRefiner(Protocol):
    """What an image back end does: candidates for the seeds of each image, images in order of completion."""

    def refine(self, image: Pixels, seeds: list[Seed]) -> list[Candidate]:
        """A candidate for each seed, in order; `image` is RGB uint8 (H, W, 3)."""


def prepare(units: Sequence[RefineUnit], backend: str) -> tuple[ImageJob | None, list[Mask]]:
    """Loads an image and reads its regions' seeds; what cannot be read comes back as failed rows."""
    try:
        image = load_pixels(units[0].uri)
    except UnitError as error:
        return None, [failed_row(unit, backend, error) for unit in units]
    usable: list[tuple[RefineUnit, Seed]] = []
    failed: list[Mask] = []
    for unit in units:
        try:
            usable.append((unit, seed_of(unit, image.shape[0], image.shape[1])))
        except UnitError as error:
            failed.append(failed_row(unit, backend, error))
    if not usable:
        return None, failed
    return ImageJob(image, tuple(u for u, _ in usable), tuple(s for _, s in usable)), failed


def conclude(job: ImageJob, candidates: Sequence[Candidate], config: RefineConfig) -> list[Mask]:
    """The rows of an image's regions from their candidates."""
    rows: list[Mask] = []
    for unit, seed, candidate in zip(job.units, job.seeds, candidates, strict=True):
        try:
            verdict = judge(job.image, seed, candidate, config.prefer, config.fill_holes)
            rows.append(mask_row(unit, config.backend, verdict))
        except UnitError as error:
            rows.append(failed_row(unit, config.backend, error))
    return rows


def refine_images(
    refiner: ImageRefiner, images: Iterable[Sequence[RefineUnit]], config: RefineConfig
) -> Iterator[list[Mask]]:
    """The rows of each image's regions, an image at a time."""
    for units in images:
        job, failed = prepare(units, config.backend)
        rows = conclude(job, refiner.refine(job.image, list(job.seeds)), config) if job else []
        yield failed + rows
