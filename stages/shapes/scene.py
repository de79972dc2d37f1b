"""Still scenes: shapes that occlude each other on a textured background, with exact visible masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from schemas.base import Box
from stages.shapes.drawing import Look, Pose, add_grain, draw_background, draw_look, put_shape
from stages.shapes.palette import KINDS, TEXTURES, position_word, size_word

Array = np.ndarray[Any, Any]

MIN_VISIBLE = 0.4
_TRIES = 12


@dataclass(frozen=True)
class Instance:
    """One drawn shape: `mask` bool (H, W) of its visible pixels, `box` xyxy around them (exclusive maximum).

    `occlusion` is the share of its drawn pixels that other shapes hide, `area_share` the visible share of the image.
    """

    look: Look
    pose: Pose
    mask: Array
    box: Box
    occlusion: float
    area_share: float
    size: str
    position: str


@dataclass(frozen=True)
class Scene:
    """An RGB uint8 image (H, W, 3) and its shapes, the farthest first."""

    image: Array
    instances: tuple[Instance, ...]


def draw_scene(
    rng: np.random.Generator,
    size: tuple[int, int] = (256, 256),
    objects: tuple[int, int] = (2, 5),
    kinds: tuple[str, ...] = tuple(KINDS),
    textures: tuple[str, ...] = tuple(TEXTURES),
) -> Scene:
    """A random scene of `size` (width, height) pixels, in a few milliseconds; one generator state, one scene.

    Between `objects[0]` and `objects[1]` shapes (fewer where the image is too full), no two of one kind and colour,
    each with at least 40 % of its drawn pixels visible.
    """
    width, height = size
    image = draw_background(rng, width, height)
    owner = np.zeros((height, width), np.uint8)
    placed: list[tuple[Look, Pose]] = []
    drawn: list[int] = []
    for _ in range(int(rng.integers(objects[0], objects[1] + 1))):
        for _ in range(_TRIES):
            look = draw_look(rng, kinds, textures)
            pose = _draw_pose(rng, width, height)
            if any((look.kind, look.colour) == (other.kind, other.colour) for other, _ in placed):
                continue
            candidate, canvas = image.copy(), owner.copy()
            rows, columns, inside = put_shape(candidate, look, pose)
            canvas[rows, columns][inside] = len(placed) + 1
            areas = [*drawn, int(inside.sum())]
            visible = np.bincount(canvas.ravel(), minlength=len(areas) + 1)[1:]
            if (visible >= MIN_VISIBLE * np.array(areas)).all() and areas[-1] >= 32:
                image, owner, drawn = candidate, canvas, areas
                placed.append((look, pose))
                break
    image = add_grain(image, rng)
    return Scene(image, tuple(_instance(owner == i + 1, *placed[i], drawn[i]) for i in range(len(placed))))


def _draw_pose(rng: np.random.Generator, width: int, height: int) -> Pose:
    side = min(width, height)
    radius = side * float(np.exp(rng.uniform(np.log(0.08), np.log(0.3))))
    margin = 0.8 * radius
    return Pose(
        x=float(rng.uniform(margin, width - margin)),
        y=float(rng.uniform(margin, height - margin)),
        radius=radius,
        angle=float(rng.uniform(0, 2 * np.pi)),
    )


def _instance(mask: Array, look: Look, pose: Pose, drawn: int) -> Instance:
    height, width = mask.shape
    area = int(mask.sum())
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    box = float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
    centre = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return Instance(
        look=look,
        pose=pose,
        mask=mask,
        box=box,
        occlusion=1 - area / drawn,
        area_share=area / mask.size,
        size=size_word(area / mask.size),
        position=position_word(*centre, width, height),
    )
