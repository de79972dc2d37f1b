"""Small real runs: drawn photos, native COCO, the real stages, one embedded Ray for all tests of the folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config import load_config
from stages.shapes.config import ShapesConfig
from stages.shapes.images import write_images


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """One Ray for the session; builds connect to it instead of starting their own."""
    import ray

    mine = not ray.is_initialized()
    if mine:
        ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False)
    yield
    if mine:
        ray.shutdown()


class World:
    """A folder of drawn photos with its configuration."""

    def __init__(self, folder: Path, images: int, seed: int = 0, **settings: Any) -> None:
        self.folder = folder
        self.shapes = ShapesConfig(images=images, clips=0, seed=seed, size=(160, 120), objects=(2, 3))
        drawn = write_images(folder / "world", self.shapes)
        self.annotations, self.media = drawn.annotations[0], drawn.media
        self.settings: dict[str, Any] = {
            "run": "run",
            "sources": [{"format": "coco", "annotations": str(self.annotations), "media": str(self.media)}],
            "select": {"min_side": 8},
            "captions": {"tasks": ["label", "brief"], "languages": ["en"]},
            "pack": {"validation_fraction": 0.3},
            **settings,
        }
        self.save()

    @property
    def path(self) -> Path:
        return self.folder / "config.yaml"

    def save(self) -> None:
        self.path.write_text(yaml.safe_dump(self.settings), encoding="utf-8")

    def config(self, *overrides: str) -> Any:
        return load_config(self.path, list(overrides))


@pytest.fixture(scope="session")
def make_world() -> type[World]:
    return World
