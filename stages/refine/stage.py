"""The refine stage: regions in, masks out; all regions of a media together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from schemas.arrow import from_table, to_table
from schemas.mask import Mask
from stages.base import Resources, Stage
from stages.refine.config import RefineConfig
from stages.refine.flow import FlowTracker
from stages.refine.grabcut import GrabCut
from stages.refine.images import refine_images
from stages.refine.seeds import RefineUnit
from stages.refine.videos import refine_video
from stages.sam2.checkpoint import checkpoint_identity


class RefineStage(Stage):
    """Boxes, points, polygons and rough masks become masks (images) and masklets (videos).

    One row a region; for a video one a region and segment of at most 64 frames, yielded as each segment is done.
    A media that cannot be read fails its own rows only.
    """

    name = "refine"
    version = 1
    table = "masks"
    unit = RefineUnit
    row = Mask
    unit_field = "region_key"
    group_by = ("media_key",)
    count_field = "num_segments"

    def __init__(self, config: RefineConfig) -> None:
        self.config = config
        self._refiner: Any = None
        self._tracker: Any = None
        if config.backend == "sam2":
            from stages.sam2.device import resolve_device  # torch is heavy: only where it is used

            on_gpu = resolve_device(config.device).type == "cuda"
            share = 1.0 / config.gpu_share
            self.resources = Resources(num_cpus=4.0 * share, num_gpus=share) if on_gpu else Resources()
            self.batch_groups = 256 if on_gpu else 8

    def settings(self) -> dict[str, Any]:
        """What decides a mask: the back end and its own settings, not where or how fast it runs."""
        config = self.config
        common = {"backend": config.backend, "prefer": config.prefer, "fill_holes": config.fill_holes}
        if config.backend == "grabcut":
            return common | {"side": config.grabcut_side, "steps": config.grabcut_steps, "redetect": config.redetect}
        return common | {
            "checkpoint": checkpoint_identity(config.checkpoint),
            "precision": config.precision,
            "two_pass": config.two_pass,
            "multimask": config.multimask,
            "redetect": config.redetect,
            "jump": [config.jump_area, config.jump_move],
        }

    def open(self) -> None:
        """Loads the back end; raises `CheckpointError`, which says how to get the weights, where they are missing."""
        if self.config.backend == "grabcut":
            self._refiner = GrabCut(self.config.grabcut_side, self.config.grabcut_steps)
            self._tracker = FlowTracker()
        else:
            from stages.sam2.images import FastImages
            from stages.sam2.video import FastVideo

            self._refiner = FastImages.load(self.config)
            self._tracker = FastVideo(self._refiner.model, self._refiner.encoder, self.config)

    def process(self, units: pa.Table) -> Iterator[pa.Table]:
        """Rows some images, or a video's segment, at a time."""
        media: dict[bytes, list[RefineUnit]] = defaultdict(list)
        for unit in from_table(units, RefineUnit):
            media[unit.media_key].append(unit)
        images = [group for group in media.values() if group[0].kind == "image"]
        if self.config.backend == "grabcut":
            refined = refine_images(self._refiner, images, self.config)
        else:
            refined = self._refiner.refine_images(images)
        for rows in refined:
            yield to_table(rows, Mask)
        for group in media.values():
            if group[0].kind == "video":
                for rows in refine_video(group, self._refiner, self._tracker, self.config):
                    yield to_table(rows, Mask)


def build_refine(config: RefineConfig) -> RefineStage:
    """The refine stage of a configuration."""
    return RefineStage(config)
