"""What the shapes world is made of: kinds, named colours, textures, and their names in English and Chinese."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np

Rgb = tuple[int, int, int]
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Colour:
    """A named colour: the tone that covers most of a shape, and an accent for its texture that keeps the name."""

    name: str
    zh: str
    rgb: Rgb
    accent: Rgb


COLOURS: Final[dict[str, Colour]] = {
    colour.name: colour
    for colour in (
        Colour("red", "红色", (208, 32, 36), (158, 18, 24)),
        Colour("orange", "橙色", (244, 138, 24), (250, 164, 70)),
        Colour("yellow", "黄色", (244, 224, 52), (212, 192, 24)),
        Colour("green", "绿色", (44, 150, 58), (26, 112, 40)),
        Colour("cyan", "青色", (70, 208, 214), (44, 172, 180)),
        Colour("blue", "蓝色", (36, 76, 208), (24, 50, 150)),
        Colour("purple", "紫色", (128, 48, 168), (98, 30, 132)),
        Colour("pink", "粉色", (246, 148, 190), (250, 184, 212)),
        Colour("brown", "棕色", (118, 70, 34), (90, 52, 26)),
        Colour("white", "白色", (244, 244, 242), (214, 214, 214)),
        Colour("black", "黑色", (24, 24, 26), (52, 52, 54)),
    )
}

KINDS: Final[dict[str, str]] = {
    "circle": "圆形",
    "ellipse": "椭圆形",
    "square": "正方形",
    "rectangle": "长方形",
    "triangle": "三角形",
    "star": "星形",
    "crescent": "月牙形",
    "l-shape": "L形",
    "ring": "圆环",
    "hexagon": "六边形",
    "cross": "十字形",
}
"""Kind to its Chinese name. A kind's COCO category id is its place in this table, from 1."""

TURNING_KINDS: Final = ("ellipse", "rectangle", "triangle", "crescent", "l-shape")
"""Kinds whose outline shows a rotation plainly; only these turn in clips."""

TEXTURES: Final[dict[str, str]] = {
    "plain": "纯色",
    "striped": "条纹",
    "dotted": "圆点",
    "checked": "格子",
    "speckled": "斑点",
}

POSITIONS: Final[dict[str, str]] = {
    "top left": "左上方",
    "top": "上方",
    "top right": "右上方",
    "left": "左侧",
    "centre": "中央",
    "right": "右侧",
    "bottom left": "左下方",
    "bottom": "下方",
    "bottom right": "右下方",
}

SIZES: Final[dict[str, str]] = {"small": "小", "medium": "中等", "large": "大"}
SMALL_SHARE, LARGE_SHARE = 0.02, 0.08


def size_word(area_share: float) -> str:
    """`small` below 2 % of the image's area, `large` from 8 %, else `medium`."""
    if area_share < SMALL_SHARE:
        return "small"
    return "large" if area_share >= LARGE_SHARE else "medium"


def position_word(x: float, y: float, width: int, height: int) -> str:
    """The cell of a 3 x 3 grid over the image in which the point (x, y), in pixels, lies."""
    column = min(max(int(3 * x / width), 0), 2)
    row = min(max(int(3 * y / height), 0), 2)
    return tuple(POSITIONS)[3 * row + column]


def lab(colours: Array) -> Array:
    """CIE L*a*b* (float32, L 0-100) of RGB uint8 colours of shape (..., 3)."""
    flat = np.ascontiguousarray(colours, np.uint8).reshape(-1, 1, 3).astype(np.float32) / 255
    converted: Array = cv2.cvtColor(flat, cv2.COLOR_RGB2LAB)
    return converted.reshape(*np.shape(colours))


def nearest_colour(rgb: Rgb | Array) -> str:
    """The name of the palette's colour nearest to `rgb` in L*a*b*."""
    names = list(COLOURS)
    palette = lab(np.array([COLOURS[name].rgb for name in names]))
    return names[int(np.linalg.norm(palette - lab(np.asarray(rgb)), axis=-1).argmin())]
