"""Images: bytes from anywhere become upright RGB pixels, or fail with a reason."""

from __future__ import annotations

import io
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from stages.base import UnitError
from stages.media.images import decode_image, load_image, perceptual_hash, probe_image, read_bytes

GRADIENT = np.stack(
    [
        np.tile(np.linspace(0, 255, 60), (40, 1)),
        np.tile(np.linspace(0, 255, 40)[:, None], (1, 60)),
        np.full((40, 60), 80.0),
    ],
    axis=2,
).astype(np.uint8)


def coded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def textured(seed: int = 0, side: int = 96) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 255, (12, 12, 3), np.uint8)
    return Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_shown_upright(orientation):
    image = Image.fromarray(GRADIENT)
    exif = image.getexif()
    exif[0x0112] = orientation
    data = coded(image, exif=exif)
    expected = {
        1: GRADIENT, 2: GRADIENT[:, ::-1], 3: GRADIENT[::-1, ::-1], 4: GRADIENT[::-1],
        5: GRADIENT.transpose(1, 0, 2), 6: np.rot90(GRADIENT, -1), 7: GRADIENT[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(GRADIENT),
    }[orientation]  # fmt: skip
    assert np.array_equal(decode_image(data), expected)
    info = probe_image(data)
    assert (info.height, info.width) == expected.shape[:2]
    assert info.orientation == orientation


def test_sixteen_bit_grey_keeps_its_range():
    deep = np.linspace(0, 65535, 40 * 60).reshape(40, 60).astype(np.uint16)
    pixels = decode_image(coded(Image.fromarray(deep)))
    assert pixels.shape == (40, 60, 3)
    assert (int(pixels.min()), int(pixels.max())) == (0, 255)
    assert (np.diff(pixels[:, :, 0].astype(int).ravel()) >= 0).all()


def test_grey_palette_and_cmyk_come_out_as_rgb():
    image = Image.fromarray(GRADIENT)
    grey = decode_image(coded(image.convert("L")))
    assert (grey[:, :, 0] == grey[:, :, 2]).all()
    palette = decode_image(coded(image.quantize(16)))
    assert np.abs(palette.astype(int) - GRADIENT).mean() < 20
    cmyk = decode_image(coded(image.convert("CMYK"), "JPEG", quality=95))
    assert np.abs(cmyk.astype(int) - GRADIENT).mean() < 8


def test_transparency_lies_over_white():
    layer = np.dstack([np.full((4, 4, 3), 10, np.uint8), np.zeros((4, 4), np.uint8)])
    layer[:2, :, 3] = 255
    pixels = decode_image(coded(Image.fromarray(layer)))
    assert (pixels[0] == 10).all()
    assert (pixels[3] == 255).all()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_a_truncated_file_is_unreadable_when_probed_and_when_decoded(format):
    data = coded(textured(side=400), format)
    cut = data[: len(data) * 2 // 3]
    for read in (probe_image, decode_image):
        with pytest.raises(UnitError, match="unreadable_media"):
            read(cut)


def test_files_are_read_from_folders_and_archives(tmp_path):
    data = coded(Image.fromarray(GRADIENT))
    (tmp_path / "a.png").write_bytes(data)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.write(tmp_path / "a.png", "in/a.png")
    with tarfile.open(tmp_path / "x.tar", "w") as archive_file:
        archive_file.add(tmp_path / "a.png", "in/a.png")
    for uri in (f"{tmp_path}/a.png", f"file://{tmp_path}/a.png", f"zip://in/a.png::{tmp_path}/x.zip",
                f"tar://in/a.png::{tmp_path}/x.tar"):  # fmt: skip
        assert read_bytes(uri) == data
        assert np.array_equal(load_image(uri), GRADIENT)


def test_what_is_not_there_is_missing_and_what_is_no_image_is_unreadable(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w"):
        pass
    for uri in (f"{tmp_path}/gone.png", f"zip://gone.png::{tmp_path}/x.zip", f"zip://a.png::{tmp_path}/gone.zip"):
        with pytest.raises(UnitError) as error:
            load_image(uri)
        assert error.value.reason == "missing_media"
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UnitError) as error:
        load_image(f"{tmp_path}/text.png")
    assert error.value.reason == "unreadable_media"
    assert "text.png" in error.value.message


def test_copies_at_another_size_and_quality_have_nearly_the_same_hash():
    original = textured(1, 320)
    copy = Image.open(io.BytesIO(coded(original.resize((160, 150)), "JPEG", quality=60))).convert("RGB")
    other = textured(2, 320)
    first, near, far = (perceptual_hash(np.asarray(image)) for image in (original, copy, other))
    assert bits_between(first, near) <= 4
    assert bits_between(first, far) >= 12
    assert all(-(1 << 63) <= value < 1 << 63 for value in (first, near, far))
    assert probe_image(coded(original)).phash == first


def bits_between(a: int, b: int) -> int:
    return ((a ^ b) & 0xFFFFFFFFFFFFFFFF).bit_count()
