"""What the background says of the camera: it is followed, and things before it are not taken for it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from stages.chunk.pixels import camera_path

HEIGHT, WIDTH, STEPS = 108, 192, 6


def _scene(rng: np.random.Generator, contrast: float, blur: float) -> np.ndarray:
    noise = cv2.GaussianBlur(rng.normal(0, 1, (2 * HEIGHT, 2 * WIDTH)), (0, 0), blur)
    return np.clip(128 + contrast * noise / noise.std(), 0, 255)


def _views(camera: tuple[int, int], thing: tuple[int, int] | None) -> list[np.ndarray]:
    """Frames of a soft wall, seen by a moving camera, and a large thing with sharp corners before it."""
    rng = np.random.default_rng(3)
    wall, rich = _scene(rng, 12, 2), _scene(rng, 60, 1)
    frames = []
    for at in range(STEPS):
        x, y = 40 + camera[0] * at, 40 + camera[1] * at
        view = wall[y : y + HEIGHT, x : x + WIDTH].copy()
        if thing is not None:
            left, top = 50 + thing[0] * at, 30 + thing[1] * at
            view[top : top + 50, left : left + 70] = rich[:50, :70]
        frames.append(np.repeat(view[..., None], 3, 2).astype(np.uint8))
    return frames


@pytest.mark.parametrize("camera", [(0, 0), (3, 0), (2, -2)])
@pytest.mark.parametrize("thing", [None, (0, -4), (5, 0)])
def test_the_camera_is_what_the_whole_background_shares(camera: tuple[int, int], thing: tuple[int, int] | None) -> None:
    path = camera_path(_views(camera, thing), [None] * STEPS, 1.0)
    wanted = np.outer(np.arange(STEPS), camera)
    np.testing.assert_allclose(path[:, 2:], wanted, atol=1.0)
    np.testing.assert_allclose(path[:, 0], 1, atol=0.02)
