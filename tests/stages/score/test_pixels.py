"""Colours that captions name against the pixels under the mask."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from schemas.caption import Language
from stages.base import UnitError
from stages.masks import encode
from stages.score.pixels import PixelStage, colour_profile
from stages.score.words.tables import colours

Score = Callable[..., pl.DataFrame]
SIDE = 64


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grass-green picture with a red disc, its lower third white."""
    pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
    pixels[:] = (60, 140, 60)
    pixels[disc()] = (205, 35, 40)
    pixels[disc() & (np.arange(SIDE)[:, None] > 40)] = (240, 240, 240)
    noise = np.random.default_rng(0).integers(-12, 13, pixels.shape)
    path = tmp_path_factory.mktemp("photo") / "disc.png"
    Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8)).save(path)
    return path


def disc() -> np.ndarray[Any, Any]:
    y, x = np.mgrid[:SIDE, :SIDE]
    return (x - 32) ** 2 + (y - 32) ** 2 < 20**2


def support(score: Score, photo: Path, text: str, language: Language = "en", **more: Any) -> Any:
    unit = {"text": text, "task": "brief", "language": language, "source_label": "circle", "media_key": b"m" * 16}
    unit |= {"uri": str(photo), "kind": "image", "mask": encode(disc()), **more}
    return score(PixelStage(), [unit]).row(0, named=True)


@pytest.mark.parametrize(
    ("text", "language", "low", "high"),
    [
        ("A large red circle lies on the grass.", "en", 0.6, 1.0),
        ("A red and white circle.", "en", 0.2, 0.5),
        ("A blue circle lies on the grass.", "en", 0.0, 0.08),
        ("The circle is purple and soft.", "en", 0.0, 0.08),
        ("A green circle.", "en", 0.0, 0.08),
        ("一个红色的圆形。", "zh", 0.6, 1.0),
        ("一个蓝色的圆形。", "zh", 0.0, 0.08),
    ],
)
def test_colour_support(score: Score, photo: Path, text: str, language: Language, low: float, high: float) -> None:
    assert low <= support(score, photo, text, language)["colour_support"] <= high


def test_no_colour_of_the_target_no_score(score: Score, photo: Path) -> None:
    row = support(score, photo, "A circle on the green grass.")
    assert (row["colour_support"], row["status"]) == (None, "ok")


def test_what_moves_may_change_its_colour(score: Score, photo: Path) -> None:
    assert support(score, photo, "A blue circle rolls left.", task="stream")["colour_support"] is None


def test_a_media_that_is_gone_fails_the_unit_not_the_batch(score: Score, photo: Path) -> None:
    row = support(score, photo, "A red circle.", uri=str(photo.with_name("gone.png")))
    assert (row["colour_support"], row["status"], row["reason"]) == (None, "failed", "missing_media")


def test_a_mask_of_another_size_fails_the_unit(score: Score, photo: Path) -> None:
    row = support(score, photo, "A red circle.", mask=encode(np.ones((8, 8), bool)))
    assert (row["status"], row["reason"]) == ("failed", "mask_size")


@pytest.mark.parametrize("name", sorted(colours()))
def test_every_colour_looks_like_itself(name: str) -> None:
    for rgb in colours()[name].rgb:
        frame = np.tile(np.asarray(rgb, np.uint8), (16, 16, 1))
        profile = dict(zip(colours(), colour_profile(frame, np.ones((16, 16), bool)), strict=True))
        assert profile[name] == 1.0


def test_an_empty_mask_is_an_error() -> None:
    with pytest.raises(UnitError, match="empty_mask"):
        colour_profile(np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), bool))
