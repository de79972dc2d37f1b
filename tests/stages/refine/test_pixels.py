"""The quick decoder reads what the careful one reads, and leaves to it what it should not touch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.base import UnitError
from stages.media.images import load_image
from stages.refine.pixels import load_pixels, plain_jpeg


def test_photos_decode_alike(shared_data: Path) -> None:
    files = sorted((shared_data / "coco_tiny/images/train2017").glob("*.jpg"))[:12]
    assert any(plain_jpeg(file.read_bytes()) for file in files)
    for file in files:
        assert np.array_equal(load_pixels(str(file)), load_image(str(file)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_comes_upright(tmp_path: Path, orientation: int) -> None:
    ramp = np.linspace(0, 255, 48 * 64 * 3).astype(np.uint8).reshape(48, 64, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(ramp).save(tmp_path / "a.jpg", exif=exif, quality=95)
    found = load_pixels(str(tmp_path / "a.jpg"))
    assert found.shape == ((64, 48, 3) if orientation >= 5 else (48, 64, 3))
    assert np.array_equal(found, load_image(str(tmp_path / "a.jpg")))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_print_colours_decode_alike(tmp_path: Path, mode: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(tmp_path / "a.jpg")
    assert plain_jpeg((tmp_path / "a.jpg").read_bytes()) == (mode == "L")
    assert np.array_equal(load_pixels(str(tmp_path / "a.jpg")), load_image(str(tmp_path / "a.jpg")))


def test_a_cut_photo_is_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (90, 90, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg")
    whole = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UnitError, match=r"a\.jpg"):
        load_pixels(str(tmp_path / "a.jpg"))
