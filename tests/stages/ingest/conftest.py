"""Helpers of the ingest tests: pictures on disk, and a source taken all the way to region rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from PIL import Image

from schemas.arrow import from_table
from schemas.region import Region
from stages.base import checked
from stages.ingest.base import SourceConfig
from stages.ingest.sources import ingest, list_media
from stages.media.probe import ProbeStage, probe_units


def draw(path: Path, width: int = 64, height: int = 48, seed: int = 0, orientation: int | None = None) -> Path:
    """A textured picture of this stored size; `orientation` is written into its EXIF."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    image = Image.fromarray(pixels)
    if orientation is None:
        image.save(path)
    else:
        exif = image.getexif()
        exif[0x0112] = orientation
        image.save(path, exif=exif)
    return path


def probed(listed: pa.Table) -> pl.DataFrame:
    """The probes of listed media."""
    stage, units = ProbeStage(), probe_units(listed)
    return pl.concat([pl.DataFrame(pl.from_arrow(table)) for table in checked(stage, units)])


def regions_of(config: SourceConfig) -> list[Region]:
    """All region rows of a source, validated."""
    probes = probed(list_media(config))
    return [region for table in ingest(config, probes) for region in from_table(table, Region)]


@pytest.fixture
def picture() -> Callable[..., Path]:
    return draw


@pytest.fixture
def rows_of() -> Callable[[SourceConfig], list[Region]]:
    return regions_of


@pytest.fixture
def probe_all() -> Callable[[pa.Table], pl.DataFrame]:
    return probed
